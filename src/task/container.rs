//! What assignments and classes say about containers.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ByteSize;

/// When an image is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PullPolicy {
    /// Before every task.
    Always,
    /// When the engine does not have it.
    Missing,
    /// Never: the engine has it, or the task fails.
    Never,
}

impl PullPolicy {
    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::Missing => "missing",
            Self::Never => "never",
        }
    }
}

impl fmt::Display for PullPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A directory or file of the worker's machine inside a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// Absolute path on the worker's machine; below a root that the tenant may mount.
    pub source: String,
    /// Absolute path in the container.
    pub target: String,
    /// Not to be written; true unless said otherwise.
    #[serde(default = "yes")]
    pub read_only: bool,
}

fn yes() -> bool {
    true
}

/// A container that a task or an environment needs beside it, such as a database.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceSpec {
    /// Name by which the task reaches it: a host name of its network, `[a-z0-9]` and `-` inside, 63 characters at most.
    pub name: String,
    /// Image.
    pub image: String,
    /// Entry point; the image's unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Command; the image's unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Directories of the machine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// Directories that it may write and that are gone with it: in memory, counted as its memory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tmpfs: Vec<String>,
    /// User, `uid[:gid]`, or `image` for the image's own; the tenant's unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// CPUs' worth of time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<f64>,
    /// Memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<ByteSize>,
    /// How to see that it is ready; without it, it is once it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthCheck>,
    /// Services that are started, and healthy, before this one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub depends_on: Vec<String>,
}

/// A command inside a service's container that ends with 0 when the service is ready.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Seconds between two looks.
    #[serde(default = "one")]
    pub interval_s: f64,
    /// Seconds that one look may take.
    #[serde(default = "five")]
    pub timeout_s: f64,
    /// Looks that may fail before the service counts as unhealthy.
    #[serde(default = "thirty")]
    pub retries: u32,
}

fn one() -> f64 {
    1.0
}

fn five() -> f64 {
    5.0
}

fn thirty() -> u32 {
    30
}

/// A root below which a tenant's containers may mount: an absolute path, with `:ro` at its end when nothing below it may be
/// written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct MountRoot {
    /// The path.
    #[serde(skip)]
    pub path: std::path::PathBuf,
    /// Nothing below it may be written.
    #[serde(skip)]
    pub read_only: bool,
    text: String,
}

impl TryFrom<String> for MountRoot {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (path, read_only) = text.strip_suffix(":ro").map_or((text.as_str(), false), |path| (path, true));
        let path = std::path::PathBuf::from(path);
        let plain = path.components().all(|part| !matches!(part, std::path::Component::ParentDir));
        if !path.is_absolute() || !plain {
            return Err(format!("{text:?} is no root of mounts: give an absolute path without .., with :ro at its end for reading only"));
        }
        Ok(Self { path, read_only, text })
    }
}

impl From<MountRoot> for String {
    fn from(root: MountRoot) -> Self {
        root.text
    }
}

/// Whether `text` is a user of a container: `uid`, `uid:gid`, or `image` for the image's own. Names are none, for what they mean
/// is the image's to say.
#[must_use]
pub fn is_user(text: &str) -> bool {
    // The highest number stands for none.
    let is_id = |id: &str| id.bytes().all(|b| b.is_ascii_digit()) && id.parse::<u32>().is_ok_and(|id| id != u32::MAX);
    match text.split_once(':') {
        None => text == "image" || is_id(text),
        Some((uid, gid)) => is_id(uid) && is_id(gid),
    }
}
