//! How much of the machine a native task gets to see.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Profile of a sandbox. Its class decides; an assignment cannot ask for less. `docs/operating.md` has the table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Limits only: the task is the worker's user and sees what that sees.
    None,
    /// A user of its tenant, its own directory and `/tmp`, named paths to read, no dangerous system calls.
    #[default]
    Standard,
    /// Likewise, and nobody else: no network, no other processes.
    Strict,
}

impl Profile {
    /// The word in configuration and events.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Standard => "standard",
            Self::Strict => "strict",
        }
    }
}

impl std::fmt::Display for Profile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
