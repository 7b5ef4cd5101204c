//! What is known of the fleet, as rows of words: for the live view and for a snapshot alike.

use std::cmp::Ordering;
use std::time::Duration;

use super::super::output::{Style, Table};
use super::super::render::duration;
use super::model::{Model, Running};
use super::rates::WINDOWS;
use crate::bus::presence::Presence;
use crate::bus::queues::Queue;
use crate::task::Time;

/// A worker writes every five seconds what it does; one that was silent for two of these is in trouble.
const LATE: Duration = Duration::from_secs(11);

/// What a cell is sorted by.
#[derive(Debug, Clone, PartialEq, PartialOrd)]
enum Key {
    Number(f64),
    Text(String),
}

/// One cell.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Cell {
    pub(super) text: String,
    pub(super) style: Style,
    key: Key,
}

/// Rows with a heading.
#[derive(Debug, Clone)]
pub(super) struct Sheet {
    /// What it is about.
    pub(super) title: String,
    /// Headings.
    pub(super) columns: &'static [&'static str],
    /// A cell for each of them.
    pub(super) rows: Vec<Vec<Cell>>,
}

fn text(text: impl Into<String>) -> Cell {
    let text = text.into();
    Cell { key: Key::Text(text.clone()), text, style: Style::Plain }
}

fn number(text: impl Into<String>, key: f64) -> Cell {
    Cell { text: text.into(), style: Style::Plain, key: Key::Number(key) }
}

fn count(n: u64) -> Cell {
    number(n.to_string(), n as f64)
}

impl Cell {
    fn styled(self, style: Style) -> Self {
        Self { style, ..self }
    }
}

impl Sheet {
    /// Orders the rows by a column; rows that are alike in it keep their order.
    pub(super) fn sort(&mut self, column: usize, descending: bool) {
        let order = |a: &Vec<Cell>, b: &Vec<Cell>| match (a.get(column), b.get(column)) {
            (Some(a), Some(b)) => a.key.partial_cmp(&b.key).unwrap_or(Ordering::Equal),
            (_, _) => Ordering::Equal,
        };
        self.rows.sort_by(|a, b| if descending { order(b, a) } else { order(a, b) });
    }

    /// As a verb prints it.
    pub(super) fn table(&self) -> Table {
        let mut table = Table::new(self.columns);
        for row in &self.rows {
            table.row(row.iter().map(|cell| (cell.text.clone(), cell.style)).collect());
        }
        table
    }
}

/// Tasks per second.
pub(super) fn rates(model: &Model, now: Time) -> Sheet {
    let row = |window: u64| {
        let rates = model.rates.over(window, now);
        let rate = |n: f64| number(if n < 10.0 { format!("{n:.2}") } else { format!("{n:.1}") }, n);
        let failed = rate(rates.failed).styled(if rates.failed > 0.0 { Style::Red } else { Style::Plain });
        vec![text(format!("per second, {window} s")), rate(rates.started), rate(rates.completed), failed, rate(rates.retrying)]
    };
    Sheet {
        title: "rates".to_owned(),
        columns: &["TASKS", "STARTED", "COMPLETED", "FAILED", "RETRYING"],
        rows: WINDOWS.into_iter().map(row).collect(),
    }
}

/// True for a task that has `filter` in one of its names.
pub(super) fn wanted(task: &Running, filter: &str) -> bool {
    [task.tenant.as_str(), task.class.as_str(), task.worker_id.as_str(), task.task_id.as_str()].iter().any(|name| name.contains(filter))
}

/// The column of [`tasks`] that it is sorted by at first.
pub(super) const TIME: usize = 5;

/// Tasks that run, of those that `filter` names.
pub(super) fn tasks(model: &Model, now: Time, filter: &str) -> Sheet {
    let rows: Vec<_> = model.running().filter(|task| wanted(task, filter)).map(|task| task_row(model, task, now)).collect();
    let more = if model.more { ", and more" } else { "" };
    Sheet {
        title: format!("running {}{more}", rows.len()),
        columns: &["TASK", "TENANT", "CLASS", "ATTEMPT", "WORKER", "TIME", "DONE", "PROGRESS"],
        rows,
    }
}

fn task_row(model: &Model, task: &Running, now: Time) -> Vec<Cell> {
    let attempt = format!("{}/{}", task.attempt, task.max_attempts.max(task.attempt));
    let worker = text(task.worker_id.as_str());
    // Its lease runs out and somebody else takes the task; until then this is what is known.
    let worker = if model.is_present(&task.worker_id) { worker } else { worker.styled(Style::Red) };
    let time = task.started_at.map(|at| now.after(at));
    let progress = [&task.stage, &task.message].into_iter().flatten().cloned().collect::<Vec<_>>().join("  ");
    vec![
        text(task.task_id.as_str()),
        text(task.tenant.as_str()),
        text(task.class.as_str()),
        number(attempt, f64::from(task.attempt)),
        worker,
        number(time.map(duration).unwrap_or_default(), time.map_or(0.0, |t| t.as_secs_f64())),
        number(task.pct.map(|pct| format!("{pct:.0} %")).unwrap_or_default(), task.pct.unwrap_or(-1.0)),
        text(progress),
    ]
}

/// The queues, of classes that `filter` names.
pub(super) fn queues(model: &Model, now: Time, filter: &str) -> Sheet {
    let row = |queue: &Queue| {
        let oldest = queue.oldest.map(|at| now.after(at));
        let redelivered = count(queue.redelivered);
        vec![
            text(queue.class.clone()),
            text(queue.priority.clone()),
            count(queue.waiting),
            number(oldest.map(duration).unwrap_or_default(), oldest.map_or(0.0, |t| t.as_secs_f64())),
            count(queue.in_flight),
            if queue.redelivered > 0 { redelivered.styled(Style::Yellow) } else { redelivered },
        ]
    };
    let waiting: u64 = model.queues.iter().map(|queue| queue.waiting).sum();
    // A filter that names no class is about tenants or workers.
    let by_class = model.queues.iter().any(|queue| queue.class.contains(filter));
    Sheet {
        title: format!("queues, {waiting} waiting"),
        columns: &["CLASS", "PRIORITY", "WAITING", "OLDEST", "IN FLIGHT", "REDELIVERED"],
        rows: model.queues.iter().filter(|queue| !by_class || queue.class.contains(filter)).map(row).collect(),
    }
}

/// The workers.
pub(super) fn workers(model: &Model, now: Time) -> Sheet {
    let row = |worker: &Presence| {
        let silent = now.after(worker.time);
        let seen = number(format!("{} ago", duration(silent)), silent.as_secs_f64());
        vec![
            text(worker.worker_id.as_str()),
            text(worker.host.clone()),
            text(worker.classes.join(",")),
            number(format!("{}/{}", worker.running, worker.slots), f64::from(worker.running)),
            if worker.draining { text("draining").styled(Style::Yellow) } else { text("") },
            if silent > LATE { seen.styled(Style::Red) } else { seen },
            text(worker.version.clone()),
        ]
    };
    let (running, slots) = model.workers.iter().fold((0, 0), |(r, s), w| (r + w.running, s + w.slots));
    Sheet {
        title: format!("workers {}, {running} of {slots} slots taken", model.workers.len()),
        columns: &["WORKER", "HOST", "CLASSES", "RUNNING", "", "SEEN", "VERSION"],
        rows: model.workers.iter().map(row).collect(),
    }
}
