//! The cgroup of a service: one of its own that the supervisor holds, so that it ends with the worker and keeps its limits.

use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{Asked, Request, body};
use crate::execute::docker::Refusal;
use crate::execute::native::{Held, Holding, Inside, SpawnFailure};
use crate::supervisor::protocol::ExitStatus;
use crate::task::Reason;

/// A cgroup that is held, or none where the engine puts containers where it likes: then its own limits hold. Its lease is
/// renewed with the attempt's. Dropped, it is released.
#[derive(Debug)]
pub(super) struct Hold {
    parent: Option<String>,
    inside: Inside,
    kept: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Hold {
    pub(super) async fn take(request: &Request, asked: &Asked) -> Result<Self, Refusal> {
        let service = &asked.service.name;
        let Some(supervisor) = &request.supervisor else {
            return Ok(Self { parent: None, inside: Inside::default(), kept: None });
        };
        let lease = request.lease.as_ref().map(|lease| lease.borrow().saturating_duration_since(Instant::now()));
        let cgroup = format!("{}.{service}", request.attempt);
        let holding =
            Holding { cgroup, limits: body::limits(request, asked), directory: request.directory.clone(), lease, elsewhere: false };
        match supervisor.hold(holding).await {
            Ok(held) => {
                let parent = held.parent().map(str::to_owned);
                let inside = held.inside();
                let (release, released) = oneshot::channel();
                Ok(Self { parent, inside, kept: Some((release, tokio::spawn(keep(held, request.lease.clone(), released)))) })
            }
            Err(SpawnFailure::Refused(error)) => Err(Refusal::isolation(format!("service {service}: {error}"))),
            Err(SpawnFailure::SupervisorLost) => Err(Refusal {
                reason: Reason::WorkerLost,
                error: format!("service {service}: the worker lost its supervisor"),
                hint: "look at the worker's log; another attempt follows".to_owned(),
            }),
        }
    }

    /// As the engine wants it.
    pub(super) fn parent(&self) -> Option<&str> {
        self.parent.as_deref()
    }

    /// The service's container runs below it. See [`Held::contains`].
    pub(super) fn contains(&self, container: &str) -> bool {
        self.inside.contains(container)
    }

    /// The container is gone: so is its cgroup.
    pub(super) async fn release(self) {
        if let Some((release, kept)) = self.kept {
            // Without a supervisor nobody hears it, and there is no cgroup either.
            let _ = release.send(());
            let _ = kept.await;
        }
    }
}

/// Renews it with the attempt's lease, until it is released.
async fn keep(held: Held, mut lease: Option<watch::Receiver<Instant>>, mut released: oneshot::Receiver<()>) {
    loop {
        let renewed = async {
            match &mut lease {
                Some(lease) => lease.changed().await.is_ok(),
                None => std::future::pending().await,
            }
        };
        // Both arms are cancel safe.
        tokio::select! {
            _ = &mut released => break,
            renewed = renewed => match lease.take() {
                Some(mut until) if renewed => {
                    held.renew(until.borrow_and_update().saturating_duration_since(Instant::now()));
                    lease = Some(until);
                }
                // The attempt is over.
                Some(_) | None => {}
            },
        }
    }
    // Without a supervisor there is no cgroup either.
    let _ = held.release(ExitStatus::Code(0)).await;
}
