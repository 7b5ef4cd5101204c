//! Services that run, from the first container to the removal of the last.

use std::time::Duration;

use bollard::errors::Error;
use bollard::query_parameters::{
    CreateContainerOptions, RemoveContainerOptionsBuilder, StartContainerOptions, WaitContainerOptionsBuilder,
};
use futures_util::StreamExt as _;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::body::{self, Place};
use super::hold::Hold;
use super::probe::{self, Look};
use super::{Request, ServiceError, last_words, sources};
use crate::execute::docker::engine::{Engine, EngineError};
use crate::execute::docker::network;
use crate::plan::Service;
use crate::task::{HealthCheck, Tenant};
use crate::telemetry::{causes, metrics};

/// How a container ended: its status, or why that is not known.
type End = Result<i64, EngineError>;

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
    containers: Vec<Container>,
}

#[derive(Debug)]
struct Container {
    /// The service.
    service: String,
    /// Likewise.
    name: String,
    hold: Hold,
    started: bool,
}

/// Starts everything; what was started is removed when not everything can be.
pub(super) async fn bring_up(request: Request, stop: &CancellationToken) -> Result<Running, ServiceError> {
    let engine = request.engine.on_behalf_of(&request.tenant);
    let network = name(&request);
    let there = There { engine, tenant: request.tenant.clone(), network, containers: Vec::new() };
    let mut running = Running { there: Some(there), watched: JoinSet::new(), fallen: None };
    match running.begin(&request, stop).await {
        Ok(()) => Ok(running),
        Err(error) => {
            running.stop().await;
            Err(error)
        }
    }
}

fn name(request: &Request) -> String {
    // The end of it is random, its beginning a time.
    let unique = uuid::Uuid::now_v7().simple().to_string();
    format!("{}{}", request.name_prefix, &unique[20..])
}

impl Running {
    /// Name of the network that the task is to be in.
    #[must_use]
    pub fn network(&self) -> &str {
        self.there.as_ref().map_or("none", |there| &there.network)
    }

    async fn begin(&mut self, request: &Request, stop: &CancellationToken) -> Result<(), ServiceError> {
        let Some(there) = &self.there else { return Ok(()) };
        let labels = body::labels(&request.labels, "network", None);
        network::create(&there.engine, &there.network, labels, request.way_out)
            .await
            .map_err(|error| ServiceError::of_engine("cannot make the network of the services", &error))?;
        for (service, image) in request.services.iter().zip(&request.images) {
            if stop.is_cancelled() {
                return Err(ServiceError::interrupted());
            }
            self.add(request, service, image).await?;
            if let Some(check) = &service.health {
                self.until_ready(service, check, stop).await?;
            }
        }
        Ok(())
    }

    /// Creates and starts one.
    async fn add(&mut self, request: &Request, service: &Service, image: &str) -> Result<(), ServiceError> {
        let Some(there) = &mut self.there else { return Ok(()) };
        let sources = sources::resolve(service).await?;
        let hold = Hold::take(request, service).await?;
        let place = Place { network: &there.network, image, cgroup_parent: hold.parent(), sources: &sources };
        let body = body::body(request, service, &place);
        let name = name(request);
        let refused = |error: EngineError| ServiceError::of_engine(&format!("service {} cannot be started", service.name), &error);
        // Before it is there: an answer that is lost leaves a container.
        there.containers.push(Container { service: service.name.clone(), name: name.clone(), hold, started: false });
        let options = CreateContainerOptions { name: Some(name.clone()), ..CreateContainerOptions::default() };
        let api = there.engine.api();
        there.engine.ask("create", api.create_container(Some(options), body)).await.map_err(refused)?;
        there.engine.ask("start", api.start_container(&name, None::<StartContainerOptions>)).await.map_err(refused)?;
        metrics::note(|m| m.service_started(&there.tenant));
        if let Some(last) = there.containers.last_mut() {
            last.started = true;
        }
        let (at, engine) = (there.containers.len() - 1, there.engine.clone());
        self.watched.spawn(async move { (at, end_of(&engine, &name).await) });
        Ok(())
    }

