//! `[docker]`: the engine that runs containers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::task::{ByteSize, ImagePattern};

/// `[docker]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Docker {
    /// Socket of the engine, `unix:///path`; empty: no containers.
    pub host: String,
    /// Images that tenants without a list of their own may use; none unless listed.
    pub images: Vec<ImagePattern>,
    /// File with the credentials of registries, as `docker login` writes it; empty: none.
    pub credentials: String,
    /// Seconds before a request to the engine counts as unanswered.
    pub request_timeout_s: f64,
    /// Seconds without any progress after which a pull is given up.
    pub pull_inactivity_s: f64,
    /// How often a pull that failed for a transient reason is tried again.
    pub pull_retry: RetryConfig,
    /// Use of the disk that holds images, in percent, above which images that Windlass pulled and nobody uses are removed.
    pub disk_high_percent: f64,
    /// Size of a container's `/tmp`, in memory.
    pub tmp: ByteSize,
}

/// How often, and after which delays, something that failed for a transient reason is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RetryConfig {
    /// Tries in all.
    pub max_attempts: u32,
    /// Delay before the second, milliseconds.
    pub initial_ms: u64,
    /// Growth from one delay to the next.
    pub factor: f64,
    /// Longest delay, milliseconds.
    pub max_ms: u64,
}
