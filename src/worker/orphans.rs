//! What workers leave at the container engine: that of the dead is removed at this worker's start and each minute, its own at its end.
//!
//! Between a worker's death and the next start its supervisor does the same (`windlass reap-containers`). What is removed here is
//! only what that one could not: it died too, or the engine was away.

use std::time::Duration;

use super::Shared;
use crate::execute::docker::EngineError;
use crate::execute::docker::containers::Standing;
use crate::execute::docker::reap::{Reaped, Which, reap};
use crate::telemetry::causes;

/// What waits behind it is more urgent than a container of the dead: their terminal events, and this worker's end.
const PATIENCE: Duration = Duration::from_secs(10);

impl Shared {
    /// Before the first container or network of this worker is made.
    pub(crate) fn guard_containers(&self) {
        self.supervisor.guard_containers(&self.config.docker.host, Duration::from_secs_f64(self.config.docker.request_timeout_s));
    }
}

/// Removes what dead instances left at the engine.
pub(super) async fn reap_dead(shared: &Shared) {
    if shared.containers.standing() == Standing::Off {
        return;
    }
    match look(shared, Which::Dead).await {
        Some(Ok(reaped)) if reaped.is_nothing() => {}
        Some(Ok(Reaped { containers, networks })) => {
            tracing::info!(containers = containers.len(), networks, "removed what dead instances left at the engine")
        }
        // That it is away is said elsewhere, once.
        Some(Err(EngineError::Unavailable { .. })) => {}
        Some(Err(error)) => tracing::warn!(error = %causes(&error), "cannot remove what dead instances left at the engine"),
        None => tracing::warn!("the engine is slow to remove what dead instances left; the next look goes on"),
    }
}

/// At the worker's end, when its tasks are over: what is still there, because the engine did not answer when it was to go.
pub(super) async fn leave_nothing(shared: &Shared) {
    if !shared.supervisor.guards_containers() {
        return;
    }
    match look(shared, Which::Instance(&shared.instance.info.instance)).await {
        Some(Ok(reaped)) if reaped.is_nothing() => {}
        Some(Ok(Reaped { containers, networks })) => {
            tracing::info!(containers = containers.len(), networks, "removed what this worker had at the engine")
        }
        failed => {
            let error = failed.and_then(Result::err).map_or_else(|| "it is slow".to_owned(), |error| causes(&error).to_string());
            tracing::warn!(error, "containers of this worker may be left at the engine; the next start of a worker removes them");
        }
    }
    // Whatever came of it: the supervisor would only try the same, and this worker could not end before that.
    shared.supervisor.containers_gone();
}

/// `None`: not in time.
async fn look(shared: &Shared, which: Which<'_>) -> Option<Result<Reaped, EngineError>> {
    let looking = async { reap(&shared.containers.engine().await?, which).await };
    tokio::time::timeout(PATIENCE, looking).await.ok()
}
