//! GPUs: which there are, and whose each of them is.
//!
//! ```text
//! [gpu] devices ─▶ inventory (NVML, or as configured) ─▶ Gpus ─look─▶ capacity: may a task be pulled?
//!                                                         └─take─▶ Held: lock, handed on to the supervisor
//! ```
//! A device is one task's, whole and alone, among all workers of the machine. What says so is a lock on a file
//! ([`locks`]): the kernel takes it back when the last process that has its descriptor is gone. Two have it: the worker, and
//! its supervisor, who closes it only when the task's tree is dead and buried. So a device is not free between the death of a
//! worker and the death of its task; and where both were killed at once, the file names the task's cgroups, and the device
//! is taken for busy while anybody lives in them. No task ever has the descriptor: it could give the lock back.
//!
//! Which devices a program can open is the sandbox's to say ([`Gpus::hidden`]); its variables only tell it which to use.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use crate::config;

mod inventory;
pub mod locks;
mod nvml;

pub use inventory::{Device, Inventory, Source};

use locks::{Lock, LockDir};

/// Why the devices that the configuration names cannot be given to tasks.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    /// What is in the place of a device.
    #[error("gpu.devices: {0}")]
    Devices(String),
    /// The directory of locks.
    #[error("gpu.lock_dir: cannot use {path}: {error}; give a directory that all workers of this machine share: install -d -m 1777 {path}")]
    Locks {
        /// It.
        path: PathBuf,
        /// The system's answer.
        error: io::Error,
    },
}

/// The devices of this machine, with their locks.
#[derive(Debug, Default)]
pub struct Gpus {
    inventory: Inventory,
    locks: Option<LockDir>,
}

/// What a device is doing.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// Its id.
    pub id: String,
    /// Share of the time in which it computed, 0 to 1; absent when it does not tell.
    pub utilization: Option<f64>,
    /// Memory in use, bytes; absent when it does not tell.
    pub memory_used: Option<u64>,
}

impl Gpus {
    /// None.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Those of this machine, when a class of `config` can use any. What is worth knowing is in the log.
    ///
    /// # Errors
    /// When devices that the configuration names are not there, or cannot be shared. Those that were only found are then left alone.
    pub fn find(config: &config::Config) -> Result<Self, GpuError> {
        if config.classes.values().all(|class| class.max_gpus == 0) {
            return Ok(Self::none());
        }
        let inventory = Inventory::find(&config.gpu)?;
        for note in &inventory.notes {
            tracing::warn!("{note}");
        }
        if inventory.devices.is_empty() {
            return Ok(Self { inventory, locks: None });
        }
        let path = &config.gpu.lock_dir;
        match LockDir::open(path, &config.cgroup.mount) {
            Ok(locks) => {
                let ids: Vec<&str> = inventory.devices.iter().map(|device| device.id.as_str()).collect();
                tracing::info!(gpus = ids.join(","), lock_dir = %path.display(), "GPUs found");
                Ok(Self { inventory, locks: Some(locks) })
            }
            Err(error) => {
                let error = GpuError::Locks { path: path.clone(), error };
                if inventory.devices.iter().any(|device| device.source == Source::Configured) {
                    return Err(error);
                }
                tracing::warn!(%error, "the GPUs of this machine are not used");
                Ok(Self { inventory: Inventory { devices: vec![], ..inventory }, locks: None })
            }
        }
    }

    /// How many there are.
    #[must_use]
    pub fn total(&self) -> u32 {
        u32::try_from(self.inventory.devices.len()).unwrap_or(u32::MAX)
    }

    /// Whether nobody on this machine has that device, and it is there. A look: it may be another worker's a moment later.
    #[must_use]
    pub fn is_free(&self, device: usize) -> bool {
        let Some((device, locks)) = self.inventory.devices.get(device).zip(self.locks.as_ref()) else { return false };
        device.check().is_ok() && locks.is_free(&device.lock)
    }

    /// Takes that device; none when somebody else has it.
    #[must_use]
    pub fn take(&self, device: usize) -> Option<Held> {
        let (found, locks) = self.inventory.devices.get(device).zip(self.locks.as_ref())?;
        found.check().ok()?;
        match locks.take(&found.lock) {
            Ok(lock) => lock.map(|lock| Held { index: device, device: found.clone(), lock }),
            Err(error) => {
                tracing::warn!(%error, gpu = found.id, "cannot take the lock of a GPU");
                None
            }
        }
    }

    /// Nodes that a task with these devices has no business with: those of all others, and without any also what all devices
    /// have in common.
    #[must_use]
    pub fn hidden(&self, held: &[Held]) -> Vec<PathBuf> {
        let own = |device: &&Device| !held.iter().any(|h| h.device.id == device.id);
        let others = self.inventory.devices.iter().filter(own).filter_map(|device| device.node.clone());
        let common = if held.is_empty() { self.inventory.common.as_slice() } else { &[] };
        others.chain(common.iter().cloned()).collect()
    }

    /// Nodes that a task with these devices has to open.
    #[must_use]
    pub fn nodes(&self, held: &[Held]) -> Vec<PathBuf> {
        if held.is_empty() {
            return Vec::new();
        }
        held.iter().filter_map(|h| h.device.node.clone()).chain(self.inventory.common.iter().cloned()).collect()
    }

    /// What each of them is doing, as NVML tells; nothing of those that only the configuration knows.
    #[must_use]
    pub fn readings(&self) -> Vec<Reading> {
        self.inventory.readings()
    }
}

/// A device that is a task's, while this lives or the supervisor has its descriptor.
#[derive(Debug)]
pub struct Held {
    /// Its place in the inventory.
    pub index: usize,
    /// It.
    pub device: Device,
    lock: Lock,
}

impl Held {
    /// Whether it is still there.
    ///
    /// # Errors
    /// What became of it.
    pub fn check(&self) -> Result<(), String> {
        self.device.check()
    }

    /// Writes down where its task's processes are, before there are any: whoever finds the lock free looks there first.
    ///
    /// # Errors
    /// When the lock's file cannot be written.
    pub fn note(&self, cgroups: &[PathBuf]) -> io::Result<()> {
        self.lock.note(cgroups)
    }

    /// The lock's descriptor for whoever has to hold it as well.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.lock.share()
    }
}

/// The ids of these.
#[must_use]
pub fn ids(held: &[Held]) -> Vec<String> {
    held.iter().map(|held| held.device.id.clone()).collect()
}

/// Where a task's cgroups are: below each of the instance's directories, under its own name.
#[must_use]
pub fn cgroups_of(directories: &[PathBuf], name: &str) -> Vec<PathBuf> {
    directories.iter().map(|dir| dir.join(Path::new(name))).collect()
}
