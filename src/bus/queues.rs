//! The queues as JetStream sees them: how much waits, how much is handed out, and which tasks that is.
//!
//! What runs is read from the queue, not from the events: a message stays until it is acknowledged, so what a consumer has
//! handed out is exactly what its stream still holds up to the consumer's place. That is as much as the fleet has slots,
//! however many tasks are queued or were ever run.

use std::ops::RangeInclusive;

use async_nats::Request;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::response::Response;
use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};

use super::feed::Stamped;
use super::{Bus, BusError, Subjects, chain, read, store};
use crate::task::chain::RunState;
use crate::task::{ClassName, EventKind, Priority, TaskId, Tenant, Time};

/// Requests under way at one time while the start is read.
const WINDOW: usize = 32;
/// Parts in which a queue's place is looked through at the same time.
const PARTS: u64 = 16;

/// The queue of one class and priority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Queue {
    /// Class token.
    pub class: String,
    /// Priority token.
    pub priority: String,
    /// Messages that were not handed out yet.
    pub waiting: u64,
    /// Messages that were handed out and are not acknowledged: they run, or wait to be tried again.
    pub in_flight: u64,
    /// Of these, messages that were handed out more than once.
    pub redelivered: u64,
    /// When the oldest that waits was queued.
    pub oldest: Option<Time>,
}

#[derive(Debug, Deserialize)]
struct Page {
    #[serde(default)]
    total: usize,
    #[serde(default)]
    consumers: Vec<Consumer>,
}

/// What is read of a consumer's description.
#[derive(Debug, Deserialize)]
struct Consumer {
    config: Config,
    delivered: Place,
    ack_floor: Place,
    num_ack_pending: u64,
    num_redelivered: u64,
    num_pending: u64,
}

#[derive(Debug, Deserialize)]
struct Config {
    #[serde(default)]
    filter_subject: String,
}

#[derive(Debug, Deserialize)]
struct Place {
    stream_seq: u64,
}

impl Bus {
    /// Every queue, by class and priority.
    ///
    /// # Errors
    /// When the server does not answer, or there is no stream of tasks.
    pub async fn queues(&self) -> Result<Vec<Queue>, BusError> {
        let consumers = self.consumers().await?;
        let mut queues = Vec::new();
        let mut found = futures_util::stream::iter(consumers).map(|consumer| self.queue_of(consumer)).buffered(WINDOW);
        while let Some(queue) = found.next().await {
            queues.extend(queue?);
        }
        queues.sort_by_key(|queue| (queue.class.clone(), Priority::ALL.iter().position(|p| p.as_str() == queue.priority)));
        Ok(queues)
    }

