//! Dead letters: what could not be a task, or never came to an end, kept with the evidence.

use async_nats::HeaderMap;
use bytes::Bytes;

use super::delivery::Delivery;
use super::submit::{SubmitError, Submitted};
use super::{Bus, BusError};
use crate::task::{ClassName, Priority, Reason, TaskId, Tenant, Time, WorkerId};
use crate::wire::{Encoding, sha256_hex};

/// Room for the headers of a dead letter whose payload is shortened: an error text of 1,024 characters, and names.
const HEADER_ALLOWANCE: usize = 8192;

/// A dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Its sequence in the stream of dead letters.
    pub sequence: u64,
    /// When it was stored.
    pub stored_at: Time,
    /// Its subject.
    pub subject: String,
    /// Why it is here.
    pub reason: String,
    /// One line for people.
    pub error: String,
    /// Subject that it was published to.
    pub original_subject: String,
    /// Task token of that subject.
    pub task_id: Option<String>,
    /// Tenant token.
    pub tenant: Option<String>,
    /// Class token.
    pub class: Option<String>,
    /// Priority token.
    pub priority: Option<String>,
    /// As published.
    pub content_type: Option<String>,
    /// As published, byte for byte.
    pub payload: Bytes,
    /// Worker that gave up on it.
    pub worker: Option<String>,
    /// How often it had been handed out.
    pub deliveries: Option<u64>,
}

/// Proof that a dead letter is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeadLetterStored(());

impl Bus {
    /// Stores a delivery as a dead letter; a second time for the same delivery is no second letter.
    ///
    /// # Errors
    /// When it could not be stored.
    pub(crate) async fn bury(
        &self,
        delivery: &Delivery,
        worker: &WorkerId,
        reason: Reason,
        error: &str,
    ) -> Result<DeadLetterStored, BusError> {
        let parts = self.subjects().parse_task(&delivery.subject);
        let (class, tenant, task_id) = parts.map_or_else(Default::default, |p| (p.class, p.tenant, p.task_id));
        let mut headers = HeaderMap::new();
        // A stream that was made anew counts from 1 again.
        let id = format!("dead.{}.{}.{}", self.subjects().tasks_stream(), delivery.sequence, delivery.submitted_at.as_micros());
        let (sequence, deliveries) = (delivery.sequence.to_string(), delivery.deliveries.to_string());
        for (name, value) in [
            ("Nats-Msg-Id", id.as_str()),
            ("Windlass-Reason", reason.as_str()),
            ("Windlass-Error", &one_line(error)),
            ("Windlass-Subject", &delivery.subject),
            ("Windlass-Task-Id", &task_id),
            ("Windlass-Tenant", &tenant),
            ("Windlass-Class", &class),
            ("Windlass-Sequence", &sequence),
            ("Windlass-Deliveries", &deliveries),
            ("Windlass-Worker", worker.as_str()),
        ] {
            if !value.is_empty() {
                headers.insert(name, value);
            }
        }
        if let Some(content_type) = delivery.header("Content-Type") {
            headers.insert("Content-Type", content_type);
        }
        let subject = self.subjects().dead(&class, &tenant);
        let stored = match self.store(subject.clone(), headers.clone(), delivery.payload.clone()).await {
            // The headers made it larger than the assignment was. Its head is evidence enough; for ever queued it helps nobody.
            Err(BusError::TooLarge { .. }) => {
                headers.insert("Windlass-Payload-Bytes", delivery.payload.len().to_string());
                headers.insert("Windlass-Payload-Sha256", sha256_hex(&delivery.payload));
                let room = self.max_payload().saturating_sub(HEADER_ALLOWANCE).min(delivery.payload.len());
                self.store(subject, headers, delivery.payload.slice(..room)).await
            }
            other => other,
        };
        stored.map(|_| DeadLetterStored(()))
    }

    /// All dead letters of a class, of a tenant, or of everybody; oldest first.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn dead_letters(&self, class: Option<&ClassName>, tenant: Option<&Tenant>) -> Result<Vec<DeadLetter>, BusError> {
        let filter = self.subjects().dead_filter(class, tenant);
        let mut tail = self.tail(&self.subjects().dead_stream(), &filter, 1, false).await?;
        let mut letters = Vec::new();
        while let Some(message) = tail.next().await? {
            letters.push(letter(self, message));
        }
        Ok(letters)
    }

    /// One dead letter.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn dead_letter(&self, sequence: u64) -> Result<Option<DeadLetter>, BusError> {
        let filter = self.subjects().dead_filter(None, None);
        let mut tail = self.tail(&self.subjects().dead_stream(), &filter, sequence, false).await?;
        Ok(tail.next().await?.filter(|m| m.sequence == sequence).map(|m| letter(self, m)))
    }

    /// Queues a dead letter's payload again as task `new_id`: a task's id is used up by its first life.
    ///
    /// # Errors
    /// When the payload is no map with a `task_id` to replace, its subject is not one of a task, or it cannot be queued.
    pub async fn requeue_dead(&self, letter: &DeadLetter, new_id: &TaskId) -> Result<Submitted, SubmitError> {
        let unreadable = |text: String| SubmitError::Bus(BusError::Unreadable { what: format!("dead letter {}", letter.sequence), text });
        let encoding = Encoding::detect(letter.content_type.as_deref(), &letter.payload).map_err(|e| unreadable(e.to_string()))?;
        let mut value: serde_json::Value = encoding.decode(&letter.payload).map_err(|e| unreadable(e.to_string()))?;
        let Some(map) = value.as_object_mut() else { return Err(unreadable("not a map".to_owned())) };
        map.insert("task_id".to_owned(), new_id.to_string().into());
        let body = encoding.encode(&value).map_err(|e| unreadable(e.to_string()))?;
        let part = |text: &Option<String>, what: &str| text.clone().ok_or_else(|| unreadable(format!("no {what} in its subject")));
        let class = ClassName::new(part(&letter.class, "class")?).map_err(|e| unreadable(e.to_string()))?;
        let tenant = Tenant::new(part(&letter.tenant, "tenant")?).map_err(|e| unreadable(e.to_string()))?;
        let priority = part(&letter.priority, "priority")?.parse().unwrap_or(Priority::Normal);
        self.publish_assignment(&class, priority, &tenant, new_id, encoding, body).await
    }
}

fn letter(bus: &Bus, message: async_nats::jetstream::message::StreamMessage) -> DeadLetter {
    let header = |name: &str| message.headers.get(name).map(|v| v.as_str().to_owned());
    let original_subject = header("Windlass-Subject").unwrap_or_default();
    let priority = bus.subjects().parse_task(&original_subject).map(|s| s.priority);
    DeadLetter {
        sequence: message.sequence,
        stored_at: Time::from_nanos(message.time.unix_timestamp_nanos()),
        subject: message.subject.to_string(),
        reason: header("Windlass-Reason").unwrap_or_default(),
        error: header("Windlass-Error").unwrap_or_default(),
        task_id: header("Windlass-Task-Id"),
        tenant: header("Windlass-Tenant"),
        class: header("Windlass-Class"),
        priority,
        content_type: header("Content-Type"),
        worker: header("Windlass-Worker"),
        deliveries: header("Windlass-Deliveries").and_then(|n| n.parse().ok()),
        original_subject,
        payload: message.payload,
    }
}

/// A header cannot hold line breaks.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(1024).collect()
}
