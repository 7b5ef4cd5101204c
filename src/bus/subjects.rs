//! Names of subjects, streams and consumers: pure text.

use crate::task::{ClassName, EventKind, Priority, TaskId, Tenant, WorkerId};

/// All names below one prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subjects {
    prefix: String,
    upper: String,
}

/// The parts of a task subject, as they stand there: not yet checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskSubject {
    /// Class token.
    pub class: String,
    /// Priority token.
    pub priority: String,
    /// Tenant token.
    pub tenant: String,
    /// Task token.
    pub task_id: String,
}

impl Subjects {
    /// Names below `prefix`.
    #[must_use]
    pub fn new(prefix: &Tenant) -> Self {
        Self { prefix: prefix.to_string(), upper: prefix.as_str().to_ascii_uppercase() }
    }

    /// The prefix itself.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// `WINDLASS_TASKS`
    #[must_use]
    pub fn tasks_stream(&self) -> String {
        format!("{}_TASKS", self.upper)
    }

    /// `WINDLASS_EVENTS`
    #[must_use]
    pub fn events_stream(&self) -> String {
        format!("{}_EVENTS", self.upper)
    }

    /// `WINDLASS_LOGS`
    #[must_use]
    pub fn logs_stream(&self) -> String {
        format!("{}_LOGS", self.upper)
    }

    /// `WINDLASS_CONTROL`
    #[must_use]
    pub fn control_stream(&self) -> String {
        format!("{}_CONTROL", self.upper)
    }

    /// `WINDLASS_DEAD`
    #[must_use]
    pub fn dead_stream(&self) -> String {
        format!("{}_DEAD", self.upper)
    }

    /// `WINDLASS_WORKERS`, the key-value bucket.
    #[must_use]
    pub fn workers_bucket(&self) -> String {
        format!("{}_WORKERS", self.upper)
    }

    /// The stream behind the bucket of workers.
    #[must_use]
    pub fn workers_stream(&self) -> String {
        format!("KV_{}", self.workers_bucket())
    }

    /// The subject of a key in the bucket of workers.
    #[must_use]
    pub fn worker_key(&self, key: &str) -> String {
        format!("$KV.{}.{key}", self.workers_bucket())
    }

    /// Where an assignment is published.
    #[must_use]
    pub fn task(&self, class: &ClassName, priority: Priority, tenant: &Tenant, task_id: &TaskId) -> String {
        format!("{}.tasks.{class}.{priority}.{tenant}.{task_id}", self.prefix)
    }

    /// All assignments; the stream takes four tokens below it, neither more nor fewer.
    #[must_use]
    pub fn all_tasks(&self) -> String {
        format!("{}.tasks.*.*.*.*", self.prefix)
    }

    /// The queued message of a task, whatever its class and priority; without a tenant, of whichever tenant.
    #[must_use]
    pub fn task_anywhere(&self, tenant: Option<&Tenant>, task_id: &TaskId) -> String {
        format!("{}.tasks.*.*.{}.{task_id}", self.prefix, tenant.map_or("*", Tenant::as_str))
    }

    /// What the consumer of one class and priority takes.
    #[must_use]
    pub fn queue_filter(&self, class: &ClassName, priority: Priority) -> String {
        format!("{}.tasks.{class}.{priority}.*.*", self.prefix)
    }

    /// Durable name of the consumer of one class and priority.
    #[must_use]
    pub fn consumer(class: &ClassName, priority: Priority) -> String {
        format!("{class}-{priority}")
    }

    /// The tokens of a task subject, unless it is none.
    #[must_use]
    pub fn parse_task(&self, subject: &str) -> Option<TaskSubject> {
        let rest = subject.strip_prefix(&self.prefix)?.strip_prefix(".tasks.")?;
        let mut tokens = rest.split('.').map(str::to_owned);
        let (class, priority, tenant, task_id) = (tokens.next()?, tokens.next()?, tokens.next()?, tokens.next()?);
        tokens.next().is_none().then_some(TaskSubject { class, priority, tenant, task_id })
    }

    /// Where an event is published.
    #[must_use]
    pub fn event(&self, tenant: &Tenant, task_id: &TaskId, kind: EventKind) -> String {
        format!("{}.events.{tenant}.{task_id}.{kind}", self.prefix)
    }

    /// The whole chain of a task: the fence's own subject.
    #[must_use]
    pub fn chain(&self, tenant: &Tenant, task_id: &TaskId) -> String {
        format!("{}.events.{tenant}.{task_id}.*", self.prefix)
    }

