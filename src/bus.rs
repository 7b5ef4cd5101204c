//! The bus: everything that is said to NATS, and the only place that names `async_nats`.
//!
//! ```text
//!            publish_assignment            pull            append             publish
//! orchestrator ───────────▶ TASKS ──▶ intake    claim/settle ──▶ EVENTS   report ──▶ LOGS
//! ```
//! Nothing here trusts a fire-and-forget call: every publish, ack and renewal is a request whose reply is read
//! ([`store`], [`delivery`]); the library's own acknowledgement calls take a 503 for success. What an answer means
//! for a task's chain is decided in [`chain`], in one place.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream;
use tokio::sync::{broadcast, watch};

pub mod chain;
mod clock;
pub mod connect;
pub mod control;
mod credentials;
pub mod dead;
pub mod delivery;
pub mod feed;
pub mod inspect;
pub mod kv;
pub mod presence;
pub mod provision;
pub mod pull;
mod pulse;
pub mod queues;
pub mod read;
pub mod rights;
pub mod store;
pub mod subjects;
pub mod submit;

pub use connect::{ConnectError, Patience};
pub use subjects::Subjects;

/// A connection to the fleet's NATS, cheap to clone.
#[derive(Debug, Clone)]
pub struct Bus {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    client: async_nats::Client,
    js: jetstream::Context,
    subjects: Subjects,
    timeout: Duration,
    connections: watch::Receiver<u64>,
    /// What the server refuses without being asked, as it says it.
    refusals: broadcast::Sender<String>,
    pulse: pulse::Pulse,
}

/// Why the bus did not answer as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// No answer within the request timeout: what was asked may or may not have happened.
    #[error("no answer from NATS for {what}")]
    TimedOut {
        /// What was asked.
        what: String,
    },
    /// Nobody serves the subject: no stream, no consumer, or no leader just now.
    #[error("nobody answers {what}: the stream or consumer does not exist (run `windlass init`) or has no leader just now")]
    NoResponders {
        /// What was asked.
        what: String,
    },
    /// JetStream said no.
    #[error("NATS refuses {what}: {text} ({code}){}", advice(*code, text))]
    Refused {
        /// What was asked.
        what: String,
        /// JetStream's error code.
        code: u64,
        /// Its text.
        text: String,
    },
    /// The message is larger than the server takes.
    #[error("{what} is larger than the server's max_payload: {text}")]
    TooLarge {
        /// What was sent.
        what: String,
        /// Sizes.
        text: String,
    },
    /// A stored message that is not what it should be.
    #[error("{what} cannot be read: {text}")]
    Unreadable {
        /// What was read.
        what: String,
        /// What is wrong.
        text: String,
    },
    /// The connection is closed for good.
    #[error("the connection to NATS is closed ({what})")]
    Closed {
        /// What was asked.
        what: String,
    },
}

/// What an operator can do about a refusal.
fn advice(code: u64, text: &str) -> &'static str {
    match code {
        10023 | 10047 => "; the server's JetStream store is full: raise jetstream.max_file, or remove what is not needed",
        10077 if text.contains("per subject") => "",
        10077 => "; the stream is full: raise its limits, or let it discard what is old",
        10039 | 10076 => "; enable JetStream for this account",
        10014 | 10059 => "; run `windlass init`",
        _ => "",
    }
}

impl BusError {
    /// True when the same request may succeed later without anybody mending anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::TimedOut { .. } | Self::NoResponders { .. } => true,
            // Storage limits, resources, leader changes, ingest limits: they pass, or an operator makes them pass.
            Self::Refused { code, .. } => matches!(code, 10008 | 10023 | 10039 | 10047 | 10076 | 10077 | 10158 | 10164 | 10167),
            Self::TooLarge { .. } | Self::Unreadable { .. } | Self::Closed { .. } => false,
        }
    }
}

impl Bus {
    /// The names of subjects and streams.
    #[must_use]
    pub fn subjects(&self) -> &Subjects {
        &self.inner.subjects
    }

    /// Largest message that the connected server takes, headers included, in bytes.
    #[must_use]
    pub fn max_payload(&self) -> usize {
        self.inner.client.max_payload()
    }

    /// The connected server's version.
    #[must_use]
    pub fn server_version(&self) -> String {
        self.inner.client.server_info().version
    }

    /// Whether there is a connection at this moment.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.inner.client.connection_state() == async_nats::connection::State::Connected
    }

    /// Changes each time the connection was made anew: what was subscribed or asked before may be lost.
    #[must_use]
    pub fn connections(&self) -> watch::Receiver<u64> {
        self.inner.connections.clone()
    }

    /// Ends the connection after everything queued was sent. Nothing can be said afterwards.
    pub async fn close(&self) {
        if let Err(error) = tokio::time::timeout(self.inner.timeout, self.inner.client.drain()).await {
            tracing::debug!(%error, "connection did not drain in time");
        }
    }

    async fn stream(&self, name: &str) -> Result<jetstream::stream::Stream<()>, BusError> {
        let what = || format!("stream {name}");
        self.inner.js.get_stream_no_info(name).await.map_err(|e| BusError::Unreadable { what: what(), text: e.to_string() })
    }
}
