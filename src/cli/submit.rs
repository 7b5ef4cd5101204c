//! `windlass submit`: assignments from a file into the queue.
//!
//! All are checked before any is queued, by the types that a worker reads them with: a mistake in line 90 does not
//! leave 89 tasks behind. Mistakes name line and path.

use clap::Args;
use std::collections::BTreeSet;
use std::path::PathBuf;

use bytes::Bytes;
use futures_util::StreamExt as _;
use serde::Serialize;
use serde_json::{Value, json};

use super::args::{Target, encoding, positive};
use super::file::{self, Entry};
use super::follow::{Interrupts, after};
use super::output::{Style, Table};
use super::verdict::{DEFAULT_TENANT, default_class};
use super::{Exit, Failed, Global, Output, render};
use crate::bus::Bus;
use crate::bus::read::{EventFilter, From, ReadEvent};
use crate::task::assignment::Runtime;
use crate::task::chain::RunState;
use crate::task::{Assignment, ClassName, Priority, TaskId, Tenant};
use crate::wire::{DecodeError, Encoding};

/// Publishes under way at one time: enough to hide the way to the server, too few to hurt it.
const WINDOW: usize = 32;

/// An assignment, ready for the queue.
#[derive(Debug, Clone)]
pub(super) struct Ready {
    pub(super) task_id: TaskId,
    pub(super) tenant: Tenant,
    pub(super) class: ClassName,
    pub(super) priority: Priority,
    pub(super) encoding: Encoding,
    pub(super) body: Bytes,
    /// The publisher chose the id, so it may be taken.
    pub(super) own_id: bool,
}

/// What is said about a queued task.
#[derive(Debug, Serialize)]
pub(super) struct Queued<'a> {
    task_id: &'a TaskId,
    tenant: &'a Tenant,
    class: &'a ClassName,
    priority: Priority,
    sequence: u64,
}

impl Ready {
    /// Fills in what is missing in `value`, checks it, and encodes it.
    ///
    /// # Errors
    /// What is wrong with it, by path.
    pub(super) fn new(mut value: Value, target: &Target, encoding: Encoding) -> Result<Self, String> {
        let Some(map) = value.as_object_mut() else { return Err("an assignment is a JSON object".to_owned()) };
        let own_id = target.id.is_some() || map.contains_key("task_id");
        fill(map, "task_id", target.id.as_ref().map(TaskId::as_str), &uuid::Uuid::now_v7().to_string())?;
        fill(map, "tenant", target.tenant.as_ref().map(Tenant::as_str), DEFAULT_TENANT)?;
        let class = default_class(map);
        fill(map, "class", target.class.as_ref().map(ClassName::as_str), class)?;
        let text = serde_json::to_vec(&value).map_err(|e| e.to_string())?;
        let assignment: Assignment = Encoding::Json.decode(&text).map_err(without_position)?;
        check(&assignment)?;
        let (Some(tenant), Some(class)) = (assignment.tenant, assignment.class) else { return Err("tenant and class are null".to_owned()) };
        let body = encoding.encode(&value).map_err(|e| e.to_string())?;
        Ok(Self { task_id: assignment.task_id, tenant, class, priority: target.priority, encoding, body, own_id })
    }

    /// Puts it into the queue.
    pub(super) async fn publish(&self, bus: &Bus) -> Result<u64, Failed> {
        if self.own_id
            && let Some(head) = bus.find_head(Some(&self.tenant), &self.task_id).await?
        {
            let state = RunState::of_last(&head.event);
            return Err(Failed::new(Exit::Conflict, format!("{}: the id is used: that task is {state}", self.task_id))
                .hint("a task's id can be used once; leave it out to get a new one"));
        }
        let submitted = bus
            .publish_assignment(&self.class, self.priority, &self.tenant, &self.task_id, self.encoding, self.body.clone())
            .await
            .map_err(|error| {
                let failed = Failed::from(error);
                Failed { message: format!("{}: {}", self.task_id, failed.message), ..failed }
            })?;
        Ok(submitted.sequence)
    }

    /// For `--output json`.
    pub(super) fn queued(&self, sequence: u64) -> Queued<'_> {
        Queued { task_id: &self.task_id, tenant: &self.tenant, class: &self.class, priority: self.priority, sequence }
    }
}

/// Sets `key` when it is missing; an option that contradicts the assignment is a mistake, not a winner.
fn fill(map: &mut serde_json::Map<String, Value>, key: &str, option: Option<&str>, default: &str) -> Result<(), String> {
    match (map.get(key).filter(|v| !v.is_null()), option) {
        (Some(own), Some(option)) if own != option => Err(format!("{key}: the assignment says {own}, the option says \"{option}\"")),
        (Some(_), _) => Ok(()),
        (None, option) => {
            map.insert(key.to_owned(), Value::from(option.unwrap_or(default)));
            Ok(())
        }
    }
}

