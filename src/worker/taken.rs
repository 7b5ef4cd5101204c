//! A delivery that is being taken to its end: counted, and named on every line about it.

use std::sync::atomic::Ordering;

use tracing::Span;

use super::Shared;
use crate::intake::{Poison, Task};
use crate::task::ClassName;
use crate::telemetry::{TaskSpan, metrics};

/// What every line about the delivery carries.
pub(super) fn span(decoded: &Result<Task, Poison>) -> Span {
    let named = match decoded {
        Ok(task) => Some((&task.tenant, &task.task_id, &task.class, task.assignment.workflow_id.as_deref())),
        Err(poison) => poison.names.as_ref().map(|(tenant, task_id, class)| (tenant, task_id, class, None)),
    };
    named.map_or_else(Span::none, |(tenant, task_id, class, workflow_id)| {
        TaskSpan { task_id: task_id.as_str(), tenant: tenant.as_str(), class: class.as_str(), workflow_id }.span()
    })
}

/// A delivery counts as being taken to its end while this lives.
pub(super) struct Running<'a>(&'a Shared, &'a ClassName);

impl<'a> Running<'a> {
    pub(super) fn begin(shared: &'a Shared, class: &'a ClassName) -> Self {
        shared.running.fetch_add(1, Ordering::Relaxed);
        metrics::note(|m| m.running(class, 1));
        Self(shared, class)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
        metrics::note(|m| m.running(self.1, -1));
    }
}
