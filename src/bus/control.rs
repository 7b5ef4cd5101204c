//! Cancel requests: stored per task, and heard live.
//!
//! A worker hears every request from the moment it starts (one wildcard subscription), and reads the stored one of a task
//! after it began to listen for it. That alone would miss one: the server hands a message to subscribers before its stream
//! has stored it, so a request can be heard just before the task is listened for, and not be stored yet just after. Therefore
//! what was heard is remembered for a while. After a reconnect the stored ones are read again.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::HeaderMap;
use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Bus, BusError};
use crate::task::{TaskId, Tenant, Time};
use crate::wire::Encoding;

/// A request to stop a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct CancelRequest {
    /// Version of the contract, 1.
    pub v: u32,
    /// `cancel`; others are ignored.
    pub action: String,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Time>,
}

impl Bus {
    /// Asks for a task to be canceled, whether queued or running; stored, so that it also holds for a task that starts later.
    ///
    /// # Errors
    /// When it could not be stored.
    pub async fn cancel(&self, tenant: &Tenant, task_id: &TaskId, reason: Option<&str>) -> Result<(), BusError> {
        let request = CancelRequest { v: 1, action: "cancel".to_owned(), reason: reason.map(str::to_owned), time: Some(Time::now()) };
        let subject = self.subjects().control(tenant, task_id);
        let body = Encoding::Json.encode(&request).map_err(|e| BusError::Unreadable { what: subject.clone(), text: e.to_string() })?;
        let mut headers = HeaderMap::new();
        headers.insert("Content-Type", Encoding::Json.content_type());
        self.store(subject, headers, body).await.map(|_| ())
    }

    /// The stored cancel request of a task.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn stored_cancel(&self, tenant: &Tenant, task_id: &TaskId) -> Result<Option<CancelRequest>, BusError> {
        let subject = self.subjects().control(tenant, task_id);
        let message = self.last_message(&self.subjects().control_stream(), &subject).await?;
        Ok(message.and_then(|m| read(&m.payload)))
    }
}

/// Anything that is not a readable cancel request is ignored: whoever may write there could have canceled.
fn read(payload: &[u8]) -> Option<CancelRequest> {
    let encoding = Encoding::detect(None, payload).ok()?;
    encoding.decode::<CancelRequest>(payload).ok().filter(|request| request.action == "cancel")
}

/// How long a request is remembered: longer than a stream takes to store what subscribers already have.
const MEMORY: Duration = Duration::from_secs(30);
/// Most requests remembered; every worker hears those of the whole fleet.
const MOST_REMEMBERED: usize = 4096;

type Key = (Tenant, TaskId);

/// Who listens, and what was heard of late.
#[derive(Debug, Default)]
struct Ears {
    listeners: HashMap<Key, Arc<watch::Sender<Option<CancelRequest>>>>,
    remembered: VecDeque<(Instant, Key, CancelRequest)>,
}

impl Ears {
    fn remember(&mut self, key: &Key, request: CancelRequest) {
        let now = Instant::now();
        let too_many = self.remembered.len() >= MOST_REMEMBERED;
        while self.remembered.front().is_some_and(|(at, ..)| now.duration_since(*at) > MEMORY)
            || (too_many && self.remembered.len() >= MOST_REMEMBERED)
        {
            self.remembered.pop_front();
        }
        self.remembered.push_back((now, key.clone(), request));
    }

    fn remembered(&self, key: &Key) -> Option<CancelRequest> {
        self.remembered.iter().rev().find(|(_, k, _)| k == key).map(|(.., request)| request.clone())
    }
}

type Shared = Arc<Mutex<Ears>>;

fn lock(shared: &Shared) -> MutexGuard<'_, Ears> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The worker's ear for cancel requests.
#[derive(Debug, Clone)]
pub struct Cancels {
    bus: Bus,
    ears: Shared,
}

