//! `windlass cancel`: asks whoever has a task to stop it.

use clap::Args;
use serde_json::json;

use super::args::{Named, positive};
use super::follow::{Interrupts, Seen, Watch, after};
use super::status::Found;
use super::{Exit, Failed, Global, Output, render};
use crate::task::Event;
use crate::task::chain::RunState;

/// `windlass cancel`
#[derive(Debug, Clone, Args)]
pub struct CancelArgs {
    /// Which task.
    #[command(flatten)]
    pub task: Named,
    /// Why, for people
    #[arg(long)]
    pub reason: Option<String>,
    /// Wait until the task is over
    #[arg(long)]
    pub wait: bool,
    /// Wait no longer than this many seconds, then exit with 124
    #[arg(long, value_name = "SECONDS", requires = "wait", value_parser = positive)]
    pub wait_timeout: Option<f64>,
}

/// Runs the verb.
pub(super) async fn run(global: &Global, args: &CancelArgs, output: &mut Output) -> Result<Exit, Failed> {
    let (bus, _) = global.connect().await?;
    let found = Found::find(&bus, &args.task).await?;
    let id = &args.task.id;
    if found.state().is_over() {
        return Err(Failed::new(Exit::Conflict, format!("task {id} is over: {}", found.state())));
    }
    bus.cancel(&found.tenant, id, args.reason.as_deref()).await?;
    if !args.wait {
        if output.is_json() {
            output.json(&json!({"task_id": id, "tenant": found.tenant, "state": found.state(), "requested": true}))?;
        } else {
            output.line(&format!("asked for task {id} to be canceled; it was {}", found.state()))?;
        }
        return Ok(Exit::Done);
    }
    let watch = Watch::open(&bus, &found.tenant, id).await?;
    let event = end(watch, args.wait_timeout).await?;
    let state = RunState::of_last(&event);
    if output.is_json() {
        output.json(&json!({"task_id": id, "tenant": found.tenant, "state": state, "requested": true, "event": event}))?;
    } else {
        output.line(&format!("task {id} is {state}: {}", super::output::visible(&render::end(&event))))?;
    }
    // It may have ended by itself before the request came through.
    Ok(if state == RunState::Canceled { Exit::Done } else { Exit::Conflict })
}

async fn end(mut watch: Watch, timeout: Option<f64>) -> Result<Box<Event>, Failed> {
    let mut interrupts = Interrupts::listen()?;
    let mut deadline = std::pin::pin!(after(timeout));
    loop {
        let seen = tokio::select! {
            seen = watch.next() => seen?,
            () = interrupts.next() => return Err(Failed::new(Exit::Interrupted, "interrupted; the request stays")),
            () = &mut deadline => return Err(Failed::new(Exit::TimedOut, "waited long enough; the request stays")),
        };
        match seen {
            Some(Seen::Event(read)) if read.head.event.event.is_terminal() => return Ok(Box::new(read.head.event)),
            Some(Seen::Event(_) | Seen::Piece(_)) => {}
            None => return Err(Failed::new(Exit::Unreachable, "the events ended before the task did")),
        }
    }
}
