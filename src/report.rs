//! Stage 6, report: a task's output from its pipes to confirmed chunks.

use std::future::Future;

use bytes::Bytes;

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
    /// No answer, or one that passes: try the same bytes again.
    #[error("not confirmed: {0}")]
    Retry(String),
    /// The server will never take it.
    #[error("refused: {0}")]
    Refused(String),
}