    /// Messages of a class: how many were not handed out yet, and how many were and are not acknowledged.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn waiting(&self, class: &ClassName) -> Result<(u64, u64), BusError> {
        let (mut waiting, mut in_flight) = (0, 0);
        for priority in Priority::ALL {
            let info = self.consumer_info(&Subjects::consumer(class, priority)).await?.unwrap_or_default();
            let count = |key: &str| info.get(key).and_then(serde_json::Value::as_u64).unwrap_or(0);
            waiting += count("num_pending");
            in_flight += count("num_ack_pending");
        }
        Ok((waiting, in_flight))
    }

    /// What the server says of one consumer of the stream of tasks; none when it is not there.
    ///
    /// # Errors
    /// When the server does not answer.
    pub(super) async fn consumer_info(&self, name: &str) -> Result<Option<serde_json::Value>, BusError> {
        let what = || format!("consumer {name}");
        let api = format!("$JS.API.CONSUMER.INFO.{}.{name}", self.subjects().tasks_stream());
        let reply = self.inner.client.request(api, bytes::Bytes::new()).await.map_err(|e| store::request_error(&e, &what()))?;
        match serde_json::from_slice(&reply.payload).map_err(|e| BusError::Unreadable { what: what(), text: e.to_string() })? {
            Response::Ok(info) => Ok(Some(info)),
            Response::Err { error } => match error.error_code() {
                ErrorCode::CONSUMER_NOT_FOUND | ErrorCode::STREAM_NOT_FOUND => Ok(None),
                code => Err(BusError::Refused { what: what(), code: code.0, text: error.to_string() }),
            },
        }
    }

    async fn queue_of(&self, consumer: Consumer) -> Result<Option<Queue>, BusError> {
        let filter = &consumer.config.filter_subject;
        let Some(subject) = self.subjects().parse_task(filter) else { return Ok(None) };
        let oldest = if consumer.num_pending == 0 { None } else { self.first_task(filter, consumer.delivered.stream_seq + 1).await? };
        Ok(Some(Queue {
            class: subject.class,
            priority: subject.priority,
            waiting: consumer.num_pending,
            in_flight: consumer.num_ack_pending,
            redelivered: consumer.num_redelivered,
            oldest: oldest.map(|message| Time::from_nanos(message.time.unix_timestamp_nanos())),
        }))
    }

    /// The last events of tasks that run now: of each its `task_started`, and its newest progress if there is any. In the order
    /// of their stream; of `most` tasks at most.
    ///
    /// # Errors
    /// When the server does not answer, or there is no stream of tasks.
    pub async fn running(&self, most: usize) -> Result<Vec<Stamped>, BusError> {
        let consumers = self.consumers().await?;
        let of = |consumer: &Consumer| parts(consumer).into_iter().map(|part| (consumer.config.filter_subject.clone(), part)).collect();
        let parts: Vec<(String, RangeInclusive<u64>)> = consumers.iter().flat_map::<Vec<_>, _>(of).collect();
        let mut walks = futures_util::stream::iter(parts).map(|(filter, part)| self.handed_out(filter, part)).buffer_unordered(WINDOW);
        let mut tasks = Vec::new();
        while let Some(found) = walks.next().await {
            tasks.extend(found?);
        }
        tasks.truncate(most);
        let mut heads = futures_util::stream::iter(tasks).map(|(tenant, task)| self.if_running(tenant, task)).buffer_unordered(WINDOW);
        let mut events = Vec::new();
        while let Some(found) = heads.next().await {
            events.extend(found?);
        }
        events.sort_by_key(|event| event.head.sequence);
        Ok(events)
    }

    /// Tasks whose messages a consumer has handed out, within a part of its stream.
    async fn handed_out(&self, filter: String, part: RangeInclusive<u64>) -> Result<Vec<(Tenant, TaskId)>, BusError> {
        let mut tasks = Vec::new();
        let mut next = *part.start();
        while let Some(message) = self.first_task(&filter, next).await?.filter(|message| part.contains(&message.sequence)) {
            next = message.sequence + 1;
            if let Some(subject) = self.subjects().parse_task(&message.subject)
                && let (Ok(tenant), Ok(task)) = (Tenant::new(subject.tenant), TaskId::new(subject.task_id))
            {
                tasks.push((tenant, task));
            }
        }
        Ok(tasks)
    }

    /// The first message on `filter` from that sequence on.
    async fn first_task(&self, filter: &str, from: u64) -> Result<Option<StreamMessage>, BusError> {
        let stream = self.stream(&self.subjects().tasks_stream()).await?;
        read::found(stream.get_first_raw_message_by_subject(filter, from).await, || format!("the first message of {filter}"))
    }

    async fn if_running(&self, tenant: Tenant, task: TaskId) -> Result<Vec<Stamped>, BusError> {
        let Some(last) = self.last_stamped(&self.subjects().chain(&tenant, &task)).await? else { return Ok(vec![]) };
        if RunState::of_last(&last.head.event) != RunState::Running {
            return Ok(vec![]);
        }
        if last.head.event.event == EventKind::TaskStarted {
            return Ok(vec![last]);
        }
        let started = self.last_stamped(&self.subjects().event(&tenant, &task, EventKind::TaskStarted)).await?;
        Ok(started.into_iter().chain([last]).collect())
    }

    /// The last event on `filter`; none when it cannot be read, since nothing depends on it here.
    async fn last_stamped(&self, filter: &str) -> Result<Option<Stamped>, BusError> {
        let Some(message) = self.last_message(&self.subjects().events_stream(), filter).await? else { return Ok(None) };
        let content_type = message.headers.get("Content-Type").map(|v| v.as_str());
        let head = chain::read_event(message.sequence, content_type, &message.payload).ok();
        Ok(head.map(|head| Stamped { head, stored: Time::from_nanos(message.time.unix_timestamp_nanos()) }))
    }

    /// All consumers of the stream of tasks.
    async fn consumers(&self) -> Result<Vec<Consumer>, BusError> {
        let what = format!("the consumers of {}", self.subjects().tasks_stream());
        let api = format!("$JS.API.CONSUMER.LIST.{}", self.subjects().tasks_stream());
        let mut all = Vec::new();
        loop {
            let body = serde_json::json!({"offset": all.len()}).to_string();
            let request = Request::new().payload(body.into()).timeout(Some(self.inner.timeout));
            let reply = self.inner.client.send_request(api.clone(), request).await.map_err(|e| store::request_error(&e, &what))?;
            let answer = serde_json::from_slice::<Response<Page>>(&reply.payload);
            match answer.map_err(|e| BusError::Unreadable { what: what.clone(), text: e.to_string() })? {
                Response::Ok(page) => {
                    let end = page.consumers.is_empty();
                    all.extend(page.consumers);
                    if end || all.len() >= page.total {
                        return Ok(all);
                    }
                }
                Response::Err { error } => {
                    return Err(BusError::Refused { what, code: error.error_code().0, text: error.to_string() });
                }
            }
        }
    }
}

/// The sequences among which a consumer's unacknowledged messages are, cut into parts.
fn parts(consumer: &Consumer) -> Vec<RangeInclusive<u64>> {
    let (first, last) = (consumer.ack_floor.stream_seq + 1, consumer.delivered.stream_seq);
    if consumer.num_ack_pending == 0 || first > last {
        return vec![];
    }
    let count = consumer.num_ack_pending.div_ceil(4).min(PARTS);
    let step = (last - first + 1).div_ceil(count);
    (0..count).map(|n| first + n * step..=(first + (n + 1) * step - 1).min(last)).filter(|part| !part.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn consumer(floor: u64, delivered: u64, pending: u64) -> Consumer {
        Consumer {
            config: Config { filter_subject: String::new() },
            delivered: Place { stream_seq: delivered },
            ack_floor: Place { stream_seq: floor },
            num_ack_pending: pending,
            num_redelivered: 0,
            num_pending: 0,
        }
    }

    #[test]
    fn parts_cover_everything_once() {
        for (floor, delivered, pending) in [(0, 1, 1), (0, 10, 10), (3, 1000, 700), (99, 100, 1), (0, 17, 64), (5, 21, 60)] {
            let parts = parts(&consumer(floor, delivered, pending));
            let all: Vec<u64> = parts.iter().cloned().flatten().collect();
            assert_eq!(all, (floor + 1..=delivered).collect::<Vec<_>>(), "{parts:?}");
            assert!(parts.len() as u64 <= PARTS);
        }
        assert_eq!(parts(&consumer(7, 7, 0)), vec![]);
        assert_eq!(parts(&consumer(7, 9, 0)), vec![]);
    }
}
