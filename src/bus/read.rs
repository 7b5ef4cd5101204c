//! Reading streams: what is there, and what comes.
//!
//! Messages are read one by one from the stream's leader; a live subscription on the same subjects only says that there is
//! something new to read. So nothing is missed over reconnects, and no consumer is left behind on the server.

use std::time::Duration;

use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{RawMessageError, RawMessageErrorKind, Stream as JetStream};
use futures_util::{Stream, StreamExt as _};
use tokio::sync::watch;

use super::chain::{Head, read_error, read_event};
use super::{Bus, BusError, Subjects};
use crate::task::log_chunk::LogChunk;
use crate::task::{EventKind, TaskId, Tenant};
use crate::wire::Encoding;

/// How long to trust that silence means that nothing new is there.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// "no message found"
pub(super) const NO_MESSAGE: u64 = 10037;

/// Which events.
#[derive(Debug, Clone, Default)]
pub struct EventFilter {
    /// Of one tenant.
    pub tenant: Option<Tenant>,
    /// Of one task.
    pub task_id: Option<TaskId>,
    /// Of one kind; counts only without a task.
    pub kind: Option<EventKind>,
}

impl EventFilter {
    pub(super) fn subject(&self, subjects: &Subjects) -> String {
        match (self.kind, &self.task_id) {
            (Some(kind), None) => subjects.events_of_kind(self.tenant.as_ref(), kind),
            (_, task_id) => subjects.events_filter(self.tenant.as_ref(), task_id.as_ref()),
        }
    }
}

/// From where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// The oldest that is kept.
    Start,
    /// Only what comes from now on.
    New,
}

/// An event as it is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadEvent {
    /// Subject.
    pub subject: String,
    /// Sequence, event and digest.
    pub head: Head,
}

/// Reads a stream's messages on one filter, in order.
#[derive(Debug)]
pub struct Tail {
    stream: JetStream<()>,
    filter: String,
    next: u64,
    live: Option<Live>,
}

#[derive(Debug)]
struct Live {
    subscriber: async_nats::Subscriber,
    connections: watch::Receiver<u64>,
}

impl Bus {
    /// Reads `filter` from sequence `from` on; with `follow` it goes on for ever, else it ends at the stream's present end.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn tail(&self, stream: &str, filter: &str, from: u64, follow: bool) -> Result<Tail, BusError> {
        let live = if follow {
            let closed = |_| BusError::Closed { what: filter.to_owned() };
            let subscriber = self.inner.client.subscribe(filter.to_owned()).await.map_err(closed)?;
            Some(Live { subscriber, connections: self.connections() })
        } else {
            None
        };
        Ok(Tail { stream: self.stream(stream).await?, filter: filter.to_owned(), next: from.max(1), live })
    }

    /// Events, oldest first.
    ///
    /// # Errors
    /// When the connection is closed or the stream is not there.
    pub async fn events(
        &self,
        filter: EventFilter,
        from: From,
        follow: bool,
    ) -> Result<impl Stream<Item = Result<ReadEvent, BusError>> + Send + Unpin + use<>, BusError> {
        let filter = filter.subject(self.subjects());
        let stream = self.subjects().events_stream();
        let first = match from {
            From::Start => 1,
            From::New => self.last_sequence(&stream).await? + 1,
        };
        let tail = self.tail(&stream, &filter, first, follow).await?;
        Ok(Box::pin(tail.into_stream().map(|message| event_of(&message?))))
    }

    /// Log chunks of a task over all attempts, oldest first.
    ///
    /// # Errors
    /// As [`Bus::events`].
    pub async fn log_chunks(
        &self,
        tenant: &Tenant,
        task_id: &TaskId,
        follow: bool,
    ) -> Result<impl Stream<Item = Result<LogChunk, BusError>> + Send + Unpin + use<>, BusError> {
        let filter = self.subjects().logs_of(tenant, task_id);
        let tail = self.tail(&self.subjects().logs_stream(), &filter, 1, follow).await?;
        Ok(Box::pin(tail.into_stream().map(|message| {
            let message = message?;
            let what = || format!("log chunk {}", message.sequence);
            let content_type = message.headers.get("Content-Type").map(|v| v.as_str());
            Encoding::detect(content_type, &message.payload)
                .and_then(|encoding| encoding.decode::<LogChunk>(&message.payload))
                .map_err(|e| BusError::Unreadable { what: what(), text: e.to_string() })
        })))
    }

    /// How many messages a stream holds.
    ///
    /// # Errors
    /// When the stream is not there or does not answer.
    pub async fn message_count(&self, stream: &str) -> Result<u64, BusError> {
        let info = self.stream(stream).await?.get_info().await.map_err(|e| read_error(&e, format!("stream {stream}")))?;
        Ok(info.state.messages)
    }

    /// The last sequence of a stream.
    ///
    /// # Errors
    /// When the stream is not there or does not answer.
    pub async fn last_sequence(&self, stream: &str) -> Result<u64, BusError> {
        let info = self.stream(stream).await?.get_info().await.map_err(|e| read_error(&e, format!("stream {stream}")))?;
        Ok(info.state.last_sequence)
    }
}

