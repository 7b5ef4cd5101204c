//! The tasks of the fleet, newest first: by what happened to each last.
//!
//! ```text
//! EVENTS ──backwards──▶ the last event of each chain ─┐
//! TASKS  ──backwards──▶ what has no chain yet ────────┴─▶ newest first, no more than asked for
//! ```
//! Both streams are read from their ends, and only as far as is needed: a task's last event is the first that is met. What
//! is asked for decides where to look: ends are only in EVENTS, and who is not over has a message in TASKS.

use std::collections::HashSet;

use async_nats::jetstream::message::StreamMessage;
use futures_util::{StreamExt as _, TryStreamExt as _};
use serde::Deserialize;

use super::read::event_of;
use super::{Bus, BusError, Subjects};
use crate::task::chain::RunState;
use crate::task::{ClassName, Event, EventKind, Outcome, Reason, Tenant, Time};
use crate::wire::Encoding;

/// Chains that are looked up at one time.
const LOOKUPS: usize = 64;

/// Which tasks. What is empty or none is not asked for.
#[derive(Debug, Clone, Default)]
pub struct TaskQuery {
    /// Of one tenant.
    pub tenant: Option<Tenant>,
    /// Of one class.
    pub class: Option<ClassName>,
    /// Of one workflow.
    pub workflow: Option<String>,
    /// In one of these states.
    pub states: Vec<RunState>,
    /// Whose last event has one of these outcomes.
    pub outcomes: Vec<Outcome>,
    /// Whose last event has one of these reasons.
    pub reasons: Vec<Reason>,
    /// To whom something happened then or later.
    pub since: Option<Time>,
    /// No more than so many.
    pub limit: usize,
}

/// A task without an event, as its message in the queue says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Its sequence in the stream of tasks.
    pub sequence: u64,
    /// Class token.
    pub class: String,
    /// Priority token.
    pub priority: String,
    /// What the assignment says.
    pub name: Option<String>,
    /// What the assignment says.
    pub workflow_id: Option<String>,
}

/// What is known of a task.
#[derive(Debug, Clone, PartialEq)]
pub enum Known {
    /// Its last event, with that one's sequence.
    Last(u64, Box<Event>),
    /// It waits, and has no event yet.
    Waiting(Waiting),
}

/// A task of the fleet.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    /// Tenant token.
    pub tenant: String,
    /// Task token.
    pub task_id: String,
    /// When the last thing happened to it, by the server's clock.
    pub at: Time,
    /// What that was.
    pub known: Known,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Listing {
    /// Newest first.
    pub tasks: Vec<Listed>,
    /// Tasks whose last event cannot be read.
    pub unreadable: u64,
    /// There may be more.
    pub cut: bool,
}

/// What of an assignment is shown.
#[derive(Default, Deserialize)]
struct Label {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    workflow_id: Option<String>,
}

impl Listed {
    /// The fold of its chain.
    #[must_use]
    pub fn state(&self) -> RunState {
        match &self.known {
            Known::Last(_, event) => RunState::of_last(event),
            Known::Waiting(_) => RunState::Pending,
        }
    }
}

/// Where tasks of a query can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Places {
    /// In the stream of events, under one kind or any.
    Events(Option<EventKind>),
    /// They have a message in the queue.
    Queue,
    /// Either.
    Both,
}

impl TaskQuery {
    fn places(&self) -> Places {
        let kind = |state: &RunState| if *state == RunState::Succeeded { EventKind::TaskCompleted } else { EventKind::TaskFailed };
        match self.states.split_first() {
            // Who only waits has neither.
            None if !self.outcomes.is_empty() || !self.reasons.is_empty() => Places::Events(None),
            None => Places::Both,
            Some(_) if self.states.iter().all(|state| !state.is_over()) => Places::Queue,
            Some((first, rest)) if self.states.iter().all(|state| state.is_over()) => {
                Places::Events(Some(kind(first)).filter(|first| rest.iter().all(|state| kind(state) == *first)))
            }
            // Who runs or is tried again has an event.
            Some(_) if !self.states.contains(&RunState::Pending) => Places::Events(None),
            Some(_) => Places::Both,
        }
    }

    fn matches(&self, task: &Listed) -> bool {
        let (class, workflow, outcome, reason) = match &task.known {
            Known::Last(_, event) => (event.task.class.as_str(), &event.task.workflow_id, event.outcome, event.reason),
            Known::Waiting(waiting) => (waiting.class.as_str(), &waiting.workflow_id, None, None),
        };
        self.tenant.as_ref().is_none_or(|tenant| tenant.as_str() == task.tenant)
            && self.class.as_ref().is_none_or(|wanted| wanted.as_str() == class)
            && (self.workflow.is_none() || self.workflow == *workflow)
            && (self.states.is_empty() || self.states.contains(&task.state()))
            && (self.outcomes.is_empty() || outcome.is_some_and(|outcome| self.outcomes.contains(&outcome)))
            && (self.reasons.is_empty() || reason.is_some_and(|reason| self.reasons.contains(&reason)))
            && self.since.is_none_or(|since| task.at >= since)
    }
}

