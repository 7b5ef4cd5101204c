//! What can go wrong with an attempt's output.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;

use crate::task::log_chunk::LogStream;
use crate::telemetry::causes;

/// Why output cannot be recorded any more. The task is never blocked by it; it should be stopped.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Fault {
    /// The disk or the quota below the spool is full; the reason `disk_full`.
    #[error("no space left for the output spool {}", path.display())]
    DiskFull {
        /// Directory of the spool.
        path: PathBuf,
    },
    /// Another error of the spool's files.
    #[error("output spool {}", path.display())]
    Spool {
        /// Directory of the spool.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The task's pipe cannot be read.
    #[error("reading {}", stream.as_str())]
    Pipe {
        /// Which pipe.
        stream: LogStream,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The server will never take a chunk.
    #[error("chunk {msg_id} refused: {reason}")]
    Refused {
        /// Message id of the chunk.
        msg_id: String,
        /// What the server said.
        reason: String,
    },
    /// A defect of the recorder.
    #[error("recorder: {0}")]
    Internal(String),
}

impl Fault {
    /// Sorts an error of the spool below `path`.
    pub(super) fn spool(path: &Path, source: io::Error) -> Self {
        let full = matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        let path = path.to_owned();
        if full { Self::DiskFull { path } } else { Self::Spool { path, source: Arc::new(source) } }
    }
}

/// The first fault of a recorder, for everybody who asks or waits.
#[derive(Debug, Clone)]
pub(super) struct Faults(watch::Sender<Option<Fault>>);

impl Faults {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(None))
    }

    /// Keeps `fault` unless there was one before.
    pub(super) fn raise(&self, fault: Fault) {
        self.0.send_if_modified(|first| {
            let new = first.is_none();
            if new {
                tracing::warn!(error = %causes(&fault), "output of the task cannot be recorded");
                *first = Some(fault);
            }
            new
        });
    }

    pub(super) fn first(&self) -> Option<Fault> {
        self.0.borrow().clone()
    }

    pub(super) fn any(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Resolves with the first fault; never when there is none. Cancel safe.
    pub(super) async fn wait(&self) -> Fault {
        let mut watch = self.0.subscribe();
        let seen = watch.wait_for(Option::is_some).await.ok().and_then(|fault| fault.clone());
        match seen {
            Some(fault) => fault,
            None => std::future::pending().await,
        }
    }
}
