//! Services that run, from the first container to the removal of the last.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::body::{self, Place};
use super::hold::Hold;
use super::made::Made;
use super::probe::{self, Look};
use super::{Asked, Request, interrupted, last_words, of_engine, unhealthy};
use crate::execute::docker::container::GONE;
use crate::execute::docker::engine::{Engine, EngineError};
use crate::execute::docker::labels::Role;
use crate::execute::docker::removal::{Kind, Removal};
use crate::execute::docker::{Ready, Refusal, mounts, network, refusal};
use crate::plan::Service;
use crate::task::{HealthCheck, Reason, Tenant};
use crate::telemetry::{metrics, spawn_blocking};

/// How a container ended: its status, or why that is not known.
type End = Result<i32, EngineError>;

/// Services that are ready. Dropped, they are removed in the background; better [`Running::stop`] them.
#[derive(Debug)]
pub struct Running {
    there: Option<There>,
    watched: JoinSet<(usize, End)>,
    /// The one that was seen to end first.
    fallen: Option<(usize, End)>,
}

/// What has to be removed.
#[derive(Debug)]
struct There {
    engine: Engine,
    tenant: Tenant,
    /// Its name, which is known before its id.
    network: String,
    /// The engine did not answer when it was told to make it.
    unanswered: bool,
    containers: Vec<Container>,
}

#[derive(Debug)]
struct Container {
    /// The service.
    service: String,
    /// Likewise.
    name: String,
    unanswered: bool,
    hold: Hold,
    started: bool,
    /// Not removed to make room as long as the container is there.
    _image: Ready,
}

/// Starts everything; what was started is removed when not everything can be.
pub(super) async fn bring_up(request: Request, stop: &CancellationToken) -> Result<Running, Refusal> {
    let engine = request.engine.on_behalf_of(&request.tenant);
    let network = request.owner.fresh_name();
    let there = There { engine, tenant: request.tenant.clone(), network, unanswered: false, containers: Vec::new() };
    let mut running = Running { there: Some(there), watched: JoinSet::new(), fallen: None };
    match running.begin(&request, stop).await {
        Ok(()) => Ok(running),
        Err(error) => {
            running.stop().await;
            Err(error)
        }
    }
}

impl Running {
    /// Name of the network that the task is to be in.
    #[must_use]
    pub fn network(&self) -> &str {
        self.there.as_ref().map_or("none", |there| &there.network)
    }

    async fn begin(&mut self, request: &Request, stop: &CancellationToken) -> Result<(), Refusal> {
        let Some(there) = &mut self.there else { return Ok(()) };
        let labels = body::labels(request, Role::Network, None);
        let made = network::create(&there.engine, &there.network, labels, request.way_out).await;
        there.unanswered = is_unanswered(&made);
        made.map_err(|error| no_network(&error))?;
        for asked in &request.services {
            if stop.is_cancelled() {
                return Err(interrupted());
            }
            self.add(request, asked).await?;
            if let Some(check) = &asked.service.health {
                self.until_ready(&asked.service, check, stop).await?;
            }
        }
        Ok(())
    }

    /// Creates and starts one.
    async fn add(&mut self, request: &Request, asked: &Asked) -> Result<(), Refusal> {
        let Some(there) = &mut self.there else { return Ok(()) };
        let service = &asked.service;
        let mounts = service.mounts.clone();
        // Following links may take as long as the disk does.
        let resolved = spawn_blocking(move || mounts::resolve(&mounts)).await;
        let resolved = resolved.unwrap_or_else(|error| Err(Refusal::isolation(error.to_string())));
        let named = |refusal: Refusal| Refusal { error: format!("service {}: {}", service.name, refusal.error), ..refusal };
        let binds = resolved.map_err(named)?;
        let hold = Hold::take(request, asked).await?;
        let body = body::body(request, asked, Place { network: &there.network, cgroup_parent: hold.parent(), binds });
        let name = request.owner.fresh_name();
        let refused = |error: EngineError| of_engine("it cannot be started", &error);
        // Before it is there: an answer that is lost leaves a container.
        let image = asked.image.clone();
        let (service_name, own_name) = (service.name.clone(), name.clone());
        there.containers.push(Container { service: service_name, name: own_name, unanswered: false, hold, started: false, _image: image });
        let asked_of = body.host_config.clone().unwrap_or_default();
        let created = there.engine.create(&name, body).await;
        if let Some(last) = there.containers.last_mut() {
            last.unanswered = is_unanswered(&created);
        }
        let (id, warnings) = created.map_err(refused).map_err(named)?;
        let made = Made { id, warnings, asked: asked_of, limits: body::limits(request, asked) };
        let hold = there.containers.last().map(|container| &container.hold);
        made.start(&there.engine, hold, &request.cgroups, refused).await.map_err(named)?;
        metrics::note(|m| m.service_started(&there.tenant));
        if let Some(last) = there.containers.last_mut() {
            last.started = true;
        }
        let (at, engine) = (there.containers.len() - 1, there.engine.clone());
        self.watched.spawn(async move { (at, end_of(&engine, &name).await) });
        Ok(())
    }

