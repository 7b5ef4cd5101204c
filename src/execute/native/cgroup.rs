//! The cgroups of an instance and of its tasks: made, limited, entered, counted, killed, removed.
//!
//! One [`Site`] per supervisor, one [`Group`] per task. Both work on every layout alike: a task has one directory
//! in each hierarchy; the cgroup2 one, where mounted, comes first and is the one to start into, to kill by and to wait for.
//! What must not happen here: a limit that is assumed, and a path outside `<parent>/<instance>`.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;
use rustix::process::Signal;

use crate::supervisor::protocol::SpawnError;
use crate::task::limits::{Limits, Usage};

mod devices;
mod files;
mod footprint;
mod foreign;
mod hold;
pub mod layout;
mod limits;
mod site;
mod sweep;
mod usage;

pub use footprint::Footprint;
pub use foreign::{Foreign, Habit, Lacking, Unseen, mounted};
pub use site::{Site, Unfit, Wish};
pub use sweep::{remove_instances, remove_parents, signal};
use usage::Below;

/// A task's cgroup: its directory in every hierarchy of the site, in the same order. `None`: already removed.
#[derive(Debug)]
pub struct Group {
    name: String,
    dirs: Vec<Option<OwnedFd>>,
    /// Somebody else puts processes below it, in directories of their own.
    held: bool,
    /// What was seen to be counted only there, and would go with those directories.
    below: Cell<Below>,
}

/// How a child gets into a [`Group`].
#[derive(Debug)]
pub struct Entrance {
    /// Directory for `CLONE_INTO_CGROUP`.
    pub clone_into: Option<RawFd>,
    /// Version 1 `tasks` files; the child writes `0` to each. `cgroup.procs` would wait for an RCU grace period (9 ms).
    pub tasks: Vec<OwnedFd>,
}

impl Site {
    /// Makes the directories of a task. On failure none is left.
    ///
    /// A hierarchy that carries nothing but I/O is entered only `with_io`, one for devices only `with_devices`: every one costs a
    /// directory and a migration.
    ///
    /// # Errors
    /// The directory that could not be made.
    pub fn create(&self, name: &str, with_io: bool, with_devices: bool) -> Result<Group, SpawnError> {
        self.make(name, false, |hierarchy| {
            let wanted = !hierarchy.bystander || (with_devices && hierarchy.devices);
            wanted && (with_io || hierarchy.carries != [layout::Controller::Io] || hierarchy.v2)
        })
    }

    fn make(&self, name: &str, held: bool, enters: impl Fn(&site::Hierarchy) -> bool) -> Result<Group, SpawnError> {
        let dirs = Vec::with_capacity(self.hierarchies.len());
        let mut group = Group { name: name.to_owned(), dirs, held, below: Cell::default() };
        for hierarchy in &self.hierarchies {
            if !enters(hierarchy) {
                group.dirs.push(None);
                continue;
            }
            let made = rustix::fs::mkdirat(&hierarchy.dir, name, Mode::from_raw_mode(0o755)).map_err(io::Error::from);
            let opened = made.and_then(|()| files::open_dir_at(&hierarchy.dir, name));
            match opened {
                Ok(dir) => group.dirs.push(Some(dir)),
                Err(error) => {
                    let _ = self.remove(&mut group);
                    return Err(SpawnError::Cgroup { path: hierarchy.path.join(name).display().to_string(), error: error.to_string() });
                }
            }
        }
        Ok(group)
    }

    /// Sets all limits and reads each back.
    ///
    /// # Errors
    /// Names the limit that could not be set. Limits that this site cannot enforce are an error, never ignored.
    pub fn limit(&self, group: &Group, limits: &Limits, directory: &Path) -> Result<(), SpawnError> {
        if !limits.enforced {
            return Ok(());
        }
        if !self.enforced {
            return Err(SpawnError::Limit { limit: "all".to_owned(), error: format!("not enforceable here ({})", self.description) });
        }
        let io_device = match &limits.io {
            Some(_) if !self.hierarchies.iter().any(|h| h.carries.contains(&layout::Controller::Io)) => {
                return Err(SpawnError::Limit { limit: "io".to_owned(), error: "the io controller is not available".to_owned() });
            }
            Some(_) => Some(limits::device_of(directory)?),
            None => None,
        };
        for (hierarchy, dir) in self.each(group) {
            let path = hierarchy.path.join(&group.name);
            // In containers one process dies, as with every engine's own limit: which of the two limits is met first is chance.
            let whole = !group.held;
            let target = limits::Target { dir, path, v2: hierarchy.v2, carries: &hierarchy.carries, page_bytes: self.page_bytes, whole };
            limits::set(&target, limits, io_device)?;
        }
        Ok(())
    }

