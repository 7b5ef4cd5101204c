//! Storing one message in a stream, with the server's answer read and understood.
//!
//! A publish is a request here. The library's publish futures map only some error codes, hand dropped ones to a
//! background task that forgets failures, and count a 503 as "stream not found", which a leaderless stream also gives.

use std::time::Duration;

use async_nats::client::{RequestError, RequestErrorKind};
use async_nats::{HeaderMap, Message, Request};
use bytes::Bytes;
use serde::Deserialize;

use super::{Bus, BusError};
use crate::crash::{self, Point};
use crate::report::{ChunkSink, SinkError};

/// Proof that a message is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Its stream sequence, above 0.
    pub sequence: u64,
    /// It was there before, by its `Nats-Msg-Id`.
    pub duplicate: bool,
}

#[derive(Debug, Deserialize)]
struct Answer {
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    error: Option<Refusal>,
}

/// JetStream's no, as every answer of its has it.
#[derive(Debug, Deserialize)]
pub(super) struct Refusal {
    /// Like HTTP's.
    #[serde(default)]
    pub(super) code: u64,
    /// Its own.
    #[serde(default)]
    pub(super) err_code: u64,
    #[serde(default)]
    pub(super) description: String,
}

impl Bus {
    /// Publishes to a stream and waits until the server says that it is stored.
    ///
    /// # Errors
    /// [`BusError::TimedOut`] leaves open whether it is stored; the others say that it is not.
    pub async fn store(&self, subject: String, headers: HeaderMap, body: Bytes) -> Result<Stored, BusError> {
        let request = Request::new().headers(headers).payload(body);
        self.store_request(subject, request, self.inner.timeout).await
    }

    async fn store_request(&self, subject: String, request: Request, within: Duration) -> Result<Stored, BusError> {
        let what = subject.clone();
        let reply = self.ask(subject, request, within, &what).await?;
        understand(&reply.payload, what)
    }

    /// Asks, and gives up when the answer can only be late, or when the connection was made anew: what was asked by the old
    /// one has no answer any more, and who asks again at once does not lose the rest of its time.
    pub(super) async fn ask(&self, subject: String, request: Request, within: Duration, what: &str) -> Result<Message, BusError> {
        let mut connections = self.connections();
        connections.mark_unchanged();
        let asked = self.inner.client.send_request(subject, request.timeout(Some(within)));
        // Both arms are cancel safe as far as anything here is: it stays open whether what was asked has happened.
        tokio::select! {
            reply = asked => reply.map_err(|e| request_error(&e, what)),
            Ok(()) = connections.changed() => Err(BusError::TimedOut { what: what.to_owned() }),
        }
    }
}

/// An answer to output may take so many times as long as to anything else: on a slow link a whole window is on its way
/// before it, and to send it again would only make the link slower.
const PATIENCE_WITH_OUTPUT: u32 = 4;

fn understand(payload: &[u8], what: String) -> Result<Stored, BusError> {
    let answer: Answer =
        serde_json::from_slice(payload).map_err(|e| BusError::Unreadable { what: format!("the answer to {what}"), text: e.to_string() })?;
    match answer {
        Answer { error: Some(error), .. } => {
            let code = if error.err_code == 0 { error.code } else { error.err_code };
            Err(BusError::Refused { what, code, text: error.description })
        }
        // "The first copy is under way": nothing is durable yet.
        Answer { seq: 0, .. } => Err(BusError::TimedOut { what }),
        Answer { seq, duplicate, .. } => Ok(Stored { sequence: seq, duplicate }),
    }
}

pub(super) fn request_error(error: &RequestError, what: &str) -> BusError {
    let what = what.to_owned();
    match error.kind() {
        RequestErrorKind::TimedOut => BusError::TimedOut { what },
        RequestErrorKind::NoResponders => BusError::NoResponders { what },
        RequestErrorKind::MaxPayloadExceeded => BusError::TooLarge { what, text: error.to_string() },
        RequestErrorKind::InvalidSubject => BusError::Refused { what, code: 0, text: error.to_string() },
        RequestErrorKind::Other => BusError::Closed { what },
    }
}

impl ChunkSink for Bus {
    async fn publish(&self, subject: String, msg_id: String, content_type: &'static str, body: Bytes) -> Result<(), SinkError> {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Msg-Id", msg_id);
        headers.insert("Content-Type", content_type);
        let request = Request::new().headers(headers).payload(body);
        match self.store_request(subject, request, self.inner.timeout * PATIENCE_WITH_OUTPUT).await {
            Ok(_) => {
                crash::point(Point::ChunkStored);
                Ok(())
            }
            Err(error @ (BusError::TooLarge { .. } | BusError::Closed { .. })) => Err(SinkError::Refused(error.to_string())),
            Err(error @ BusError::TimedOut { .. }) => Err(SinkError::Silent(error.to_string())),
            Err(error) => Err(SinkError::Retry(error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_sequence_is_a_promise() {
        let read = |text: &str| understand(text.as_bytes(), "x".to_owned());
        assert_eq!(read(r#"{"stream":"S","seq":7}"#), Ok(Stored { sequence: 7, duplicate: false }));
        assert_eq!(read(r#"{"stream":"S","seq":7,"duplicate":true}"#), Ok(Stored { sequence: 7, duplicate: true }));
        assert!(matches!(read(r#"{"stream":"S","seq":0,"duplicate":true}"#), Err(BusError::TimedOut { .. })));
        assert!(matches!(
            read(r#"{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 3"}}"#),
            Err(BusError::Refused { code: 10071, .. })
        ));
        assert!(matches!(read("+OK"), Err(BusError::Unreadable { .. })));
    }
}
