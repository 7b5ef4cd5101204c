//! The sweeper, one at a time, step by step as `worker::sweeper` does it. That two would do no harm is shown by sweeps at
//! the wrong time and by requests that arrive late.

use super::bus::Late;
use super::flaws::Flaw;
use super::real::{Record, Ticket};
use super::world::{Fault, Moves, State, World};
use crate::bus::submit::{SubmitError, Submitted};
use crate::task::{EventKind, Reason};
use crate::worker::sweeper::{Look, Requeued, after_queue, is_over, look, lost};

/// Where a sweep is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Sweep {
    Off,
    /// The chain looks open: is there a message?
    Search,
    /// There was none: the chain is read again.
    Again,
    /// The message is queued again.
    Put,
    /// The task is ended, because what it was is not known.
    End {
        record: Record,
        back: bool,
    },
    /// A message whose chain has ended is removed.
    Remove {
        message: u8,
    },
}

pub(super) const TWICE: &str = "a sweep never doubles a message";
pub(super) const MENDED: &str = "a lost task that is known is queued again, not ended";

const SWEEPER: Ticket = Ticket { message: 200, life: 0, count: 0 };

impl World {
    pub(super) fn sweep_moves(&self, state: &State, out: &mut Moves) {
        if state.sweep != Sweep::Off
            && let Some(dead) = self.fault(state, Fault::Crash)
        {
            Self::unowed(out, "the sweeper dies", State { sweep: Sweep::Off, ..dead });
        }
        match state.sweep {
            Sweep::Off => self.begin(state, out),
            Sweep::Search => {
                let gone = state.message.is_none() || self.has(Flaw::BlindSweeper);
                let sweep = if gone { Sweep::Again } else { Sweep::Off };
                Self::owed(out, "the sweeper searches its message", State { sweep, ..*state });
            }
            Sweep::Again => {
                let sweep = match lost(self.chains.borrow().head(state.chain).cloned()) {
                    None => Sweep::Off,
                    Some(_) if self.setting.carried => Sweep::Put,
                    Some(_) => self.ending(state),
                };
                Self::owed(out, "the sweeper reads the chain again", State { sweep, ..*state });
            }
            Sweep::Put => self.put(state, out),
            Sweep::End { record, back } => self.end(state, record, back, out),
            Sweep::Remove { message } => {
                let mut to = State { sweep: Sweep::Off, ..*state };
                if to.remove(Ticket { message, life: 0, count: 0 }) && !self.chains.borrow().is_over(to.chain) {
                    to.wrong = Some(super::world::ACK);
                }
                Self::owed(out, "the sweeper removes its message", to);
            }
        }
    }

    fn begin(&self, state: &State, out: &mut Moves) {
        let chains = self.chains.borrow();
        if self.has(Flaw::NoSweeper) {
            return;
        }
        if look(chains.head(state.chain), |_| true) == Look::Search {
            let needed = state.message.is_none();
            let swept = |from: &State| State { sweep: Sweep::Search, ..*from };
            if needed {
                Self::owed(out, "a sweep finds an open chain", swept(state));
            } else if let Some(to) = self.fault(state, Fault::Sweep) {
                Self::unowed(out, "a sweep finds an open chain", swept(&to));
            }
        }
        if let (Some(message), Some(head)) = (state.message, chains.head(state.chain))
            && is_over(head, &head.event.task.assignment_sha256)
            && let Some(to) = self.fault(state, Fault::Sweep)
        {
            let sweep = Sweep::Remove { message: message.number };
            Self::unowed(out, "a sweep finds a message whose chain has ended", State { sweep, ..to });
        }
    }

    fn ending(&self, state: &State) -> Sweep {
        let Some((last, on)) = self.chains.borrow().last(state.chain) else { return Sweep::Off };
        let Record { attempt, released, .. } = last;
        let reason = Some(Reason::WorkerLost);
        Sweep::End { record: Record { kind: EventKind::TaskFailed, by: SWEEPER, attempt, released, reason, on }, back: false }
    }

    fn put(&self, state: &State, out: &mut Moves) {
        let mut to = *state;
        let answer = if to.publish() {
            Ok(Submitted { sequence: 1 })
        } else {
            if self.has(Flaw::BlindSweeper) {
                // Without the limit of one message per subject it would be stored.
                to.wrong = Some(TWICE);
            }
            Err(SubmitError::AlreadyQueued)
        };
        if let Some(lost) = self.fault(&to, Fault::LostAnswer) {
            Self::unowed(out, "queued again, and the answer lost", State { sweep: Sweep::Off, ..lost });
        }
        Self::owed(out, "queued again", self.after(&to, answer));
        if let Some(refused) = self.fault(state, Fault::NoLeader) {
            Self::unowed(out, "no leader takes it", self.after(&refused, Err(SubmitError::NoStream(String::new()))));
        }
        if let Some(late) = self.fault(state, Fault::LateRequest).and_then(|late| late.leave_behind(Late::Requeue)) {
            Self::unowed(out, "what is queued again is late", State { sweep: Sweep::Off, ..late });
        }
    }

    fn after(&self, state: &State, answer: Result<Submitted, SubmitError>) -> State {
        let unserved = matches!(answer, Err(SubmitError::NoStream(_)));
        let sweep = match after_queue(answer) {
            Ok(Requeued::Never) => self.ending(state),
            Err(_) if unserved && self.has(Flaw::NoLeaderIsNever) => self.ending(state),
            Ok(Requeued::Queued | Requeued::There) | Err(_) => Sweep::Off,
        };
        State { sweep, ..*state }
    }

    fn end(&self, state: &State, record: Record, back: bool, out: &mut Moves) {
        let mut to = *state;
        let settled = if back {
            self.real.fate(self.chains.borrow().last(state.chain), record).is_some()
        } else {
            let stored = self.append(&mut to, record);
            if stored && self.setting.carried {
                to.wrong = Some(MENDED);
            }
            stored
        };
        to.sweep = if settled { Sweep::Off } else { Sweep::End { record, back: !back } };
        Self::owed(out, "the sweeper ends it", to);
    }
}
