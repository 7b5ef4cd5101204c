//! A task's chain of events on the bus: reading its head, appending to it by compare-and-set.
//!
//! The decision table of an append is in `fate`.
//! One append is in flight per task, and a new event is not begun before the fate of the one before is known:
//! otherwise an event whose answer was lost would look like somebody else's.

use std::time::Duration;

use async_nats::HeaderMap;
use tokio::time::Instant;

use super::store::Stored;
use super::{Bus, BusError};
use crate::crash;
use crate::retry::Delays;
use crate::task::{Event, TaskId, Tenant};
use crate::telemetry::metrics::{self, Publication};
use crate::wire::event::{Encoded, Fit};
use crate::wire::{Encoding, sha256_hex};

mod fate;

pub(crate) use fate::{Answer, Place, ReadBack, after_answer, after_read_back};

/// `Nats-Expected-Last-Subject-Sequence`
pub(crate) const EXPECTED: &str = "Nats-Expected-Last-Subject-Sequence";
/// `Nats-Expected-Last-Subject-Sequence-Subject`; the library has no name for it.
pub(crate) const EXPECTED_SUBJECT: &str = "Nats-Expected-Last-Subject-Sequence-Subject";

/// The last event of a chain.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    /// Its stream sequence.
    pub sequence: u64,
    /// The event.
    pub event: Event,
    /// SHA-256 of its body, hex.
    pub sha256: String,
}

/// Proof that a task's chain has ended: made only here, when a terminal event was stored or read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainEnd(());

/// What became of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// Stored under this sequence.
    Stored(u64),
    /// The chain belongs to somebody else now. Publish nothing, neither ack nor nak.
    Fenced,
}

/// Time after which what is gone is taken for lost: longer than a new leader needs to know what it has.
const GONE_AFTER: Duration = Duration::from_secs(5);

impl Bus {
    /// The last event of a task's chain, read from the stream's leader.
    ///
    /// # Errors
    /// When the server does not answer or the event cannot be read.
    pub async fn head(&self, tenant: &Tenant, task_id: &TaskId) -> Result<Option<Head>, BusError> {
        self.last_event(&self.subjects().chain(tenant, task_id)).await
    }

    /// The last event of the task's chain; without a tenant, of whichever tenant's task has that id.
    ///
    /// # Errors
    /// As [`Bus::head`].
    pub async fn find_head(&self, tenant: Option<&Tenant>, task_id: &TaskId) -> Result<Option<Head>, BusError> {
        self.last_event(&self.subjects().events_filter(tenant, Some(task_id))).await
    }

    /// The last `task_started` of a task's chain.
    ///
    /// # Errors
    /// As [`Bus::head`].
    pub async fn last_started(&self, tenant: &Tenant, task_id: &TaskId) -> Result<Option<Head>, BusError> {
        self.last_event(&self.subjects().event(tenant, task_id, crate::task::EventKind::TaskStarted)).await
    }

    async fn last_event(&self, filter: &str) -> Result<Option<Head>, BusError> {
        let Some(message) = self.last_message(&self.subjects().events_stream(), filter).await? else { return Ok(None) };
        let head = read_event(message.sequence, message.headers.get("Content-Type").map(|v| v.as_str()), &message.payload)
            .map_err(|text| BusError::Unreadable { what: format!("event {} of {filter}", message.sequence), text })?;
        Ok(Some(head))
    }

    /// The last message on `filter`, read from the stream's leader.
    pub(super) async fn last_message(
        &self,
        stream: &str,
        filter: &str,
    ) -> Result<Option<async_nats::jetstream::message::StreamMessage>, BusError> {
        let answer = self.stream(stream).await?.get_last_raw_message_by_subject(filter).await;
        super::read::found(answer, || format!("the last message of {filter}"))
    }

    async fn append_once(&self, chain: &str, expected: u64, event: &Encoded) -> Result<Stored, BusError> {
        let sent = Instant::now();
        let mut headers = HeaderMap::new();
        for (name, value) in &event.headers {
            headers.insert(*name, value.as_str());
        }
        headers.insert(EXPECTED, expected.to_string());
        headers.insert(EXPECTED_SUBJECT, chain);
        let stored = self.store(event.subject.clone(), headers, event.body.clone()).await;
        stored.inspect(|_| {
            metrics::note(|m| m.confirmed(Publication::Event, sent.elapsed()));
            crash::event_stored(event.kind);
        })
    }

