//! Configuration: embedded commented defaults < file < environment (`WINDLASS__SECTION__KEY`).
//!
//! `config/worker.toml` is both the documentation of every key and the defaults, parsed by the same code.
//! Every mistake is reported at once, each with its key, its value and what is allowed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::task::assignment::{BackoffPolicy, Runtime};
use crate::task::secret::SecretGrant;
use crate::task::{ByteSize, ClassName, ImagePattern, MountRoot, Profile, PullPolicy, Tenant};
use crate::wire::Encoding;

mod docker;
mod gpu;
mod listen;
mod load;
mod origins;
mod reference;
pub mod services;
#[cfg(test)]
mod tests;
mod validate;

pub use docker::{Docker, RetryConfig};
pub(crate) use gpu::is_id as is_gpu_id;
pub use gpu::{Gpu, GpuDevices, ListedGpu};
pub use listen::Listen;
pub(crate) use load::DOCKER_HOST;
pub use load::{ConfigError, DEFAULTS, environment, load, load_text};
pub use origins::{Origin, Origins};
pub use reference::reference;
pub(crate) use validate::MIN_CONTAINER_MEMORY;

/// Everything that can be configured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Connection to NATS.
    pub bus: Bus,
    /// This worker.
    pub worker: Worker,
    /// What it may use in all.
    pub capacity: Capacity,
    /// Cgroups.
    pub cgroup: Cgroup,
    /// Sandbox of native tasks.
    pub sandbox: Sandbox,
    /// The engine that runs containers.
    pub docker: Docker,
    /// Devices that are given to tasks.
    pub gpu: Gpu,
    /// Leases.
    pub lease: Lease,
    /// Events.
    pub events: Events,
    /// Output of tasks.
    pub logs: Logs,
    /// Streams, as `windlass init` makes them.
    pub streams: Streams,
    /// Repair of what crashes leave behind.
    pub sweeper: Sweeper,
    /// Health and metrics over HTTP.
    pub http: Http,
    /// The worker's own log.
    pub log: Log,
    /// Classes that this worker serves, by name.
    pub classes: BTreeMap<ClassName, Class>,
    /// What is special about a tenant, by name; tenants without a table are as the defaults say.
    pub tenants: BTreeMap<Tenant, TenantPolicy>,
    /// The file that this was read from: tasks must not read it.
    #[serde(skip)]
    pub source: Option<PathBuf>,
    /// Who set which of its keys.
    #[serde(skip)]
    pub origins: Origins,
}

/// `[bus]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Bus {
    /// URLs, comma separated.
    pub server: String,
    /// Credentials file; empty for none.
    pub creds: String,
    /// First subject token of everything.
    pub prefix: Tenant,
    /// Seconds between pings; a dead connection is noticed after about three.
    pub ping_interval_s: f64,
    /// Seconds before a request counts as unanswered.
    pub request_timeout_s: f64,
}

impl Bus {
    /// The servers without passwords and tokens, to be shown.
    #[must_use]
    pub fn shown_server(&self) -> String {
        let one = |url: &str| {
            let (scheme, rest) = url.split_once("://").map_or(("", url), |(scheme, rest)| (scheme, rest));
            // The last one: what is written wrongly hides too much rather than too little.
            let Some((who, host)) = rest.rsplit_once('@') else { return url.to_owned() };
            let who = who.split_once(':').map_or(String::new(), |(user, _)| format!("{user}:"));
            let scheme = if scheme.is_empty() { String::new() } else { format!("{scheme}://") };
            format!("{scheme}{who}***@{host}")
        };
        self.server.split(',').map(one).collect::<Vec<_>>().join(",")
    }
}

/// `[worker]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Worker {
    /// Stable name; empty: host name.
    pub id: String,
    /// Directory of spool, work directories and instance locks.
    pub state_dir: PathBuf,
    /// Seconds that running tasks get after SIGTERM before they are stopped and given back.
    pub drain_timeout_s: f64,
    /// Seconds before a task that does not fit now may be offered again.
    pub shed_delay_s: f64,
    /// Search path that tasks get.
    pub path: String,
    /// Where secrets that are delivered as files are kept, in memory (tmpfs); empty: decided by the machine.
    pub secrets_dir: String,
    /// Name of what it belongs to (`production`, `staging`): a label of the metrics of services and engine.
    pub environment: String,
}

