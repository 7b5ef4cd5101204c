//! `windlass status`: where a task stands, from the last event of its chain and the queue.

use clap::Args;
use serde_json::json;

use super::args::Named;
use super::output::{Style, Table};
use super::{Exit, Failed, Global, Output, render};
use crate::bus::Bus;
use crate::bus::chain::Head;
use crate::bus::submit::Queued;
use crate::task::chain::RunState;
use crate::task::{Event, Tenant};

/// A task as the fleet knows it: by its chain, by its message in the queue, or both.
#[derive(Debug)]
pub(super) struct Found {
    /// Whose.
    pub(super) tenant: Tenant,
    /// The last event.
    pub(super) head: Option<Head>,
    queued: Option<Queued>,
}

impl Found {
    /// Looks for a task.
    ///
    /// # Errors
    /// [`Exit::NotFound`] when nobody knows it.
    pub(super) async fn find(bus: &Bus, named: &Named) -> Result<Self, Failed> {
        let head = bus.find_head(named.tenant.as_ref(), &named.id).await?;
        let wanted = head.as_ref().map(|h| h.event.task.tenant.clone()).or_else(|| named.tenant.clone());
        let queued = bus.find_queued(wanted.as_ref(), &named.id).await?;
        let tenant = match (&head, &queued) {
            (Some(head), _) => head.event.task.tenant.clone(),
            (None, Some(queued)) => Tenant::new(queued.tenant.clone()).map_err(|e| Failed::new(Exit::Error, e.to_string()))?,
            (None, None) => return Err(Self::nobody(named)),
        };
        Ok(Self { tenant, head, queued })
    }

    fn nobody(named: &Named) -> Failed {
        let whose = named.tenant.as_ref().map(|t| format!(" of tenant {t}")).unwrap_or_default();
        Failed::new(Exit::NotFound, format!("no task {}{whose}: neither queued nor in the events that are kept", named.id))
            .hint("check the id, the tenant and --prefix; `windlass dead list` shows what could not become a task")
    }

    pub(super) fn state(&self) -> RunState {
        self.head.as_ref().map_or(RunState::Pending, |head| RunState::of_last(&head.event))
    }
}

/// `windlass status`
#[derive(Debug, Clone, Args)]
pub struct StatusArgs {
    /// Which task.
    #[command(flatten)]
    pub task: Named,
}

/// Runs the verb.
pub(super) async fn run(global: &Global, args: &StatusArgs, output: &mut Output) -> Result<Exit, Failed> {
    let (bus, _) = global.connect().await?;
    let found = Found::find(&bus, &args.task).await?;
    if output.is_json() {
        output.json(&as_json(args, &found))?;
    } else {
        output.table(&as_table(args, &found))?;
    }
    Ok(Exit::Done)
}

fn as_json(args: &StatusArgs, found: &Found) -> serde_json::Value {
    let event = found.head.as_ref().map(|h| &h.event);
    let queued = found.queued.as_ref().filter(|_| !found.state().is_over());
    json!({
        "task_id": args.task.id,
        "tenant": found.tenant,
        "class": event.map(|e| e.task.class.as_str()).or(found.queued.as_ref().map(|q| q.class.as_str())),
        "state": found.state(),
        "attempt": event.map_or(0, |e| e.task.attempt),
        "outcome": event.and_then(|e| e.outcome),
        "reason": event.and_then(|e| e.reason),
        "exit_code": event.and_then(|e| e.exit_code),
        "submitted_at": event.map(|e| e.task.submitted_at).or(found.queued.as_ref().map(|q| q.submitted_at)),
        "queued": queued.map(|q| json!({"sequence": q.sequence, "priority": q.priority})),
        "sequence": found.head.as_ref().map(|h| h.sequence),
        "event": event,
    })
}

fn as_table(args: &StatusArgs, found: &Found) -> Table {
    let mut table = Table::pairs();
    table.pair("task", Some(&args.task.id));
    table.row(vec![("state".to_owned(), Style::Dim), (found.state().to_string(), render::style_of(found.state()))]);
    table.pair("tenant", Some(&found.tenant));
    match (&found.head, &found.queued) {
        (Some(head), _) => of_event(&mut table, &head.event),
        (None, Some(queued)) => {
            table.pair("class", Some(&queued.class));
            table.pair("priority", Some(&queued.priority));
            table.pair("queued since", Some(queued.submitted_at));
        }
        (None, None) => {}
    }
    table
}

fn of_event(table: &mut Table, event: &Event) {
    let task = &event.task;
    table.pair("class", Some(&task.class));
    table.pair("name", task.name.as_ref());
    table.pair("workflow", task.workflow_id.as_ref());
    let released = if task.released_attempts > 0 { format!(", {} given back", task.released_attempts) } else { String::new() };
    let attempt = match task.attempt {
        0 => "none was made".to_owned(),
        n => format!("{n} (at most {}{released})", task.max_attempts),
    };
    table.pair("attempt", Some(attempt));
    table.pair("last event", Some(format!("{} at {}", event.event, event.time)));
    if let Some(reason) = event.reason {
        let style = if event.event.is_terminal() { render::style_of(RunState::of_last(event)) } else { Style::Yellow };
        table.row(vec![("reason".to_owned(), Style::Dim), (reason.to_string(), style)]);
    }
    table.pair("error", event.error.as_ref());
    table.pair("hint", event.hint.as_ref());
    table.pair("exit code", event.exit_code);
    table.pair("signal", event.signal);
    table.pair("submitted", Some(task.submitted_at));
    if let Some(run) = &event.run {
        table.pair("runtime", Some(run.runtime.as_str()));
        table.pair("started", run.started_at);
        table.pair("finished", run.finished_at);
        table.pair("took", run.duration_ms.map(|ms| render::duration(std::time::Duration::from_millis(ms))));
        table.pair("limits", run.limits.as_ref().map(render::limits));
        table.pair("sandbox", run.sandbox.map(|profile| render::sandbox(profile, &run.sandbox_missing)));
    }
    table.pair("worker", Some(format!("{} on {}", event.worker.worker_id, event.worker.host)));
    table.pair("used", event.usage.as_ref().map(render::usage));
    if let Some(logs) = &event.logs {
        let of = |name: &str, s: &crate::task::event::StreamManifest| {
            let dropped = if s.dropped_bytes > 0 { format!(", {} left out", render::size(s.dropped_bytes)) } else { String::new() };
            format!("{name} {}{dropped}", render::size(s.bytes))
        };
        table.pair("output", Some(format!("{}, {}", of("stdout", &logs.stdout), of("stderr", &logs.stderr))));
    }
    table.pair("progress", event.progress.as_ref().map(|_| render::detail(event)));
    table.pair("next attempt", event.retry.as_ref().and_then(|r| r.not_before).map(|t| format!("not before {t}")));
    table.pair("result", event.result.as_ref().map(|r| r.value.to_string()));
    if let Some(tail) = event.stderr_tail.as_ref().filter(|t| !t.is_empty()) {
        let last: Vec<&str> = tail.trim_end().rsplit('\n').take(3).collect();
        table.pair("stderr ends", Some(last.into_iter().rev().collect::<Vec<_>>().join(" | ")));
    }
    if !event.shortened.is_empty() {
        table.pair("shortened", Some(event.shortened.join(", ")));
    }
}
