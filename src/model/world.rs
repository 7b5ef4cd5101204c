//! One task among hands: what there is, and what may happen to it.
//!
//! One task is enough: tasks share no subject, no condition and no message, only the numbering of a stream, which has gaps
//! here for that reason.

use std::cell::RefCell;

use super::bus::{Chains, Late, Message};
use super::explore::{Machine, Move};
use super::flaws::Flaw;
use super::hand::{Hand, Step};
use super::real::{Real, Record, Ticket};
use super::sweep::Sweep;
use crate::task::Reason;

/// What nobody owes, but may happen. Each takes one from what a setting allows in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// A process is gone; its last request may still be on its way.
    Crash,
    /// Done, but the answer does not come.
    LostAnswer,
    /// A request arrives later than its answer was waited for.
    LateRequest,
    /// No renewal is confirmed, or no claim in time.
    Lapse,
    /// The message is handed out again although its holder is well: a partition, a restarted server, another's nak.
    EarlyExpiry,
    /// A worker stands still with a delivery that it has not read.
    Freeze,
    /// A read that is not from the leader, or from one that is no leader any more.
    StaleRead,
    /// 10164: something is in flight.
    InFlight,
    /// 503 for a publish: no leader just now.
    NoLeader,
    /// No room: given back.
    Shed,
    /// A delivery that nobody waits for any more, or a drain.
    Unasked,
    /// The worker drains while the task runs.
    Leave,
    /// The task reports progress.
    Progress,
    /// The attempt fails for the platform's fault.
    DiskFull,
    /// Handed out before `not_before`.
    TooSoon,
    /// The consumer is made anew: it counts from 1 again.
    NewConsumer,
    /// The message is taken out of the queue by somebody else.
    Vanish,
    /// A sweep although nothing is lost.
    Sweep,
    /// Somebody asks for the task to be canceled.
    Cancel,
    /// The publisher sends the same bytes once more.
    Republish,
}

/// What is explored.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setting {
    pub(super) hands: usize,
    pub(super) max_attempts: u8,
    pub(super) faults: u8,
    pub(super) may: &'static [Fault],
    /// Deliveries are read and requests arrive within the time that `lease` shows to be enough: then nobody's running task
    /// is taken, and there is never more than one.
    pub(super) in_time: bool,
    /// `task_started` carries the assignment.
    pub(super) carried: bool,
    pub(super) flaw: Option<Flaw>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct State {
    pub(super) chain: u16,
    pub(super) message: Option<Message>,
    pub(super) messages: u8,
    pub(super) hands: [Hand; 3],
    pub(super) sweep: Sweep,
    pub(super) wire: [Option<Late>; 2],
    /// A dead worker's end of the task on disk; true while its refused append is being read back.
    pub(super) kept: Option<(Record, bool)>,
    pub(super) canceled: bool,
    pub(super) letter: bool,
    pub(super) over_once: bool,
    pub(super) faults: u8,
    pub(super) wrong: Option<&'static str>,
}

pub(super) const ACK: &str = "no ack without a receipt";
pub(super) const TAKEN: &str = "nobody's running task is taken";
pub(super) const AT_ONCE: &str = "one attempt at a time";
pub(super) const LETTER: &str = "a dead letter stands for a task that ended so";

pub(super) struct World {
    pub(super) setting: Setting,
    pub(super) real: Real,
    pub(super) chains: RefCell<Chains>,
}

pub(super) type Moves = Vec<Move<State>>;

impl World {
    pub(super) fn new(setting: Setting) -> Self {
        Self { setting, real: Real::new(setting.max_attempts), chains: RefCell::new(Chains::new(setting.max_attempts)) }
    }

    pub(super) fn has(&self, flaw: Flaw) -> bool {
        self.setting.flaw == Some(flaw)
    }

    /// The same state after a fault, if there may be one more.
    pub(super) fn fault(&self, state: &State, fault: Fault) -> Option<State> {
        (state.faults > 0 && self.setting.may.contains(&fault)).then(|| State { faults: state.faults - 1, ..*state })
    }

    pub(super) fn owed(out: &mut Moves, what: &'static str, to: State) {
        out.push(Move { what, fault: false, to: to.tidied() });
    }

    pub(super) fn unowed(out: &mut Moves, what: &'static str, to: State) {
        out.push(Move { what, fault: true, to: to.tidied() });
    }