/// Hears the cancel request of one task for as long as it lives.
#[derive(Debug)]
pub struct CancelWatch {
    key: Key,
    ears: Shared,
    own: Arc<watch::Sender<Option<CancelRequest>>>,
    heard: watch::Receiver<Option<CancelRequest>>,
}

impl Cancels {
    /// Subscribes, and returns the ear with the future that does the listening, to be run for the worker's life.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn listen(bus: &Bus) -> Result<(Self, impl Future<Output = ()> + Send + use<>), BusError> {
        let subject = bus.subjects().all_control();
        let subscriber = bus.inner.client.subscribe(subject.clone()).await.map_err(|_| BusError::Closed { what: subject })?;
        let cancels = Self { bus: bus.clone(), ears: Shared::default() };
        Ok((cancels.clone(), cancels.run(subscriber)))
    }

    /// Starts to listen for one task. Read [`Bus::stored_cancel`] after this.
    #[must_use]
    pub fn watch(&self, tenant: &Tenant, task_id: &TaskId) -> CancelWatch {
        let key = (tenant.clone(), task_id.clone());
        let mut ears = lock(&self.ears);
        let (sender, heard) = watch::channel(ears.remembered(&key));
        let own = Arc::new(sender);
        ears.listeners.insert(key.clone(), Arc::clone(&own));
        CancelWatch { key, ears: Arc::clone(&self.ears), own, heard }
    }

    async fn run(self, mut subscriber: async_nats::Subscriber) {
        let mut connections = self.bus.connections();
        loop {
            tokio::select! {
                message = subscriber.next() => {
                    let Some(message) = message else { return };
                    if let (Some(key), Some(request)) = (self.bus.subjects().parse_control(&message.subject), read(&message.payload)) {
                        self.tell(&key, request);
                    }
                }
                changed = connections.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.read_stored().await;
                }
            }
        }
    }

    /// What was published while the connection was away was not heard.
    async fn read_stored(&self) {
        let keys: Vec<_> = lock(&self.ears).listeners.keys().cloned().collect();
        for key in keys {
            if let Ok(Some(request)) = self.bus.stored_cancel(&key.0, &key.1).await {
                self.tell(&key, request);
            }
        }
    }

    fn tell(&self, key: &Key, request: CancelRequest) {
        let mut ears = lock(&self.ears);
        if let Some(listener) = ears.listeners.get(key) {
            listener.send_replace(Some(request.clone()));
        }
        ears.remember(key, request);
    }
}

impl CancelWatch {
    /// What was heard so far.
    #[must_use]
    pub fn heard(&self) -> Option<CancelRequest> {
        self.heard.borrow().clone()
    }

    /// Resolves when a request was heard. Cancel safe.
    pub async fn canceled(&mut self) -> CancelRequest {
        loop {
            if let Some(request) = self.heard.borrow_and_update().clone() {
                return request;
            }
            if self.heard.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

impl Drop for CancelWatch {
    fn drop(&mut self) {
        let mut ears = lock(&self.ears);
        // A later delivery of the same task may listen by now.
        if ears.listeners.get(&self.key).is_some_and(|current| Arc::ptr_eq(current, &self.own)) {
            ears.listeners.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> CancelRequest {
        CancelRequest { v: 1, action: "cancel".to_owned(), reason: None, time: None }
    }

    fn key(id: usize) -> Key {
        (Tenant::new("acme").unwrap(), TaskId::new(format!("t{id}")).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_heard_before_anybody_listened_is_remembered_for_a_while() {
        let mut ears = Ears::default();
        ears.remember(&key(1), request());
        assert_eq!(ears.remembered(&key(1)), Some(request()));
        assert_eq!(ears.remembered(&key(2)), None);
        tokio::time::advance(MEMORY + Duration::from_secs(1)).await;
        ears.remember(&key(2), request());
        assert_eq!(ears.remembered(&key(1)), None, "it is stored by now");
        for n in 0..2 * MOST_REMEMBERED {
            ears.remember(&key(n), request());
        }
        assert_eq!(ears.remembered.len(), MOST_REMEMBERED);
    }
}
