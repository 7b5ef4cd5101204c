//! Reads the task's pipes, so that the task never waits for anybody but the disk.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::fault::{Fault, Faults};
use super::gauge::Gauge;
use super::lane::{Lane, Record};
use super::local::LocalLog;
use super::spool::{Spool, Writer};
use super::tail::StderrTail;
use crate::crash::{self, Point};
use crate::task::log_chunk::LogStream;
use crate::telemetry::spawn_blocking;

/// Records that may wait, in chunks, while others are being written; then the pipes are not read until the disk has
/// answered. With those being written and one per lane: ten chunks of memory.
const BATCH: usize = 4;

/// Most records taken from a pipe that somebody keeps open after the end: as much as the largest pipe holds, so that
/// whoever goes on writing cannot keep the recorder busy.
const LAST_LOOK: usize = 16;

/// Both sinks of records that are files.
struct Disk {
    writer: Writer,
    local: Option<LocalLog>,
}

type Written = (Box<Disk>, Result<(), Fault>);

/// The task that owns both pipes.
pub(super) struct Pump {
    lanes: [Lane; 2],
    batch: Vec<Record>,
    batch_limit: usize,
    /// Here while nothing is being written.
    disk: Option<Box<Disk>>,
    writing: Option<JoinHandle<Written>>,
    writing_bytes: usize,
    ended: bool,
    context: Context,
}

/// What the pump shares with the rest of the recorder.
pub(super) struct Context {
    pub(super) spool: Arc<Spool>,
    pub(super) faults: Faults,
    pub(super) cancel: CancellationToken,
    pub(super) gauge: Gauge,
    pub(super) stderr_tail: StderrTail,
}

enum Turn {
    Read(usize, std::io::Result<usize>),
    Written(Result<Written, tokio::task::JoinError>),
    Finish(Duration),
    DrainOver,
    Due,
    Cancelled,
}

impl Pump {
    pub(super) fn new(lanes: [Lane; 2], chunk: usize, local: Option<LocalLog>, context: Context) -> Self {
        let disk = Some(Box::new(Disk { writer: Writer::new(Arc::clone(&context.spool)), local }));
        Self { lanes, batch: Vec::new(), batch_limit: BATCH * chunk, disk, writing: None, writing_bytes: 0, ended: false, context }
    }

    /// Runs until both pipes are at their end, or `finish` and the time that it allows for it have passed, and everything
    /// is in the spool.
    pub(super) async fn run(mut self, mut finish: oneshot::Receiver<Duration>) {
        let mut drain: Option<(Instant, Duration)> = None;
        loop {
            self.cut();
            self.submit();
            if self.ended && self.writing.is_none() {
                break;
            }
            match self.turn(&mut finish, drain).await {
                Turn::Read(lane, result) => self.observe(lane, result),
                Turn::Written(done) => self.written(done),
                Turn::Finish(allowed) => drain = Instant::now().checked_add(allowed).map(|at| (at, allowed)),
                Turn::DrainOver => {
                    if let Some((_, allowed)) = drain.take() {
                        self.last_look(allowed);
                    }
                }
                Turn::Due => {}
                Turn::Cancelled => break,
            }
        }
        // The spool must not go while a file in it is being written.
        if let Some(writing) = self.writing.take() {
            let _ = writing.await;
        }
    }

    async fn turn(&mut self, finish: &mut oneshot::Receiver<Duration>, drain: Option<(Instant, Duration)>) -> Turn {
        let room = self.batch_bytes() < self.batch_limit;
        let due = self.lanes.iter().filter_map(Lane::due).min();
        let [first, second] = &mut self.lanes;
        tokio::select! {
            // Cancel safe: takes bytes and returns without awaiting in between.
            n = first.read(), if room => Turn::Read(0, n),
            n = second.read(), if room => Turn::Read(1, n),
            // Cancel safe: only polled, kept across turns.
            done = joined(&mut self.writing) => Turn::Written(done),
            // Cancel safe: oneshot. A sender that is gone comes with cancellation.
            Ok(allowed) = &mut *finish, if drain.is_none() && !finish.is_terminated() => Turn::Finish(allowed),
            // Cancel safe: deadlines are absolute.
            () = until(due) => Turn::Due,
            () = until(drain.map(|(at, _)| at)) => Turn::DrainOver,
            () = self.context.cancel.cancelled() => Turn::Cancelled,
        }
    }

