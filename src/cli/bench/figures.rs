//! What became of the tasks of a bench, and how long each step took. Pure.
//!
//! Times are those of the events and of the queue, so that whoever reads the events comes to the same figures; only how long a
//! publish took is measured here.

use std::time::Duration;

use serde::Serialize;

use crate::task::{Event, EventKind, Outcome, TaskId, Time};

/// What is known of one task.
#[derive(Debug, Clone, Default)]
struct Record {
    /// From sending it to the server's word that it is stored.
    publish: Option<Duration>,
    /// Stored in the queue, by the server's clock.
    submitted_at: Option<Time>,
    /// The last `task_started`, and how long it had been in the queue.
    started: Option<(Time, Duration)>,
    /// An attempt is under way.
    running: bool,
    /// Its end.
    end: Option<(Time, Option<Outcome>)>,
}

/// All tasks of one bench.
#[derive(Debug, Clone)]
pub(super) struct Ledger {
    run: String,
    records: Vec<Record>,
    /// Tasks that are known to be queued, or to have been.
    pub(super) published: usize,
    /// Tasks that run.
    pub(super) running: usize,
    /// Tasks that were started at least once.
    pub(super) started: usize,
    /// Tasks that are over.
    pub(super) over: usize,
}

/// A latency over all tasks, milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Latency {
    /// Half of them took no longer.
    pub(super) p50: f64,
    /// Nine in ten.
    pub(super) p90: f64,
    /// 99 in a hundred.
    pub(super) p99: f64,
    /// The longest.
    pub(super) max: f64,
}

/// The steps of a task.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Latencies {
    /// From sending to the server's word, by our clock.
    pub(super) publish: Option<Latency>,
    /// `run.queued_ms` of `task_started`.
    pub(super) queue_wait: Option<Latency>,
    /// From `submitted_at` to the time of `task_started`.
    pub(super) publish_to_started: Option<Latency>,
    /// From there to the time of `task_completed`.
    pub(super) started_to_completed: Option<Latency>,
    /// From `submitted_at` to the time of `task_completed`.
    pub(super) end_to_end: Option<Latency>,
}

/// What a bench found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Figures {
    /// Tasks that are known to have been queued.
    pub(super) submitted: usize,
    /// Those that worked.
    pub(super) completed: usize,
    /// Those that did not.
    pub(super) failed: usize,
    /// Those that were canceled.
    pub(super) canceled: usize,
    /// Those that are not over.
    pub(super) unfinished: usize,
    /// From the first to the last of those that are queued.
    pub(super) submitted_per_s: Option<f64>,
    /// From the first that was queued to the last that completed.
    pub(super) completed_per_s: Option<f64>,
    /// Of tasks that completed.
    pub(super) latency_ms: Latencies,
}

impl Ledger {
    /// For `tasks` tasks whose ids begin with `run`.
    pub(super) fn new(run: String, tasks: usize) -> Self {
        Self { run, records: vec![Record::default(); tasks], published: 0, running: 0, started: 0, over: 0 }
    }

    /// Id of the task with that number.
    pub(super) fn id(run: &str, number: usize) -> String {
        format!("{run}-{number}")
    }

    /// A task is in the queue.
    pub(super) fn published(&mut self, number: usize, took: Duration) {
        if let Some(record) = self.records.get_mut(number) {
            record.publish = Some(took);
            self.published += 1;
        }
    }

    /// An event; false when it is not about one of these tasks.
    pub(super) fn take(&mut self, event: &Event) -> bool {
        let number = self.number(&event.task.task_id);
        let Some(record) = number.and_then(|number| self.records.get_mut(number)) else { return false };
        if record.end.is_some() {
            return true;
        }
        record.submitted_at = Some(event.task.submitted_at);
        let was_running = record.running;
        record.running = matches!(event.event, EventKind::TaskStarted | EventKind::TaskProgress);
        self.running = self.running + usize::from(record.running) - usize::from(was_running);
        match event.event {
            EventKind::TaskStarted => {
                self.started += usize::from(record.started.is_none());
                let queued = event.run.as_ref().map_or(0, |run| run.queued_ms);
                // A second attempt may follow a worker that was lost and said nothing.
                record.started = Some((event.time, Duration::from_millis(queued)));
            }
            EventKind::TaskProgress | EventKind::TaskRetrying | EventKind::TaskReleased => {}
            EventKind::TaskCompleted | EventKind::TaskFailed => {
                record.end = Some((event.time, event.outcome));
                self.over += 1;
            }
        }
        true
    }

    fn number(&self, id: &TaskId) -> Option<usize> {
        id.as_str().strip_prefix(self.run.as_str())?.strip_prefix('-')?.parse().ok()
    }

    /// True when all were queued and are over.
    pub(super) fn is_complete(&self) -> bool {
        self.over == self.records.len()
    }

    /// Tasks that may be queued or running: of those that were not confirmed, `under_way` may be.
    pub(super) fn left(&self, under_way: usize) -> Vec<TaskId> {
        let most = self.published.saturating_add(under_way);
        let left = self.records.iter().enumerate().take(most).filter(|(_, record)| record.end.is_none());
        left.filter_map(|(number, _)| TaskId::new(Self::id(&self.run, number)).ok()).collect()
    }

