//! `windlass bench`: many small tasks through the real fleet, and how long each step took.
//!
//! What it submits is its own (ids begin with `bench-`), and nothing else is touched. Whatever ends it early, it asks for what
//! is left to be canceled.

use std::time::Duration;

use clap::Args;
use futures_util::StreamExt as _;
use serde_json::json;
use tokio::time::Instant;

use super::args::{Target, positive};
use super::follow::Interrupts;
use super::output::{Style, Table};
use super::submit::Ready;
use super::{Exit, Failed, Global, Output};
use crate::bus::feed::{EventFeed, Stamped};
use crate::bus::submit::SubmitError;
use crate::bus::{Bus, BusError};
use crate::retry::Delays;
use crate::task::{ClassName, Priority, TaskId, Tenant};
use crate::wire::Encoding;
use figures::{Figures, Latency, Ledger};

mod figures;

/// How long nothing may have been started before we ask whether anybody serves the class.
const UNCLAIMED: Duration = Duration::from_secs(5);
/// How long a server that does not answer may take to take a task.
const SERVER_PATIENCE: Duration = Duration::from_secs(30);
/// Time between two words about how far it is.
const NOTICE: Duration = Duration::from_secs(2);

/// `windlass bench`
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    /// How many tasks
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub tasks: u32,
    /// Whose they are
    #[arg(long, default_value = "default")]
    pub tenant: Tenant,
    /// Their class
    #[arg(long, default_value = "cpu_short")]
    pub class: ClassName,
    /// Their queue: high, normal or low
    #[arg(long, default_value = "normal")]
    pub priority: Priority,
    /// Publishes under way at one time
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub concurrency: u32,
    /// What each runs: a program and its arguments, separated by spaces
    #[arg(long, value_name = "WORDS", default_value = "true")]
    pub command: String,
    /// Give up when for this many seconds nothing runs and nothing happens
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0, value_parser = positive)]
    pub patience: f64,
}

/// Why it ended before all tasks were over.
#[derive(Debug)]
enum Early {
    /// Somebody wants to leave.
    Interrupted,
    /// Nothing happens any more.
    Stuck,
    /// It cannot go on.
    Failed(Failed),
}

