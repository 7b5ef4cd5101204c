//! The lease on a queued message: renewed by confirmed answers, ended once.

use std::time::Duration;

use tokio::time::Instant;

use crate::bus::chain::Head;
use crate::bus::delivery::Delivery;
use crate::bus::{Bus, BusError};
use crate::crash::{self, Point};
use crate::report::Receipt;
use crate::retry::Delays;
use crate::task::{TaskId, Tenant};
use crate::telemetry::causes;
use crate::telemetry::metrics;

/// Tries of an answer that ends a lease. Losing it is harmless: the next owner sees that the task is over.
const ACK_TRIES: u32 = 8;
/// A nak is sent once. One whose answer was lost has been obeyed: a second one would hand out what another worker runs by
/// then, and end its attempt. Without any, the message comes back after `ack_wait`.
pub(crate) const NAK_TRIES: u32 = 1;

/// Holds a message until the task's fate is stored.
#[derive(Debug)]
pub struct Lease {
    delivery: Delivery,
}

impl Lease {
    /// Holds `delivery`.
    #[must_use]
    pub fn new(delivery: Delivery) -> Self {
        Self { delivery }
    }

    /// The delivery that is held.
    #[must_use]
    pub fn delivery(&self) -> &Delivery {
        &self.delivery
    }

    /// Removes the message from the queue.
    pub async fn ack(self, _receipt: Receipt) {
        let begun = Instant::now();
        if self.end("ack", ACK_TRIES, || self.delivery.ack()).await {
            metrics::note(|m| m.acknowledged(begun.elapsed()));
        }
    }

    /// Gives the message back, to be handed out again after `delay`.
    pub async fn give_back(self, delay: Duration) {
        self.end("give back", NAK_TRIES, || self.delivery.nak(delay)).await;
    }

    /// Sends nothing: the message is another worker's now, or will be when `ack_wait` is over.
    pub fn forsake(self) {
        tracing::debug!(subject = self.delivery.subject, "lease forsaken");
    }

    /// True when it was confirmed.
    async fn end<F: Future<Output = Result<(), BusError>>>(&self, what: &str, tries: u32, answer: impl Fn() -> F) -> bool {
        let mut delays = Delays::new(Duration::from_millis(50), Duration::from_secs(2));
        for left in (0..tries).rev() {
            match answer().await {
                Ok(()) => return true,
                Err(error) if left == 0 => {
                    tracing::warn!(error = %causes(&error), subject = self.delivery.subject, "cannot {what}; the next owner will")
                }
                Err(error) => tracing::debug!(error = %causes(&error), subject = self.delivery.subject, "cannot {what} yet"),
            }
            delays.wait().await;
        }
        false
    }
}

/// Until when a message is surely held whose delivery came, or whose last confirmed renewal was sent, at `last`. A quarter
/// of `ack_wait` is left for the way of the delivery, the end of the task's process, and clocks.
pub(crate) fn lease_end(last: Instant, ack_wait: Duration) -> Instant {
    last + ack_wait.mul_f64(0.75)
}

/// Time between renewals; also how long the answer to one is waited for.
pub(crate) fn renewal(ack_wait: Duration) -> Duration {
    ack_wait / 5
}

/// How a lease was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// The chain belongs to somebody else.
    Fenced,
    /// No renewal was confirmed for three quarters of `ack_wait`.
    Expired,
}

/// Renews the lease of a running task: every `ack_wait` / 5 a confirmed progress ack, and a look that the chain is still ours.
#[derive(Debug)]
pub struct Renewer {
    bus: Bus,
    delivery: Delivery,
    tenant: Tenant,
    task_id: TaskId,
    nonce: String,
    ack_wait: Duration,
    last: Instant,
}

impl Renewer {
    /// Renews `lease` for the attempt that owns the chain by `nonce`. Its time counts from the delivery.
    #[must_use]
    pub fn new(bus: Bus, lease: &Lease, tenant: Tenant, task_id: TaskId, nonce: String, ack_wait: Duration) -> Self {
        let delivery = lease.delivery.clone();
        let last = delivery.received;
        Self { bus, delivery, tenant, task_id, nonce, ack_wait, last }
    }

    /// When the task must have been stopped, unless the lease is renewed before.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        lease_end(self.last, self.ack_wait)
    }

    /// Renews until the lease is lost; `renewed` gets each new deadline. Restart it after [`Loss::Expired`] to go on trying.
    pub async fn run(&mut self, mut renewed: impl FnMut(Instant)) -> Loss {
        let every = renewal(self.ack_wait);
        loop {
            let next = self.last.max(Instant::now() - every) + every;
            tokio::time::sleep_until(next.min(self.deadline())).await;
            if Instant::now() >= self.deadline() {
                // Counted anew, so that a policy that lets the task run can go on renewing.
                self.last = Instant::now();
                return Loss::Expired;
            }
            let sent = Instant::now();
            let answer = tokio::time::timeout(every, self.renew(sent)).await;
            metrics::note(|m| m.renewal(matches!(answer, Ok(Ok(true)))));
            match answer {
                Ok(Ok(true)) => {
                    self.last = sent;
                    renewed(self.deadline());
                }
                Ok(Ok(false)) => return Loss::Fenced,
                Ok(Err(error)) => {
                    tracing::warn!(error = %causes(&error), "lease not renewed");
                    tokio::time::sleep_until((sent + every / 4).min(self.deadline())).await;
                }
                Err(_) => tracing::warn!("lease not renewed: no answer"),
            }
        }
    }

    /// One renewal; false when the chain is somebody else's.
    async fn renew(&self, sent: Instant) -> Result<bool, BusError> {
        self.delivery.progress().await?;
        crash::point(Point::Renewing);
        match self.bus.head(&self.tenant, &self.task_id).await? {
            Some(head) if is_ours(&head, &self.nonce) => self.bus.heard_by_majority(sent).await.map(|()| true),
            Some(_) => Ok(false),
            // Its own claim is not there: the server lost it, or does not know yet that it has it. Nothing is confirmed.
            None => Err(BusError::Unreadable { what: "the chain".to_owned(), text: "it is empty, although it was claimed".to_owned() }),
        }
    }
}

/// Whether a chain that ends with `head` is that of the attempt with `nonce`. A terminal event of it is ours as well: it is
/// being committed.
pub(crate) fn is_ours(head: &Head, nonce: &str) -> bool {
    head.event.nonce == nonce
}
