//! The handle on one attempt's output.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::unix::pipe::Receiver;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::Instrument as _;

use super::ChunkSink;
use super::chunker::{Chunker, Identity};
use super::fault::{Fault, Faults};
use super::gauge::Gauge;
use super::lane::{CutRule, Lane};
use super::local::{LocalLog, LocalLogs};
use super::publisher::{Publisher, Stage};
use super::pump::{Context, Pump};
use super::spool::{self, Reader, Spool, SpoolConfig};
use super::tail::StderrTail;
use crate::mask::Masker;
use crate::task::event::Manifest;
use crate::task::log_chunk::LogStream;
use crate::task::{ByteSize, TaskId, Tenant};
use crate::telemetry::spawn_blocking;
use crate::wire::Encoding;

/// Smallest chunk: a character must fit, and a cut must make progress.
const MIN_CHUNK: u64 = 16;

/// Largest chunk: the spool and the window are sized in chunks.
const MAX_CHUNK: u64 = 1 << 20;

/// Whose output is recorded, and how.
#[derive(Debug, Clone)]
pub struct RecorderConfig {
    /// The task.
    pub task_id: TaskId,
    /// Whose.
    pub tenant: Tenant,
    /// The attempt.
    pub attempt: u32,
    /// Stream sequence of the attempt's `task_started`.
    pub fence: u64,
    /// `<prefix>.logs.<tenant>.<task_id>.<attempt>`; the stream's name is appended.
    pub subject: String,
    /// Encoding of the chunks.
    pub encoding: Encoding,
    /// Output that is kept, half of it head and half tail.
    pub cap: ByteSize,
    /// Largest chunk; between 16 bytes and 1 MiB.
    pub chunk: ByteSize,
    /// Longest wait before output is published.
    pub flush: Duration,
    /// Chunks under way at one time.
    pub window: u32,
    /// The server's `max_payload`, bytes.
    pub max_payload: usize,
    /// Directory for the spool, of this attempt alone; it exists only while there is output.
    pub spool: PathBuf,
    /// Local copies, if wanted.
    pub local: Option<LocalLogs>,
    /// Secrets that must not leave.
    pub mask: Masker,
}

/// Everything that an attempt wrote is stored by the server: each chunk of the manifest was confirmed.
///
/// Only [`Recorder::finish`] makes one. A receipt, and so an acknowledgement, is built on it.
#[derive(Debug)]
#[must_use = "this is what a receipt is made of"]
pub struct AllChunksConfirmed(());

/// The whole output of an attempt, stored.
#[derive(Debug)]
pub struct Recorded {
    /// What a reader must find.
    pub manifest: Manifest,
    /// The end of standard error, 4 KiB at most.
    pub stderr_tail: String,
    /// That every chunk of the manifest was confirmed.
    pub proof: AllChunksConfirmed,
}

/// The output of an attempt could not be recorded as a whole.
#[derive(Debug, thiserror::Error)]
#[error("output was not recorded as a whole")]
pub struct ReportError {
    /// Why.
    #[source]
    pub fault: Fault,
    /// The end of standard error, 4 KiB at most.
    pub stderr_tail: String,
    /// What was stored nevertheless, each chunk confirmed, when it could be brought to an end: after a full disk all that
    /// was written before, with the rest counted as dropped. `None` when the server does not have everything.
    pub published: Option<Box<(Manifest, AllChunksConfirmed)>>,
}

/// Records one attempt's output. Dropping it stops everything and removes the spool.
#[derive(Debug)]
pub struct Recorder {
    finish: oneshot::Sender<Duration>,
    pump: JoinHandle<()>,
    publisher: JoinHandle<Option<Manifest>>,
    faults: Faults,
    gauge: Gauge,
    stderr_tail: StderrTail,
    stop: DropGuard,
    spool: Arc<Spool>,
}

impl Recorder {
    /// Starts reading both pipes, which become non-blocking. Must be called on a tokio runtime with I/O and time.
    ///
    /// # Errors
    /// When one of the two is not the read end of a pipe.
    pub fn start<S: ChunkSink>(config: RecorderConfig, sink: Arc<S>, stdout: OwnedFd, stderr: OwnedFd) -> io::Result<Self> {
        Self::start_on(config, sink, stdout, stderr, spool::create)
    }

