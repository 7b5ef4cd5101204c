//! Stage 2, claim: what a delivered task's history allows, decided without side effects.
//!
//! The decision is pure ([`decide`]); the worker carries it out. Nothing is fetched, made or run before the
//! `task_started` that a [`Decision::Start`] leads to was appended by compare-and-set (invariant 2).

use std::time::Duration;

use crate::bus::chain::{ChainEnd, Head};
use crate::bus::control::CancelRequest;
use crate::intake::Task;
use crate::plan::{Plan, Rejection};
use crate::task::{EventKind, Reason, Time};

/// What is to be done with a delivered task.
#[derive(Debug)]
pub enum Decision {
    /// Its chain has ended: acknowledge. Before that the dead letter with this reason, which the end may still owe.
    AlreadyOver(ChainEnd, Option<Reason>),
    /// Another task has used this id: a dead letter, and acknowledge.
    IdReused,
    /// Its message was handed to somebody later, who has claimed it: say nothing, neither ack nor nak.
    Stale,
    /// Too early: give it back with this delay.
    NotYet(Duration),
    /// It ends without being run.
    End(Ending),
    /// Claim it.
    Start(Attempt),
}

/// The end of a task that is not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// Typed.
    pub reason: Reason,
    /// For people.
    pub error: String,
    /// What to do.
    pub hint: Option<String>,
    /// Attempts so far.
    pub attempts: Attempt,
}

/// Which attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    /// Its number, from 1; in an [`Ending`] that of the last one, 0 when there was none.
    pub number: u32,
    /// How many before it were released and do not count.
    pub released: u32,
}

impl Attempt {
    /// How many attempts count against `max_attempts`, this one included.
    #[must_use]
    pub fn counted(self) -> u32 {
        self.number.saturating_sub(self.released)
    }
}

/// When the end of a task that is not run asks for a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Letter {
    /// Never.
    None,
    /// Before the end is stored: nobody can run such a task.
    First,
    /// When the end is stored: before, the worker that was taken for lost may still finish the task.
    After,
}

pub(crate) fn letter(reason: Reason) -> Letter {
    if matches!(reason, Reason::InvalidAssignment | Reason::PolicyRefused | Reason::Unschedulable) {
        Letter::First
    } else if reason == Reason::AttemptsExhausted {
        Letter::After
    } else {
        Letter::None
    }
}

/// The dead letter that a message owes before it leaves the queue, when its chain ended with `head`: whoever stored the end
/// may have died before the letter. A second one for the same message is none.
pub(crate) fn owed_letter(head: &Head) -> Option<Reason> {
    head.event.reason.filter(|reason| letter(*reason) == Letter::After)
}

/// What the decision is made of.
#[derive(Debug)]
pub struct Situation<'a> {
    /// The task.
    pub task: &'a Task,
    /// What would run.
    pub plan: &'a Result<Plan, Rejection>,
    /// The last event of its chain.
    pub head: Option<&'a Head>,
    /// A cancel request.
    pub cancel: Option<&'a CancelRequest>,
    /// How often the message had been handed out, this time included.
    pub deliveries: u64,
    /// When it was stored in the queue.
    pub submitted_at: Time,
    /// This moment.
    pub now: Time,
}

/// Attempts made so far, with those that do not count.
fn so_far(head: Option<&Head>) -> Attempt {
    head.map_or(Attempt { number: 0, released: 0 }, |head| {
        let released_now = u32::from(head.event.event == EventKind::TaskReleased);
        Attempt { number: head.event.task.attempt, released: head.event.task.released_attempts + released_now }
    })
}

/// True when whoever runs the task got its message after this delivery: this worker was frozen, or its socket full, with
/// the message in it. To claim on top would end a healthy attempt. A message that was queued again is another message; a
/// consumer that was made anew counts from 1 again, which costs a few `ack_wait`.
pub(crate) fn is_stale(head: &Head, deliveries: u64, submitted_at: Time) -> bool {
    let owner = &head.event.task;
    let runs = matches!(head.event.event, EventKind::TaskStarted | EventKind::TaskProgress);
    runs && owner.submitted_at == submitted_at && owner.deliveries >= deliveries
}