    async fn until_ready(&mut self, service: &Service, check: &HealthCheck, stop: &CancellationToken) -> Result<(), ServiceError> {
        let Some((engine, container)) = self.newest() else { return Ok(()) };
        let interval = Duration::from_secs_f64(check.interval_s);
        let mut last = String::new();
        for _ in 0..check.retries {
            // Dropping a look leaves a process in a container that is about to be removed.
            let looked = tokio::select! {
                looked = probe::look(&engine, &container, check) => looked,
                error = self.failed() => return Err(error),
                () = stop.cancelled() => return Err(ServiceError::interrupted()),
            };
            match looked {
                Ok(Look::Ready) => return Ok(()),
                Ok(Look::NotReady(why)) => last = why,
                Err(error) => return Err(ServiceError::of_engine(&format!("service {}", service.name), &error)),
            }
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                error = self.failed() => return Err(error),
                () = stop.cancelled() => return Err(ServiceError::interrupted()),
            }
        }
        let words = last_words::sentence(&last_words::of(&engine, &container).await);
        let looks = check.retries;
        Err(ServiceError::unhealthy(format!("service {} did not become ready in {looks} looks: {last}; {words}", service.name)))
    }

    fn newest(&self) -> Option<(Engine, String)> {
        let there = self.there.as_ref()?;
        Some((there.engine.clone(), there.containers.last()?.name.clone()))
    }

    /// Completes when a service has ended, which none may while the task runs. Cancel safe.
    pub async fn failed(&mut self) -> ServiceError {
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

    /// The leases of its cgroups hold for so long from now.
    pub fn renew(&self, lease: Duration) {
        self.there.iter().flat_map(|there| &there.containers).for_each(|container| container.hold.renew(lease));
    }

    /// Removes containers and network; the task's container must be gone from it. To be waited for.
    pub async fn stop(mut self) {
        self.watched.abort_all();
        if let Some(there) = self.there.take() {
            there.remove().await;
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
    async fn told_end(&self, container: &Container, end: &End) -> ServiceError {
        let service = &container.service;
        match end {
            Err(error) if !error.is_not_found() => ServiceError::of_engine(&format!("service {service} is out of sight"), error),
            Err(_) => ServiceError::unhealthy(format!("service {service} is gone: its container was removed")),
            Ok(status) => {
                let words = last_words::sentence(&last_words::of(&self.engine, &container.name).await);
                ServiceError::unhealthy(format!("service {service} ended with {status} before the task did; {words}"))
            }
        }
    }

    /// The last first, as nobody depends on it.
    async fn remove(self) {
        let Self { engine, tenant, network, containers } = self;
        for Container { service, name, hold, started } in containers.into_iter().rev() {
            if let Err(error) = remove_container(&engine, &name).await {
                tracing::warn!(service, container = name, error = %causes(&error), "a service's container cannot be removed; it is tried again when this worker has ended");
            }
            hold.release().await;
            if started {
                metrics::note(|m| m.service_stopped(&tenant));
            }
        }
        if let Err(error) = network::remove(&engine, &network).await {
            tracing::warn!(network, error = %causes(&error), "the network of services cannot be removed; it is tried again when this worker has ended");
        }
    }
}

/// Removes one, running or not, with its anonymous volumes; done when it is not there.
pub(in crate::execute::docker) async fn remove_container(engine: &Engine, name: &str) -> Result<(), EngineError> {
    const TRIES: u32 = 25;
    let mut tries = 1;
    loop {
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        match engine.ask("remove", engine.api().remove_container(name, Some(options))).await {
            Ok(()) => return Ok(()),
            Err(error) if error.is_not_found() => return Ok(()),
            // A conflict is a removal that is under way.
            Err(error) if tries < TRIES && (error.is_transient() || error.is_conflict()) => tries += 1,
            Err(error) => return Err(error),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Waits for the end of a container that was started.
async fn end_of(engine: &Engine, name: &str) -> End {
    let options = WaitContainerOptionsBuilder::default().condition("not-running").build();
    let mut answers = std::pin::pin!(engine.api().wait_container(name, Some(options)));
    match answers.next().await {
        Some(Ok(answer)) => Ok(answer.status_code),
        Some(Err(Error::DockerContainerWaitError { code, .. })) => Ok(code),
        Some(Err(error)) => Err(engine.told("wait", error)),
        None => Err(engine.told("wait", Error::IOError { err: std::io::ErrorKind::UnexpectedEof.into() })),
    }
}
