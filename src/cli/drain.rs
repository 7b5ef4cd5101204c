//! `windlass drain`: asks a worker to take no more work and to end when it has none.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::time::Instant;

use super::args::positive;
use super::follow::{Interrupts, after};
use super::{Exit, Failed, Global, Output};
use crate::bus::command::{WorkerAnswer, WorkerRequest, WorkerState};
use crate::bus::{Bus, BusError};
use crate::task::WorkerId;

/// How often a worker that is waited for is asked again.
const LOOK: Duration = Duration::from_millis(500);
/// A process of a name that others answer for is gone when it was not among them so many times in a row.
const MISSES: u32 = 3;

/// Nothing heard of NATS for so long while waiting: it may have gone with the worker (`windlass dev`), and nothing can be known.
const PATIENCE: Duration = Duration::from_secs(20);

/// `windlass drain`
#[derive(Debug, Clone, Args)]
pub struct DrainArgs {
    /// The worker's name, as `windlass workers` shows it
    pub worker: WorkerId,
    /// Do not let running tasks end: kill them and give them back
    #[arg(long)]
    pub now: bool,
    /// Only this process, where several bear the name
    #[arg(long, value_name = "ID")]
    pub instance: Option<String>,
    /// Wait until it is gone
    #[arg(long)]
    pub wait: bool,
    /// Wait no longer than this many seconds, then exit with 124
    #[arg(long, value_name = "SECONDS", requires = "wait", value_parser = positive)]
    pub wait_timeout: Option<f64>,
}

/// Runs the verb.
pub(super) async fn run(global: &Global, args: &DrainArgs, output: &Output) -> Result<Exit, Failed> {
    let (bus, _) = global.connect().await?;
    let request = WorkerRequest { v: 1, action: "drain".to_owned(), now: args.now, instance: args.instance.clone() };
    let answers = match bus.ask_worker(&args.worker, &request).await {
        Ok(answers) if answers.is_empty() => return Err(unknown(args)),
        Ok(answers) => answers,
        // Others of that name say nothing to a request that is not for them.
        Err(BusError::TimedOut { .. }) if args.instance.is_some() => return Err(unknown(args)),
        Err(error) => return Err(silent(error, args)),
    };
    if let Some(refusal) = answers.iter().find(|answer| !answer.ok) {
        let why = refusal.error.as_deref().unwrap_or("it does not say why");
        return Err(Failed::new(Exit::Conflict, format!("worker {} refuses: {why}", args.worker)));
    }
    if !output.is_json() {
        for answer in &answers {
            output.line(&as_line(answer))?;
        }
    }
    if args.wait {
        wait(&bus, args, &answers, output).await?;
    }
    for answer in answers.iter().filter(|_| output.is_json()) {
        output.json(&json!({
            "worker_id": answer.worker_id, "instance": answer.instance, "host": answer.host, "state": answer.state,
            "running": answer.running, "drain_timeout_s": answer.drain_timeout_s, "gone": args.wait,
        }))?;
    }
    Ok(Exit::Done)
}

fn unknown(args: &DrainArgs) -> Failed {
    let which = args.instance.as_ref().map(|instance| format!(" with instance {instance}")).unwrap_or_default();
    Failed::new(Exit::NotFound, format!("no worker {}{which} is there", args.worker)).hint("`windlass workers` shows who is there")
}

fn silent(error: BusError, args: &DrainArgs) -> Failed {
    if matches!(error, BusError::TimedOut { .. }) {
        return Failed::new(Exit::Unreachable, format!("worker {} does not answer", args.worker))
            .hint("it is frozen or too busy, or these credentials may not publish to its subject");
    }
    error.into()
}

fn as_line(answer: &WorkerAnswer) -> String {
    let (worker, instance, host, running) = (&answer.worker_id, &answer.instance, &answer.host, answer.running);
    let text = match answer.state {
        WorkerState::Ready => format!("worker {worker} takes work; {running} running ({instance} on {host})"),
        WorkerState::Draining => {
            let most = super::render::duration(Duration::try_from_secs_f64(answer.drain_timeout_s).unwrap_or(Duration::MAX));
            format!("worker {worker} drains: {running} running, for at most {most} ({instance} on {host})")
        }
        WorkerState::Leaving => format!("worker {worker} stops what runs: {running} running ({instance} on {host})"),
        WorkerState::Aborting => format!("worker {worker} kills what runs: {running} running ({instance} on {host})"),
    };
    super::output::visible(&text)
}

