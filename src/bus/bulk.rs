//! Reading much of a stream at a time, for people who look. One request is answered with many messages (nats-server's
//! batched direct get, ADR-31).
//!
//! A replica may answer, and be a moment behind the leader: whoever decides by what he reads uses [`Tail`](super::read::Tail).
//! The stream must allow it (`allow_direct`, which `windlass init` sets).

use async_nats::jetstream::message::StreamMessage;
use async_nats::{Message, StatusCode};
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde::Serialize;

use super::chain::read_error;
use super::{Bus, BusError};
use crate::task::Time;

/// Messages asked for at a time.
const BATCH: u64 = 1024;
/// Bytes asked for at a time: well below what a server queues for a client before it takes it for too slow (64 MiB).
const BATCH_BYTES: usize = 8 << 20;
/// Messages of a window that is still worth keeping in memory.
const MOST_IN_WINDOW: usize = 4 * BATCH as usize;
/// Messages of the first window, the newest: what fits a screen or two.
const FIRST_WINDOW: u64 = 256;

/// Where a batch begins.
#[derive(Debug, Clone, Copy)]
pub(super) enum Start {
    /// With this sequence, or the next that there is.
    Sequence(u64),
    /// With the first message that was stored then or later.
    Time(Time),
}

/// A part of a stream, in order.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Its messages.
    pub(super) messages: Vec<StreamMessage>,
    /// There are more after them.
    pub(super) more: bool,
}

#[derive(Serialize)]
struct Request<'a> {
    batch: u64,
    max_bytes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    start_time: Option<Time>,
    next_by_subj: &'a str,
}

impl Bus {
    /// Up to `most` messages on `filter` from `start` on. Dropping the future loses nothing.
    pub(super) async fn batch(&self, stream: &str, filter: &str, start: Start, most: u64) -> Result<Batch, BusError> {
        let api = format!("$JS.API.DIRECT.GET.{stream}");
        let (seq, start_time) = match start {
            Start::Sequence(sequence) => (Some(sequence.max(1)), None),
            Start::Time(time) => (None, Some(time)),
        };
        let request = Request { batch: most.min(BATCH), max_bytes: BATCH_BYTES, seq, start_time, next_by_subj: filter };
        let body = serde_json::to_vec(&request).map_err(|e| BusError::Unreadable { what: api.clone(), text: e.to_string() })?;
        let closed = || BusError::Closed { what: api.clone() };
        let inbox = self.inner.client.new_inbox();
        let mut answers = self.inner.client.subscribe(inbox.clone()).await.map_err(|_| closed())?;
        self.inner.client.publish_with_reply(api.clone(), inbox, Bytes::from(body)).await.map_err(|_| closed())?;
        let mut batch = Batch::default();
        loop {
            let answer = tokio::time::timeout(self.inner.timeout, answers.next()).await;
            let answer = answer.map_err(|_| BusError::TimedOut { what: api.clone() })?.ok_or_else(closed)?;
            if let Some(status) = answer.status {
                batch.more = over(status, &answer, &api)?;
                return Ok(batch);
            }
            let unreadable = |text: String| BusError::Unreadable { what: format!("a message of {stream}"), text };
            batch.messages.push(StreamMessage::try_from(answer).map_err(|e| unreadable(e.to_string()))?);
        }
    }

    /// Goes through a stream from its present end to its beginning.
    pub(super) async fn backwards(&self, stream: String, filter: String) -> Result<Backwards, BusError> {
        let info = self.stream(&stream).await?.get_info().await.map_err(|e| read_error(&e, format!("stream {stream}")))?;
        let state = info.state;
        Ok(Backwards {
            bus: self.clone(),
            stream,
            filter,
            first: state.first_sequence.max(1),
            until: state.last_sequence + 1,
            span: FIRST_WINDOW,
        })
    }
}

/// Whether there is more after the end of a batch.
fn over(status: StatusCode, end: &Message, api: &str) -> Result<bool, BusError> {
    const END_OF_BATCH: u16 = 204;
    match status.as_u16() {
        END_OF_BATCH => {
            let pending = end.headers.as_ref().and_then(|headers| headers.get("Nats-Num-Pending"));
            Ok(pending.is_some_and(|n| n.as_str() != "0"))
        }
        404 => Ok(false),
        503 => Err(BusError::NoResponders { what: api.to_owned() }),
        code => {
            let text = end.description.clone().unwrap_or_default();
            Err(BusError::Refused { what: api.to_owned(), code: u64::from(code), text })
        }
    }
}

/// A way backwards through a stream, window by window.
#[derive(Debug)]
pub(super) struct Backwards {
    bus: Bus,
    stream: String,
    filter: String,
    first: u64,
    /// The first sequence that was already read.
    until: u64,
    /// Sequences of the next window.
    span: u64,
}

impl Backwards {
    /// The next window, older than those before; its messages are in the stream's order. None at the stream's beginning.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<StreamMessage>>, BusError> {
        loop {
            if self.until <= self.first {
                return Ok(None);
            }
            let from = self.until.saturating_sub(self.span).max(self.first);
            let Some(window) = self.window(from).await? else {
                // Never less than one sequence, so never more than one message.
                self.span = (self.span / 8).max(1);
                continue;
            };
            self.until = from;
            self.span = next_span(self.span, window.len());
            if !window.is_empty() {
                return Ok(Some(window));
            }
        }
    }

    /// What is between `from` and what was read before; none when that is too much at a time.
    async fn window(&self, from: u64) -> Result<Option<Vec<StreamMessage>>, BusError> {
        let mut window: Vec<StreamMessage> = Vec::new();
        let mut next = from;
        while next < self.until {
            let batch = self.bus.batch(&self.stream, &self.filter, Start::Sequence(next), self.until - next).await?;
            let Some(last) = batch.messages.last().map(|message| message.sequence) else { break };
            next = last + 1;
            window.extend(batch.messages.into_iter().filter(|message| message.sequence < self.until));
            if window.len() > MOST_IN_WINDOW {
                return Ok(None);
            }
            if !batch.more {
                break;
            }
        }
        Ok(Some(window))
    }
}

/// Windows grow until they hold a batch or so, however rare what is looked for.
fn next_span(span: u64, found: usize) -> u64 {
    if found < (BATCH / 2) as usize { span.saturating_mul(4) } else { span }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_grow_where_little_is_found() {
        assert_eq!(next_span(256, 200), 1024);
        assert_eq!(next_span(1024, 1000), 1024);
        assert_eq!(next_span(u64::MAX / 2, 0), u64::MAX);
    }

    #[test]
    fn a_request_says_where_to_begin_in_one_way() {
        let request =
            |seq, start_time| serde_json::to_string(&Request { batch: 1, max_bytes: 2, seq, start_time, next_by_subj: "a.*" }).unwrap();
        assert_eq!(request(Some(7), None), r#"{"batch":1,"max_bytes":2,"seq":7,"next_by_subj":"a.*"}"#);
        let time = Some(Time::from_micros(0));
        assert_eq!(request(None, time), r#"{"batch":1,"max_bytes":2,"start_time":"1970-01-01T00:00:00.000000Z","next_by_subj":"a.*"}"#);
    }
}
