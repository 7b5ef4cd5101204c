//! What the end of a process amounts to. Pure.

use crate::supervisor::protocol::{ExitReport, ExitStatus, SpawnError};
use crate::task::{ByteSize, Limits, Reason};

/// The reason of a program that never ran, and what to do about it.
#[must_use]
pub fn reason_of_refusal(error: &SpawnError) -> (Reason, &'static str) {
    match error {
        SpawnError::Limit { .. } | SpawnError::Cgroup { .. } => {
            (Reason::IsolationUnavailable, "the worker's machine cannot give what it promises; look at its cgroups")
        }
        SpawnError::ProgramNotFound { .. } => {
            (Reason::SpawnFailed, "install the program on the workers, or give its path; PATH can be set in execution.env")
        }
        SpawnError::NotExecutable { .. } => {
            (Reason::SpawnFailed, "give it the executable bit and a #! line, or name its interpreter in the command")
        }
        SpawnError::WorkingDir { .. } => (Reason::SpawnFailed, "leave working_dir out to run in the task's own directory"),
        SpawnError::Other { .. } => (Reason::SpawnFailed, "see the error"),
    }
}

/// Reason, error and hint of a program that ended by itself or by the kernel.
#[must_use]
pub fn verdict(report: &ExitReport, limits: &Limits) -> (Reason, Option<String>, Option<String>) {
    let oom = report.usage.oom_kills > 0;
    match report.status {
        // A child of the task may have been killed for memory; the task coped with it, and `usage` says so.
        ExitStatus::Code(0) => (Reason::Ok, None, None),
        ExitStatus::Code(_) | ExitStatus::Signal(_) if oom => {
            let error = format!("killed by the kernel at its memory limit of {}", ByteSize(limits.memory_bytes));
            (Reason::OomKilled, Some(error), Some("raise execution.resources.memory, or make the task use less".to_owned()))
        }
        ExitStatus::Code(code) => {
            (Reason::ExitNonzero, Some(format!("exit status {code}")), Some("see stderr_tail and the log".to_owned()))
        }
        ExitStatus::Signal(signal) => {
            (Reason::Signaled, Some(format!("ended by signal {signal}")), Some("see stderr_tail and the log".to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::limits::Usage;

    #[test]
    fn out_of_memory_is_what_the_kernel_counted() {
        let limits = Limits { cpus: 1.0, memory_bytes: 64 << 20, pids: 1, timeout_ms: 1, io: None, enforced: true };
        for (status, oom_kills, reason) in [
            (ExitStatus::Code(0), 0, Reason::Ok),
            (ExitStatus::Code(0), 1, Reason::Ok),
            (ExitStatus::Code(1), 1, Reason::OomKilled),
            (ExitStatus::Signal(9), 1, Reason::OomKilled),
            (ExitStatus::Signal(9), 0, Reason::Signaled),
            (ExitStatus::Code(137), 0, Reason::ExitNonzero),
        ] {
            let usage = Usage { oom_kills, ..Usage::default() };
            let report = ExitReport { status, usage, lease_expired: false, kill_us: 0 };
            assert_eq!(verdict(&report, &limits).0, reason, "{status:?} with {oom_kills} kills");
        }
    }
}
