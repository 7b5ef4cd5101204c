//! The decisions, asked of the worker's own code. What it needs is made here: a real task, real plans, real events.
//!
//! Each question is asked once and its answer kept: the explorer meets the same one many thousand times.

use std::cell::RefCell;
use std::collections::HashMap;

use crate::bus::BusError;
use crate::bus::chain::{self, Answer, Appended, ChainEnd, Head, Link, Place, after_answer, after_read_back};
use crate::bus::control::CancelRequest;
use crate::bus::store::Stored;
use crate::claim::{Attempt, Decision, Situation, decide};
use crate::config::Class;
use crate::intake::Task;
use crate::plan::{Plan, Policy, plan};
use crate::settle::{Disposition, dispose};
use crate::task::event::{RetryInfo, WorkerInfo};
use crate::task::{Event, EventKind, Reason, Time, WorkerId};
use crate::wire::Encoding;
use crate::wire::event::{Encoded, Fit};
use crate::worker::story::{Story, task_info};

/// One delivery: of which message, by which life of the consumer, and the count that the consumer gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Ticket {
    pub(super) message: u8,
    pub(super) life: u8,
    pub(super) count: u8,
}

/// An event, as short as can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Record {
    pub(super) kind: EventKind,
    /// Whose: the nonce is made of it, for one delivery makes one attempt at most.
    pub(super) by: Ticket,
    pub(super) attempt: u8,
    pub(super) released: u8,
    pub(super) reason: Option<Reason>,
    /// Length of the chain that it was made for.
    pub(super) on: u8,
}

/// What is to be done with a delivered task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Over { letter: bool },
    Stale,
    NotYet,
    End { reason: Reason, attempt: u8, released: u8 },
    Start { attempt: u8, released: u8 },
}

/// What a decision is made of: the last event and its place, the delivery, whether a cancel request is known, whether it is
/// too early for a retry.
type Question = (Option<(Record, u8)>, Ticket, bool, bool);

/// The last event that was read back, and the one whose append was refused.
type ReadBack = (Option<(Record, u8)>, Record);

pub(super) struct Real {
    task: Task,
    plan: Plan,
    verdicts: RefCell<HashMap<Question, Verdict>>,
    fates: RefCell<HashMap<ReadBack, Option<bool>>>,
}

const RETRY_AT: i64 = 1_000_000_000_000;

/// Stream sequence of a chain's event at `place` (from 1); 0 before the first. Other tasks' events lie between.
pub(super) fn sequence(place: u8) -> u64 {
    if place == 0 { 0 } else { 4 + 3 * u64::from(place) }
}

fn stored_at(message: u8) -> Time {
    Time::from_micros(1_000_000 * i64::from(message) + 1)
}

fn small(n: u32) -> u8 {
    u8::try_from(n).expect("few attempts")
}

