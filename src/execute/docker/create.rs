//! What a container is created from. Pure: everything that hardens it is here, and tested here.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig, Mount, MountBindOptions,
    MountBindOptionsPropagationEnum, MountType,
};

use super::devices::Devices;
use crate::task::ByteSize;
use crate::task::limits::Limits;

/// The CPU controller's usual period, and the longest, for quotas that would be below the kernel's least of 1 ms.
const PERIOD_US: i64 = 100_000;
const LONG_PERIOD_US: i64 = 1_000_000;
const MIN_QUOTA_US: i64 = 1_000;

/// A directory or file of the machine in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// On the machine; every link in it was followed.
    pub source: String,
    /// In the container.
    pub target: String,
    /// Not to be written.
    pub read_only: bool,
}

/// A container to be made. Its environment is not printed: secrets are in it.
#[derive(Clone, Default)]
pub struct Order {
    /// Id of the image: names move.
    pub image: String,
    /// Entry point; the image's unless given.
    pub entrypoint: Option<Vec<String>>,
    /// Command; the image's unless given.
    pub command: Option<Vec<String>>,
    /// `uid[:gid]`; the image's own unless given.
    pub user: Option<String>,
    /// Further groups.
    pub groups: Vec<String>,
    /// Environment beyond the image's own.
    pub env: Vec<(String, String)>,
    /// Working directory; the image's unless given.
    pub working_dir: Option<String>,
    /// Directories of the machine.
    pub binds: Vec<Bind>,
    /// Directories in memory with their sizes.
    pub tmpfs: Vec<(String, ByteSize)>,
    /// Whose it is.
    pub labels: HashMap<String, String>,
    /// Cgroup that its own is made in.
    pub cgroup_parent: Option<String>,
    /// Network: `none`, `bridge`, a name or an id.
    pub network: String,
    /// Standard input is given, once.
    pub stdin: bool,
    /// An init in front of its program.
    pub init: bool,
    /// GPUs.
    pub devices: Devices,
}

impl std::fmt::Debug for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Order").field("image", &self.image).field("labels", &self.labels).finish_non_exhaustive()
    }
}

/// The engine's words for it, with everything closed that was not asked to be open.
#[must_use]
pub fn body(order: &Order, limits: &Limits) -> ContainerCreateBody {
    ContainerCreateBody {
        image: Some(order.image.clone()),
        entrypoint: order.entrypoint.clone(),
        cmd: order.command.clone(),
        user: order.user.clone(),
        env: Some(order.env.iter().map(|(name, value)| format!("{name}={value}")).collect()),
        working_dir: order.working_dir.clone(),
        labels: Some(order.labels.clone()),
        attach_stdin: Some(order.stdin),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        open_stdin: Some(order.stdin),
        stdin_once: Some(order.stdin),
        // With one the two streams are one, and their frames cannot be told from their bytes.
        tty: Some(false),
        // The image's own would run beside the task, again and again.
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..HealthConfig::default() }),
        host_config: Some(host(order, limits)),
        ..ContainerCreateBody::default()
    }
}

fn host(order: &Order, limits: &Limits) -> HostConfig {
    let memory = i64::try_from(limits.memory_bytes).unwrap_or(i64::MAX);
    let (quota, period) = quota(limits.cpus);
    HostConfig {
        memory: Some(memory),
        // Memory and swap together: no swap.
        memory_swap: Some(memory),
        // Not as nano CPUs: the engine refuses more of those than it has CPUs.
        cpu_quota: Some(quota),
        cpu_period: Some(period),
        pids_limit: Some(i64::try_from(limits.pids).unwrap_or(i64::MAX)),
        cgroup_parent: order.cgroup_parent.clone(),
        cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
        ipc_mode: Some("private".to_owned()),
        privileged: Some(false),
        cap_drop: Some(vec!["ALL".to_owned()]),
        // The engine's own filter of system calls stays on: it goes only when asked to.
        security_opt: Some(vec!["no-new-privileges=true".to_owned()]),
        readonly_rootfs: Some(true),
        tmpfs: Some(order.tmpfs.iter().map(|(path, size)| (path.clone(), tmpfs(*size))).collect()),
        mounts: Some(order.binds.iter().map(mount).collect()),
        network_mode: Some(order.network.clone()),
        group_add: (!order.groups.is_empty()).then(|| order.groups.clone()),
        init: order.init.then_some(true),
        // Output is read as it comes; a copy with the engine would be one that nobody masks.
        log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
        // What a dead container leaves is read before it goes.
        auto_remove: Some(false),
        devices: (!order.devices.mappings.is_empty()).then(|| order.devices.mappings.clone()),
        device_requests: (!order.devices.requests.is_empty()).then(|| order.devices.requests.clone()),
        ..HostConfig::default()
    }
}