    async fn until_ready(&mut self, service: &Service, check: &HealthCheck, stop: &CancellationToken) -> Result<(), Refusal> {
        let Some((engine, container)) = self.newest() else { return Ok(()) };
        let interval = Duration::from_secs_f64(check.interval_s);
        let mut last = String::new();
        for _ in 0..check.retries {
            // Dropping a look leaves a process in a container that is about to be removed.
            let looked = tokio::select! {
                looked = probe::look(&engine, &container, check) => looked,
                error = self.failed() => return Err(error),
                () = stop.cancelled() => return Err(interrupted()),
            };
            match looked {
                Ok(Look::Ready) => return Ok(()),
                Ok(Look::NotReady(why)) => last = why,
                Err(error) => return Err(of_engine(&format!("service {}", service.name), &error)),
            }
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                error = self.failed() => return Err(error),
                () = stop.cancelled() => return Err(interrupted()),
            }
        }
        let words = last_words::sentence(&last_words::of(&engine, &container).await);
        let looks = check.retries;
        Err(unhealthy(format!("service {} did not become ready in {looks} looks: {last}; {words}", service.name)))
    }

    fn newest(&self) -> Option<(Engine, String)> {
        let there = self.there.as_ref()?;
        Some((there.engine.clone(), there.containers.last()?.name.clone()))
    }

    /// Completes when a service has ended, which none may while the task runs. Cancel safe.
    pub async fn failed(&mut self) -> Refusal {
        if self.fallen.is_none() {
            self.fallen = match self.watched.join_next().await {
                Some(Ok(fallen)) => Some(fallen),
                Some(Err(_)) | None => std::future::pending().await,
            };
        }
        let (Some((at, end)), Some(there)) = (&self.fallen, &self.there) else { return std::future::pending().await };
        let Some(container) = there.containers.get(*at) else { return std::future::pending().await };
        there.told_end(container, end).await
    }

    /// Removes containers and network; the task's container must be gone from it. To be waited for: completes when they are gone,
    /// or when that takes so long that it must not be waited for.
    pub async fn stop(mut self) {
        self.watched.abort_all();
        if let Some(there) = self.there.take() {
            let _ = timeout(GONE, tokio::spawn(there.remove())).await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let (Some(there), Ok(runtime)) = (self.there.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(there.remove());
        }
    }
}

impl There {
    async fn told_end(&self, container: &Container, end: &End) -> Refusal {
        let service = &container.service;
        match end {
            Err(error) if !error.is_not_found() => of_engine(&format!("service {service} is out of sight"), error),
            Err(_) => unhealthy(format!("service {service} is gone: its container was removed")),
            Ok(status) => {
                let words = last_words::of(&self.engine, &container.name).await;
                if let Some(refusal) = refusal::of_init(*status, &words) {
                    return Refusal { error: format!("service {service}: {}", refusal.error), ..refusal };
                }
                let words = last_words::sentence(&words);
                unhealthy(format!("service {service} ended with {status} before the task did; {words}"))
            }
        }
    }

    /// The last first, as nobody depends on it. Completes when all is gone, whenever the engine lets it.
    async fn remove(self) {
        let Self { engine, tenant, network, unanswered, containers } = self;
        for Container { name, unanswered, hold, started, .. } in containers.into_iter().rev() {
            let removal = Removal::of(&engine, Kind::Container, &name, unanswered);
            if unanswered {
                // It never ran; the others need not wait until that is certain.
                tokio::spawn(removal.insist());
            } else {
                removal.insist().await;
            }
            hold.release().await;
            if started {
                metrics::note(|m| m.service_stopped(&tenant));
            }
        }
        Removal::of(&engine, Kind::Network, &network, unanswered).insist().await;
    }
}

/// Whether the engine may still make what it was told to make.
fn is_unanswered<T>(made: &Result<T, EngineError>) -> bool {
    matches!(made, Err(EngineError::Unavailable { .. }))
}

/// Removes one, running or not, with its anonymous volumes; done when it is not there.
pub(in crate::execute::docker) async fn remove_container(engine: &Engine, name: &str) -> Result<(), EngineError> {
    const TRIES: u32 = 25;
    let mut tries = 1;
    loop {
        match engine.remove(name).await {
            Ok(()) => return Ok(()),
            Err(error) if tries < TRIES && error.is_transient() => tries += 1,
            Err(error) => return Err(error),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Whatever the engine says: the task has no part in it.
fn no_network(error: &EngineError) -> Refusal {
    Refusal {
        reason: Reason::DockerUnavailable,
        error: format!("cannot make the network of the services: {error}"),
        hint: "look at the container engine: it may have no address pool left for one more network (default-address-pools)".to_owned(),
    }
}

/// Waits for the end of a container that was started.
async fn end_of(engine: &Engine, name: &str) -> End {
    engine.over(name).await?;
    match engine.ended(name).await? {
        Some(ended) => Ok(ended.code),
        None => Err(engine.unavailable("wait for a container", "it is said to run after its end".to_owned())),
    }
}
