//! A hand: what a worker does with one delivery, step by step as `worker::attempt` and `worker::drive` do it. Between two
//! steps anything else may happen.

use super::bus::{Late, Message};
use super::flaws::Flaw;
use super::real::{Record, Ticket, Verdict, nonce};
use super::world::{Fault, Moves, State, World};
use crate::claim::{Letter, letter};
use crate::intake::lease::{NAK_TRIES, is_ours};
use crate::task::{EventKind, Reason};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Step {
    Idle,
    /// Handed out, and not read yet.
    Buffered,
    /// First delivery: only the cancel request is read, the claim finds out about the chain.
    First,
    /// The cancel request is to be read, then the chain.
    Look {
        giving: bool,
    },
    /// What was seen: the chain's length, and a cancel request.
    Looked {
        giving: bool,
        length: u8,
        canceled: bool,
    },
    /// A dead letter is due, and then the ack; with an order that is not the worker's, before the end that this record is.
    Bury(Option<Record>),
    /// An append is under way; `back`: it was refused, and the chain is read.
    Append {
        record: Record,
        role: Role,
        back: bool,
    },
    /// The task runs; its last event is the chain's `on`th.
    Run {
        on: u8,
        attempt: u8,
        released: u8,
    },
    Answer {
        ack: bool,
    },
}

/// What an append is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Role {
    Claim {
        first: bool,
    },
    Progress,
    /// Then the message is given back.
    Handover,
    Commit,
    /// The end of a task that is not run.
    Unrun,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Hand {
    pub(super) step: Step,
    pub(super) ticket: Ticket,
    /// By its own clock the message is still its.
    pub(super) lease: bool,
}

impl Hand {
    pub(super) const IDLE: Self = Self { step: Step::Idle, ticket: Ticket { message: 0, life: 0, count: 0 }, lease: false };

    /// Whether the task's process is there.
    pub(super) fn runs(&self) -> bool {
        matches!(self.step, Step::Run { .. } | Step::Append { role: Role::Progress, .. })
    }

    /// Whether it sends progress acks, which the server takes from stale deliveries as well.
    pub(super) fn renews(&self) -> bool {
        self.runs() || matches!(self.step, Step::Append { role: Role::Handover | Role::Commit, .. })
    }

    /// Whether the message is not handed out again because of this hand, when everything is in time.
    pub(super) fn holds(&self, message: Message) -> bool {
        let current = self.ticket == message.ticket() || (self.renews() && self.ticket.message == message.number);
        *self != Self::IDLE && self.lease && current
    }

    pub(super) fn rank(&self) -> (u8, Ticket3, u64) {
        let Ticket { message, life, count } = self.ticket;
        let step = match self.step {
            Step::Idle => 9,
            Step::Buffered => 0,
            Step::First => 1,
            Step::Look { .. } => 2,
            Step::Looked { .. } => 3,
            Step::Bury(_) => 4,
            Step::Append { .. } => 5,
            Step::Run { .. } => 6,
            Step::Answer { .. } => 7,
        };
        (step, (message, life, count), u64::from(self.lease))
    }
}

type Ticket3 = (u8, u8, u8);

/// What is done to a state with hand `at` at `step`.
fn with(state: &State, at: usize, step: Step) -> State {
    let mut to = *state;
    to.hands[at] = if step == Step::Idle { Hand::IDLE } else { Hand { step, ..to.hands[at] } };
    to
}

