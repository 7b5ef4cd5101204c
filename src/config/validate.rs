//! What a configuration must satisfy beyond the types of its keys. Every check says what is allowed and what to do.

use std::fmt::Display;
use std::path::Component;

use super::{Class, Config};
use crate::execute::native::sandbox::UID_RANGE;
use crate::task::assignment::Runtime;
use crate::task::id::is_token;
use crate::task::{ByteSize, ClassName};

mod containers;

pub(crate) use containers::MIN_MEMORY as MIN_CONTAINER_MEMORY;

/// A rule that the configuration breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mistake {
    /// The key, `section.key`.
    pub(super) key: String,
    /// Its value, what is allowed, and what to do.
    pub(super) text: String,
}

/// A day and a year, for upper bounds that also keep every duration representable.
const DAY_S: f64 = 86_400.0;
const YEAR_H: f64 = 8_760.0;

/// Every rule that `config` breaks.
pub(super) fn check(config: &Config) -> Vec<Mistake> {
    checked(config).mistakes
}

/// Every rule that `config` was held against, with its key, for the documentation.
pub(super) fn rules(config: &Config) -> Vec<(String, String)> {
    checked(config).rules
}

fn checked(config: &Config) -> Checks {
    let mut checks = Checks::default();
    checks.bus(config);
    checks.worker(config);
    checks.capacity(config);
    checks.logs(config);
    checks.streams(config);
    checks.rest(config);
    checks.sandbox(config);
    checks.gpu(config);
    checks.docker(config);
    checks.tenants(config);
    if config.classes.is_empty() {
        checks.add("classes", "is empty: a worker serves at least one class; add a table such as [classes.cpu_short]");
    }
    for (name, class) in &config.classes {
        checks.class(name, class);
    }
    checks
}

#[derive(Default)]
struct Checks {
    mistakes: Vec<Mistake>,
    rules: Vec<(String, String)>,
}

impl Checks {
    fn add(&mut self, key: impl Into<String>, text: impl Into<String>) {
        self.mistakes.push(Mistake { key: key.into(), text: text.into() });
    }

    fn rule(&mut self, key: &str, rule: impl Into<String>) {
        self.rules.push((key.to_owned(), rule.into()));
    }

    fn require(&mut self, good: bool, key: &str, value: impl Display, rule: impl Display) {
        self.rule(key, rule.to_string());
        self.broken(good, key, value, rule);
    }

    fn broken(&mut self, good: bool, key: &str, value: impl Display, rule: impl Display) {
        if !good {
            self.add(key, format!("= {value}: {rule}"));
        }
    }

    /// Not a number is in no range.
    fn range<T: PartialOrd + Display>(&mut self, key: &str, value: T, min: T, max: T, advice: &str) {
        let good = value >= min && value <= max;
        self.rule(key, format!("{min} to {max}; {advice}"));
        self.broken(good, key, value, format!("allowed is {min} to {max}; {advice}"));
    }

    fn at_most<T: PartialOrd + Display + Copy>(&mut self, key: &str, value: T, ceiling_key: &str, ceiling: T) {
        self.rule(key, format!("at most {ceiling_key}"));
        let text = format!("more than its ceiling {ceiling_key} = {ceiling}; lower the one or raise the other");
        self.broken(value <= ceiling, key, value, text);
    }

    fn bus(&mut self, config: &Config) {
        let c = &config.bus;
        let named = c.server.split(',').map(str::trim).filter(|s| !s.is_empty());
        let good = named.clone().count() > 0 && !named.clone().any(|s| s.contains(char::is_whitespace));
        self.require(
            good,
            "bus.server",
            format!("{:?}", c.shown_server()),
            "give one or more URLs such as nats://127.0.0.1:4222, comma separated",
        );
        self.range("bus.ping_interval_s", c.ping_interval_s, 0.1, 300.0, "10 notices a dead connection after about 30 s");
        self.range("bus.request_timeout_s", c.request_timeout_s, 0.1, 300.0, "5 suits a cluster in one region");
    }

    fn worker(&mut self, config: &Config) {
        let c = &config.worker;
        let rule = "use 1 to 64 characters of A-Z a-z 0-9 _ -, or leave it empty for the host name";
        self.require(c.id.is_empty() || is_token(&c.id), "worker.id", format!("{:?}", c.id), rule);
        self.require(!c.state_dir.as_os_str().is_empty(), "worker.state_dir", "\"\"", "name a directory such as /var/lib/windlass");
        self.range("worker.drain_timeout_s", c.drain_timeout_s, 0.0, 7.0 * DAY_S, "0 stops running tasks at once");
        self.range("worker.shed_delay_s", c.shed_delay_s, 0.01, 3600.0, "1 is usual");
        let rule = "give an absolute path, or leave it empty";
        self.require(
            c.secrets_dir.is_empty() || c.secrets_dir.starts_with('/'),
            "worker.secrets_dir",
            format!("{:?}", c.secrets_dir),
            rule,
        );
        let rule = "use 1 to 64 characters of A-Z a-z 0-9 _ -, such as production";
        self.require(is_token(&c.environment), "worker.environment", format!("{:?}", c.environment), rule);
        self.require(!c.path.is_empty(), "worker.path", "\"\"", "directories, separated by colons; with none, tasks find no program");
    }

