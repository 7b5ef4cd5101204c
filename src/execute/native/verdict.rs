//! From what the supervisor saw to the reason in the event. Pure.

use crate::supervisor::protocol::{ExitReport, ExitStatus, SpawnError};
use crate::task::outcome::Reason;

/// Reason and hint for a program that never ran.
#[must_use]
pub fn explain_refusal(error: &SpawnError) -> (Reason, String) {
    match error {
        SpawnError::ProgramNotFound { program, searched: Some(path) } => (
            Reason::SpawnFailed,
            format!("{program:?} is in no directory of PATH={path}: install it on the worker, give its full path, or set PATH in the task's env"),
        ),
        SpawnError::ProgramNotFound { program, searched: None } => {
            (Reason::SpawnFailed, format!("{program:?} does not exist on this worker, seen from the task's working directory"))
        }
        SpawnError::NotExecutable { program, .. } => (
            Reason::SpawnFailed,
            format!("{program:?} exists and cannot run: check its execute permission, its first line (#!interpreter) and the machine it was built for; in a sandbox it must lie below sandbox.read_paths and be open to the tenant's user"),
        ),
        SpawnError::WorkingDir { path, .. } => (Reason::SpawnFailed, format!("the working directory {path:?} must exist and be open to the task's user")),
        SpawnError::Other { step, error, .. } if is_exhaustion(error) => {
            (Reason::IsolationUnavailable, format!("the worker's machine is out of a resource at {step}; another worker may have it"))
        }
        SpawnError::Other { step, error, .. } if step == "execve" && error.contains("os error 7") => {
            (Reason::SpawnFailed, "arguments and environment are larger than the kernel takes (128 KiB for one, 2 MiB in all by default): pass large values by stdin or as an input file".to_owned())
        }
        SpawnError::Other { step, error, .. } if is_sandbox(step) => {
            (Reason::IsolationUnavailable, format!("the sandbox could not be set up at {step} ({error}), and no task runs without it"))
        }
        SpawnError::Other { step, .. } => (Reason::SpawnFailed, format!("the kernel refused at {step}")),
        SpawnError::Limit { limit, .. } => {
            (Reason::IsolationUnavailable, format!("the worker could not set {limit} and does not run tasks without it: `windlass doctor` on that machine says what is missing"))
        }
        SpawnError::Sandbox { profile, .. } => {
            (Reason::IsolationUnavailable, format!("this worker cannot give the sandbox {profile} that the task's class requires: give it what is missing, or use a class or workers that have it"))
        }
        SpawnError::Cgroup { path, .. } => {
            (Reason::IsolationUnavailable, format!("the worker may not work in {path}: check the delegation (Delegate=cpu memory pids io) and cgroup.max.descendants"))
        }
    }
}

/// Steps of the sandbox, as the supervisor names them.
fn is_sandbox(step: &str) -> bool {
    matches!(step, "prepare sandbox" | "namespaces" | "mounts" | "change of user" | "landlock" | "seccomp")
}

/// ENOMEM, EAGAIN, ENFILE, EMFILE, ENOSPC: no fault of the task.
fn is_exhaustion(error: &str) -> bool {
    [libc::ENOMEM, libc::EAGAIN, libc::ENFILE, libc::EMFILE, libc::ENOSPC]
        .iter()
        .any(|errno| error.contains(&format!("(os error {errno})")))
}

/// Reason of an end that nobody asked for. Time limits, cancellation and a lost lease are the worker's to know.
///
/// An exit status of 0 is success even when the kernel killed a child for memory on the way: the program saw that and coped.
#[must_use]
pub fn reason_of_exit(report: &ExitReport) -> Reason {
    match report.status {
        ExitStatus::Code(0) => Reason::Ok,
        ExitStatus::Code(_) | ExitStatus::Signal(_) if report.usage.oom_kills > 0 => Reason::OomKilled,
        ExitStatus::Code(_) => Reason::ExitNonzero,
        ExitStatus::Signal(_) => Reason::Signaled,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::limits::Usage;

    #[test]
    fn ends_have_reasons() {
        for (status, oom_kills, reason, why) in [
            (ExitStatus::Code(0), 0, Reason::Ok, "it worked"),
            (ExitStatus::Code(0), 2, Reason::Ok, "it worked although a child was killed"),
            (ExitStatus::Code(3), 0, Reason::ExitNonzero, "its own failure"),
            (ExitStatus::Code(137), 0, Reason::ExitNonzero, "137 alone proves nothing"),
            (ExitStatus::Code(137), 1, Reason::OomKilled, "a shell reports its child's death"),
            (ExitStatus::Signal(9), 1, Reason::OomKilled, "the leader itself"),
            (ExitStatus::Signal(11), 0, Reason::Signaled, "crashed"),
        ] {
            let report = ExitReport { status, usage: Usage { oom_kills, ..Usage::default() }, lease_expired: false, kill_us: 0 };
            assert_eq!(reason_of_exit(&report), reason, "{why}");
        }
    }

    #[test]
    fn refusals_blame_the_right_side() {
        let other = |step: &str, errno: i32| SpawnError::Other {
            program: "x".into(),
            step: step.into(),
            error: std::io::Error::from_raw_os_error(errno).to_string(),
        };
        let text = || "x".to_owned();
        for (error, reason) in [
            (SpawnError::ProgramNotFound { program: text(), searched: Some(text()) }, Reason::SpawnFailed),
            (SpawnError::NotExecutable { program: text(), error: text() }, Reason::SpawnFailed),
            (SpawnError::WorkingDir { path: text(), error: text() }, Reason::SpawnFailed),
            (SpawnError::Limit { limit: text(), error: text() }, Reason::IsolationUnavailable),
            (SpawnError::Cgroup { path: text(), error: text() }, Reason::IsolationUnavailable),
            (other("execve", libc::E2BIG), Reason::SpawnFailed),
            (other("clone", libc::ENOMEM), Reason::IsolationUnavailable),
            (other("clone", libc::EAGAIN), Reason::IsolationUnavailable),
            (other("setsid", libc::EPERM), Reason::SpawnFailed),
        ] {
            let (found, hint) = explain_refusal(&error);
            assert_eq!(found, reason, "{error}");
            assert!(!hint.is_empty());
        }
    }
}
