//! One pipe and what was read from it but is not a record yet.

use std::io;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::net::unix::pipe::Receiver;
use tokio::time::Instant;

use super::utf8::whole_chars;
use crate::mask::StreamMask;
use crate::task::Time;
use crate::task::log_chunk::LogStream;

/// Longest wait for company of a stream's first bytes after a silence.
const LINGER: Duration = Duration::from_millis(5);

/// Pipe size for tasks that fill a whole chunk: 64 KiB, the default, costs a wake-up per chunk.
const PIPE_SIZE: usize = 1 << 20;

/// A piece of one stream on its way to the spool.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub(super) stream: LogStream,
    /// When its first byte was read.
    pub(super) time: Time,
    pub(super) data: Bytes,
}

/// When pending bytes become a record.
#[derive(Debug, Clone, Copy)]
pub(super) struct CutRule {
    /// At this size ...
    pub(super) chunk: usize,
    /// ... or this long after the first byte.
    pub(super) flush: Duration,
}

/// One pipe of the task.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) stream: LogStream,
    rule: CutRule,
    pipe: Option<Receiver>,
    pending: BytesMut,
    /// When the oldest pending byte was read, by both clocks.
    first: Option<(Instant, Time)>,
    last_cut: Option<Instant>,
    enlarged: bool,
    mask: Option<StreamMask>,
}

impl Lane {
    pub(super) fn new(stream: LogStream, pipe: Receiver, rule: CutRule, mask: Option<StreamMask>) -> Self {
        Self { stream, rule, pipe: Some(pipe), pending: BytesMut::new(), first: None, last_cut: None, enlarged: false, mask }
    }

    /// Waits for bytes and takes them in; 0 at the end of the pipe. Never resolves once the lane is closed. Cancel safe:
    /// nothing is awaited after bytes were taken.
    pub(super) async fn read(&mut self) -> io::Result<usize> {
        loop {
            let Some(pipe) = &self.pipe else { return std::future::pending().await };
            pipe.readable().await?;
            // Allocated only now: a task that writes nothing costs no buffer.
            let room = self.rule.chunk.saturating_sub(self.pending.len());
            self.pending.reserve(room);
            match pipe.try_read_buf(&mut (&mut self.pending).limit(room)) {
                Ok(0) => {
                    self.pipe = None;
                    return Ok(0);
                }
                Ok(n) => {
                    self.first.get_or_insert_with(|| (Instant::now(), Time::now()));
                    return Ok(n);
                }
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(e) => {
                    self.pipe = None;
                    return Err(e);
                }
            }
        }
    }

    /// Takes what lies in the pipe right now, up to a record, past the runtime's readiness cache, which may not have heard
    /// of it yet. 0: nothing there, or the end, where the lane closes.
    pub(super) fn read_now(&mut self) -> io::Result<usize> {
        let Some(pipe) = &self.pipe else { return Ok(0) };
        let mut buffer = vec![0; self.rule.chunk.saturating_sub(self.pending.len())];
        match rustix::io::read(pipe, &mut buffer) {
            Ok(0) => self.pipe = None,
            Ok(n) => {
                self.pending.extend_from_slice(&buffer[..n]);
                self.first.get_or_insert_with(|| (Instant::now(), Time::now()));
                return Ok(n);
            }
            Err(rustix::io::Errno::AGAIN) => {}
            Err(e) => {
                self.pipe = None;
                return Err(e.into());
            }
        }
        Ok(0)
    }

    /// Masks the `n` bytes that were read last; what of the stream may leave because of them. To be called after every read.
    pub(super) fn admit(&mut self, n: usize) -> &[u8] {
        let known = self.pending.len() - n;
        if let Some(mask) = &mut self.mask {
            let raw = self.pending[known..].to_vec();
            self.pending.truncate(known);
            mask.push(&raw, &mut |part| self.pending.extend_from_slice(part));
            if self.pipe.is_none() {
                mask.finish(&mut |part| self.pending.extend_from_slice(part));
            }
            match self.pending.is_empty() {
                // Nothing to wait for, until what is held back is decided.
                true => self.first = None,
                false => _ = self.first.get_or_insert_with(|| (Instant::now(), Time::now())),
            }
        }
        &self.pending[known..]
    }

    /// Stops reading; what is pending stays.
    pub(super) fn close(&mut self) {
        self.pipe = None;
    }

    pub(super) fn is_closed(&self) -> bool {
        self.pipe.is_none()
    }

    pub(super) fn pending_bytes(&self) -> usize {
        self.pending.len()
    }

    /// When the oldest pending byte was read.
    pub(super) fn first(&self) -> Option<Instant> {
        self.first.map(|(at, _)| at)
    }

    /// When pending bytes are to be cut at the latest: shortly after the first byte of a stream that was silent, one flush
    /// interval after the last cut of a busy one.
    pub(super) fn due(&self) -> Option<Instant> {
        let (first, _) = self.first?;
        let next_turn = self.last_cut.map_or(first, |cut| cut + self.rule.flush);
        Some((first + LINGER).max(next_turn).min(first + self.rule.flush))
    }

    /// A record, if it is time for one: also at the end of all output. The end of this pipe alone is not enough, since that
    /// of the other one mostly follows in the same moment, and then this record can be marked as the last.
    pub(super) fn cut(&mut self, now: Instant, ended: bool) -> Option<Record> {
        // What was held back by the mask comes on top of a chunk.
        let most = self.pending.len().min(self.rule.chunk);
        let full = most == self.rule.chunk;
        if self.pending.is_empty() || !(full || ended || self.due().is_some_and(|due| due <= now)) {
            return None;
        }
        if full {
            self.enlarge();
        }
        // What is held back waits for one more cut: a lone beginning of a character goes as it is.
        let last = self.is_closed() && most == self.pending.len();
        let whole = if last { most } else { whole_chars(&self.pending[..most]) };
        let len = if whole == 0 { most } else { whole };
        let data = self.pending.split_to(len).freeze();
        let time = self.first.map_or_else(Time::now, |(_, time)| time);
        self.first = (!self.pending.is_empty()).then(|| (now, Time::now()));
        self.last_cut = Some(now);
        Some(Record { stream: self.stream, time, data })
    }

    fn enlarge(&mut self) {
        if let Some(pipe) = &self.pipe
            && !self.enlarged
        {
            // Refused beyond the user's pipe quota: then the pipe stays as it is.
            let _ = rustix::pipe::fcntl_setpipe_size(pipe, PIPE_SIZE);
            self.enlarged = true;
        }
    }
}
