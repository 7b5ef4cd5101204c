//! The span of a task: every line that is written inside carries whose it is.

use tokio::task::JoinHandle;
use tracing::{Span, field};

/// What lines about a task carry.
#[derive(Debug, Clone, Copy)]
pub struct TaskSpan<'a> {
    /// `task_id`
    pub task_id: &'a str,
    /// `tenant`
    pub tenant: &'a str,
    /// `class`
    pub class: &'a str,
    /// `workflow_id`
    pub workflow_id: Option<&'a str>,
}

impl TaskSpan<'_> {
    /// The span. Its `attempt` is told later, by [`record_attempt`].
    #[must_use]
    pub fn span(self) -> Span {
        let Self { task_id, tenant, class, workflow_id } = self;
        // Of this module, so that it is there at any level; see `log`.
        tracing::info_span!("task", %task_id, %tenant, %class, workflow_id = workflow_id.map(field::display), attempt = field::Empty)
    }
}

/// Tells the span of the task that is being handled here which attempt it is.
pub fn record_attempt(number: u32) {
    Span::current().record("attempt", number);
}

/// As tokio's, inside of the span of the caller.
pub fn spawn_blocking<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> JoinHandle<R> {
    let span = Span::current();
    tokio::task::spawn_blocking(move || span.in_scope(work))
}
