//! What a container needs of its engine before it is made: images, and the services beside it.

use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret as _;
use tokio::sync::watch;

use super::super::signals::interrupted;
use super::super::story::Story;
use super::{Ended, Run};
use crate::bus::chain::{Appended, ChainWriter};
use crate::execute::docker::labels::{Role, Work};
use crate::execute::docker::{Credentials, Engine, Identity, PullProgress, Ready, Refusal, labels, services};
use crate::plan::{self, ContainerUser};
use crate::prepare::Facts;
use crate::task::event::{Event, EventKind, Progress};
use crate::task::{ImageRef, PullPolicy, Reason};
use crate::telemetry::causes;

/// What a container finds.
pub(super) struct Provided {
    /// Its image.
    pub(super) image: Ready,
    /// The services beside it; none unless asked for.
    pub(super) services: Option<services::Running>,
    /// The images of those, held as long as its own.
    pub(super) others: Vec<Ready>,
}

impl Run<'_> {
    /// Images and services.
    pub(super) async fn provide(
        &mut self,
        engine: &Engine,
        container: &plan::Container,
        facts: &Facts<'_>,
        writer: &mut ChainWriter,
    ) -> Result<Provided, Box<Ended>> {
        let credentials = credentials(container, facts).map_err(|refusal| self.refuse(refusal))?;
        let image = self.image(engine, (&container.image, container.pull.value), credentials.as_ref(), writer).await?;
        self.run.image_digest = Some(image.digest.clone().unwrap_or_else(|| image.id.clone()));
        let mut others = Vec::new();
        for service in &container.services {
            others.push(self.image(engine, (&service.image, service.pull), credentials.as_ref(), writer).await?);
        }
        let services = if others.is_empty() { None } else { Some(self.services(engine, container, &others).await?) };
        Ok(Provided { image, services, others })
    }

    /// Makes sure that the engine has an image, and tells how far that is.
    async fn image(
        &mut self,
        engine: &Engine,
        (image, pull): (&ImageRef, PullPolicy),
        credentials: Option<&Credentials>,
        writer: &mut ChainWriter,
    ) -> Result<Ready, Box<Ended>> {
        let (tell, told) = watch::channel(None);
        let progress = move |progress: PullProgress| drop(tell.send_replace(Some(progress)));
        let interval = Duration::from_millis(self.shared.config.events.progress_interval_ms);
        let mut interrupt = self.signals.interrupt.clone();
        let containers = Arc::clone(&self.shared.containers);
        let ready = tokio::select! {
            // All arms are cancel safe: a pull that nobody waits for is stopped, and a progress append that is dropped is
            // settled by the writer's next one.
            ready = containers.images().ensure(engine, image, pull, credentials, &progress) => ready,
            () = tell_progress(told, interval, self.story, writer) => return Err(Box::new(Ended::Lost)),
            why = interrupted(&mut interrupt) => return Err(self.stopped_early(why)),
            () = self.deadline() => return Err(self.too_late()),
        };
        ready.map_err(|error| self.refuse(Refusal { reason: error.reason, error: error.error, hint: error.hint }))
    }

    /// Starts the services and waits until they are ready.
    async fn services(&mut self, engine: &Engine, container: &plan::Container, images: &[Ready]) -> Result<services::Running, Box<Ended>> {
        let holds = self.shared.containers.can_hold(engine);
        let mut labels = self.owner().labels(Role::Service, self.work());
        labels.remove(labels::ROLE);
        let tenant = self.identity_of(&ContainerUser::Tenant);
        let request = services::Request {
            engine: engine.clone(),
            tenant: self.task.tenant.clone(),
            labels,
            name_prefix: name_prefix(&self.shared.instance.info.instance),
            services: container.services.clone(),
            images: images.iter().map(|image| image.id.clone()).collect(),
            user: tenant.user,
            way_out: container.network.value == "bridge",
            tmp: self.shared.config.docker.tmp,
            supervisor: holds.then(|| self.shared.supervisor.clone()),
            attempt: self.name(),
            lease: self.lease(),
        };
        // Services that nobody waits for any more are removed.
        let started = self.unless_stopped(services::start(request)).await?;
        started.map_err(|error| self.refuse(Refusal { reason: error.reason, error: error.error, hint: error.hint }))
    }

    /// Who a container of this task that asks for `asked` runs as.
    pub(super) fn identity_of(&self, asked: &ContainerUser) -> Identity {
        use crate::execute::native::sandbox::User;
        let worker = User { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
        let gives_away = self.shared.supervisor.capabilities().sandbox.separate_users;
        Identity::of(asked, self.plan.user.value, worker, gives_away)
    }

    /// The attempt, as labels name it.
    pub(super) fn work(&self) -> Work<'_> {
        Work { tenant: self.task.tenant.as_str(), task: self.task.task_id.as_str(), attempt: self.story.attempt() }
    }
}

/// What the names of all containers of a worker begin with.
fn name_prefix(instance: &str) -> String {
    format!("windlass-{}-", instance.get(..12).unwrap_or(instance))
}

/// The task's own key to the registry of its images.
fn credentials(container: &plan::Container, facts: &Facts<'_>) -> Result<Option<Credentials>, Refusal> {
    let Some(name) = &container.registry_secret else { return Ok(None) };
    let unusable = |error: String| Refusal {
        reason: Reason::SecretMissing,
        error,
        hint: "store it as user:password, or as JSON with username and password, or identitytoken".to_owned(),
    };
    let value = facts.secrets.iter().find(|value| value.secret.name == *name);
    let value = value.ok_or_else(|| unusable(format!("execution.registry_secret: the secret {name} was not read")))?;
    Credentials::from_secret(value.value.expose_secret()).map(Some).map_err(|error| unusable(error.to_string()))
}

/// Appends what there is to tell of a pull, as often as a task may tell of itself. Ends when the chain is somebody else's.
async fn tell_progress(mut told: watch::Receiver<Option<PullProgress>>, interval: Duration, story: &Story, writer: &mut ChainWriter) {
    while told.changed().await.is_ok() {
        let Some(progress) = told.borrow_and_update().clone() else { continue };
        let progress = Progress::from(progress);
        let appended = writer.append(|link| Event { progress: Some(progress), ..story.event(EventKind::TaskProgress, link) }).await;
        match appended {
            Ok(Appended::Fenced) => return,
            Ok(Appended::Stored(_)) => {}
            Err(error) => tracing::warn!(error = %causes(&error), "progress is not published"),
        }
        tokio::time::sleep(interval).await;
    }
    std::future::pending().await
}
