//! Masking of output that comes in pieces: what comes out does not depend on where it was cut.

use std::collections::VecDeque;
use std::sync::Arc;

use aho_corasick::automaton::StateID;

use super::{MARK, Patterns, SHORTEST};

/// One stream of output. Everything leaves at once but what may be the beginning of a secret: that waits until it is one, is
/// none, or the stream ends.
pub struct StreamMask {
    patterns: Arc<Patterns>,
    state: StateID,
    /// Bytes taken in so far.
    position: u64,
    /// The last of them, which begin a pattern.
    held: Vec<u8>,
    /// Secrets that were seen and have not left altogether; in order, those that overlap as one.
    seen: VecDeque<Seen>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    start: u64,
    end: u64,
    /// The mark for it was given out.
    told: bool,
}

impl std::fmt::Debug for StreamMask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamMask").field("position", &self.position).field("held", &self.held.len()).finish()
    }
}

impl StreamMask {
    pub(super) fn new(patterns: Arc<Patterns>) -> Self {
        let state = patterns.start;
        Self { patterns, state, position: 0, held: Vec::new(), seen: VecDeque::new() }
    }

    /// Takes in the next piece and gives out what is decided.
    pub fn push(&mut self, piece: &[u8], out: &mut impl FnMut(&[u8])) {
        let before = self.position;
        let seen = &mut self.seen;
        self.state = self.patterns.walk(self.state, piece, |end, len| {
            let end = before + end as u64;
            note(seen, end - len as u64, end);
        });
        self.position += piece.len() as u64;
        let undecided = self.patterns.depth(self.state);
        self.give_out(piece, undecided, out);
    }

    /// Ends the stream: a beginning of a secret that is left over leaves as it is when it is short, else masked.
    pub fn finish(&mut self, out: &mut impl FnMut(&[u8])) {
        let begun = self.held.len();
        if begun >= SHORTEST {
            note(&mut self.seen, self.position - begun as u64, self.position);
        }
        self.state = self.patterns.start;
        self.give_out(&[], 0, out);
    }

    /// Gives out what is held and `piece`, but for the last `undecided` bytes.
    fn give_out(&mut self, piece: &[u8], undecided: usize, out: &mut impl FnMut(&[u8])) {
        let held = std::mem::take(&mut self.held);
        let first = self.position - (held.len() + piece.len()) as u64;
        let decided = self.position - undecided as u64;
        let raw = |from: u64, to: u64| Parts { held: &held, piece }.between(from - first, to - first);
        let mut at = first;
        while let Some(seen) = self.seen.front_mut().filter(|seen| seen.start < decided) {
            if !seen.told {
                raw(at, seen.start).into_iter().filter(|part| !part.is_empty()).for_each(&mut *out);
                out(MARK.as_bytes());
                seen.told = true;
            }
            at = seen.end.min(decided);
            if seen.end > decided {
                break;
            }
            self.seen.pop_front();
        }
        raw(at, decided).into_iter().filter(|part| !part.is_empty()).for_each(out);
        self.held = raw(decided, self.position).concat();
    }
}

/// What is held and what came, as one.
struct Parts<'a> {
    held: &'a [u8],
    piece: &'a [u8],
}

impl<'a> Parts<'a> {
    fn between(&self, from: u64, to: u64) -> [&'a [u8]; 2] {
        let place = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
        let split = self.held.len();
        let (from, to) = (place(from), place(to));
        [&self.held[from.min(split)..to.min(split)], &self.piece[from.saturating_sub(split)..to.saturating_sub(split)]]
    }
}

/// Adds a secret to those seen; it ends after all of them, and takes in those that it overlaps.
fn note(seen: &mut VecDeque<Seen>, mut start: u64, end: u64) {
    let mut told = false;
    while let Some(last) = seen.back().filter(|last| start < last.end) {
        start = start.min(last.start);
        told |= last.told;
        seen.pop_back();
    }
    seen.push_back(Seen { start, end, told });
}
