//! Descriptors that are held open for the sake of tasks: locks of what is theirs alone. They are closed when a task is buried,
//! and when this process is gone.

use std::collections::HashMap;
use std::os::fd::{IntoRawFd as _, OwnedFd};

use rustix::io::{FdFlags, fcntl_setfd};

/// By the names of the tasks' cgroups, which come after them.
#[derive(Debug, Default)]
pub(super) struct Kept(HashMap<String, Vec<OwnedFd>>);

impl Kept {
    /// For a task that is still to come.
    pub(super) fn keep(&mut self, cgroup: String, descriptors: Vec<OwnedFd>) {
        self.0.entry(cgroup).or_default().extend(descriptors);
    }

    /// That task has no more use of them.
    pub(super) fn let_go(&mut self, cgroup: &str) {
        self.0.remove(cgroup);
    }

    /// Leaves all that are left open for the program that this process becomes: what a container has alone is its own until that
    /// has removed it.
    pub(super) fn bequeath(&mut self) {
        for descriptor in self.0.drain().flat_map(|(_, descriptors)| descriptors) {
            if fcntl_setfd(&descriptor, FdFlags::empty()).is_ok() {
                let _ = descriptor.into_raw_fd();
            }
        }
    }
}
