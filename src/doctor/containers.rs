//! The container engine: whether it answers, what it can promise, and which classes are served with it or without.

use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD};

use super::{Area, Check, Finding};
use crate::config::{self, Config};
use crate::execute::docker::engine::{self, Engine};
use crate::execute::gpu::Inventory;
use crate::task::assignment::Runtime;
use crate::worker::capacity::{Capacity, Machine};
use crate::worker::unserved::{Means, NoEngine, unserved};

/// An engine that lives answers within milliseconds.
const ANSWERS_WITHIN_S: f64 = 5.0;

/// What was found.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    /// None where none is configured.
    engine: Option<Result<Seen, Silent>>,
    gpus: u32,
}

/// An engine that answers.
#[derive(Debug, Clone)]
struct Seen {
    facts: engine::Facts,
    /// Use of the disk with its images, in percent; none where it cannot be seen from here.
    disk: Option<f64>,
    /// The cgroups of containers can be seen from here.
    same_cgroups: bool,
}

/// Why there is no answer.
#[derive(Debug, Clone)]
struct Silent {
    why: String,
    socket: Socket,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Socket {
    Missing,
    Forbidden,
    Open,
}

/// Asks. Nothing is made.
pub(super) async fn gather(config: &Config) -> Facts {
    let c = &config.docker;
    let gpus = Inventory::find(&config.gpu).map_or(0, |inventory| u32::try_from(inventory.devices.len()).unwrap_or(u32::MAX));
    if c.host.is_empty() {
        return Facts { engine: None, gpus };
    }
    let asked = config::Docker { request_timeout_s: c.request_timeout_s.min(ANSWERS_WITHIN_S), ..c.clone() };
    let engine = match Engine::connect(&asked).await {
        Ok(engine) => Ok(Seen::of(engine.facts(), config)),
        Err(error) => Err(Silent { why: error.to_string(), socket: Socket::of(Path::new(c.host.trim_start_matches("unix://"))) }),
    };
    Facts { engine: Some(engine), gpus }
}

impl Seen {
    fn of(facts: &engine::Facts, config: &Config) -> Self {
        let root = PathBuf::from(&facts.root_dir);
        let disk = rustix::fs::statvfs(&root).ok().filter(|_| root.is_absolute()).map(|fs| used(fs.f_blocks, fs.f_bfree, fs.f_bavail));
        Self { facts: facts.clone(), disk, same_cgroups: config.cgroup.mount.is_dir() }
    }
}

/// As df(1) counts: of what is not kept for root.
#[expect(clippy::cast_precision_loss, reason = "a percentage")]
fn used(blocks: u64, free: u64, available: u64) -> f64 {
    let used = blocks.saturating_sub(free);
    if used + available == 0 { 0.0 } else { used as f64 * 100.0 / (used + available) as f64 }
}

impl Socket {
    fn of(path: &Path) -> Self {
        match std::fs::metadata(path) {
            Ok(meta) if meta.file_type().is_socket() => {
                let may = rustix::fs::accessat(CWD, path, Access::READ_OK | Access::WRITE_OK, AtFlags::EACCESS);
                if may.is_ok() { Self::Open } else { Self::Forbidden }
            }
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Self::Forbidden,
            Ok(_) | Err(_) => Self::Missing,
        }
    }
}

/// What to make of it.
pub(super) fn judge(facts: &Facts, config: &Config) -> Vec<Finding> {
    let mut findings = vec![served(facts, config)];
    let wanted = config.classes.values().any(|class| class.runtimes.contains(&Runtime::Docker));
    let check = Check::new(Area::Docker, "engine", "one that answers, with API 1.41 or newer (Docker 20.10, Podman 4)");
    match &facts.engine {
        None => findings.push(check.ok("none is configured (docker.host)")),
        Some(Err(silent)) if !wanted => findings.push(check.ok(format!("{}; no class has the runtime docker", silent.why))),
        Some(Err(silent)) => findings.push(check.warn(&silent.why, mend(silent))),
        Some(Ok(seen)) => {
            let engine::Facts { product, version, api, .. } = &seen.facts;
            findings.push(check.ok(format!("{product} {version}, API {api}")));
            findings.extend(of_engine(seen, config, wanted));
        }
    }
    findings
}

fn mend(silent: &Silent) -> &'static str {
    match silent.socket {
        Socket::Missing => "sudo systemctl enable --now docker   # or, for no containers here: export WINDLASS__DOCKER__HOST=",
        Socket::Forbidden => "sudo usermod -aG docker $(id -un)   # in a unit: SupplementaryGroups=docker; who may use the socket is root",
        Socket::Open => "sudo systemctl restart docker   # then: docker version",
    }
}

