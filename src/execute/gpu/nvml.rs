//! NVIDIA's management library, loaded where it is there. The only file that names `nvml_wrapper`.

use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;

use super::Reading;
use crate::config::is_gpu_id;

/// The library, with its connection to the driver. In a box: it is 12 kB of pointers to functions.
#[derive(Debug)]
pub(super) struct Library(Box<Nvml>);

/// What came of the attempt to open it.
pub(super) enum Opened {
    /// This machine has none.
    Absent,
    /// It is there, and fails.
    Failed(String),
    /// Open.
    Open(Library),
}

/// What `dlopen` says of a library that does not exist; of one that lacks something else, the name of that comes first.
const MISSING: &str = "libnvidia-ml.so.1: cannot open shared object file: No such file";

/// A device's id and the minor number of its node, where it tells that.
type Found = (String, Option<u32>);

impl Library {
    pub(super) fn open() -> Opened {
        match Nvml::init() {
            Ok(nvml) => Opened::Open(Self(Box::new(nvml))),
            Err(NvmlError::LibloadingError(error)) if error.to_string().contains(MISSING) => Opened::Absent,
            Err(error) => Opened::Failed(format!("NVIDIA's library is there and does not work, so no GPU is used: {error}")),
        }
    }

    /// The devices that can be given whole, and a note for each that cannot.
    pub(super) fn devices(&self) -> (Vec<Found>, Vec<String>) {
        let count = match self.0.device_count() {
            Ok(count) => count,
            Err(error) => return (vec![], vec![format!("NVML does not say how many GPUs there are: {error}")]),
        };
        let (mut found, mut notes) = (Vec::new(), Vec::new());
        for index in 0..count {
            match self.device(index) {
                Ok(device) => found.push(device),
                Err(why) => notes.push(format!("GPU {index} is left out: {why}")),
            }
        }
        (found, notes)
    }

    fn device(&self, index: u32) -> Result<Found, String> {
        let told = |error: NvmlError| error.to_string();
        let device = self.0.device_by_index(index).map_err(told)?;
        let id = device.uuid().map_err(told)?;
        if !is_gpu_id(&id) {
            return Err(format!("its id {id:?} is none"));
        }
        // Devices without the feature say that they do not support the question.
        if device.mig_mode().is_ok_and(|mode| mode.current != 0) {
            return Err(format!("{id} is divided (MIG), and tasks get whole devices: nvidia-smi -i {index} -mig 0"));
        }
        Ok((id, device.minor_number().ok()))
    }

    /// What a device is doing now.
    pub(super) fn read(&self, id: &str) -> Reading {
        let device = self.0.device_by_uuid(id).ok();
        let utilization = device.as_ref().and_then(|device| device.utilization_rates().ok());
        let memory = device.as_ref().and_then(|device| device.memory_info().ok());
        Reading {
            id: id.to_owned(),
            utilization: utilization.map(|rates| f64::from(rates.gpu) / 100.0),
            memory_used: memory.map(|memory| memory.used),
        }
    }
}
