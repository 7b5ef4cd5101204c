//! Programs on this machine, through the supervisor process.
//!
//! [`Supervisor`] is the worker's end of the socket: a cheap handle that starts processes. A [`Process`] is one of
//! them and dies with its handle: dropping it without having seen the end kills the tree. When the supervisor dies,
//! every pending answer becomes [`SupervisorLost`], but not before the trees that it left are killed and removed here.
//!
//! ```text
//! Supervisor::spawn ─▶ outbox ─▶ writer task ─▶ socket ─▶ supervisor
//! Process::wait ◀─ pending table ◀─ reader task ◀─ socket ◀─┘
//! ```

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::config;
use crate::supervisor::protocol::{ContainerGuard, ExitReport, Request, SpawnError, SpawnRequest};
use crate::task::limits::Limits;

pub mod cgroup;
mod held;
mod link;
pub mod sandbox;
mod verdict;

pub use held::{Held, Holding, Inside};
pub use verdict::{explain_refusal, reason_of_exit};

use link::{Answers, Begun, Link};
use sandbox::{Confinement, Report, Wish};

/// Why there is no supervisor.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The process could not be started.
    #[error("cannot start the supervisor {program}")]
    Start {
        /// Our own executable.
        program: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// It ended, or was silent, before it said what it can do.
    #[error("the supervisor did not become ready within {} s", READY_WITHIN.as_secs())]
    Silent,
    /// It spoke nonsense or its socket failed.
    #[error("the supervisor's socket failed")]
    Socket(#[source] io::Error),
    /// This machine cannot enforce limits, and running without was not allowed. The text says what to grant.
    #[error("{0}")]
    Unfit(String),
}

/// Descriptors in one request; a packet takes some more.
const MOST_KEPT: usize = 32;

/// Sweeping what dead instances left may take two seconds for each hierarchy.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// The supervisor is gone, and with it every task it ran. The worker must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the supervisor process is gone; its tasks were killed")]
pub struct SupervisorLost;

/// Why a program does not run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpawnFailure {
    /// It never ran; nothing is left of it.
    #[error(transparent)]
    Refused(#[from] SpawnError),
    /// See [`SupervisorLost`].
    #[error("the supervisor process is gone")]
    SupervisorLost,
}

/// What to run: a [`SpawnRequest`] without its number. Its environment is not printed: secrets are in it.
#[derive(Clone, PartialEq)]
pub struct Program {
    /// Name of the cgroup directory, unique among the running: `<task_id>.<attempt>`.
    pub cgroup: String,
    /// Limits to enforce.
    pub limits: Limits,
    /// Argument vector, not empty.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Working directory, absolute.
    pub cwd: String,
    /// How it is confined.
    pub sandbox: Confinement,
    /// The supervisor kills the tree when it is not renewed within this time. `None`: no lease.
    pub lease: Option<Duration>,
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Program").field("cgroup", &self.cgroup).field("argv", &self.argv).field("cwd", &self.cwd).finish_non_exhaustive()
    }
}

/// What this machine can enforce, as the supervisor found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// CPU, memory and process limits are enforced.
    pub enforced: bool,
    /// One line for the log.
    pub description: String,
    /// Controllers that limit tasks: `cpu`, `memory`, `pids`, `io`.
    pub controllers: Vec<String>,
    /// Why tasks cannot be started into a cgroup2 directory in one step; none when they can.
    pub no_clone_into: Option<String>,
    /// Directories of this instance's cgroups, one in each hierarchy.
    pub directories: Vec<PathBuf>,
    /// Leftovers of dead instances that were found, and whether they are gone.
    pub swept: Vec<(String, bool)>,
    /// What each profile of the sandbox can have.
    pub sandbox: Report,
}

/// Handle of the supervisor process. When the last clone and the last [`Process`] are dropped, the supervisor
/// kills what still runs and ends.
#[derive(Debug, Clone)]
pub struct Supervisor {
    link: Arc<Link>,
    capabilities: Arc<Capabilities>,
}

impl Supervisor {
    /// Starts `exe supervisor …` and waits until it is ready. `instance` names the directory of this instance's
    /// cgroups and must be unlike that of any other. Only tasks without a sandbox can run.
    ///
    /// # Errors
    /// See [`StartError`]; `Unfit` is for the operator.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O enabled.
    pub async fn start(exe: &Path, cgroup: &config::Cgroup, instance: &str) -> Result<Self, StartError> {
        Self::start_with(exe, cgroup, instance, None).await
    }

    /// Likewise, with the sandboxes that `wish` describes.
    ///
    /// # Errors
    /// As [`Supervisor::start`]. A profile that cannot be had is no error here: [`Capabilities`] say so, and spawns are refused.
    ///
    /// # Panics
    /// As [`Supervisor::start`].
    pub async fn start_with(exe: &Path, cgroup: &config::Cgroup, instance: &str, wish: Option<Wish>) -> Result<Self, StartError> {
        let (link, capabilities) =
            tokio::time::timeout(READY_WITHIN, link::start(exe, cgroup, instance, wish)).await.map_err(|_| StartError::Silent)??;
        Ok(Self { link, capabilities: Arc::new(capabilities) })
    }

