//! GPUs: which there are, and whether they can be shared with other workers.

use super::{Area, Check, Finding};
use crate::config::Config;
use crate::execute::gpu::locks::LockDir;
use crate::execute::gpu::{Inventory, Source};

/// What was found.
#[derive(Debug)]
pub(super) struct Facts {
    devices: Result<Found, String>,
}

#[derive(Debug, Default)]
struct Found {
    ids: Vec<String>,
    configured: bool,
    notes: Vec<String>,
    locks: Option<String>,
}

impl Facts {
    /// Looks, where a class can use any. Nothing is made.
    pub(super) fn gather(config: &Config) -> Option<Self> {
        if config.classes.values().all(|class| class.max_gpus == 0) {
            return None;
        }
        let found = |inventory: Inventory| Found {
            ids: inventory.devices.iter().map(|device| device.id.clone()).collect(),
            configured: inventory.devices.iter().any(|device| device.source == Source::Configured),
            notes: inventory.notes.clone(),
            locks: LockDir::look(&config.gpu.lock_dir).err().map(|error| error.to_string()),
        };
        Some(Self { devices: Inventory::find(&config.gpu).map(found).map_err(|error| error.to_string()) })
    }
}

/// What to make of it.
pub(super) fn judge(facts: &Facts, config: &Config) -> Vec<Finding> {
    let check = Check::new(Area::Capacity, "gpus", "the devices that gpu.devices names, or that NVML tells of");
    let found = match &facts.devices {
        Ok(found) => found,
        Err(error) => return vec![check.fail(error, "nvidia-smi -L   # name what is there in [gpu] devices, or \"auto\"")],
    };
    let mut findings = vec![match (found.notes.as_slice(), found.ids.as_slice()) {
        ([], []) => check.ok("none"),
        ([], ids) => check.ok(ids.join(", ")),
        (notes, ids) => {
            let mend = "nvidia-smi   # the driver's own words; a divided device is made whole by: nvidia-smi -i <index> -mig 0";
            check.warn(format!("{} devices; {}", ids.len(), notes.join("; ")), mend)
        }
    }];
    if !found.ids.is_empty() {
        let dir = config.gpu.lock_dir.display();
        let check = Check::new(Area::Capacity, "gpu locks", "a directory that all workers of this machine share");
        findings.push(match &found.locks {
            None => check.ok(dir.to_string()),
            Some(error) if found.configured => check.fail(format!("{dir}: {error}"), format!("install -d -m 1777 {dir}")),
            Some(error) => check.warn(format!("{dir}: {error}; no GPU is used"), format!("install -d -m 1777 {dir}")),
        });
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::doctor::Level;

    fn levels(devices: Result<Found, String>) -> Vec<(String, Level, String)> {
        let config = config::load_text("[classes.g]\ngpus = 1\nmax_gpus = 2").unwrap();
        judge(&Facts { devices }, &config).into_iter().map(|f| (f.check, f.level, f.found)).collect()
    }

    #[test]
    fn a_machine_without_devices_is_not_ill() {
        let found = levels(Ok(Found::default()));
        assert_eq!(found, [("gpus".to_owned(), Level::Ok, "none".to_owned())]);
        assert!(Facts::gather(&config::load_text("[classes.c]").unwrap()).is_none(), "nobody asks for any");
    }

    #[test]
    fn what_keeps_devices_from_tasks_is_told() {
        let ids = || vec!["GPU-1".to_owned()];
        let locks = || Some("Permission denied".to_owned());
        for (devices, expected) in [
            (Err("gpu.devices: /dev/x: No such file".to_owned()), vec![Level::Fail]),
            (Ok(Found { notes: vec!["GPU 1 is left out: divided".to_owned()], ..Found::default() }), vec![Level::Warn]),
            (Ok(Found { ids: ids(), ..Found::default() }), vec![Level::Ok, Level::Ok]),
            (Ok(Found { ids: ids(), locks: locks(), ..Found::default() }), vec![Level::Ok, Level::Warn]),
            (Ok(Found { ids: ids(), locks: locks(), configured: true, ..Found::default() }), vec![Level::Ok, Level::Fail]),
        ] {
            let shown = format!("{devices:?}");
            let found: Vec<Level> = levels(devices).into_iter().map(|(_, level, _)| level).collect();
            assert_eq!(found, expected, "{shown}");
        }
    }
}