/// The position would be that in our own text of the assignment.
fn without_position(error: DecodeError) -> String {
    let text = error.to_string();
    text.split_once(" at line ").map_or(text.as_str(), |(head, _)| head).to_owned()
}

/// What a worker refuses whatever its configuration.
fn check(assignment: &Assignment) -> Result<(), String> {
    let execution = &assignment.execution;
    if assignment.v != 1 {
        return Err(format!("v: {} is not a version of the contract; write 1", assignment.v));
    }
    match execution.runtime {
        Runtime::Native if execution.command.as_ref().is_none_or(Vec::is_empty) => {
            Err("execution.command: the native runtime needs a program".to_owned())
        }
        Runtime::Bash if execution.script.is_none() => Err("execution.script: the bash runtime needs one".to_owned()),
        Runtime::Docker if execution.image.is_none() => Err("execution.image: the docker runtime needs one".to_owned()),
        Runtime::Native | Runtime::Bash | Runtime::Docker => Ok(()),
        Runtime::Python | Runtime::Grpc | Runtime::Slurm | Runtime::Runner => {
            Err(format!("execution.runtime: {} is not offered by this version; use native, bash or docker", execution.runtime.as_str()))
        }
    }
}

/// Every assignment of the text, or every mistake in it.
fn ready(bytes: &[u8], args: &SubmitArgs) -> Result<Vec<Ready>, Failed> {
    let name = args.file.display();
    let (mut all, mut mistakes) = (Vec::new(), Vec::new());
    for Entry { line, value } in file::entries(&args.file, bytes, args.target.id.is_some())? {
        match Ready::new(value, &args.target, args.encoding) {
            Ok(ready) => all.push(ready),
            Err(error) => mistakes.push(format!("{name}, line {line}: {error}")),
        }
    }
    if mistakes.is_empty() { Ok(all) } else { Err(Failed::new(Exit::Usage, mistakes.join("\n")).hint("nothing was queued")) }
}

/// `windlass submit`
#[derive(Debug, Clone, Args)]
pub struct SubmitArgs {
    /// The file; - for stdin
    pub file: PathBuf,
    /// Where it goes.
    #[command(flatten)]
    pub target: Target,
    /// How assignments are written to the queue: json or msgpack
    #[arg(long, default_value = "json", value_parser = encoding)]
    pub encoding: Encoding,
    /// Queue nothing; say what would run and what would be refused, as `plan` does
    #[arg(long, conflicts_with = "wait")]
    pub dry_run: bool,
    /// Wait until all are over; exit with the task's own code, or 1 when one of several failed
    #[arg(long)]
    pub wait: bool,
    /// Wait no longer than this many seconds, then exit with 124
    #[arg(long, value_name = "SECONDS", requires = "wait", value_parser = positive)]
    pub wait_timeout: Option<f64>,
}

/// Runs the verb.
pub(super) async fn run(global: &Global, args: &SubmitArgs, output: &mut Output) -> Result<Exit, Failed> {
    if args.dry_run {
        return super::plan::dry_run(global, &args.file, &args.target, args.encoding, output);
    }
    let all = ready(&file::read(&args.file)?, args)?;
    let (bus, _) = global.connect().await?;
    // Before the first is queued, so that no end is missed.
    let events = if args.wait { Some(bus.events(filter(&all), From::New, true).await?) } else { None };
    let (queued, failed) = publish(&bus, &all, output).await?;
    let mut worst = None;
    for failure in failed {
        output.failed(&failure);
        worst = worst.or(Some(failure.exit));
    }
    let Some(events) = events else { return Ok(worst.unwrap_or(Exit::Done)) };
    let single = all.len() == 1;
    let ends = wait(events, queued, args.wait_timeout, output).await?;
    Ok(match (worst, ends.as_slice()) {
        (Some(exit), _) => exit,
        (None, [end]) if single => *end,
        (None, ends) if ends.iter().all(|e| *e == Exit::Done) => Exit::Done,
        (None, _) => Exit::Error,
    })
}

fn filter(all: &[Ready]) -> EventFilter {
    let (first, rest) = all.split_first().map_or((None, all), |(first, rest)| (Some(first), rest));
    let tenant = first.filter(|f| rest.iter().all(|r| r.tenant == f.tenant)).map(|f| f.tenant.clone());
    EventFilter { tenant, task_id: first.filter(|_| rest.is_empty()).map(|f| f.task_id.clone()), kind: None }
}

type Keys = BTreeSet<(Tenant, TaskId)>;

