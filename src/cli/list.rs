//! `windlass list`: the tasks of the fleet, newest first.

use clap::Args;
use serde_json::{Value, json};

use super::output::{Style, Table};
use super::{Exit, Failed, Global, Output, filter, render};
use crate::bus::listing::{Known, Listed, TaskQuery};
use crate::task::chain::RunState;
use crate::task::{ClassName, Outcome, Reason, Tenant, Time};

/// Most of an error that a line of the table shows.
const SHOWN: usize = 80;

/// `windlass list`
#[derive(Debug, Clone, Args)]
pub struct ListArgs {
    /// Only of this tenant
    #[arg(long)]
    pub tenant: Option<Tenant>,
    /// Only of this class
    #[arg(long)]
    pub class: Option<ClassName>,
    /// Only of this workflow
    #[arg(long, value_name = "ID")]
    pub workflow: Option<String>,
    /// Only in these states, comma separated
    #[arg(long, value_delimiter = ',', ignore_case = true, value_parser = filter::state())]
    pub state: Vec<RunState>,
    /// Only with these outcomes, comma separated
    #[arg(long, value_delimiter = ',', ignore_case = true, value_parser = filter::outcome())]
    pub outcome: Vec<Outcome>,
    /// Only for these reasons, comma separated
    #[arg(long, value_delimiter = ',', ignore_case = true, hide_possible_values = true, value_parser = filter::reason())]
    pub reason: Vec<Reason>,
    /// Only where something happened since: a duration (10m, 2h, 1d) or a time (RFC 3339)
    #[arg(long, value_parser = filter::since, value_name = "WHEN")]
    pub since: Option<Time>,
    /// No more than so many
    #[arg(short = 'n', long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
}

/// Runs the verb.
pub(super) async fn run(global: &Global, args: &ListArgs, output: &Output) -> Result<Exit, Failed> {
    let (bus, _) = global.connect().await?;
    let listing = bus.tasks(&query(args)).await?;
    if output.is_json() {
        for task in &listing.tasks {
            output.json(&as_json(task))?;
        }
    } else {
        output.table(&as_table(&listing.tasks, Time::now()))?;
    }
    if listing.unreadable > 0 {
        output.warn(&format!("the last events of {} tasks cannot be read; they are left out", listing.unreadable));
    }
    if listing.cut {
        output.notice(&format!("these are the newest {}; --limit shows more", listing.tasks.len()));
    }
    Ok(Exit::Done)
}

fn query(args: &ListArgs) -> TaskQuery {
    TaskQuery {
        tenant: args.tenant.clone(),
        class: args.class.clone(),
        workflow: args.workflow.clone(),
        states: args.state.clone(),
        outcomes: args.outcome.clone(),
        reasons: args.reason.clone(),
        since: args.since,
        limit: usize::try_from(args.limit).unwrap_or(usize::MAX),
    }
}

fn as_json(task: &Listed) -> Value {
    match &task.known {
        Known::Last(sequence, event) => json!({
            "task_id": task.task_id, "tenant": task.tenant, "class": event.task.class, "name": event.task.name,
            "workflow_id": event.task.workflow_id, "state": task.state(), "attempt": event.task.attempt, "outcome": event.outcome,
            "reason": event.reason, "exit_code": event.exit_code, "error": event.error, "worker_id": event.worker.worker_id,
            "submitted_at": event.task.submitted_at, "at": task.at, "queued": null, "sequence": sequence,
        }),
        Known::Waiting(waiting) => json!({
            "task_id": task.task_id, "tenant": task.tenant, "class": waiting.class, "name": waiting.name,
            "workflow_id": waiting.workflow_id, "state": task.state(), "attempt": 0, "outcome": null,
            "reason": null, "exit_code": null, "error": null, "worker_id": null,
            "submitted_at": task.at, "at": task.at,
            "queued": {"sequence": waiting.sequence, "priority": waiting.priority}, "sequence": null,
        }),
    }
}

fn as_table(tasks: &[Listed], now: Time) -> Table {
    let mut table = Table::new(&["TASK", "STATE", "AGO", "TENANT", "CLASS", "ATTEMPT", "NAME", "WHAT"]);
    for task in tasks {
        let plain = |text: &str| (text.to_owned(), Style::Plain);
        let (class, attempt, name, what) = match &task.known {
            Known::Last(_, event) => (event.task.class.as_str(), event.task.attempt, &event.task.name, render::detail(event)),
            Known::Waiting(waiting) => (waiting.class.as_str(), 0, &waiting.name, format!("waits ({})", waiting.priority)),
        };
        table.row(vec![
            plain(&task.task_id),
            (task.state().to_string(), render::style_of(task.state())),
            (render::duration(now.after(task.at)), Style::Dim),
            plain(&task.tenant),
            plain(class),
            plain(&attempt.to_string()),
            plain(name.as_deref().unwrap_or("-")),
            (what.chars().take(SHOWN).collect(), Style::Plain),
        ]);
    }
    table
}
