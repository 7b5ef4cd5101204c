//! What an orchestrator asks for: the body of a message on the task queue.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::secret::SecretRequest;
use super::{ByteSize, ClassName, IoLimits, Mount, Outcome, PullPolicy, Reason, ServiceSpec, TaskId, Tenant, Time};

/// One task. Unknown keys are refused with their path; what is left out comes from the class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Assignment {
    /// Version of the contract, 1.
    #[serde(default = "version")]
    #[schemars(range(min = 1, max = 1))]
    pub v: u32,
    /// The task's name for ever; the last token of the subject.
    pub task_id: TaskId,
    /// Whose task it is; must agree with the subject.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Tenant>,
    /// Its class; must agree with the subject.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<ClassName>,
    /// The publisher's own grouping; repeated in every event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workflow_id: Option<String>,
    /// Anything, 32 levels deep at most; repeated in every event.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub context: Value,
    /// A name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Labels, repeated in every event.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// What to run.
    pub execution: Execution,
    /// Source tree to run in; no runtime of this version offers it.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub workspace: Value,
    /// Language environment; no runtime of this version offers it.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub environment: Value,
    /// Inputs and outputs; no runtime of this version offers them.
    #[serde(default, skip_serializing_if = "Artifacts::is_empty")]
    pub artifacts: Artifacts,
    /// Secrets by reference.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretRequest>,
    /// Containers that the task needs beside it, for `docker`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<ServiceSpec>,
    /// When to try again.
    #[serde(default, skip_serializing_if = "Retry::is_default")]
    pub retry: Retry,
    /// Not to be started earlier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Time>,
    /// To be over by then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Time>,
}

fn version() -> u32 {
    1
}

/// What runs, and how much it may use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Execution {
    /// Who runs it.
    pub runtime: Runtime,
    /// The argument vector, for `native`; for `docker` the command, the image's unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// The text of the script, for `bash` and `python`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script: Option<String>,
    /// The module, for `python`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
    /// The configured runner, for `runner`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runner: Option<String>,
    /// Arguments: of the script for `bash` (`$1` …), of the runner for `runner`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Container image, for `docker`: `[registry/]name[:tag][@sha256:…]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// When the image is pulled, for `docker`; as the class has it unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull: Option<PullPolicy>,
    /// Name of one of the task's `secrets` with which the image's registry is opened, for `docker`: `user:password`, or JSON with
    /// `username` and `password`, or with `identitytoken`. Without it the worker's own credentials count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry_secret: Option<String>,
    /// Container entry point, for `docker`; the image's unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Environment. Not for secrets: it can be read in the queue.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Text given on standard input; without it standard input is empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    /// Where to run: an absolute path, or one below the task's work directory (the default). Without `..`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// Directories of the worker's machine in the container, for `docker`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// User in the container, for `docker`: `uid[:gid]`, or `image` for the image's own; the tenant's unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Network: `none`, `bridge` or another one that the class allows, for `docker`; as the class has it unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Wall-clock limit in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.001))]
    pub timeout_s: Option<f64>,
    /// Seconds between SIGTERM and SIGKILL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0))]
    pub grace_s: Option<f64>,
    /// Limits.
    #[serde(default)]
    pub resources: Resources,
}

/// Who runs a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    /// A program of the worker's machine, under cgroup limits.
    Native,
    /// A shell script, likewise.
    Bash,
    /// A Python module or script.
    Python,
    /// A container.
    Docker,
    /// A call of a gRPC method.
    Grpc,
    /// A Slurm job.
    Slurm,
    /// A runner of the worker's configuration.
    Runner,
}

impl Runtime {
    /// Whether workers of this version run it.
    #[must_use]
    pub fn is_offered(self) -> bool {
        match self {
            Self::Native | Self::Bash | Self::Docker => true,
            Self::Python | Self::Grpc | Self::Slurm | Self::Runner => false,
        }
    }

    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Bash => "bash",
            Self::Python => "python",
            Self::Docker => "docker",
            Self::Grpc => "grpc",
            Self::Slurm => "slurm",
            Self::Runner => "runner",
        }
    }
}

/// What a task asks to use.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// CPUs' worth of time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.01))]
    pub cpus: Option<f64>,
    /// Memory, including page cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<ByteSize>,
    /// Processes and threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
    /// Whole GPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpus: Option<u32>,
    /// Block I/O.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io: Option<IoLimits>,
    /// Disk space.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<ByteSize>,
}

/// Inputs and outputs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Artifacts {
    /// To fetch before the run.
    #[serde(default)]
    pub inputs: Vec<Value>,
    /// To store after the run.
    #[serde(default)]
    pub outputs: Vec<Value>,
}

impl Artifacts {
    /// True when nothing is to be fetched or stored.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inputs.is_empty() && self.outputs.is_empty()
    }
}

/// When to try again.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Retry {
    /// Attempts in all, the first included. The class's default when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub max_attempts: Option<u32>,
    /// Reasons and outcomes that another attempt is made for, besides transient faults of the platform.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub on: Vec<RetryOn>,
    /// Delays between attempts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<BackoffPolicy>,
}

impl Retry {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// True when `reason` is one that the assignment wants another attempt for.
    #[must_use]
    pub fn wants(&self, reason: Reason) -> bool {
        self.on.iter().any(|on| match on {
            RetryOn::Reason(r) => *r == reason,
            RetryOn::Outcome(o) => *o == reason.outcome(),
        })
    }
}

/// A reason (`"oom_killed"`) or a whole outcome (`"failure"`). The word `timeout` is both and means the outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum RetryOn {
    /// Every reason of that outcome.
    Outcome(Outcome),
    /// Just that reason.
    Reason(Reason),
}

impl<'de> Deserialize<'de> for RetryOn {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::{Error, IntoDeserializer, value::StringDeserializer};
        let word = String::deserialize(deserializer)?;
        let of = |word: &str| -> StringDeserializer<serde::de::value::Error> { word.to_owned().into_deserializer() };
        if let Ok(outcome) = Outcome::deserialize(of(&word)) {
            return Ok(Self::Outcome(outcome));
        }
        Reason::deserialize(of(&word)).map(Self::Reason).map_err(|_| {
            D::Error::custom(format!(
                "{word:?} is neither an outcome (failure, timeout, error) nor a reason such as exit_nonzero or oom_killed"
            ))
        })
    }
}

/// Exponential delays: `initial_ms * factor^n`, at most `max_ms`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BackoffPolicy {
    /// Delay before the second attempt, milliseconds.
    pub initial_ms: u64,
    /// Growth from one delay to the next, at least 1.
    #[schemars(range(min = 1.0))]
    pub factor: f64,
    /// Longest delay, milliseconds.
    pub max_ms: u64,
}

impl Default for BackoffPolicy {
    fn default() -> Self {
        Self { initial_ms: 1000, factor: 2.0, max_ms: 60_000 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_words_are_outcomes_or_reasons() {
        let retry: Retry = serde_json::from_str(r#"{"on": ["failure", "timeout", "disk_full"]}"#).expect("valid");
        assert!(retry.wants(Reason::ExitNonzero) && retry.wants(Reason::DeadlinePassed) && retry.wants(Reason::DiskFull));
        assert!(!retry.wants(Reason::WorkerLost));
        let error = serde_json::from_str::<Retry>(r#"{"on": ["sometimes"]}"#).expect_err("no such word");
        assert!(error.to_string().contains("\"sometimes\" is neither"), "{error}");
    }
}