/// Decides what a task's history allows.
#[must_use]
pub fn decide(situation: &Situation<'_>) -> Decision {
    let Situation { task, plan, head, cancel, now, .. } = situation;
    let attempts = so_far(*head);
    let end = |reason, error: String, hint: Option<String>| Decision::End(Ending { reason, error, hint, attempts });
    if let Some(head) = head {
        if head.event.task.assignment_sha256 != task.sha256 {
            return Decision::IdReused;
        }
        if let Some(over) = ChainEnd::of_head(head) {
            return Decision::AlreadyOver(over, owed_letter(head));
        }
        if is_stale(head, situation.deliveries, situation.submitted_at) {
            return Decision::Stale;
        }
    }
    if let Some(request) = cancel {
        let why = request.reason.as_deref().map_or_else(String::new, |reason| format!(": {reason}"));
        return end(Reason::Canceled, format!("canceled before attempt {}{why}", attempts.number + 1), None);
    }
    let plan = match plan {
        Ok(plan) => plan,
        Err(rejection) => return end(rejection.reason, rejection.error.clone(), Some(rejection.hint.clone())),
    };
    if attempts.counted() >= plan.max_attempts.value {
        let lost = head.map_or_else(String::new, |h| format!("; the last one was lost with worker {}", h.event.worker.worker_id));
        let error = format!("all {} attempts were used and none came to an end{lost}", plan.max_attempts.value);
        return end(
            Reason::AttemptsExhausted,
            error,
            Some("look at the host of that worker; requeue the dead letter to try again".to_owned()),
        );
    }
    if let Some(deadline) = task.assignment.deadline.filter(|deadline| deadline <= now) {
        return end(Reason::DeadlinePassed, format!("the deadline {deadline} passed before it could start"), None);
    }
    let not_before = head.and_then(|h| h.event.retry.as_ref()).and_then(|retry| retry.not_before).max(task.assignment.not_before);
    if let Some(wait) = not_before.map(|t| t.after(*now)).filter(|wait| !wait.is_zero()) {
        return Decision::NotYet(wait);
    }
    Decision::Start(Attempt { number: attempts.number + 1, released: attempts.released })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Class;
    use crate::plan::Policy;
    use crate::task::Event;

    fn task() -> Task {
        Task::of(serde_json::from_str(r#"{"task_id":"t","execution":{"runtime":"native","command":["true"]}}"#).unwrap())
    }

    fn head(kind: EventKind, deliveries: u64, submitted_at: Time) -> Head {
        let mut event: Event = serde_json::from_str(include_str!("../tests/golden/task_started.json")).unwrap();
        event.event = kind;
        event.task.assignment_sha256 = String::new();
        (event.task.deliveries, event.task.submitted_at) = (deliveries, submitted_at);
        Head { sequence: 1, event, sha256: String::new() }
    }

    #[test]
    fn only_a_later_delivery_may_take_a_running_task_over() {
        let (queued, again) = (Time::from_micros(1_000_000), Time::from_micros(2_000_000));
        let (task, class) = (task(), Class::default());
        let plan = crate::plan::plan(&task, &Policy::of_class(&class));
        for (kind, owner, submitted_at, deliveries, stale) in [
            (EventKind::TaskStarted, 1, queued, 2, false),
            (EventKind::TaskStarted, 3, queued, 2, true),
            (EventKind::TaskStarted, 2, queued, 2, true),
            (EventKind::TaskProgress, 3, queued, 2, true),
            // Given back: nobody runs it.
            (EventKind::TaskReleased, 3, queued, 3, false),
            // Queued again by the sweeper: another message.
            (EventKind::TaskStarted, 3, again, 1, false),
        ] {
            let head = head(kind, owner, submitted_at);
            let situation =
                Situation { task: &task, plan: &plan, head: Some(&head), cancel: None, deliveries, submitted_at: queued, now: queued };
            let decision = decide(&situation);
            assert_eq!(matches!(decision, Decision::Stale), stale, "{kind} by delivery {owner}, seen by {deliveries}: {decision:?}");
        }
    }
}