async fn wait(bus: &Bus, args: &DrainArgs, answers: &[WorkerAnswer], output: &Output) -> Result<(), Failed> {
    let mut interrupts = Interrupts::listen()?;
    let goes_on = "the worker goes on with its end";
    tokio::select! {
        gone = until_gone(bus, &args.worker, answers, output) => gone.map_err(Failed::from),
        () = interrupts.next() => Err(Failed::new(Exit::Interrupted, format!("interrupted; {goes_on}"))),
        () = after(args.wait_timeout) => Err(Failed::new(Exit::TimedOut, format!("waited long enough; {goes_on}"))),
    }
}

async fn until_gone(bus: &Bus, worker: &WorkerId, answers: &[WorkerAnswer], output: &Output) -> Result<(), BusError> {
    let mut awaited = Awaited::new(answers);
    let request = WorkerRequest { v: 1, action: "status".to_owned(), now: false, instance: None };
    let (mut running, mut contact) = (None, Instant::now());
    loop {
        match bus.ask_worker(worker, &request).await {
            Ok(answers) => {
                contact = Instant::now();
                awaited.heard(&answers);
                let now: u32 = answers.iter().filter(|answer| awaited.is_awaited(answer)).map(|answer| answer.running).sum();
                if running.replace(now) != Some(now) && !awaited.is_over() {
                    output.notice(&format!("{now} running"));
                }
            }
            // Frozen, or cut off: its presence goes away by itself.
            Err(error) if error.is_transient() => match bus.workers().await {
                Ok(workers) if workers.iter().all(|presence| presence.worker_id != *worker) => return Ok(()),
                Ok(_) => contact = Instant::now(),
                Err(error) if contact.elapsed() > PATIENCE => return Err(error),
                Err(_) => {}
            },
            Err(error) => return Err(error),
        }
        if awaited.is_over() {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The processes that are waited for, with how often each was missing of late.
#[derive(Debug)]
struct Awaited(BTreeMap<String, u32>);

impl Awaited {
    fn new(answers: &[WorkerAnswer]) -> Self {
        Self(answers.iter().map(|answer| (answer.instance.clone(), 0)).collect())
    }

    fn is_awaited(&self, answer: &WorkerAnswer) -> bool {
        self.0.contains_key(&answer.instance)
    }

    fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes what everybody of the name answered; nobody at all means that nobody listens.
    fn heard(&mut self, answers: &[WorkerAnswer]) {
        if answers.is_empty() {
            self.0.clear();
        }
        self.0.retain(|instance, missing| {
            *missing = if answers.iter().any(|answer| answer.instance == *instance) { 0 } else { *missing + 1 };
            *missing < MISSES
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(instance: &str) -> WorkerAnswer {
        WorkerAnswer {
            v: 1,
            ok: true,
            error: None,
            worker_id: WorkerId::new("w").unwrap(),
            instance: instance.to_owned(),
            host: "h".to_owned(),
            state: WorkerState::Draining,
            running: 2,
            drain_timeout_s: 60.0,
        }
    }

    #[test]
    fn a_successor_of_the_same_name_is_not_waited_for() {
        let mut awaited = Awaited::new(&[answer("old")]);
        awaited.heard(&[answer("old"), answer("new")]);
        for _ in 1..MISSES {
            awaited.heard(&[answer("new")]);
            assert!(!awaited.is_over(), "its answer may be late");
        }
        awaited.heard(&[answer("new")]);
        assert!(awaited.is_over());
        let mut awaited = Awaited::new(&[answer("a"), answer("b")]);
        awaited.heard(&[]);
        assert!(awaited.is_over(), "nobody listens");
    }

    #[test]
    fn an_answer_is_told_in_a_line() {
        assert_eq!(as_line(&answer("i\u{1b}")), "worker w drains: 2 running, for at most 1 min 0 s (i\u{fffd} on h)");
    }
}
