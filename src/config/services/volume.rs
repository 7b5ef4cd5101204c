//! What of the machine a long-lived service sees.

use std::fmt;

use serde::{Deserialize, Serialize};

/// `source:/target[:ro]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Volume {
    /// Where it comes from.
    pub source: VolumeSource,
    /// Absolute path in the container.
    pub target: String,
    /// Not to be written.
    pub read_only: bool,
}

/// Where a volume comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeSource {
    /// The engine keeps it, by this name, until `down --volumes`.
    Named(String),
    /// A directory or file of the machine.
    Path(String),
}

fn is_plain_path(path: &str) -> bool {
    path.starts_with('/') && !path.contains('\0') && !path.split('/').any(|part| part == "..")
}

fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
}

impl TryFrom<String> for Volume {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (rest, read_only) = text.strip_suffix(":ro").map_or((text.as_str(), false), |rest| (rest, true));
        let (source, target) = rest.split_once(':').unwrap_or((rest, ""));
        let source = match source {
            path if is_plain_path(path) => Some(VolumeSource::Path(path.to_owned())),
            name if is_name(name) => Some(VolumeSource::Named(name.to_owned())),
            _ => None,
        };
        match source {
            Some(source) if is_plain_path(target) && !target.contains(':') && !target.trim_end_matches('/').is_empty() => {
                Ok(Self { source, target: target.to_owned(), read_only })
            }
            _ => Err(format!(
                "{text:?} is no volume; write name:/target or /directory:/target, with :ro at its end for reading only; a name has a-z 0-9 - _"
            )),
        }
    }
}

impl From<Volume> for String {
    fn from(volume: Volume) -> Self {
        volume.to_string()
    }
}

impl fmt::Display for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = match &self.source {
            VolumeSource::Named(source) | VolumeSource::Path(source) => source,
        };
        write!(f, "{source}:{}{}", self.target, if self.read_only { ":ro" } else { "" })
    }
}