/// A class that nobody serves here is no fault; a worker that serves none does not start.
fn served(facts: &Facts, config: &Config) -> Finding {
    let capacity = Capacity::new(config, Machine::here());
    let engine = match &facts.engine {
        None => Err(NoEngine::Off),
        Some(Ok(_)) => Ok(()),
        Some(Err(silent)) => Err(NoEngine::Away(&silent.why)),
    };
    let means = Means { capacity: &capacity, gpus: facts.gpus, engine };
    let (mut here, mut elsewhere, mut hopeless) = (Vec::new(), Vec::new(), true);
    for (name, class) in &config.classes {
        match unserved(class, means) {
            None => here.push(name.to_string()),
            Some(unserved) => {
                hopeless &= !unserved.passing;
                elsewhere.push(format!("not {name}: {}", unserved.why));
            }
        }
    }
    let check = Check::new(Area::Capacity, "classes", "at least one that this worker can serve");
    let found = here.iter().chain(&elsewhere).cloned().collect::<Vec<_>>().join("; ");
    match (here.is_empty(), hopeless) {
        (false, _) => check.ok(found),
        (true, false) => check.warn(found, "sudo systemctl start docker   # its classes are served when the engine answers"),
        (true, true) => check.fail(found, "windlass config show classes   # a worker with these does not start"),
    }
}

fn of_engine(seen: &Seen, config: &Config, wanted: bool) -> Vec<Finding> {
    let facts = &seen.facts;
    let mut findings = vec![cgroups(seen, config), limits(facts), init(facts), disk(seen, config)];
    if wanted {
        findings.push(images(config));
    }
    findings
}

fn cgroups(seen: &Seen, config: &Config) -> Finding {
    let check =
        Check::new(Area::Docker, "cgroups", "containers live below the worker's cgroups: one supervisor limits, watches and kills all");
    let lost = "the engine alone limits them and is asked to kill them";
    if config.cgroup.allow_unlimited {
        return check.warn(format!("limits are not enforced: {lost}"), "windlass doctor   # without --allow-unlimited");
    }
    if seen.facts.product == "Podman" {
        let found = format!("Podman's own monitors live beside its containers: {lost}");
        return check.warn(found, "sudo apt-get install docker.io   # where one supervisor for all matters; Podman works without");
    }
    match seen.facts.cgroup_driver.as_str() {
        "cgroupfs" if seen.same_cgroups => check.ok("driver cgroupfs"),
        "cgroupfs" => check.warn(
            format!("driver cgroupfs, but {} is not there: {lost}", config.cgroup.mount.display()),
            "docker run --cgroupns host -v /sys/fs/cgroup:/sys/fs/cgroup …   # for a worker that is a container itself",
        ),
        driver => check.warn(
            format!("driver {driver:?}: {lost}"),
            "/etc/docker/daemon.json: {\"exec-opts\": [\"native.cgroupdriver=cgroupfs\"]}   # then: sudo systemctl restart docker",
        ),
    }
}

fn limits(facts: &engine::Facts) -> Finding {
    let check = Check::new(Area::Docker, "container limits", "the engine can set memory, swap, cpu and pids");
    if facts.missing_limits.is_empty() {
        return check.ok("all");
    }
    let found = format!("it cannot set {}: containers are refused (isolation_unavailable)", facts.missing_limits.join(", "));
    check.fail(found, "docker info | grep WARNING   # mostly: boot with cgroup_enable=memory swapaccount=1")
}

fn init(facts: &engine::Facts) -> Finding {
    let check = Check::new(Area::Docker, "init", "the engine has one to put into containers, which reaps what a task forgets");
    if facts.has_init {
        check.ok("there")
    } else {
        check.warn("none: what a task does not reap stays until its end", "sudo apt-get install tini   # or docker-init, for the engine")
    }
}

fn disk(seen: &Seen, config: &Config) -> Finding {
    let high = config.docker.disk_high_percent;
    let check = Check::new(Area::Docker, "disk of images", format!("less than docker.disk_high_percent = {high}"));
    let root = &seen.facts.root_dir;
    match seen.disk {
        None => check.ok(format!("{root} cannot be seen from here")),
        Some(used) if used < high => check.ok(format!("{used:.0} % of {root}")),
        Some(used) => check.warn(format!("{used:.0} % of {root}: images are removed as soon as nobody uses them"), "docker system df"),
    }
}

