//! The receipt: the only thing that a queue message is acknowledged for (invariant 1).

use super::AllChunksConfirmed;
use crate::bus::chain::ChainEnd;
use crate::bus::dead::DeadLetterStored;

/// Proof that nothing of a task can be lost by acknowledging its message.
#[derive(Debug)]
pub struct Receipt(());

impl Receipt {
    /// The chain was read back as ended: whoever ended it had stored the output before.
    #[must_use]
    pub fn of_end(_end: ChainEnd) -> Self {
        Self(())
    }

    /// The terminal event was stored, and before it every chunk of the manifest that it carries; without a manifest, it
    /// promises no output.
    #[must_use]
    pub fn of_commit(_end: ChainEnd, _chunks: Option<AllChunksConfirmed>) -> Self {
        Self(())
    }

    /// The message can never be a task, and is kept as a dead letter.
    #[must_use]
    pub fn of_dead_letter(_letter: DeadLetterStored) -> Self {
        Self(())
    }
}
