//! The publisher's end of the spool.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::super::utf8::next_char;
use super::{HEADER, Segment, Spool, index};
use crate::task::Time;
use crate::task::log_chunk::LogStream;

/// One piece of output in the order of publication.
#[derive(Debug)]
pub(in super::super) struct Piece {
    pub(in super::super) stream: LogStream,
    pub(in super::super) time: Time,
    /// Empty only to say that bytes are missing, or that this is the end.
    pub(in super::super) data: Vec<u8>,
    /// Bytes missing right before.
    pub(in super::super) dropped: u64,
    /// Nothing follows.
    pub(in super::super) last: bool,
}

/// Takes records out of the spool. Calls block on the disk.
#[derive(Debug)]
pub(in super::super) struct Reader {
    spool: Arc<Spool>,
    file: Option<(u64, File)>,
    /// Bytes to leave out of the next record: the front of the tail.
    skip: usize,
    /// Missing bytes per stream that the next piece of that stream has to tell.
    untold: [u64; 3],
    /// Streams of which nothing is left to tell it with.
    markers: VecDeque<Piece>,
    /// Stream of the last piece.
    emitted: Option<LogStream>,
    ended: bool,
}

enum Step {
    Record { id: u64, position: u64 },
    Delete(u64),
    Notice(Time, String),
    Trim,
    Lost([u64; 3]),
    Idle,
    End,
}

impl Reader {
    pub(in super::super) fn new(spool: Arc<Spool>) -> Self {
        Self { spool, file: None, skip: 0, untold: [0; 3], markers: VecDeque::new(), emitted: None, ended: false }
    }

    /// True once the last piece was taken, or when there is none.
    pub(in super::super) fn ended(&self) -> bool {
        self.ended
    }

    /// True when output has ended and there was none: known without the disk.
    pub(in super::super) fn was_silent(&self) -> bool {
        self.emitted.is_none() && self.markers.is_empty() && self.spool.lock().exhausted()
    }

    /// The next piece, `None` when there is none yet, or at the end.
    pub(in super::super) fn next(&mut self) -> io::Result<Option<Piece>> {
        let Some(mut piece) = self.advance()? else { return Ok(None) };
        self.emitted = Some(piece.stream);
        piece.last = self.markers.is_empty() && self.spool.lock().exhausted();
        if piece.last {
            self.finish();
        }
        Ok(Some(piece))
    }

    fn advance(&mut self) -> io::Result<Option<Piece>> {
        loop {
            if let Some(marker) = self.markers.pop_front() {
                return Ok(Some(marker));
            }
            match self.step() {
                Step::Record { id, position } => {
                    let piece = self.read(id, position)?;
                    if !piece.data.is_empty() {
                        return Ok(Some(piece));
                    }
                }
                Step::Delete(id) => {
                    self.file = None;
                    // If that fails, the file goes with the directory.
                    let _ = std::fs::remove_file(self.spool.segment_path(id));
                }
                Step::Notice(time, text) => return Ok(Some(piece(LogStream::System, time, text.into_bytes(), 0))),
                Step::Trim => self.trim()?,
                Step::Lost(lost) => self.tell(lost),
                Step::Idle => return Ok(None),
                Step::End => {
                    let eof = self.emitted.filter(|_| !self.ended).map(|stream| piece(stream, Time::now(), Vec::new(), 0));
                    self.finish();
                    return Ok(eof);
                }
            }
        }
    }

    /// Decides under the lock; the disk is touched without it.
    fn step(&self) -> Step {
        let mut state = self.spool.lock();
        if let Some(front) = state.queue.front().copied() {
            if front.len > state.position {
                return Step::Record { id: front.id, position: state.position };
            }
            // The writer has moved on from a segment once there is another one.
            if state.queue.len() > 1 || !state.tail.is_empty() || state.closed {
                state.queue.pop_front();
                state.position = 0;
                return Step::Delete(front.id);
            }
        }
        if let Some((time, text)) = state.notices.pop_front() {
            return Step::Notice(time, text);
        }
        if !state.closed {
            return Step::Idle;
        }
        if !state.tail.is_empty() {
            return Step::Trim;
        }
        let lost = std::mem::take(&mut state.lost);
        if lost == [0; 3] { Step::End } else { Step::Lost(lost) }
    }

    fn read(&mut self, id: u64, position: u64) -> io::Result<Piece> {
        let (stream, time, len) = self.header(id, position)?;
        let skip = std::mem::take(&mut self.skip);
        let data = read_exactly(self.file(id)?, len - skip, position + (HEADER + skip) as u64)?;
        self.spool.lock().position = position + (HEADER + len) as u64;
        let dropped = if data.is_empty() { 0 } else { std::mem::take(&mut self.untold[index(stream)]) };
        Ok(piece(stream, time, data, dropped))
    }