fn images(config: &Config) -> Finding {
    let check = Check::new(Area::Docker, "images", "some tenant may use some image");
    let own = config.tenants.values().filter(|tenant| tenant.images.as_ref().is_some_and(|images| !images.is_empty())).count();
    match (config.docker.images.len(), own) {
        (0, 0) => check.warn(
            "no image is allowed to anybody: every container is refused",
            "export WINDLASS__DOCKER__IMAGES='[\"registry.example/team/*\"]'   # or tenants.<name>.images",
        ),
        (all, own) => check.ok(format!("{all} patterns for all, lists of their own for {own} tenants")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    fn fine() -> Seen {
        let facts = engine::Facts {
            product: "Docker",
            version: "20.10.24".to_owned(),
            api: "1.41".to_owned(),
            cgroup_driver: "cgroupfs".to_owned(),
            root_dir: "/var/lib/docker".to_owned(),
            missing_limits: vec![],
            has_init: true,
        };
        Seen { facts, disk: Some(20.0), same_cgroups: true }
    }

    fn bad(facts: &Facts, config: &Config) -> Vec<(String, Level)> {
        judge(facts, config).into_iter().filter(|f| f.level != Level::Ok).map(|f| (f.check, f.level)).collect()
    }

    fn with(change: impl FnOnce(&mut Seen)) -> Facts {
        let mut seen = fine();
        change(&mut seen);
        Facts { engine: Some(Ok(seen)), gpus: 0 }
    }

    fn silent(socket: Socket) -> Facts {
        Facts { engine: Some(Err(Silent { why: "does not answer".to_owned(), socket })), gpus: 0 }
    }

    #[test]
    fn each_lack_has_its_level() {
        let plain = config::load_text("[docker]\nimages = [\"*\"]").unwrap();
        let closed = config::load(None, []).unwrap();
        let native = config::load_text("[classes.n]").unwrap();
        let contained = config::load_text("[classes.c]\nruntimes = [\"docker\"]").unwrap();
        let off = config::load_text("[docker]\nhost = \"\"\n[classes.c]\nruntimes = [\"docker\"]").unwrap();
        let none = Facts { engine: None, gpus: 0 };
        for (facts, config, expected) in [
            (with(|_| ()), &plain, vec![]),
            (with(|_| ()), &closed, vec![("images", Level::Warn)]),
            (with(|seen| seen.facts.cgroup_driver = "systemd".to_owned()), &plain, vec![("cgroups", Level::Warn)]),
            (with(|seen| seen.facts.product = "Podman"), &plain, vec![("cgroups", Level::Warn)]),
            (with(|seen| seen.same_cgroups = false), &plain, vec![("cgroups", Level::Warn)]),
            (with(|seen| seen.facts.missing_limits = vec!["pids"]), &plain, vec![("container limits", Level::Fail)]),
            (with(|seen| seen.facts.has_init = false), &plain, vec![("init", Level::Warn)]),
            (with(|seen| seen.disk = Some(99.0)), &plain, vec![("disk of images", Level::Warn)]),
            (with(|seen| seen.disk = None), &plain, vec![]),
            (silent(Socket::Missing), &plain, vec![("engine", Level::Warn)]),
            (silent(Socket::Missing), &native, vec![]),
            (silent(Socket::Missing), &contained, vec![("classes", Level::Warn), ("engine", Level::Warn)]),
            (none.clone(), &native, vec![]),
            (none, &off, vec![("classes", Level::Fail)]),
        ] {
            let expected: Vec<(String, Level)> = expected.into_iter().map(|(check, level)| (check.to_owned(), level)).collect();
            assert_eq!(bad(&facts, config), expected, "{facts:?}");
        }
    }

    #[test]
    fn a_silent_engine_is_mended_by_what_is_wrong_with_its_socket() {
        let plain = config::load(None, []).unwrap();
        for (socket, word) in
            [(Socket::Missing, "enable --now docker"), (Socket::Forbidden, "usermod -aG"), (Socket::Open, "restart docker")]
        {
            let findings = judge(&silent(socket), &plain);
            let engine = findings.iter().find(|f| f.check == "engine").unwrap();
            assert!(engine.mend.as_ref().unwrap().contains(word), "{engine:?}");
        }
    }

    #[test]
    fn classes_that_are_not_served_are_named_with_why() {
        let findings = judge(&silent(Socket::Missing), &config::load(None, []).unwrap());
        let classes = findings.iter().find(|f| f.check == "classes").unwrap();
        for words in ["cpu_short; ", "not cpu_long: does not answer", "not gpu: its tasks take 1 GPUs each", "not gpu_slurm: no worker"] {
            assert!(classes.found.contains(words), "{classes:?}");
        }
    }
}