impl Real {
    pub(super) fn new(max_attempts: u8) -> Self {
        let text =
            format!(r#"{{"task_id":"t","execution":{{"runtime":"native","command":["true"]}},"retry":{{"max_attempts":{max_attempts}}}}}"#);
        let task = Task { sha256: "same".to_owned(), ..Task::of(serde_json::from_str(&text).unwrap()) };
        let plan = plan(&task, &Policy::of_class(&Class { max_max_attempts: 9, ..Class::default() })).unwrap();
        Self { task, plan, verdicts: RefCell::default(), fates: RefCell::default() }
    }

    /// The event behind a record, with the link that its writer made.
    pub(super) fn event(&self, record: Record, link: Link) -> Event {
        let worker =
            WorkerInfo { worker_id: WorkerId::new("w").unwrap(), instance: String::new(), host: String::new(), version: String::new() };
        let attempt = Attempt { number: record.attempt.into(), released: record.released.into() };
        let handed = (record.by.count.into(), stored_at(record.by.message));
        let mut story = Story::of(task_info(&self.task, attempt, self.plan.max_attempts.value, handed), &worker);
        story.nonce = nonce(record.by);
        let event = match record.reason {
            Some(reason) if reason != Reason::Ok => story.not_run(reason, "", None, link),
            Some(_) | None => story.event(record.kind, link),
        };
        let again = RetryInfo { will_retry: true, next_attempt: None, not_before: Some(Time::from_micros(RETRY_AT)) };
        let retry = (record.kind == EventKind::TaskRetrying).then_some(again);
        Event { retry, ..event }
    }

    /// What a reader sees of the event at `place`.
    fn head(&self, (record, place): (Record, u8)) -> Head {
        let link = Link { seq: u64::from(place.saturating_sub(1)), prev_sha256: None };
        Head { sequence: sequence(place), event: self.event(record, link), sha256: String::new() }
    }

    pub(super) fn decide(&self, question: Question) -> Verdict {
        *self.verdicts.borrow_mut().entry(question).or_insert_with(|| {
            let (head, ticket, canceled, early) = question;
            let head = head.map(|head| self.head(head));
            let request = CancelRequest { v: 1, action: "cancel".to_owned(), reason: None, time: None };
            let situation = Situation {
                task: &self.task,
                plan: &Ok(self.plan.clone()),
                head: head.as_ref(),
                cancel: canceled.then_some(&request),
                deliveries: ticket.count.into(),
                submitted_at: stored_at(ticket.message),
                now: Time::from_micros(if early { RETRY_AT - 1_000_000 } else { RETRY_AT + 1 }),
            };
            match decide(&situation) {
                Decision::AlreadyOver(_, letter) => Verdict::Over { letter: letter.is_some() },
                Decision::IdReused => panic!("there is one task only"),
                Decision::Stale => Verdict::Stale,
                Decision::NotYet(_) => Verdict::NotYet,
                Decision::End(end) => {
                    Verdict::End { reason: end.reason, attempt: small(end.attempts.number), released: small(end.attempts.released) }
                }
                Decision::Start(attempt) => Verdict::Start { attempt: small(attempt.number), released: small(attempt.released) },
            }
        })
    }

    /// Whether an attempt that ended so is followed by another.
    pub(super) fn retries(&self, reason: Reason, attempt: u8, released: u8) -> bool {
        let counted = Attempt { number: attempt.into(), released: released.into() }.counted();
        matches!(dispose(reason, &self.task.assignment.retry, &self.plan, counted), Disposition::Retry(_))
    }

    /// Whether what was read back settles an append: stored or fenced.
    pub(super) fn fate(&self, head: Option<(Record, u8)>, mine: Record) -> Option<bool> {
        *self.fates.borrow_mut().entry((head, mine)).or_insert_with(|| {
            let head = head.map(|head| self.head(head));
            let place = Place { expected: sequence(mine.on), sha256: None, seen: None };
            match after_read_back(head.as_ref(), place, &self.encoded(mine)) {
                chain::ReadBack::Known(fate) => Some(matches!(fate, Appended::Stored(_))),
                chain::ReadBack::Unmoved | chain::ReadBack::Gone => None,
            }
        })
    }

    fn encoded(&self, record: Record) -> Encoded {
        let link = Link { seq: record.on.into(), prev_sha256: None };
        Encoded::new(self.event(record, link), "s".to_owned(), Encoding::Json, Fit { max_payload: 1 << 20 }).unwrap()
    }

    /// Whether a receipt can be had for this append.
    pub(super) fn ends(&self, record: Record, stored: bool) -> bool {
        let fate = if stored { Appended::Stored(sequence(record.on + 1)) } else { Appended::Fenced };
        record.kind.is_terminal() && ChainEnd::of_append(&self.encoded(record), fate).is_some()
    }
}

pub(super) fn nonce(by: Ticket) -> String {
    format!("{}.{}.{}", by.message, by.life, by.count)
}

/// What an answer means: whether it is stored, or its chain has to be read.
pub(super) fn answered(stored: Option<u64>) -> bool {
    let answer = match stored {
        Some(sequence) => Ok(Stored { sequence, duplicate: false }),
        None => Err(BusError::Refused { what: String::new(), code: 10071, text: String::new() }),
    };
    match after_answer(&answer) {
        Answer::Stored(_) => true,
        Answer::ReadBack => false,
        Answer::Again | Answer::Never => panic!("{answer:?}"),
    }
}

/// Answers after which the same bytes are sent again: no move of the model, for nothing has changed.
#[test]
fn what_says_nothing_is_sent_again() {
    let what = String::new;
    for error in [
        BusError::TimedOut { what: what() },
        BusError::NoResponders { what: what() },
        BusError::Refused { what: what(), code: 10158, text: what() },
        BusError::Refused { what: what(), code: 10077, text: what() },
    ] {
        assert_eq!(after_answer(&Err(error)), Answer::Again);
    }
    let in_flight = BusError::Refused { what: what(), code: 10164, text: what() };
    assert_eq!(after_answer(&Err(in_flight)), Answer::ReadBack);
}
