//! What is decided, by whom, and what is refused in which words.

use super::*;
use crate::config::{self, Class};
use crate::task::Assignment;

fn planned(execution: &str) -> Result<Plan, Rejection> {
    let assignment: Assignment = serde_json::from_str(&format!(r#"{{"task_id":"t","execution":{execution}}}"#)).unwrap();
    let task = Task::of(assignment);
    plan(&task, &Policy::of_class(&Class::default()))
}

#[test]
fn what_is_left_out_comes_from_the_class() {
    let plan = planned(r#"{"runtime":"native","command":["true"]}"#).unwrap();
    assert_eq!((plan.limits().cpus, plan.limits().memory_bytes, plan.limits().timeout_ms), (1.0, 512 << 20, 60_000));
}

#[test]
fn every_refusal_names_its_field() {
    for (execution, reason, word) in [
        (r#"{"runtime":"native"}"#, Reason::InvalidAssignment, "execution.command: missing"),
        (r#"{"runtime":"native","command":[]}"#, Reason::InvalidAssignment, "execution.command: missing or empty"),
        (r#"{"runtime":"native","command":[""]}"#, Reason::InvalidAssignment, "execution.command[0]: empty"),
        (r#"{"runtime":"native","command":["a\u0000b"]}"#, Reason::InvalidAssignment, "execution.command[0]: holds a NUL"),
        (r#"{"runtime":"bash"}"#, Reason::InvalidAssignment, "execution.script: missing"),
        (r#"{"runtime":"native","command":["true"],"timeout_s":0}"#, Reason::InvalidAssignment, "execution.timeout_s: 0 is too small"),
        (r#"{"runtime":"native","command":["true"],"timeout_s":1e9}"#, Reason::PolicyRefused, "execution.timeout_s: 1000000000 is above"),
        (
            r#"{"runtime":"native","command":["true"],"resources":{"memory":"1TiB"}}"#,
            Reason::PolicyRefused,
            "execution.resources.memory: 1TiB is above",
        ),
        (
            r#"{"runtime":"native","command":["true"],"resources":{"cpus":99}}"#,
            Reason::PolicyRefused,
            "execution.resources.cpus: 99 is above",
        ),
        (
            r#"{"runtime":"native","command":["true"],"resources":{"pids":99999}}"#,
            Reason::PolicyRefused,
            "execution.resources.pids: 99999 is above",
        ),
        (
            r#"{"runtime":"native","command":["true"],"resources":{"gpus":1}}"#,
            Reason::PolicyRefused,
            "execution.resources.gpus: 1 is above the class's ceiling of 0",
        ),
        (r#"{"runtime":"native","command":["true"],"resources":{"disk":1}}"#, Reason::Unschedulable, "execution.resources.disk: "),
        (r#"{"runtime":"docker","image":"x"}"#, Reason::PolicyRefused, "execution.runtime: \"docker\" is not allowed in class"),
        (r#"{"runtime":"slurm"}"#, Reason::Unschedulable, "execution.runtime: \"slurm\" is not offered by this version"),
        (r#"{"runtime":"native","command":["true"],"image":"x"}"#, Reason::Unschedulable, "execution.image: the runtime native"),
        (r#"{"runtime":"native","command":["true"],"pull":"never"}"#, Reason::Unschedulable, "execution.pull: the runtime native"),
        (r#"{"runtime":"bash","script":"true","entrypoint":["a"]}"#, Reason::Unschedulable, "execution.entrypoint: the runtime bash"),
        (r#"{"runtime":"native","command":["true"],"user":"0"}"#, Reason::Unschedulable, "execution.user: the runtime native"),
        (r#"{"runtime":"native","command":["true"],"network":"none"}"#, Reason::Unschedulable, "execution.network: the runtime native"),
        (r#"{"runtime":"bash","script":"true","args":["a","b\u0000"]}"#, Reason::InvalidAssignment, "execution.args[1]: holds a NUL"),
        (
            r#"{"runtime":"native","command":["true"],"working_dir":"a/../../b"}"#,
            Reason::InvalidAssignment,
            "execution.working_dir: \"a/../../b\" holds",
        ),
        (r#"{"runtime":"native","command":["true"],"working_dir":"/a/.."}"#, Reason::InvalidAssignment, "execution.working_dir: "),
        (r#"{"runtime":"native","command":["true"],"working_dir":"a\u0000"}"#, Reason::InvalidAssignment, "execution.working_dir: "),
        (r#"{"runtime":"native","command":["true"],"env":{"a=b":"c"}}"#, Reason::InvalidAssignment, "execution.env: \"a=b\""),
    ] {
        let rejection = planned(execution).expect_err(execution);
        assert_eq!(rejection.reason, reason, "{execution}");
        assert!(rejection.error.starts_with(word), "{execution}: {}", rejection.error);
    }
}

#[test]
fn every_value_says_who_decided_it() {
    let text = "[classes.cpu_short]\ncpus = 2\nbackoff = { initial_ms = 5 }\nsandbox = \"strict\"\n[tenants.acme]\nuid = 5000\n";
    let config = config::load_text(text).unwrap();
    let body = r#"{"task_id":"t","execution":{"runtime":"native","command":["true"],"resources":{"pids":7,"io":{}},"grace_s":1}}"#;
    let task = Task::of(serde_json::from_str(body).unwrap());
    let plan = plan(&task, &Policy::of(&config, &task, true).expect("served")).unwrap();
    let bounds = &plan.bounds;
    assert_eq!(bounds.cpus, Decided { value: 2.0, from: Source::Class });
    assert_eq!(bounds.pids, Decided { value: 7, from: Source::Assignment });
    assert_eq!(bounds.timeout_ms, Decided { value: 60_000, from: Source::Default });
    assert_eq!((bounds.memory.from, bounds.io.from), (Source::Default, Source::Assignment));
    assert_eq!(plan.grace, Decided { value: Duration::from_secs(1), from: Source::Assignment });
    assert_eq!((plan.backoff.from, plan.max_attempts.from), (Source::Class, Source::Default));
    assert_eq!(plan.sandbox, Decided { value: Profile::Strict, from: Source::Class });
    assert_eq!(plan.user, Decided { value: User { uid: 5000, gid: 5000 }, from: Source::Tenant });
}

#[test]
fn a_class_that_is_not_configured_has_no_policy() {
    let config = config::load_text("[classes.gpu]\n").unwrap();
    let task = Task::of(serde_json::from_str(r#"{"task_id":"t","execution":{"runtime":"native"}}"#).unwrap());
    assert!(Policy::of(&config, &task, true).is_none(), "{} is not served", task.class);
}

#[test]
fn a_script_that_no_argument_can_hold_is_a_file() {
    let script = |script: String| Program::Bash { script, args: vec!["a".to_owned()] };
    assert_eq!(script("true".to_owned()).argv("F"), ["bash", "-c", "true", "bash", "a"]);
    assert_eq!(script("#".repeat(INLINE_SCRIPT + 1)).argv("F"), ["bash", "F", "a"]);
    assert_eq!(script("a\0".to_owned()).argv("F"), ["bash", "F", "a"]);
}

#[test]
fn the_secret_of_a_registry_is_one_of_the_tasks() {
    let config = config::load_text("[docker]\nimages = [\"*\"]\n[classes.cpu_short]\nruntimes = [\"docker\"]\n").unwrap();
    let of = |secrets: &str| {
        let text =
            format!(r#"{{"task_id":"t","secrets":{secrets},"execution":{{"runtime":"docker","image":"x","registry_secret":"REGISTRY"}}}}"#);
        let task = Task::of(serde_json::from_str(&text).unwrap());
        container::container(&task, &Policy::of(&config, &task, true).expect("served"))
    };
    assert_eq!(of(r#"[{"name":"REGISTRY","ref":"env:ACME"}]"#).unwrap().registry_secret.as_deref(), Some("REGISTRY"));
    let rejection = of(r#"[{"name":"OTHER","ref":"env:ACME"}]"#).unwrap_err();
    assert_eq!(rejection.reason, Reason::InvalidAssignment);
    assert!(rejection.error.starts_with("execution.registry_secret: \"REGISTRY\" is none of the task's secrets"), "{}", rejection.error);
    let native = planned(r#"{"runtime":"native","command":["true"],"registry_secret":"A"}"#).unwrap_err();
    assert!(native.error.starts_with("execution.registry_secret"), "{}", native.error);
}
