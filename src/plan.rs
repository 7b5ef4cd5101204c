//! Stage 3, plan: what exactly would run, or why not. Pure: the same code answers the worker and a dry run.
//!
//! Nothing is clipped: a request above a ceiling of its class is refused, and the refusal names the field, the value and
//! the ceiling.

use std::time::Duration;

use crate::config::{Class, TenantPolicy};
use crate::intake::Task;
use crate::task::assignment::{BackoffPolicy, Execution, Runtime};
use crate::task::{Limits, Profile, Reason};

mod secrets;

pub use secrets::Secret;

/// What would run.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Runtime.
    pub runtime: Runtime,
    /// The program and how it is started.
    pub program: Program,
    /// Limits.
    pub limits: Limits,
    /// Sandbox, as its class has it.
    pub sandbox: Profile,
    /// Time between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// Attempts in all.
    pub max_attempts: u32,
    /// Delays between them.
    pub backoff: BackoffPolicy,
    /// Secrets that it gets.
    pub secrets: Vec<Secret>,
}

/// The program of a native task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// An argument vector.
    Argv(Vec<String>),
    /// A script for bash, with its arguments.
    Bash {
        /// Its text.
        script: String,
        /// `$1` and so on.
        args: Vec<String>,
    },
}

/// Why a task is not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// Typed.
    pub reason: Reason,
    /// Field, value, what is allowed.
    pub error: String,
    /// What to do.
    pub hint: String,
}

fn reject(reason: Reason, error: String, hint: &str) -> Rejection {
    Rejection { reason, error, hint: hint.to_owned() }
}

/// Decides.
///
/// # Errors
/// When the task is incomplete, above a ceiling, or asks for what no worker of this version has.
pub fn plan(task: &Task, class: &Class, tenant: &TenantPolicy, enforced: bool) -> Result<Plan, Rejection> {
    let assignment = &task.assignment;
    let execution = &assignment.execution;
    offered(task, class)?;
    let program = program(execution)?;
    check_environment(execution)?;
    let secrets = secrets::allowed(task, tenant)?;
    let limits = limits(execution, class, enforced)?;
    let grace_s = within("execution.grace_s", execution.grace_s, class.grace_s, 0.0, class.max_grace_s)?;
    let max_attempts = assignment.retry.max_attempts.unwrap_or(class.max_attempts);
    if max_attempts == 0 {
        return Err(invalid("retry.max_attempts: 0 allows no attempt at all; the first one counts, so use 1 or more".to_owned()));
    }
    if max_attempts > class.max_max_attempts {
        return Err(above("retry.max_attempts", max_attempts, class.max_max_attempts));
    }
    let backoff = assignment.retry.backoff.unwrap_or(class.backoff);
    if !(backoff.factor.is_finite() && backoff.factor >= 1.0) {
        return Err(invalid(format!("retry.backoff.factor: {} must be 1 or more", backoff.factor)));
    }
    let grace = Duration::from_secs_f64(grace_s);
    Ok(Plan { runtime: execution.runtime, program, limits, sandbox: class.sandbox, grace, max_attempts, backoff, secrets })
}

/// What this version, and this class, offers.
fn offered(task: &Task, class: &Class) -> Result<(), Rejection> {
    let assignment = &task.assignment;
    let execution = &assignment.execution;
    let runtime = execution.runtime;
    if !matches!(runtime, Runtime::Native | Runtime::Bash) {
        let error =
            format!("execution.runtime: {:?} is not offered by this version of the worker; it has native and bash", runtime.as_str());
        return Err(reject(Reason::Unschedulable, error, "use native or bash, or workers that offer it"));
    }
    if !class.runtimes.contains(&runtime) {
        let allowed: Vec<_> = class.runtimes.iter().map(|r| r.as_str()).collect();
        let error =
            format!("execution.runtime: {:?} is not allowed in class {}; allowed are {}", runtime.as_str(), task.class, allowed.join(", "));
        return Err(reject(
            Reason::PolicyRefused,
            error,
            "use another class, or have an operator allow the runtime in classes.<name>.runtimes",
        ));
    }
    let network = if class.sandbox == Profile::Strict { "none" } else { "host" };
    let absent = [
        ("workspace", !assignment.workspace.is_null()),
        ("environment", !assignment.environment.is_null()),
        ("artifacts", !assignment.artifacts.is_empty()),
        ("services", !assignment.services.is_empty()),
        ("execution.image", execution.image.is_some()),
        ("execution.entrypoint", execution.entrypoint.is_some()),
        ("execution.mounts", !execution.mounts.is_empty()),
        ("execution.network", execution.network.as_deref().is_some_and(|n| n != network)),
        ("execution.resources.gpus", execution.resources.gpus.is_some_and(|n| n > 0)),
        ("execution.resources.disk", execution.resources.disk.is_some()),
    ];
    match absent.into_iter().find(|(_, asked)| *asked) {
        Some((field, _)) => {
            let error = format!("{field}: the runtime {} of this version of the worker does not offer it", runtime.as_str());
            Err(reject(Reason::Unschedulable, error, "leave the field out, or use workers that offer it"))
        }
        None => Ok(()),
    }
}

