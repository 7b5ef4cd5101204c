//! Stage 7, settle: what an attempt's end means for the task and for its message. Pure.
//!
//! [`dispose`] is the one place that decides; the worker appends the event it names and ends the lease as it says.

use std::time::Duration;

use crate::plan::Plan;
use crate::retry::task_delay;
use crate::task::assignment::Retry;
use crate::task::{Outcome, Reason};

/// What follows from an attempt's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// `task_completed` or `task_failed`, then acknowledge.
    End,
    /// `task_retrying`, then give back with this delay.
    Retry(Duration),
}

/// Decides by the reason of the end, what the assignment wants, and the attempts that count so far (this one included).
#[must_use]
pub fn dispose(reason: Reason, wanted: &Retry, plan: &Plan, counted_attempts: u32) -> Disposition {
    let again = match reason.outcome() {
        Outcome::Success | Outcome::Cancellation => false,
        // The user's own failures only when the assignment asks; the deadline does not move.
        Outcome::Failure | Outcome::Timeout => reason != Reason::DeadlinePassed && wanted.wants(reason),
        Outcome::Error => reason.is_transient() || wanted.wants(reason),
    };
    if again && counted_attempts < plan.max_attempts.value {
        Disposition::Retry(task_delay(&plan.backoff.value, counted_attempts))
    } else {
        Disposition::End
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Class;
    use crate::intake::Task;
    use crate::plan::Policy;
    use crate::task::assignment::RetryOn;

    fn plan(max_attempts: u32) -> Plan {
        let retry = format!(r#"{{"max_attempts": {max_attempts}, "backoff": {{"initial_ms": 10, "factor": 2.0, "max_ms": 1000}}}}"#);
        let text = format!(r#"{{"task_id": "t", "execution": {{"runtime": "native", "command": ["true"]}}, "retry": {retry}}}"#);
        let task = Task::of(serde_json::from_str(&text).unwrap());
        crate::plan::plan(&task, &Policy::of_class(&Class::default())).unwrap()
    }

    #[test]
    fn only_the_platforms_faults_are_tried_again_unasked() {
        let nothing = Retry::default();
        let failures = Retry { on: vec![RetryOn::Outcome(Outcome::Failure)], ..Retry::default() };
        for (reason, wanted, attempt, again) in [
            (Reason::Ok, &failures, 1, false),
            (Reason::ExitNonzero, &nothing, 1, false),
            (Reason::ExitNonzero, &failures, 1, true),
            (Reason::ExitNonzero, &failures, 3, false),
            (Reason::Canceled, &failures, 1, false),
            (Reason::DiskFull, &nothing, 1, true),
            (Reason::DiskFull, &nothing, 3, false),
            (Reason::Timeout, &failures, 1, false),
            (Reason::IsolationUnavailable, &nothing, 2, true),
        ] {
            let disposition = dispose(reason, wanted, &plan(3), attempt);
            assert_eq!(matches!(disposition, Disposition::Retry(_)), again, "{reason} {attempt}");
        }
        assert_eq!(dispose(Reason::DiskFull, &nothing, &plan(3), 2), Disposition::Retry(Duration::from_millis(20)));
    }
}