impl Tail {
    /// The next message; none at the end, unless following. Cancel safe.
    ///
    /// # Errors
    /// Without following, when the server does not answer; a follower waits until it does.
    pub async fn next(&mut self) -> Result<Option<StreamMessage>, BusError> {
        loop {
            let request = self.stream.raw_message_builder().sequence(self.next).next_by_subject(self.filter.clone());
            match (found(request.send().await, || self.filter.clone()), &mut self.live) {
                (Ok(Some(message)), _) => {
                    self.next = message.sequence + 1;
                    return Ok(Some(message));
                }
                (end, None) => return end,
                (end, Some(live)) => live.wait(end.is_err()).await?,
            }
        }
    }

    fn into_stream(self) -> impl Stream<Item = Result<StreamMessage, BusError>> + Send {
        futures_util::stream::unfold(Some(self), |tail| async {
            let mut tail = tail?;
            match tail.next().await {
                Ok(Some(message)) => Some((Ok(message), Some(tail))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
    }
}

/// A stored event.
pub(super) fn event_of(message: &StreamMessage) -> Result<ReadEvent, BusError> {
    let content_type = message.headers.get("Content-Type").map(|v| v.as_str());
    let head = read_event(message.sequence, content_type, &message.payload)
        .map_err(|text| BusError::Unreadable { what: format!("event {}", message.sequence), text })?;
    Ok(ReadEvent { subject: message.subject.to_string(), head })
}

impl Live {
    /// Until something new may be there.
    async fn wait(&mut self, trouble: bool) -> Result<(), BusError> {
        if trouble {
            tokio::time::sleep(Duration::from_millis(200)).await;
            return Ok(());
        }
        tokio::select! {
            message = self.subscriber.next() => match message {
                // The publish is heard before it is stored: the reader may have to ask once more.
                Some(_) => Ok(()),
                None => Err(BusError::Closed { what: "subscription".to_owned() }),
            },
            _ = self.connections.changed() => Ok(()),
            () = tokio::time::sleep(LOOK_AGAIN) => Ok(()),
        }
    }
}

/// A message that was read from a stream by its leader, if it is there.
pub(super) fn found(
    answer: Result<StreamMessage, RawMessageError>,
    what: impl FnOnce() -> String,
) -> Result<Option<StreamMessage>, BusError> {
    match answer {
        Ok(message) => Ok(Some(message)),
        Err(error) => match error.kind() {
            RawMessageErrorKind::NoMessageFound => Ok(None),
            RawMessageErrorKind::JetStream(e) if e.error_code().0 == NO_MESSAGE => Ok(None),
            RawMessageErrorKind::JetStream(e) => Err(BusError::Refused { what: what(), code: e.error_code().0, text: e.to_string() }),
            RawMessageErrorKind::InvalidSubject | RawMessageErrorKind::Other => Err(read_error(&error, what())),
        },
    }
}
