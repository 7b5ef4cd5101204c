//! Which devices there are: NVML's, or those that the configuration names.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::nvml::{Library, Opened};
use super::{GpuError, Reading};
use crate::config::{Gpu, GpuDevices, ListedGpu};

/// What every program needs besides the node of its device; as far as it is there.
const COMMON: [&str; 3] = ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"];
/// Major number of the nodes of NVIDIA's devices, `/dev/nvidia0` and so on.
const NVIDIA: u32 = 195;

/// Who told of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// NVIDIA's library.
    Nvml,
    /// The configuration.
    Configured,
}

/// One device, whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// What tasks, events and Docker call it: NVIDIA's UUID, or as the configuration has it.
    pub id: String,
    /// Its device node, where that is known.
    pub node: Option<PathBuf>,
    /// Who told of it.
    pub source: Source,
    /// Name of its lock: the same for all workers, whatever each of them calls the device.
    pub(super) lock: String,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Inventory {
    /// Those that tasks can get, in the order in which they are given.
    pub devices: Vec<Device>,
    /// Nodes that a task with any of them needs as well.
    pub common: Vec<PathBuf>,
    /// What an operator should know: a library that fails, devices that are left out.
    pub notes: Vec<String>,
    pub(super) library: Option<Library>,
}

impl Inventory {
    /// Looks.
    ///
    /// # Errors
    /// When a device that the configuration names is not there.
    pub fn find(config: &Gpu) -> Result<Self, GpuError> {
        let common = COMMON.iter().map(PathBuf::from).filter(|path| path.exists()).collect();
        match config.listed().map_err(GpuError::Devices)? {
            GpuDevices::Auto => Ok(Self { common, ..Self::by_nvml() }),
            GpuDevices::Listed(listed) => {
                let devices = listed.into_iter().map(configured).collect::<Result<_, _>>().map_err(GpuError::Devices)?;
                Ok(Self { devices, common, notes: vec![], library: None })
            }
        }
    }

    fn by_nvml() -> Self {
        match Library::open() {
            Opened::Absent => Self::default(),
            Opened::Failed(error) => Self { notes: vec![error], ..Self::default() },
            Opened::Open(library) => {
                let (found, notes) = library.devices();
                let device = |(id, minor): (String, Option<u32>)| {
                    let lock = minor.map_or_else(|| by_name(&id), |minor| by_number(NVIDIA, minor));
                    // In a container not every device that NVML tells of need have a node.
                    let node = minor.map(|minor| PathBuf::from(format!("/dev/nvidia{minor}"))).filter(|node| node.exists());
                    Device { id, node, source: Source::Nvml, lock }
                };
                let devices = found.into_iter().map(device).collect();
                Self { devices, common: vec![], notes, library: Some(library) }
            }
        }
    }

    pub(super) fn readings(&self) -> Vec<Reading> {
        let Some(library) = &self.library else { return Vec::new() };
        self.devices.iter().map(|device| library.read(&device.id)).collect()
    }
}

impl Device {
    /// Whether it is still there.
    ///
    /// # Errors
    /// What is in its place.
    pub fn check(&self) -> Result<(), String> {
        self.node.as_deref().map_or(Ok(()), |node| number(node).map(drop))
    }
}

/// Locks go by the device's number where there is one: a worker that has it by name and one that has it from NVML must meet.
fn by_number(major: u32, minor: u32) -> String {
    format!("{major}-{minor}.lock")
}

fn by_name(id: &str) -> String {
    format!("id-{id}.lock")
}

fn configured(listed: ListedGpu) -> Result<Device, String> {
    let lock = match &listed.node {
        Some(node) => number(node).map(|(major, minor)| by_number(major, minor))?,
        None => by_name(&listed.id),
    };
    Ok(Device { id: listed.id, node: listed.node, source: Source::Configured, lock })
}

/// Major and minor number of a device node.
fn number(node: &Path) -> Result<(u32, u32), String> {
    let metadata = std::fs::metadata(node).map_err(|error| format!("{}: {error}", node.display()))?;
    if !metadata.file_type().is_char_device() {
        return Err(format!("{}: not a character device", node.display()));
    }
    let device = metadata.rdev();
    Ok((rustix::fs::major(device), rustix::fs::minor(device)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(devices: &[&str]) -> Result<Inventory, GpuError> {
        let devices = devices.iter().map(ToString::to_string).collect();
        Inventory::find(&Gpu { devices, lock_dir: "/nowhere".into() })
    }

    #[test]
    fn a_configured_device_is_what_its_node_is() {
        let found = find(&["a=/dev/zero", "b=/dev/full", "c"]).unwrap().devices;
        let locks: Vec<&str> = found.iter().map(|device| device.lock.as_str()).collect();
        assert_eq!(locks, ["1-5.lock", "1-7.lock", "id-c.lock"], "by number where there is one: the name is each worker's own");
        assert!(found.iter().all(|device| device.check().is_ok() && device.source == Source::Configured));
    }

    #[test]
    fn what_is_no_device_is_said() {
        for (device, said) in
            [("a=/nowhere/nvidia0", "/nowhere/nvidia0: No such file"), ("a=/etc/passwd", "/etc/passwd: not a character device")]
        {
            let error = find(&[device]).unwrap_err().to_string();
            assert!(error.starts_with("gpu.devices: ") && error.contains(said), "{error}");
        }
    }

    #[test]
    fn without_the_library_there_are_none_and_that_is_no_error() {
        // Where there is one, its devices are found.
        let found = find(&["auto"]).unwrap();
        assert!(found.devices.iter().all(|device| device.source == Source::Nvml), "{found:?}");
        assert_eq!(found.readings().len(), found.devices.len());
    }
}
