//! Requests to one worker, by core NATS: asked on its subject, answered on the reply subject, stored nowhere.
//!
//! A name can be borne by more than one process, by mistake or while one is replaced: each of them answers for itself.

use std::time::Duration;

use async_nats::{HeaderMap, StatusCode, Subject};
use bytes::Bytes;
use futures_util::StreamExt as _;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{Bus, BusError};
use crate::task::WorkerId;
use crate::wire::Encoding;

/// How long to wait for others of the same name once one has answered.
const OTHERS: Duration = Duration::from_millis(750);

/// What is asked of a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerRequest {
    /// Version of the contract, 1.
    pub v: u32,
    /// `drain`, or `status`, which changes nothing.
    pub action: String,
    /// With `drain`: kill what runs and give it back, as a second signal does.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub now: bool,
    /// Only this process of that name is meant; others say nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
}

/// How far a worker's end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WorkerState {
    /// It takes work.
    Ready,
    /// It takes no new work; what runs may end.
    Draining,
    /// Its time to drain is over: what runs is stopped with its grace and given back.
    Leaving,
    /// What runs is killed and given back.
    Aborting,
}

/// What a worker answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerAnswer {
    /// Version of the contract, 1.
    pub v: u32,
    /// It does what was asked.
    pub ok: bool,
    /// Why it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Its stable name.
    pub worker_id: WorkerId,
    /// This process.
    pub instance: String,
    /// Host name.
    pub host: String,
    /// How far its end has come, this request included.
    pub state: WorkerState,
    /// Tasks it runs now.
    pub running: u32,
    /// Seconds that running tasks get when it drains.
    pub drain_timeout_s: f64,
}

/// A request that came to this worker.
#[derive(Debug)]
pub struct Asked {
    /// What is asked, or why that cannot be read.
    pub request: Result<WorkerRequest, String>,
    reply: Option<Subject>,
}

/// Requests to one worker, as they come.
#[derive(Debug)]
pub struct Requests {
    bus: Bus,
    subscriber: async_nats::Subscriber,
}

impl Requests {
    /// The next one; none when the connection is closed for good. Cancel safe.
    pub async fn next(&mut self) -> Option<Asked> {
        let message = self.subscriber.next().await?;
        let content_type = message.headers.as_ref().and_then(|headers| headers.get("Content-Type")).map(|v| v.as_str());
        let request = Encoding::detect(content_type, &message.payload).and_then(|encoding| encoding.decode(&message.payload));
        Some(Asked { request: request.map_err(|e| e.to_string()), reply: message.reply })
    }

    /// Answers. Nobody waits for an answer that cannot be sent.
    pub async fn answer(&self, asked: Asked, answer: &WorkerAnswer) {
        let (Some(reply), Ok(body)) = (asked.reply, Encoding::Json.encode(answer)) else { return };
        let client = &self.bus.inner.client;
        let sent = client.publish_with_headers(reply, json_headers(), body).await;
        if let Err(error) = sent {
            tracing::debug!(%error, "an answer was not sent");
        }
    }
}

fn json_headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("Content-Type", Encoding::Json.content_type());
    headers
}

impl Bus {
    /// Hears requests to the worker of that name from now on.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn worker_requests(&self, worker_id: &WorkerId) -> Result<Requests, BusError> {
        let subject = self.subjects().control_worker(worker_id);
        let subscriber = self.inner.client.subscribe(subject.clone()).await.map_err(|_| BusError::Closed { what: subject })?;
        Ok(Requests { bus: self.clone(), subscriber })
    }

    /// Asks the worker of that name, and returns the answers of all that bear it; none when there is none.
    ///
    /// # Errors
    /// [`BusError::TimedOut`] when somebody listens there and does not answer.
    pub async fn ask_worker(&self, worker_id: &WorkerId, request: &WorkerRequest) -> Result<Vec<WorkerAnswer>, BusError> {
        let subject = self.subjects().control_worker(worker_id);
        let closed = || BusError::Closed { what: subject.clone() };
        let unreadable = |text: String| BusError::Unreadable { what: format!("an answer of worker {worker_id}"), text };
        let body: Bytes = Encoding::Json.encode(request).map_err(|e| unreadable(e.to_string()))?;
        let inbox = self.inner.client.new_inbox();
        let mut answers = self.inner.client.subscribe(inbox.clone()).await.map_err(|_| closed())?;
        let asked = self.inner.client.publish_with_reply_and_headers(subject.clone(), inbox, json_headers(), body).await;
        asked.map_err(|_| closed())?;
        let mut deadline = Instant::now() + self.inner.timeout;
        let mut heard = Vec::new();
        loop {
            match tokio::time::timeout_at(deadline, answers.next()).await {
                Ok(None) => return Err(closed()),
                Ok(Some(message)) if message.status == Some(StatusCode::NO_RESPONDERS) => return Ok(heard),
                Ok(Some(message)) => {
                    heard.push(serde_json::from_slice(&message.payload).map_err(|e| unreadable(e.to_string()))?);
                    deadline = deadline.min(Instant::now() + OTHERS);
                    // Who named a process waits for no other.
                    if request.instance.is_some() {
                        return Ok(heard);
                    }
                }
                Err(_) if heard.is_empty() => return Err(BusError::TimedOut { what: format!("worker {worker_id}") }),
                Err(_) => return Ok(heard),
            }
        }
    }
}