    /// What it can do here.
    #[must_use]
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// Runs a program with these descriptors as its standard streams; they are closed here.
    ///
    /// Cancel safe: a program whose start nobody waits for any more is killed.
    ///
    /// # Errors
    /// `Refused` says why it never ran.
    pub async fn spawn(&self, program: Program, stdin: OwnedFd, stdout: OwnedFd, stderr: OwnedFd) -> Result<Process, SpawnFailure> {
        let Answers { id, started, exited } = self.link.register().ok_or(SpawnFailure::SupervisorLost)?;
        // From here on the guard kills what was started, should this future be dropped.
        let mut process = Process { pid: 0, id, link: self.link.clone(), exited: Some(exited) };
        let Program { cgroup, limits, argv, env, cwd, sandbox, lease } = program;
        let name = argv.first().cloned().unwrap_or_default();
        let lease_ms = lease.map(millis);
        let request = Request::Spawn(Box::new(SpawnRequest { id, cgroup, limits, argv, env, cwd, sandbox, lease_ms }));
        if let Err(e) = self.link.send(&request, vec![stdin, stdout, stderr]) {
            process.exited = None;
            self.link.forget(id);
            return Err(SpawnError::Other { program: name, step: "request".to_owned(), error: e.to_string() }.into());
        }
        match started.await {
            Ok(Ok(Begun::Process(pid))) => {
                process.pid = pid;
                Ok(process)
            }
            Ok(Err(error)) => {
                process.exited = None;
                Err(error.into())
            }
            // It answers a spawn with a process, or is gone.
            Ok(Ok(Begun::Held(_))) | Err(_) => {
                process.exited = None;
                Err(SpawnFailure::SupervisorLost)
            }
        }
    }

    /// Has the supervisor hold these descriptors open as well, until the task of that cgroup is dead and buried. To be
    /// called before the task is started.
    ///
    /// # Errors
    /// Out of memory for the request.
    pub fn keep(&self, cgroup: &str, descriptors: Vec<OwnedFd>) -> io::Result<Keeping> {
        let keeping = Keeping { cgroup: cgroup.to_owned(), link: self.link.clone() };
        let mut left = descriptors.into_iter().peekable();
        while left.peek().is_some() {
            let some = left.by_ref().take(MOST_KEPT).collect();
            self.link.send(&Request::Keep { cgroup: cgroup.to_owned() }, some)?;
        }
        Ok(keeping)
    }

    /// To be told before the first container or network is made: should this worker die, the supervisor removes what it left.
    pub fn guard_containers(&self, host: &str, request_timeout: Duration) {
        if !self.link.guards().swap(true, Ordering::Relaxed) {
            let guard = ContainerGuard { host: host.to_owned(), request_timeout_ms: millis(request_timeout) };
            // It can fail only when the supervisor is gone, and then nothing is started any more.
            let _ = self.link.send(&Request::GuardContainers(Box::new(guard)), Vec::new());
        }
    }

    /// There may be containers or networks of this worker's.
    #[must_use]
    pub fn guards_containers(&self) -> bool {
        self.link.guards().load(Ordering::Relaxed)
    }

    /// This worker has removed its containers, or leaves them to the next one, and makes no more.
    pub fn containers_gone(&self) {
        if self.link.guards().swap(false, Ordering::Relaxed) {
            let _ = self.link.send(&Request::ContainersGone, Vec::new());
        }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.link.pid()
    }

    /// Whether its end was noticed.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.link.is_closed()
    }

    /// Completes when the supervisor is gone and what it left was killed and removed.
    pub async fn supervisor_lost(&self) {
        self.link.lost().await;
    }

    /// Ends the supervisor and with it every task, and waits until nothing is left of them.
    pub async fn shutdown(&self) {
        self.link.close();
        self.link.lost().await;
    }
}

/// Descriptors that the supervisor holds open for a task. Dropped, it closes them: at once, or when the task that came
/// meanwhile is buried.
#[derive(Debug)]
pub struct Keeping {
    cgroup: String,
    link: Arc<Link>,
}

impl Drop for Keeping {
    fn drop(&mut self) {
        // It can fail only when the supervisor is gone, and its descriptors with it.
        let _ = self.link.send(&Request::LetGo { cgroup: self.cgroup.clone() }, Vec::new());
    }
}

/// Whole milliseconds, rounded up so that something is never nothing.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// A running program. Dropped before its end was seen, its tree is killed.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    id: u64,
    link: Arc<Link>,
    exited: Option<oneshot::Receiver<ExitReport>>,
}

impl Process {
    /// Process id of the leader.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// SIGTERM to every process of the tree, SIGKILL to what is left after `grace`; zero kills at once.
    /// Returns before that: [`Process::wait`] tells the end.
    pub fn stop(&self, grace: Duration) {
        self.tell(&Request::Stop { id: self.id, grace_ms: millis(grace) });
    }

    /// The lease was renewed: the supervisor lets it run for another `lease` from when this arrives there.
    pub fn renew(&self, lease: Duration) {
        self.tell(&Request::Renew { id: self.id, lease_ms: millis(lease) });
    }

    fn tell(&self, request: &Request) {
        // It can fail only when the supervisor is gone (wait() says so) or without memory for a few bytes.
        let _ = self.link.send(request, Vec::new());
    }

    /// The end of the whole tree. Cancel safe.
    ///
    /// # Errors
    /// When the supervisor is gone, and on every call after the first that returned.
    pub async fn wait(&mut self) -> Result<ExitReport, SupervisorLost> {
        let Some(exited) = &mut self.exited else { return Err(SupervisorLost) };
        let report = exited.await.map_err(|_| SupervisorLost);
        self.exited = None;
        report
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.exited.is_some() {
            self.stop(Duration::ZERO);
        }
    }
}
