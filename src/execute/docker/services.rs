//! The services of a task: containers beside it, in a network of their own, for as long as it runs.
//!
//! ```text
//! start: network ─▶ for each service in order: hold ─▶ create ─▶ start ─▶ ready (probe) ─▶ Running
//! Running: failed() when one of them ends · renew() its leases · stop(): containers, then the network, are removed
//! ```
//! Whatever happens they go with the task: a start that nobody waits for any more is undone, a [`Running`] that is dropped
//! is removed in the background, and what a dead worker left is found by its labels. A service that is not ready in time, or
//! ends while the task needs it, is the end of the attempt: `service_unhealthy`, with what the service wrote last.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

mod body;
mod hold;
pub(super) mod last_words;
pub(super) mod probe;
mod running;
mod sources;

pub(super) use body::bounded_log;
pub use running::Running;
pub(super) use running::remove_container;

use super::engine::{Engine, EngineError};
use crate::execute::native::Supervisor;
use crate::plan;
use crate::task::{ByteSize, Reason, Tenant};

/// Why a task has no services, or has them no longer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceError {
    /// Typed.
    pub reason: Reason,
    /// Which service, what happened, its last words.
    pub error: String,
    /// What to do.
    pub hint: String,
}

/// What services are started from.
#[derive(Debug, Clone)]
pub struct Request {
    /// The engine.
    pub engine: Engine,
    /// Whose task needs them.
    pub tenant: Tenant,
    /// What all containers and networks of this attempt are labelled with, but for their role.
    pub labels: HashMap<String, String>,
    /// What the names of containers and networks of this worker begin with.
    pub name_prefix: String,
    /// The services, each after those that it depends on.
    pub services: Vec<plan::Service>,
    /// Ids of their images, in the same order.
    pub images: Vec<String>,
    /// `uid:gid` of the tenant, where tenants have users of their own.
    pub user: Option<String>,
    /// They, and the task, reach more than each other.
    pub way_out: bool,
    /// Size of each one's `/tmp`.
    pub tmp: ByteSize,
    /// Who holds their cgroups, where the engine puts containers into given ones.
    pub supervisor: Option<Supervisor>,
    /// Name of the attempt, for the cgroups.
    pub attempt: String,
    /// Until when they may run without [`Running::renew`]; none: for ever.
    pub lease: Option<Duration>,
}

/// Starts the services and waits until all are ready. Dropped before that, it undoes what was done, in the background: no
/// request to the engine is broken off, for the engine would carry it out all the same.
///
/// # Errors
/// When one cannot be started or does not become ready; nothing is left of them then.
pub async fn start(request: Request) -> Result<Running, ServiceError> {
    let stop = CancellationToken::new();
    let _stop_when_dropped = stop.clone().drop_guard();
    let (to, from) = oneshot::channel();
    tokio::spawn(async move {
        let started = running::bring_up(request, &stop).await;
        if let Err(Ok(unwanted)) = to.send(started) {
            unwanted.stop().await;
        }
    });
    from.await.unwrap_or_else(|_| {
        Err(ServiceError {
            reason: Reason::Internal,
            error: "the start of the services broke off".to_owned(),
            hint: "this is a defect of Windlass; look at the worker's log".to_owned(),
        })
    })
}

impl ServiceError {
    /// The engine's doing.
    fn of_engine(what: &str, error: &EngineError) -> Self {
        let (reason, hint) = match error {
            EngineError::Refused { status: 404, message, .. } if message.contains("o such image") => {
                (Reason::ImageNotFound, "the image was removed from the engine in between; submit the task again")
            }
            EngineError::Refused { status: 400..=499, .. } => {
                (Reason::SpawnFailed, "look at entrypoint, command, user and mounts of the service: the engine does not start it like this")
            }
            EngineError::Unavailable { .. } | EngineError::Refused { .. } | EngineError::Unfit(_) => {
                (Reason::DockerUnavailable, "look at the container engine of the worker's machine; another attempt follows")
            }
        };
        Self { reason, error: format!("{what}: {error}"), hint: hint.to_owned() }
    }

    fn unhealthy(error: String) -> Self {
        let hint = "look at the service's image, command, env and health check; give it more time with health.retries".to_owned();
        Self { reason: Reason::ServiceUnhealthy, error, hint }
    }

    fn interrupted() -> Self {
        Self { reason: Reason::Canceled, error: "nobody waits for the services any more".to_owned(), hint: String::new() }
    }
}
