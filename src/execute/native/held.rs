//! A cgroup that the supervisor holds for processes which a container engine starts.
//!
//! It has the life of a native task: limits that were read back, a lease, SIGTERM and SIGKILL to everything below it, and an
//! end that tells what was used. Only the beginning and the end of its processes are somebody else's: [`Held::release`] says
//! when they are over.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::link::{Answers, Begun, Link};
use super::{SpawnFailure, Supervisor, SupervisorLost, millis};
use crate::supervisor::protocol::{ExitReport, ExitStatus, HoldRequest, Request, SpawnError};
use crate::task::limits::Limits;

/// What to hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Holding {
    /// Name of the cgroup directory, unique among the running: `<task_id>.<attempt>`.
    pub cgroup: String,
    /// Limits to enforce.
    pub limits: Limits,
    /// Directory on the device whose I/O is limited, absolute.
    pub directory: PathBuf,
    /// The supervisor kills everything below it when it is not renewed within this time. `None`: no lease.
    pub lease: Option<Duration>,
    /// The engine does not put containers into cgroups that it is given: none is made, and what is kept for the task stays kept
    /// until whoever removes the container is done.
    pub elsewhere: bool,
}

impl Supervisor {
    /// Makes a cgroup, limits it and watches it.
    ///
    /// Cancel safe: what nobody waits for any more is removed.
    ///
    /// # Errors
    /// `Refused` when a limit or the cgroup cannot be had.
    pub async fn hold(&self, holding: Holding) -> Result<Held, SpawnFailure> {
        let Answers { id, started, exited } = self.link.register().ok_or(SpawnFailure::SupervisorLost)?;
        let directories = self.capabilities.directories.iter().map(|instance| instance.join(&holding.cgroup)).collect();
        // From here on the guard releases what was made, should this future be dropped.
        let mut held = Held { parent: None, directories, id, link: self.link.clone(), exited: Some(exited) };
        let Holding { cgroup, limits, directory, lease, elsewhere } = holding;
        let request =
            HoldRequest { id, cgroup, limits, directory: directory.display().to_string(), lease_ms: lease.map(millis), elsewhere };
        if let Err(e) = self.link.send(&Request::Hold(Box::new(request)), Vec::new()) {
            held.exited = None;
            self.link.forget(id);
            return Err(SpawnError::Other { program: String::new(), step: "request".to_owned(), error: e.to_string() }.into());
        }
        match started.await {
            Ok(Ok(Begun::Held(parent))) => {
                held.parent = parent;
                Ok(held)
            }
            Ok(Err(error)) => {
                held.exited = None;
                Err(error.into())
            }
            // It answers with what was asked for, or is gone.
            Ok(Ok(Begun::Process(_))) | Err(_) => {
                held.exited = None;
                Err(SpawnFailure::SupervisorLost)
            }
        }
    }
}

/// A held cgroup. Dropped before it was released, everything in it is killed, and it is removed.
#[derive(Debug)]
pub struct Held {
    parent: Option<String>,
    directories: Vec<PathBuf>,
    id: u64,
    link: Arc<Link>,
    exited: Option<oneshot::Receiver<ExitReport>>,
}

impl Held {
    /// What the engine is to put its cgroup below. `None`: there is no cgroup that it could be given. Nothing is limited, killed
    /// or counted here then, and its own limits and API have to do.
    #[must_use]
    pub fn parent(&self) -> Option<&str> {
        self.parent.as_deref()
    }

    /// Whether the engine made its own cgroup of that name below this one, in a hierarchy that limits. It may understand the path
    /// otherwise than we do: when it sees other cgroups than this process. To be asked while the container runs.
    #[must_use]
    pub fn contains(&self, container: &str) -> bool {
        self.inside().contains(container)
    }

    /// Who answers that when this is in somebody else's hands.
    #[must_use]
    pub fn inside(&self) -> Inside {
        Inside(if self.parent.is_some() { self.directories.clone() } else { Vec::new() })
    }

    /// SIGTERM to every process in it and below, SIGKILL to what is left after `grace`; zero kills at once. Returns before that:
    /// that its processes are gone is the engine's to tell.
    pub fn stop(&self, grace: Duration) {
        self.tell(&Request::Stop { id: self.id, grace_ms: millis(grace) });
    }

    /// The lease was renewed: the supervisor lets it go on for another `lease` from when this arrives there.
    pub fn renew(&self, lease: Duration) {
        self.tell(&Request::Renew { id: self.id, lease_ms: millis(lease) });
    }

    /// What it was for is over, with this status. What is still in it is killed; it is removed, and what was used is told.
    ///
    /// Cancel safe in that it is released in any case.
    ///
    /// # Errors
    /// When the supervisor is gone.
    pub async fn release(mut self, status: ExitStatus) -> Result<ExitReport, SupervisorLost> {
        let Some(exited) = self.exited.take() else { return Err(SupervisorLost) };
        self.tell(&Request::Release { id: self.id, status });
        exited.await.map_err(|_| SupervisorLost)
    }

    /// Completes when the supervisor is gone, and what was in this cgroup was killed.
    pub async fn supervisor_lost(&self) {
        self.link.lost().await;
    }

    fn tell(&self, request: &Request) {
        // It can fail only when the supervisor is gone (release() says so) or without memory for a few bytes.
        let _ = self.link.send(request, Vec::new());
    }
}

/// The directories of a held cgroup.
#[derive(Debug, Clone, Default)]
pub struct Inside(Vec<PathBuf>);

impl Inside {
    /// See [`Held::contains`].
    #[must_use]
    pub fn contains(&self, container: &str) -> bool {
        self.0.iter().any(|dir| dir.join(container).is_dir())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.exited.is_some() {
            self.stop(Duration::ZERO);
            self.tell(&Request::Release { id: self.id, status: ExitStatus::Signal(libc::SIGKILL) });
        }
    }
}
