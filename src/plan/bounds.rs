//! What a task may use, and how often it is tried: what the assignment asks for, within the ceilings of its class.

use std::fmt::Display;
use std::time::Duration;

use super::{Decided, Policy, Rejection, above, invalid};
use crate::task::assignment::{BackoffPolicy, Execution, Retry};
use crate::task::{ByteSize, IoLimits, Limits};

/// Less cannot even hold the kernel's own account of a process.
const MIN_MEMORY: u64 = 1 << 20;

/// The limits of an attempt, each with who decided it.
#[derive(Debug, Clone, PartialEq)]
pub struct Bounds {
    /// CPUs' worth of time.
    pub cpus: Decided<f64>,
    /// Memory including page cache and swap.
    pub memory: Decided<ByteSize>,
    /// Processes and threads.
    pub pids: Decided<u64>,
    /// Wall-clock limit in milliseconds.
    pub timeout_ms: Decided<u64>,
    /// Block I/O.
    pub io: Decided<Option<IoLimits>>,
    /// Whether the kernel holds them, the time limit excepted.
    pub enforced: bool,
}

impl Bounds {
    /// The limits alone.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits {
            cpus: self.cpus.value,
            memory_bytes: self.memory.value.bytes(),
            pids: self.pids.value,
            timeout_ms: self.timeout_ms.value,
            io: self.io.value,
            enforced: self.enforced,
        }
    }
}

pub(super) fn bounds(execution: &Execution, policy: &Policy<'_>) -> Result<Bounds, Rejection> {
    let (resources, class) = (&execution.resources, policy.class);
    let timeout_s = policy.asked_or(execution.timeout_s, "timeout_s", |c| c.timeout_s);
    within("execution.timeout_s", timeout_s.value, 0.001, class.max_timeout_s)?;
    let cpus = policy.asked_or(resources.cpus, "cpus", |c| c.cpus);
    within("execution.resources.cpus", cpus.value, 0.01, class.max_cpus)?;
    let memory = policy.asked_or(resources.memory, "memory", |c| c.memory);
    below("execution.resources.memory", memory.value, class.max_memory)?;
    if memory.value.bytes() < MIN_MEMORY {
        return Err(invalid(format!("execution.resources.memory: {} is too little for any process; at least 1MiB", memory.value)));
    }
    let pids = policy.asked_or(resources.pids, "pids", |c| c.pids);
    below("execution.resources.pids", pids.value, class.max_pids)?;
    if pids.value == 0 {
        return Err(invalid("execution.resources.pids: 0 allows no process at all; at least 1".to_owned()));
    }
    let timeout_ms = timeout_s.map(|s| u64::try_from(Duration::from_secs_f64(s).as_millis()).unwrap_or(u64::MAX).max(1));
    let io = policy.asked_or(resources.io.map(Some), "io", |_| None);
    Ok(Bounds { cpus, memory, pids, timeout_ms, io, enforced: policy.enforced })
}

pub(super) fn gpus(execution: &Execution, policy: &Policy<'_>) -> Result<Decided<u32>, Rejection> {
    let gpus = policy.asked_or(execution.resources.gpus, "gpus", |c| c.gpus);
    below("execution.resources.gpus", gpus.value, policy.class.max_gpus)?;
    Ok(gpus)
}

pub(super) fn grace(execution: &Execution, policy: &Policy<'_>) -> Result<Decided<Duration>, Rejection> {
    let grace_s = policy.asked_or(execution.grace_s, "grace_s", |c| c.grace_s);
    within("execution.grace_s", grace_s.value, 0.0, policy.class.max_grace_s)?;
    Ok(grace_s.map(Duration::from_secs_f64))
}

pub(super) fn max_attempts(retry: &Retry, policy: &Policy<'_>) -> Result<Decided<u32>, Rejection> {
    let max_attempts = policy.asked_or(retry.max_attempts, "max_attempts", |c| c.max_attempts);
    if max_attempts.value == 0 {
        return Err(invalid("retry.max_attempts: 0 allows no attempt at all; the first one counts, so use 1 or more".to_owned()));
    }
    below("retry.max_attempts", max_attempts.value, policy.class.max_max_attempts)?;
    Ok(max_attempts)
}

pub(super) fn backoff(retry: &Retry, policy: &Policy<'_>) -> Result<Decided<BackoffPolicy>, Rejection> {
    let backoff = policy.asked_or(retry.backoff, "backoff", |c| c.backoff);
    let factor = backoff.value.factor;
    if !(factor.is_finite() && factor >= 1.0) {
        return Err(invalid(format!("retry.backoff.factor: {factor} must be 1 or more")));
    }
    Ok(backoff)
}

pub(super) fn within(field: &str, value: f64, least: f64, most: f64) -> Result<(), Rejection> {
    if !value.is_finite() || value < least {
        return Err(invalid(format!("{field}: {value} is too small; at least {least}")));
    }
    below(field, value, most)
}

pub(super) fn below<T: PartialOrd + Display>(field: &str, value: T, ceiling: T) -> Result<(), Rejection> {
    if value > ceiling { Err(above(field, value, ceiling)) } else { Ok(()) }
}
