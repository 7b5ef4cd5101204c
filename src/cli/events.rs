//! `windlass events`: what happened, as it is stored.

use clap::Args;
use serde_json::json;

use super::follow::Interrupts;
use super::{Exit, Failed, Global, Output, filter, render};
use crate::bus::history::Begin;
use crate::bus::read::{EventFilter, ReadEvent};
use crate::task::{ClassName, Event, EventKind, Outcome, Reason, TaskId, Tenant, Time, WorkerId};

/// `windlass events`
#[derive(Debug, Clone, Args)]
pub struct EventsArgs {
    /// Only of this task
    pub id: Option<TaskId>,
    /// Only of this tenant
    #[arg(long)]
    pub tenant: Option<Tenant>,
    /// Only of tasks of this class
    #[arg(long)]
    pub class: Option<ClassName>,
    /// Only of tasks of this workflow
    #[arg(long, value_name = "ID")]
    pub workflow: Option<String>,
    /// Only by this worker
    #[arg(long, value_name = "WORKER")]
    pub worker: Option<WorkerId>,
    /// Only these kinds, comma separated
    #[arg(long, value_name = "KIND", value_delimiter = ',', ignore_case = true, value_parser = filter::kind())]
    pub event: Vec<EventKind>,
    /// Only with these outcomes, comma separated
    #[arg(long, value_delimiter = ',', ignore_case = true, value_parser = filter::outcome())]
    pub outcome: Vec<Outcome>,
    /// Only for these reasons, comma separated
    #[arg(long, value_delimiter = ',', ignore_case = true, hide_possible_values = true, value_parser = filter::reason())]
    pub reason: Vec<Reason>,
    /// Only what was stored since: a duration (10m, 2h, 1d) or a time (RFC 3339)
    #[arg(long, value_parser = filter::since, value_name = "WHEN")]
    pub since: Option<Time>,
    /// Follow: of one task until it is over, of all what comes from now on
    #[arg(short, long)]
    pub follow: bool,
    /// With --follow of all: begin with the oldest event that is kept
    #[arg(long, requires = "follow", conflicts_with = "since")]
    pub from_start: bool,
}

impl EventsArgs {
    /// What the server can pick out by the subject alone. Who follows one task has to see its end, whatever he shows of it.
    fn filter(&self) -> EventFilter {
        let kind = match self.event.as_slice() {
            [kind] => Some(*kind),
            _ => None,
        };
        EventFilter { tenant: self.tenant.clone(), task_id: self.id.clone(), kind }
    }

    fn picks(&self, event: &Event) -> bool {
        self.class.as_ref().is_none_or(|class| *class == event.task.class)
            && (self.workflow.is_none() || self.workflow == event.task.workflow_id)
            && self.worker.as_ref().is_none_or(|worker| *worker == event.worker.worker_id)
            && (self.event.is_empty() || self.event.contains(&event.event))
            && (self.outcome.is_empty() || event.outcome.is_some_and(|outcome| self.outcome.contains(&outcome)))
            && (self.reason.is_empty() || event.reason.is_some_and(|reason| self.reason.contains(&reason)))
    }

    fn begin(&self) -> Begin {
        match self.since {
            Some(since) => Begin::Since(since),
            None if self.follow && self.id.is_none() && !self.from_start => Begin::New,
            None => Begin::Oldest,
        }
    }
}

/// Runs the verb.
pub(super) async fn run(global: &Global, args: &EventsArgs, output: &mut Output) -> Result<Exit, Failed> {
    let (bus, _) = global.connect().await?;
    let mut interrupts = Interrupts::listen()?;
    let mut events = bus.history(&args.filter(), args.begin(), args.follow).await?;
    let mut any = false;
    loop {
        let read = tokio::select! {
            read = events.next() => read?,
            () = interrupts.next() => return Ok(if args.follow { Exit::Done } else { Exit::Interrupted }),
        };
        let Some(read) = read else { break };
        any = true;
        let event = &read.head.event;
        if args.picks(event) {
            show(&read, output)?;
        }
        if args.follow && args.id.is_some() && event.event.is_terminal() {
            break;
        }
    }
    match &args.id {
        Some(id) if !any && args.since.is_none() => Err(Failed::new(Exit::NotFound, format!("no event of task {id}"))
            .hint("a task without events waits in the queue (`windlass status`), or its events are no longer kept")),
        Some(_) | None => Ok(Exit::Done),
    }
}

fn show(read: &ReadEvent, output: &Output) -> std::io::Result<()> {
    if output.is_json() {
        let head = &read.head;
        return output.json(&json!({"sequence": head.sequence, "subject": read.subject, "sha256": head.sha256, "event": head.event}));
    }
    output.line(&render::event_line(&read.head, output.colour()))
}