    /// Opens what a child needs to enter. Without `clone_into` (an old kernel) the child writes cgroup2's `cgroup.procs`, too.
    ///
    /// # Errors
    /// A file that cannot be opened.
    pub fn entrance(&self, group: &Group, clone_into: bool) -> Result<Entrance, SpawnError> {
        let mut entrance = Entrance { clone_into: None, tasks: Vec::with_capacity(self.hierarchies.len()) };
        for (hierarchy, dir) in self.each(group) {
            let file = match (hierarchy.v2, clone_into) {
                (true, true) => {
                    entrance.clone_into = Some(dir.as_raw_fd());
                    continue;
                }
                (true, false) => "cgroup.procs",
                (false, _) => "tasks",
            };
            let opened = files::open_write(dir, file);
            entrance.tasks.push(opened.map_err(|e| SpawnError::Cgroup {
                path: hierarchy.path.join(&group.name).join(file).display().to_string(),
                error: e.to_string(),
            })?);
        }
        Ok(entrance)
    }

    fn each<'a>(&'a self, group: &'a Group) -> impl Iterator<Item = (&'a site::Hierarchy, BorrowedFd<'a>)> {
        self.hierarchies.iter().zip(&group.dirs).filter_map(|(h, d)| Some((h, d.as_ref()?.as_fd())))
    }

    /// Processes of the task that are alive, also those in cgroups that it made below its own. Zombies are not counted.
    #[must_use]
    pub fn pids(&self, group: &Group) -> Vec<u32> {
        if group.held {
            return self.held_pids(group);
        }
        self.each(group).next().map(|(_, dir)| files::pids_below(dir)).unwrap_or_default()
    }

    /// Sends a signal to every process of the task, once.
    pub fn signal(&self, group: &Group, what: Signal) {
        for pid in self.pids(group) {
            sweep::signal(pid, what);
        }
    }

    /// SIGKILL to the whole tree. To be repeated until the group can be removed, where the kernel has no `cgroup.kill`.
    pub fn kill(&self, group: &Group) {
        self.lift_cpu_limit(group);
        if group.held {
            return self.kill_held(group);
        }
        let mut dirs = self.each(group);
        let Some((first, dir)) = dirs.next() else { return };
        if first.v2 && files::write(dir, "cgroup.kill", "1").is_ok() {
            return;
        }
        for (_, dir) in self.each(group) {
            sweep::kill_below(dir);
        }
    }

    /// Dying takes CPU time, too: 200 processes under a limit of a tenth of a CPU took 200 ms to be gone, without it 10 ms.
    fn lift_cpu_limit(&self, group: &Group) {
        for (hierarchy, dir) in self.each(group).filter(|(h, _)| h.carries.contains(&layout::Controller::Cpu)) {
            let (file, unlimited) = if hierarchy.v2 { ("cpu.max", "max") } else { ("cpu.cfs_quota_us", "-1") };
            // It only makes the end slower when this fails.
            let _ = files::write(dir, file, unlimited);
        }
    }

    /// What the task used so far.
    #[must_use]
    pub fn usage(&self, group: &Group) -> Usage {
        let mut usage = Usage::default();
        for (hierarchy, dir) in self.each(group) {
            usage::read(dir, hierarchy.v2, &hierarchy.carries, &mut usage);
        }
        self.glance(group);
        group.below.get().add_to(&mut usage);
        usage
    }

    /// Removes the task's directories, as far as they are empty. `Ok(false)`: somebody is still in there.
    ///
    /// # Errors
    /// Anything but a cgroup in use.
    pub fn remove(&self, group: &mut Group) -> io::Result<bool> {
        for (hierarchy, slot) in self.hierarchies.iter().zip(&mut group.dirs) {
            let Some(dir) = slot else { continue };
            match rustix::fs::unlinkat(&hierarchy.dir, group.name.as_str(), AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => *slot = None,
                // In use by processes, or by directories that a task with the right to do so made below its own.
                Err(Errno::BUSY | Errno::NOTEMPTY) => {
                    let below = files::children(dir.as_fd())?;
                    // A container's own directory may have gone between the two looks.
                    if (below.is_empty() && !group.held) || sweep::remove_below(dir.as_fd()).is_err() {
                        return Ok(false);
                    }
                    match rustix::fs::unlinkat(&hierarchy.dir, group.name.as_str(), AtFlags::REMOVEDIR) {
                        Ok(()) | Err(Errno::NOENT) => *slot = None,
                        Err(_) => return Ok(false),
                    }
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(true)
    }

    /// Removes the instance's own directories and everything below them that is empty by now; kills what is not. The directory
    /// above goes with the last instance, unless an operator named it.
    ///
    /// # Errors
    /// The directory that could not be removed within two seconds.
    pub fn close(self) -> Result<(), (std::path::PathBuf, io::Error)> {
        let directories = [self.directories(), self.container_directories()].concat();
        sweep::remove_instances(&directories)?;
        if self.own_parent {
            remove_parents(&directories);
        }
        Ok(())
    }
}
