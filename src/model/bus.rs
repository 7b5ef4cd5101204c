//! The server's rules: chains that are appended to on condition, a queue whose answers are not fenced, requests that
//! arrive late.

use std::collections::HashMap;

use super::flaws::Flaw;
use super::real::{Real, Record, Ticket, sequence};
use super::world::{ACK, State, TAKEN, World};
use crate::bus::chain::{Head, Link};
use crate::task::chain::{Chain, ChainError};
use crate::task::{EventKind, Reason};

/// A queued message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Message {
    /// Which: a message that is queued again is another one, with another sequence and time.
    pub(super) number: u8,
    /// Of the consumer.
    pub(super) life: u8,
    pub(super) count: u8,
    /// Handed out, and not yet to be handed out again.
    pub(super) out: bool,
}

impl Message {
    pub(super) fn ticket(self) -> Ticket {
        Ticket { message: self.number, life: self.life, count: self.count }
    }
}

/// A request whose answer nobody waits for any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Late {
    Append(Record),
    Ack(Ticket),
    Nak(Ticket),
    Requeue,
}

pub(super) const ONE_END: &str = "exactly one end";
pub(super) const ONE_OWNER: &str = "one owner, one chain";
pub(super) const CONTIGUOUS: &str = "attempts are contiguous";
pub(super) const NOT_LATE: &str = "a late delivery takes nobody's task";
pub(super) const ALLOWED: &str = "no more attempts than allowed";
pub(super) const RELEASED: &str = "released attempts do not count";

/// Every chain that was met, as a tree of events: a state only names the last one.
pub(super) struct Chains {
    nodes: Vec<Node>,
    next: HashMap<(u16, Record), u16>,
    max_attempts: u8,
}

struct Node {
    from: u16,
    record: Option<Record>,
    /// The fold of it, by the worker's own code, and the events' heads.
    fold: Chain,
    heads: Vec<Head>,
    /// Attempts that count.
    counted: u8,
    wrong: Option<&'static str>,
}

impl Chains {
    pub(super) fn new(max_attempts: u8) -> Self {
        let empty = Node { from: 0, record: None, fold: Chain::default(), heads: vec![], counted: 0, wrong: None };
        Self { nodes: vec![empty], next: HashMap::new(), max_attempts }
    }

    fn node(&self, chain: u16) -> &Node {
        &self.nodes[usize::from(chain)]
    }

    pub(super) fn length(&self, chain: u16) -> u8 {
        u8::try_from(self.node(chain).heads.len()).expect("short chains")
    }

    /// The last event, with its place.
    pub(super) fn last(&self, chain: u16) -> Option<(Record, u8)> {
        self.node(chain).record.map(|record| (record, self.length(chain)))
    }

    /// What the chain was when it had `length` events.
    pub(super) fn when(&self, mut chain: u16, length: u8) -> u16 {
        while self.length(chain) > length {
            chain = self.node(chain).from;
        }
        chain
    }

    pub(super) fn head(&self, chain: u16) -> Option<&Head> {
        self.node(chain).heads.last()
    }

    pub(super) fn is_over(&self, chain: u16) -> bool {
        self.node(chain).record.is_some_and(|record| record.kind.is_terminal())
    }

