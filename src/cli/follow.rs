//! One task watched until it is over: its events and its output in one sequence, and the proof that the output is whole.
//!
//! Events and chunks are two streams. A chunk counts when its `fence` is the stream sequence of a `task_started` of the
//! chain; chunks that come before their `task_started` wait for it, chunks of anybody else are dropped. The event that
//! ends the chain is given out last, when every chunk that its manifest counts has been.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt as _};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

use super::assembly::{Assembly, Piece};
use crate::bus::read::{EventFilter, From, ReadEvent};
use crate::bus::{Bus, BusError};
use crate::task::event::Manifest;
use crate::task::log_chunk::LogChunk;
use crate::task::{EventKind, TaskId, Tenant};

/// How long the last chunks may take: they are confirmed before the end is appended, so only reading them takes time.
const LAST_CHUNKS: Duration = Duration::from_secs(10);

/// What happened to the task.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Seen {
    /// The next event of its chain.
    Event(Box<ReadEvent>),
    /// The next piece of its output.
    Piece(Piece),
}

/// Watches one task.
pub(super) struct Watch {
    events: BoxStream<'static, Result<ReadEvent, BusError>>,
    chunks: BoxStream<'static, Result<LogChunk, BusError>>,
    output: Outputs,
    ready: VecDeque<Seen>,
    end: Option<Box<ReadEvent>>,
    patience: Instant,
}

impl Watch {
    /// From the task's first event on.
    pub(super) async fn open(bus: &Bus, tenant: &Tenant, task_id: &TaskId) -> Result<Self, BusError> {
        let filter = EventFilter { tenant: Some(tenant.clone()), task_id: Some(task_id.clone()), kind: None };
        let events = bus.events(filter, From::Start, true).await?;
        let chunks = bus.log_chunks(tenant, task_id, true).await?;
        Ok(Self::of(events, chunks))
    }

    fn of(
        events: impl Stream<Item = Result<ReadEvent, BusError>> + Send + 'static,
        chunks: impl Stream<Item = Result<LogChunk, BusError>> + Send + 'static,
    ) -> Self {
        Self {
            events: events.boxed(),
            chunks: chunks.boxed(),
            output: Outputs::default(),
            ready: VecDeque::new(),
            end: None,
            patience: Instant::now(),
        }
    }

    /// What comes next; the event that ends the chain is the last. Cancel safe: nothing is taken that is not given out.
    pub(super) async fn next(&mut self) -> Result<Option<Seen>, BusError> {
        loop {
            if let Some(seen) = self.ready.pop_front() {
                return Ok(Some(seen));
            }
            let patience = self.patience;
            let over = self.end.is_some();
            if let Some(end) = self.end.take_if(|end| self.output.is_complete(end.head.event.logs.as_ref()) || patience <= Instant::now()) {
                self.events = futures_util::stream::empty().boxed();
                self.chunks = futures_util::stream::empty().boxed();
                return Ok(Some(Seen::Event(end)));
            }
            tokio::select! {
                event = self.events.next(), if !over => match event {
                    Some(event) => self.take_event(event?),
                    None => return Ok(None),
                },
                chunk = self.chunks.next() => match chunk {
                    Some(chunk) => {
                        self.patience = Instant::now() + LAST_CHUNKS;
                        self.ready.extend(self.output.push(chunk?).into_iter().map(Seen::Piece));
                    }
                    None if over => self.patience = Instant::now(),
                    None => return Ok(None),
                },
                () = tokio::time::sleep_until(patience), if over => {}
            }
        }
    }

    fn take_event(&mut self, event: ReadEvent) {
        if event.head.event.event == EventKind::TaskStarted {
            self.ready.extend(self.output.started(event.head.sequence).into_iter().map(Seen::Piece));
        }
        if event.head.event.event.is_terminal() {
            self.patience = Instant::now() + LAST_CHUNKS;
            self.end = Some(Box::new(event));
        } else {
            self.ready.push_back(Seen::Event(Box::new(event)));
        }
    }

    /// What the manifest of the end promises and was not seen.
    pub(super) fn differences(&self, manifest: Option<&Manifest>) -> Vec<String> {
        self.output.differences(manifest)
    }
}

/// The output of a task's attempts, each known by its fence.
#[derive(Debug, Default)]
pub(super) struct Outputs {
    attempts: BTreeMap<u64, Assembly>,
    early: Vec<LogChunk>,
}

impl Outputs {
    /// An attempt was claimed at `fence`: gives back what had come of it before.
    pub(super) fn started(&mut self, fence: u64) -> Vec<Piece> {
        self.attempts.entry(fence).or_default();
        let early = std::mem::take(&mut self.early);
        early.into_iter().flat_map(|chunk| self.push(chunk)).collect()
    }

    /// A chunk came: gives back what follows in its attempt.
    pub(super) fn push(&mut self, chunk: LogChunk) -> Vec<Piece> {
        if let Some(attempt) = self.attempts.get_mut(&chunk.fence) {
            return attempt.push(chunk);
        }
        // A fence below one that is known is nobody's in this chain: sequences only grow.
        if self.attempts.keys().next_back().is_none_or(|last| *last < chunk.fence) {
            self.early.push(chunk);
        }
        Vec::new()
    }

    fn is_complete(&self, manifest: Option<&Manifest>) -> bool {
        manifest.is_none_or(|m| self.attempts.get(&m.fence).map_or(0, Assembly::placed) >= m.chunks)
    }

    /// What the manifest promises and was not seen.
    pub(super) fn differences(&self, manifest: Option<&Manifest>) -> Vec<String> {
        let Some(manifest) = manifest else { return Vec::new() };
        match self.attempts.get(&manifest.fence) {
            Some(attempt) => attempt.differences(manifest),
            None => Assembly::default().differences(manifest),
        }
    }
}

/// Ctrl-C and SIGTERM, heard from the moment this is made.
pub(super) struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    /// Starts to listen; the signals do not end the process any more.
    pub(super) fn listen() -> std::io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// The next one. Cancel safe.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Resolves after `seconds`, or never.
pub(super) async fn after(seconds: Option<f64>) {
    match seconds {
        Some(seconds) => tokio::time::sleep(Duration::from_secs_f64(seconds)).await,
        None => std::future::pending().await,
    }
}
