//! A sink in memory that can be away, slow, refuse, or store and lose its answer.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, watch};

use super::{ChunkSink, SinkError};

/// What the sink does with one publish.
#[derive(Debug, Clone, Copy)]
pub(super) enum Answer {
    Stored,
    /// Not stored, passing.
    Retry,
    /// Stored, but the answer is lost.
    StoredUnheard,
    Refused,
    /// Stored after this long.
    Slow(Duration),
}

/// Decides by message id and by how often it came before.
type Script = Box<dyn Fn(&str, usize) -> Answer + Send + Sync>;

pub(super) struct FakeSink {
    script: Script,
    there: watch::Sender<bool>,
    stored: Mutex<HashMap<String, (String, Bytes)>>,
    tries: Mutex<HashMap<String, usize>>,
    pub(super) in_flight_peak: AtomicUsize,
    in_flight: AtomicUsize,
    changed: Notify,
}

impl FakeSink {
    pub(super) fn with(script: impl Fn(&str, usize) -> Answer + Send + Sync + 'static) -> Self {
        Self {
            script: Box::new(script),
            there: watch::Sender::new(true),
            stored: Mutex::default(),
            tries: Mutex::default(),
            in_flight_peak: AtomicUsize::new(0),
            in_flight: AtomicUsize::new(0),
            changed: Notify::new(),
        }
    }

    pub(super) fn instant() -> Self {
        Self::with(|_, _| Answer::Stored)
    }

    /// While it is away no publish gets an answer.
    pub(super) fn set_there(&self, there: bool) {
        self.there.send_replace(there);
    }

    /// Everything that is stored: subject and body by message id.
    pub(super) fn stored(&self) -> HashMap<String, (String, Bytes)> {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn tries(&self) -> HashMap<String, usize> {
        self.tries.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until `enough` of what is stored.
    pub(super) async fn until(&self, enough: impl Fn(&HashMap<String, (String, Bytes)>) -> bool) {
        loop {
            let changed = self.changed.notified();
            if enough(&self.stored()) {
                return;
            }
            changed.await;
        }
    }

    fn store(&self, subject: String, msg_id: &str, body: Bytes) {
        let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        match stored.get(msg_id) {
            Some(before) => assert_eq!(*before, (subject, body), "{msg_id} came again with other bytes"),
            None => {
                stored.insert(msg_id.to_owned(), (subject, body));
            }
        }
        drop(stored);
        self.changed.notify_waiters();
    }
}

impl ChunkSink for FakeSink {
    async fn publish(&self, subject: String, msg_id: String, _: &'static str, body: Bytes) -> Result<(), SinkError> {
        let nth = {
            let mut tries = self.tries.lock().unwrap_or_else(PoisonError::into_inner);
            let count = tries.entry(msg_id.clone()).or_default();
            *count += 1;
            *count - 1
        };
        self.in_flight_peak.fetch_max(self.in_flight.fetch_add(1, SeqCst) + 1, SeqCst);
        let _ = self.there.subscribe().wait_for(|there| *there).await;
        let result = self.answer(subject, &msg_id, nth, body).await;
        self.in_flight.fetch_sub(1, SeqCst);
        result
    }
}

impl FakeSink {
    async fn answer(&self, subject: String, msg_id: &str, nth: usize, body: Bytes) -> Result<(), SinkError> {
        let lost = || Err(SinkError::Silent("no answer".to_owned()));
        match (self.script)(msg_id, nth) {
            Answer::Retry => return lost(),
            Answer::Refused => return Err(SinkError::Refused("maximum payload".to_owned())),
            Answer::StoredUnheard => {
                self.store(subject, msg_id, body);
                return lost();
            }
            Answer::Slow(delay) => tokio::time::sleep(delay).await,
            Answer::Stored => {}
        }
        self.store(subject, msg_id, body);
        Ok(())
    }
}