    /// Appends `event` if the chain ends where `place` says. Sends the same bytes again until the answer is known, however
    /// long that takes: drop the future to give up, and know then that it may be stored.
    ///
    /// After every reconnect the chain is looked at first: a server that lost power may have lost what it had confirmed, and
    /// give the same sequences to other events.
    async fn append(&self, tenant: &Tenant, task_id: &TaskId, mut place: Place<'_>, event: &Encoded) -> Result<Appended, BusError> {
        let chain = self.subjects().chain(tenant, task_id);
        let mut delays = Delays::new(Duration::from_millis(20), Duration::from_secs(2));
        let mut gone: Option<Instant> = None;
        let mut sends = 0_u32;
        loop {
            let connection = *self.connections().borrow();
            let known = place.expected == 0 || place.seen == Some(connection);
            if known {
                sends += 1;
                metrics::note(|m| {
                    if sends > 1 {
                        m.published_again(Publication::Event)
                    }
                });
            }
            let answer = if known { Some(self.append_once(&chain, place.expected, event).await) } else { None };
            match (answer.as_ref().map_or(Answer::ReadBack, after_answer), answer) {
                (Answer::Stored(sequence), _) => return Ok(Appended::Stored(sequence)),
                (Answer::Never, Some(Err(error))) => {
                    metrics::note(|m| m.refused(Publication::Event));
                    return Err(error);
                }
                (Answer::ReadBack, sent) => match self.last_event(&chain).await.map(|head| after_read_back(head.as_ref(), place, event)) {
                    Ok(ReadBack::Known(fate)) => return Ok(fate),
                    Ok(ReadBack::Unmoved) => {
                        place.seen = Some(connection);
                        if sent.is_none() {
                            continue;
                        }
                        gone = None;
                    }
                    Ok(ReadBack::Gone) if gone.get_or_insert_with(Instant::now).elapsed() >= GONE_AFTER => {
                        let stream = self.subjects().events_stream();
                        tracing::error!(event = event.id, expected = place.expected, %stream, "the events before this one are gone, the stream was removed or the server lost what it had confirmed: the task is given up here and runs again");
                        return Ok(Appended::Fenced);
                    }
                    // A leader that is new may not have read its log to the end: gone is what stays gone.
                    Ok(ReadBack::Gone) => {}
                    Err(error) => tracing::warn!(%error, event = event.id, "cannot read back an append, trying again"),
                },
                (Answer::Again | Answer::Never, answer) => {
                    if let Some(Err(error)) = answer {
                        tracing::warn!(%error, event = event.id, "event not confirmed, sending the same bytes again");
                    }
                }
            }
            delays.wait().await;
        }
    }
}

/// Parses a stored event.
pub(super) fn read_event(sequence: u64, content_type: Option<&str>, payload: &[u8]) -> Result<Head, String> {
    let event =
        Encoding::detect(content_type, payload).and_then(|encoding| encoding.decode::<Event>(payload)).map_err(|e| e.to_string())?;
    Ok(Head { sequence, event, sha256: sha256_hex(payload) })
}

pub(super) fn read_error(error: &(dyn std::error::Error + 'static), what: String) -> BusError {
    let mut source = Some(error);
    while let Some(cause) = source {
        if let Some(request) = cause.downcast_ref::<async_nats::client::RequestError>() {
            return super::store::request_error(request, &what);
        }
        if let Some(request) = cause.downcast_ref::<async_nats::jetstream::context::RequestError>() {
            return match request.kind() {
                async_nats::jetstream::context::RequestErrorKind::NoResponders => BusError::NoResponders { what },
                async_nats::jetstream::context::RequestErrorKind::TimedOut
                | async_nats::jetstream::context::RequestErrorKind::Other
                | async_nats::jetstream::context::RequestErrorKind::InvalidSubject => BusError::TimedOut { what },
            };
        }
        source = cause.source();
    }
    BusError::TimedOut { what }
}

/// Where the next event of a chain goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub seq: u64,
    /// Digest of the event before it.
    pub prev_sha256: Option<String>,
}

impl Link {
    /// The link that follows `head`, with the sequence that its append expects.
    #[must_use]
    pub fn after(head: Option<&Head>) -> (u64, Self) {
        match head {
            Some(head) => (head.sequence, Self { seq: head.event.seq + 1, prev_sha256: Some(head.sha256.clone()) }),
            None => (0, Self { seq: 0, prev_sha256: None }),
        }
    }
}

/// The writing end of one task's chain, for whoever holds it now.
#[derive(Debug)]
pub struct ChainWriter {
    bus: Bus,
    tenant: Tenant,
    task_id: TaskId,
    encoding: Encoding,
    expected: u64,
    link: Link,
    /// The connection under which the chain was last seen to end there.
    seen: u64,
    /// Sent, and its fate not known: whoever waited for it went away.
    unsettled: Option<Encoded>,
}