impl<E: Into<Failed>> From<E> for Early {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Runs the verb.
pub(super) async fn run(global: &Global, args: &BenchArgs, output: &mut Output) -> Result<Exit, Failed> {
    let run = format!("bench-{:x}", uuid::Uuid::now_v7().as_u128() >> 64);
    // What is wrong with the command is wrong with all.
    assignment(args, &run, 0)?;
    let (bus, _) = global.connect().await?;
    let interrupts = Interrupts::listen()?;
    // Before the first is queued, so that nothing is missed.
    let last = bus.last_sequence(&bus.subjects().events_stream()).await?;
    let mut bench = Bench {
        events: bus.event_feed(Some(&args.tenant), last + 1),
        ledger: Ledger::new(run.clone(), args.tasks as usize),
        publishing: Duration::ZERO,
        last: Instant::now(),
        asked: false,
        bus,
        args,
        output,
        run,
        interrupts,
    };
    let early = bench.measure().await.err();
    bench.end(early).await
}

/// The assignment with that number.
fn assignment(args: &BenchArgs, run: &str, number: usize) -> Result<Ready, Failed> {
    let command: Vec<&str> = args.command.split_whitespace().collect();
    let execution = json!({"runtime": "native", "command": command});
    let value = json!({"v": 1, "task_id": Ledger::id(run, number), "name": "bench", "execution": execution});
    let target = Target { tenant: Some(args.tenant.clone()), class: Some(args.class.clone()), priority: args.priority, id: None };
    Ready::new(value, &target, Encoding::Json).map_err(|error| Failed::new(Exit::Usage, error))
}

/// Queues one, and says how long that took. While the server does not answer it is sent again.
async fn queue(bus: &Bus, args: &BenchArgs, run: &str, number: usize) -> Result<(usize, Duration), Failed> {
    let ready = assignment(args, run, number)?;
    let begun = Instant::now();
    let mut delays = Delays::new(Duration::from_millis(100), Duration::from_secs(2));
    let mut again = false;
    loop {
        let sent = bus.publish_assignment(&ready.class, ready.priority, &ready.tenant, &ready.task_id, ready.encoding, ready.body.clone());
        match sent.await {
            Ok(_) => return Ok((number, begun.elapsed())),
            // The try that was not answered was stored.
            Err(SubmitError::AlreadyQueued) if again => return Ok((number, begun.elapsed())),
            Err(SubmitError::Bus(error)) if error.is_transient() && begun.elapsed() < SERVER_PATIENCE => {
                again = true;
                delays.wait().await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

struct Bench<'a> {
    bus: Bus,
    args: &'a BenchArgs,
    output: &'a Output,
    run: String,
    events: EventFeed,
    ledger: Ledger,
    /// How long all publishes took together.
    publishing: Duration,
    /// When something last happened to one of the tasks.
    last: Instant,
    /// The question who serves the class was asked.
    asked: bool,
    interrupts: Interrupts,
}

impl Bench<'_> {
    /// Submits all and waits until all are over.
    async fn measure(&mut self) -> Result<(), Early> {
        let (bus, args, run) = (self.bus.clone(), self.args, self.run.clone());
        let publishes = futures_util::stream::iter(0..args.tasks as usize).map(|number| queue(&bus, args, &run, number));
        let mut publishes = std::pin::pin!(publishes.buffer_unordered(args.concurrency as usize).fuse());
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        let begun = Instant::now();
        let mut told = begun;
        while !self.ledger.is_complete() {
            tokio::select! {
                Some(published) = publishes.next() => {
                    let (number, took) = published.map_err(Early::Failed)?;
                    self.ledger.published(number, took);
                    self.publishing = begun.elapsed();
                    self.last = Instant::now();
                }
                event = self.events.next() => self.take(event)?,
                () = self.interrupts.next() => return Err(Early::Interrupted),
                _ = ticks.tick() => {
                    self.look().await?;
                    if told.elapsed() >= NOTICE {
                        told = Instant::now();
                        self.output.notice(&format!("{} submitted, {} over, of {}", self.ledger.published, self.ledger.over, args.tasks));
                    }
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, event: Option<Result<Stamped, BusError>>) -> Result<(), Failed> {
        let closed = || Failed::new(Exit::Unreachable, "the events ended before the tasks did");
        if self.ledger.take(&event.ok_or_else(closed)??.head.event) {
            self.last = Instant::now();
        }
        Ok(())
    }

    /// Whether there is somebody to wait for.
    async fn look(&mut self) -> Result<(), Early> {
        let silent = self.last.elapsed();
        if self.ledger.started == 0 && silent >= UNCLAIMED && !self.asked {
            self.asked = true;
            if !self.is_served().await {
                let (class, patience) = (&self.args.class, self.args.patience);
                self.output.warn(&format!("no worker says that it serves class {class}; waiting for one, {patience} s at most"));
            }
        }
        if silent < Duration::from_secs_f64(self.args.patience) {
            return Ok(());
        }
        // What runs may take its time, as long as there is somebody who runs it.
        if self.ledger.running > 0 && self.is_served().await { Ok(()) } else { Err(Early::Stuck) }
    }

    /// True when a worker serves the class and takes work, or when nobody knows.
    async fn is_served(&self) -> bool {
        let serves = |classes: &[String]| classes.iter().any(|class| class == self.args.class.as_str());
        self.bus.workers().await.map_or(true, |workers| workers.iter().any(|w| !w.draining && serves(&w.classes)))
    }

    /// Cancels what is left, and says what was found.
    async fn end(mut self, early: Option<Early>) -> Result<Exit, Failed> {
        let served = early.is_none() || self.is_served().await;
        if early.is_some() {
            self.cancel().await;
        }
        if matches!(early, Some(Early::Interrupted)) && served {
            self.output.notice("canceling what is left; interrupt again to leave it");
            self.wait_for_canceled().await?;
        }
        let figures = self.ledger.figures(self.publishing);
        if self.ledger.started > 0 || early.is_none() {
            self.tell(&figures)?;
        }
        match early {
            None if figures.completed == self.args.tasks as usize => Ok(Exit::Done),
            None => Err(Failed::new(
                Exit::Error,
                format!("{} of {} tasks did not complete", figures.failed + figures.canceled, self.args.tasks),
            )
            .hint(format!("`windlass events` shows why; their ids begin with {}", self.run))),
            Some(Early::Failed(failed)) => Err(failed),
            Some(Early::Interrupted) => Ok(Exit::Interrupted),
            Some(Early::Stuck) => Err(self.stuck(served, &figures)),
        }
    }

    fn stuck(&self, served: bool, figures: &Figures) -> Failed {
        let (class, patience) = (&self.args.class, self.args.patience);
        let message = match (served, self.ledger.started) {
            (false, _) => format!("no worker serves class {class}, and nothing has happened for {patience} s"),
            (true, 0) => format!("no worker has started one for {patience} s, although one says that it serves class {class}"),
            (true, _) => format!("nothing has happened for {patience} s"),
        };
        let left = figures.unfinished;
        Failed::new(Exit::TimedOut, format!("{message}; {left} tasks are not over"))
            .hint("their cancellation is asked for: they end when a worker comes to them, and do not run")
    }

    /// Asks for everything that may be left to be canceled. What cannot be asked for is told.
    async fn cancel(&self) {
        let left = self.ledger.left(self.args.concurrency as usize);
        let cancel = |task: TaskId| async move { self.bus.cancel(&self.args.tenant, &task, Some("`windlass bench` ended early")).await };
        let mut asked = futures_util::stream::iter(left).map(cancel).buffer_unordered(self.args.concurrency as usize);
        while let Some(answer) = asked.next().await {
            if let Err(error) = answer {
                self.output.warn(&format!("cannot cancel what is left: {error}"));
                return;
            }
        }
    }

    /// Until what was queued is over, somebody has enough, or nothing happens any more.
    async fn wait_for_canceled(&mut self) -> Result<(), Failed> {
        while self.ledger.over < self.ledger.published {
            let patience = self.last + Duration::from_secs_f64(self.args.patience);
            tokio::select! {
                event = self.events.next() => self.take(event)?,
                () = self.interrupts.next() => break,
                () = tokio::time::sleep_until(patience) => break,
            }
        }
        Ok(())
    }

    fn tell(&self, figures: &Figures) -> std::io::Result<()> {
        if self.output.is_json() {
            let mut value = json!(figures);
            for (key, own) in [
                ("run", json!(self.run)),
                ("tasks", json!(self.args.tasks)),
                ("tenant", json!(self.args.tenant)),
                ("class", json!(self.args.class)),
                ("priority", json!(self.args.priority)),
                ("concurrency", json!(self.args.concurrency)),
                ("command", json!(self.args.command.split_whitespace().collect::<Vec<_>>())),
            ] {
                value[key] = own;
            }
            return self.output.json(&value);
        }
        self.output.table(&summary(&self.run, figures))?;
        self.output.line("")?;
        self.output.table(&latency_table(figures))
    }
}

fn summary(run: &str, figures: &Figures) -> Table {
    let mut table = Table::pairs();
    table.pair("tasks", Some(format!("{run}-0 …")));
    for (key, n) in [("submitted", figures.submitted), ("completed", figures.completed)] {
        table.pair(key, Some(n));
    }
    for (key, n) in [("failed", figures.failed), ("canceled", figures.canceled), ("not over", figures.unfinished)] {
        if n > 0 {
            table.row(vec![(key.to_owned(), Style::Dim), (n.to_string(), Style::Red)]);
        }
    }
    table.pair("submitted per second", figures.submitted_per_s.map(|rate| format!("{rate:.1}")));
    table.pair("completed per second", figures.completed_per_s.map(|rate| format!("{rate:.1}")));
    table
}

fn latency_table(figures: &Figures) -> Table {
    let mut table = Table::new(&["MILLISECONDS", "P50", "P90", "P99", "MAX"]);
    let l = &figures.latency_ms;
    for (name, latency) in [
        ("publish", l.publish),
        ("queue wait", l.queue_wait),
        ("publish to started", l.publish_to_started),
        ("started to completed", l.started_to_completed),
        ("end to end", l.end_to_end),
    ] {
        let Some(Latency { p50, p90, p99, max }) = latency else { continue };
        let figures = [p50, p90, p99, max].map(|ms| (format!("{ms:.1}"), Style::Plain));
        table.row([(name.to_owned(), Style::Plain)].into_iter().chain(figures).collect());
    }
    table
}
