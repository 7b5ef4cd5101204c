//! The cgroup of one attempt.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::linux::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::layout::{Hierarchy, Instance};
use super::{Controller, field, limit, read, write};
use crate::supervisor::protocol::SpawnError;
use crate::task::Limits;
use crate::task::limits::Usage;

/// The directories of one attempt.
#[derive(Debug)]
pub struct Group {
    dirs: Vec<Dir>,
}

#[derive(Debug)]
struct Dir {
    path: PathBuf,
    controllers: Vec<Controller>,
    v2: bool,
    gone: bool,
}

/// What the kernel counted for a group.
pub type Reading = Usage;

impl Instance {
    /// Makes the group `name` with `limits`. `work_dir` tells which device I/O limits are for.
    ///
    /// # Errors
    /// When a directory cannot be made, or a limit cannot be set or does not read back; nothing is left then.
    pub fn create(&self, name: &str, limits: &Limits, work_dir: &Path) -> Result<Group, SpawnError> {
        let mut group = Group { dirs: Vec::with_capacity(self.dirs.len()) };
        let made = self.fill(&mut group, name, limits, work_dir);
        match made {
            Ok(()) => Ok(group),
            Err(error) => {
                group.remove();
                Err(error)
            }
        }
    }

    fn fill(&self, group: &mut Group, name: &str, limits: &Limits, work_dir: &Path) -> Result<(), SpawnError> {
        let device = limits.io.and_then(|_| block_device(work_dir));
        for (hierarchy, parent) in &self.dirs {
            let io_asked = limits.io.is_some();
            let controllers: Vec<_> = hierarchy.controllers.iter().copied().filter(|c| *c != Controller::Io || io_asked).collect();
            if controllers.is_empty() && !hierarchy.v2 {
                continue;
            }
            let path = parent.join(name);
            std::fs::create_dir(&path).map_err(|e| SpawnError::Cgroup { path: path.display().to_string(), error: e.to_string() })?;
            group.dirs.push(Dir { path, controllers, v2: hierarchy.v2, gone: false });
        }
        if limits.io.is_some() && !group.dirs.iter().any(|d| d.controllers.contains(&Controller::Io)) {
            let error = "this machine has no io controller".to_owned();
            return Err(SpawnError::Limit { limit: "io".to_owned(), error });
        }
        for dir in &group.dirs {
            for controller in &dir.controllers {
                limit::set(&dir.path, dir.v2, *controller, limits, device)?;
            }
        }
        Ok(())
    }
}

