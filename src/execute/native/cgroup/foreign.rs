//! The cgroup of a container that its engine made and limits: looked at, never written to.
//!
//! Found by the container's first process, and only taken for the container's when its name holds the container's id and that
//! process is in it: process ids of an engine in another namespace, or in a virtual machine, are those of others here.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::layout::{self, Controller, Mount};
use super::usage::Below;
use super::{files, usage};
use crate::task::limits::{Limits, Usage};

/// systemd counts CPU time in steps of 10 ms per second, and rounds up.
const CPU_STEP: f64 = 0.01;

/// A machine with more cgroups than this is not searched to the end.
const MOST_SEARCHED: usize = 10_000;

/// Why a container's cgroup cannot be looked at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unseen {
    /// Its first process is not here, or not any more.
    #[error("there is no process {0} here")]
    NoProcess(u32),
    /// The process is in no cgroup that bears the container's id.
    #[error("process {0} is in no cgroup of that container's that is mounted here")]
    Elsewhere(u32),
}

/// A limit that was asked for and is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{limit}: {found}")]
pub struct Lacking {
    /// File of the limit, or the controller.
    pub limit: String,
    /// What is there instead.
    pub found: String,
}

/// A container's cgroup: a directory in each hierarchy. Held open, so that nothing else is ever read in its place.
#[derive(Debug)]
pub struct Foreign {
    parts: Vec<Part>,
    page_bytes: u64,
}

/// Where an engine makes the cgroups of its containers: the way to one from the top of its hierarchy, in which the container's id
/// stands for that of any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Habit {
    way: PathBuf,
    id: String,
}

#[derive(Debug)]
struct Part {
    dir: OwnedFd,
    v2: bool,
    carries: Vec<Controller>,
}

impl Foreign {
    /// Of the container with that id, whose first process is `pid`, in the hierarchies mounted below `under`.
    ///
    /// # Errors
    /// Why it is not to be seen from here.
    pub fn of(pid: u32, id: &str, under: &Path) -> Result<(Self, Habit), Unseen> {
        let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).map_err(|_| Unseen::NoProcess(pid))?;
        let mut habit = None;
        // One that is exiting is said to be at the top of every version 1 hierarchy.
        let found = Self::open(&mounted(under), |mount| {
            let path = layout::directory_of(&cgroups, mount, id)?;
            let dir = files::open_dir(&path).ok().filter(|dir| files::pids_below(dir.as_fd()).contains(&pid))?;
            habit = path.strip_prefix(&mount.point).ok().map(|way| Habit { way: way.to_path_buf(), id: id.to_owned() });
            Some(dir)
        });
        found.zip(habit).ok_or(Unseen::Elsewhere(pid))
    }

    /// Of the container with that id, whose first process is not known yet: as soon as the engine has made it, which is before that
    /// process begins. Without a habit all of one hierarchy is searched.
    #[must_use]
    pub fn find(id: &str, mounts: &[Mount], habit: Option<&Habit>) -> Option<Self> {
        let way = match habit {
            Some(habit) => PathBuf::from(habit.way.to_str()?.replace(&habit.id, id)),
            None => search(mounts, id)?,
        };
        Self::open(mounts, |mount| files::open_dir(&mount.point.join(&way)).ok())
    }

    fn open(mounts: &[Mount], mut dir: impl FnMut(&Mount) -> Option<OwnedFd>) -> Option<Self> {
        let part = |mount: &Mount| Some(Part { dir: dir(mount)?, v2: mount.v2, carries: mount.carries.clone() });
        let parts: Vec<Part> = mounts.iter().filter_map(part).collect();
        (!parts.is_empty()).then(|| Self { parts, page_bytes: rustix::param::page_size() as u64 })
    }

    /// Whether all hierarchies are among those that were found: an engine makes one directory after the other.
    #[must_use]
    pub fn is_whole(&self, mounts: &[Mount]) -> bool {
        self.parts.len() == mounts.len()
    }

    /// What was used so far. Directories that are gone tell nothing: to be taken together with what was seen before.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let mut used = Usage::default();
        let mut below = Below::default();
        for Part { dir, v2, carries } in &self.parts {
            usage::read(dir.as_fd(), *v2, carries, &mut used);
            below = below.max(usage::below(dir.as_fd(), *v2, carries));
        }
        below.add_to(&mut used);
        used
    }

    /// Whether the kernel has the limits that were asked for: memory without swap, CPU time, processes. Nothing is said of a
    /// container that has ended meanwhile.
    ///
    /// # Errors
    /// Names the first limit that is not there, and what is there instead.
    pub fn has(&self, limits: &Limits) -> Result<(), Lacking> {
        for part in &self.parts {
            for controller in &part.carries {
                let checked = match controller {
                    Controller::Cpu => part.cpu(limits.cpus),
                    Controller::Memory => part.memory(limits.memory_bytes / self.page_bytes * self.page_bytes),
                    Controller::Pids => part.is("pids.max", &limits.pids.to_string()),
                    Controller::Cpuacct | Controller::Io => Ok(()),
                };
                if checked.is_err() && part.is_gone() {
                    return Ok(());
                }
                checked?;
            }
        }
        Ok(())
    }
}