    fn capacity(&mut self, config: &Config) {
        let c = &config.capacity;
        self.range("capacity.slots", c.slots, 0, 100_000, "0 stands for twice the number of CPUs");
        self.range("capacity.cpus", c.cpus, 0.0, 100_000.0, "0 stands for twice the number of CPUs");
        let rule = "at least 16MiB, for less runs no task; 0 stands for nine tenths of the machine's memory";
        self.require(c.memory.bytes() == 0 || c.memory >= ByteSize::mib(16), "capacity.memory", c.memory, rule);
        let mount = &config.cgroup.mount;
        self.require(mount.is_absolute(), "cgroup.mount", mount.display(), "give an absolute path such as /sys/fs/cgroup");
        let parent = &config.cgroup.parent;
        let inside = std::path::Path::new(parent).components().all(|c| matches!(c, Component::Normal(_) | Component::RootDir));
        self.require(
            inside,
            "cgroup.parent",
            format!("{parent:?}"),
            "give a path below the mount, without . and ..; empty decides by the machine",
        );
    }

    fn logs(&mut self, config: &Config) {
        let c = &config.logs;
        self.range(
            "logs.chunk",
            c.chunk,
            ByteSize::kib(1),
            ByteSize::kib(512),
            "a chunk must fit into NATS's max_payload (1 MiB unless set) as base64",
        );
        let least = ByteSize(c.chunk.bytes().saturating_mul(4));
        self.require(
            c.cap >= least,
            "logs.cap",
            c.cap,
            format!("at least four chunks ({least}) for head and tail; raise it or lower logs.chunk"),
        );
        self.range("logs.flush_ms", c.flush_ms, 1, 10_000, "100 shows output within a quarter of a second");
        self.range("logs.window", c.window, 1, 64, "16 is enough for full throughput");
        self.require(c.file_max >= ByteSize::kib(4), "logs.file_max", c.file_max, "at least 4KiB; 64MiB is usual");
        self.range("logs.file_keep", c.file_keep, 0, 1000, "0 keeps only the file that is written");
        self.range("logs.dir_max_age_h", c.dir_max_age_h, 0.001, 100.0 * YEAR_H, "168 keeps a week");
        let rule = format!("at least one file (logs.file_max = {}); raise it or lower logs.file_max", c.file_max);
        self.require(c.dir_max >= c.file_max, "logs.dir_max", c.dir_max, rule);
    }

    fn streams(&mut self, config: &Config) {
        let c = &config.streams;
        self.require(
            matches!(c.replicas, 1 | 3 | 5),
            "streams.replicas",
            c.replicas,
            "allowed are 1, 3 and 5; 3 for a cluster of three servers",
        );
        for (key, hours) in [
            ("streams.tasks_max_age_h", c.tasks_max_age_h),
            ("streams.events_max_age_h", c.events_max_age_h),
            ("streams.logs_max_age_h", c.logs_max_age_h),
            ("streams.control_max_age_h", c.control_max_age_h),
            ("streams.dead_max_age_h", c.dead_max_age_h),
        ] {
            self.range(key, hours, 0.001, 100.0 * YEAR_H, "these are hours");
        }
        let rule = format!(
            "must be less than streams.events_max_age_h = {}, or a task could outlive the history that stops a second run of it",
            c.events_max_age_h
        );
        self.require(c.tasks_max_age_h < c.events_max_age_h, "streams.tasks_max_age_h", c.tasks_max_age_h, rule);
        self.require(c.logs_max >= ByteSize::mib(1), "streams.logs_max", c.logs_max, "at least 1MiB; 20GiB is usual");
        self.range("streams.max_ack_pending", c.max_ack_pending, 1, 10_000_000, "more than twice the slots of the fleet");
        self.range("streams.max_waiting", c.max_waiting, 1, 1_000_000, "more than the workers of the fleet");
    }

    fn rest(&mut self, config: &Config) {
        self.range("lease.ack_wait_s", config.lease.ack_wait_s, 1.0, DAY_S, "30 is usual: a dead worker's tasks are taken over after it");
        self.range("events.progress_interval_ms", config.events.progress_interval_ms, 0, 3_600_000, "500 is usual");
        let s = config.sweeper.interval_s;
        let good = s == 0.0 || (0.1..=DAY_S).contains(&s);
        self.require(good, "sweeper.interval_s", s, format!("allowed is 0.1 to {DAY_S}, or 0 for a worker that never sweeps"));
        self.rule("log.level", "a level (error, warn, info, debug, trace), or per module, as info,windlass::bus=debug");
        if let Err(error) = tracing_subscriber::EnvFilter::try_new(&config.log.level) {
            let rule = format!("{error}; write a level (error, warn, info, debug, trace) or per module info,windlass::bus=debug");
            self.broken(false, "log.level", format!("{:?}", config.log.level), rule);
        }
    }