impl World {
    pub(super) fn hand_moves(&self, state: &State, at: usize, out: &mut Moves) {
        let hand = state.hands[at];
        if hand == Hand::IDLE {
            return;
        }
        self.crash(state, at, out);
        self.lapse(state, at, out);
        match hand.step {
            Step::Idle => {}
            Step::Buffered => {
                let step = if hand.ticket.count == 1 { Step::First } else { Step::Look { giving: false } };
                Self::owed(out, "a delivery is read", with(state, at, step));
                if let Some(to) = self.fault(state, Fault::Unasked) {
                    let unseen = if self.has(Flaw::BackUnseen) { Step::Answer { ack: false } } else { Step::Look { giving: true } };
                    let mut to = with(&to, at, unseen);
                    self.note_nak(&mut to, at, None);
                    Self::unowed(out, "a delivery comes that nobody asks for any more", to);
                }
            }
            Step::First => self.first(state, at, out),
            Step::Look { giving } => self.look(state, at, giving, out),
            Step::Looked { giving, length, canceled } => self.looked(state, at, (giving, length, canceled), out),
            Step::Bury(record) => {
                let end = |record| Step::Append { record, role: Role::Unrun, back: false };
                let step = record.map_or(Step::Answer { ack: true }, end);
                Self::owed(out, "a dead letter is stored", State { letter: true, ..with(state, at, step) });
            }
            Step::Append { record, role, back: false } => self.send(state, at, record, role, out),
            Step::Append { record, role, back: true } => self.read_back(state, at, record, role, out),
            Step::Run { on, attempt, released } => self.run(state, at, (on, attempt, released), out),
            Step::Answer { ack } => self.answer(state, at, ack, out),
        }
    }

    fn crash(&self, state: &State, at: usize, out: &mut Moves) {
        let Some(crashed) = self.fault(state, Fault::Crash) else { return };
        let hand = state.hands[at];
        let mut to = with(&crashed, at, Step::Idle);
        let late = match hand.step {
            Step::Append { record, role, back } => {
                if role == Role::Commit && to.kept.is_none() {
                    to.kept = Some((record, false));
                }
                (!back).then_some(Late::Append(record))
            }
            Step::Answer { ack: true } => Some(Late::Ack(hand.ticket)),
            Step::Answer { ack: false } => (!self.setting.in_time).then_some(Late::Nak(hand.ticket)),
            Step::Idle | Step::Buffered | Step::First | Step::Look { .. } | Step::Looked { .. } | Step::Bury(_) | Step::Run { .. } => None,
        };
        Self::unowed(out, "a worker dies", to);
        if let Some(to) = late.and_then(|late| to.leave_behind(late)) {
            Self::unowed(out, "a worker dies, its request goes on", to);
        }
    }

    fn lapse(&self, state: &State, at: usize, out: &mut Moves) {
        let hand = state.hands[at];
        let Some(lapsed) = self.fault(state, Fault::Lapse).filter(|_| hand.lease) else { return };
        let gone = with(&lapsed, at, Step::Idle);
        let mut on = lapsed;
        on.hands[at].lease = false;
        let (what, to) = match hand.step {
            Step::Idle | Step::Buffered => return,
            Step::Run { .. } | Step::Append { role: Role::Progress, .. } if self.has(Flaw::RunsOn) => ("its lease is over", on),
            Step::Run { .. } | Step::Append { role: Role::Progress, .. } => ("its lease is over: the task is stopped", gone),
            Step::First
            | Step::Look { .. }
            | Step::Looked { .. }
            | Step::Bury(_)
            | Step::Append { role: Role::Claim { .. }, .. }
            | Step::Answer { ack: false } => ("its time is over: forsaken", gone),
            Step::Append { role: Role::Handover | Role::Commit | Role::Unrun, .. } | Step::Answer { ack: true } => {
                ("its lease is over, what it has to say is still sent", on)
            }
        };
        Self::unowed(out, what, to);
    }