    fn queue_moves(&self, state: &State, out: &mut Moves) {
        let Some(message) = state.message else { return };
        if !message.out {
            let limit = if self.has(Flaw::MaxDeliver) { 1 } else { u8::MAX };
            let free = state.hands[..self.setting.hands].iter().position(|hand| *hand == Hand::IDLE);
            if let Some(free) = free.filter(|_| message.count < limit) {
                let mut to = *state;
                let message = Message { count: message.count + 1, out: true, ..message };
                to.message = Some(message);
                to.hands[free] = Hand { step: Step::Buffered, ticket: message.ticket(), lease: true };
                Self::owed(out, "the queue hands it out", to);
            }
        } else {
            let expired = |state: &State| State { message: Some(Message { out: false, ..message }), ..*state };
            let held = state.hands.iter().any(|hand| hand.holds(message));
            let unread = state.hands.iter().any(|hand| hand.step == Step::Buffered && hand.ticket == message.ticket())
                && !state.hands.iter().any(|hand| hand.lease && hand.renews() && hand.ticket.message == message.number);
            if !held || self.has(Flaw::ShortAckWait) {
                Self::owed(out, "ack_wait is over", expired(state));
            } else if let Some(late) = self.fault(state, Fault::Freeze).filter(|_| unread) {
                Self::unowed(out, "ack_wait is over while the delivery is unread", expired(&late));
            } else if let Some(early) = self.fault(state, Fault::EarlyExpiry) {
                Self::unowed(out, "it is handed out again although it is held", expired(&early));
            }
        }
        if let Some(mut to) = self.fault(state, Fault::NewConsumer) {
            to.message = Some(Message { life: message.life + 1, count: 0, out: false, ..message });
            Self::unowed(out, "the consumer is made anew", to);
        }
        if state.chain != 0
            && let Some(to) = self.fault(state, Fault::Vanish)
        {
            Self::unowed(out, "its message is taken out of the queue", State { message: None, ..to });
        }
        if self.has(Flaw::EventsExpire) && self.chains.borrow().is_over(state.chain) {
            Self::unowed(out, "its events expire before its message", State { chain: 0, ..*state });
        }
    }

    fn outside_moves(&self, state: &State, out: &mut Moves) {
        if !state.canceled
            && let Some(to) = self.fault(state, Fault::Cancel)
        {
            Self::unowed(out, "somebody cancels it", State { canceled: true, ..to });
        }
        if state.message.is_none()
            && let Some(mut to) = self.fault(state, Fault::Republish).filter(|s| self.chains.borrow().is_over(s.chain))
        {
            to.publish();
            Self::unowed(out, "it is published again", to);
        }
        for (slot, late) in state.wire.iter().enumerate().filter_map(|(slot, late)| Some((slot, (*late)?))) {
            let mut to = State { wire: state.wire, ..*state };
            to.wire[slot] = None;
            self.arrive(&mut to, late);
            Self::owed(out, "a late request arrives", to);
        }
        self.replay_moves(state, out);
    }

    /// What a dead worker had finished is sent by the next one on that machine.
    fn replay_moves(&self, state: &State, out: &mut Moves) {
        let Some((record, back)) = state.kept else { return };
        let mut to = *state;
        let settled = if back {
            self.real.fate(self.chains.borrow().last(state.chain), record).is_some()
        } else {
            let on = if self.has(Flaw::UnfencedReplay) { self.chains.borrow().length(state.chain) } else { record.on };
            self.append(&mut to, Record { on, ..record })
        };
        to.kept = (!settled).then_some((record, !back));
        Self::owed(out, "what a dead worker had finished is sent", to);
    }
}

impl Machine for World {
    type State = State;

    fn start(&self) -> State {
        State {
            chain: 0,
            message: Some(Message { number: 0, life: 0, count: 0, out: false }),
            messages: 1,
            hands: [Hand::IDLE; 3],
            sweep: Sweep::Off,
            wire: [None; 2],
            kept: None,
            canceled: false,
            letter: false,
            over_once: false,
            faults: self.setting.faults,
            wrong: None,
        }
    }

    fn moves(&self, state: &State, out: &mut Moves) {
        self.queue_moves(state, out);
        for hand in 0..self.setting.hands {
            self.hand_moves(state, hand, out);
        }
        self.sweep_moves(state, out);
        self.outside_moves(state, out);
    }

    fn broken(&self, state: &State) -> Option<&'static str> {
        let chains = self.chains.borrow();
        if let Some(wrong) = state.wrong.or_else(|| chains.wrong(state.chain)) {
            return Some(wrong);
        }
        if self.setting.in_time && state.hands.iter().filter(|hand| hand.runs()).count() > 1 {
            return Some(AT_ONCE);
        }
        let exhausted = chains.last(state.chain).is_some_and(|(record, _)| record.reason == Some(Reason::AttemptsExhausted));
        (self.is_done(state) && state.letter != exhausted).then_some(LETTER)
    }

    fn is_done(&self, state: &State) -> bool {
        state.message.is_none()
            && self.chains.borrow().is_over(state.chain)
            && state.hands == [Hand::IDLE; 3]
            && state.sweep == Sweep::Off
            && state.wire == [None; 2]
            && state.kept.is_none()
    }
}

impl State {
    /// Hands are alike: which of them does what makes no difference.
    fn tidied(mut self) -> Self {
        self.hands.sort_by_key(Hand::rank);
        if self.wire[0].is_none() {
            self.wire.swap(0, 1);
        }
        self
    }

    /// A message is queued, if none is.
    pub(super) fn publish(&mut self) -> bool {
        if self.message.is_some() {
            return false;
        }
        self.message = Some(Message { number: self.messages, life: 0, count: 0, out: false });
        self.messages += 1;
        true
    }

    /// Removes the message of `ticket`, as the server does: whoever asks.
    pub(super) fn remove(&mut self, ticket: Ticket) -> bool {
        let there = self.message.is_some_and(|message| message.number == ticket.message);
        if there {
            self.message = None;
        }
        there
    }
}
