//! What worker and supervisor say to each other: one MessagePack value per `SOCK_SEQPACKET` packet.
//!
//! A spawn request carries three descriptors (stdin, stdout, stderr of the task) as `SCM_RIGHTS`, and a
//! fourth (a sealed memfd with the frame) when the frame is larger than [`INLINE_LIMIT`].

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::execute::native::sandbox::{Confinement, Report};
use crate::task::Profile;
use crate::task::limits::{Limits, Usage};

/// Largest frame sent in the packet itself; the socket's buffer holds it on every default kernel.
pub const INLINE_LIMIT: usize = 64 * 1024;

/// Worker to supervisor.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Request {
    /// Make the cgroup, set and read back its limits, start the program in it.
    Spawn(Box<SpawnRequest>),
    /// Hold these descriptors open until the task of that cgroup, which is still to come, is dead and buried.
    Keep {
        /// Name of its cgroup directory.
        cgroup: String,
    },
    /// The task of that cgroup never came, or is buried: its descriptors are of no more use.
    LetGo {
        /// Name of its cgroup directory.
        cgroup: String,
    },
    /// SIGTERM to every process of the task, SIGKILL to the whole tree after `grace_ms`.
    Stop {
        /// Which task.
        id: u64,
        /// Milliseconds of grace; 0 kills at once.
        grace_ms: u64,
    },
    /// The lease was renewed: the task may run for another `lease_ms`.
    Renew {
        /// Which task.
        id: u64,
        /// Milliseconds from now.
        lease_ms: u64,
    },
    /// Make a cgroup and limit it for processes that somebody else puts below it.
    Hold(Box<HoldRequest>),
    /// What a held cgroup was for is over: count, kill what is left, remove it.
    Release {
        /// Which task.
        id: u64,
        /// How it ended.
        status: ExitStatus,
    },
    /// From now on there may be containers: when the worker is gone, they are to be removed.
    GuardContainers(Box<ContainerGuard>),
    /// The worker has removed its containers itself.
    ContainersGone,
}

/// What to hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HoldRequest {
    /// Number of this task, chosen by the worker, unique in its life.
    pub id: u64,
    /// Name of the cgroup directory below the instance's.
    pub cgroup: String,
    /// Limits to enforce.
    pub limits: Limits,
    /// Directory on the device whose I/O is limited, absolute.
    pub directory: String,
    /// Everything below it is killed when it is not renewed within this many milliseconds; absent: no lease.
    pub lease_ms: Option<u64>,
    /// The engine puts its processes elsewhere: there is no cgroup to make.
    pub elsewhere: bool,
}

/// Where a worker's containers are found when it is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerGuard {
    /// Socket of the engine.
    pub host: String,
    /// How long a request to it may take, milliseconds.
    pub request_timeout_ms: u64,
}

/// What to start. Its environment is not printed: secrets are in it.
#[derive(Clone, Serialize, Deserialize)]
pub struct SpawnRequest {
    /// Number of this process, chosen by the worker, unique in its life.
    pub id: u64,
    /// Name of the cgroup directory below the instance's: `<tenant>.<task_id>.<attempt>`.
    pub cgroup: String,
    /// Limits to enforce.
    pub limits: Limits,
    /// Argument vector, not empty. `argv[0]` without a slash is looked up in `PATH` of `env`.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Working directory, absolute.
    pub cwd: String,
    /// How it is confined.
    pub sandbox: Confinement,
    /// The task is killed when it is not renewed within this many milliseconds; absent: no lease.
    pub lease_ms: Option<u64>,
}

impl std::fmt::Debug for SpawnRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SpawnRequest").field("id", &self.id).field("cgroup", &self.cgroup).field("argv", &self.argv).finish_non_exhaustive()
    }
}

/// Supervisor to worker.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Reply {
    /// The supervisor is up, first message of all.
    Ready {
        /// CPU, memory and process limits are enforced; becomes `run.limits.enforced`.
        enforced: bool,
        /// What it found, for the worker's log, e.g. `hybrid: v1 cpu,memory,pids + cgroup2 for tracking`.
        cgroups: String,
        /// Controllers that limit tasks: `cpu`, `memory`, `pids`, `io`.
        controllers: Vec<String>,
        /// Why tasks cannot be started into a cgroup2 directory in one step; absent when they can.
        no_clone_into: Option<String>,
        /// Cgroup directories of this instance, for the worker's sweep should the supervisor die.
        directories: Vec<PathBuf>,
        /// Likewise, those that are made only when containers are run.
        container_directories: Vec<PathBuf>,
        /// Instances of dead workers that were found, and whether nothing is left of them.
        swept: Vec<(String, bool)>,
        /// What each profile of the sandbox can have here.
        sandbox: Report,
    },
    /// The supervisor cannot work here and ends; says what to grant.
    Unfit {
        /// One line for the operator.
        error: String,
    },
    /// The program runs inside its limits.
    Started {
        /// Which task.
        id: u64,
        /// Its process id.
        pid: u32,
    },
    /// The cgroup is there, limited and empty.
    Held {
        /// Which task.
        id: u64,
        /// Its path in every hierarchy, for the engine; absent where there is none that could be given.
        parent: Option<String>,
    },
    /// The program never ran. Nothing is left of it.
    Refused {
        /// Which task.
        id: u64,
        /// Why.
        error: SpawnError,
    },
    /// The task is over: its tree is dead, its cgroup read and removed.
    Exited {
        /// Which task.
        id: u64,
        /// How.
        report: ExitReport,
    },
}

/// Why a program never ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum SpawnError {
    /// A limit could not be set or does not read back.
    #[error("cannot set limit {limit}: {error}")]
    Limit {
        /// File of the limit.
        limit: String,
        /// The kernel's answer.
        error: String,
    },
    /// The cgroup could not be made.
    #[error("cannot make cgroup {path}: {error}")]
    Cgroup {
        /// Directory.
        path: String,
        /// The kernel's answer.
        error: String,
    },
    /// The profile of its class cannot be had here.
    #[error("sandbox profile {profile} cannot be had here: missing {missing}")]
    Sandbox {
        /// Of its class.
        profile: Profile,
        /// What is missing and what to do.
        missing: String,
    },
    /// The program does not exist (as given, or in `PATH`).
    #[error("program {program:?} not found{}", searched.as_ref().map(|p| format!(" in PATH={p}")).unwrap_or_default())]
    ProgramNotFound {
        /// As given.
        program: String,
        /// `PATH` that was searched.
        searched: Option<String>,
    },
    /// It exists and cannot be executed.
    #[error("program {program:?} cannot be executed: {error}")]
    NotExecutable {
        /// As given.
        program: String,
        /// The kernel's answer.
        error: String,
    },
    /// The working directory does not exist or cannot be entered.
    #[error("working directory {path:?}: {error}")]
    WorkingDir {
        /// As given.
        path: String,
        /// The kernel's answer.
        error: String,
    },
    /// Something else between clone and exec.
    #[error("cannot start {program:?}: {step}: {error}")]
    Other {
        /// As given.
        program: String,
        /// What failed.
        step: String,
        /// The kernel's answer.
        error: String,
    },
}

/// How a task's process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// It exited.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
}

/// What the supervisor knows when all is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitReport {
    /// Of the task's own process.
    pub status: ExitStatus,
    /// Of the whole tree.
    pub usage: Usage,
    /// The lease ran out and the supervisor killed the task on its own.
    pub lease_expired: bool,
    /// From the decision to kill to an empty cgroup, microseconds; 0 when nothing had to be killed.
    pub kill_us: u64,
}
