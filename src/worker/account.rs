//! What there is to say about an attempt that has ended, and how it is put into an event.

use std::io::ErrorKind;
use std::time::Duration;

use super::run::millis;
use crate::execute::docker::{Refusal, refusal};
use crate::execute::native;
use crate::mask::Masker;
use crate::plan::Plan;
use crate::report::{AllChunksConfirmed, Fault, Recorded, ReportError};
use crate::supervisor::protocol::{ExitReport, ExitStatus};
use crate::task::Reason;
use crate::task::event::{Event, Manifest, RunInfo, TaskResult};
use crate::task::limits::Usage;
use crate::task::stage::{Stage, StageEntry};
use crate::telemetry::causes;

/// What is to be said about a finished attempt.
#[derive(Debug)]
pub struct Account {
    /// Typed.
    pub reason: Reason,
    /// For people.
    pub error: Option<String>,
    /// What to do.
    pub hint: Option<String>,
    /// How far it came.
    pub phase: &'static str,
    /// How it ran.
    pub run: RunInfo,
    /// Status of its process.
    pub status: Option<ExitStatus>,
    /// What it used.
    pub usage: Option<Usage>,
    /// End of its standard error.
    pub stderr_tail: Option<String>,
    /// What a reader must find of its output.
    pub manifest: Option<Manifest>,
    /// That all of it is stored.
    pub chunks: Option<AllChunksConfirmed>,
    /// What it gave back.
    pub result: Option<TaskResult>,
    /// Stage history.
    pub stages: Vec<StageEntry>,
}

impl Account {
    pub(super) fn failed(reason: Reason, error: String, phase: &'static str, run: RunInfo, stages: Vec<StageEntry>) -> Self {
        Self {
            reason,
            error: Some(error),
            hint: None,
            phase,
            run,
            status: None,
            usage: None,
            stderr_tail: None,
            manifest: None,
            chunks: None,
            result: None,
            stages,
        }
    }

    /// Without the task's secrets: every text that the task, or an error about it, could have put one into. Output and its
    /// excerpt, and progress, were masked as they came.
    #[must_use]
    pub fn masked(mut self, mask: &Masker) -> Self {
        [&mut self.error, &mut self.hint].into_iter().flatten().for_each(|text| mask.text(text));
        if let Some(result) = &mut self.result {
            mask.json(&mut result.value);
            mask.json(&mut result.metrics);
        }
        self
    }

    /// Puts the account into an event.
    #[must_use]
    pub fn tell(self, event: Event) -> Event {
        self.tell_with(event).0
    }

    /// Likewise, with the proof of its output for the receipt.
    #[must_use]
    pub fn tell_with(self, mut event: Event) -> (Event, Option<AllChunksConfirmed>) {
        (event.exit_code, event.signal) = match self.status {
            Some(ExitStatus::Code(code)) => (Some(code), None),
            Some(ExitStatus::Signal(signal)) => (None, Some(signal)),
            None => (None, None),
        };
        event.outcome = Some(self.reason.outcome());
        event.reason = Some(self.reason);
        event.phase = Some(self.phase.to_owned());
        event.error = self.error;
        event.hint = self.hint;
        event.run = Some(self.run);
        event.usage = self.usage;
        event.stderr_tail = self.stderr_tail.filter(|tail| !tail.is_empty());
        event.logs = self.manifest;
        event.result = self.result;
        event.stages = self.stages;
        (event, self.chunks)
    }
}

/// Why the process was told to stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stopped {
    Timeout,
    Deadline,
    Canceled(Option<String>),
    Leaving,
    Lost,
    Output,
    /// A service that it needs has ended.
    Deserted(Refusal),
    /// By nobody here: what ran it went away under it.
    Broken(String),
}

/// How a process ended.
pub(super) struct Exit<'a> {
    /// By whom.
    pub(super) stopped: Option<Stopped>,
    /// What the supervisor says.
    pub(super) report: &'a ExitReport,
    /// Whether its work directory could be written when it had failed.
    pub(super) disk: std::io::Result<()>,
    /// How long it ran.
    pub(super) duration: Duration,
}

