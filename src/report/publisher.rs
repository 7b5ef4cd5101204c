//! Brings chunks to the sink: a window in flight, each repeated with the same bytes until it is confirmed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio_util::sync::CancellationToken;

use super::chunker::{Chunker, Prepared};
use super::fault::{Fault, Faults};
use super::gauge::Gauge;
use super::spool::{Reader, Spool};
use super::{ChunkSink, SinkError};
use crate::crash::{self, Point};
use crate::retry::Delays;
use crate::task::event::Manifest;

/// Pieces that are read and digested in one visit to the blocking pool, and kept ready beside the window.
const AHEAD: usize = 4;

/// Largest chunk whose body is written on the runtime's thread: cheaper than to wake another one.
const WRITTEN_HERE: usize = 4 << 10;

/// First wait before a chunk is sent again.
const FIRST_DELAY: Duration = Duration::from_millis(50);
/// Longest wait.
const LONGEST_DELAY: Duration = Duration::from_secs(2);

/// Everything that happens to output after the spool.
pub(super) struct Publisher<S> {
    pub(super) spool: Arc<Spool>,
    pub(super) sink: Arc<S>,
    pub(super) window: usize,
    pub(super) faults: Faults,
    pub(super) cancel: CancellationToken,
    pub(super) gauge: Gauge,
}

/// What has to happen in the order of the chunks, on the blocking pool: a read can wait for the disk.
pub(super) struct Stage {
    pub(super) reader: Reader,
    pub(super) chunker: Chunker,
}

impl Stage {
    fn prepare(&mut self, spool: &Spool) -> Result<Vec<Prepared>, Fault> {
        let mut out = Vec::new();
        while out.len() < AHEAD
            && let Some(piece) = self.reader.next().map_err(|e| Fault::spool(spool.dir(), e))?
        {
            self.chunker.cut(piece, &mut out);
        }
        Ok(out)
    }
}

type Preparing = JoinHandle<(Stage, Result<Vec<Prepared>, Fault>)>;

impl<S: ChunkSink> Publisher<S> {
    /// Runs until everything is confirmed and returns the proof; `None` when it was cancelled or failed.
    pub(super) async fn run(self, stage: Stage) -> Option<Manifest> {
        let mut preparing = None;
        let published = self.publish(stage, &mut preparing).await;
        // The spool must not go while it is being read.
        if let Some(task) = preparing {
            let _ = task.await;
        }
        self.gauge.publisher(0);
        published.unwrap_or_else(|fault| {
            self.faults.raise(fault);
            None
        })
    }

    async fn publish(&self, stage: Stage, preparing: &mut Option<Preparing>) -> Result<Option<Manifest>, Fault> {
        let mut resting = Some(stage);
        let mut ready: VecDeque<Prepared> = VecDeque::new();
        let mut in_flight = FuturesUnordered::new();
        let mut buffered = 0;
        loop {
            while in_flight.len() < self.window
                && let Some(chunk) = ready.pop_front()
            {
                in_flight.push(deliver(Arc::clone(&self.sink), chunk));
            }
            if let Some(stage) = resting.take() {
                let ended = stage.reader.ended() || stage.reader.was_silent();
                if ended && ready.is_empty() && in_flight.is_empty() {
                    return Ok(Some(stage.chunker.manifest()));
                }
                if !ended && ready.len() < AHEAD && self.spool.has_work() {
                    *preparing = Some(self.prepare(stage));
                } else {
                    resting = Some(stage);
                }
            }
            self.gauge.publisher(buffered);
            tokio::select! {
                // Cancel safe: only polled, kept across turns.
                done = joined(preparing) => {
                    *preparing = None;
                    let (stage, prepared) = done?;
                    let prepared = prepared?;
                    buffered += prepared.iter().map(Prepared::len).sum::<usize>();
                    ready.extend(prepared);
                    resting = Some(stage);
                }
                // Cancel safe: a stream; the futures stay in it.
                Some(confirmed) = in_flight.next() => {
                    buffered -= confirmed?;
                    crash::point(Point::BetweenChunks);
                }
                // Cancel safe: the notification is kept.
                () = self.spool.changed() => {}
                // Chunks in flight are dropped: nobody will count them.
                () = self.cancel.cancelled() => return Ok(None),
            }
        }
    }

    fn prepare(&self, mut stage: Stage) -> Preparing {
        let spool = Arc::clone(&self.spool);
        spawn_blocking(move || {
            let prepared = stage.prepare(&spool);
            (stage, prepared)
        })
    }
}

async fn joined(preparing: &mut Option<Preparing>) -> Result<(Stage, Result<Vec<Prepared>, Fault>), Fault> {
    match preparing {
        Some(task) => task.await.map_err(|e| Fault::Internal(e.to_string())),
        None => std::future::pending().await,
    }
}

/// Publishes one chunk until it is confirmed; returns the output in it.
async fn deliver<S: ChunkSink>(sink: Arc<S>, mut chunk: Prepared) -> Result<usize, Fault> {
    let (subject, msg_id) = (std::mem::take(&mut chunk.subject), std::mem::take(&mut chunk.msg_id));
    let (len, content_type) = (chunk.len(), chunk.encoding.content_type());
    // Bodies are written side by side, small ones at once.
    let body = if len <= WRITTEN_HERE {
        chunk.body()?
    } else {
        spawn_blocking(move || chunk.body()).await.map_err(|e| Fault::Internal(e.to_string()))??
    };
    crash::point(Point::ChunkReady);
    let mut delays = Delays::new(FIRST_DELAY, LONGEST_DELAY);
    let mut again = false;
    loop {
        match sink.publish(subject.clone(), msg_id.clone(), content_type, body.clone()).await {
            Ok(()) => {
                if again {
                    crash::point(Point::SpoolReplay);
                }
                return Ok(len);
            }
            Err(SinkError::Refused(reason)) => return Err(Fault::Refused { msg_id, reason }),
            Err(SinkError::Retry(reason)) => {
                tracing::debug!(%msg_id, %reason, "chunk not confirmed");
                again = true;
                delays.wait().await;
            }
        }
    }
}
