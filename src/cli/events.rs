//! `windlass events`: what happened, as it is stored.

use clap::Args;
use futures_util::StreamExt as _;
use serde_json::json;

use super::follow::Interrupts;
use super::{Exit, Failed, Global, Output, render};
use crate::bus::read::{EventFilter, From, ReadEvent};
use crate::task::{TaskId, Tenant};

/// `windlass events`
#[derive(Debug, Clone, Args)]
pub struct EventsArgs {
    /// Only of this task
    pub id: Option<TaskId>,
    /// Only of this tenant
    #[arg(long)]
    pub tenant: Option<Tenant>,
    /// Follow: of one task until it is over, of all what comes from now on
    #[arg(short, long)]
    pub follow: bool,
    /// With --follow of all: begin with the oldest event that is kept
    #[arg(long, requires = "follow")]
    pub from_start: bool,
}

/// Runs the verb.
pub(super) async fn run(global: &Global, args: &EventsArgs, output: &mut Output) -> Result<Exit, Failed> {
    let (bus, _) = global.connect().await?;
    let filter = EventFilter { tenant: args.tenant.clone(), task_id: args.id.clone() };
    let from = if args.follow && args.id.is_none() && !args.from_start { From::New } else { From::Start };
    let mut interrupts = Interrupts::listen()?;
    let mut events = bus.events(filter, from, args.follow).await?;
    let mut any = false;
    loop {
        let read = tokio::select! {
            read = events.next() => read,
            () = interrupts.next() => return Ok(if args.follow { Exit::Done } else { Exit::Interrupted }),
        };
        let Some(read) = read else { break };
        let read = read?;
        show(&read, output)?;
        any = true;
        if args.follow && args.id.is_some() && read.head.event.event.is_terminal() {
            break;
        }
    }
    match &args.id {
        Some(id) if !any => Err(Failed::new(Exit::NotFound, format!("no event of task {id}"))
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
