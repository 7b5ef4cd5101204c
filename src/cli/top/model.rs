//! What is known of the fleet: folded from events, queues and workers as they are read. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

use super::rates::Rates;
use crate::bus::feed::Stamped;
use crate::bus::presence::Presence;
use crate::bus::queues::Queue;
use crate::task::{ClassName, EventKind, TaskId, Tenant, Time, WorkerId};

/// Most running tasks that are kept; a fleet has as many as slots. What is above is counted in the queues only.
pub(super) const MOST_TASKS: usize = 10_000;
/// Longest text of a task that is kept, characters.
const LONGEST: usize = 200;

/// What was read.
#[derive(Debug, Clone)]
pub(super) enum Update {
    /// What runs, read at the start: not news.
    Running(Vec<Stamped>),
    /// Events before this were not read.
    Since(Time),
    /// An event.
    Event(Box<Stamped>),
    /// All queues.
    Queues(Vec<Queue>),
    /// All workers.
    Workers(Vec<Presence>),
    /// Something could not be read.
    Trouble(String),
}

/// A task that runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Running {
    /// Which.
    pub(super) task_id: TaskId,
    /// Whose.
    pub(super) tenant: Tenant,
    /// Its class.
    pub(super) class: ClassName,
    /// Its name, for people.
    pub(super) name: Option<String>,
    /// The attempt.
    pub(super) attempt: u32,
    /// Attempts that may be made.
    pub(super) max_attempts: u32,
    /// Who runs it.
    pub(super) worker_id: WorkerId,
    /// Since when, by the server's clock; none when only its progress was seen.
    pub(super) started_at: Option<Time>,
    /// Percentage that it reported.
    pub(super) pct: Option<f64>,
    /// Stage that it reported.
    pub(super) stage: Option<String>,
    /// What it says.
    pub(super) message: Option<String>,
    /// Sequence of the last event that counted.
    #[serde(skip)]
    sequence: u64,
}

/// Everything that is shown.
#[derive(Debug, Clone, Default)]
pub(super) struct Model {
    running: BTreeMap<(Tenant, TaskId), Running>,
    /// The last sequence that was counted.
    counted: u64,
    /// Tasks per second.
    pub(super) rates: Rates,
    /// All queues.
    pub(super) queues: Vec<Queue>,
    /// All workers.
    pub(super) workers: Vec<Presence>,
    /// What could not be read last.
    pub(super) trouble: Option<String>,
    /// More ran than are kept.
    pub(super) more: bool,
}

impl Model {
    /// Takes what was read.
    pub(super) fn apply(&mut self, update: Update) {
        match update {
            Update::Running(events) => {
                events.iter().for_each(|event| self.fold(event));
                // No more than that were read.
                self.more |= self.running.len() >= MOST_TASKS;
            }
            Update::Since(time) => self.rates.begin(time),
            Update::Event(event) => {
                if event.head.sequence > self.counted {
                    self.counted = event.head.sequence;
                    self.rates.count(event.head.event.event, event.stored);
                }
                self.fold(&event);
            }
            Update::Queues(queues) => {
                self.queues = queues;
                self.trouble = None;
            }
            Update::Workers(workers) => self.workers = workers,
            Update::Trouble(text) => self.trouble = Some(text),
        }
    }

    /// The last sequence that was counted.
    pub(super) fn counted(&self) -> u64 {
        self.counted
    }

    /// Tasks that run, by tenant and id.
    pub(super) fn running(&self) -> impl Iterator<Item = &Running> {
        self.running.values()
    }

    /// True when a worker of that name has said so of late.
    pub(super) fn is_present(&self, worker: &WorkerId) -> bool {
        self.workers.iter().any(|presence| presence.worker_id == *worker)
    }

    fn fold(&mut self, stamped: &Stamped) {
        let event = &stamped.head.event;
        let key = (event.task.tenant.clone(), event.task.task_id.clone());
        let known = self.running.get(&key);
        // What was read at the start may be ahead of the feed.
        if known.is_some_and(|known| known.sequence >= stamped.head.sequence) {
            return;
        }
        match event.event {
            EventKind::TaskStarted => self.insert(key, begun(stamped, Some(stamped.stored))),
            EventKind::TaskProgress => {
                let mut running = known.cloned().unwrap_or_else(|| begun(stamped, None));
                running.sequence = stamped.head.sequence;
                if let Some(progress) = &event.progress {
                    running.pct = progress.pct.or(running.pct);
                    running.stage = progress.stage.as_deref().map(short).or(running.stage);
                    running.message = progress.message.as_deref().map(short);
                }
                self.insert(key, running);
            }
            EventKind::TaskRetrying | EventKind::TaskReleased | EventKind::TaskCompleted | EventKind::TaskFailed => {
                self.running.remove(&key);
                self.more &= self.running.len() >= MOST_TASKS / 2;
            }
        }
    }

    fn insert(&mut self, key: (Tenant, TaskId), running: Running) {
        if self.running.len() < MOST_TASKS || self.running.contains_key(&key) {
            self.running.insert(key, running);
        } else {
            self.more = true;
        }
    }
}

fn begun(stamped: &Stamped, started_at: Option<Time>) -> Running {
    let event = &stamped.head.event;
    Running {
        task_id: event.task.task_id.clone(),
        tenant: event.task.tenant.clone(),
        class: event.task.class.clone(),
        name: event.task.name.as_deref().map(short),
        attempt: event.task.attempt,
        max_attempts: event.task.max_attempts,
        worker_id: event.worker.worker_id.clone(),
        started_at,
        pct: None,
        stage: None,
        message: None,
        sequence: stamped.head.sequence,
    }
}

fn short(text: &str) -> String {
    text.chars().take(LONGEST).collect()
}
