//! GPUs in containers: what of a container's configuration gives it its devices, and no others.

use std::collections::HashMap;

use bollard::models::{DeviceMapping, DeviceRequest};

use crate::execute::gpu::{Device, Source};

/// The part of a container's configuration that is about devices.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Devices {
    /// As `docker run --gpus device=ID` asks for them: the engine's NVIDIA runtime brings nodes and libraries along.
    pub requests: Vec<DeviceRequest>,
    /// Plain nodes, as `docker run --device` gives them.
    pub mappings: Vec<DeviceMapping>,
}

/// What gives a container these devices. Those that NVML told of are asked for by their ids; of those that the configuration
/// names with a node, the node is given, and what is in the image has to be enough.
#[must_use]
pub fn of<'a>(devices: impl IntoIterator<Item = &'a Device>) -> Devices {
    let (mut ids, mut mappings) = (Vec::new(), Vec::new());
    for device in devices {
        match (device.source, &device.node) {
            (Source::Configured, Some(node)) => {
                let path = node.to_string_lossy().into_owned();
                let permissions = Some("rw".to_owned());
                mappings.push(DeviceMapping {
                    path_on_host: Some(path.clone()),
                    path_in_container: Some(path),
                    cgroup_permissions: permissions,
                });
            }
            (Source::Configured, None) | (Source::Nvml, _) => ids.push(device.id.clone()),
        }
    }
    let request = (!ids.is_empty()).then(|| DeviceRequest {
        driver: Some("nvidia".to_owned()),
        count: None,
        device_ids: Some(ids),
        capabilities: Some(vec![vec!["gpu".to_owned()]]),
        options: Some(HashMap::new()),
    });
    Devices { requests: request.into_iter().collect(), mappings }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Gpu;
    use crate::execute::gpu::Inventory;

    fn devices(listed: &[&str]) -> Vec<Device> {
        let devices = listed.iter().map(ToString::to_string).collect();
        Inventory::find(&Gpu { devices, lock_dir: "/nowhere".into() }).unwrap().devices
    }

    #[test]
    fn ids_are_requested_and_nodes_are_mapped() {
        let found = devices(&["GPU-1", "GPU-2", "card=/dev/zero"]);
        let given = of(&found);
        let [request] = given.requests.as_slice() else { panic!("{given:?}") };
        assert_eq!(request.device_ids.as_deref(), Some(["GPU-1".to_owned(), "GPU-2".to_owned()].as_slice()), "one request for all");
        assert_eq!((request.driver.as_deref(), request.count), (Some("nvidia"), None), "a count beside ids is refused by engines");
        let [mapping] = given.mappings.as_slice() else { panic!("{given:?}") };
        assert_eq!((mapping.path_on_host.as_deref(), mapping.cgroup_permissions.as_deref()), (Some("/dev/zero"), Some("rw")), "no mknod");
        assert_eq!(of(&[]), Devices::default(), "nothing for those without");
    }
}
