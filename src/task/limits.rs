//! What a task may use, as it was decided (not as it was asked for).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Resolved limits of one attempt. Every one of them is set and read back before the task's first instruction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Limits {
    /// CPUs' worth of time, e.g. `0.5`.
    pub cpus: f64,
    /// Memory including page cache and swap, in bytes.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Wall-clock limit in milliseconds.
    pub timeout_ms: u64,
    /// Block I/O, where asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io: Option<IoLimits>,
    /// False when the worker runs with `--allow-unlimited` and the kernel enforces none of this but the time limit.
    pub enforced: bool,
}

/// Block I/O limits on the device that holds the work directory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IoLimits {
    /// Bytes read per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_bytes_per_s: Option<u64>,
    /// Bytes written per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_bytes_per_s: Option<u64>,
    /// Read operations per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_ops_per_s: Option<u64>,
    /// Write operations per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_ops_per_s: Option<u64>,
}

/// What one attempt used, as the kernel counted it. A figure that this kernel does not offer is 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    /// CPU time in user mode, microseconds.
    pub cpu_user_us: u64,
    /// CPU time in the kernel, microseconds.
    pub cpu_system_us: u64,
    /// Highest memory use of the whole tree, bytes.
    pub memory_peak_bytes: u64,
    /// Processes the kernel killed for memory.
    pub oom_kills: u64,
    /// Time the tree was held back by its CPU limit, microseconds.
    pub throttled_us: u64,
    /// Most processes and threads at one time.
    pub pids_peak: u64,
    /// Processes still alive when the task's own process had ended; they were killed.
    pub leaked_processes: u64,
}