/// `[capacity]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Capacity {
    /// Tasks at one time over all classes; 0: twice the CPUs.
    pub slots: u32,
    /// CPUs to give out; 0: twice those of the machine.
    pub cpus: f64,
    /// Memory to give out; 0: nine tenths of the machine's.
    pub memory: ByteSize,
}

/// `[cgroup]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cgroup {
    /// Where the cgroup file systems are mounted.
    pub mount: PathBuf,
    /// Directory below the mount (of each controller) that holds this worker's cgroups; empty: decided by the machine.
    pub parent: String,
    /// Run although limits cannot be enforced; every event then says so.
    pub allow_unlimited: bool,
}

/// `[sandbox]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sandbox {
    /// Refuse tasks whose profile cannot be had in full; otherwise they run with what there is, and their events say so.
    pub required: bool,
    /// What tasks may read and execute besides their own directory.
    pub read_paths: Vec<PathBuf>,
    /// What tasks may write besides their own directory.
    pub write_paths: Vec<PathBuf>,
    /// First of the user ids that tenants get when the worker is root.
    pub uid_base: u32,
}

/// `[tenants.<name>]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TenantPolicy {
    /// User id of its tasks; left out: one from `sandbox.uid_base` on, by its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Group id; left out: the number of the user id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// Secrets that its tasks may refer to: references, or prefixes of them that end in `*`.
    pub secrets: Vec<SecretGrant>,
    /// Images that its containers may use; left out: those of `docker.images`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images: Option<Vec<ImagePattern>>,
    /// Directories of this machine below which its containers may mount.
    pub mounts: Vec<MountRoot>,
}

/// `[lease]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Lease {
    /// `ack_wait` of the consumers, seconds.
    pub ack_wait_s: f64,
    /// What to do with a task whose lease cannot be renewed.
    pub on_lease_loss: OnLeaseLoss,
}

/// What to do with a task whose lease cannot be renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnLeaseLoss {
    /// Stop it before another worker may start it.
    Stop,
    /// Let it run; the chain still lets only one finish.
    Continue,
}

/// `[events]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Events {
    /// Encoding of events and log chunks.
    pub encoding: Encoding,
    /// Shortest time between two progress events of one task, milliseconds.
    pub progress_interval_ms: u64,
}

/// `[logs]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Logs {
    /// Output of one attempt that is kept, half of it head and half tail.
    pub cap: ByteSize,
    /// Largest chunk.
    pub chunk: ByteSize,
    /// Longest wait before output is published, milliseconds.
    pub flush_ms: u64,
    /// Chunks under way at one time.
    pub window: u32,
    /// Local copies of the output; empty: none.
    pub dir: String,
    /// Size at which a local file is rotated.
    pub file_max: ByteSize,
    /// Rotated files kept per attempt.
    pub file_keep: u32,
    /// Age at which local files are removed, hours.
    pub dir_max_age_h: f64,
    /// Size of the directory above which the oldest files are removed.
    pub dir_max: ByteSize,
}

/// `[streams]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Streams {
    /// Replicas of every stream and consumer.
    pub replicas: u32,
    /// Age of queued assignments, hours.
    pub tasks_max_age_h: f64,
    /// Age of events, hours; more than that of tasks.
    pub events_max_age_h: f64,
    /// Age of log chunks, hours.
    pub logs_max_age_h: f64,
    /// Size of the stream of log chunks.
    pub logs_max: ByteSize,
    /// Age of control messages, hours.
    pub control_max_age_h: f64,
    /// Age of dead letters, hours.
    pub dead_max_age_h: f64,
    /// Deliveries in flight per consumer, those with a delay included.
    pub max_ack_pending: i64,
    /// Waiting pulls per consumer: more than there are workers.
    pub max_waiting: i64,
}

/// `[sweeper]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sweeper {
    /// Seconds between two sweeps of the fleet; 0: this worker never sweeps.
    pub interval_s: f64,
}

