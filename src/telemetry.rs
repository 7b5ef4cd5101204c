//! What a worker says of itself: its log, and its metrics.
//!
//! ```text
//! tracing ─▶ filter (level, changed by SIGHUP) ─▶ never-rules ─▶ mask ─▶ standard error
//! note()  ─▶ instruments ─▶ text for Prometheus, when somebody asks
//! ```
//! Both are one per process and are reached from anywhere, as tracing is: a stage says what happened, and where nobody set
//! this up (verbs, unit tests) it costs nothing. `opentelemetry` and `prometheus` are named below here only.

mod causes;
mod log;
pub mod metrics;
mod reload;
mod span;

pub use causes::{Causes, causes};
pub use log::{TelemetryError, init, set_level};
pub use reload::on_hangup;
pub use span::{TaskSpan, record_attempt, spawn_blocking};