    pub(super) fn start_on<S: ChunkSink>(
        config: RecorderConfig,
        sink: Arc<S>,
        stdout: OwnedFd,
        stderr: OwnedFd,
        create: spool::Create,
    ) -> io::Result<Self> {
        let chunk = usize::try_from(config.chunk.bytes().clamp(MIN_CHUNK, MAX_CHUNK)).map_err(io::Error::other)?;
        let rule = CutRule { chunk, flush: config.flush };
        let lanes = [
            Lane::new(LogStream::Stdout, Receiver::from_owned_fd(stdout)?, rule, config.mask.stream()),
            Lane::new(LogStream::Stderr, Receiver::from_owned_fd(stderr)?, rule, config.mask.stream()),
        ];
        let half = config.cap.bytes() / 2;
        let spool = Spool::new(SpoolConfig { dir: config.spool.clone(), head: config.cap.bytes() - half, tail: half, create });
        let (faults, gauge, stderr_tail, cancel) = (Faults::new(), Gauge::default(), StderrTail::default(), CancellationToken::new());
        let publisher = Publisher {
            spool: Arc::clone(&spool),
            sink,
            window: config.window.max(1) as usize,
            faults: faults.clone(),
            cancel: cancel.clone(),
            gauge: gauge.clone(),
        };
        let context = Context {
            spool: Arc::clone(&spool),
            faults: faults.clone(),
            cancel: cancel.clone(),
            gauge: gauge.clone(),
            stderr_tail: stderr_tail.clone(),
        };
        let stage = Stage { reader: Reader::new(Arc::clone(&spool)), chunker: Chunker::new(identity(&config)) };
        let local = config.local.map(|local| LocalLog::new(local, &config.tenant, &config.task_id, config.attempt));
        let (finish, finishing) = oneshot::channel();
        let pump = tokio::spawn(Pump::new(lanes, chunk, local, context).run(finishing).in_current_span());
        let publisher = tokio::spawn(publisher.run(stage).in_current_span());
        Ok(Self { finish, pump, publisher, faults, gauge, stderr_tail, stop: cancel.drop_guard(), spool })
    }

    /// Resolves when output cannot be recorded any more; the task should be stopped then, with reason `disk_full` for
    /// [`Fault::DiskFull`]. Never resolves otherwise. Cancel safe.
    pub async fn failed(&self) -> Fault {
        self.faults.wait().await
    }

    /// The end of standard error so far, 4 KiB at most; what is not UTF-8 is replaced.
    #[must_use]
    pub fn stderr_tail(&self) -> String {
        self.stderr_tail.text()
    }

    /// Bytes of output in memory now, before encoding: some ten chunks before the disk, and the window after it.
    #[must_use]
    pub fn buffered_bytes(&self) -> usize {
        self.gauge.now()
    }

    /// Ends the recording once the task's processes are dead: reads both pipes to their end, for `drain` at most in case
    /// somebody else holds them, publishes what is left and waits until every chunk is confirmed, however long the server
    /// is away. Dropping the future gives up.
    ///
    /// # Errors
    /// After a [`Fault`]: output is missing.
    pub async fn finish(self, drain: Duration) -> Result<Recorded, ReportError> {
        let Self { finish, pump, publisher, faults, stderr_tail, stop, spool, .. } = self;
        // A pump that has seen the end of both pipes does not listen any more.
        let _ = finish.send(drain);
        if let Err(e) = pump.await {
            faults.raise(Fault::Internal(e.to_string()));
            stop.disarm().cancel();
        }
        let manifest = publisher.await.unwrap_or_else(|e| {
            faults.raise(Fault::Internal(e.to_string()));
            None
        });
        remove(spool).await;
        let stderr_tail = stderr_tail.text();
        let proof = AllChunksConfirmed(());
        match (faults.first(), manifest) {
            (None, Some(manifest)) => Ok(Recorded { manifest, stderr_tail, proof }),
            (fault, manifest) => Err(ReportError {
                fault: fault.unwrap_or_else(|| Fault::Internal("stopped before its end".to_owned())),
                stderr_tail,
                published: manifest.map(|manifest| Box::new((manifest, proof))),
            }),
        }
    }

    /// Stops everything, publishes nothing more and returns when the spool is gone.
    pub async fn abandon(self) {
        let Self { pump, publisher, stop, spool, .. } = self;
        drop(stop);
        let _ = pump.await;
        let _ = publisher.await;
        remove(spool).await;
    }

    #[cfg(test)]
    pub(super) fn peak_buffered_bytes(&self) -> usize {
        self.gauge.peak()
    }
}

/// Drops the last owner of a spool off the runtime's threads, if there is anything on disk.
async fn remove(spool: Arc<Spool>) {
    if spool.is_on_disk() {
        let _ = spawn_blocking(move || drop(spool)).await;
    }
}

fn identity(config: &RecorderConfig) -> Identity {
    Identity {
        task_id: config.task_id.clone(),
        tenant: config.tenant.clone(),
        attempt: config.attempt,
        fence: config.fence,
        subject: config.subject.clone(),
        encoding: config.encoding,
        max_payload: config.max_payload,
    }
}