    /// What was found; publishing took `publishing` in all.
    pub(super) fn figures(&self, publishing: Duration) -> Figures {
        let ends = |wanted: fn(Option<Outcome>) -> bool| self.records.iter().filter(move |r| r.end.is_some_and(|(_, o)| wanted(o)));
        let completed: Vec<&Record> = ends(|outcome| outcome == Some(Outcome::Success)).collect();
        let canceled = ends(|outcome| outcome == Some(Outcome::Cancellation)).count();
        let first = self.records.iter().filter_map(|record| record.submitted_at).min();
        let last = completed.iter().filter_map(|record| record.end).map(|(time, _)| time).max();
        let took = first.zip(last).map(|(first, last)| last.after(first));
        Figures {
            submitted: self.published,
            completed: completed.len(),
            failed: self.over - completed.len() - canceled,
            canceled,
            unfinished: self.published.saturating_sub(self.over),
            submitted_per_s: rate(self.published, Some(publishing)),
            completed_per_s: rate(completed.len(), took),
            latency_ms: latencies(&self.records, &completed),
        }
    }
}

fn rate(count: usize, over: Option<Duration>) -> Option<f64> {
    over.filter(|over| !over.is_zero() && count > 0).map(|over| count as f64 / over.as_secs_f64())
}

fn latencies(all: &[Record], completed: &[&Record]) -> Latencies {
    let of = |step: fn(&Record) -> Option<Duration>| latency(completed.iter().filter_map(|record| step(record)).collect());
    Latencies {
        publish: latency(all.iter().filter_map(|record| record.publish).collect()),
        queue_wait: of(|r| r.started.map(|(_, queued)| queued)),
        publish_to_started: of(|r| Some(r.started?.0.after(r.submitted_at?))),
        started_to_completed: of(|r| Some(r.end?.0.after(r.started?.0))),
        end_to_end: of(|r| Some(r.end?.0.after(r.submitted_at?))),
    }
}

/// By nearest rank: each figure is one that was measured.
fn latency(mut all: Vec<Duration>) -> Option<Latency> {
    all.sort_unstable();
    let millis = |d: &Duration| d.as_micros() as f64 / 1000.0;
    let rank = |percent: usize| all.get((all.len() * percent).div_ceil(100).max(1) - 1).map(millis);
    Some(Latency { p50: rank(50)?, p90: rank(90)?, p99: rank(99)?, max: rank(100)? })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(ms: i64) -> Time {
        Time::from_micros(1_800_000_000_000_000 + ms * 1000)
    }

    fn event(id: &str, kind: &str, ms: i64, outcome: Option<&str>) -> Event {
        let run = json!({"runtime": "native", "limits": null, "queued_ms": 3});
        let value = json!({
            "v": 1, "event": kind, "id": "i", "time": at(ms), "seq": 0, "nonce": "n", "prev_sha256": null, "run": run, "outcome": outcome,
            "task": {"task_id": id, "tenant": "acme", "class": "c", "attempt": 1, "max_attempts": 1, "released_attempts": 0,
                     "deliveries": 1, "submitted_at": at(0), "assignment_sha256": "", "context": null, "labels": {}},
            "worker": {"worker_id": "w", "instance": "i", "host": "h", "version": "0"},
        });
        serde_json::from_value(value).expect("an event")
    }

    #[test]
    fn percentiles_are_measured_values() {
        let all = |n: u64| latency((1..=n).rev().map(Duration::from_millis).collect());
        assert_eq!(all(100), Some(Latency { p50: 50.0, p90: 90.0, p99: 99.0, max: 100.0 }));
        assert_eq!(all(1), Some(Latency { p50: 1.0, p90: 1.0, p99: 1.0, max: 1.0 }));
        assert_eq!(all(10), Some(Latency { p50: 5.0, p90: 9.0, p99: 10.0, max: 10.0 }));
        assert_eq!(all(0), None);
    }

    #[test]
    fn figures_are_those_of_the_events() {
        let mut ledger = Ledger::new("bench-1".to_owned(), 3);
        for n in 0..3 {
            ledger.published(n, Duration::from_millis(2));
        }
        assert!(ledger.take(&event("bench-1-0", "task_started", 10, None)));
        assert!(ledger.take(&event("bench-1-1", "task_started", 20, None)));
        assert_eq!((ledger.running, ledger.started), (2, 2));
        assert!(ledger.take(&event("bench-1-0", "task_completed", 15, Some("success"))));
        assert!(ledger.take(&event("bench-1-1", "task_failed", 30, Some("failure"))));
        assert!(ledger.take(&event("bench-1-2", "task_failed", 40, Some("cancellation"))));
        for stranger in ["bench-1", "bench-1-3", "bench-1-x", "bench-10-0", "other"] {
            assert!(!ledger.take(&event(stranger, "task_completed", 1, Some("success"))), "{stranger}");
        }
        assert!(ledger.is_complete());
        let figures = ledger.figures(Duration::from_secs(1));
        assert_eq!((figures.submitted, figures.completed, figures.failed, figures.canceled, figures.unfinished), (3, 1, 1, 1, 0));
        assert_eq!((figures.submitted_per_s, figures.completed_per_s), (Some(3.0), Some(1.0 / 0.015)));
        let p50 = |latency: Option<Latency>| latency.expect("measured").p50;
        let l = figures.latency_ms;
        assert_eq!([l.publish, l.queue_wait, l.publish_to_started].map(p50), [2.0, 3.0, 10.0]);
        assert_eq!([l.started_to_completed, l.end_to_end].map(p50), [5.0, 15.0]);
    }

    #[test]
    fn what_is_left_is_what_may_be_there() {
        let mut ledger = Ledger::new("bench-1".to_owned(), 10);
        ledger.published(0, Duration::ZERO);
        ledger.published(2, Duration::ZERO);
        ledger.take(&event("bench-1-2", "task_completed", 1, Some("success")));
        let left: Vec<_> = ledger.left(2).iter().map(ToString::to_string).collect();
        assert_eq!(left, ["bench-1-0", "bench-1-1", "bench-1-3"]);
        assert_eq!(ledger.figures(Duration::ZERO).unfinished, 1);
    }
}