    /// Events of every task, of one tenant, of one task.
    #[must_use]
    pub fn events_filter(&self, tenant: Option<&Tenant>, task_id: Option<&TaskId>) -> String {
        format!("{}.events.{}.{}.*", self.prefix, tenant.map_or("*", Tenant::as_str), task_id.map_or("*", TaskId::as_str))
    }

    /// Events of one kind, of every task or of one tenant's.
    #[must_use]
    pub fn events_of_kind(&self, tenant: Option<&Tenant>, kind: EventKind) -> String {
        format!("{}.events.{}.*.{kind}", self.prefix, tenant.map_or("*", Tenant::as_str))
    }

    /// Tenant, task and kind tokens of an event's subject, unless it is none.
    #[must_use]
    pub fn parse_event<'a>(&self, subject: &'a str) -> Option<(&'a str, &'a str, &'a str)> {
        let rest = subject.strip_prefix(&self.prefix)?.strip_prefix(".events.")?;
        let (tenant, rest) = rest.split_once('.')?;
        let (task_id, kind) = rest.split_once('.')?;
        Some((tenant, task_id, kind))
    }

    /// Assignments of a class, of a tenant, of all.
    #[must_use]
    pub fn queued_filter(&self, class: Option<&ClassName>, tenant: Option<&Tenant>) -> String {
        format!("{}.tasks.{}.*.{}.*", self.prefix, class.map_or("*", ClassName::as_str), tenant.map_or("*", Tenant::as_str))
    }

    /// Where one worker takes requests.
    #[must_use]
    pub fn control_worker(&self, worker_id: &WorkerId) -> String {
        format!("{}.control-workers.{worker_id}", self.prefix)
    }

    /// First part of an attempt's log subjects; the stream's name follows.
    #[must_use]
    pub fn log_base(&self, tenant: &Tenant, task_id: &TaskId, attempt: u32) -> String {
        format!("{}.logs.{tenant}.{task_id}.{attempt}", self.prefix)
    }

    /// All chunks of a task.
    #[must_use]
    pub fn logs_of(&self, tenant: &Tenant, task_id: &TaskId) -> String {
        format!("{}.logs.{tenant}.{task_id}.*.*", self.prefix)
    }

    /// Where cancel requests for a task go.
    #[must_use]
    pub fn control(&self, tenant: &Tenant, task_id: &TaskId) -> String {
        format!("{}.control.{tenant}.{task_id}", self.prefix)
    }

    /// All control subjects.
    #[must_use]
    pub fn all_control(&self) -> String {
        format!("{}.control.*.*", self.prefix)
    }

    /// Tenant and task of a control subject.
    #[must_use]
    pub fn parse_control(&self, subject: &str) -> Option<(Tenant, TaskId)> {
        let rest = subject.strip_prefix(&self.prefix)?.strip_prefix(".control.")?;
        let (tenant, task_id) = rest.split_once('.')?;
        Some((Tenant::new(tenant).ok()?, TaskId::new(task_id).ok()?))
    }

    /// Where a dead letter goes; tokens that are none become `_`.
    #[must_use]
    pub fn dead(&self, class: &str, tenant: &str) -> String {
        let token = |text: &str| if crate::task::id::is_token(text) { text.to_owned() } else { "_".to_owned() };
        format!("{}.dead.{}.{}", self.prefix, token(class), token(tenant))
    }

    /// Dead letters of a class, of a tenant, of all.
    #[must_use]
    pub fn dead_filter(&self, class: Option<&ClassName>, tenant: Option<&Tenant>) -> String {
        format!("{}.dead.{}.{}", self.prefix, class.map_or("*", ClassName::as_str), tenant.map_or("*", Tenant::as_str))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn task_subjects_have_four_tokens() {
        let subjects = Subjects::new(&Tenant::new("windlass").unwrap());
        let parsed = subjects.parse_task("windlass.tasks.cpu_short.high.acme.a1").unwrap();
        assert_eq!((parsed.class.as_str(), parsed.tenant.as_str(), parsed.task_id.as_str()), ("cpu_short", "acme", "a1"));
        assert!(subjects.parse_task("windlass.tasks.cpu_short.high.acme").is_none());
        assert!(subjects.parse_task("windlass.tasks.cpu_short.high.acme.a.b").is_none());
        assert!(subjects.parse_task("other.tasks.cpu_short.high.acme.a").is_none());
        assert_eq!(subjects.dead("a.b", "acme"), "windlass.dead._.acme");
        assert_eq!(subjects.tasks_stream(), "WINDLASS_TASKS");
        assert_eq!(subjects.parse_event("windlass.events.acme.a1.task_started"), Some(("acme", "a1", "task_started")));
        assert_eq!(subjects.parse_event("windlass.events.acme.a1"), None);
    }
}