    fn sandbox(&mut self, config: &Config) {
        let c = &config.sandbox;
        for (key, paths) in [("sandbox.read_paths", &c.read_paths), ("sandbox.write_paths", &c.write_paths)] {
            for path in paths {
                self.require(path.is_absolute(), key, path.display(), "give absolute paths such as /usr");
            }
        }
        let most = u32::MAX - UID_RANGE;
        self.range("sandbox.uid_base", c.uid_base, 1, most, "1879048192 begins a range that no system uses");
        for (name, tenant) in &config.tenants {
            for (key, id) in [("uid", tenant.uid), ("gid", tenant.gid)] {
                let rule = "not 0, which is root, nor 4294967295, which stands for none; give the tenant an id of its own";
                let good = id.is_none_or(|id| id != 0 && id != u32::MAX);
                self.require(good, &format!("tenants.{name}.{key}"), id.unwrap_or_default(), rule);
            }
        }
    }

    fn gpu(&mut self, config: &Config) {
        let c = &config.gpu;
        self.rule("gpu.devices", "`\"auto\"` alone, or ids, each with its device node (`\"GPU-1f2e=/dev/nvidia0\"`) or without one");
        if let Err(error) = c.listed() {
            self.add("gpu.devices", error);
        }
        self.require(
            c.lock_dir.is_absolute(),
            "gpu.lock_dir",
            format!("{:?}", c.lock_dir),
            "give an absolute path such as /run/lock/windlass-gpu",
        );
    }

    fn class(&mut self, name: &ClassName, c: &Class) {
        let key = |key: &str| format!("classes.{name}.{key}");
        self.range(&key("slots"), c.slots, 0, 100_000, "0 stands for as many as the worker has slots");
        self.runtimes(&key("runtimes"), &c.runtimes);
        self.range(&key("timeout_s"), c.timeout_s, 0.001, 365.0 * DAY_S, "these are seconds");
        self.range(&key("max_timeout_s"), c.max_timeout_s, 0.001, 365.0 * DAY_S, "these are seconds");
        self.range(&key("grace_s"), c.grace_s, 0.0, DAY_S, "0 kills without SIGTERM's grace");
        self.range(&key("max_grace_s"), c.max_grace_s, 0.0, DAY_S, "these are seconds");
        self.range(&key("cpus"), c.cpus, 0.01, 10_000.0, "1 is one CPU's worth of time");
        self.range(&key("max_cpus"), c.max_cpus, 0.01, 10_000.0, "1 is one CPU's worth of time");
        self.require(c.memory >= ByteSize::mib(1), &key("memory"), c.memory, "at least 1MiB; less cannot even start a program");
        self.range(&key("pids"), c.pids, 1, 4_194_304, "threads count too");
        self.range(&key("max_pids"), c.max_pids, 1, 4_194_304, "threads count too");
        self.range(&key("max_attempts"), c.max_attempts, 1, 1000, "1 never tries again");
        self.range(&key("max_max_attempts"), c.max_max_attempts, 1, 1000, "it is the ceiling of max_attempts");
        self.at_most(&key("timeout_s"), c.timeout_s, "max_timeout_s", c.max_timeout_s);
        self.at_most(&key("grace_s"), c.grace_s, "max_grace_s", c.max_grace_s);
        self.at_most(&key("cpus"), c.cpus, "max_cpus", c.max_cpus);
        self.at_most(&key("memory"), c.memory, "max_memory", c.max_memory);
        self.at_most(&key("pids"), c.pids, "max_pids", c.max_pids);
        self.at_most(&key("max_attempts"), c.max_attempts, "max_max_attempts", c.max_max_attempts);
        self.range(&key("backoff.factor"), c.backoff.factor, 1.0, 100.0, "1 waits the same time always, 2 doubles it");
        self.range(&key("backoff.max_ms"), c.backoff.max_ms, 0, 86_400_000, "these are milliseconds");
        self.at_most(&key("backoff.initial_ms"), c.backoff.initial_ms, "max_ms", c.backoff.max_ms);
        self.containers(key, c);
    }

    fn runtimes(&mut self, key: &str, runtimes: &[Runtime]) {
        self.rule(key, "`\"native\"`, `\"bash\"`, `\"docker\"`, and `\"slurm\"` for a class that a later version serves; at least one");
        if runtimes.is_empty() {
            self.add(key, "= []: a class needs at least one; this version offers native, bash and docker");
        }
        // A class may be there before the runtime is: it is not served until then, and everybody is told.
        for runtime in runtimes.iter().filter(|r| !(r.is_offered() || **r == Runtime::Slurm)) {
            self.add(key, format!("names {:?}, which this version does not run; it offers native, bash and docker", runtime.as_str()));
        }
    }
}
