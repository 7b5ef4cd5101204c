//! Keeping tasks from devices that are not theirs, by the devices controller of version 1.
//!
//! A task's cgroup may do what the one above may, less what is written here: device by device, for the rest of `/dev` is the
//! sandbox's to judge. What was written cannot be read back (the kernel shows only that all others are allowed), so a
//! successful write has to do. On cgroup2 the same takes a BPF program; there the sandbox alone keeps devices apart.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

use super::{Group, Site, files};
use crate::supervisor::protocol::SpawnError;

const DENY: &str = "devices.deny";

impl Site {
    /// Whether there is such a controller for us. Its hierarchy is entered only by tasks that something is kept from: every
    /// one costs a directory and a migration.
    pub fn can_deny_devices(&mut self) -> bool {
        let _ = self.take_bystanders(|mount| mount.devices);
        self.hierarchies.iter().any(|hierarchy| hierarchy.devices)
    }

    /// Denies these nodes to a group, as far as it is in such a hierarchy and they exist.
    ///
    /// # Errors
    /// Names what could not be written.
    pub fn deny_devices(&self, group: &Group, nodes: &[String]) -> Result<(), SpawnError> {
        for (_, dir) in self.each(group).filter(|(hierarchy, _)| hierarchy.devices) {
            for (major, minor) in nodes.iter().filter_map(|node| number(node)) {
                let rule = format!("c {major}:{minor} rwm");
                files::write(dir, DENY, &rule).map_err(|e| SpawnError::Limit { limit: format!("{DENY} {rule}"), error: e.to_string() })?;
            }
        }
        Ok(())
    }
}

/// Of a character device.
fn number(node: &str) -> Option<(u32, u32)> {
    let metadata = std::fs::metadata(node).ok().filter(|metadata| metadata.file_type().is_char_device())?;
    Some((rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev())))
}
