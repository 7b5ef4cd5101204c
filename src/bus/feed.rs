//! Events of many tasks in one flow, for whoever watches the fleet: the server sends them as fast as they can be read, where
//! [`super::read`] asks for each. Each comes with the server's time, by which events of different workers can be compared.
//!
//! A consumer without acknowledgements, in the server's memory; half a minute after its reader went away it is gone. The library
//! makes it anew when it is lost, but from the stream's very beginning if nothing had come of it yet; so after a reconnect a
//! new one is made here, that begins where this reader stands.

use std::time::Duration;

use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::push::{Ordered, OrderedConfig};
use async_nats::jetstream::stream::ConsumerErrorKind;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use tokio::sync::watch;

use super::chain::{Head, read_error, read_event};
use super::{Bus, BusError};
use crate::retry::Delays;
use crate::task::{Tenant, Time};

/// An event, and when it was stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Stamped {
    /// Sequence, event and digest.
    pub head: Head,
    /// When, by the server's clock.
    pub stored: Time,
}

/// Events in the order of their stream, for ever; an error is the last item.
pub type EventFeed = BoxStream<'static, Result<Stamped, BusError>>;

struct Reader {
    bus: Bus,
    filter: String,
    /// The next sequence that was not given out.
    next: u64,
    open: Option<Box<Ordered>>,
    connections: watch::Receiver<u64>,
    delays: Delays,
}

impl Bus {
    /// Events of one tenant or of all, from sequence `from` on. While the server is away, nothing comes; an event that cannot be
    /// read is passed over. The error is that the server refuses, or that the connection is closed for good.
    #[must_use]
    pub fn event_feed(&self, tenant: Option<&Tenant>, from: u64) -> EventFeed {
        let filter = self.subjects().events_filter(tenant, None);
        let reader = Reader { bus: self.clone(), filter, next: from.max(1), open: None, connections: self.connections(), delays: delays() };
        // As a stream: what is begun goes on where somebody stopped to wait for it.
        futures_util::stream::unfold(Some(reader), |reader| async {
            let mut reader = reader?;
            match reader.next().await {
                Ok(stamped) => Some((Ok(stamped), Some(reader))),
                Err(error) => Some((Err(error), None)),
            }
        })
        .boxed()
    }

    async fn ordered(&self, filter: &str, from: u64) -> Result<Ordered, BusError> {
        let stream = self.subjects().events_stream();
        let what = || format!("a consumer of {stream}");
        let config = OrderedConfig {
            deliver_subject: self.inner.client.new_inbox(),
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: from },
            filter_subject: filter.to_owned(),
            description: Some("windlass: somebody watches".to_owned()),
            ..OrderedConfig::default()
        };
        let consumer = self.inner.js.create_consumer_on_stream(config, &stream).await.map_err(|error| match error.kind() {
            ConsumerErrorKind::JetStream(e) => BusError::Refused { what: what(), code: e.error_code().0, text: e.to_string() },
            ConsumerErrorKind::TimedOut
            | ConsumerErrorKind::Request
            | ConsumerErrorKind::InvalidConsumerType
            | ConsumerErrorKind::InvalidName
            | ConsumerErrorKind::Other => read_error(&error, what()),
        })?;
        consumer.messages().await.map_err(|_| BusError::Closed { what: what() })
    }
}

fn delays() -> Delays {
    Delays::new(Duration::from_millis(100), Duration::from_secs(2))
}

impl Reader {
    async fn next(&mut self) -> Result<Stamped, BusError> {
        loop {
            let Some(open) = &mut self.open else {
                self.connections.mark_unchanged();
                match self.bus.ordered(&self.filter, self.next).await {
                    Ok(ordered) => self.open = Some(Box::new(ordered)),
                    Err(error) if error.is_transient() => self.delays.wait().await,
                    Err(error) => return Err(error),
                }
                continue;
            };
            tokio::select! {
                message = open.next() => match message {
                    Some(Ok(message)) => {
                        if let Some(stamped) = self.take(&message) {
                            return Ok(stamped);
                        }
                    }
                    Some(Err(_)) | None => {
                        self.open = None;
                        self.delays.wait().await;
                    }
                },
                changed = self.connections.changed() => {
                    if changed.is_err() {
                        return Err(BusError::Closed { what: self.filter.clone() });
                    }
                    self.open = None;
                }
            }
        }
    }

    fn take(&mut self, message: &async_nats::jetstream::Message) -> Option<Stamped> {
        let info = message.info().ok()?;
        let sequence = info.stream_sequence;
        // A consumer that the library made anew may begin at the beginning.
        if sequence < self.next {
            return None;
        }
        self.next = sequence + 1;
        self.delays = delays();
        let content_type = message.headers.as_ref().and_then(|h| h.get("Content-Type")).map(|v| v.as_str());
        match read_event(sequence, content_type, &message.payload) {
            Ok(head) => Some(Stamped { head, stored: Time::from_nanos(info.published.unix_timestamp_nanos()) }),
            Err(error) => {
                tracing::warn!(sequence, error, "an event that cannot be read");
                None
            }
        }
    }
}
