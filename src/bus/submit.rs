//! Publishing assignments, and finding them in the queue.

use async_nats::HeaderMap;
use bytes::Bytes;

use super::{Bus, BusError};
use crate::task::{ClassName, Priority, TaskId, Tenant, Time};
use crate::wire::Encoding;

/// "maximum messages per subject exceeded", among other refusals of the store.
const STORE_FAILED: u64 = 10077;

/// An assignment is in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Submitted {
    /// Its sequence in the stream of tasks.
    pub sequence: u64,
}

/// Why an assignment is not in the queue.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// A task with that id is queued or running.
    #[error("a task with this id is already queued")]
    AlreadyQueued,
    /// Larger than the server takes.
    #[error("the assignment is too large: {0}")]
    TooLarge(String),
    /// No stream takes the subject.
    #[error("no stream takes {0}: run `windlass init`")]
    NoStream(String),
    /// Anything else; it may or may not be queued.
    #[error(transparent)]
    Bus(BusError),
}

/// A queued assignment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queued {
    /// Its sequence.
    pub sequence: u64,
    /// Class token.
    pub class: String,
    /// Priority token.
    pub priority: String,
    /// Tenant token.
    pub tenant: String,
    /// When it was stored.
    pub submitted_at: Time,
    /// Its bytes.
    pub payload: Bytes,
}

impl Bus {
    /// Queues an assignment, once: a second one with the same id is refused while the first is queued or running.
    ///
    /// # Errors
    /// See [`SubmitError`].
    pub async fn publish_assignment(
        &self,
        class: &ClassName,
        priority: Priority,
        tenant: &Tenant,
        task_id: &TaskId,
        encoding: Encoding,
        body: Bytes,
    ) -> Result<Submitted, SubmitError> {
        let subject = self.subjects().task(class, priority, tenant, task_id);
        self.queue(subject, encoding.content_type(), body).await
    }

    /// Queues raw bytes on a task subject.
    ///
    /// # Errors
    /// See [`SubmitError`].
    pub async fn queue(&self, subject: String, content_type: &str, body: Bytes) -> Result<Submitted, SubmitError> {
        let mut headers = HeaderMap::new();
        headers.insert("Content-Type", content_type);
        match self.store(subject, headers, body).await {
            Ok(stored) => Ok(Submitted { sequence: stored.sequence }),
            Err(BusError::Refused { code: STORE_FAILED, text, .. }) if text.contains("per subject") => Err(SubmitError::AlreadyQueued),
            Err(BusError::TooLarge { text, .. }) => Err(SubmitError::TooLarge(text)),
            Err(BusError::NoResponders { what }) => Err(SubmitError::NoStream(what)),
            Err(error) => Err(SubmitError::Bus(error)),
        }
    }

    /// The queued message of a task, running or waiting; without a tenant, of whichever tenant's task has that id.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn find_queued(&self, tenant: Option<&Tenant>, task_id: &TaskId) -> Result<Option<Queued>, BusError> {
        let filter = self.subjects().task_anywhere(tenant, task_id);
        let Some(message) = self.last_message(&self.subjects().tasks_stream(), &filter).await? else { return Ok(None) };
        let Some(subject) = self.subjects().parse_task(&message.subject) else { return Ok(None) };
        Ok(Some(Queued {
            sequence: message.sequence,
            class: subject.class,
            priority: subject.priority,
            tenant: subject.tenant,
            submitted_at: Time::from_nanos(message.time.unix_timestamp_nanos()),
            payload: message.payload,
        }))
    }

    /// Sequence of the oldest queued message of a task. There can be more than one, under other classes or priorities.
    ///
    /// # Errors
    /// When the server does not answer.
    pub(crate) async fn first_queued(&self, tenant: &Tenant, task_id: &TaskId) -> Result<Option<u64>, BusError> {
        let filter = self.subjects().task_anywhere(Some(tenant), task_id);
        let stream = self.stream(&self.subjects().tasks_stream()).await?;
        super::read::found(stream.get_first_raw_message_by_subject(&filter, 1).await, || format!("the first message of {filter}"))
            .map(|message| message.map(|message| message.sequence))
    }

    /// Removes a queued message by its sequence: for tasks whose chain has ended.
    ///
    /// # Errors
    /// When the server does not answer or refuses.
    pub(crate) async fn remove_queued(&self, sequence: u64) -> Result<(), BusError> {
        let what = format!("removal of queued message {sequence}");
        let stream = self.stream(&self.subjects().tasks_stream()).await?;
        stream.delete_message(sequence).await.map(|_| ()).map_err(|e| super::chain::read_error(&e, what))
    }
}