/// `[http]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Http {
    /// Address of `/healthz`, `/readyz` and `/metrics`; `auto`: a free port on 127.0.0.1; empty: none.
    pub listen: Listen,
    /// Tenants that the metrics of tasks tell apart; empty: no tenants in metrics.
    pub metrics_tenants: Vec<Tenant>,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// Filter, in the syntax of `RUST_LOG`.
    pub level: String,
    /// Form of the lines.
    pub format: LogFormat,
}

/// Form of the worker's own log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// `[classes.<name>]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Class {
    /// Tasks of this class at one time; 0: as many as the worker has slots.
    pub slots: u32,
    /// Runtimes that its tasks may ask for.
    pub runtimes: Vec<Runtime>,
    /// Time limit unless asked otherwise, seconds.
    pub timeout_s: f64,
    /// Highest time limit that may be asked for, seconds.
    pub max_timeout_s: f64,
    /// Time between SIGTERM and SIGKILL unless asked otherwise, seconds.
    pub grace_s: f64,
    /// Highest grace that may be asked for, seconds.
    pub max_grace_s: f64,
    /// CPUs unless asked otherwise.
    pub cpus: f64,
    /// Most CPUs that may be asked for.
    pub max_cpus: f64,
    /// Memory unless asked otherwise.
    pub memory: ByteSize,
    /// Most memory that may be asked for.
    pub max_memory: ByteSize,
    /// Processes unless asked otherwise.
    pub pids: u64,
    /// Most processes that may be asked for.
    pub max_pids: u64,
    /// Attempts unless asked otherwise.
    pub max_attempts: u32,
    /// Most attempts that may be asked for.
    pub max_max_attempts: u32,
    /// Delays between attempts unless asked otherwise.
    pub backoff: BackoffPolicy,
    /// Sandbox of its native tasks; an assignment cannot change it.
    pub sandbox: Profile,
    /// Whole GPUs unless asked otherwise.
    pub gpus: u32,
    /// Most GPUs that may be asked for.
    pub max_gpus: u32,
    /// When images are pulled unless asked otherwise.
    pub pull: PullPolicy,
    /// Network of its containers unless asked otherwise.
    pub network: String,
    /// Networks that may be asked for.
    pub networks: Vec<String>,
    /// Users that its containers may ask for besides the tenant's: `uid[:gid]`, or `image` for the image's own.
    pub users: Vec<String>,
}

impl Config {
    /// Its classes with a runtime that this version has: only these have queues.
    pub fn offered_classes(&self) -> impl Iterator<Item = (&ClassName, &Class)> {
        self.classes.iter().filter(|(_, class)| class.is_offered())
    }

    /// Its classes whose tasks may be programs of the machine, which run in a sandbox.
    pub fn native_classes(&self) -> impl Iterator<Item = (&ClassName, &Class)> {
        self.classes.iter().filter(|(_, class)| class.runtimes.iter().any(|runtime| matches!(runtime, Runtime::Native | Runtime::Bash)))
    }
}

impl Class {
    /// Whether workers of this version have one of its runtimes.
    #[must_use]
    pub fn is_offered(&self) -> bool {
        self.runtimes.iter().any(|runtime| runtime.is_offered())
    }
}

impl Default for Class {
    fn default() -> Self {
        Self {
            slots: 0,
            runtimes: vec![Runtime::Native, Runtime::Bash],
            timeout_s: 60.0,
            max_timeout_s: 3600.0,
            grace_s: 10.0,
            max_grace_s: 60.0,
            cpus: 1.0,
            max_cpus: 8.0,
            memory: ByteSize::mib(512),
            max_memory: ByteSize::mib(16 * 1024),
            pids: 256,
            max_pids: 4096,
            max_attempts: 3,
            max_max_attempts: 20,
            backoff: BackoffPolicy::default(),
            sandbox: Profile::Standard,
            gpus: 0,
            max_gpus: 0,
            pull: PullPolicy::Missing,
            network: "none".to_owned(),
            networks: vec!["none".to_owned()],
            users: vec![],
        }
    }
}
