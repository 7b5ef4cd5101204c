//! A task in a container: what has to be there before it, and how it is made.
//!
//! ```text
//! engine ─▶ images ─▶ services ─▶ mounts ─▶ cgroup held ─▶ recorder ─▶ container created, attached, started
//! ```
//! Whatever takes long can be interrupted, and counts against the task's deadline.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::time::Instant;

use super::super::signals::interrupted;
use super::provide::Provided;
use super::{Ended, Run, Running, Streams};
use crate::bus::chain::ChainWriter;
use crate::crash::{self, Point};
use crate::execute::Process;
use crate::execute::docker::create::{Bind, Order};
use crate::execute::docker::labels::{Owner, Role};
use crate::execute::docker::{Container, Engine, Launch, Refusal, devices, mounts, services};
use crate::execute::native::Holding;
use crate::plan;
use crate::prepare::{self, Facts, INSIDE, SECRETS_INSIDE, Workspace};
use crate::task::Reason;
use crate::telemetry::spawn_blocking;

impl Run<'_> {
    /// Makes and starts its container.
    pub(super) async fn contain(
        &mut self,
        container: &plan::Container,
        workspace: &Workspace,
        facts: &Facts<'_>,
        writer: &mut ChainWriter,
    ) -> Result<Running, Box<Ended>> {
        let containers = Arc::clone(&self.shared.containers);
        let engine = self.unless_stopped(containers.engine()).await?.map_err(|error| self.refuse(Refusal::away(&error)))?;
        let engine = engine.on_behalf_of(&self.task.tenant);
        self.shared.guard_containers();
        let mut provided = self.provide(&engine, container, workspace, facts, writer).await?;
        crash::point(Point::ImageReady);
        let started = self.start_container(engine, container, workspace, facts, &provided).await;
        match started {
            Ok(mut running) => {
                running.provided = Some(provided);
                Ok(running)
            }
            Err(ended) => {
                if let Some(services) = provided.services.take() {
                    services.stop().await;
                }
                Err(ended)
            }
        }
    }

    async fn start_container(
        &mut self,
        engine: Engine,
        container: &plan::Container,
        workspace: &Workspace,
        facts: &Facts<'_>,
        provided: &Provided,
    ) -> Result<Running, Box<Ended>> {
        let containers = Arc::clone(&self.shared.containers);
        let order = self.order(container, workspace, facts, provided).await?;
        let holding = Holding {
            cgroup: self.name(),
            limits: self.plan.limits(),
            directory: workspace.dir.clone(),
            lease: self.lease(),
            elsewhere: !containers.can_hold(&engine),
        };
        let held = self.shared.supervisor.hold(holding).await.map_err(|failure| self.not_spawned(failure))?;
        crash::point(Point::ContainerHeld);
        let within = held.parent().is_some();
        let order = Order { cgroup_parent: held.parent().map(str::to_owned), init: engine.facts().has_init, ..order };
        let Streams { recorder, stdout, stderr } = self.streams()?;
        let mut container = Container::launch(Launch {
            engine,
            containers,
            name: self.owner().fresh_name(),
            order,
            limits: self.plan.limits(),
            held,
            within,
            cgroups: self.shared.config.cgroup.mount.clone(),
            lease: self.lease(),
            stdin: self.task.assignment.execution.stdin.clone(),
            stdout,
            stderr,
        });
        match self.begin(&mut container).await {
            Ok(id) => {
                self.run.container_id = Some(id);
                Ok(self.running(Process::Container(container), recorder, workspace))
            }
            Err(ended) => {
                tokio::join!(recorder.abandon(), container.give_up());
                Err(ended)
            }
        }
    }

    pub(super) fn owner(&self) -> Owner {
        let instance = &self.shared.instance;
        Owner::new(&instance.info, &instance.dir())
    }

    pub(super) fn refuse(&mut self, refusal: Refusal) -> Box<Ended> {
        if refusal.reason == Reason::DockerUnavailable {
            self.shared.containers.doubt();
        }
        self.refused(refusal.reason, refusal.error, Some(refusal.hint))
    }

    /// What its container is made from, but for its cgroup.
    async fn order(
        &mut self,
        container: &plan::Container,
        workspace: &Workspace,
        facts: &Facts<'_>,
        provided: &Provided,
    ) -> Result<Order, Box<Ended>> {
        let image = &provided.image;
        let contained = prepare::contained(self.plan, facts, !image.working_dir.is_empty());
        let asked = container.mounts.clone();
        // Following links may take as long as the disk does.
        let resolved = spawn_blocking(move || mounts::resolve(&asked)).await;
        let resolved = resolved.unwrap_or_else(|error| Err(Refusal::isolation(error.to_string())));
        let mut binds = resolved.map_err(|refusal| self.refuse(refusal))?;
        let own = |source: &std::path::Path, target: &str, read_only| Bind {
            source: source.to_string_lossy().into_owned(),
            target: target.to_owned(),
            read_only,
        };
        binds.push(own(workspace.root(), INSIDE, false));
        if let Some(dir) = facts.secret_files.dir.as_deref() {
            binds.push(own(dir, SECRETS_INSIDE, true));
        }
        let identity = self.identity();
        let labels: HashMap<String, String> = self.owner().labels(Role::Task, self.work());
        Ok(Order {
            image: image.id.clone(),
            entrypoint: container.entrypoint.clone(),
            command: container.command.clone(),
            user: identity.as_ref().and_then(|identity| identity.user.clone()),
            groups: identity.and_then(|identity| identity.group).map(|gid| gid.to_string()).into_iter().collect(),
            env: contained.env,
            working_dir: contained.working_dir,
            binds,
            tmpfs: vec![("/tmp".to_owned(), self.shared.config.docker.tmp)],
            labels,
            cgroup_parent: None,
            network: provided.services.as_ref().map_or(container.network.value.as_str(), services::Running::network).to_owned(),
            stdin: self.task.assignment.execution.stdin.is_some(),
            init: false,
            devices: devices::of(self.gpus.iter().map(|held| &held.device)),
        })
    }

    /// Waits until it runs; renews its lease meanwhile.
    async fn begin(&mut self, container: &mut Container) -> Result<String, Box<Ended>> {
        let mut interrupt = self.signals.interrupt.clone();
        let mut lease = self.signals.lease.clone();
        loop {
            // All arms are cancel safe.
            tokio::select! {
                started = container.started() => return started.map_err(|refusal| self.refuse(refusal)),
                Ok(()) = lease.changed() => {
                    let until = *lease.borrow_and_update();
                    container.renew(until.saturating_duration_since(Instant::now()));
                }
                why = interrupted(&mut interrupt) => return Err(self.stopped_early(why)),
                () = self.deadline() => return Err(self.too_late()),
            }
        }
    }

    /// What `work` comes to, unless the task is stopped before.
    pub(super) async fn unless_stopped<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Box<Ended>> {
        let mut interrupt = self.signals.interrupt.clone();
        tokio::select! {
            // Whoever gives the work knows that it can be dropped; the others are cancel safe.
            done = work => Ok(done),
            why = interrupted(&mut interrupt) => Err(self.stopped_early(why)),
            () = self.deadline() => Err(self.too_late()),
        }
    }

    /// Resolves at the task's deadline, where it has one. Cancel safe.
    pub(super) async fn deadline(&self) {
        match self.task.assignment.deadline {
            Some(deadline) => tokio::time::sleep(deadline.after(self.shared.clock.now())).await,
            None => std::future::pending().await,
        }
    }

    pub(super) fn too_late(&mut self) -> Box<Ended> {
        self.refused(Reason::DeadlinePassed, "its deadline passed before it ran".to_owned(), None)
    }
}
