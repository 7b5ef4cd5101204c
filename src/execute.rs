//! Stage 5, execute: from a plan to an exit.
//!
//! Each backend is a module of its own. What they share is the [`Process`], whatever it is, and the end it reports: a status,
//! what was used, and whether the platform or the task is to blame.

use std::time::Duration;

use crate::supervisor::protocol::ExitReport;

pub mod docker;
pub mod gpu;
pub mod native;

/// The supervisor is gone, and with it every task of the worker.
pub use native::SupervisorLost;

/// A running task.
#[derive(Debug)]
pub enum Process {
    /// A process of this machine.
    Native(native::Process),
    /// A container.
    Container(docker::Container),
}

/// How it ended.
#[derive(Debug)]
pub struct Exit {
    /// Status, and what was used.
    pub report: ExitReport,
    /// Why it cannot be taken for a whole run, whatever its status: the engine that ran it went away, or its output broke off.
    pub broken: Option<String>,
}

impl Process {
    /// SIGTERM to every process of the task, SIGKILL to what is left after `grace`; zero kills at once.
    /// Returns before that: [`Process::wait`] tells the end.
    pub fn stop(&self, grace: Duration) {
        match self {
            Self::Native(process) => process.stop(grace),
            Self::Container(container) => container.stop(grace),
        }
    }

    /// The lease was renewed.
    pub fn renew(&self, lease: Duration) {
        match self {
            Self::Native(process) => process.renew(lease),
            Self::Container(container) => container.renew(lease),
        }
    }

    /// The end of all of it. Cancel safe.
    ///
    /// # Errors
    /// When the supervisor is gone, and on every call after the first that returned.
    pub async fn wait(&mut self) -> Result<Exit, SupervisorLost> {
        match self {
            Self::Native(process) => Ok(Exit { report: process.wait().await?, broken: None }),
            Self::Container(container) => container.wait().await,
        }
    }

    /// After its end: completes when nothing is left of it that its directory must be kept for.
    pub async fn gone(&mut self) {
        match self {
            // The supervisor tells of the end when nothing is left.
            Self::Native(_) => {}
            Self::Container(container) => container.gone().await,
        }
    }
}
