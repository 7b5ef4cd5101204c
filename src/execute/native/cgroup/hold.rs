//! Cgroups for processes that somebody else starts: a container engine puts them into a directory of its own below ours.
//!
//! ```text
//! <hierarchy>/<parent>/<instance>/<task>/<container>
//!                                  │       └ the engine's: made before the first process, removed after the last one
//!                                  └ ours, with the limits, in every hierarchy alike: the engine is given one path for all
//! ```
//! Engines make their cgroups in every version 1 hierarchy, also in those that are of no use to us. There we hold and lock a
//! directory too, from the first container on: else each would leave an empty one behind, and nobody could tell whose it was.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use super::layout::{self, Controller};
use super::site::Bystander;
use super::{Group, Site, files, sweep, usage};
use crate::supervisor::protocol::SpawnError;

impl Site {
    /// Makes the directories of a held task; what it is to be called by the engine comes with it. `None` where no one name stands
    /// for it in all hierarchies, where one of them cannot be had, or where nothing is limited: then the engine must do without.
    ///
    /// # Errors
    /// The directory that could not be made, or memory that cannot be counted together with what is below.
    pub fn hold(&mut self, name: &str) -> Result<Option<(Group, String)>, SpawnError> {
        let Some(inside) = self.inside().filter(|_| self.enforced) else { return Ok(None) };
        let Some(parent) = inside.join(name).to_str().map(str::to_owned) else { return Ok(None) };
        if !self.take_bystanders(|_| true) {
            return Ok(None);
        }
        let mut group = self.make(name, true, |_| true)?;
        if let Err(error) = self.count_below(&group) {
            let _ = self.remove(&mut group);
            return Err(error);
        }
        Ok(Some((group, parent)))
    }

    /// The instance's cgroup by the one name that it has in every hierarchy.
    fn inside(&self) -> Option<PathBuf> {
        let first = self.hierarchies.first()?.inside.clone();
        self.hierarchies.iter().all(|hierarchy| hierarchy.inside == first).then_some(first)
    }

    /// Finds the hierarchies that only containers have directories in.
    pub(super) fn find_bystanders(&mut self, mountinfo: &str, under: &Path) {
        let Some(parent) = self.inside().as_deref().and_then(Path::parent).map(Path::to_path_buf) else { return };
        let taken: Vec<PathBuf> = self.hierarchies.iter().map(|h| h.point.clone()).collect();
        let found = layout::bystanders(mountinfo, under, &taken);
        let place = |mount: layout::Mount| {
            let parent = mount.point.join(parent.strip_prefix(&mount.root).ok()?);
            Some(Bystander { mount, parent })
        };
        self.bystanders = found.into_iter().filter_map(place).collect();
        self.sweep_bystanders();
    }

    /// What dead instances left there goes now: this one may never have a container.
    fn sweep_bystanders(&mut self) {
        let Some(own) = self.hierarchies.first().and_then(|h| h.path.file_name()?.to_str()) else { return };
        let mut swept = Vec::new();
        for Bystander { parent, .. } in self.bystanders.iter().filter(|b| b.parent.is_dir()) {
            if let Ok(dir) = sweep::locked_parent(parent, sweep::BRIEFLY) {
                swept.extend(sweep::sweep_siblings(dir.as_fd(), parent, own));
            }
        }
        for (name, removed) in swept {
            self.note_swept(name, removed);
        }
    }

    /// Directories that are made with the first container.
    #[must_use]
    pub fn container_directories(&self) -> Vec<PathBuf> {
        let Some(instance) = self.hierarchies.first().and_then(|h| h.path.file_name()) else { return Vec::new() };
        let taken = self.hierarchies.iter().filter(|h| h.bystander).map(|h| h.path.clone());
        taken.chain(self.bystanders.iter().map(|b| b.parent.join(instance))).collect()
    }

    /// Takes those of them; false when one cannot be had now. In one that is not locked, whoever sweeps would take what an
    /// engine puts there for somebody's who is dead.
    pub(super) fn take_bystanders(&mut self, which: impl Fn(&layout::Mount) -> bool) -> bool {
        let instance = self.hierarchies.first().and_then(|h| h.path.file_name()).and_then(|name| name.to_str()).map(str::to_owned);
        let Some(instance) = instance else { return false };
        for bystander in self.bystanders.extract_if(.., |bystander| which(&bystander.mount)).collect::<Vec<_>>() {
            let Bystander { mount, parent } = &bystander;
            if self.settle(&instance, mount, parent, mount.carries.clone(), true).is_err() {
                self.bystanders.push(bystander);
            }
        }
        !self.bystanders.iter().any(|bystander| which(&bystander.mount))
    }

    /// Before Linux 5.11 a version 1 memory cgroup did not count what is below, unless it was told so while it was empty.
    fn count_below(&self, group: &Group) -> Result<(), SpawnError> {
        const FILE: &str = "memory.use_hierarchy";
        for (_, dir) in self.each(group).filter(|(h, _)| !h.v2 && h.carries.contains(&Controller::Memory)) {
            if files::read_number(dir, FILE).is_ok_and(|counts| counts == 0) {
                let told = files::write(dir, FILE, "1").and_then(|()| files::read_number(dir, FILE));
                if !matches!(told, Ok(1)) {
                    let error = told.map_or_else(|e| e.to_string(), |found| format!("reads back {found} instead of 1"));
                    return Err(SpawnError::Limit { limit: FILE.to_owned(), error });
                }
            }
        }
        Ok(())
    }

    /// Not every engine puts its processes into every hierarchy (before runc 1.1 not into the cgroup2 one of a hybrid machine).
    pub(super) fn held_pids(&self, group: &Group) -> Vec<u32> {
        let mut pids: Vec<u32> = self.each(group).flat_map(|(_, dir)| files::pids_below(dir)).collect();
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    pub(super) fn kill_held(&self, group: &Group) {
        for (_, dir) in self.each(group) {
            sweep::kill_below(dir);
        }
        self.thaw(group);
    }

    /// A container that was paused is frozen, and the version 1 freezer keeps its processes from seeing any signal.
    pub fn thaw(&self, group: &Group) {
        if group.held {
            for (_, dir) in self.each(group) {
                thaw_below(dir);
            }
        }
    }

    /// Notes what is counted only in the directories below.
    pub fn glance(&self, group: &Group) {
        if group.held {
            let seen = self.each(group).map(|(hierarchy, dir)| usage::below(dir, hierarchy.v2, &hierarchy.carries));
            group.below.set(seen.fold(group.below.get(), usage::Below::max));
        }
    }
}

fn thaw_below(dir: BorrowedFd<'_>) {
    let _ = files::write(dir, "freezer.state", "THAWED").or_else(|_: io::Error| files::write(dir, "cgroup.freeze", "0"));
    for child in sweep::open_children(dir) {
        thaw_below(child.as_fd());
    }
}