    fn header(&mut self, id: u64, position: u64) -> io::Result<(LogStream, Time, usize)> {
        let mut header = [0; HEADER];
        self.file(id)?.read_exact_at(&mut header, position)?;
        let [stream, _, _, _, l0, l1, l2, l3, time @ ..] = header;
        let stream = LogStream::ALL.get(usize::from(stream)).copied().ok_or_else(|| io::Error::other("damaged spool segment"))?;
        let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        Ok((stream, Time::from_micros(i64::from_le_bytes(time)), len))
    }

    fn file(&mut self, id: u64) -> io::Result<&File> {
        let file = match self.file.take() {
            Some((open, file)) if open == id => file,
            _ => File::open(self.spool.segment_path(id))?,
        };
        Ok(&self.file.insert((id, file)).1)
    }

    /// Cuts the tail to its exact size and makes it the queue. Output has ended and the head is consumed.
    fn trim(&mut self) -> io::Result<()> {
        let (tail, mut dropped) = {
            let mut state = self.spool.lock();
            (std::mem::take(&mut state.tail), std::mem::take(&mut state.dropped))
        };
        let total: u64 = tail.iter().map(Segment::bytes).sum();
        let mut excess = total.saturating_sub(self.spool.config.tail);
        let mut left = totals(&tail);
        // Less than one segment is too much: its records go one by one, the last one in part.
        let mut position = 0;
        while excess > 0
            && let Some(front) = tail.front().filter(|front| position < front.len)
        {
            let (stream, _, len) = self.header(front.id, position)?;
            let mut cut = excess.min(len as u64);
            if cut < len as u64 {
                cut = self.char_after(front.id, position, len, cut)?;
                self.skip = usize::try_from(cut).map_err(io::Error::other)?;
            } else {
                position += (HEADER + len) as u64;
            }
            excess = excess.saturating_sub(cut);
            dropped[index(stream)] += cut;
            left[index(stream)] -= cut;
        }
        for stream in LogStream::ALL {
            let missing = dropped[index(stream)];
            if missing > 0 && left[index(stream)] == 0 {
                self.markers.push_back(piece(stream, Time::now(), Vec::new(), missing));
            } else {
                self.untold[index(stream)] = missing;
            }
        }
        let mut state = self.spool.lock();
        state.queue = tail;
        state.position = position;
        Ok(())
    }

    /// Where the first whole character of a record begins, from `from` on.
    fn char_after(&mut self, id: u64, position: u64, len: usize, from: u64) -> io::Result<u64> {
        let mut next = vec![0; (len as u64 - from).min(3) as usize];
        self.file(id)?.read_exact_at(&mut next, position + HEADER as u64 + from)?;
        Ok(from + next_char(&next, 0) as u64)
    }

    fn tell(&mut self, lost: [u64; 3]) {
        for stream in LogStream::ALL {
            if lost[index(stream)] > 0 {
                self.markers.push_back(piece(stream, Time::now(), Vec::new(), lost[index(stream)]));
            }
        }
    }

    /// Everything is taken: the directory goes now, on this thread, not with the last owner.
    fn finish(&mut self) {
        self.ended = true;
        self.file = None;
        let on_disk = std::mem::take(&mut self.spool.lock().on_disk);
        if on_disk && let Err(e) = std::fs::remove_dir_all(self.spool.dir()) {
            tracing::warn!(path = %self.spool.dir().display(), error = %e, "output spool stays behind");
        }
    }
}

fn piece(stream: LogStream, time: Time, data: Vec<u8>, dropped: u64) -> Piece {
    Piece { stream, time, data, dropped, last: false }
}

/// Output per stream over all segments.
fn totals(segments: &VecDeque<Segment>) -> [u64; 3] {
    std::array::from_fn(|stream| segments.iter().map(|segment| segment.payload[stream]).sum())
}

/// `len` bytes from `position` on, into memory that is not zeroed first.
fn read_exactly(file: &File, len: usize, position: u64) -> io::Result<Vec<u8>> {
    let mut data = Vec::with_capacity(len);
    while data.len() < len {
        let at = position + data.len() as u64;
        match rustix::io::pread(file, rustix::buffer::spare_capacity(&mut data), at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // The allocator may have given more than was asked for.
    data.truncate(len);
    Ok(data)
}