/// The hierarchies below `under`.
#[must_use]
pub fn mounted(under: &Path) -> Vec<Mount> {
    let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    layout::mounts(&read(Path::new("/proc/self/mountinfo")), under, |point| read(&point.join("cgroup.controllers")))
}

/// The way to the directory whose name holds the id, in the hierarchy that counts memory.
fn search(mounts: &[Mount], id: &str) -> Option<PathBuf> {
    let top = mounts.iter().find(|mount| mount.carries.contains(&Controller::Memory))?.point.clone();
    let mut todo = vec![top.clone()];
    for _ in 0..MOST_SEARCHED {
        let dir = todo.pop()?;
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if entry.file_name().to_str().is_some_and(|name| name.contains(id)) {
                return entry.path().strip_prefix(&top).ok().map(Path::to_path_buf);
            }
            todo.push(entry.path());
        }
    }
    None
}

impl Part {
    fn is_gone(&self) -> bool {
        files::read(&self.dir, "cgroup.procs").is_err()
    }

    fn read(&self, file: &str) -> Result<String, Lacking> {
        files::read(&self.dir, file).map(|text| text.trim().to_owned()).map_err(|error| differs(file, error.to_string()))
    }

    fn is(&self, file: &str, expected: &str) -> Result<(), Lacking> {
        let found = self.read(file)?;
        if found == expected { Ok(()) } else { Err(differs(file, format!("the kernel has {found:?} and not {expected:?}"))) }
    }

    fn memory(&self, bytes: u64) -> Result<(), Lacking> {
        let bytes = bytes.to_string();
        let (memory, swap, no_swap) = if self.v2 {
            ("memory.max", "memory.swap.max", "0")
        } else {
            ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", &*bytes)
        };
        self.is(memory, &bytes)?;
        match files::read(&self.dir, swap) {
            // A kernel that does not account for swap; the engine said whether it can limit it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Ok(_) | Err(_) => self.is(swap, no_swap),
        }
    }

    fn cpu(&self, cpus: f64) -> Result<(), Lacking> {
        let (file, found) = if self.v2 {
            ("cpu.max", self.read("cpu.max")?)
        } else {
            ("cpu.cfs_quota_us", format!("{} {}", self.read("cpu.cfs_quota_us")?, self.read("cpu.cfs_period_us")?))
        };
        let parts = found.split_once(' ').and_then(|(quota, period)| Some((quota.parse::<u64>().ok()?, period.parse::<u64>().ok()?)));
        let has = parts.map(|(quota, period)| quota as f64 / period as f64);
        // Quotas have a least of 1 ms, which engines round to as we do.
        match has {
            Some(has) if (has - cpus).abs() <= CPU_STEP => Ok(()),
            Some(_) | None => Err(differs(file, format!("the kernel has {found:?} and not {cpus} CPUs"))),
        }
    }
}

fn differs(limit: &str, found: String) -> Lacking {
    Lacking { limit: limit.to_owned(), found }
}
