//! How a container comes to run, with the limits that were promised.

use super::super::super::output::Pipes;
use super::super::super::refusal::{self, Refusal};
use super::super::super::{Containers, EngineError, create};
use super::super::limits::own_limits;
use super::super::own::Own;
use super::super::usage::Early;
use super::super::{Command, Launch};
use super::{Keeper, Running};
use crate::crash::{self, Point};
use crate::task::limits::Usage;

impl Keeper {
    pub(super) async fn start(&mut self, launch: Launch) -> Result<Running, Refusal> {
        let Launch { order, limits, held, stdin, stdout, stderr, containers, .. } = launch;
        self.held = Some(held);
        let pipes = Pipes::new(stdout, stderr).map_err(|e| Refusal::isolation(format!("cannot make pipes: {e}")))?;
        let body = create::body(&order, &limits);
        let asked = body.host_config.clone().unwrap_or_default();
        self.left = true;
        let engine = self.engine.clone();
        let name = self.name.clone();
        let (id, warnings) = match self.meanwhile(Box::pin(engine.create(&name, body))).await {
            Ok(created) => created,
            Err(error) => {
                // It said no: there is none. Without an answer there may be one yet.
                self.unanswered = matches!(error, EngineError::Unavailable { .. });
                self.left = self.unanswered;
                return Err(refusal::of_start(&error));
            }
        };
        crash::point(Point::ContainerCreated);
        if !self.within {
            self.meanwhile(own_limits(&engine, &id, &asked, &limits, &warnings)).await?;
        }
        self.wanted()?;
        let (frames, input) = self.meanwhile(engine.attach(&id, order.stdin)).await.map_err(|e| refusal::of_start(&e))?;
        crash::point(Point::ContainerAttached);
        self.wanted()?;
        // Where the engine puts it is not known before the first one.
        let looked_for = !self.within || !containers.seen_inside();
        let early = if looked_for { Early::of(&id, &self.cgroups, containers.habit()) } else { None };
        self.meanwhile(engine.start(&id)).await.map_err(|e| refusal::of_start(&e))?;
        crash::point(Point::ContainerStarted);
        if self.is_outside(&containers, &id).await? {
            self.within = false;
            self.meanwhile(own_limits(&engine, &id, &asked, &limits, &warnings)).await?;
        }
        let mut own = None;
        if !self.within {
            let cgroups = self.cgroups.clone();
            if let Some((found, habit)) = self.meanwhile(Own::of(&engine, &id, &cgroups)).await {
                // Of one that was given a place the engine made something else.
                if order.cgroup_parent.is_none() {
                    containers.learn(habit);
                }
                // Known only now that the engine has made it: the program has begun, and is killed if it has not what was promised.
                found.limited(&limits)?;
                own = Some(found);
            }
        }
        let early = match early {
            Some(early) => early.read().await,
            None => Usage::default(),
        };
        Ok(Running { id, frames, pipes, input: stdin.map(|text| (input, text)), own, early })
    }

    fn wanted(&self) -> Result<(), Refusal> {
        if self.unwanted.is_cancelled() { Err(Refusal::isolation("given up before it was started".to_owned())) } else { Ok(()) }
    }

    /// Renews the lease while a request is under way.
    async fn meanwhile<T>(&mut self, request: impl Future<Output = T>) -> T {
        let mut request = std::pin::pin!(request);
        loop {
            // Cancel safe: the request goes on where it was.
            tokio::select! {
                answer = &mut request => return answer,
                Some(command) = self.commands.recv() => match command {
                    Command::Renew(lease) => self.renew(lease),
                    // Whoever stops it before it runs has given it up.
                    Command::Stop(_) => self.unwanted.cancel(),
                },
            }
        }
    }

    /// The first container of an engine shows whether it puts them where it is told to: its cgroup driver says so, but its
    /// cgroups may be others than the worker's. Then the engine's own limits count, for this container as for those after it.
    async fn is_outside(&self, containers: &Containers, id: &str) -> Result<bool, Refusal> {
        if !self.within || containers.seen_inside() {
            return Ok(false);
        }
        let inside = || self.held.as_ref().is_some_and(|held| held.contains(id));
        if inside() {
            containers.saw(true);
            return Ok(false);
        }
        // It may have ended already; then the next one shows it.
        let ended = self.engine.ended(id).await.map_err(|e| refusal::of_start(&e))?;
        if ended.is_some() || inside() {
            return Ok(false);
        }
        containers.saw(false);
        Ok(true)
    }
}
