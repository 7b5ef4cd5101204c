//! One delivery of a queued message, and the confirmed ways to answer it.
//!
//! JetStream does not fence acknowledgements: that of a stale delivery acts on the message that another worker now
//! runs. Whoever calls these must know that the task is over or still his; [`crate::intake::Lease`] is the only caller.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{HeaderMap, Message, Request, Subject};
use bytes::Bytes;
use tokio::time::Instant;

use super::read::found;
use super::{Bus, BusError};
use crate::crash::{self, Point};
use crate::task::Time;

/// How long a look at the queue holds. To remove a stream, make it anew and fill it up to the same place takes longer.
const FRESH: Duration = Duration::from_millis(500);

/// One delivery.
#[derive(Debug, Clone)]
pub struct Delivery {
    bus: Bus,
    reply: Subject,
    /// Subject that the assignment was published to.
    pub subject: String,
    /// Headers.
    headers: HeaderMap,
    /// The assignment's bytes.
    pub payload: Bytes,
    /// When it came, by the monotonic clock.
    pub received: Instant,
    /// How often the message was handed out, this time included.
    pub deliveries: u64,
    /// Its sequence in the stream of tasks.
    pub sequence: u64,
    /// When it was stored there.
    pub submitted_at: Time,
    /// When it was last seen in the queue by [`Delivery::look`].
    seen: Arc<Mutex<Option<Instant>>>,
}

impl Delivery {
    /// Reads what the server sent; none for status messages and for what does not come from a stream.
    pub(super) fn read(bus: &Bus, message: Message) -> Option<Self> {
        let reply = message.reply.clone()?;
        let message = async_nats::jetstream::Message { message, context: bus.inner.js.clone() };
        let info = message.info().ok()?;
        let (deliveries, sequence) = (u64::try_from(info.delivered).unwrap_or(1), info.stream_sequence);
        let submitted_at = Time::from_nanos(info.published.unix_timestamp_nanos());
        let message = message.message;
        Some(Self {
            bus: bus.clone(),
            reply,
            subject: message.subject.to_string(),
            headers: message.headers.unwrap_or_default(),
            payload: message.payload,
            received: Instant::now(),
            deliveries,
            sequence,
            submitted_at,
            seen: Arc::default(),
        })
    }

    /// A header's value.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(async_nats::HeaderValue::as_str)
    }

    /// Removes the message from the queue, if it is still there; confirmed.
    ///
    /// An ack names a place in the stream and nothing else. In a stream that was removed and made anew meanwhile another
    /// task's message may stand there, and would be gone without having been run.
    pub(crate) async fn ack(&self) -> Result<(), BusError> {
        let seen = *self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.is_some_and(|seen| seen.elapsed() < FRESH) || self.is_there().await? {
            return self.answer("+ACK".into()).await.inspect(|()| crash::point(Point::AckSent));
        }
        tracing::debug!(subject = self.subject, sequence = self.sequence, "not in the queue any more: not acknowledged");
        Ok(())
    }

    /// Looks whether the message is still in the queue, so that an ack right after need not. Nothing is wrong when that fails.
    pub(crate) async fn look(&self) {
        let sent = Instant::now();
        if let Ok(true) = self.is_there().await {
            *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(sent);
        }
    }

    async fn is_there(&self) -> Result<bool, BusError> {
        let stream = self.bus.stream(&self.bus.subjects().tasks_stream()).await?;
        let message = found(stream.get_raw_message(self.sequence).await, || format!("queued message {}", self.sequence))?;
        Ok(message.is_some_and(|found| {
            found.subject.as_str() == self.subject && Time::from_nanos(found.time.unix_timestamp_nanos()) == self.submitted_at
        }))
    }

    /// Gives the message back, to be handed out again after `delay`; confirmed. Refused while the connection is away: the
    /// client would send it when it is back, however late, and so take the message from whoever runs it then.
    pub(crate) async fn nak(&self, delay: Duration) -> Result<(), BusError> {
        if self.bus.inner.client.connection_state() != State::Connected {
            return Err(BusError::NoResponders { what: format!("the delivery of {}", self.subject) });
        }
        let body = if delay.is_zero() { "-NAK".to_owned() } else { format!("-NAK {{\"delay\":{}}}", delay.as_nanos()) };
        self.answer(body.into()).await.inspect(|()| crash::point(Point::NakSent))
    }

    /// Starts `ack_wait` anew; confirmed.
    pub(crate) async fn progress(&self) -> Result<(), BusError> {
        self.answer("+WPI".into()).await
    }

    async fn answer(&self, body: Bytes) -> Result<(), BusError> {
        let what = format!("the delivery of {}", self.subject);
        let request = Request::new().payload(body);
        self.bus.ask(self.reply.to_string(), request, self.bus.inner.timeout, &what).await.map(|_| ())
    }
}