/// What was met on the way.
struct Found<'a> {
    query: &'a TaskQuery,
    subjects: &'a Subjects,
    met: HashSet<(String, String)>,
    listing: Listing,
    /// Nothing older counts.
    since: Option<Time>,
}

impl<'a> Found<'a> {
    fn new(query: &'a TaskQuery, subjects: &'a Subjects) -> Self {
        Self { query, subjects, met: HashSet::new(), listing: Listing::default(), since: query.since }
    }

    fn is_full(&self) -> bool {
        self.listing.tasks.len() >= self.query.limit
    }

    fn is_too_old(&self, message: &StreamMessage) -> bool {
        self.since.is_some_and(|since| time_of(message) < since)
    }

    /// True when that task was not met before.
    fn meet(&mut self, tenant: &str, task_id: &str) -> bool {
        self.met.insert((tenant.to_owned(), task_id.to_owned()))
    }

    /// Takes the next older window of events; false when nothing older is needed.
    fn take_events(&mut self, window: &[StreamMessage]) -> bool {
        for message in window.iter().rev() {
            if self.is_full() || self.is_too_old(message) {
                return false;
            }
            let subjects = self.subjects;
            let Some((tenant, task_id, _)) = subjects.parse_event(&message.subject) else { continue };
            if self.meet(tenant, task_id) {
                self.take(last_event(message, tenant, task_id));
            }
        }
        !self.is_full()
    }

    fn take(&mut self, task: Option<Listed>) {
        match task {
            Some(task) if self.query.matches(&task) => self.listing.tasks.push(task),
            Some(_) => {}
            None => self.listing.unreadable += 1,
        }
    }

    /// What of the next older window of the queue has to be looked up, newest first, and whether that was the last of it.
    fn candidates(&mut self, window: &[StreamMessage]) -> (Vec<Listed>, bool) {
        let mut candidates = Vec::new();
        for message in window.iter().rev() {
            if self.is_too_old(message) {
                return (candidates, true);
            }
            if let Some(task) = waiting(message, self.subjects)
                && self.meet(&task.tenant, &task.task_id)
            {
                candidates.push(task);
            }
        }
        (candidates, false)
    }

    fn end(mut self) -> Listing {
        let limit = self.query.limit;
        self.listing.tasks.sort_by_key(|task| std::cmp::Reverse(task.at));
        self.listing.cut = self.listing.tasks.len() >= limit;
        self.listing.tasks.truncate(limit);
        self.listing
    }
}

impl Bus {
    /// The tasks that `query` asks for, newest first.
    ///
    /// # Errors
    /// When the server does not answer, or its streams do not allow batches (`windlass init` mends that).
    pub async fn tasks(&self, query: &TaskQuery) -> Result<Listing, BusError> {
        let mut found = Found::new(query, self.subjects());
        let places = query.places();
        if let Places::Events(kind) = places {
            self.find_chains(query, kind, &mut found).await?;
        } else if places == Places::Both {
            self.find_chains(query, None, &mut found).await?;
            if found.is_full() {
                // Who is queued for longer than that would not be shown.
                found.since = found.listing.tasks.last().map(|oldest| oldest.at);
            }
        }
        if !matches!(places, Places::Events(_)) {
            self.find_queued_tasks(query, places, &mut found).await?;
        }
        Ok(found.end())
    }

    async fn find_chains(&self, query: &TaskQuery, kind: Option<EventKind>, found: &mut Found<'_>) -> Result<(), BusError> {
        let tenant = query.tenant.as_ref();
        let filter = kind.map_or_else(|| self.subjects().events_filter(tenant, None), |kind| self.subjects().events_of_kind(tenant, kind));
        let mut chains = self.backwards(self.subjects().events_stream(), filter).await?;
        while let Some(window) = chains.next().await? {
            if !found.take_events(&window) {
                break;
            }
        }
        Ok(())
    }

    async fn find_queued_tasks(&self, query: &TaskQuery, places: Places, found: &mut Found<'_>) -> Result<(), BusError> {
        let filter = self.subjects().queued_filter(query.class.as_ref(), query.tenant.as_ref());
        // Of those that only wait, the newest are the last in the queue (who was given back counts there as well); of those
        // that run, that cannot be said.
        let in_order = places == Places::Both || query.states == [RunState::Pending];
        if !in_order {
            found.since = None;
        }
        let mut queue = self.backwards(self.subjects().tasks_stream(), filter).await?;
        let mut from_queue = 0;
        while let Some(window) = queue.next().await? {
            let (candidates, last) = found.candidates(&window);
            let before = found.listing.tasks.len();
            let mut lookups = futures_util::stream::iter(candidates).map(|task| self.look_up(task)).buffered(LOOKUPS);
            while let Some(task) = lookups.try_next().await? {
                found.take(task);
            }
            from_queue += found.listing.tasks.len() - before;
            if last || (in_order && from_queue >= query.limit) {
                break;
            }
        }
        Ok(())
    }

