//! The worker's end of the supervisor's socket: who waits for which answer, and what happens when it breaks.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::sandbox::Wish;
use super::{Capabilities, StartError, cgroup};
use crate::config;
use crate::crash::{self, Point};
use crate::supervisor::channel::{self, Outgoing};
use crate::supervisor::protocol::{ExitReport, Reply, Request, SpawnError};
use crate::telemetry::causes;

/// How a task began.
#[derive(Debug)]
pub(super) enum Begun {
    /// Process id of its leader.
    Process(u32),
    /// Path of its cgroup for the engine that puts processes into it.
    Held(Option<String>),
}

type Started = Result<Begun, SpawnError>;

#[derive(Debug)]
struct Waiter {
    started: Option<oneshot::Sender<Started>>,
    exited: oneshot::Sender<ExitReport>,
}

/// The two answers to a spawn or hold, and the number they come under.
pub(super) struct Answers {
    pub id: u64,
    /// It runs, or why not.
    pub started: oneshot::Receiver<Started>,
    /// It is over.
    pub exited: oneshot::Receiver<ExitReport>,
}

#[derive(Debug, Default)]
struct Pending {
    next: u64,
    waiters: HashMap<u64, Waiter>,
    /// The supervisor is gone: nobody may register any more.
    closed: bool,
}

/// Shared by all handles. Its drop closes the connection, which ends the supervisor.
#[derive(Debug)]
pub(super) struct Link {
    // Unbounded, and bounded all the same: one spawn per permit that the worker gives out, and for each process
    // a stop or two and a renewal every few seconds.
    outbox: mpsc::UnboundedSender<Outgoing>,
    pending: Arc<Mutex<Pending>>,
    lost: CancellationToken,
    closing: CancellationToken,
    pid: u32,
    /// The supervisor was told of containers.
    guards: AtomicBool,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

fn locked(pending: &Mutex<Pending>) -> MutexGuard<'_, Pending> {
    // Nothing panics while it is held; a table of waiters is valid at any point anyway.
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    /// Reserves a number and a place for its answers; `None` when the supervisor is gone.
    pub(super) fn register(&self) -> Option<Answers> {
        let mut pending = locked(&self.pending);
        if pending.closed {
            return None;
        }
        let id = pending.next;
        pending.next += 1;
        let (started, started_rx) = oneshot::channel();
        let (exited, exited_rx) = oneshot::channel();
        pending.waiters.insert(id, Waiter { started: Some(started), exited });
        Some(Answers { id, started: started_rx, exited: exited_rx })
    }

    /// For a request that was never sent.
    pub(super) fn forget(&self, id: u64) {
        locked(&self.pending).waiters.remove(&id);
    }

    pub(super) fn send(&self, request: &Request, descriptors: Vec<OwnedFd>) -> io::Result<()> {
        let frame = Outgoing::new(request, descriptors)?;
        // A closed outbox means a lost supervisor; the waiters are told so by the reader.
        let _ = self.outbox.send(frame);
        Ok(())
    }

    pub(super) fn close(&self) {
        self.closing.cancel();
    }

    /// No program can be started any more.
    pub(super) fn is_closed(&self) -> bool {
        locked(&self.pending).closed
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    pub(super) fn guards(&self) -> &AtomicBool {
        &self.guards
    }

    pub(super) async fn lost(&self) {
        self.lost.cancelled().await;
    }
}

/// Starts the process, waits for its first word, then starts reader and writer.
pub(super) async fn start(
    exe: &Path,
    config: &config::Cgroup,
    instance: &str,
    sandbox: Option<Wish>,
) -> Result<(Arc<Link>, Capabilities), StartError> {
    let (ours, theirs) = channel::pair().map_err(StartError::Socket)?;
    let mut child = launch(exe, config, instance, sandbox, theirs)?;
    let socket = watch(ours).map_err(StartError::Socket)?;
    let graves;
    let first = receive(&socket, &mut channel::packet_buffer()).await;
    let capabilities = match first {
        Ok(Some(Reply::Ready { enforced, cgroups, controllers, no_clone_into, directories, container_directories, swept, sandbox })) => {
            graves = [directories.clone(), container_directories].concat();
            Capabilities { enforced, description: cgroups, controllers, no_clone_into, directories, swept, sandbox }
        }
        other => {
            // Closing the socket ends it, should it still be there.
            drop(socket);
            let _ = tokio::task::spawn_blocking(move || child.wait()).await;
            return Err(match other {
                Ok(Some(Reply::Unfit { error })) => StartError::Unfit(error),
                Ok(_) => StartError::Silent,
                Err(e) => StartError::Socket(e),
            });
        }
    };
    let (outbox, queue) = mpsc::unbounded_channel();
    let (lost, closing) = (CancellationToken::new(), CancellationToken::new());
    let pending = Arc::new(Mutex::new(Pending::default()));
    let socket = Arc::new(socket);
    tokio::spawn(write(socket.clone(), queue, closing.clone()));
    let pid = child.id();
    let grave = Grave { child, directories: graves, own_parent: config.parent.is_empty() };
    tokio::spawn(read(socket, pending.clone(), lost.clone(), grave));
    Ok((Arc::new(Link { outbox, pending, lost, closing, pid, guards: AtomicBool::new(false) }), capabilities))
}

#[expect(unsafe_code, reason = "tokio leaves it to the caller that the descriptor stays the same")]
fn watch(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd answers with the same open descriptor until it is dropped, and AsyncFd deregisters before that.
    Ok(unsafe { AsyncFd::register(socket) }?)
}

fn launch(exe: &Path, config: &config::Cgroup, instance: &str, sandbox: Option<Wish>, socket: OwnedFd) -> Result<Child, StartError> {
    let args = crate::supervisor::Args {
        mount: config.mount.clone(),
        parent: config.parent.clone(),
        allow_unlimited: config.allow_unlimited,
        instance: instance.to_owned(),
        sandbox,
    };
    let failed = |source: io::Error| StartError::Start { program: exe.to_path_buf(), source };
    let args = serde_json::to_string(&args).map_err(|e| failed(io::Error::other(e)))?;
    // Without the worker's environment: credentials in it are none of the supervisor's business, nor its tasks'.
    // std starts it with posix_spawn, which is why the socket is handed over as standard input: no fork of the worker.
    let mut command = Command::new(exe);
    command
        .arg("supervisor")
        .arg(args)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(socket))
        .stdout(Stdio::null())
        .stderr(Stdio::inherit());
    crash::pass_on(&mut command);
    command.spawn().map_err(failed)
}