/// Never more than the cgroup above it has, which rounds to the nearest: the kernel would refuse that.
fn quota(cpus: f64) -> (i64, i64) {
    let period = if cpus * PERIOD_US as f64 >= MIN_QUOTA_US as f64 { PERIOD_US } else { LONG_PERIOD_US };
    let quota = (cpus * period as f64) as i64;
    (quota.max(MIN_QUOTA_US), period)
}

fn tmpfs(size: ByteSize) -> String {
    format!("rw,exec,nosuid,nodev,mode=1777,size={}", size.bytes())
}

fn mount(bind: &Bind) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(bind.source.clone()),
        target: Some(bind.target.clone()),
        read_only: Some(bind.read_only),
        bind_options: Some(MountBindOptions {
            propagation: Some(MountBindOptionsPropagationEnum::RPRIVATE),
            // "Read-only" is said of the mount itself: what is mounted below it could be written.
            non_recursive: bind.read_only.then_some(true),
            ..MountBindOptions::default()
        }),
        ..Mount::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits { cpus: 0.5, memory_bytes: 64 << 20, pids: 32, timeout_ms: 1000, io: None, enforced: true }
    }

    fn order() -> Order {
        Order {
            image: "sha256:01".to_owned(),
            env: vec![("A".to_owned(), "b=c".to_owned())],
            network: "none".to_owned(),
            tmpfs: vec![("/tmp".to_owned(), ByteSize::mib(1))],
            binds: vec![Bind { source: "/s".to_owned(), target: "/t".to_owned(), read_only: true }],
            init: true,
            ..Order::default()
        }
    }

    #[test]
    fn everything_is_closed_that_was_not_asked_to_be_open() {
        let body = body(&order(), &limits());
        let host = body.host_config.unwrap();
        assert_eq!(host.cap_drop, Some(vec!["ALL".to_owned()]));
        assert_eq!(host.cap_add, None);
        assert_eq!(host.security_opt, Some(vec!["no-new-privileges=true".to_owned()]));
        assert_eq!((host.privileged, host.readonly_rootfs, host.auto_remove), (Some(false), Some(true), Some(false)));
        assert_eq!(host.network_mode.as_deref(), Some("none"));
        assert_eq!((host.pid_mode, host.uts_mode, host.userns_mode, host.binds), (None, None, None, None));
        assert_eq!(host.ipc_mode.as_deref(), Some("private"));
        assert_eq!(host.cgroupns_mode, Some(HostConfigCgroupnsModeEnum::PRIVATE));
        assert_eq!(host.log_config.unwrap().typ.as_deref(), Some("none"));
        assert_eq!((body.tty, body.open_stdin), (Some(false), Some(false)));
        assert_eq!(body.healthcheck.unwrap().test, Some(vec!["NONE".to_owned()]));
        let mount = &host.mounts.unwrap()[0];
        assert_eq!((mount.read_only, mount.bind_options.as_ref().unwrap().non_recursive), (Some(true), Some(true)));
    }

    #[test]
    fn limits_are_set_without_swap_and_never_above_those_of_the_cgroup_above() {
        let host = body(&order(), &limits()).host_config.unwrap();
        assert_eq!((host.memory, host.memory_swap, host.pids_limit), (Some(64 << 20), Some(64 << 20), Some(32)));
        for (cpus, expected) in
            [(0.5, (50_000, 100_000)), (0.333_339, (33_333, 100_000)), (0.005, (5_000, 1_000_000)), (64.0, (6_400_000, 100_000))]
        {
            assert_eq!(quota(cpus), expected, "{cpus}");
        }
        assert_eq!(host.nano_cpus, None);
    }

    #[test]
    fn what_is_the_images_stays_the_images() {
        let body = body(&order(), &limits());
        assert_eq!((body.entrypoint, body.cmd, body.user, body.working_dir), (None, None, None, None));
        assert_eq!(body.env, Some(vec!["A=b=c".to_owned()]));
        let printed = format!("{:?}", order());
        assert!(!printed.contains("b=c"), "{printed}");
    }
}
