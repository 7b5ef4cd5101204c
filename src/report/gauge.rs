//! How much output is in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Bytes held by the two tasks of a recorder, and the most there ever were.
#[derive(Debug, Clone, Default)]
pub(super) struct Gauge(Arc<[AtomicUsize; 3]>);

impl Gauge {
    pub(super) fn pump(&self, bytes: usize) {
        self.set(0, bytes);
    }

    pub(super) fn publisher(&self, bytes: usize) {
        self.set(1, bytes);
    }

    fn set(&self, side: usize, bytes: usize) {
        self.0[side].store(bytes, Relaxed);
        self.0[2].fetch_max(self.now(), Relaxed);
    }

    pub(super) fn now(&self) -> usize {
        self.0[0].load(Relaxed) + self.0[1].load(Relaxed)
    }

    #[cfg(test)]
    pub(super) fn peak(&self) -> usize {
        self.0[2].load(Relaxed)
    }
}
