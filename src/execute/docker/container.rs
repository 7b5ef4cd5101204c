//! One container from its making to its removal.
//!
//! ```text
//! Container::launch ─▶ create ─ attach ─ start ─▶ started
//!                                  └ output copied ─ over ─ inspect ─▶ the cgroup buried ─▶ ended ─▶ removed ─▶ gone
//! ```
//! All of it is done by one task of its own, the keeper, which goes on when its handle is dropped: a request that was sent is
//! carried out by the engine whether anybody waits for the answer or not, so what it made has to be removed all the same.
//! Names are chosen here, so that this is possible even where the engine's answer never came.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

mod keeper;
mod limits;
mod own;
mod usage;

use super::create::Order;
use super::{Containers, Engine, Refusal};
use crate::execute::native::Held;
use crate::execute::{Exit, SupervisorLost};
use crate::task::limits::Limits;
use keeper::Keeper;
pub(super) use limits::own_limits;
pub(super) use own::Own;

/// Longest wait for a container to be removed before its end is told; the keeper goes on after that.
pub(super) const GONE: Duration = Duration::from_secs(5);

/// A container to be run.
#[derive(Debug)]
pub struct Launch {
    /// The engine.
    pub engine: Engine,
    /// What is known of where it puts containers.
    pub containers: Arc<Containers>,
    /// Name, unlike that of any other.
    pub name: String,
    /// What it is made from.
    pub order: Order,
    /// Its limits.
    pub limits: Limits,
    /// The cgroup around it.
    pub held: Held,
    /// The cgroup is to be around the container's own; else the engine's own limits have to do.
    pub within: bool,
    /// Where cgroups are mounted, to find the container's own where it is not within.
    pub cgroups: PathBuf,
    /// It is killed when it is not renewed within this time.
    pub lease: Option<Duration>,
    /// Its standard input.
    pub stdin: Option<String>,
    /// Where its standard output goes: the write end of a pipe.
    pub stdout: OwnedFd,
    /// Likewise.
    pub stderr: OwnedFd,
}

/// What the keeper is told.
#[derive(Debug, Clone, Copy)]
enum Command {
    Stop(Duration),
    Renew(Duration),
}

/// A container that is made, runs, or is being removed. Dropped before its end, it is killed and removed.
#[derive(Debug)]
pub struct Container {
    commands: mpsc::UnboundedSender<Command>,
    unwanted: CancellationToken,
    started: Option<oneshot::Receiver<Result<String, Refusal>>>,
    ended: Option<oneshot::Receiver<Exit>>,
    gone: Option<oneshot::Receiver<()>>,
}

impl Container {
    /// Begins to make it.
    #[must_use]
    pub fn launch(launch: Launch) -> Self {
        // Unbounded, and bounded all the same: a stop or two, and a renewal every few seconds.
        let (commands, told) = mpsc::unbounded_channel();
        let (tell_started, started) = oneshot::channel();
        let (tell_ended, ended) = oneshot::channel();
        let (tell_gone, gone) = oneshot::channel();
        let unwanted = CancellationToken::new();
        let mut keeper = Keeper::new(launch, told, unwanted.clone());
        tokio::spawn(async move {
            let running = keeper.bring_up(tell_started).await;
            if let Some(running) = running {
                // An end that nobody waits for is one of a container that was given up.
                let _ = match keeper.attend(running).await {
                    Ok(exit) => tell_ended.send(exit).is_ok(),
                    Err(SupervisorLost) => false,
                };
            }
            keeper.remove().await;
            let _ = tell_gone.send(());
            keeper.insist().await;
        });
        Self { commands, unwanted, started: Some(started), ended: Some(ended), gone: Some(gone) }
    }

    /// Its id, when its program runs. Cancel safe.
    ///
    /// # Errors
    /// Why it does not run. Nothing is left of it, or will be soon.
    pub async fn started(&mut self) -> Result<String, Refusal> {
        let nobody = || Refusal::isolation("the container's keeper is gone".to_owned());
        let Some(started) = &mut self.started else { return Err(nobody()) };
        let answer = started.await;
        self.started = None;
        answer.unwrap_or_else(|_| Err(nobody()))
    }

    /// SIGTERM to every process in it, SIGKILL to what is left after `grace`; zero kills at once.
    pub fn stop(&self, grace: Duration) {
        // Nobody listens: it is over.
        let _ = self.commands.send(Command::Stop(grace));
    }

    /// The lease was renewed.
    pub fn renew(&self, lease: Duration) {
        let _ = self.commands.send(Command::Renew(lease));
    }

    /// Its end. Cancel safe.
    ///
    /// # Errors
    /// When the supervisor is gone, and on every call after the first that returned.
    pub async fn wait(&mut self) -> Result<Exit, SupervisorLost> {
        let Some(ended) = &mut self.ended else { return Err(SupervisorLost) };
        let exit = ended.await.map_err(|_| SupervisorLost);
        self.ended = None;
        exit
    }

    /// Completes when it is removed, or when that takes so long that it must not be waited for.
    pub async fn gone(&mut self) {
        let Some(gone) = self.gone.take() else { return };
        let _ = tokio::time::timeout(GONE, gone).await;
    }

    /// It is not wanted any more, however far it has come. Completes as [`Container::gone`].
    pub async fn give_up(mut self) {
        self.unwanted.cancel();
        self.stop(Duration::ZERO);
        self.gone().await;
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.unwanted.cancel();
    }
}

/// In `lease` from now.
fn until(lease: Option<Duration>) -> Option<Instant> {
    lease.map(|lease| Instant::now() + lease)
}
