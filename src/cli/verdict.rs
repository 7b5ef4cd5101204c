//! What would become of an assignment, decided by what a worker decides with: pure, without a queue.
//!
//! The assignment is filled in as `submit` does it and written as it would be queued; those bytes go through
//! [`intake::read`], [`plan::plan`] and [`claim::decide`], the worker's own.

use bytes::Bytes;
use serde_json::{Map, Value};

use super::args::Target;
use crate::bus::Subjects;
use crate::claim::{Decision, Situation, decide};
use crate::config::Config;
use crate::intake::{self, Poison, Task};
use crate::plan::{Plan, Policy, plan};
use crate::task::{ClassName, Reason, TaskId, Tenant, Time};
use crate::wire::Encoding;
use crate::worker::capacity::{Capacity, Machine, Need};

/// Tenant and class of an assignment that names none.
pub(super) const DEFAULT_TENANT: &str = "default";
const DEFAULT_CLASS: &str = "cpu_short";

/// The class of an assignment that names none: the shipped one that has what it asks for.
pub(super) fn default_class(assignment: &Map<String, Value>) -> &'static str {
    let execution = assignment.get("execution");
    let of = |pointer: &str| execution.and_then(|execution| execution.pointer(pointer));
    let gpus = of("/resources/gpus").and_then(Value::as_u64).unwrap_or(0);
    match of("/runtime").and_then(Value::as_str) {
        _ if gpus > 0 => "gpu",
        Some("docker") => "cpu_long",
        Some(_) | None => DEFAULT_CLASS,
    }
}

/// What would become of it.
#[derive(Debug)]
pub(super) enum Verdict {
    /// It would be run.
    Run {
        /// As a worker reads it.
        task: Box<Task>,
        /// What would run.
        plan: Box<Plan>,
        /// It waits for its `not_before`.
        waits: bool,
        /// It is not larger than all that the configuration lets a worker give out; what depends on the machine is not known.
        fits: bool,
    },
    /// A worker would end it unrun, or nobody of this configuration would take it.
    Refused(Refusal),
}

/// Why it would not be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// As `task_failed` would have it; none when no worker would take it.
    pub(super) reason: Option<Reason>,
    /// In the worker's words.
    pub(super) error: String,
    /// What to do.
    pub(super) hint: Option<String>,
}

/// A message as the queue would have it.
#[derive(Debug, Clone)]
pub(super) struct Message {
    /// Where it would be published.
    pub(super) subject: String,
    /// How it would be written.
    pub(super) encoding: Encoding,
    /// Its bytes.
    pub(super) payload: Bytes,
}

impl Message {
    /// Fills in what is missing in `value`, and writes it. The options say the subject, as they would for an orchestrator;
    /// that the assignment agrees with it is the worker's to see.
    pub(super) fn of(value: &mut Value, target: &Target, encoding: Encoding, subjects: &Subjects) -> Result<Self, String> {
        let new = || uuid::Uuid::now_v7().to_string();
        let mut none = Map::new();
        let map = value.as_object_mut().unwrap_or(&mut none);
        let task_id = name(map, "task_id", target.id.clone(), TaskId::new, new())?;
        let tenant = name(map, "tenant", target.tenant.clone(), Tenant::new, DEFAULT_TENANT.to_owned())?;
        let class = default_class(map).to_owned();
        let class = name(map, "class", target.class.clone(), ClassName::new, class)?;
        let subject = subjects.task(&class, target.priority, &tenant, &task_id);
        let payload = encoding.encode(value).map_err(|e| e.to_string())?;
        Ok(Self { subject, encoding, payload })
    }
}

/// The subject's token for `key`: the option's, else the assignment's own where it can be one. It is filled in where the
/// assignment has none.
fn name<T: Clone + Into<String>, E: std::fmt::Display>(
    map: &mut Map<String, Value>,
    key: &str,
    option: Option<T>,
    token: impl Fn(String) -> Result<T, E>,
    default: String,
) -> Result<T, String> {
    let own = map.get(key).filter(|value| !value.is_null()).cloned();
    let asked = option.or_else(|| own.as_ref().and_then(Value::as_str).and_then(|text| token(text.to_owned()).ok()));
    let named = asked.map_or_else(|| token(default).map_err(|e| e.to_string()), Ok)?;
    if own.is_none() {
        map.insert(key.to_owned(), Value::String(named.clone().into()));
    }
    Ok(named)
}

/// Judges a message as a worker of `config` would that gets it at `now`, for the first time.
pub(super) fn judge(message: &Message, config: &Config, subjects: &Subjects, now: Time) -> Verdict {
    let read = intake::read(subjects, &message.subject, Some(message.encoding.content_type()), &message.payload);
    let task = match read {
        Ok(task) => task,
        Err(poison) => return Verdict::refused(Reason::InvalidAssignment, poison.error, Some(Poison::HINT.to_owned())),
    };
    let policy = Policy::of(config, &task, true).filter(|policy| policy.class.is_offered());
    let Some(policy) = policy else { return unserved(&task, config) };
    let plan = plan(&task, &policy);
    let situation = Situation { task: &task, plan: &plan, head: None, cancel: None, deliveries: 1, submitted_at: now, now };
    match (decide(&situation), plan) {
        (Decision::End(end), _) => Verdict::refused(end.reason, end.error, end.hint),
        (_, Err(rejection)) => Verdict::refused(rejection.reason, rejection.error, Some(rejection.hint)),
        (decision, Ok(plan)) => {
            let waits = matches!(decision, Decision::NotYet(_));
            let fits = Capacity::new(config, Machine::boundless()).could_hold(Need::of(&plan));
            Verdict::Run { task: Box::new(task), plan: Box::new(plan), waits, fits }
        }
    }
}

