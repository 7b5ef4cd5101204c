//! The secrets of running attempts, for the worker's own log: no code path is meant to log one, and this is for the one that
//! does.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use super::Masker;

static LIVE: RwLock<Vec<(u64, Masker)>> = RwLock::new(Vec::new());
static NEXT: AtomicU64 = AtomicU64::new(0);

/// While this lives, [`redact`] masks the secrets of its masker.
#[derive(Debug)]
#[must_use = "what is dropped is not masked any more"]
pub struct Live(Option<u64>);

impl Masker {
    /// Has the worker's own log masked as well.
    pub fn enlist(&self) -> Live {
        if self.is_idle() {
            return Live(None);
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        LIVE.write().unwrap_or_else(PoisonError::into_inner).push((number, self.clone()));
        Live(Some(number))
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if let Some(number) = self.0 {
            LIVE.write().unwrap_or_else(PoisonError::into_inner).retain(|(other, _)| *other != number);
        }
    }
}

/// A line of the log, without the secrets of running attempts.
#[must_use]
pub fn redact(line: &[u8]) -> Cow<'_, [u8]> {
    let live = LIVE.read().unwrap_or_else(PoisonError::into_inner);
    live.iter().fold(Cow::Borrowed(line), |line, (_, masker)| match masker.bytes(&line) {
        Cow::Borrowed(_) => line,
        Cow::Owned(masked) => Cow::Owned(masked),
    })
}
