//! What a container needs of its engine before it is made: images, and the services beside it.

use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret as _;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::super::signals::interrupted;
use super::super::story::Story;
use super::{Ended, Run};
use crate::bus::chain::{Appended, ChainWriter};
use crate::execute::docker::labels::Work;
use crate::execute::docker::services::{self, Asked};
use crate::execute::docker::{Credentials, Engine, Identity, PullProgress, Ready, Refusal};
use crate::plan::{self, ContainerUser};
use crate::prepare::{Facts, Workspace};
use crate::task::event::{Event, EventKind, Progress};
use crate::task::{ImageRef, PullPolicy, Reason};
use crate::telemetry::causes;

/// What a container finds.
pub(super) struct Provided {
    /// Its image.
    pub(super) image: Ready,
    /// The services beside it; none unless asked for.
    pub(super) services: Option<services::Running>,
}

impl Run<'_> {
    /// Images and services.
    pub(super) async fn provide(
        &mut self,
        engine: &Engine,
        container: &plan::Container,
        workspace: &Workspace,
        facts: &Facts<'_>,
        writer: &mut ChainWriter,
    ) -> Result<Provided, Box<Ended>> {
        let credentials = credentials(container, facts).map_err(|refusal| self.refuse(refusal))?;
        let image = self.image(engine, (&container.image, container.pull.value), credentials.as_ref(), writer).await?;
        self.run.image_digest = Some(image.digest.clone().unwrap_or_else(|| image.id.clone()));
        let mut asked = Vec::new();
        for service in &container.services {
            // The task's key is for the registry of its own image, and nobody else's to see.
            let credentials = credentials.as_ref().filter(|_| service.image.registry == container.image.registry);
            let image = self.image(engine, (&service.image, service.pull), credentials, writer).await?;
            asked.push(Asked { service: service.clone(), image, user: self.identity_of(&service.user).user });
        }
        let services = if asked.is_empty() { None } else { Some(self.services(engine, container, asked, workspace).await?) };
        Ok(Provided { image, services })
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
    async fn services(
        &mut self,
        engine: &Engine,
        container: &plan::Container,
        asked: Vec<Asked>,
        workspace: &Workspace,
    ) -> Result<services::Running, Box<Ended>> {
        let holds = self.shared.containers.can_hold(engine);
        let request = services::Request {
            engine: engine.clone(),
            tenant: self.task.tenant.clone(),
            owner: self.owner(),
            task: (self.task.task_id.clone(), self.story.attempt()),
            services: asked,
            way_out: container.network.value == "bridge",
            tmp: self.shared.config.docker.tmp,
            supervisor: holds.then(|| self.shared.supervisor.clone()),
            attempt: self.name(),
            directory: workspace.dir.clone(),
            cgroups: self.shared.config.cgroup.mount.clone(),
            enforced: self.plan.limits().enforced,
            lease: self.shared.leased().then(|| self.signals.lease.clone()),
        };
        let unwanted = CancellationToken::new();
        let mut start = Box::pin(services::start(request, &unwanted));
        // The task's own time limit counts from its start: without one for the time before, a service would be a way around it.
        let longest = Duration::from_secs_f64(self.shared.config.classes.get(&self.task.class).map_or(0.0, |class| class.max_timeout_s));
        let stopped = match self.unless_stopped(timeout(longest, &mut start)).await {
            Ok(Ok(started)) => return started.map_err(|refusal| self.refuse(refusal)),
            Ok(Err(_)) => {
                self.refuse(services::unhealthy(format!("the services were not ready within max_timeout_s, {} s", longest.as_secs_f64())))
            }
            Err(stopped) => stopped,
        };
        unwanted.cancel();
        // First they go, then the news.
        if let Ok(services) = start.await {
            services.stop().await;
        }
        Err(stopped)
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