fn program(execution: &Execution) -> Result<Program, Rejection> {
    if let Some(at) = execution.args.iter().position(|argument| argument.contains('\0')) {
        return Err(invalid(format!("execution.args[{at}]: holds a NUL byte, which no argument can")));
    }
    match execution.runtime {
        Runtime::Bash => match (&execution.script, &execution.command) {
            (Some(script), None) if !script.is_empty() => Ok(Program::Bash { script: script.clone(), args: execution.args.clone() }),
            (Some(_), Some(_)) => Err(invalid("execution.command: not with runtime bash, which runs execution.script".to_owned())),
            (Some(_) | None, _) => Err(invalid("execution.script: missing or empty; runtime bash needs one".to_owned())),
        },
        Runtime::Native | Runtime::Python | Runtime::Docker | Runtime::Grpc | Runtime::Slurm | Runtime::Runner => {
            if execution.script.is_some() || execution.module.is_some() || execution.runner.is_some() || !execution.args.is_empty() {
                return Err(invalid("execution: runtime native takes command only, not script, module, runner or args".to_owned()));
            }
            match execution.command.as_deref() {
                None | Some([]) => {
                    Err(invalid("execution.command: missing or empty; runtime native needs the program and its arguments".to_owned()))
                }
                Some([program, ..]) if program.is_empty() => Err(invalid("execution.command[0]: empty; name a program".to_owned())),
                Some(command) => match command.iter().position(|argument| argument.contains('\0')) {
                    Some(at) => Err(invalid(format!("execution.command[{at}]: holds a NUL byte, which no argument can"))),
                    None => Ok(Program::Argv(command.to_vec())),
                },
            }
        }
    }
}

fn check_environment(execution: &Execution) -> Result<(), Rejection> {
    for (name, value) in &execution.env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(invalid(format!(
                "execution.env: {name:?} cannot be an environment variable: no empty names, no '=' in names, no NUL bytes"
            )));
        }
    }
    check_working_dir(execution.working_dir.as_deref())
}

/// A relative one stays below the task's directory. An absolute one is the sandbox's to allow: it is entered as the task's
/// user and under its rules.
fn check_working_dir(dir: Option<&str>) -> Result<(), Rejection> {
    let Some(dir) = dir else { return Ok(()) };
    if dir.is_empty() || dir.contains('\0') {
        return Err(invalid("execution.working_dir: empty or with a NUL byte".to_owned()));
    }
    if dir.split('/').any(|part| part == "..") {
        let error = format!("execution.working_dir: {dir:?} holds \"..\"; name a directory below the task's own, or an absolute one");
        return Err(invalid(error));
    }
    Ok(())
}

fn limits(execution: &Execution, class: &Class, enforced: bool) -> Result<Limits, Rejection> {
    let resources = &execution.resources;
    let timeout_s = within("execution.timeout_s", execution.timeout_s, class.timeout_s, 0.001, class.max_timeout_s)?;
    let cpus = within("execution.resources.cpus", resources.cpus, class.cpus, 0.01, class.max_cpus)?;
    let memory = resources.memory.unwrap_or(class.memory);
    if memory > class.max_memory {
        return Err(above("execution.resources.memory", memory, class.max_memory));
    }
    if memory.bytes() < MIN_MEMORY {
        return Err(invalid(format!("execution.resources.memory: {memory} is too little for any process; at least 1MiB")));
    }
    let pids = resources.pids.unwrap_or(class.pids);
    if pids > class.max_pids {
        return Err(above("execution.resources.pids", pids, class.max_pids));
    }
    if pids == 0 {
        return Err(invalid("execution.resources.pids: 0 allows no process at all; at least 1".to_owned()));
    }
    let timeout_ms = u64::try_from(Duration::from_secs_f64(timeout_s).as_millis()).unwrap_or(u64::MAX).max(1);
    Ok(Limits { cpus, memory_bytes: memory.bytes(), pids, timeout_ms, io: resources.io, enforced })
}

/// Less cannot even hold the kernel's own account of a process.
const MIN_MEMORY: u64 = 1 << 20;

fn within(field: &str, asked: Option<f64>, default: f64, least: f64, most: f64) -> Result<f64, Rejection> {
    let value = asked.unwrap_or(default);
    if !value.is_finite() || value < least {
        return Err(invalid(format!("{field}: {value} is too small; at least {least}")));
    }
    if value > most {
        return Err(above(field, value, most));
    }
    Ok(value)
}

fn invalid(error: String) -> Rejection {
    reject(Reason::InvalidAssignment, error, "publish a corrected assignment under a new task_id")
}

fn above(field: &str, value: impl std::fmt::Display, ceiling: impl std::fmt::Display) -> Rejection {
    let error = format!("{field}: {value} is above the class's ceiling of {ceiling}");
    reject(Reason::PolicyRefused, error, "ask for less, use another class, or have an operator raise the ceiling")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Assignment;

    fn planned(execution: &str) -> Result<Plan, Rejection> {
        let assignment: Assignment = serde_json::from_str(&format!(r#"{{"task_id":"t","execution":{execution}}}"#)).unwrap();
        let task = Task::of(assignment);
        plan(&task, &Class::default(), &TenantPolicy::default(), true)
    }

    #[test]
    fn what_is_left_out_comes_from_the_class() {
        let plan = planned(r#"{"runtime":"native","command":["true"]}"#).unwrap();
        assert_eq!((plan.limits.cpus, plan.limits.memory_bytes, plan.limits.timeout_ms), (1.0, 512 << 20, 60_000));
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
            (
                r#"{"runtime":"native","command":["true"],"timeout_s":1e9}"#,
                Reason::PolicyRefused,
                "execution.timeout_s: 1000000000 is above",
            ),
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
            (r#"{"runtime":"native","command":["true"],"resources":{"gpus":1}}"#, Reason::Unschedulable, "execution.resources.gpus"),
            (r#"{"runtime":"docker","image":"x"}"#, Reason::Unschedulable, "execution.runtime: \"docker\""),
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
}