/// Queues all, in order, and says what became of each.
async fn publish(bus: &Bus, all: &[Ready], output: &Output) -> Result<(Keys, Vec<Failed>), Failed> {
    let mut table = Table::new(&["TASK", "TENANT", "CLASS", "PRIORITY", "SEQUENCE"]);
    let (mut queued, mut failed) = (Keys::new(), Vec::new());
    let mut results = futures_util::stream::iter(all).map(|ready| async move { (ready, ready.publish(bus).await) }).buffered(WINDOW);
    while let Some((ready, result)) = results.next().await {
        match result {
            Ok(sequence) => {
                queued.insert((ready.tenant.clone(), ready.task_id.clone()));
                if output.is_json() {
                    output.json(&ready.queued(sequence))?;
                } else {
                    let texts = [ready.task_id.to_string(), ready.tenant.to_string(), ready.class.to_string(), ready.priority.to_string()];
                    let mut cells: Vec<_> = texts.into_iter().map(|t| (t, Style::Plain)).collect();
                    cells.push((sequence.to_string(), Style::Dim));
                    table.row(cells);
                }
            }
            Err(failure) => failed.push(failure),
        }
    }
    if !output.is_json() && !queued.is_empty() {
        output.table(&table)?;
    }
    Ok((queued, failed))
}

/// Reads events until every task is over.
async fn wait(
    mut events: impl futures_util::Stream<Item = Result<ReadEvent, crate::bus::BusError>> + Unpin,
    mut open: Keys,
    timeout: Option<f64>,
    output: &Output,
) -> Result<Vec<Exit>, Failed> {
    let mut interrupts = Interrupts::listen()?;
    let mut deadline = std::pin::pin!(after(timeout));
    let mut ends = Vec::new();
    while !open.is_empty() {
        let read = tokio::select! {
            read = events.next() => match read {
                Some(read) => read?,
                None => return Err(Failed::new(Exit::Unreachable, "the events ended before the tasks did")),
            },
            () = interrupts.next() => {
                return Err(Failed::new(Exit::Interrupted, format!("interrupted; {} task(s) go on", open.len())));
            }
            () = &mut deadline => {
                return Err(Failed::new(Exit::TimedOut, format!("waited long enough; {} task(s) are not over", open.len())));
            }
        };
        let event = &read.head.event;
        let key = (event.task.tenant.clone(), event.task.task_id.clone());
        if !open.contains(&key) {
            continue;
        }
        if output.is_json() {
            output.json(&json!({"sequence": read.head.sequence, "event": event}))?;
        } else {
            output.line(&render::event_line(&read.head, output.colour()))?;
        }
        if event.event.is_terminal() {
            open.remove(&key);
            ends.push(Exit::of_task(event));
        }
    }
    Ok(ends)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Target {
        Target { tenant: None, class: None, priority: Priority::Normal, id: None }
    }

    #[test]
    fn what_is_missing_is_filled_in_and_what_is_there_stays() {
        let value = json!({"execution": {"runtime": "native", "command": ["true"]}, "context": {"a": 1.5}});
        let ready = Ready::new(value, &target(), Encoding::Json).expect("valid");
        assert_eq!((ready.tenant.as_str(), ready.class.as_str(), ready.own_id), ("default", "cpu_short", false));
        let body: Value = serde_json::from_slice(&ready.body).expect("JSON");
        assert_eq!(body["task_id"], ready.task_id.as_str());
        assert_eq!(body["context"]["a"], 1.5);
        let value = json!({"task_id": "x", "tenant": "acme", "execution": {"runtime": "bash", "script": "true"}});
        let ready = Ready::new(value, &target(), Encoding::Msgpack).expect("valid");
        assert_eq!((ready.task_id.as_str(), ready.tenant.as_str(), ready.own_id), ("x", "acme", true));
        assert!(Encoding::Msgpack.decode::<Assignment>(&ready.body).is_ok());
    }

    #[test]
    fn mistakes_name_their_path() {
        let other = Target { tenant: Some(Tenant::new("b").expect("token")), ..target() };
        for (value, target, expected) in [
            (json!([1]), target(), "an assignment is a JSON object"),
            (json!({"execution": {"runtime": "native", "comand": []}}), target(), "execution.comand: unknown field"),
            (json!({"execution": {"runtime": "native", "command": []}}), target(), "execution.command: the native runtime needs"),
            (json!({"execution": {"runtime": "slurm"}}), target(), "execution.runtime: slurm is not offered"),
            (json!({"execution": {"runtime": "docker"}}), target(), "execution.image: the docker runtime needs"),
            (json!({"tenant": "a", "execution": {"runtime": "bash", "script": ""}}), other, "tenant: the assignment says \"a\""),
        ] {
            let error = Ready::new(value.clone(), &target, Encoding::Json).expect_err("mistake");
            assert!(error.starts_with(expected), "{value}: {error}");
            assert!(!error.contains("line"), "{error}");
        }
    }
}
