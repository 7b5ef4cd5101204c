//! The socket to the supervisor, seen from tokio.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::cgroup::Layout;
use crate::config;
use crate::supervisor::protocol::{ExitReport, INLINE_LIMIT, Reply, Request, SpawnError, SpawnRequest};
use crate::supervisor::socket::{self, Packet};
use crate::wire::frame;

/// The supervisor is gone, and with it every task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the supervisor is gone")]
pub struct SupervisorLost;

/// Why a program does not run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpawnFailure {
    /// It never ran.
    #[error(transparent)]
    Refused(SpawnError),
    /// There is nobody to run it.
    #[error("the supervisor is gone")]
    SupervisorLost,
}

/// Why there is no supervisor.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The process could not be made.
    #[error("cannot start the supervisor: {0}")]
    Process(std::io::Error),
    /// It cannot work on this machine; its own words.
    #[error("{0}")]
    Unfit(String),
    /// It ended without a word.
    #[error("the supervisor ended at once; see standard error")]
    Silent,
}

#[derive(Debug)]
struct Waiting {
    started: Option<oneshot::Sender<Result<u32, SpawnError>>>,
    exited: oneshot::Sender<ExitReport>,
}

type Table = Arc<Mutex<HashMap<u64, Waiting>>>;

/// The handle to the supervisor process, cheap to clone. The process ends when the last one is gone.
#[derive(Debug, Clone)]
pub struct Supervisor {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    outbox: mpsc::UnboundedSender<Packet>,
    table: Table,
    next: AtomicU64,
    lost: CancellationToken,
    closing: CancellationToken,
    enforced: bool,
    description: String,
    pid: u32,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

impl Supervisor {
    /// Starts this program's own supervisor for `instance` (32 hexadecimal digits).
    ///
    /// # Errors
    /// When the machine cannot give what is promised; says what to grant.
    pub async fn start(config: &config::Cgroup, instance: &str) -> Result<Self, StartError> {
        let exe = std::env::current_exe().map_err(StartError::Process)?;
        Self::start_from(&exe, config, instance).await
    }

