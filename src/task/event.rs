//! Events: what a worker says about a task, one chain per task.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::limits::{Limits, Usage};
use super::stage::StageEntry;
use super::{ClassName, Outcome, Profile, Reason, TaskId, Tenant, Time, WorkerId};

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// An attempt was claimed; the stream sequence of this event is its fencing token.
    TaskStarted,
    /// The task reported progress.
    TaskProgress,
    /// The attempt failed and another follows.
    TaskRetrying,
    /// The worker gave the task back unfinished; the attempt does not count.
    TaskReleased,
    /// The end: it worked.
    TaskCompleted,
    /// The end: it did not work.
    TaskFailed,
}

impl EventKind {
    /// The last token of the subject, and the `event` field.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TaskStarted => "task_started",
            Self::TaskProgress => "task_progress",
            Self::TaskRetrying => "task_retrying",
            Self::TaskReleased => "task_released",
            Self::TaskCompleted => "task_completed",
            Self::TaskFailed => "task_failed",
        }
    }

    /// True for the two that end a chain.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::TaskCompleted | Self::TaskFailed)
    }
}

impl std::fmt::Display for EventKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One event. Which of the optional parts are there depends on `event`; `docs/protocol.md` has the table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// Version of the contract, 1.
    pub v: u32,
    /// What happened.
    pub event: EventKind,
    /// `<task_id>.<attempt>.<event>`; of progress events `<task_id>.<attempt>.task_progress.<seq>`.
    pub id: String,
    /// When, by the worker's clock.
    pub time: Time,
    /// Position in the task's chain, from 0.
    pub seq: u64,
    /// Random per attempt: with the stream sequence of `task_started` it is the fencing token.
    pub nonce: String,
    /// SHA-256 of the previous event's body, hex; null for the first.
    pub prev_sha256: Option<String>,
    /// Which task.
    pub task: TaskInfo,
    /// Who says so.
    pub worker: WorkerInfo,
    /// How it ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunInfo>,
    /// `completed` or `failed`, in the events that end a chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    /// Whose doing the end was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Exit status of the task's process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// How far it came: `validate`, `prepare`, `execute`, `finalize`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// One line for people: what went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// One line for people: what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The end of standard error, 4 KiB at most; invalid UTF-8 is replaced here (the chunks are exact).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr_tail: Option<String>,
    /// What it used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// Where the output is, and the proof that it is whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logs: Option<Manifest>,
    /// Where a person can read the output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logs_url: Option<String>,
    /// What the task gave back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<TaskResult>,
    /// Stage history of the attempt.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<StageEntry>,
    /// Whether another attempt follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetryInfo>,
    /// In `task_progress`: what the task said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// In `task_started`: the assignment as it was published, so that a task whose message was lost can be queued again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assignment: Option<RawAssignment>,
    /// Names of fields that were shortened or left out because the event would have exceeded the server's `max_payload`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shortened: Vec<String>,
}

/// The task an event is about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TaskInfo {
    /// The task.
    pub task_id: TaskId,
    /// Whose.
    pub tenant: Tenant,
    /// Its class.
    pub class: ClassName,
    /// Publisher's grouping.
    pub workflow_id: Option<String>,
    /// Publisher's context.
    pub context: Value,
    /// Name for people.
    pub name: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Attempt, from 1; 0 when the task ended before any attempt.
    pub attempt: u32,
    /// Attempts that may be made.
    pub max_attempts: u32,
    /// Earlier attempts that were released and do not count against `max_attempts`.
    #[serde(default)]
    pub released_attempts: u32,
    /// How often the queue handed the message out.
    pub deliveries: u64,
    /// When the message was stored in the queue.
    pub submitted_at: Time,
    /// SHA-256 of the message's payload, hex.
    pub assignment_sha256: String,
}

/// The worker that writes the event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerInfo {
    /// Its stable name.
    pub worker_id: WorkerId,
    /// One per process.
    pub instance: String,
    /// Host name.
    pub host: String,
    /// Windlass version.
    pub version: String,
}

/// How an attempt ran.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunInfo {
    /// Runtime.
    pub runtime: super::assignment::Runtime,
    /// Container image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Digest of what ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<String>,
    /// Container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_id: Option<String>,
    /// Process id on the worker's host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Devices.
    #[serde(default)]
    pub gpus: Vec<String>,
    /// Sandbox of a native task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<Profile>,
    /// Parts of that sandbox that its worker could not give and was allowed to do without.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sandbox_missing: Vec<String>,
    /// Limits in force; null when the task ended before it was planned.
    pub limits: Option<Limits>,
    /// From queue to claim, milliseconds.
    pub queued_ms: u64,
    /// From claim to start of the process, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prepare_ms: Option<u64>,
    /// Start of the process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// Its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// Its run time by the monotonic clock, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
}

/// How a chain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It worked.
    Completed,
    /// It did not.
    Failed,
}

/// The proof of an attempt's output: what a reader must have seen to have everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Manifest {
    /// Subject filter of the chunks.
    pub subject: String,
    /// Stream sequence of the attempt's `task_started`: only chunks with this `fence` count.
    pub fence: u64,
    /// Chunks over all streams.
    pub chunks: u64,
    /// Standard output.
    pub stdout: StreamManifest,
    /// Standard error.
    pub stderr: StreamManifest,
    /// Notices of the worker about the output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<StreamManifest>,
}

impl Manifest {
    /// What is missing of the task's output, over all streams.
    #[must_use]
    pub fn dropped_bytes(&self) -> u64 {
        let system = self.system.as_ref().map_or(0, |s| s.dropped_bytes);
        self.stdout.dropped_bytes + self.stderr.dropped_bytes + system
    }
}

/// The proof of one stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StreamManifest {
    /// Published bytes.
    pub bytes: u64,
    /// Chunks of this stream.
    pub chunks: u64,
    /// SHA-256 of the published bytes, hex.
    pub sha256: String,
    /// Bytes between head and tail that the log cap left out.
    pub dropped_bytes: u64,
}

/// What a task gave back in `WINDLASS_RESULT`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TaskResult {
    /// Run time of the process, milliseconds.
    pub latency_ms: u64,
    /// Stored outputs.
    pub outputs: Vec<Value>,
    /// The member `metrics` of the result file, where it is an object.
    pub metrics: Value,
    /// The whole result file.
    pub value: Value,
}

/// Whether another attempt follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RetryInfo {
    /// True in `task_retrying` only.
    pub will_retry: bool,
    /// The attempt that follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt: Option<u32>,
    /// It will not start earlier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Time>,
}

/// One line of `WINDLASS_PROGRESS`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Progress {
    /// The task's own stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// Percentage, 0 to 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pct: Option<f64>,
    /// Text for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// An assignment's bytes inside an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RawAssignment {
    /// Subject that it was published to.
    pub subject: String,
    /// `application/json` or `application/vnd.msgpack`.
    pub content_type: String,
    /// `utf8` or `base64`.
    pub encoding: String,
    /// The payload.
    pub data: String,
}
