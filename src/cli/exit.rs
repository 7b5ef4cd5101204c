//! Exit codes: part of the contract, `docs/cli.md`.

use std::process::ExitCode;

use crate::task::{Event, Outcome, Reason};

/// How the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: done.
    Done,
    /// 1: an error that no other code names, or a failed task without an exit status of its own.
    Error,
    /// 2: wrong arguments, configuration or assignment.
    Usage,
    /// 3: no such task, dead letter or file.
    NotFound,
    /// 4: NATS refuses the credentials.
    NotPermitted,
    /// 5: the id is taken, the task is over, or a stream stands in the way.
    Conflict,
    /// 6: NATS, or the container engine, does not answer.
    Unreachable,
    /// 7: what was read is not what the manifest promises.
    Unverified,
    /// 124: waited as long as was allowed; also a task's time limit.
    TimedOut,
    /// 125: the platform failed the task.
    Platform,
    /// 130: interrupted; also a canceled task.
    Interrupted,
    /// The task's own code.
    Task(u8),
}

impl Exit {
    /// The number.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Error => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::NotPermitted => 4,
            Self::Conflict => 5,
            Self::Unreachable => 6,
            Self::Unverified => 7,
            Self::TimedOut => 124,
            Self::Platform => 125,
            Self::Interrupted => 130,
            Self::Task(code) => code,
        }
    }

    /// The code that a task's terminal event stands for: its own where it has one, 128 + signal, 124, 125 or 130.
    #[must_use]
    pub fn of_task(event: &Event) -> Self {
        match event.outcome {
            Some(Outcome::Success) => Self::Done,
            Some(Outcome::Timeout) => Self::TimedOut,
            Some(Outcome::Cancellation) => Self::Interrupted,
            Some(Outcome::Error) | None => Self::Platform,
            Some(Outcome::Failure) => Self::of_failure(event),
        }
    }

    fn of_failure(event: &Event) -> Self {
        let signal = event.signal.and_then(|signal| u8::try_from(signal).ok()?.checked_add(128));
        // A failed task with status 0 has an invalid result: it must not look like a success.
        let own = event.exit_code.and_then(|code| u8::try_from(code).ok()).filter(|code| *code != 0);
        match (signal.or(own), event.reason) {
            (Some(code), _) => Self::Task(code),
            (None, Some(Reason::OomKilled)) => Self::Task(137),
            (None, _) => Self::Error,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
