//! What is asked of the engine about one container, each request with its deadline.

use std::time::Duration;

use bollard::models::{ContainerCreateBody, ContainerInspectResponse, ContainerState};
use bollard::query_parameters::{
    AttachContainerOptions, CreateContainerOptions, InspectContainerOptions, KillContainerOptions, RemoveContainerOptions,
    StartContainerOptions, WaitContainerOptions,
};
use futures_util::StreamExt as _;

use super::output::{Frames, Input};
use super::{Engine, EngineError};

/// What there is to know of a container that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ended {
    /// Exit status of its first process.
    pub code: i32,
    /// The kernel killed a process of it for memory.
    pub oom: bool,
}

/// Looks at a container that ended and is not cleaned up, and the time between them.
const CLEANUP_LOOKS: u32 = 100;
const CLEANUP_LOOK: Duration = Duration::from_millis(50);

/// How a container ended that is in this state; none while it runs.
fn ended(state: &ContainerState) -> Option<Ended> {
    if state.running == Some(true) || state.exit_code.is_none() {
        return None;
    }
    let code = state.exit_code.and_then(|code| i32::try_from(code).ok()).unwrap_or(-1);
    Some(Ended { code, oom: state.oom_killed == Some(true) })
}

impl Engine {
    /// Makes a container; its id and what the engine has to say about it.
    pub(super) async fn create(&self, name: &str, body: ContainerCreateBody) -> Result<(String, Vec<String>), EngineError> {
        let options = CreateContainerOptions { name: Some(name.to_owned()), ..CreateContainerOptions::default() };
        let made = self.ask("create a container", self.api().create_container(Some(options), body)).await?;
        Ok((made.id, made.warnings))
    }

    /// Both streams of a container, and its input where it takes one.
    pub(super) async fn attach(&self, id: &str, stdin: bool) -> Result<(Frames, Input), EngineError> {
        let options = AttachContainerOptions { stream: true, stdin, stdout: true, stderr: true, ..AttachContainerOptions::default() };
        let attached = self.ask("attach to a container", self.api().attach_container(id, Some(options))).await?;
        Ok((attached.output, attached.input))
    }

    /// Starts it.
    pub(super) async fn start(&self, id: &str) -> Result<(), EngineError> {
        self.ask("start a container", self.api().start_container(id, None::<StartContainerOptions>)).await
    }

    /// Completes when it does not run. To be asked after its start only: one that was never started does not run either.
    /// The answer is in the body, for which there is no deadline. Cancel safe.
    pub(super) async fn over(&self, id: &str) -> Result<(), EngineError> {
        loop {
            let mut answers = Box::pin(self.api().wait_container(id, None::<WaitContainerOptions>));
            match answers.next().await {
                // A status other than 0 comes as an error.
                Some(Ok(_) | Err(bollard::errors::Error::DockerContainerWaitError { .. })) => return Ok(()),
                // Podman's answer begins only when the container has ended, and there is a deadline for beginnings.
                Some(Err(bollard::errors::Error::RequestTimeoutError)) => {}
                Some(Err(error)) => return Err(self.told("wait for a container", error)),
                None => return Err(self.unavailable("wait for a container", "the answer ended before the container".to_owned())),
            }
        }
    }

    /// How it ended; none while it runs.
    ///
    /// Between the end of a container and its cleanup Podman calls it "stopped", which is no word of Docker's: asked again.
    pub(super) async fn ended(&self, id: &str) -> Result<Option<Ended>, EngineError> {
        for _ in 0..CLEANUP_LOOKS {
            let inspected = self.ask("inspect a container", async {
                match self.api().inspect_container(id, None::<InspectContainerOptions>).await {
                    Err(bollard::errors::Error::JsonDataError { .. }) => Ok(None),
                    answer => answer.map(Some),
                }
            });
            if let Some(inspected) = inspected.await? {
                return Ok(ended(&inspected.state.unwrap_or_default()));
            }
            tokio::time::sleep(CLEANUP_LOOK).await;
        }
        Err(self.unavailable("inspect a container", "its state is no word of the API".to_owned()))
    }

    /// All that it says of a container.
    pub(super) async fn inspect(&self, id: &str) -> Result<ContainerInspectResponse, EngineError> {
        self.ask("inspect a container", self.api().inspect_container(id, None::<InspectContainerOptions>)).await
    }

    /// Sends a signal to its first process.
    pub(super) async fn kill(&self, id: &str, signal: &str) -> Result<(), EngineError> {
        let options = KillContainerOptions { signal: signal.to_owned() };
        self.ask("kill a container", self.api().kill_container(id, Some(options))).await
    }

    /// Removes it with its nameless volumes, whatever it does. One that is not there is removed, and so is one that somebody is
    /// removing.
    pub(super) async fn remove(&self, name: &str) -> Result<(), EngineError> {
        self.remove_found(name).await.map(drop)
    }

    /// Likewise; whether it was there.
    pub(super) async fn remove_found(&self, name: &str) -> Result<bool, EngineError> {
        let options = RemoveContainerOptions { force: true, v: true, link: false };
        match self.ask("remove a container", self.api().remove_container(name, Some(options))).await {
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) if error.is_conflict() => Ok(true),
            answer => answer.map(|()| true),
        }
    }
}
