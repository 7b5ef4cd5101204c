//! Windlass: stateless workers that pull tasks from NATS JetStream, run them under real limits, and
//! acknowledge only what is durably published.
//!
//! # The way of a task
//!
//! ```text
//!  TASKS ──pull──▶ intake ─▶ plan ─▶ claim ─▶ prepare ─▶ execute ─▶ report ─▶ settle ──ack──▶ TASKS
//!                    │      (pure)     │                    │          │         │
//!                    ▼                 ▼                 supervisor    ▼         ▼
//!                  DEAD      EVENTS: task_started        and cgroup   LOGS   EVENTS: the end
//! ```
//!
//! Each stage is a module with a front page, and takes the value that the one before it made:
//! [`Delivery`](bus::delivery::Delivery) → [`Task`](intake::Task) → [`Plan`](plan::Plan) → claim →
//! [`Launch`](prepare::Launch) → [`ExitReport`](supervisor::protocol::ExitReport) → [`Recorded`](report::Recorded) →
//! [`Receipt`](report::Receipt) → ack. [`worker`] composes them; cancellation, loss of the lease and the worker's own end
//! run against the flow, as signals that reach a stage through its own handle.
//!
//! # Invariants
//!
//! 1. **No ack without a receipt.** A [`Receipt`](report::Receipt) exists only when the terminal event, and before it every
//!    chunk of its manifest, were confirmed stored, or when the chain was read back as ended, or when a dead letter was
//!    confirmed. A [`Lease`](intake::Lease) is move-only; dropping it acknowledges nothing. JetStream accepts an ack from a
//!    stale delivery and deletes the message: only this rule protects it.
//! 2. **Claim before side effects.** Nothing is fetched, made or run before `task_started` was appended by compare-and-set.
//! 3. **One owner, one chain.** Every event is appended on the task's chain by compare-and-set. Who loses it stops the task
//!    and sends nothing: no event, no ack, no nak.
//! 4. **Renew or stop.** Renewals are confirmed by the server; without one the task is stopped before the lease's end, by
//!    the supervisor if the worker stands still.
//! 5. **Capacity before pull.** A permit is held before a message is asked for.
//! 6. **Everything has an owner and a label.** Cgroups, containers, directories and spools carry instance, task and attempt; a lock tells
//!    whether their owner lives, and whoever finds it dead removes them.
//! 7. **Bounded memory.** Output goes to a disk spool first; a slow or absent broker neither blocks a task nor grows the worker.
//! 8. **Only masked bytes leave.** There is one place in [`report`] where bytes pass before spool, chunk and excerpt; an
//!    attempt's [`mask`] is also applied to its result, progress and errors, and to the worker's own log.
//! 9. **Every bad input has a name.** Typed reason, event, dead letter, ack. Never a crash, never silence.
//! 10. **A limit that could not be set is a failure.** Limits are read back; a task does not run with less than it was promised.
//!
//! # Where to look
//!
//! [`task`] is the vocabulary, pure. [`wire`] turns it into bytes, [`bus`] talks to NATS, [`execute`] and [`supervisor`] to the
//! kernel. [`cli`] has a file for each verb; [`doctor`] judges what it gathered, [`telemetry`] has log and metrics.
//! `docs/protocol.md` is the contract, `docs/decisions.md` says why. At each [`crash::Point`] a test makes a worker die,
//! and `docs/guarantees.md` says what comes of it.

pub mod bus;
pub mod claim;
pub mod cli;
pub mod config;
pub mod crash;
pub mod dev;
pub mod doctor;
pub mod execute;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
pub mod intake;
pub mod mask;
#[cfg(test)]
mod model;
pub mod plan;
pub mod prepare;
pub mod report;
pub mod retry;
pub mod settle;
pub mod shutdown;
pub mod supervisor;
pub mod task;
pub mod telemetry;
pub mod version;
pub mod wire;
pub mod worker;
