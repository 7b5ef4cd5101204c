//! Why a worker does not serve a class. Pure, so that `windlass doctor` says the same as the worker.

use super::capacity::{Capacity, Need};
use crate::config::Class;
use crate::task::assignment::Runtime;

/// What a worker has for its classes besides the machine's own programs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Means<'a> {
    /// What it may give out.
    pub(crate) capacity: &'a Capacity,
    /// Devices that it may give out.
    pub(crate) gpus: u32,
    /// The engine answers, or why there are no containers.
    pub(crate) engine: Result<(), NoEngine<'a>>,
}

/// Why there are no containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoEngine<'a> {
    /// None is configured.
    Off,
    /// It does not answer now.
    Away(&'a str),
}

/// Why a class is not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unserved {
    /// For people.
    pub(crate) why: String,
    /// It may be served later by this same process.
    pub(crate) passing: bool,
}

impl Unserved {
    fn lasting(why: impl Into<String>) -> Option<Self> {
        Some(Self { why: why.into(), passing: false })
    }
}

/// Why `class` is not served; none when it is.
pub(crate) fn unserved(class: &Class, means: Means<'_>) -> Option<Unserved> {
    if !class.is_offered() {
        let words: Vec<&str> = class.runtimes.iter().map(|runtime| runtime.as_str()).collect();
        return Unserved::lasting(format!("no worker of this version has its runtime {}", words.join(", ")));
    }
    if class.gpus > means.gpus {
        return Unserved::lasting(format!("its tasks take {} GPUs each, and this worker has {}", class.gpus, means.gpus));
    }
    if !means.capacity.could_hold(Need { gpus: 0, ..Need::of_class(class) }) {
        return Unserved::lasting("its defaults of cpus and memory are more than [capacity] allows; raise one or lower the other");
    }
    // With another runtime beside it, its containers are given back as long as the engine is away.
    let contained = class.runtimes.iter().filter(|runtime| runtime.is_offered()).all(|runtime| *runtime == Runtime::Docker);
    match means.engine {
        Err(NoEngine::Off) if contained => Unserved::lasting("its tasks are containers, and docker.host is empty"),
        Err(NoEngine::Away(why)) if contained => Some(Unserved { why: why.to_owned(), passing: true }),
        Ok(()) | Err(NoEngine::Off | NoEngine::Away(_)) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::worker::capacity::Machine;

    #[test]
    fn a_class_is_served_where_its_defaults_can_be_had() {
        let classes = "[classes.native]\n[classes.long]\nruntimes = [\"docker\"]\n[classes.mixed]\nruntimes = [\"docker\", \"bash\"]\n\
                       [classes.device]\ngpus = 1\nmax_gpus = 1\n[classes.later]\nruntimes = [\"slurm\"]\n[classes.large]\nmemory = \"8GiB\"\n\
                       [classes.both]\nruntimes = [\"slurm\", \"docker\"]\n";
        let config = config::load_text(classes).unwrap();
        let capacity = Capacity::new(&config, Machine { cpus: 2, memory: 4 << 30, gpus: 0 });
        let away = Err(NoEngine::Away("nobody answers"));
        for (name, gpus, engine, expected) in [
            ("native", 0, Err(NoEngine::Off), None),
            ("mixed", 0, away, None),
            ("long", 0, Ok(()), None),
            ("long", 0, Err(NoEngine::Off), Some(("docker.host is empty", false))),
            ("long", 0, away, Some(("nobody answers", true))),
            ("both", 0, away, Some(("nobody answers", true))),
            ("device", 1, away, None),
            ("device", 0, Ok(()), Some(("its tasks take 1 GPUs each, and this worker has 0", false))),
            ("later", 8, Ok(()), Some(("no worker of this version has its runtime slurm", false))),
            ("large", 0, Ok(()), Some(("more than [capacity] allows", false))),
        ] {
            let class = config.classes.iter().find(|(known, _)| known.as_str() == name).unwrap().1;
            let found = unserved(class, Means { capacity: &capacity, gpus, engine });
            assert_eq!(found.as_ref().map(|found| found.passing), expected.map(|(_, passing)| passing), "{name}: {found:?}");
            if let (Some(found), Some((words, _))) = (found, expected) {
                assert!(found.why.contains(words), "{name}: {found:?}");
            }
        }
    }
}