    fn first(&self, state: &State, at: usize, out: &mut Moves) {
        let ticket = state.hands[at].ticket;
        match self.real.decide((None, ticket, state.canceled, false)) {
            Verdict::Start { attempt, released } => {
                let record = Record { kind: EventKind::TaskStarted, by: ticket, attempt, released, reason: None, on: 0 };
                let step = Step::Append { record, role: Role::Claim { first: true }, back: false };
                Self::owed(out, "a first delivery is claimed unread", with(state, at, step));
                // What does not fit is looked at more closely.
                if let Some(to) = self.fault(state, Fault::Shed) {
                    Self::unowed(out, "no room for it", with(&to, at, Step::Look { giving: false }));
                }
            }
            Verdict::Over { .. } | Verdict::Stale | Verdict::NotYet | Verdict::End { .. } => {
                Self::owed(out, "a first delivery is not plain", with(state, at, Step::Look { giving: false }));
            }
        }
    }

    fn look(&self, state: &State, at: usize, giving: bool, out: &mut Moves) {
        let now = self.chains.borrow().length(state.chain);
        let saw = |length| Step::Looked { giving, length, canceled: state.canceled };
        Self::owed(out, "the chain is read", with(state, at, saw(now)));
        if let Some(stale) = self.fault(state, Fault::StaleRead) {
            for length in 0..now {
                Self::unowed(out, "the chain is read where it is not up to date", with(&stale, at, saw(length)));
            }
        }
    }

    /// A late message must not be given back when its task was seen to run on a later delivery.
    fn note_nak(&self, to: &mut State, at: usize, seen: Option<u16>) {
        let hand = to.hands[at];
        if hand.step != (Step::Answer { ack: false }) {
            return;
        }
        let chains = self.chains.borrow();
        let seen = chains.last(seen.unwrap_or(to.chain));
        if self.real.decide((seen, hand.ticket, false, false)) == Verdict::Stale {
            to.wrong = Some(super::bus::NOT_LATE);
        }
    }

