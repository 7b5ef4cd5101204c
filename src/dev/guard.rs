//! A program that does not outlive the process that started it.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use crate::cli::{Exit, GuardArgs};

/// Becomes `args.command`, to be killed by the kernel when the thread that started this process ends.
///
/// `prctl(PR_SET_PDEATHSIG)` survives `execve` and needs no code of ours between fork and exec, which would be unsafe.
/// The kernel watches the *thread* that forked: `dev` starts it from the process's first thread, which lives as long as
/// the process. Returns only when that failed, or when the parent was gone before the kernel was told.
#[must_use]
pub fn guard(args: &GuardArgs) -> Exit {
    let Some((program, rest)) = args.command.split_first() else { return Exit::Usage };
    if set_parent_process_death_signal(Some(Signal::KILL)).is_err() {
        return Exit::Platform;
    }
    if getppid().map(Pid::as_raw_nonzero).map(std::num::NonZero::get) != Some(args.parent) {
        return Exit::Interrupted;
    }
    let error = Command::new(program).args(rest).exec();
    crate::cli::Output::new(crate::cli::Format::Table).failed(&crate::cli::Failed::new(
        Exit::Task(if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 }),
        format!("cannot start {}: {error}", program.display()),
    ));
    Exit::Task(127)
}
