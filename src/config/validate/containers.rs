//! Rules of `[docker]`, of what classes say about containers and GPUs, and of what tenants may have in them.

use super::{Checks, DAY_S};
use crate::config::{Class, Config};
use crate::task::assignment::Runtime;
use crate::task::{ByteSize, is_user};

/// Less than this no engine takes as the memory of a container.
pub(crate) const MIN_MEMORY: ByteSize = ByteSize::mib(6);

/// Networks that are no networks of containers' own.
const FOREIGN: [&str; 2] = ["host", "default"];

impl Checks {
    pub(super) fn docker(&mut self, config: &Config) {
        let c = &config.docker;
        let rule = "give a socket of this machine such as unix:///var/run/docker.sock, or leave it empty for no containers";
        let good = c.host.is_empty() || c.host.strip_prefix("unix://").is_some_and(|path| path.len() > 1 && path.starts_with('/'));
        self.require(good, "docker.host", format!("{:?}", c.host), rule);
        let rule = "give an absolute path such as /etc/windlass/registries.json, or leave it empty";
        let good = c.credentials.is_empty() || c.credentials.starts_with('/');
        self.require(good, "docker.credentials", format!("{:?}", c.credentials), rule);
        self.rule("docker.images", "names as an assignment has them, with * for any text");
        self.range("docker.request_timeout_s", c.request_timeout_s, 0.1, 3600.0, "30 suits an engine on a busy disk");
        self.range("docker.pull_inactivity_s", c.pull_inactivity_s, 0.1, DAY_S, "60 gives a slow registry its time");
        let retry = &c.pull_retry;
        self.range("docker.pull_retry.max_attempts", retry.max_attempts, 1, 100, "1 never tries again");
        self.range("docker.pull_retry.factor", retry.factor, 1.0, 100.0, "1 waits the same time always, 2 doubles it");
        self.range("docker.pull_retry.max_ms", retry.max_ms, 0, 3_600_000, "these are milliseconds");
        self.at_most("docker.pull_retry.initial_ms", retry.initial_ms, "max_ms", retry.max_ms);
        self.range("docker.disk_high_percent", c.disk_high_percent, 1.0, 100.0, "100 removes no images");
        let rule = "at least 64KiB, and less than the memory of a task, for it counts there";
        self.require(c.tmp >= ByteSize::kib(64), "docker.tmp", c.tmp, rule);
    }

    /// What a class says about containers and GPUs. `key` names its keys.
    pub(super) fn containers(&mut self, key: impl Fn(&str) -> String, c: &Class) {
        self.at_most(&key("gpus"), c.gpus, "max_gpus", c.max_gpus);
        self.range(&key("max_gpus"), c.max_gpus, 0, 1024, "0 gives its tasks no GPU");
        let rule = "names of networks, never host, default, or another container's";
        self.rule(&key("networks"), rule);
        for network in &c.networks {
            self.broken(is_network(network), &key("networks"), format!("[{network:?}]"), format!("allowed are {rule}"));
        }
        let listed = c.networks.contains(&c.network);
        let rule = "one of its networks";
        self.rule(&key("network"), rule);
        self.broken(listed, &key("network"), format!("{:?}", c.network), format!("must be {rule}; add it there, or use another"));
        let rule = "uid, uid:gid, or image";
        self.rule(&key("users"), rule);
        for user in &c.users {
            self.broken(is_user(user), &key("users"), format!("[{user:?}]"), format!("allowed are {rule}"));
        }
        if c.runtimes.contains(&Runtime::Docker) {
            let rule = format!("at least {MIN_MEMORY} with the runtime docker; raise it");
            self.broken(c.memory >= MIN_MEMORY, &key("memory"), c.memory, rule);
        }
    }

    pub(super) fn tenants(&mut self, config: &Config) {
        for name in config.tenants.keys() {
            let key = |key: &str| format!("tenants.{name}.{key}");
            self.rule(&key("images"), "names as an assignment has them, with * for any text; [] allows none");
            self.rule(&key("mounts"), "absolute paths, with :ro at the end for reading only");
        }
    }
}

/// A name that an engine takes for a network of its own making.
fn is_network(name: &str) -> bool {
    let of_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    first && name.len() <= 128 && name.bytes().all(of_name) && !FOREIGN.contains(&name)
}