impl ChainWriter {
    /// A writer that goes on after `head`.
    #[must_use]
    pub fn after(bus: Bus, tenant: Tenant, task_id: TaskId, encoding: Encoding, head: Option<&Head>) -> Self {
        let (expected, link) = Link::after(head);
        let seen = *bus.connections().borrow();
        Self { bus, tenant, task_id, encoding, expected, link, seen, unsettled: None }
    }

    /// Encodes the event that `build` makes for the next link, without sending it.
    ///
    /// # Errors
    /// When it cannot be encoded or made to fit.
    pub fn encode(&self, build: impl FnOnce(Link) -> Event) -> Result<Encoded, BusError> {
        let event = build(self.link.clone());
        let subject = self.bus.subjects().event(&self.tenant, &self.task_id, event.event);
        let fit = Fit { max_payload: self.bus.max_payload() };
        Encoded::new(event, subject, self.encoding, fit).map_err(|text| BusError::TooLarge { what: "event".to_owned(), text })
    }

    /// Appends the event that `build` makes for the next link.
    ///
    /// # Errors
    /// Only when it can never be stored: too large, or the connection is closed for good.
    pub async fn append(&mut self, build: impl FnOnce(Link) -> Event) -> Result<Appended, BusError> {
        if self.settle_unsettled().await? == Some(Appended::Fenced) {
            return Ok(Appended::Fenced);
        }
        let encoded = self.encode(build)?;
        self.append_encoded(encoded).await
    }

    /// Appends an event that [`ChainWriter::encode`] made for the link that is still the next.
    ///
    /// # Errors
    /// Only when it can never be stored: too large, or the connection is closed for good.
    pub async fn append_encoded(&mut self, encoded: Encoded) -> Result<Appended, BusError> {
        self.unsettled = Some(encoded);
        Ok(self.settle_unsettled().await?.unwrap_or(Appended::Fenced))
    }

    /// Finds out what became of an append whose caller went away.
    ///
    /// # Errors
    /// Only when it can never be stored: too large, or the connection is closed for good.
    pub async fn settle_unsettled(&mut self) -> Result<Option<Appended>, BusError> {
        let Some(encoded) = &self.unsettled else { return Ok(None) };
        let place = Place { expected: self.expected, sha256: self.link.prev_sha256.as_deref(), seen: Some(self.seen) };
        let seen = *self.bus.connections().borrow();
        let fate = self.bus.append(&self.tenant, &self.task_id, place, encoded).await?;
        if let Appended::Stored(sequence) = fate {
            (self.expected, self.seen) = (sequence, seen);
            self.link = Link { seq: self.link.seq + 1, prev_sha256: Some(encoded.sha256.clone()) };
        }
        self.unsettled = None;
        Ok(Some(fate))
    }
}

impl ChainEnd {
    /// The proof, when `head` is a terminal event.
    #[must_use]
    pub fn of_head(head: &Head) -> Option<Self> {
        head.event.event.is_terminal().then_some(Self(()))
    }

    /// The proof, when `encoded` is a terminal event that was stored.
    #[must_use]
    pub fn of_append(encoded: &Encoded, fate: Appended) -> Option<Self> {
        (encoded.kind.is_terminal() && matches!(fate, Appended::Stored(_))).then_some(Self(()))
    }
}

/// Terminal events on their way, kept on disk so that the same host can finish them after a crash.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SpooledEvent {
    /// Tenant of the chain.
    pub tenant: Tenant,
    /// Task of the chain.
    pub task_id: TaskId,
    /// What the append expects.
    pub expected: u64,
    /// Digest of that event.
    #[serde(default)]
    pub prev_sha256: Option<String>,
    /// The event.
    pub event: Encoded,
}

impl SpooledEvent {
    /// What is to be appended by `writer`.
    #[must_use]
    pub fn new(writer: &ChainWriter, event: Encoded) -> Self {
        Self {
            tenant: writer.tenant.clone(),
            task_id: writer.task_id.clone(),
            expected: writer.expected,
            prev_sha256: writer.link.prev_sha256.clone(),
            event,
        }
    }

    /// Appends it, if the chain still stands where it was.
    ///
    /// # Errors
    /// Only when it can never be stored: too large, or the connection is closed for good.
    pub async fn replay(&self, bus: &Bus) -> Result<Appended, BusError> {
        let place = Place { expected: self.expected, sha256: self.prev_sha256.as_deref(), seen: None };
        bus.append(&self.tenant, &self.task_id, place, &self.event).await
    }
}
