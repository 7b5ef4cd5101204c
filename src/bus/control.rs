//! Cancel requests: stored per task, and heard live.
//!
//! A worker hears every request from the moment it starts (one wildcard subscription), and reads the stored one of a task
//! after it began to listen for it, so none is missed. After a reconnect the stored ones are read again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_nats::HeaderMap;
use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{Bus, BusError};
use crate::task::{TaskId, Tenant, Time};
use crate::wire::Encoding;

/// A request to stop a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

type Listeners = Arc<Mutex<HashMap<(Tenant, TaskId), Arc<watch::Sender<Option<CancelRequest>>>>>>;

/// The worker's ear for cancel requests.
#[derive(Debug, Clone)]
pub struct Cancels {
    bus: Bus,
    listeners: Listeners,
}

/// Hears the cancel request of one task for as long as it lives.
#[derive(Debug)]
pub struct CancelWatch {
    key: (Tenant, TaskId),
    listeners: Listeners,
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
        let cancels = Self { bus: bus.clone(), listeners: Listeners::default() };
        Ok((cancels.clone(), cancels.run(subscriber)))
    }

    /// Starts to listen for one task. Read [`Bus::stored_cancel`] after this.
    #[must_use]
    pub fn watch(&self, tenant: &Tenant, task_id: &TaskId) -> CancelWatch {
        let (sender, heard) = watch::channel(None);
        let own = Arc::new(sender);
        let key = (tenant.clone(), task_id.clone());
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone(), Arc::clone(&own));
        CancelWatch { key, listeners: Arc::clone(&self.listeners), own, heard }
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
        let keys: Vec<_> = self.listeners.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect();
        for key in keys {
            if let Ok(Some(request)) = self.bus.stored_cancel(&key.0, &key.1).await {
                self.tell(&key, request);
            }
        }
    }

    fn tell(&self, key: &(Tenant, TaskId), request: CancelRequest) {
        if let Some(listener) = self.listeners.lock().unwrap_or_else(PoisonError::into_inner).get(key) {
            listener.send_replace(Some(request));
        }
    }
}

impl CancelWatch {
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
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        // A later delivery of the same task may listen by now.
        if listeners.get(&self.key).is_some_and(|current| Arc::ptr_eq(current, &self.own)) {
            listeners.remove(&self.key);
        }
    }
}
