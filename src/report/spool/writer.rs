//! The pump's end of the spool.

use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::sync::Arc;

use super::super::fault::Fault;
use super::super::lane::Record;
use super::super::utf8::whole_chars;
use super::{HEADER, SEGMENT, Segment, Spool, index};
use crate::crash::{self, Point};
use crate::task::ByteSize;

/// Appends records. Calls block on the disk.
#[derive(Debug)]
pub(in super::super) struct Writer {
    spool: Arc<Spool>,
    file: Option<(File, Segment)>,
    next_id: u64,
    /// Bytes that the head may still take.
    head_left: u64,
    in_tail: bool,
    tail_segment: u64,
    /// Bytes that ever went to the tail.
    tail_bytes: u64,
    /// Written but not yet shown to the reader, with the segment's totals: one lock per batch.
    staged: Vec<(bool, Segment)>,
    broken: bool,
}

impl Writer {
    pub(in super::super) fn new(spool: Arc<Spool>) -> Self {
        let (head_left, tail) = (spool.config.head, spool.config.tail);
        // An eighth: what the tail takes on disk beyond its limit before the oldest segment goes.
        let tail_segment = (tail / 8).clamp(1, SEGMENT);
        Self { spool, file: None, next_id: 0, head_left, in_tail: false, tail_segment, tail_bytes: 0, staged: Vec::new(), broken: false }
    }

    /// Writes nothing any more; what comes is counted as lost.
    pub(in super::super) fn give_up(&mut self) {
        self.broken = true;
    }

    /// Appends `records`; with `last`, ends the output in the same step, so that the reader can mark the last one.
    ///
    /// # Errors
    /// When the disk refuses. Whole records before that are kept, everything after is counted as lost.
    pub(in super::super) fn append(&mut self, records: &[Record], last: bool) -> Result<(), Fault> {
        let mut lost = [0; 3];
        let mut result = Ok(());
        for record in records {
            let kept = if self.broken { Ok(()) } else { self.store(record, &mut lost) };
            if let Err(e) = kept {
                result = Err(Fault::spool(&self.spool.config.dir, e));
                self.broken = true;
                self.spool.notice("output from here on is missing: the worker could not write it to its disk".to_owned());
            } else if self.broken {
                lost[index(record.stream)] += record.data.len() as u64;
            }
        }
        let evicted = self.commit(lost, last);
        crash::point(Point::Spooled);
        self.spool.changed.notify_one();
        for id in evicted {
            let _ = std::fs::remove_file(self.spool.segment_path(id));
        }
        result
    }

    /// Writes one record, cut in two where head and tail meet. On an error the part that was not written is in `lost`.
    fn store(&mut self, record: &Record, lost: &mut [u64; 3]) -> io::Result<()> {
        let len = record.data.len() as u64;
        let room = usize::try_from(self.head_left).unwrap_or(usize::MAX);
        let head = match record.data.get(..room) {
            _ if self.in_tail => 0,
            Some(fits) if fits.len() < record.data.len() => whole_chars(fits),
            _ => record.data.len(),
        };
        let parts = [record.data.slice(..head), record.data.slice(head..)];
        let mut written = 0;
        for (tail, data) in [false, true].into_iter().zip(parts) {
            if data.is_empty() {
                continue;
            }
            if tail && !self.in_tail {
                self.in_tail = true;
                self.file = None;
            }
            let part = Record { data, ..record.clone() };
            if let Err(e) = self.write(&part) {
                lost[index(record.stream)] += len - written;
                return Err(e);
            }
            written += part.data.len() as u64;
            self.head_left = self.head_left.saturating_sub(if tail { 0 } else { part.data.len() as u64 });
        }
        Ok(())
    }

    fn write(&mut self, record: &Record) -> io::Result<()> {
        let limit = if self.in_tail { self.tail_segment } else { SEGMENT };
        let (mut file, mut segment) = match self.file.take() {
            Some((file, segment)) if segment.bytes() < limit => (file, segment),
            _ => self.open()?,
        };
        let payload = u32::try_from(record.data.len()).map_err(io::Error::other)?;
        let mut header = [0; HEADER];
        header[0] = u8::try_from(index(record.stream)).map_err(io::Error::other)?;
        header[4..8].copy_from_slice(&payload.to_le_bytes());
        header[8..].copy_from_slice(&record.time.as_micros().to_le_bytes());
        file.write_all(&header)?;
        file.write_all(&record.data)?;
        segment.len += (HEADER + record.data.len()) as u64;
        segment.payload[index(record.stream)] += u64::from(payload);
        match self.staged.last_mut() {
            Some((_, last)) if last.id == segment.id => *last = segment,
            _ => self.staged.push((self.in_tail, segment)),
        }
        self.file = Some((file, segment));
        Ok(())
    }

    fn open(&mut self) -> io::Result<(File, Segment)> {
        if self.next_id == 0 {
            // Before the files: the guard must know of the directory even when the first file fails.
            self.spool.lock().on_disk = true;
            DirBuilder::new().recursive(true).mode(0o700).create(&self.spool.config.dir)?;
        }
        let id = self.next_id;
        self.next_id += 1;
        let file = (self.spool.config.create)(&self.spool.segment_path(id))?;
        Ok((file, Segment { id, len: 0, payload: [0; 3] }))
    }

    /// Shows what was written to the reader and makes room in the tail; returns the segments to delete.
    fn commit(&mut self, lost: [u64; 3], last: bool) -> Vec<u64> {
        let cap = self.spool.config.tail;
        let mut state = self.spool.lock();
        let before = self.tail_bytes;
        for (tail, segment) in self.staged.drain(..) {
            let segments = if tail { &mut state.tail } else { &mut state.queue };
            let known = match segments.back_mut() {
                Some(back) if back.id == segment.id => std::mem::replace(back, segment).bytes(),
                _ => {
                    segments.push_back(segment);
                    0
                }
            };
            self.tail_bytes += if tail { segment.bytes() - known } else { 0 };
        }
        if before <= cap && self.tail_bytes > cap {
            let text = format!("output exceeds {}; the newest {} follow at the end", ByteSize(self.spool.config.head + cap), ByteSize(cap));
            state.notices.push_back((crate::task::Time::now(), text));
        }
        let mut evicted = Vec::new();
        let mut kept: u64 = state.tail.iter().map(Segment::bytes).sum();
        while state.tail.len() > 1
            && let Some(oldest) = state.tail.front().copied()
            && kept - oldest.bytes() >= cap
        {
            state.tail.pop_front();
            kept -= oldest.bytes();
            for (total, bytes) in state.dropped.iter_mut().zip(oldest.payload) {
                *total += bytes;
            }
            evicted.push(oldest.id);
        }
        for (total, bytes) in state.lost.iter_mut().zip(lost) {
            *total += bytes;
        }
        state.closed |= last;
        evicted
    }
}
