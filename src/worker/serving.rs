//! Which classes a worker serves now.
//!
//! A class that cannot be served is not pulled from: its tasks wait for a worker that can, and spend no attempts here.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::WorkerError;
use super::unserved::{Means, NoEngine, Unserved, unserved};
use crate::config::Config;
use crate::execute::docker::Standing;
use crate::task::ClassName;

/// What is said of an engine that nobody has spoken to.
const UNASKED: &str = "the container engine was not asked yet";

impl<'a> NoEngine<'a> {
    /// What is known of the engine, as a means.
    pub(crate) fn of(standing: &'a Standing) -> Result<(), Self> {
        match standing {
            Standing::Answers => Ok(()),
            Standing::Off => Err(Self::Off),
            Standing::Unknown => Err(Self::Away(UNASKED)),
            Standing::Away(why) => Err(Self::Away(why)),
        }
    }
}

/// The classes that a worker does not serve.
#[derive(Debug)]
pub(super) struct Serving {
    /// As long as this process lives.
    never: BTreeMap<ClassName, Unserved>,
    /// Now.
    not_now: Mutex<BTreeMap<ClassName, Unserved>>,
}

impl Serving {
    /// Of a worker that begins: takes the classes out of `config` that it can never serve, and says so once.
    ///
    /// # Errors
    /// When none is left.
    pub(super) fn begin(config: &mut Config, means: Means<'_>) -> Result<Self, WorkerError> {
        let (not_now, never): (BTreeMap<_, _>, _) = judged(config, means).into_iter().partition(|(_, unserved)| unserved.passing);
        config.classes.retain(|class, _| !never.contains_key(class));
        if config.classes.is_empty() {
            let why: Vec<String> = never.into_iter().map(|(class, unserved)| format!("{class}: {}", unserved.why)).collect();
            return Err(WorkerError::NothingToServe(why.join("; ")));
        }
        for (class, Unserved { why, .. }) in &never {
            tracing::info!(%class, "not served here: {why}");
        }
        Ok(Self { never, not_now: Mutex::new(not_now) })
    }

    fn not_now(&self) -> MutexGuard<'_, BTreeMap<ClassName, Unserved>> {
        self.not_now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether tasks of that class, which is one of the configuration's, are taken now.
    pub(super) fn serves(&self, class: &ClassName) -> bool {
        !self.never.contains_key(class) && !self.not_now().contains_key(class)
    }

    /// The configuration with the classes that are served now: only their queues have to be there.
    pub(super) fn served_of(&self, config: &Config) -> Config {
        let mut config = config.clone();
        config.classes.retain(|class, _| self.serves(class));
        config
    }

    /// Why which classes are not served, for people.
    pub(super) fn reasons(&self) -> BTreeMap<String, String> {
        let told = |(class, unserved): (&ClassName, &Unserved)| (class.to_string(), unserved.why.clone());
        self.never.iter().chain(self.not_now().iter()).map(told).collect()
    }

    /// The worker's means have changed: says what becomes of its classes by it.
    pub(super) fn look(&self, config: &Config, means: Means<'_>) {
        let now = judged(config, means);
        let mut before = self.not_now();
        let known = |class: &ClassName| before.get(class).is_some_and(|unserved| unserved.why != UNASKED);
        for class in before.keys().filter(|class| known(class) && !now.contains_key(*class)) {
            tracing::info!(%class, "served again");
        }
        for (class, Unserved { why, .. }) in now.iter().filter(|(class, _)| !known(class)) {
            tracing::warn!(%class, "not served here for now: {why}");
        }
        *before = now;
    }
}

fn judged(config: &Config, means: Means<'_>) -> BTreeMap<ClassName, Unserved> {
    config.classes.iter().filter_map(|(name, class)| Some((name.clone(), unserved(class, means)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::worker::capacity::{Capacity, Machine};

    #[test]
    fn a_class_comes_and_goes_with_its_engine() {
        let mut config = config::load(None, []).unwrap();
        let capacity = Capacity::new(&config, Machine { cpus: 8, memory: 64 << 30, gpus: 0 });
        let class = |name: &str| ClassName::new(name).unwrap();
        let means = |standing| Means { capacity: &capacity, gpus: 0, engine: NoEngine::of(standing) };
        let serving = Serving::begin(&mut config, means(&Standing::Unknown)).unwrap();
        let left: Vec<&str> = config.classes.keys().map(ClassName::as_str).collect();
        assert_eq!(left, ["cpu_long", "cpu_short"], "the others can never be served here");
        assert!(serving.serves(&class("cpu_short")) && !serving.serves(&class("cpu_long")) && !serving.serves(&class("gpu")));
        assert_eq!(serving.served_of(&config).classes.len(), 1);
        serving.look(&config, means(&Standing::Answers));
        assert!(serving.serves(&class("cpu_long")));
        assert_eq!(serving.reasons().into_keys().collect::<Vec<_>>(), ["gpu", "gpu_slurm"]);
        serving.look(&config, means(&Standing::Away("gone".to_owned())));
        assert_eq!(serving.reasons()["cpu_long"], "gone");
    }

    #[test]
    fn a_worker_that_can_serve_nothing_does_not_begin() {
        let mut config = config::load_text("[classes.a]\nruntimes = [\"slurm\"]\n[classes.b]\nruntimes = [\"docker\"]\n").unwrap();
        let capacity = Capacity::new(&config, Machine { cpus: 8, memory: 64 << 30, gpus: 0 });
        let error = Serving::begin(&mut config, Means { capacity: &capacity, gpus: 0, engine: Err(NoEngine::Off) }).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("a: no worker of this version") && text.contains("b: its tasks are containers"), "{text}");
    }
}
