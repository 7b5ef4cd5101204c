//! Masking: what is known to be secret is replaced before it leaves the worker (invariant 8).
//!
//! A [`Masker`] is made once per attempt from the values that were handed to the task. It knows each value in the forms in
//! which programs print it (`forms`) and finds all of them in one pass. [`StreamMask`] is the same for output that comes in
//! pieces, and holds back what may be the beginning of a secret. While a masker is [enlisted](Masker::enlist), the worker's own
//! log is masked too.
//!
//! What it cannot find: a secret that was encrypted, compressed, reversed, or printed one character a line.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use aho_corasick::automaton::{Automaton, Candidate, StateID};
use aho_corasick::{Anchored, dfa, nfa};
use serde_json::Value;

mod forms;
mod live;
mod stream;
#[cfg(test)]
mod tests;

pub use live::{Live, redact};
pub use stream::StreamMask;

/// What stands for a secret.
pub const MARK: &str = "***";

/// Shortest value that can be masked, bytes: shorter ones occur by chance, and masking them would spoil all output.
pub const SHORTEST: usize = 6;

/// Above this many bytes of patterns the slower automaton is taken, whose memory grows with them and not with 256 times as much.
const FAST: usize = 16 * 1024;

/// Finds the secrets of one attempt. Cheap to clone; free of any cost when there are none.
#[derive(Clone, Default)]
pub struct Masker(Option<Arc<Patterns>>);

/// What is looked for. Not zeroed when it goes: the worker is not dumpable, and its copies in pipes and buffers could not be.
struct Patterns {
    automaton: Machine,
    /// Length of the beginning of a pattern that a state stands for; a state that is not here stands for nothing.
    depths: HashMap<StateID, usize>,
    longest: usize,
    start: StateID,
}

enum Machine {
    Fast(dfa::DFA),
    Small(nfa::contiguous::NFA),
}

impl std::fmt::Debug for Masker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Masker(***)" } else { "Masker(nothing)" })
    }
}

/// Why no masker can be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot look for the secrets: {0}")]
pub struct MaskError(#[from] aho_corasick::BuildError);

impl Masker {
    /// Looks for `values`. Those shorter than [`SHORTEST`] are not looked for.
    ///
    /// # Errors
    /// When they are too much for the automaton.
    pub fn new<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, MaskError> {
        let patterns = forms::all(values);
        if patterns.is_empty() {
            return Ok(Self(None));
        }
        let bytes: usize = patterns.iter().map(Vec::len).sum();
        let automaton = if bytes <= FAST {
            Machine::Fast(dfa::Builder::new().build(&patterns)?)
        } else {
            Machine::Small(nfa::contiguous::Builder::new().build(&patterns)?)
        };
        let (start, depths) = match &automaton {
            Machine::Fast(a) => depths(a, &patterns),
            Machine::Small(a) => depths(a, &patterns),
        };
        let longest = patterns.iter().map(Vec::len).max().unwrap_or(0);
        Ok(Self(Some(Arc::new(Patterns { automaton, depths, longest, start }))))
    }

    /// True when there is nothing to look for.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.0.is_none()
    }

    /// For output that comes in pieces; none when there is nothing to look for.
    #[must_use]
    pub fn stream(&self) -> Option<StreamMask> {
        self.0.as_ref().map(|patterns| StreamMask::new(Arc::clone(patterns)))
    }

    /// Bytes that are whole.
    #[must_use]
    pub fn bytes<'a>(&self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        let Some(mut stream) = self.stream() else { return Cow::Borrowed(bytes) };
        let mut out = Vec::with_capacity(bytes.len());
        stream.push(bytes, &mut |piece| out.extend_from_slice(piece));
        stream.finish(&mut |piece| out.extend_from_slice(piece));
        if out == bytes { Cow::Borrowed(bytes) } else { Cow::Owned(out) }
    }

    /// A text that is whole.
    pub fn text(&self, text: &mut String) {
        if let Cow::Owned(masked) = self.bytes(text.as_bytes()) {
            // A secret that is not text can cut a character.
            *text = String::from_utf8_lossy(&masked).into_owned();
        }
    }

    /// Every text in a JSON value, keys included, and numbers that are a secret.
    pub fn json(&self, value: &mut Value) {
        if self.is_idle() {
            return;
        }
        match value {
            Value::String(text) => self.text(text),
            Value::Array(items) => items.iter_mut().for_each(|item| self.json(item)),
            Value::Object(map) => {
                for (mut key, mut value) in std::mem::take(map) {
                    self.text(&mut key);
                    self.json(&mut value);
                    map.insert(key, value);
                }
            }
            Value::Number(number) => {
                let text = number.to_string();
                if let Cow::Owned(masked) = self.bytes(text.as_bytes()) {
                    *value = Value::String(String::from_utf8_lossy(&masked).into_owned());
                }
            }
            Value::Null | Value::Bool(_) => {}
        }
    }
}

/// The start state, and the depth of every state but that one.
fn depths(automaton: &impl Automaton, patterns: &[Vec<u8>]) -> (StateID, HashMap<StateID, usize>) {
    let mut depths = HashMap::new();
    // Unanchored start states are what the builders make unless asked otherwise.
    let start = automaton.start_state(Anchored::No).unwrap_or_default();
    for pattern in patterns {
        let mut state = start;
        for (at, byte) in pattern.iter().enumerate() {
            // From the start, the longest end of what was read that begins a pattern is all of it.
            state = automaton.next_state(Anchored::No, state, *byte);
            depths.insert(state, at + 1);
        }
    }
    (start, depths)
}

impl Patterns {
    /// Goes from `state` over `bytes`; tells of each match as (bytes before its end, its length).
    fn walk(&self, state: StateID, bytes: &[u8], found: impl FnMut(usize, usize)) -> StateID {
        match &self.automaton {
            Machine::Fast(automaton) => self.walk_on(automaton, state, bytes, found),
            Machine::Small(automaton) => self.walk_on(automaton, state, bytes, found),
        }
    }

    fn walk_on(&self, automaton: &impl Automaton, mut state: StateID, bytes: &[u8], mut found: impl FnMut(usize, usize)) -> StateID {
        // Up to here a whole pattern fits: what looks for whole ones can be asked whether one begins.
        let fits = bytes.len().saturating_sub(self.longest);
        let prefilter = automaton.prefilter();
        let mut at = 0;
        while at < bytes.len() {
            if let Some(prefilter) = prefilter.filter(|_| state == self.start && at < fits) {
                at = match prefilter.find_in(bytes, (at..bytes.len()).into()) {
                    Candidate::None => fits,
                    Candidate::Match(found) => found.start().min(fits),
                    Candidate::PossibleStartOfMatch(start) => start.min(fits),
                };
            }
            state = automaton.next_state(Anchored::No, state, bytes[at]);
            at += 1;
            if automaton.is_special(state) && automaton.is_match(state) {
                let lengths = (0..automaton.match_len(state)).map(|n| automaton.pattern_len(automaton.match_pattern(state, n)));
                found(at, lengths.max().unwrap_or(0));
            }
        }
        state
    }

    fn depth(&self, state: StateID) -> usize {
        self.depths.get(&state).copied().unwrap_or(0)
    }
}
