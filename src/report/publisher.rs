//! Brings chunks to the sink: a few in flight, each repeated with the same bytes until it is confirmed. How many is the
//! link's to say, see [`Pace`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::chunker::{Chunker, Prepared};
use super::fault::{Fault, Faults};
use super::gauge::Gauge;
use super::pace::Pace;
use super::spool::{Reader, Spool};
use super::{ChunkSink, SinkError};
use crate::crash::{self, Point};
use crate::retry::Delays;
use crate::task::event::Manifest;
use crate::telemetry::metrics::{self, Publication};
use crate::telemetry::spawn_blocking;

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
        let mut again: VecDeque<Box<Letter>> = VecDeque::new();
        let mut pace = Pace::new(self.window);
        let mut buffered = 0;
        loop {
            while pace.allows(in_flight.len())
                && let Some(what) = again.pop_front().map(What::Again).or_else(|| ready.pop_front().map(|chunk| What::New(Box::new(chunk))))
            {
                in_flight.push(deliver(Arc::clone(&self.sink), what));
            }
            if let Some(stage) = resting.take() {
                let ended = stage.reader.ended() || stage.reader.was_silent();
                if ended && ready.is_empty() && again.is_empty() && in_flight.is_empty() {
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
                Some(delivered) = in_flight.next() => match noted(delivered?, &mut pace) {
                    Ok(len) => {
                        buffered -= len;
                        crash::point(Point::BetweenChunks);
                    }
                    Err(letter) => again.push_back(letter),
                },
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

/// A chunk in the words of the sink, the same each time.
struct Letter {
    subject: String,
    msg_id: String,
    content_type: &'static str,
    body: Bytes,
    len: usize,
    delays: Delays,
}

enum What {
    New(Box<Prepared>),
    Again(Box<Letter>),
}

/// What became of one try.
enum Delivered {
    /// Stored; so much output was in it.
    Confirmed { len: usize, sent: Instant },
    /// Perhaps not stored. Its delay is over.
    Not { letter: Box<Letter>, sent: Instant, silent: bool, reason: String },
}

async fn write(mut chunk: Prepared) -> Result<Letter, Fault> {
    let (subject, msg_id) = (std::mem::take(&mut chunk.subject), std::mem::take(&mut chunk.msg_id));
    let (len, content_type) = (chunk.len(), chunk.encoding.content_type());
    // Bodies are written side by side, small ones at once.
    let body = if len <= WRITTEN_HERE {
        chunk.body()?
    } else {
        spawn_blocking(move || chunk.body()).await.map_err(|e| Fault::Internal(e.to_string()))??
    };
    Ok(Letter { subject, msg_id, content_type, body, len, delays: Delays::new(FIRST_DELAY, LONGEST_DELAY) })
}

/// What one try says of the pace; how much output is stored, or what has to be sent again.
fn noted(delivered: Delivered, pace: &mut Pace) -> Result<usize, Box<Letter>> {
    let now = Instant::now();
    match delivered {
        Delivered::Confirmed { len, sent } => {
            pace.confirmed(sent, now);
            Ok(len)
        }
        Delivered::Not { letter, sent, silent, reason } => {
            if silent {
                pace.silent(sent, now);
            }
            if pace.speaks(now) {
                let msg_id = &letter.msg_id;
                tracing::warn!(%msg_id, %reason, "output is not stored yet, sending it again; its task cannot end before");
            }
            Err(letter)
        }
    }
}

/// Publishes one chunk once.
async fn deliver<S: ChunkSink>(sink: Arc<S>, what: What) -> Result<Delivered, Fault> {
    let again = matches!(what, What::Again(_));
    let mut letter = match what {
        What::New(chunk) => Box::new(write(*chunk).await?),
        What::Again(letter) => letter,
    };
    crash::point(Point::ChunkReady);
    let sent = Instant::now();
    metrics::note(|m| {
        if again {
            m.published_again(Publication::Chunk)
        }
    });
    let answer = sink.publish(letter.subject.clone(), letter.msg_id.clone(), letter.content_type, letter.body.clone()).await;
    let (silent, reason) = match answer {
        Ok(()) => {
            if again {
                crash::point(Point::SpoolReplay);
            }
            metrics::note(|m| {
                m.confirmed(Publication::Chunk, sent.elapsed());
                m.chunk_stored(letter.len);
            });
            return Ok(Delivered::Confirmed { len: letter.len, sent });
        }
        Err(SinkError::Refused(reason)) => {
            metrics::note(|m| m.refused(Publication::Chunk));
            return Err(Fault::Refused { msg_id: letter.msg_id, reason });
        }
        Err(SinkError::Silent(reason)) => (true, reason),
        Err(SinkError::Retry(reason)) => (false, reason),
    };
    tracing::debug!(msg_id = letter.msg_id, %reason, "chunk not confirmed");
    letter.delays.wait().await;
    Ok(Delivered::Not { letter, sent, silent, reason })
}