    /// New bytes, or the end of a pipe. The one place where bytes pass and are masked: before excerpt, local copy and spool
    /// see them (invariant 8).
    fn observe(&mut self, lane: usize, result: std::io::Result<usize>) {
        let lane = &mut self.lanes[lane];
        let n = result.unwrap_or_else(|e| {
            self.context.faults.raise(Fault::Pipe { stream: lane.stream, source: Arc::new(e) });
            0
        });
        if n > 0 {
            crash::point(Point::OutputRead);
        }
        let stream = lane.stream;
        let masked = lane.admit(n);
        if stream == LogStream::Stderr {
            self.context.stderr_tail.push(masked);
        }
    }

    /// Turns pending bytes into records where it is time, the older ones first.
    fn cut(&mut self) {
        let now = Instant::now();
        let ended = self.lanes.iter().all(Lane::is_closed);
        let [first, second] = &mut self.lanes;
        let mut order = [first, second];
        order.sort_by_key(|lane| lane.first());
        for lane in order {
            while let Some(record) = lane.cut(now, ended) {
                self.batch.push(record);
            }
        }
    }

    /// Hands what was cut to the disk, unless that is still busy. The last batch closes the spool in the same step.
    fn submit(&mut self) {
        let last = self.lanes.iter().all(|lane| lane.is_closed() && lane.pending_bytes() == 0);
        self.gauge();
        if self.ended || (self.batch.is_empty() && !last) {
            return;
        }
        let Some(mut disk) = self.disk.take() else { return };
        if self.batch.is_empty() {
            self.context.spool.close();
            self.ended = true;
            return;
        }
        if self.context.faults.any() {
            disk.writer.give_up();
        }
        self.ended = last;
        self.writing_bytes = self.batch_bytes();
        let batch = std::mem::take(&mut self.batch);
        self.writing = Some(spawn_blocking(move || {
            if let Some(local) = &mut disk.local {
                local.append(&batch);
            }
            let result = disk.writer.append(&batch, last);
            (disk, result)
        }));
    }

    fn written(&mut self, done: Result<Written, tokio::task::JoinError>) {
        self.writing = None;
        self.writing_bytes = 0;
        match done {
            Ok((disk, result)) => {
                self.disk = Some(disk);
                if let Err(fault) = result {
                    self.context.faults.raise(fault);
                }
            }
            Err(e) => {
                self.context.faults.raise(Fault::Internal(e.to_string()));
                self.context.cancel.cancel();
            }
        }
    }

    /// The time for reading to the end is over: takes what is in the pipes and closes them.
    fn last_look(&mut self, allowed: Duration) {
        let mut held = Vec::new();
        for at in 0..self.lanes.len() {
            if self.lanes[at].is_closed() {
                continue;
            }
            for _ in 0..LAST_LOOK {
                match self.lanes[at].read_now() {
                    Ok(0) => break,
                    result => self.observe(at, result),
                }
                self.cut();
            }
            if !self.lanes[at].is_closed() {
                held.push(self.lanes[at].stream.as_str());
                self.lanes[at].close();
            }
            // What was held back until the end.
            self.observe(at, Ok(0));
        }
        if !held.is_empty() {
            let (held, allowed) = (held.join(" and "), allowed.as_millis());
            self.context
                .spool
                .notice(format!("{held} still held open by another process {allowed} ms after the task's end; read no further"));
        }
    }

    fn batch_bytes(&self) -> usize {
        self.batch.iter().map(|record| record.data.len()).sum()
    }

    fn gauge(&self) {
        let pending: usize = self.lanes.iter().map(Lane::pending_bytes).sum();
        self.context.gauge.pump(pending + self.batch_bytes() + self.writing_bytes);
    }
}

async fn joined(writing: &mut Option<JoinHandle<Written>>) -> Result<Written, tokio::task::JoinError> {
    match writing {
        Some(task) => task.await,
        None => std::future::pending().await,
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