/// What an ended process, its output and its result amount to.
pub(super) fn judge(
    mut account: Account,
    recorded: Result<Recorded, ReportError>,
    result: Result<Option<serde_json::Value>, String>,
    exit: &Exit<'_>,
    plan: &Plan,
) -> Account {
    (account.reason, account.error, account.hint) = verdict(exit.stopped.clone(), exit.report, plan, account.stderr_tail.as_deref());
    match result {
        Ok(value) => {
            account.result = value.map(|value| TaskResult {
                latency_ms: millis(exit.duration),
                outputs: vec![],
                metrics: value.get("metrics").filter(|m| m.is_object()).cloned().unwrap_or_default(),
                value,
            });
        }
        // A task that failed anyway is told why it failed, not that its result is broken.
        Err(error) if account.reason == Reason::Ok => {
            (account.reason, account.error, account.phase) = (Reason::ResultInvalid, Some(error), "finalize");
        }
        Err(_) => {}
    }
    // Whoever filled or broke it: the task may be another one's victim, and is tried again.
    if let (Err(error), Reason::ExitNonzero | Reason::Signaled) = (&exit.disk, account.reason) {
        let ended = account.error.take().unwrap_or_default();
        account.error = Some(format!("{ended}, and its work directory cannot be written: {error}"));
        account.hint = Some("look at the disk below worker.state_dir of that worker, or make the task write less".to_owned());
        let full = matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
        account.reason = if full { Reason::DiskFull } else { Reason::WorkspaceFailed };
    }
    match recorded {
        Ok(recorded) => (account.manifest, account.chunks) = (Some(recorded.manifest), Some(recorded.proof)),
        Err(ReportError { fault, published, .. }) => {
            let reason = match fault {
                Fault::DiskFull { .. } => Reason::DiskFull,
                // Somebody lowered max_payload under way: the next attempt cuts smaller chunks.
                Fault::Refused { .. } => Reason::OutputFailed,
                // The disk, not a defect: another attempt, at best on another worker, may do better.
                Fault::Spool { .. } => Reason::WorkspaceFailed,
                Fault::Pipe { .. } | Fault::Internal(_) => Reason::Internal,
            };
            (account.reason, account.error, account.phase) =
                (reason, Some(format!("output is incomplete: {}", causes(&fault))), "finalize");
            (account.manifest, account.chunks) = published.map(|p| *p).unzip();
        }
    }
    account.stages.push(Stage::Done.entered());
    account
}

fn verdict(stopped: Option<Stopped>, report: &ExitReport, plan: &Plan, stderr: Option<&str>) -> (Reason, Option<String>, Option<String>) {
    match stopped {
        Some(Stopped::Timeout) => {
            let error = format!("still running after {} ms", plan.bounds.timeout_ms.value);
            (Reason::Timeout, Some(error), Some("raise execution.timeout_s, or make the task faster".to_owned()))
        }
        Some(Stopped::Deadline) => (Reason::DeadlinePassed, Some("still running at its deadline".to_owned()), None),
        Some(Stopped::Canceled(reason)) => {
            let why = reason.map_or_else(String::new, |reason| format!(": {reason}"));
            (Reason::Canceled, Some(format!("canceled while running{why}")), None)
        }
        Some(Stopped::Deserted(error)) => (error.reason, Some(error.error), Some(error.hint)),
        Some(Stopped::Broken(error)) => {
            let hint = "look at the container engine of that worker; the task is tried again".to_owned();
            (Reason::DockerUnavailable, Some(error), Some(hint))
        }
        Some(Stopped::Output | Stopped::Leaving | Stopped::Lost) | None => {
            let unstarted = plan.container.as_ref().and_then(|_| unstarted(report, stderr));
            unstarted.unwrap_or_else(|| by_itself(report, plan))
        }
    }
}

/// A program that the init of its container could not start.
fn unstarted(report: &ExitReport, stderr: Option<&str>) -> Option<(Reason, Option<String>, Option<String>)> {
    let ExitStatus::Code(code) = report.status else { return None };
    let refusal = refusal::of_init(code, stderr.unwrap_or_default())?;
    Some((refusal.reason, Some(refusal.error), Some(refusal.hint)))
}

/// A program that ended by itself or by the kernel.
fn by_itself(report: &ExitReport, plan: &Plan) -> (Reason, Option<String>, Option<String>) {
    let reason = native::reason_of_exit(report);
    let (error, hint) = match (reason, report.status) {
        (Reason::Ok, _) => return (reason, None, None),
        (Reason::OomKilled, _) => (
            format!("killed by the kernel at its memory limit of {}", plan.bounds.memory.value),
            "raise execution.resources.memory, or make the task use less",
        ),
        (_, ExitStatus::Code(code)) => (format!("exit status {code}"), "see stderr_tail and the log"),
        (_, ExitStatus::Signal(signal)) => (format!("ended by signal {signal}"), "see stderr_tail and the log"),
    };
    (reason, Some(error), Some(hint.to_owned()))
}