    /// A task that waits, or its last event if it has one; none when that cannot be read.
    async fn look_up(&self, waiting: Listed) -> Result<Option<Listed>, BusError> {
        let chain = format!("{}.events.{}.{}.*", self.subjects().prefix(), waiting.tenant, waiting.task_id);
        let last = self.last_message(&self.subjects().events_stream(), &chain).await?;
        Ok(match last {
            Some(message) => last_event(&message, &waiting.tenant, &waiting.task_id),
            None => Some(waiting),
        })
    }
}

fn time_of(message: &StreamMessage) -> Time {
    Time::from_nanos(message.time.unix_timestamp_nanos())
}

fn last_event(message: &StreamMessage, tenant: &str, task_id: &str) -> Option<Listed> {
    let mut event = event_of(message).ok()?.head.event;
    // It can be many times as large as all the rest.
    event.assignment = None;
    let known = Known::Last(message.sequence, Box::new(event));
    Some(Listed { tenant: tenant.to_owned(), task_id: task_id.to_owned(), at: time_of(message), known })
}

fn waiting(message: &StreamMessage, subjects: &Subjects) -> Option<Listed> {
    let subject = subjects.parse_task(&message.subject)?;
    let content_type = message.headers.get("Content-Type").map(|v| v.as_str());
    // It may be no assignment at all; the worker that takes it will say so.
    let label = Encoding::detect(content_type, &message.payload).and_then(|encoding| encoding.decode::<Label>(&message.payload));
    let Label { name, workflow_id } = label.unwrap_or_default();
    let known = Known::Waiting(Waiting { sequence: message.sequence, class: subject.class, priority: subject.priority, name, workflow_id });
    Some(Listed { tenant: subject.tenant, task_id: subject.task_id, at: time_of(message), known })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(states: &[RunState]) -> Places {
        TaskQuery { states: states.to_vec(), ..TaskQuery::default() }.places()
    }

    #[test]
    fn only_what_can_hold_an_answer_is_read() {
        use RunState::{Canceled, Failed, Pending, Retrying, Running, Succeeded, Timeout};
        assert_eq!(places(&[]), Places::Both);
        assert_eq!(places(&[Pending]), Places::Queue);
        assert_eq!(places(&[Running, Retrying]), Places::Queue);
        assert_eq!(places(&[Succeeded]), Places::Events(Some(EventKind::TaskCompleted)));
        assert_eq!(places(&[Failed, Timeout, Canceled]), Places::Events(Some(EventKind::TaskFailed)));
        assert_eq!(places(&[Failed, Succeeded]), Places::Events(None));
        assert_eq!(places(&[Failed, Running]), Places::Events(None));
        assert_eq!(places(&[Failed, Pending]), Places::Both);
        let asked = TaskQuery { reasons: vec![Reason::OomKilled], ..TaskQuery::default() };
        assert_eq!(asked.places(), Places::Events(None), "who waits has no reason");
    }

    #[test]
    fn who_waits_is_found_by_what_his_message_says() {
        let known = Known::Waiting(Waiting {
            sequence: 7,
            class: "gpu".to_owned(),
            priority: "high".to_owned(),
            name: None,
            workflow_id: Some("nightly".to_owned()),
        });
        let task = Listed { tenant: "acme".to_owned(), task_id: "a".to_owned(), at: Time::from_micros(10), known };
        let query = TaskQuery {
            tenant: Tenant::new("acme").ok(),
            class: ClassName::new("gpu").ok(),
            workflow: Some("nightly".to_owned()),
            states: vec![RunState::Pending],
            since: Some(Time::from_micros(10)),
            ..TaskQuery::default()
        };
        assert!(query.matches(&task));
        for other in [
            TaskQuery { tenant: Tenant::new("other").ok(), ..query.clone() },
            TaskQuery { class: ClassName::new("cpu").ok(), ..query.clone() },
            TaskQuery { workflow: Some("daily".to_owned()), ..query.clone() },
            TaskQuery { states: vec![RunState::Running], ..query.clone() },
            TaskQuery { reasons: vec![Reason::Ok], ..query.clone() },
            TaskQuery { outcomes: vec![Outcome::Success], ..query.clone() },
            TaskQuery { since: Some(Time::from_micros(11)), ..query.clone() },
        ] {
            assert!(!other.matches(&task), "{other:?}");
        }
    }
}