    pub(super) fn wrong(&self, chain: u16) -> Option<&'static str> {
        self.node(chain).wrong
    }

    fn append(&mut self, real: &Real, chain: u16, record: Record) -> u16 {
        if let Some(next) = self.next.get(&(chain, record)) {
            return *next;
        }
        let next = u16::try_from(self.nodes.len()).expect("not so many chains");
        let node = self.grown(real, chain, record);
        self.nodes.push(node);
        self.next.insert((chain, record), next);
        next
    }

    fn grown(&self, real: &Real, chain: u16, record: Record) -> Node {
        let from = self.node(chain);
        // The link is what the writer knew of the chain, not what the chain is.
        let (expected, link) = Link::after(usize::from(record.on).checked_sub(1).and_then(|at| from.heads.get(at)));
        assert_eq!(expected, sequence(record.on), "the model and the worker number alike");
        let event = real.event(record, link);
        let sha256 = format!("{record:?} after {:?}", from.heads.last().map(|head| &head.sha256));
        let mut fold = from.fold.clone();
        let folded = fold.push(event.clone(), sha256.clone());
        let started = record.kind == EventKind::TaskStarted;
        let wrong = match folded {
            Err(ChainError::Order { state, .. }) if state.is_over() => Some(ONE_END),
            Err(ChainError::Owner { .. }) if started => Some(CONTIGUOUS),
            Err(ChainError::Order { .. } | ChainError::Owner { .. } | ChainError::Gap { .. } | ChainError::Digest { .. }) => {
                Some(ONE_OWNER)
            }
            Ok(()) if from.record.is_some_and(|last| is_late(last, record)) => Some(NOT_LATE),
            Ok(()) if started && from.counted >= self.max_attempts => Some(ALLOWED),
            Ok(()) if record.reason == Some(Reason::AttemptsExhausted) && from.counted < self.max_attempts => Some(RELEASED),
            Ok(()) => None,
        };
        let counted = match record.kind {
            EventKind::TaskStarted => from.counted + 1,
            EventKind::TaskReleased => from.counted.saturating_sub(1),
            EventKind::TaskProgress | EventKind::TaskRetrying | EventKind::TaskCompleted | EventKind::TaskFailed => from.counted,
        };
        let head = Head { sequence: sequence(u8::try_from(from.heads.len() + 1).expect("short chains")), event, sha256 };
        let heads = from.heads.iter().cloned().chain([head]).collect();
        Node { from: chain, record: Some(record), fold, heads, counted, wrong }
    }
}

fn runs(record: Record) -> bool {
    matches!(record.kind, EventKind::TaskStarted | EventKind::TaskProgress)
}

/// Whether the owner of a running task got its message after the one who takes it.
fn is_late(last: Record, next: Record) -> bool {
    let (owner, taker) = (last.by, next.by);
    runs(last) && owner != taker && (owner.message, owner.life) == (taker.message, taker.life) && taker.count <= owner.count
}

impl World {
    /// Appends on condition of the chain's length; false: refused, "wrong last sequence".
    pub(super) fn append(&self, state: &mut State, record: Record) -> bool {
        let mut chains = self.chains.borrow_mut();
        if chains.length(state.chain) != record.on && !self.has(Flaw::NoCondition) {
            return super::real::answered(None);
        }
        if let Some((last, _)) = chains.last(state.chain).filter(|(last, _)| last.by != record.by)
            && self.setting.in_time
            && state.hands.iter().any(|hand| hand.runs() && hand.lease && hand.ticket == last.by)
        {
            state.wrong = Some(TAKEN);
        }
        if state.over_once && record.kind == EventKind::TaskStarted && state.chain == 0 {
            state.wrong = Some(ONE_END);
        }
        state.chain = chains.append(&self.real, state.chain, record);
        state.over_once |= record.kind.is_terminal();
        super::real::answered(Some(sequence(record.on + 1)))
    }

    /// The ack of any delivery, stale or not, removes the message.
    pub(super) fn ack(&self, state: &mut State, ticket: Ticket) {
        if state.remove(ticket) && !self.chains.borrow().is_over(state.chain) && !self.has(Flaw::EventsExpire) {
            state.wrong = Some(ACK);
        }
    }

    /// The nak of any delivery, stale or not, has the message handed out again.
    pub(super) fn nak(state: &mut State, ticket: Ticket) {
        if let Some(message) = state.message.as_mut().filter(|message| message.number == ticket.message) {
            message.out = false;
        }
    }

    pub(super) fn arrive(&self, state: &mut State, late: Late) {
        match late {
            Late::Append(record) => {
                self.append(state, record);
            }
            Late::Ack(ticket) => self.ack(state, ticket),
            Late::Nak(ticket) => Self::nak(state, ticket),
            Late::Requeue => {
                state.publish();
            }
        }
    }
}

impl State {
    /// Leaves a request on the wire, if there is room.
    pub(super) fn leave_behind(mut self, late: Late) -> Option<Self> {
        let free = self.wire.iter_mut().find(|slot| slot.is_none())?;
        *free = Some(late);
        Some(self)
    }
}
