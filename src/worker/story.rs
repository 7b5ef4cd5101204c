//! Events of one task as this worker tells them.

use base64::Engine as _;
use serde_json::Value;

use crate::bus::chain::Link;
use crate::bus::delivery::Delivery;
use crate::claim::Attempt;
use crate::execute::native::sandbox::{Finding, Report};
use crate::intake::Task;
use crate::plan::Plan;
use crate::task::event::{Event, EventKind, RawAssignment, RunInfo, Status, TaskInfo, WorkerInfo};
use crate::task::{Reason, TaskId, Tenant, Time};
use crate::wire::{Encoding, sha256_hex};

/// Largest assignment that `task_started` carries, bytes.
const MAX_CARRIED: usize = 64 * 1024;

/// Everything that the events of one attempt have in common.
#[derive(Debug, Clone)]
pub struct Story {
    task: TaskInfo,
    worker: WorkerInfo,
    /// Random, the same in all events of the attempt.
    pub nonce: String,
}

impl Story {
    /// Of an attempt of `task`.
    #[must_use]
    pub fn new(worker: &WorkerInfo, task: &Task, delivery: &Delivery, attempt: Attempt, max_attempts: u32) -> Self {
        Self::of(task_info(task, attempt, max_attempts, (delivery.deliveries, delivery.submitted_at)), worker)
    }

    /// Of a message that is no task.
    #[must_use]
    pub fn of_poison(
        worker: &WorkerInfo,
        names: (&Tenant, &TaskId, &crate::task::ClassName),
        delivery: &Delivery,
        attempt: Attempt,
    ) -> Self {
        let info = TaskInfo {
            task_id: names.1.clone(),
            tenant: names.0.clone(),
            class: names.2.clone(),
            workflow_id: None,
            context: Value::Null,
            name: None,
            labels: std::collections::BTreeMap::new(),
            attempt: attempt.number,
            max_attempts: 0,
            released_attempts: attempt.released,
            deliveries: delivery.deliveries,
            submitted_at: delivery.submitted_at,
            assignment_sha256: sha256_hex(&delivery.payload),
        };
        Self::of(info, worker)
    }

    /// Goes on with what an earlier event says of the task.
    #[must_use]
    pub fn of(task: TaskInfo, worker: &WorkerInfo) -> Self {
        Self {
            task,
            worker: worker.clone(),
            nonce: uuid::Uuid::now_v7().simple().to_string() + &uuid::Uuid::now_v7().simple().to_string()[24..],
        }
    }

    /// The attempt that the events are about.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.task.attempt
    }

    /// An event with what all have in common.
    #[must_use]
    pub fn event(&self, kind: EventKind, link: Link) -> Event {
        let id = match kind {
            EventKind::TaskProgress => format!("{}.{}.{kind}.{}", self.task.task_id, self.task.attempt, link.seq),
            EventKind::TaskStarted
            | EventKind::TaskRetrying
            | EventKind::TaskReleased
            | EventKind::TaskCompleted
            | EventKind::TaskFailed => {
                format!("{}.{}.{kind}", self.task.task_id, self.task.attempt)
            }
        };
        Event {
            v: 1,
            event: kind,
            id,
            time: Time::now(),
            seq: link.seq,
            nonce: self.nonce.clone(),
            prev_sha256: link.prev_sha256,
            task: self.task.clone(),
            worker: self.worker.clone(),
            run: None,
            status: None,
            outcome: None,
            reason: None,
            exit_code: None,
            signal: None,
            phase: None,
            error: None,
            hint: None,
            stderr_tail: None,
            usage: None,
            logs: None,
            logs_url: None,
            result: None,
            stages: vec![],
            retry: None,
            progress: None,
            assignment: None,
            shortened: vec![],
        }
    }

    /// `task_failed` for a task that is not run.
    #[must_use]
    pub fn not_run(&self, reason: Reason, error: &str, hint: Option<&str>, link: Link) -> Event {
        Event {
            status: Some(Status::Failed),
            outcome: Some(reason.outcome()),
            reason: Some(reason),
            phase: Some("validate".to_owned()),
            error: Some(error.to_owned()),
            hint: hint.map(str::to_owned),
            retry: Some(crate::task::event::RetryInfo { will_retry: false, next_attempt: None, not_before: None }),
            ..self.event(EventKind::TaskFailed, link)
        }
    }
}

/// What the events of an attempt say of its task. `handed` is the count of its delivery and when its message was stored.
pub(crate) fn task_info(task: &Task, attempt: Attempt, max_attempts: u32, handed: (u64, Time)) -> TaskInfo {
    let a = &task.assignment;
    TaskInfo {
        task_id: task.task_id.clone(),
        tenant: task.tenant.clone(),
        class: task.class.clone(),
        workflow_id: a.workflow_id.clone(),
        context: a.context.clone(),
        name: a.name.clone(),
        labels: a.labels.clone(),
        attempt: attempt.number,
        max_attempts,
        released_attempts: attempt.released,
        deliveries: handed.0,
        submitted_at: handed.1,
        assignment_sha256: task.sha256.clone(),
    }
}

/// What an attempt's `run` says at its start, `now` by the server's clock.
#[must_use]
pub fn run_info(task: &Task, delivery: &Delivery, plan: &Plan, sandbox: &Report, now: Time) -> RunInfo {
    let queued = now.after(delivery.submitted_at);
    // A container has the engine's isolation, not the profile of its class.
    let profile = plan.container.is_none().then_some(plan.sandbox.value);
    RunInfo {
        runtime: task.assignment.execution.runtime,
        image: plan.container.as_ref().map(|container| container.image.to_string()),
        image_digest: None,
        container_id: None,
        pid: None,
        gpus: vec![],
        sandbox: profile,
        sandbox_missing: profile.and_then(|profile| sandbox.of(profile)).map(Finding::without).unwrap_or_default(),
        limits: Some(plan.limits()),
        queued_ms: u64::try_from(queued.as_millis()).unwrap_or(u64::MAX),
        prepare_ms: None,
        started_at: None,
        finished_at: None,
        duration_ms: None,
    }
}

/// The assignment as `task_started` carries it; none when it is large.
#[must_use]
pub fn carried(delivery: &Delivery) -> Option<RawAssignment> {
    if delivery.payload.len() > MAX_CARRIED {
        return None;
    }
    let content_type = Encoding::detect(delivery.header("Content-Type"), &delivery.payload).ok()?.content_type().to_owned();
    let (encoding, data) = match std::str::from_utf8(&delivery.payload) {
        Ok(text) => ("utf8", text.to_owned()),
        Err(_) => ("base64", base64::engine::general_purpose::STANDARD.encode(&delivery.payload)),
    };
    Some(RawAssignment { subject: delivery.subject.clone(), content_type, encoding: encoding.to_owned(), data })
}