    /// Likewise, from the `windlass` program at `exe`.
    ///
    /// # Errors
    /// As [`Supervisor::start`].
    pub async fn start_from(exe: &Path, config: &config::Cgroup, instance: &str) -> Result<Self, StartError> {
        let (ours, theirs) = socket::pair().map_err(StartError::Process)?;
        let child =
            Command::new(exe).arg("supervisor").stdin(Stdio::from(theirs)).stdout(Stdio::null()).spawn().map_err(StartError::Process)?;
        let pid = child.id();
        let socket = registered(ours).map_err(StartError::Process)?;
        let start = Request::Start { cgroup: config.clone(), instance: instance.to_owned() };
        send(&socket, &packet(&start, vec![]).map_err(StartError::Process)?).await.map_err(StartError::Process)?;
        let mut buffer = vec![0; INLINE_LIMIT + 1];
        let first = receive(&socket, &mut buffer).await.ok().flatten();
        let (enforced, description) = match first {
            Some(Reply::Ready { enforced, cgroups }) => (enforced, cgroups),
            Some(Reply::Unfit { error }) => {
                drop(socket);
                reap(child);
                return Err(StartError::Unfit(error));
            }
            Some(Reply::Started { .. } | Reply::Refused { .. } | Reply::Exited { .. }) | None => {
                drop(socket);
                reap(child);
                return Err(StartError::Silent);
            }
        };
        let (outbox, packets) = mpsc::unbounded_channel();
        let (table, lost, closing) = (Table::default(), CancellationToken::new(), CancellationToken::new());
        let wire = Wire { socket, packets, table: Arc::clone(&table), lost: lost.clone(), closing: closing.clone(), buffer };
        tokio::spawn(wire.run(child, config.clone(), instance.to_owned()));
        let inner = Inner { outbox, table, next: AtomicU64::new(1), lost, closing, enforced, description, pid };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Whether limits are enforced.
    #[must_use]
    pub fn enforced(&self) -> bool {
        self.inner.enforced
    }

    /// How, for people.
    #[must_use]
    pub fn description(&self) -> &str {
        &self.inner.description
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.inner.pid
    }

    /// Resolves when it is gone. Cancel safe.
    pub async fn lost(&self) {
        self.inner.lost.cancelled().await;
    }

    /// Starts a program. `request.id` is chosen here.
    ///
    /// # Errors
    /// When it does not run; nothing is left of it then.
    pub async fn spawn(
        &self,
        mut request: SpawnRequest,
        stdin: OwnedFd,
        stdout: OwnedFd,
        stderr: OwnedFd,
    ) -> Result<Process, SpawnFailure> {
        let id = self.inner.next.fetch_add(1, Ordering::Relaxed);
        request.id = id;
        let program = request.argv.first().cloned().unwrap_or_default();
        let packet = packet(&Request::Spawn(Box::new(request)), vec![stdin, stdout, stderr])
            .map_err(|e| SpawnFailure::Refused(SpawnError::Other { program, step: "request".to_owned(), error: e.to_string() }))?;
        let (start, started) = oneshot::channel();
        let (exit, exited) = oneshot::channel();
        self.table().insert(id, Waiting { started: Some(start), exited: exit });
        // From here on the process is ours to kill, whoever drops this future.
        let mut process = Process { id, pid: 0, supervisor: self.clone(), exited, report: None };
        if self.inner.lost.is_cancelled() || self.inner.outbox.send(packet).is_err() {
            return Err(SpawnFailure::SupervisorLost);
        }
        match started.await {
            Ok(Ok(pid)) => {
                process.pid = pid;
                Ok(process)
            }
            Ok(Err(error)) => Err(SpawnFailure::Refused(error)),
            Err(_) => Err(SpawnFailure::SupervisorLost),
        }
    }

    fn table(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Waiting>> {
        self.inner.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, request: &Request) {
        match packet(request, vec![]) {
            // A supervisor that is gone needs no telling.
            Ok(packet) => drop(self.inner.outbox.send(packet)),
            Err(error) => tracing::error!(%error, "cannot tell the supervisor"),
        }
    }
}

/// A task that runs. Dropping it kills the task.
#[derive(Debug)]
pub struct Process {
    id: u64,
    pid: u32,
    supervisor: Supervisor,
    exited: oneshot::Receiver<ExitReport>,
    report: Option<ExitReport>,
}

impl Process {
    /// Process id of its leader.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// SIGTERM to every process of the task, and SIGKILL to the whole tree after `grace`; zero kills at once. A later call
    /// can only shorten the time that is left.
    pub fn stop(&self, grace: Duration) {
        self.supervisor.tell(&Request::Stop { id: self.id, grace_ms: millis(grace) });
    }

    /// The lease holds for another `lease`.
    pub fn renew(&self, lease: Duration) {
        self.supervisor.tell(&Request::Renew { id: self.id, lease_ms: millis(lease) });
    }

    /// Waits until the whole tree is gone. Cancel safe, and may be asked again.
    ///
    /// # Errors
    /// When the supervisor is gone.
    pub async fn wait(&mut self) -> Result<ExitReport, SupervisorLost> {
        if let Some(report) = &self.report {
            return Ok(report.clone());
        }
        let report = (&mut self.exited).await.map_err(|_| SupervisorLost)?;
        self.report = Some(report.clone());
        Ok(report)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.report.is_none() && self.supervisor.table().remove(&self.id).is_some() {
            self.stop(Duration::ZERO);
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn packet(request: &Request, fds: Vec<OwnedFd>) -> std::io::Result<Packet> {
    Packet::new(&frame::encode(request).map_err(std::io::Error::other)?, fds)
}

#[expect(unsafe_code, reason = "tokio wants a promise that the descriptor stays open")]
fn registered(socket: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by what is registered, which never gives it away before it is deregistered.
    unsafe { AsyncFd::register(socket) }.map_err(|error| std::io::Error::other(error.to_string()))
}

async fn send(socket: &AsyncFd<OwnedFd>, packet: &Packet) -> std::io::Result<()> {
    loop {
        match packet.send(socket.as_fd()) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            other => return other,
        }
        let mut guard = socket.writable().await?;
        if let Ok(sent) = guard.try_io(|socket| packet.send(socket.as_fd())) {
            return sent;
        }
    }
}

async fn receive(socket: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> std::io::Result<Option<Reply>> {
    loop {
        let mut guard = socket.readable().await?;
        match guard.try_io(|socket| socket::receive(socket.as_fd(), buffer)) {
            Ok(Ok(Some((body, _)))) => return frame::decode(&body).map(Some).map_err(std::io::Error::other),
            Ok(Ok(None)) => return Ok(None),
            Ok(Err(error)) => return Err(error),
            Err(_) => {}
        }
    }
}

/// Owns the socket.
struct Wire {
    socket: AsyncFd<OwnedFd>,
    packets: mpsc::UnboundedReceiver<Packet>,
    table: Table,
    lost: CancellationToken,
    closing: CancellationToken,
    buffer: Vec<u8>,
}

impl Wire {
    async fn run(mut self, child: Child, config: config::Cgroup, instance: String) {
        loop {
            // All arms are cancel safe: a packet is sent whole or not at all, and taken from the queue only here.
            tokio::select! {
                () = self.closing.cancelled() => break,
                reply = receive(&self.socket, &mut self.buffer) => match reply {
                    Ok(Some(reply)) => self.note(reply),
                    Ok(None) => break,
                    Err(error) => {
                        tracing::error!(%error, "the socket to the supervisor is broken");
                        break;
                    }
                },
                Some(packet) = self.packets.recv() => {
                    if let Err(error) = send(&self.socket, &packet).await {
                        tracing::error!(%error, "cannot send to the supervisor");
                        break;
                    }
                }
            }
        }
        let asked = self.closing.is_cancelled();
        self.lost.cancel();
        self.packets.close();
        self.table.lock().unwrap_or_else(PoisonError::into_inner).clear();
        drop(self.socket);
        let bury = move || {
            reap(child);
            // A supervisor that died before its worker has left everything: its lock is free now.
            if !asked && let Ok(layout) = Layout::detect(&config) {
                layout.remove_instance(&instance);
            }
        };
        if let Err(error) = tokio::task::spawn_blocking(bury).await {
            tracing::error!(%error, "cannot bury the supervisor");
        }
    }

    fn note(&self, reply: Reply) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        match reply {
            Reply::Started { id, pid } => {
                if let Some(started) = table.get_mut(&id).and_then(|waiting| waiting.started.take()) {
                    let _ = started.send(Ok(pid));
                }
            }
            Reply::Refused { id, error } => {
                if let Some(started) = table.remove(&id).and_then(|waiting| waiting.started) {
                    let _ = started.send(Err(error));
                }
            }
            Reply::Exited { id, report } => {
                if let Some(waiting) = table.remove(&id) {
                    let _ = waiting.exited.send(report);
                }
            }
            Reply::Ready { .. } | Reply::Unfit { .. } => {}
        }
    }
}

fn reap(mut child: Child) {
    if let Err(error) = child.wait() {
        tracing::warn!(%error, "cannot wait for the supervisor");
    }
}
