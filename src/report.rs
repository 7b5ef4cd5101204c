//! Stage 6, report: a task's output from its pipes to confirmed chunks.
//!
//! ```text
//!            Pump                          Spool                     Publisher
//!  stdout ─▶ lane ─┐                 ┌─▶ head segments ─┐
//!                  ├─ mask ─ records ┤                  ├─ Chunker ─▶ window ─▶ ChunkSink ─▶ confirmed
//!  stderr ─▶ lane ─┘                 └─▶ tail segments ─┘ (seq, offset, sha256)
//!                        └▶ local copy, end of stderr
//! ```
//!
//! [`Recorder`] owns all of it for one attempt. The **pump** reads both pipes and never waits for the broker: it cuts
//! records at the chunk size or after the flush interval and appends them to the **spool** on disk. The **publisher**
//! takes them from there, numbers and encodes them, and keeps as many chunks in flight as the link carries, each repeated with the same
//! bytes and message id until the server has confirmed it. So a broker that is slow or away costs disk (up to the log
//! cap), never memory and never the task's time (invariant 7): in memory are some ten chunks before the disk, and the
//! window with a few more after it.
//!
//! The spool carries nothing across a crash. The next owner of the task makes a new attempt with chunks of its own, and
//! the terminal event's manifest says whose chunks count.
//!
//! What this stage must not do: acknowledge anything, decide about the task, or let unmasked bytes pass the pump
//! (invariant 8). It gives [`AllChunksConfirmed`] to the one who builds the receipt (invariant 1), and only when that is so.

use std::future::Future;

use bytes::Bytes;

mod chunker;
mod fault;
mod gauge;
mod lane;
mod local;
mod pace;
mod publisher;
mod pump;
mod receipt;
mod recorder;
mod spool;
mod tail;
mod utf8;

#[cfg(test)]
mod fake;
#[cfg(any(test, feature = "fuzzing"))]
mod fuzz;
#[cfg(test)]
mod tests;

pub use chunker::chunk_room;
pub use fault::Fault;
#[cfg(any(test, feature = "fuzzing"))]
pub use fuzz::fuzz_log_chunker;
pub use local::{LocalLogs, Pruned, prune};
pub use receipt::Receipt;
pub use recorder::{AllChunksConfirmed, Recorded, Recorder, RecorderConfig, ReportError};

/// Where chunks go: the bus, or a fake in unit tests.
pub trait ChunkSink: Send + Sync + 'static {
    /// Publishes one chunk and resolves when the server has confirmed that it is stored.
    ///
    /// # Errors
    /// The chunk may or may not be stored; publishing the same bytes with the same `msg_id` again is safe.
    fn publish(
        &self,
        subject: String,
        msg_id: String,
        content_type: &'static str,
        body: Bytes,
    ) -> impl Future<Output = Result<(), SinkError>> + Send;
}

/// A chunk without a confirmation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SinkError {
    /// An answer that passes: try the same bytes again.
    #[error("not confirmed: {0}")]
    Retry(String),
    /// No answer within its time: try the same bytes again, and fewer at one time.
    #[error("not answered: {0}")]
    Silent(String),
    /// The server will never take it.
    #[error("refused: {0}")]
    Refused(String),
}
