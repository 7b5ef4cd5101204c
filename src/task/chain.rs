//! A task's chain of events folded into the state of its run. One transition function serves the
//! worker that appends, the CLI that shows and the checker that proves.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Event, EventKind, Outcome};

/// The state of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum RunState {
    /// Queued, or given back unfinished.
    Pending,
    /// An attempt runs.
    Running,
    /// An attempt failed and another follows.
    Retrying,
    /// Over: it worked.
    Succeeded,
    /// Over: failure or error.
    Failed,
    /// Over: a time limit.
    Timeout,
    /// Over: canceled.
    Canceled,
}

impl RunState {
    /// All states.
    pub const ALL: [Self; 7] = [Self::Pending, Self::Running, Self::Retrying, Self::Succeeded, Self::Failed, Self::Timeout, Self::Canceled];

    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Running => "RUNNING",
            Self::Retrying => "RETRYING",
            Self::Succeeded => "SUCCEEDED",
            Self::Failed => "FAILED",
            Self::Timeout => "TIMEOUT",
            Self::Canceled => "CANCELED",
        }
    }

    /// True when nothing follows.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Timeout | Self::Canceled)
    }

    /// The state that the last event of a chain stands for.
    #[must_use]
    pub fn of_last(event: &Event) -> Self {
        match event.event {
            EventKind::TaskStarted | EventKind::TaskProgress => Self::Running,
            EventKind::TaskRetrying => Self::Retrying,
            EventKind::TaskReleased => Self::Pending,
            EventKind::TaskCompleted => Self::Succeeded,
            EventKind::TaskFailed => match event.outcome {
                Some(Outcome::Timeout) => Self::Timeout,
                Some(Outcome::Cancellation) => Self::Canceled,
                Some(Outcome::Success | Outcome::Failure | Outcome::Error) | None => Self::Failed,
            },
        }
    }
}

impl std::fmt::Display for RunState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A chain that no rightful worker can have written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// An event that may not follow the one before it.
    #[error("event {seq}: {event} cannot follow a run that is {state}")]
    Order {
        /// Position in the chain.
        seq: u64,
        /// What came.
        event: EventKind,
        /// What was.
        state: RunState,
    },
    /// `seq` does not count up.
    #[error("event {found} stands where event {expected} belongs")]
    Gap {
        /// The position.
        expected: u64,
        /// The event's own number.
        found: u64,
    },
    /// `prev_sha256` is not the digest of the event before.
    #[error("event {seq}: prev_sha256 is not the digest of the event before it")]
    Digest {
        /// Position in the chain.
        seq: u64,
    },
    /// An attempt's event with another attempt's number or nonce.
    #[error("event {seq}: attempt {found} with another owner than the attempt that was claimed ({expected})")]
    Owner {
        /// Position in the chain.
        seq: u64,
        /// Attempt that was claimed.
        expected: u32,
        /// Attempt that the event names.
        found: u32,
    },
}

/// What a chain says so far.
#[derive(Debug, Clone, Default)]
pub struct Chain {
    last: Option<(Event, String)>,
}

impl Chain {
    /// The state of the run.
    #[must_use]
    pub fn state(&self) -> RunState {
        self.last.as_ref().map_or(RunState::Pending, |(event, _)| RunState::of_last(event))
    }

    /// The last event.
    #[must_use]
    pub fn last(&self) -> Option<&Event> {
        self.last.as_ref().map(|(event, _)| event)
    }

    /// Takes the next event, with the SHA-256 of its body in hex.
    ///
    /// # Errors
    /// When the event cannot follow what is there: the chain was tampered with or written by a defect.
    pub fn push(&mut self, event: Event, body_sha256: String) -> Result<(), ChainError> {
        let state = self.state();
        let expected = self.last().map_or(0, |last| last.seq + 1);
        if event.seq != expected {
            return Err(ChainError::Gap { expected, found: event.seq });
        }
        let prev = self.last.as_ref().map(|(_, sha)| sha.as_str());
        if event.prev_sha256.as_deref() != prev {
            return Err(ChainError::Digest { seq: event.seq });
        }
        let order = ChainError::Order { seq: event.seq, event: event.event, state };
        let claimed = self.last().map_or(0, |last| last.task.attempt);
        let same_owner = self.last().is_some_and(|last| last.nonce == event.nonce && claimed == event.task.attempt);
        let owner = ChainError::Owner { seq: event.seq, expected: claimed, found: event.task.attempt };
        match (state, event.event) {
            (s, _) if s.is_over() => return Err(order),
            // A new attempt may follow anything that is not over: its owner may have died.
            (_, EventKind::TaskStarted) if event.task.attempt != claimed + 1 => return Err(owner),
            (_, EventKind::TaskStarted) => {}
            // The task can end without a new claim: canceled, expired, attempts used up.
            (_, EventKind::TaskFailed) => {}
            (RunState::Running, EventKind::TaskProgress | EventKind::TaskRetrying | EventKind::TaskReleased | EventKind::TaskCompleted) => {
                if !same_owner {
                    return Err(owner);
                }
            }
            (_, EventKind::TaskProgress | EventKind::TaskRetrying | EventKind::TaskReleased | EventKind::TaskCompleted) => {
                return Err(order);
            }
        }
        self.last = Some((event, body_sha256));
        Ok(())
    }
}
