//! Stage 3, plan: what exactly would run, or why not. Pure: the same code answers the worker and a dry run.
//!
//! Nothing is clipped: a request above a ceiling of its class is refused, and the refusal names the field, the value and
//! the ceiling. Every value that was decided says who decided it ([`Decided`]).

use std::collections::BTreeMap;
use std::time::Duration;

use crate::execute::native::sandbox::User;
use crate::intake::Task;
use crate::task::assignment::{BackoffPolicy, Execution, Runtime};
use crate::task::{Limits, Profile, Reason};

mod bounds;
mod container;
mod policy;
mod secrets;
mod service;
#[cfg(test)]
mod tests;

pub use bounds::Bounds;
pub use container::{AllowedMount, Container, ContainerUser, Service};
pub use policy::{Decided, Policy, Source};
pub use secrets::Secret;

/// What would run.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Runtime.
    pub runtime: Runtime,
    /// The program and how it is started.
    pub program: Program,
    /// The container, for `docker`.
    pub container: Option<Container>,
    /// Limits.
    pub bounds: Bounds,
    /// Whole GPUs.
    pub gpus: Decided<u32>,
    /// Sandbox, as its class has it.
    pub sandbox: Decided<Profile>,
    /// The user of its tenant, for workers that can have one.
    pub user: Decided<User>,
    /// Time between SIGTERM and SIGKILL.
    pub grace: Decided<Duration>,
    /// Attempts in all.
    pub max_attempts: Decided<u32>,
    /// Delays between them.
    pub backoff: Decided<BackoffPolicy>,
    /// Secrets that it gets.
    pub secrets: Vec<Secret>,
}

impl Plan {
    /// The limits that are set.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.bounds.limits()
    }
}

/// The program of a task.
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
    /// What the container's image starts with its entry point and command.
    Container,
}

/// Longest script that is passed as an argument; the kernel takes 128 KiB in one argument.
const INLINE_SCRIPT: usize = 64 * 1024;

impl Program {
    /// The script, when it has to be a file because no argument can hold it.
    #[must_use]
    pub fn script_file(&self) -> Option<&str> {
        match self {
            Self::Bash { script, .. } if script.len() > INLINE_SCRIPT || script.contains('\0') => Some(script),
            Self::Bash { .. } | Self::Argv(_) | Self::Container => None,
        }
    }

    /// The argument vector, with `file` as the path of a [script that is one](Self::script_file).
    #[must_use]
    pub fn argv(&self, file: &str) -> Vec<String> {
        match self {
            Self::Argv(argv) => argv.clone(),
            Self::Container => Vec::new(),
            Self::Bash { script, args } => {
                let shell: &[&str] = if self.script_file().is_some() { &["bash", file] } else { &["bash", "-c", script, "bash"] };
                shell.iter().map(|s| (*s).to_owned()).chain(args.iter().cloned()).collect()
            }
        }
    }
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
pub fn plan(task: &Task, policy: &Policy<'_>) -> Result<Plan, Rejection> {
    let execution = &task.assignment.execution;
    offered(task, policy)?;
    let program = program(execution)?;
    let container = (execution.runtime == Runtime::Docker).then(|| container::container(task, policy)).transpose()?;
    check_environment(execution)?;
    let secrets = secrets::allowed(task, policy.grants())?;
    let bounds = bounds::bounds(execution, policy)?;
    if container.is_some() {
        container::check_memory(bounds.memory.value.bytes())?;
    }
    let gpus = bounds::gpus(execution, policy)?;
    let grace = bounds::grace(execution, policy)?;
    let max_attempts = bounds::max_attempts(&task.assignment.retry, policy)?;
    let backoff = bounds::backoff(&task.assignment.retry, policy)?;
    let sandbox = policy.by_class("sandbox", |class| class.sandbox);
    let user = policy.user(&task.tenant);
    Ok(Plan { runtime: execution.runtime, program, container, bounds, gpus, sandbox, user, grace, max_attempts, backoff, secrets })
}

/// What this version, and this class, offers.
fn offered(task: &Task, policy: &Policy<'_>) -> Result<(), Rejection> {
    let (assignment, class) = (&task.assignment, policy.class);
    let execution = &assignment.execution;
    let runtime = execution.runtime;
    if !runtime.is_offered() {
        let error = format!(
            "execution.runtime: {:?} is not offered by this version of the worker; it has native, bash and docker",
            runtime.as_str()
        );
        return Err(reject(Reason::Unschedulable, error, "use native, bash or docker, or workers that offer it"));
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
    let contained = runtime == Runtime::Docker;
    let network = if class.sandbox == Profile::Strict { "none" } else { "host" };
    let absent = [
        ("workspace", !assignment.workspace.is_null()),
        ("environment", !assignment.environment.is_null()),
        ("artifacts", !assignment.artifacts.is_empty()),
        ("services", !contained && !assignment.services.is_empty()),
        ("execution.image", !contained && execution.image.is_some()),
        ("execution.pull", !contained && execution.pull.is_some()),
        ("execution.registry_secret", !contained && execution.registry_secret.is_some()),
        ("execution.entrypoint", !contained && execution.entrypoint.is_some()),
        ("execution.mounts", !contained && !execution.mounts.is_empty()),
        ("execution.user", !contained && execution.user.is_some()),
        ("execution.network", !contained && execution.network.as_deref().is_some_and(|n| n != network)),
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
        Runtime::Docker => {
            if execution.script.is_some() || execution.module.is_some() || execution.runner.is_some() || !execution.args.is_empty() {
                return Err(invalid(
                    "execution: runtime docker takes entrypoint and command, not script, module, runner or args".to_owned(),
                ));
            }
            Ok(Program::Container)
        }
        Runtime::Native | Runtime::Python | Runtime::Grpc | Runtime::Slurm | Runtime::Runner => {
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
    check_variables("execution.env", &execution.env)?;
    check_working_dir(execution.working_dir.as_deref())
}

fn check_variables(field: &str, variables: &BTreeMap<String, String>) -> Result<(), Rejection> {
    let bad = |(name, value): &(&String, &String)| name.is_empty() || name.contains(['=', '\0']) || value.contains('\0');
    match variables.iter().find(bad) {
        None => Ok(()),
        Some((name, _)) => {
            let rule = "no empty names, no '=' in names, no NUL bytes";
            Err(invalid(format!("{field}: {name:?} cannot be an environment variable: {rule}")))
        }
    }
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

fn invalid(error: String) -> Rejection {
    reject(Reason::InvalidAssignment, error, "publish a corrected assignment under a new task_id")
}

fn above(field: &str, value: impl std::fmt::Display, ceiling: impl std::fmt::Display) -> Rejection {
    let error = format!("{field}: {value} is above the class's ceiling of {ceiling}");
    reject(Reason::PolicyRefused, error, "ask for less, use another class, or have an operator raise the ceiling")
}
