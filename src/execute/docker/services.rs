//! The services of a task: containers beside it, in a network of their own, for as long as it runs.
//!
//! ```text
//! start: network ─▶ for each service in order: hold ─▶ create ─▶ start ─▶ ready (probe) ─▶ Running
//! Running: failed() when one of them ends · stop(): containers, then the network, are removed
//! ```
//! Whatever happens they go with the task: a start that nobody waits for any more is undone, a [`Running`] that is dropped
//! is removed in the background, and what a dead worker left is found by its labels. A service that is not ready in time, or
//! ends while the task needs it, is the end of the attempt: `service_unhealthy`, with what the service wrote last.

use std::path::PathBuf;

use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

mod body;
mod hold;
pub(super) mod last_words;
mod made;
pub(super) mod probe;
mod running;

pub(super) use body::bounded_log;
pub use running::Running;
pub(super) use running::remove_container;

use super::engine::{Engine, EngineError};
use super::labels::Owner;
use super::refusal;
use super::{Ready, Refusal};
use crate::execute::native::Supervisor;
use crate::plan;
use crate::task::{ByteSize, Reason, TaskId, Tenant};

/// A service that was asked for.
#[derive(Debug, Clone)]
pub struct Asked {
    /// What it is.
    pub service: plan::Service,
    /// Its image, which stays for as long as the service does.
    pub image: Ready,
    /// Who it runs as; the image's own unless given.
    pub user: Option<String>,
}

/// What services are started from.
#[derive(Debug, Clone)]
pub struct Request {
    /// The engine.
    pub engine: Engine,
    /// Whose task needs them.
    pub tenant: Tenant,
    /// The worker that they belong to.
    pub owner: Owner,
    /// The task, and its attempt.
    pub task: (TaskId, u32),
    /// The services, each after those that it depends on.
    pub services: Vec<Asked>,
    /// They, and the task, reach more than each other.
    pub way_out: bool,
    /// Size of each one's `/tmp`.
    pub tmp: ByteSize,
    /// Who holds their cgroups, where the engine puts containers into given ones.
    pub supervisor: Option<Supervisor>,
    /// Name of the attempt, for the cgroups.
    pub attempt: String,
    /// Directory of the attempt.
    pub directory: PathBuf,
    /// Where cgroups are mounted.
    pub cgroups: PathBuf,
    /// Whether limits are promised.
    pub enforced: bool,
    /// Until when they may run, as the attempt may; none: for ever.
    pub lease: Option<watch::Receiver<Instant>>,
}

/// Starts the services and waits until all are ready, or until `stop`: then it ends when all is undone. Dropped, it undoes what
/// was done in the background. No request to the engine is broken off, for the engine would carry it out all the same.
///
/// # Errors
/// When one cannot be started or does not become ready; nothing is left of them then.
pub async fn start(request: Request, stop: &CancellationToken) -> Result<Running, Refusal> {
    let stop = stop.child_token();
    let _stop_when_dropped = stop.clone().drop_guard();
    let (to, from) = oneshot::channel();
    tokio::spawn(async move {
        let started = running::bring_up(request, &stop).await;
        if let Err(Ok(unwanted)) = to.send(started) {
            unwanted.stop().await;
        }
    });
    from.await.unwrap_or_else(|_| {
        Err(Refusal {
            reason: Reason::Internal,
            error: "the start of the services broke off".to_owned(),
            hint: "this is a defect of Windlass; look at the worker's log".to_owned(),
        })
    })
}

/// The engine did not do something for a service.
fn of_engine(what: &str, error: &EngineError) -> Refusal {
    let Refusal { reason, error, hint } = refusal::of_start(error);
    Refusal { reason, error: format!("{what}: {error}"), hint }
}

/// A service that did not become ready, or did not stay so.
#[must_use]
pub fn unhealthy(error: String) -> Refusal {
    let hint = "look at the service's image, command, env and health check; health.retries gives it more time".to_owned();
    Refusal { reason: Reason::ServiceUnhealthy, error, hint }
}

fn interrupted() -> Refusal {
    Refusal { reason: Reason::Canceled, error: "nobody waits for the services any more".to_owned(), hint: String::new() }
}