    fn looked(&self, state: &State, at: usize, (giving, length, canceled): (bool, u8, bool), out: &mut Moves) {
        let ticket = state.hands[at].ticket;
        let seen = self.chains.borrow().when(state.chain, length);
        let head = self.chains.borrow().last(seen);
        // A request that came after the stored one was read may have been heard, or is still on its way.
        let heard = if state.canceled && !canceled { &[false, true][..] } else { &[canceled][..] };
        for known in heard {
            let asked = *known && !self.has(Flaw::DeafToCancel);
            self.carry_out(state, at, (head, length), *known, giving, self.real.decide((head, ticket, asked, false)), out);
            let retries = head.is_some_and(|(record, _)| record.kind == EventKind::TaskRetrying);
            if let Some(early) = self.fault(state, Fault::TooSoon).filter(|_| retries) {
                let verdict = self.real.decide((head, ticket, asked, true));
                self.carry_out(&early, at, (head, length), *known, giving, verdict, out);
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "what was known when it was decided, and where it goes")]
    fn carry_out(
        &self,
        state: &State,
        at: usize,
        (head, on): (Option<(Record, u8)>, u8),
        canceled: bool,
        giving: bool,
        verdict: Verdict,
        out: &mut Moves,
    ) {
        let ticket = state.hands[at].ticket;
        let record = |kind, reason, attempt, released| Record { kind, by: ticket, attempt, released, reason, on };
        let claim = |attempt, released| {
            let released = if self.has(Flaw::CountReleased) { 0 } else { released };
            let attempt = if self.has(Flaw::DeliveriesAreAttempts) { ticket.count } else { attempt };
            let record = record(EventKind::TaskStarted, None, attempt, released);
            ("it is claimed", Step::Append { record, role: Role::Claim { first: false }, back: false })
        };
        let give_back = ("it is given back", Step::Answer { ack: false });
        let (what, step) = match verdict {
            Verdict::Over { letter: true } if !giving => ("it is over, and owes a dead letter", Step::Bury(None)),
            Verdict::Over { letter: false } if !giving => ("it is over", Step::Answer { ack: true }),
            Verdict::Stale if self.has(Flaw::AckStale) => ("it is another's, and acknowledged", Step::Answer { ack: true }),
            Verdict::Stale if self.has(Flaw::TakeStale) => {
                let (last, _) = head.expect("only an event makes stale");
                claim(last.attempt + 1, last.released)
            }
            Verdict::Stale => ("it is another's", Step::Idle),
            _ if giving => give_back,
            Verdict::NotYet | Verdict::Over { .. } => give_back,
            Verdict::End { attempt, released, .. } if self.has(Flaw::NoLimit) => claim(attempt + 1, released),
            Verdict::End { reason, attempt, released } => {
                let record = record(EventKind::TaskFailed, Some(reason), attempt, released);
                match letter(reason) {
                    Letter::After if self.has(Flaw::LetterFirst) => ("a dead letter comes first", Step::Bury(Some(record))),
                    Letter::First => ("a dead letter comes first", Step::Bury(Some(record))),
                    Letter::None | Letter::After => ("it ends without being run", Step::Append { record, role: Role::Unrun, back: false }),
                }
            }
            Verdict::Start { attempt, released } => {
                if let Some(to) = self.fault(state, Fault::Shed) {
                    let mut to = with(&to, at, Step::Answer { ack: false });
                    self.note_nak(&mut to, at, Some(self.chains.borrow().when(state.chain, on)));
                    Self::unowed(out, "no room for it: given back", to);
                }
                claim(attempt, released)
            }
        };
        let mut to = with(state, at, step);
        if canceled && matches!(step, Step::Append { role: Role::Claim { .. }, .. }) {
            to.wrong = Some("no attempt begins once its cancel was read");
        }
        self.note_nak(&mut to, at, Some(self.chains.borrow().when(state.chain, on)));
        Self::owed(out, what, to);
    }

    fn send(&self, state: &State, at: usize, record: Record, role: Role, out: &mut Moves) {
        let mut to = *state;
        let stored = self.append(&mut to, record);
        if let Some(lost) = self.fault(&to, Fault::LostAnswer) {
            Self::unowed(out, "an append is answered, and the answer lost", lost);
        }
        if stored {
            Self::owed(out, "an append is stored", self.settled(&to, at, record, role, true));
        } else {
            let back = Step::Append { record, role, back: true };
            Self::owed(out, "an append is refused", with(&to, at, back));
        }
        if let Some(flight) = self.fault(state, Fault::InFlight) {
            Self::unowed(out, "an append meets another", with(&flight, at, Step::Append { record, role, back: true }));
        }
        if let Some(late) = self.fault(state, Fault::LateRequest).and_then(|late| late.leave_behind(Late::Append(record))) {
            Self::unowed(out, "an append is late, and sent again", late);
        }
        if self.has(Flaw::AckUnread) && role == Role::Commit {
            Self::unowed(out, "no answer is taken for one", with(state, at, Step::Answer { ack: true }));
        }
    }

    fn read_back(&self, state: &State, at: usize, record: Record, role: Role, out: &mut Moves) {
        let fate = |length: u8| {
            let chains = self.chains.borrow();
            self.real.fate(chains.last(chains.when(state.chain, length)), record)
        };
        let next = |state: &State, fate: Option<bool>| match fate {
            Some(stored) => self.settled(state, at, record, role, stored),
            None if self.has(Flaw::AnyNonce) => self.settled(state, at, record, role, true),
            None => with(state, at, Step::Append { record, role, back: false }),
        };
        let now = self.chains.borrow().length(state.chain);
        let seen = if self.has(Flaw::AnyNonce) { fate(now).map(|_| true) } else { fate(now) };
        Self::owed(out, "the chain is read back", next(state, seen));
        if let Some(stale) = self.fault(state, Fault::StaleRead) {
            for length in 0..now {
                Self::unowed(out, "the chain is read back where it is not up to date", next(&stale, fate(length)));
            }
        }
    }

    /// What follows when the fate of an append is known.
    fn settled(&self, state: &State, at: usize, record: Record, role: Role, stored: bool) -> State {
        let Record { attempt, released, on, .. } = record;
        let step = match (role, stored) {
            (Role::Claim { .. }, true) => Step::Run { on: on + 1, attempt, released },
            (Role::Progress, _) => Step::Run { on: on + u8::from(stored), attempt, released },
            // Without a lease the message may be another's by now.
            (Role::Handover, true) if state.hands[at].lease || self.has(Flaw::NakUnheld) => Step::Answer { ack: false },
            (Role::Handover, true) => Step::Idle,
            // Only a proof that the chain has ended makes a receipt.
            (Role::Commit | Role::Unrun, _) if self.real.ends(record, stored) => match record.reason.map(letter) {
                Some(Letter::After) if !self.has(Flaw::LetterFirst) => Step::Bury(None),
                Some(_) | None => Step::Answer { ack: true },
            },
            (Role::Claim { first: true }, false) => Step::Look { giving: false },
            (Role::Claim { first: false } | Role::Handover | Role::Commit | Role::Unrun, _) if self.has(Flaw::NakFenced) => {
                Step::Answer { ack: false }
            }
            (Role::Claim { first: false } | Role::Handover | Role::Commit | Role::Unrun, _) => Step::Idle,
        };
        let mut to = with(state, at, step);
        if self.has(Flaw::NakFenced) {
            self.note_nak(&mut to, at, None);
        }
        to
    }

    fn run(&self, state: &State, at: usize, (on, attempt, released): (u8, u8, u8), out: &mut Moves) {
        let by = state.hands[at].ticket;
        let say = |kind, reason, role| {
            let record = Record { kind, by, attempt, released, reason, on };
            Step::Append { record, role, back: false }
        };
        let ends = |reason: Reason| {
            let kind = if reason == Reason::Ok { EventKind::TaskCompleted } else { EventKind::TaskFailed };
            if self.real.retries(reason, attempt, released) {
                say(EventKind::TaskRetrying, None, Role::Handover)
            } else {
                say(kind, Some(reason), Role::Commit)
            }
        };
        Self::owed(out, "the task ends well", with(state, at, ends(Reason::Ok)));
        if state.canceled {
            Self::owed(out, "the task is canceled", with(state, at, ends(Reason::Canceled)));
        }
        let ours = self.chains.borrow().head(state.chain).is_some_and(|head| is_ours(head, &nonce(by)));
        if !ours {
            Self::owed(out, "its renewer sees another's event", with(state, at, Step::Idle));
        }
        for (fault, what, step) in [
            (Fault::DiskFull, "the attempt fails", ends(Reason::DiskFull)),
            (Fault::Leave, "the worker drains", say(EventKind::TaskReleased, None, Role::Handover)),
            (Fault::Progress, "the task reports progress", say(EventKind::TaskProgress, None, Role::Progress)),
        ] {
            if let Some(to) = self.fault(state, fault) {
                Self::unowed(out, what, with(&to, at, step));
            }
        }
    }

    fn answer(&self, state: &State, at: usize, ack: bool, out: &mut Moves) {
        let ticket = state.hands[at].ticket;
        let (mut to, late) = (*state, if ack { Late::Ack(ticket) } else { Late::Nak(ticket) });
        self.arrive(&mut to, late);
        Self::owed(out, "the message is answered for", with(&to, at, Step::Idle));
        let again = ack || NAK_TRIES > 1 || self.has(Flaw::NakAgain);
        if let Some(lost) = self.fault(&to, Fault::LostAnswer).filter(|_| again) {
            Self::unowed(out, "the message is answered for, and nobody says so", lost);
        }
        if let Some(lost) = self.fault(state, Fault::LateRequest).filter(|_| ack || !self.setting.in_time) {
            let to = with(&lost, at, Step::Idle);
            Self::unowed(out, "the answer does not arrive", to);
            if let Some(to) = to.leave_behind(late) {
                Self::unowed(out, "the answer is late", to);
            }
        }
    }
}