/// A worker pulls only from the queues of its classes.
fn unserved(task: &Task, config: &Config) -> Verdict {
    let served: Vec<&str> = config.offered_classes().map(|(name, _)| name.as_str()).collect();
    let who = if config.classes.contains_key(&task.class) { "of this version serves" } else { "with this configuration takes" };
    Verdict::Refused(Refusal {
        reason: None,
        error: format!("class: no worker {who} {}; served are {}", task.class, served.join(", ")),
        hint: Some("use one of these, or look with the configuration of a worker that serves it (--config)".to_owned()),
    })
}

impl Verdict {
    fn refused(reason: Reason, error: String, hint: Option<String>) -> Self {
        Self::Refused(Refusal { reason: Some(reason), error, hint })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::load_text;
    use crate::plan::Source;
    use crate::task::Priority;

    fn target() -> Target {
        Target { tenant: None, class: None, priority: Priority::Normal, id: None }
    }

    fn judged(mut value: Value, target: &Target, config: &str) -> Verdict {
        let config = load_text(config).unwrap();
        let subjects = Subjects::new(&config.bus.prefix);
        let message = Message::of(&mut value, target, Encoding::Json, &subjects).unwrap();
        judge(&message, &config, &subjects, Time::from_micros(1_000_000))
    }

    #[test]
    fn what_is_missing_is_filled_in() {
        let Verdict::Run { task, plan, waits, fits } =
            judged(json!({"execution": {"runtime": "native", "command": ["true"]}}), &target(), "")
        else {
            panic!("refused")
        };
        assert_eq!((task.tenant.as_str(), task.class.as_str(), waits, fits), ("default", "cpu_short", false, true));
        assert_eq!(plan.bounds.cpus.from, Source::Default);
    }

    #[test]
    fn every_refusal_is_the_workers() {
        let run = json!({"runtime": "native", "command": ["true"]});
        let other = Target { tenant: Some(Tenant::new("b").unwrap()), ..target() };
        for (value, target, reason, error) in [
            (json!([1]), target(), Some(Reason::InvalidAssignment), "an assignment is an object"),
            (json!({"task_id": "a.b", "execution": run}), target(), Some(Reason::InvalidAssignment), "task_id: \"a.b\" is not a valid"),
            (json!({"tenant": "a", "execution": run}), other, Some(Reason::InvalidAssignment), "tenant: \"a\" does not agree with"),
            (json!({"execution": run, "deadline": "1970-01-01T00:00:00Z"}), target(), Some(Reason::DeadlinePassed), "the deadline 1970"),
            (json!({"execution": {"runtime": "native"}}), target(), Some(Reason::InvalidAssignment), "execution.command: missing"),
            (json!({"class": "batch", "execution": run}), target(), None, "class: no worker with this configuration takes batch"),
            (json!({"class": "gpu_slurm", "execution": run}), target(), None, "class: no worker of this version serves gpu_slurm"),
        ] {
            let Verdict::Refused(refusal) = judged(value, &target, "") else { panic!("{error} is not refused") };
            assert_eq!(refusal.reason, reason, "{error}");
            assert!(refusal.error.contains(error), "{}", refusal.error);
        }
    }

    #[test]
    fn the_class_is_the_one_that_has_what_is_asked_for() {
        for (execution, class) in [
            (json!({"runtime": "native"}), "cpu_short"),
            (json!({"runtime": "docker"}), "cpu_long"),
            (json!({"runtime": "native", "resources": {"gpus": 1}}), "gpu"),
            (json!({"runtime": "docker", "resources": {"gpus": 0}}), "cpu_long"),
            (json!("nonsense"), "cpu_short"),
        ] {
            let Value::Object(assignment) = json!({"execution": execution}) else { panic!("an object") };
            assert_eq!(default_class(&assignment), class, "{assignment:?}");
        }
    }

    #[test]
    fn a_task_may_be_larger_than_any_worker() {
        let value = json!({"execution": {"runtime": "native", "command": ["true"], "resources": {"memory": "2GiB"}}});
        for (capacity, expected) in [("[capacity]\nmemory = \"1GiB\"\n", false), ("[capacity]\nmemory = \"2GiB\"\n", true), ("", true)] {
            let Verdict::Run { fits, .. } = judged(value.clone(), &target(), capacity) else { panic!("refused") };
            assert_eq!(fits, expected, "{capacity:?}");
        }
    }

    #[test]
    fn a_task_may_have_to_wait() {
        let value = json!({"execution": {"runtime": "bash", "script": "true"}, "not_before": "2100-01-01T00:00:00Z"});
        assert!(matches!(judged(value, &target(), ""), Verdict::Run { waits: true, .. }));
    }
}
