//! The disk between the task and the broker.
//!
//! Records lie in numbered segment files of one directory, which exists from the first byte of output until everything is
//! consumed. [`Writer`] appends (pump side), [`Reader`] takes (publisher side); both run on the blocking pool, because a
//! write can wait for the disk when too much of the page cache is dirty. What both need to know is in memory, a few words
//! per segment; the files carry no recovery data: an attempt's output is worthless to a worker that did not run it.
//!
//! ```text
//!  records ─▶ head: the first cap/2 bytes ─▶ read and deleted at once ─▶ chunks, live
//!          └▶ tail: the newest cap/2 bytes; oldest segments deleted; read after the end of output
//! ```

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::task::Time;
use crate::task::log_chunk::LogStream;

mod reader;
mod writer;

pub(super) use reader::{Piece, Reader};
pub(super) use writer::Writer;

/// Bytes before each record: stream, length, time.
const HEADER: usize = 16;

/// Payload of a segment: small enough that consumed output frees the disk soon, large enough that files are rare.
const SEGMENT: u64 = 4 << 20;

/// Creates a segment file; a fake in tests of a full disk.
pub(super) type Create = fn(&Path) -> io::Result<File>;

/// Creates a file that only this user may read: output can be private. Never one that is there: it would be somebody else's.
pub(super) fn create(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().write(true).create_new(true).mode(0o600).open(path)
}

/// Where the spool is and how much it keeps.
#[derive(Debug, Clone)]
pub(super) struct SpoolConfig {
    pub(super) dir: PathBuf,
    /// Bytes kept of the beginning.
    pub(super) head: u64,
    /// Bytes kept of the end.
    pub(super) tail: u64,
    pub(super) create: Create,
}

/// What writer and reader share. The last owner removes the directory.
#[derive(Debug)]
pub(super) struct Spool {
    config: SpoolConfig,
    state: Mutex<State>,
    /// Something was committed, noticed or closed.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Committed segments to read now: the head; once that is consumed and output ended, the tail.
    queue: VecDeque<Segment>,
    /// Read position in the front of `queue`.
    position: u64,
    tail: VecDeque<Segment>,
    /// The worker's own notices, published when the head is consumed; a handful at most, in memory, since one of them says
    /// that the disk is full.
    notices: VecDeque<(Time, String)>,
    /// Bytes per stream that the cap left out between head and tail.
    dropped: [u64; 3],
    /// Bytes per stream that could not be written.
    lost: [u64; 3],
    closed: bool,
    on_disk: bool,
}

#[derive(Debug, Clone, Copy)]
struct Segment {
    id: u64,
    /// Committed length of the file.
    len: u64,
    /// Output in it, per stream.
    payload: [u64; 3],
}

impl Segment {
    fn bytes(&self) -> u64 {
        self.payload.iter().sum()
    }
}

impl Spool {
    pub(super) fn new(config: SpoolConfig) -> Arc<Self> {
        Arc::new(Self { config, state: Mutex::default(), changed: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn segment_path(&self, id: u64) -> PathBuf {
        self.config.dir.join(format!("{id:06}.segment"))
    }

    pub(super) fn dir(&self) -> &Path {
        &self.config.dir
    }

    pub(super) fn is_on_disk(&self) -> bool {
        self.lock().on_disk
    }

    /// Ends the output without another record.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_one();
    }

    /// Tells the reader of the output something about it.
    pub(super) fn notice(&self, text: String) {
        self.lock().notices.push_back((Time::now(), text));
        self.changed.notify_one();
    }

    /// Waits until there may be something new for the one reader. Cancel safe: a notification is kept.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// True when the reader has something to do.
    pub(super) fn has_work(&self) -> bool {
        let state = self.lock();
        state.closed || state.unread() || !state.notices.is_empty()
    }
}

impl State {
    fn unread(&self) -> bool {
        self.queue.len() > 1 || self.queue.front().is_some_and(|front| front.len > self.position)
    }

    /// True when the reader has got everything there will ever be.
    fn exhausted(&self) -> bool {
        self.closed && !self.unread() && self.notices.is_empty() && self.tail.is_empty() && self.lost == [0; 3]
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        if self.lock().on_disk
            && let Err(e) = std::fs::remove_dir_all(&self.config.dir)
        {
            tracing::warn!(path = %self.config.dir.display(), error = %e, "output spool stays behind");
        }
    }
}

/// Position of a stream in per-stream arrays, that of [`LogStream::ALL`].
pub(super) fn index(stream: LogStream) -> usize {
    match stream {
        LogStream::Stdout => 0,
        LogStream::Stderr => 1,
        LogStream::System => 2,
    }
}
