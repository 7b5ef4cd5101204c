//! Bytes to an assignment that agrees with its subject.

use crate::bus::Subjects;
use crate::bus::delivery::Delivery;
use crate::task::{Assignment, ClassName, Priority, TaskId, Tenant, nesting};
use crate::wire::{Encoding, sha256_hex};

/// A task as it was asked for.
#[derive(Debug, Clone)]
pub struct Task {
    /// From the subject.
    pub task_id: TaskId,
    /// From the subject.
    pub tenant: Tenant,
    /// From the subject.
    pub class: ClassName,
    /// From the subject.
    pub priority: Priority,
    /// The body.
    pub assignment: Assignment,
    /// SHA-256 of the body, hex: what tells two tasks of one id apart.
    pub sha256: String,
}

#[cfg(any(test, feature = "fuzzing"))]
#[expect(clippy::expect_used, reason = "the tokens are written here")]
impl Task {
    /// A task of tenant `acme` in class `cpu_short`, as tests of what comes after intake want one.
    pub(crate) fn of(assignment: Assignment) -> Self {
        Self {
            task_id: assignment.task_id.clone(),
            tenant: Tenant::new("acme").expect("a token"),
            class: ClassName::new("cpu_short").expect("a token"),
            priority: Priority::Normal,
            assignment,
            sha256: String::new(),
        }
    }
}

/// A message that is no task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Poison {
    /// What is wrong, for whoever published it.
    pub error: String,
    /// Whose chain says so: absent when the subject's own tokens are not valid.
    pub names: Option<(Tenant, TaskId, ClassName)>,
}

impl Poison {
    /// What whoever published it can do.
    pub const HINT: &str = "publish a corrected assignment under a new task_id; the dead letter has this one";
}

/// Reads a delivery.
///
/// # Errors
/// When it can never be a task.
pub fn decode(subjects: &Subjects, delivery: &Delivery) -> Result<Task, Poison> {
    read(subjects, &delivery.subject, delivery.header("Content-Type"), &delivery.payload)
}

/// Reads a message by its parts, as a worker would: nothing but these is looked at.
///
/// # Errors
/// When it can never be a task.
pub fn read(subjects: &Subjects, subject: &str, content_type: Option<&str>, payload: &[u8]) -> Result<Task, Poison> {
    let nameless = |error: String| Poison { error, names: None };
    let parts = subjects.parse_task(subject).ok_or_else(|| nameless(format!("{subject:?} is not a task subject")))?;
    let task_id = TaskId::new(parts.task_id).map_err(|e| nameless(format!("subject: {e}")))?;
    let tenant = Tenant::new(parts.tenant).map_err(|e| nameless(format!("subject: {e}")))?;
    let class = ClassName::new(parts.class).map_err(|e| nameless(format!("subject: {e}")))?;
    let priority = parts.priority.parse::<Priority>().map_err(|e| nameless(format!("subject: {e}")))?;
    let poison = |error: String| Poison { error, names: Some((tenant.clone(), task_id.clone(), class.clone())) };

    let encoding = Encoding::detect(content_type, payload).map_err(|e| poison(e.to_string()))?;
    if !encoding.holds_an_object(payload) {
        let start = String::from_utf8_lossy(&payload[..payload.len().min(20)]).into_owned();
        return Err(poison(format!("an assignment is an object, {{\"task_id\": …}}; this begins with {start:?}")));
    }
    let assignment: Assignment = encoding.decode(payload).map_err(|e| poison(e.to_string()))?;
    if assignment.v != 1 {
        return Err(poison(format!("v: {} is not a version of the contract that this worker knows; use 1", assignment.v)));
    }
    if assignment.task_id != task_id {
        return Err(poison(format!("task_id: {:?} does not agree with the subject's {:?}", assignment.task_id.as_str(), task_id.as_str())));
    }
    if let Some(other) = assignment.tenant.as_ref().filter(|t| **t != tenant) {
        return Err(poison(format!("tenant: {:?} does not agree with the subject's {:?}", other.as_str(), tenant.as_str())));
    }
    if let Some(other) = assignment.class.as_ref().filter(|c| **c != class) {
        return Err(poison(format!("class: {:?} does not agree with the subject's {:?}", other.as_str(), class.as_str())));
    }
    nesting::check(&assignment.context).map_err(|e| poison(format!("context: it {e}")))?;
    Ok(Task { task_id, tenant, class, priority, assignment, sha256: sha256_hex(payload) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(subject: &str, body: &str) -> Result<Task, Poison> {
        super::read(&Subjects::new(&Tenant::new("windlass").unwrap()), subject, None, body.as_bytes())
    }

    #[test]
    fn ids_must_agree_with_the_subject() {
        let subject = "windlass.tasks.cpu_short.high.acme.t1";
        assert!(read(subject, r#"{"task_id":"t1","tenant":"acme","class":"cpu_short","execution":{"runtime":"native"}}"#).is_ok());
        for (body, word) in [
            (r#"{"task_id":"t2","execution":{"runtime":"native"}}"#, "task_id: \"t2\""),
            (r#"{"task_id":"t1","tenant":"other","execution":{"runtime":"native"}}"#, "tenant: \"other\""),
            (r#"{"task_id":"t1","class":"gpu","execution":{"runtime":"native"}}"#, "class: \"gpu\""),
            (r#"{"v":2,"task_id":"t1","execution":{"runtime":"native"}}"#, "v: 2"),
        ] {
            let poison = read(subject, body).expect_err(body);
            assert!(poison.error.starts_with(word), "{}", poison.error);
            assert!(poison.names.is_some());
        }
    }

    #[test]
    fn a_list_is_no_assignment() {
        let subject = "windlass.tasks.cpu_short.high.acme.t1";
        let list = r#"[1,"t1",null,null,null,null,null,{},{"runtime":"native","command":["true"]}]"#;
        for body in [list, " []", "\"t1\"", "null", ""] {
            let poison = read(subject, body).expect_err(body);
            assert!(poison.error.starts_with("an assignment is an object"), "{body}: {}", poison.error);
        }
        let packed = rmp_list();
        let poison = super::read(&Subjects::new(&Tenant::new("windlass").unwrap()), subject, Some("application/vnd.msgpack"), &packed);
        assert!(poison.unwrap_err().error.starts_with("an assignment is an object"));
    }

    /// The assignment as MessagePack writes structs without their keys.
    fn rmp_list() -> Vec<u8> {
        let assignment: Assignment =
            serde_json::from_str(r#"{"task_id":"t1","execution":{"runtime":"native","command":["true"]}}"#).unwrap();
        let fields = serde_json::to_value(assignment).unwrap();
        let values: Vec<_> = fields.as_object().unwrap().values().cloned().collect();
        Encoding::Msgpack.encode(&values).unwrap().to_vec()
    }

    #[test]
    fn a_subject_without_valid_names_has_no_chain() {
        let long = "x".repeat(65);
        let poison = read(&format!("windlass.tasks.cpu_short.high.acme.{long}"), "{}").expect_err("too long");
        assert!(poison.names.is_none());
    }
}
