//! Pulling from one durable consumer by one-shot requests.
//!
//! The library's batches are dead for `expires` + 5 s after a reconnect, drop what comes when they are dropped, and stall
//! on heartbeats. Here one inbox lives as long as the worker: whatever arrives is seen, whichever request it answers.

use std::time::Duration;

use async_nats::{Message, StatusCode, Subscriber};
use futures_util::StreamExt as _;
use tokio::sync::watch;
use tokio::time::Instant;

use super::delivery::Delivery;
use super::{Bus, BusError};

/// Time beyond a request's own expiry after which its end is taken for lost.
const LOST_AFTER: Duration = Duration::from_secs(2);

/// The pulling end of one consumer.
#[derive(Debug)]
pub struct Puller {
    bus: Bus,
    api: String,
    inbox: String,
    subscriber: Subscriber,
    connections: watch::Receiver<u64>,
    number: u64,
    open: Option<Open>,
}

/// The request that is waiting at the server.
#[derive(Debug)]
struct Open {
    number: u64,
    left: u32,
    deadline: Instant,
}

/// What happened at a consumer.
#[derive(Debug)]
pub enum Pulled {
    /// A message. One permit of the open request is used, if there is one.
    Delivery(Box<Delivery>),
    /// The open request is over; that many of its permits are free again.
    Ended {
        /// Permits that no message came for.
        unused: u32,
        /// Why, when it is not just that nothing was there.
        trouble: Option<Trouble>,
    },
}

/// Why a request ended before its time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// The connection was made anew: the server forgot the request.
    #[error("the connection was made anew")]
    Reconnected,
    /// Nothing was heard of it.
    #[error("no answer; may this worker publish to $JS.API.CONSUMER.MSG.NEXT.>, and subscribe to _INBOX.>?")]
    Silent,
    /// The server ended it.
    #[error("{0}")]
    Status(String),
}

impl Bus {
    /// Opens the consumer `consumer` of the stream of tasks.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn puller(&self, consumer: &str) -> Result<Puller, BusError> {
        let inbox = self.inner.client.new_inbox();
        let closed = |_| BusError::Closed { what: format!("pull from {consumer}") };
        let subscriber = self.inner.client.subscribe(format!("{inbox}.*")).await.map_err(closed)?;
        let api = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{consumer}", self.subjects().tasks_stream());
        Ok(Puller { bus: self.clone(), api, inbox, subscriber, connections: self.connections(), number: 0, open: None })
    }
}

impl Puller {
    /// True while a request is waiting.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Asks for up to `batch` messages: those that are there now, or with `wait` also those that come within it.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn ask(&mut self, batch: u32, wait: Option<Duration>) -> Result<(), BusError> {
        self.number += 1;
        let body = match wait {
            None => format!("{{\"batch\":{batch},\"no_wait\":true}}"),
            Some(wait) => format!("{{\"batch\":{batch},\"expires\":{}}}", wait.as_nanos()),
        };
        self.connections.mark_unchanged();
        let reply = format!("{}.{}", self.inbox, self.number);
        let sent = self.bus.inner.client.publish_with_reply(self.api.clone(), reply, body.into()).await;
        sent.map_err(|_| BusError::Closed { what: self.api.clone() })?;
        let deadline = Instant::now() + wait.unwrap_or_default() + LOST_AFTER;
        self.open = Some(Open { number: self.number, left: batch, deadline });
        Ok(())
    }

    /// The next thing that happens. Cancel safe: nothing is taken from the subscription that is not returned.
    ///
    /// # Errors
    /// When the connection is closed for good.
    pub async fn next(&mut self) -> Result<Pulled, BusError> {
        loop {
            if let Some(open) = self.open.take_if(|open| open.left == 0) {
                tracing::trace!(number = open.number, "pull filled");
                return Ok(Pulled::Ended { unused: 0, trouble: None });
            }
            let deadline = self.open.as_ref().map(|open| open.deadline);
            tokio::select! {
                // Messages first: a deadline or a reconnect must not hide what already came.
                biased;
                message = self.subscriber.next() => {
                    let Some(message) = message else { return Err(BusError::Closed { what: self.api.clone() }) };
                    if let Some(pulled) = self.understand(message) {
                        return Ok(pulled);
                    }
                }
                // A request that was open when the connection broke is lost: the server forgot it.
                changed = self.connections.changed(), if deadline.is_some() => {
                    if changed.is_err() {
                        return Err(BusError::Closed { what: self.api.clone() });
                    }
                    return Ok(self.end(Some(Trouble::Reconnected)));
                }
                () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    return Ok(self.end(Some(Trouble::Silent)));
                }
            }
        }
    }

    fn end(&mut self, trouble: Option<Trouble>) -> Pulled {
        Pulled::Ended { unused: self.open.take().map_or(0, |open| open.left), trouble }
    }

    fn understand(&mut self, message: Message) -> Option<Pulled> {
        let Some(status) = message.status else {
            let delivery = Delivery::read(&self.bus, message)?;
            if let Some(open) = &mut self.open {
                open.left = open.left.saturating_sub(1);
            }
            return Some(Pulled::Delivery(Box::new(delivery)));
        };
        let number = message.subject.rsplit('.').next().and_then(|n| n.parse::<u64>().ok());
        if status == StatusCode::IDLE_HEARTBEAT || self.open.as_ref().map(|open| open.number) != number {
            return None;
        }
        let quiet = status == StatusCode::NOT_FOUND || status == StatusCode::TIMEOUT;
        let text = message.description.unwrap_or_default();
        Some(self.end((!quiet).then(|| Trouble::Status(format!("{status} {text}")))))
    }
}