async fn receive(socket: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> io::Result<Option<Reply>> {
    loop {
        let mut ready = socket.readable().await?;
        match ready.try_io(|socket| channel::receive::<Reply>(socket.as_fd(), buffer)) {
            Ok(result) => return result.map(|packet| packet.map(|(reply, _)| reply)),
            Err(_would_block) => {}
        }
    }
}

/// Sends what is queued, in order, until the link closes.
async fn write(socket: Arc<AsyncFd<OwnedFd>>, mut queue: mpsc::UnboundedReceiver<Outgoing>, closing: CancellationToken) {
    loop {
        // Cancel safe: recv loses nothing, cancelled neither. What was said before the close is sent, unless the supervisor is
        // not listening.
        let frame = tokio::select! {
            biased;
            frame = queue.recv() => frame,
            () = closing.cancelled() => None,
        };
        let Some(frame) = frame else { break };
        let sent = tokio::select! {
            biased;
            sent = send(&socket, &frame) => sent,
            () = closing.cancelled() => break,
        };
        if sent.is_err() {
            break;
        }
        crash::point(Point::SpawnSent);
    }
    // The supervisor sees the end of the stream and buries everything; the reader sees it go.
    let _ = rustix::net::shutdown(socket.get_ref(), rustix::net::Shutdown::Write);
}

async fn send(socket: &AsyncFd<OwnedFd>, frame: &Outgoing) -> io::Result<()> {
    loop {
        let mut ready = socket.writable().await?;
        if let Ok(result) = ready.try_io(|socket| frame.send(socket.as_fd())) {
            return result;
        }
    }
}

/// Hands replies to those who wait, until the supervisor is gone; then makes sure that its tasks are, too.
async fn read(socket: Arc<AsyncFd<OwnedFd>>, pending: Arc<Mutex<Pending>>, lost: CancellationToken, grave: Grave) {
    let mut buffer = channel::packet_buffer();
    loop {
        match receive(&socket, &mut buffer).await {
            Ok(Some(reply)) => deliver(&pending, reply),
            Ok(None) => break,
            Err(error) => {
                tracing::error!(error = %causes(&error), "unreadable reply of the supervisor");
                break;
            }
        }
    }
    locked(&pending).closed = true;
    // One that we do not understand lives: told so, it buries its tasks and ends.
    let _ = rustix::net::shutdown(socket.get_ref(), rustix::net::Shutdown::Both);
    // First the trees, then the news: whoever hears that the supervisor is lost may give the tasks back at once.
    let swept = tokio::task::spawn_blocking(move || bury(grave)).await;
    if let Ok(Err((path, error))) = swept {
        tracing::error!(path = %path.display(), error = %causes(&error), "cgroup of this instance not removed; the next start sweeps it");
    }
    locked(&pending).waiters.clear();
    lost.cancel();
}

/// What is left when the supervisor is gone.
struct Grave {
    child: Child,
    directories: Vec<PathBuf>,
    /// See [`cgroup::Site`].
    own_parent: bool,
}

fn bury(mut grave: Grave) -> Result<(), (PathBuf, io::Error)> {
    // A supervisor that closed its socket is either dead or at the end of its own sweep.
    let _ = grave.child.wait();
    cgroup::remove_instances(&grave.directories)?;
    if grave.own_parent {
        cgroup::remove_parents(&grave.directories);
    }
    Ok(())
}

fn deliver(pending: &Mutex<Pending>, reply: Reply) {
    let mut pending = locked(pending);
    match reply {
        Reply::Started { id, pid } => {
            crash::point(Point::StartedUnread);
            begun(&mut pending, id, Begun::Process(pid));
        }
        Reply::Held { id, parent } => begun(&mut pending, id, Begun::Held(parent)),
        Reply::Refused { id, error } => {
            if let Some(started) = pending.waiters.remove(&id).and_then(|w| w.started) {
                let _ = started.send(Err(error));
            }
        }
        Reply::Exited { id, report } => {
            if let Some(waiter) = pending.waiters.remove(&id) {
                let _ = waiter.exited.send(report);
            }
        }
        Reply::Ready { .. } | Reply::Unfit { .. } => tracing::warn!("the supervisor greeted twice"),
    }
}

fn begun(pending: &mut Pending, id: u64, how: Begun) {
    // Nobody listens: the handle was dropped while the task began, and its drop has sent the kill.
    if let Some(started) = pending.waiters.get_mut(&id).and_then(|w| w.started.take()) {
        let _ = started.send(Ok(how));
    }
}
