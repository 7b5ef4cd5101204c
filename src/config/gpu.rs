//! `[gpu]`: the devices that are given to tasks.

use std::collections::BTreeSet;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[gpu]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Gpu {
    /// Devices to give to tasks: `auto` for those that NVML tells of, or ids, each with its device node: `GPU-1f2e=/dev/nvidia0`.
    pub devices: Vec<String>,
    /// Directory of the locks by which the workers of this machine share its devices.
    pub lock_dir: PathBuf,
}

/// The word for "those that NVML tells of".
const AUTO: &str = "auto";
/// Longest id: NVIDIA's have 40 characters.
const LONGEST_ID: usize = 128;

/// Where a worker has its devices from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GpuDevices {
    /// NVML is asked.
    Auto,
    /// These, and no others.
    Listed(Vec<ListedGpu>),
}

/// A device that the configuration names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedGpu {
    /// What tasks are told to use: NVIDIA's UUID or number.
    pub id: String,
    /// Its device node.
    pub node: Option<PathBuf>,
}

impl Gpu {
    /// What `devices` says.
    ///
    /// # Errors
    /// The first entry that is none, and why.
    pub fn listed(&self) -> Result<GpuDevices, String> {
        match self.devices.as_slice() {
            [only] if only == AUTO => return Ok(GpuDevices::Auto),
            devices if devices.iter().any(|device| device == AUTO) => {
                return Err(format!(
                    "= {:?}: \"auto\" stands alone, for all devices that NVML tells of; or list ids without it",
                    self.devices
                ));
            }
            _ => {}
        }
        let (mut ids, mut nodes) = (BTreeSet::new(), BTreeSet::new());
        let mut listed = Vec::with_capacity(self.devices.len());
        for text in &self.devices {
            let device = one(text)?;
            if !ids.insert(device.id.clone()) {
                return Err(format!("names {:?} twice; a device is one task's at a time", device.id));
            }
            if let Some(node) = device.node.clone().filter(|node| !nodes.insert(node.clone())) {
                return Err(format!("names the node {} twice; each device has its own", node.display()));
            }
            listed.push(device);
        }
        Ok(GpuDevices::Listed(listed))
    }
}

fn one(text: &str) -> Result<ListedGpu, String> {
    let (id, node) = text.split_once('=').map_or((text, None), |(id, node)| (id, Some(PathBuf::from(node))));
    if !is_id(id) {
        return Err(format!("names {id:?}; an id has 1 to {LONGEST_ID} of A-Z a-z 0-9 . _ : -, as `nvidia-smi -L` shows it"));
    }
    if let Some(node) = node.as_ref().filter(|node| !node.is_absolute()) {
        return Err(format!("gives {id} the node {:?}; write an absolute path such as {id}=/dev/nvidia0", node.display().to_string()));
    }
    Ok(ListedGpu { id: id.to_owned(), node })
}

/// It is part of lists with commas, of file names, and of environment variables.
pub(crate) fn is_id(id: &str) -> bool {
    let of_id = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-');
    (1..=LONGEST_ID).contains(&id.len()) && id.bytes().all(of_id) && id.as_bytes()[0].is_ascii_alphanumeric()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(devices: &[&str]) -> Result<GpuDevices, String> {
        Gpu { devices: devices.iter().map(ToString::to_string).collect(), lock_dir: "/run/lock".into() }.listed()
    }

    #[test]
    fn devices_are_told_from_mistakes() {
        assert_eq!(listed(&["auto"]), Ok(GpuDevices::Auto));
        assert_eq!(listed(&[]), Ok(GpuDevices::Listed(vec![])), "none at all");
        let gpu = |id: &str, node: Option<&str>| ListedGpu { id: id.to_owned(), node: node.map(PathBuf::from) };
        assert_eq!(
            listed(&["GPU-1f2e=/dev/nvidia0", "1"]),
            Ok(GpuDevices::Listed(vec![gpu("GPU-1f2e", Some("/dev/nvidia0")), gpu("1", None)]))
        );
        for (devices, said) in [
            (vec!["auto", "GPU-1"], "\"auto\" stands alone"),
            (vec!["GPU-1", "GPU-1=/dev/nvidia0"], "names \"GPU-1\" twice"),
            (vec!["a=/dev/nvidia0", "b=/dev/nvidia0"], "the node /dev/nvidia0 twice"),
            (vec!["a=nvidia0"], "an absolute path such as a=/dev/nvidia0"),
            (vec!["a,b"], "names \"a,b\""),
            (vec![""], "names \"\""),
            (vec!["../x"], "names \"../x\""),
        ] {
            let error = listed(&devices).unwrap_err();
            assert!(error.contains(said), "{devices:?}: {error}");
        }
    }
}
