//! The end of standard error, for the terminal event.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use super::utf8::next_char;

/// Bytes that are kept: what the event may carry.
const KEEP: usize = 4096;

/// The last bytes of standard error.
#[derive(Debug, Clone, Default)]
pub(super) struct StderrTail(Arc<Mutex<VecDeque<u8>>>);

impl StderrTail {
    pub(super) fn push(&self, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = &bytes[bytes.len().saturating_sub(KEEP)..];
        let excess = (kept.len() + bytes.len()).saturating_sub(KEEP);
        kept.drain(..excess);
        kept.extend(bytes);
    }

    /// As text of 4 KiB at most, from a character's beginning on; what is not UTF-8 is replaced.
    pub(super) fn text(&self) -> String {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: &[u8] = kept.make_contiguous();
        let start = if bytes.len() < KEEP { 0 } else { next_char(bytes, 0) };
        let text = String::from_utf8_lossy(&bytes[start..]).into_owned();
        // A replaced byte takes three.
        text[text.ceil_char_boundary(text.len().saturating_sub(KEEP))..].to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_4_kib_from_a_characters_beginning_on() {
        let tail = StderrTail::default();
        assert_eq!(tail.text(), "");
        tail.push(b"short");
        assert_eq!(tail.text(), "short");
        tail.push("€".repeat(3000).as_bytes());
        assert_eq!(tail.text(), "€".repeat(4096 / 3));
        tail.push(&[0xFF; 9000]);
        tail.push(&[0xFF; 9]);
        assert_eq!(tail.0.lock().expect("not poisoned").len(), KEEP, "no more than that is in memory");
        assert_eq!(tail.text(), "\u{FFFD}".repeat(4096 / 3));
    }
}
