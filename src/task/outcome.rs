//! How a task ends: outcome, reason, and what happens to its queue message.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whose doing the end was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Exit status 0 and a valid result.
    Success,
    /// The task's own doing.
    Failure,
    /// A time limit of the task.
    Timeout,
    /// Somebody asked for it.
    Cancellation,
    /// The platform's doing.
    Error,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal => $outcome:ident,)*) => {
        /// Why a task ended: a closed set that only grows. `docs/reasons.md` explains each.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// Every reason of contract version 1.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The word on the wire.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// Whose doing it is.
            #[must_use]
            pub fn outcome(self) -> Outcome {
                match self { $(Self::$name => Outcome::$outcome,)* }
            }
        }
    };
}

reasons! {
    /// It worked.
    Ok = "ok" => Success,
    /// The task's process ended with a status other than 0.
    ExitNonzero = "exit_nonzero" => Failure,
    /// A signal that the worker did not send ended the task.
    Signaled = "signaled" => Failure,
    /// The kernel killed a process of the task at its memory limit.
    OomKilled = "oom_killed" => Failure,
    /// `timeout_s` was over.
    Timeout = "timeout" => Timeout,
    /// `deadline` was over, before or during the run.
    DeadlinePassed = "deadline_passed" => Timeout,
    /// A cancel request was carried out.
    Canceled = "canceled" => Cancellation,
    /// The message is not a valid assignment.
    InvalidAssignment = "invalid_assignment" => Failure,
    /// Asked for more than, or something other than, its class or tenant may have.
    PolicyRefused = "policy_refused" => Failure,
    /// No worker of this kind can run it.
    Unschedulable = "unschedulable" => Failure,
    /// The named runner is not configured.
    RunnerUnknown = "runner_unknown" => Failure,
    /// The named runner's configuration is incomplete.
    RunnerMisconfigured = "runner_misconfigured" => Error,
    /// The program could not be started.
    SpawnFailed = "spawn_failed" => Failure,
    /// The promised isolation or limits could not be set.
    IsolationUnavailable = "isolation_unavailable" => Error,
    /// The image is not on the allowlist.
    ImageRefused = "image_refused" => Failure,
    /// The image does not exist.
    ImageNotFound = "image_not_found" => Failure,
    /// The image could not be pulled.
    ImagePullFailed = "image_pull_failed" => Error,
    /// The Docker engine does not answer.
    DockerUnavailable = "docker_unavailable" => Error,
    /// The work directory could not be made.
    WorkspaceFailed = "workspace_failed" => Error,
    /// The patch does not apply.
    PatchRejected = "patch_rejected" => Failure,
    /// The environment could not be built.
    EnvironmentFailed = "environment_failed" => Failure,
    /// A secret that the task names does not exist, or cannot be used.
    SecretMissing = "secret_missing" => Failure,
    /// A store of secrets does not answer.
    SecretUnavailable = "secret_unavailable" => Error,
    /// An input could not be fetched.
    InputFailed = "input_failed" => Error,
    /// An output could not be stored.
    OutputFailed = "output_failed" => Error,
    /// The result file is not valid JSON or too big.
    ResultInvalid = "result_invalid" => Failure,
    /// A service did not become healthy.
    ServiceUnhealthy = "service_unhealthy" => Error,
    /// The gRPC channel failed.
    GrpcUnavailable = "grpc_unavailable" => Error,
    /// The gRPC method answered with a status.
    GrpcStatus = "grpc_status" => Failure,
    /// Slurm refused or lost the job.
    SlurmFailed = "slurm_failed" => Error,
    /// No GPU could be had.
    GpuUnavailable = "gpu_unavailable" => Error,
    /// The disk of spool or work directory is full.
    DiskFull = "disk_full" => Error,
    /// The worker was lost with the task.
    WorkerLost = "worker_lost" => Error,
    /// Every attempt was used and none came to an end.
    AttemptsExhausted = "attempts_exhausted" => Error,
    /// A defect of Windlass.
    Internal = "internal" => Error,
}

impl Reason {
    /// True for faults of the platform that another attempt may not meet again.
    #[must_use]
    pub fn is_transient(self) -> bool {
        self.outcome() == Outcome::Error && !matches!(self, Self::AttemptsExhausted | Self::RunnerMisconfigured | Self::Internal)
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Outcome {
    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Timeout => "timeout",
            Self::Cancellation => "cancellation",
            Self::Error => "error",
        }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_those_that_serde_writes() {
        for reason in Reason::ALL {
            assert_eq!(serde_json::to_value(reason).expect("serializes"), reason.as_str());
        }
    }

    /// `docs/reasons.md` explains each once, with its outcome, whose fault it is and what to do.
    #[test]
    fn every_reason_is_explained() {
        let page = include_str!("../../docs/reasons.md");
        let rows: Vec<Vec<&str>> = page.lines().filter(|l| l.starts_with("| `")).map(|l| l.split('|').map(str::trim).collect()).collect();
        for reason in Reason::ALL {
            let own: Vec<_> = rows.iter().filter(|row| row[1] == format!("`{reason}`")).collect();
            assert_eq!(own.len(), 1, "{reason} has {} rows", own.len());
            assert_eq!(own[0][2], reason.outcome().as_str(), "{reason}");
            assert!(own[0].len() == 7 && own[0][3..6].iter().all(|cell| !cell.is_empty()), "{reason}: {:?}", own[0]);
        }
        assert_eq!(rows.len(), Reason::ALL.len(), "a row of no reason");
    }

    #[test]
    fn only_platform_faults_are_transient() {
        assert!(Reason::WorkerLost.is_transient());
        assert!(Reason::DiskFull.is_transient());
        assert!(!Reason::ExitNonzero.is_transient());
        assert!(!Reason::AttemptsExhausted.is_transient());
    }
}