/// The block device that holds `dir`: of a partition, the disk.
fn block_device(dir: &Path) -> Option<(u64, u64)> {
    let dev = std::fs::metadata(dir).ok()?.st_dev();
    let sys = std::fs::canonicalize(format!("/sys/dev/block/{}:{}", libc::major(dev), libc::minor(dev))).ok()?;
    let disk = if sys.join("partition").exists() { sys.parent()?.to_owned() } else { sys };
    let (major, minor) = read(&disk.join("dev")).ok()?.trim().split_once(':').map(|(a, b)| (a.to_owned(), b.to_owned()))?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

impl Group {
    /// What is left of the group `name` of an instance.
    #[must_use]
    pub(super) fn existing(dirs: &[(Hierarchy, PathBuf)], name: &str) -> Self {
        let dirs = dirs.iter().map(|(hierarchy, parent)| Dir {
            path: parent.join(name),
            controllers: hierarchy.controllers.clone(),
            v2: hierarchy.v2,
            gone: false,
        });
        Self { dirs: dirs.collect() }
    }

    /// The cgroup2 directory, for `clone3` into it.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn tracking(&self) -> std::io::Result<Option<OwnedFd>> {
        self.v2().map(|dir| File::open(&dir.path).map(OwnedFd::from)).transpose()
    }

    /// The files through which a new process has to enter the v1 hierarchies, by writing `0`. `tasks`, not `cgroup.procs`:
    /// a thread that moves itself need not wait for every CPU.
    ///
    /// # Errors
    /// When one cannot be opened.
    pub fn entrances(&self) -> std::io::Result<Vec<OwnedFd>> {
        let v1 = self.dirs.iter().filter(|dir| !dir.v2);
        v1.map(|dir| std::fs::OpenOptions::new().write(true).open(dir.path.join("tasks")).map(OwnedFd::from)).collect()
    }

    /// Where a process enters the cgroup2 hierarchy when it could not be started in it.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn late_entrance(&self) -> std::io::Result<Option<OwnedFd>> {
        self.v2().map(|dir| std::fs::OpenOptions::new().write(true).open(dir.path.join("cgroup.procs")).map(OwnedFd::from)).transpose()
    }

    fn v2(&self) -> Option<&Dir> {
        self.dirs.iter().find(|dir| dir.v2)
    }

    /// Processes in the group now.
    #[must_use]
    pub fn processes(&self) -> Vec<i32> {
        let Some(dir) = self.dirs.iter().find(|dir| !dir.gone) else { return vec![] };
        let text = read(&dir.path.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// SIGKILL to all of it, whatever it starts meanwhile.
    pub fn kill(&mut self) {
        if let Some(dir) = self.dirs.iter().find(|dir| dir.v2 && !dir.gone)
            && write(&dir.path.join("cgroup.kill"), "1").is_ok()
        {
            return;
        }
        // Without cgroup.kill (v1, or a kernel before 5.14): no new processes, then one by one until none is left.
        if let Some(dir) = self.dirs.iter().find(|dir| dir.controllers.contains(&Controller::Pids) && !dir.gone) {
            let _ = write(&dir.path.join("pids.max"), "0");
        }
        for pid in self.processes() {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }

    /// Removes what is empty; true when nothing is left. The tracking directory goes first: it tells whether the group is empty.
    pub fn remove(&mut self) -> bool {
        for dir in self.dirs.iter_mut().filter(|dir| !dir.gone) {
            match std::fs::remove_dir(&dir.path) {
                Ok(()) => dir.gone = true,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => dir.gone = true,
                Err(_) => return false,
            }
        }
        true
    }

    /// What the kernel counted so far. A figure that it does not offer is 0.
    #[must_use]
    pub fn read(&self) -> Reading {
        let mut usage = Usage::default();
        for dir in &self.dirs {
            let get = |file: &str| read(&dir.path.join(file)).ok();
            let number = |file: &str| get(file).and_then(|text| text.trim().parse::<u64>().ok());
            if dir.v2
                && let Some(stat) = get("cpu.stat")
            {
                usage.cpu_user_us = field(&stat, "user_usec").unwrap_or(0);
                usage.cpu_system_us = field(&stat, "system_usec").unwrap_or(0);
                usage.throttled_us = field(&stat, "throttled_usec").unwrap_or(usage.throttled_us);
            }
            for controller in &dir.controllers {
                match (controller, dir.v2) {
                    (Controller::Memory, true) => {
                        usage.memory_peak_bytes = number("memory.peak").unwrap_or(0);
                        usage.oom_kills = get("memory.events").and_then(|text| field(&text, "oom_kill")).unwrap_or(0);
                    }
                    (Controller::Memory, false) => {
                        usage.memory_peak_bytes = number("memory.max_usage_in_bytes").unwrap_or(0);
                        usage.oom_kills = get("memory.oom_control").and_then(|text| field(&text, "oom_kill")).unwrap_or(0);
                    }
                    (Controller::Cpu, false) => {
                        let throttled_ns = get("cpu.stat").and_then(|text| field(&text, "throttled_time")).unwrap_or(0);
                        usage.throttled_us = throttled_ns / 1000;
                    }
                    (Controller::Pids, _) => usage.pids_peak = number("pids.peak").unwrap_or(0),
                    (Controller::Cpu, true) | (Controller::Io, _) => {}
                }
            }
        }
        usage
    }
}
