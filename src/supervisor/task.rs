//! One task of the supervisor's: its life, its processes, and the end of both.

use std::os::fd::OwnedFd;
use std::time::Instant;

use super::image::Program;
use super::life::Life;
use super::protocol::{ExitReport, SpawnError};
use super::sys::Reaped;
use super::tree::Tree;
use crate::execute::native::cgroup::Site;
use crate::execute::native::sandbox::User;

/// A task.
pub(super) struct Task {
    pub life: Life,
    pub tree: Tree,
    pub cgroup: String,
    /// Its own process; none where somebody else starts its processes, as the engine does with a container's.
    pub leader: Option<Leader>,
}

/// The process that was cloned for a task.
pub(super) struct Leader {
    pub pid: u32,
    pub program: Program,
    /// Pipe of a child that has not come to exec.
    pub report: Option<OwnedFd>,
    /// Where the init of a process namespace tells how the program ended; `None` once it has, and without one.
    pub status: Option<OwnedFd>,
    /// It is an init, which is no part of what the task left behind.
    pub has_init: bool,
    /// The child said that it cannot.
    pub failed: Option<SpawnError>,
    /// Its end.
    pub reaped: Option<Reaped>,
}

impl Task {
    /// Its processes, without the init that is ours.
    pub(super) fn alive(&self, site: &Site) -> u64 {
        let own_init = self.leader.as_ref().filter(|leader| leader.has_init && leader.reaped.is_none()).map(|leader| leader.pid);
        self.tree.pids(site).into_iter().filter(|pid| Some(*pid) != own_init).count() as u64
    }
}

/// Pipes to the task's user: else `/dev/stdout` could not be opened. Nothing but pipes; `/dev/null` is everybody's.
pub(super) fn give(stdio: &[OwnedFd; 3], user: User) {
    let (uid, gid) = (rustix::fs::Uid::from_raw(user.uid), rustix::fs::Gid::from_raw(user.gid));
    for fd in stdio {
        let is_pipe = rustix::fs::fstat(fd).is_ok_and(|s| rustix::fs::FileType::from_raw_mode(s.st_mode) == rustix::fs::FileType::Fifo);
        if is_pipe {
            // Without it the task still has the descriptor itself.
            let _ = rustix::fs::fchown(fd, Some(uid), Some(gid));
        }
    }
}

/// Reads what the task used and removes its cgroup; `None` when somebody is still in there.
pub(super) fn bury(task: &mut Task, site: &Site) -> Option<ExitReport> {
    let mut usage = task.tree.usage(site);
    match task.tree.remove(site) {
        Ok(true) => {}
        Ok(false) => return None,
        // It cannot be removed for a reason that waiting does not mend. The task is over all the same; the sweep tries again.
        Err(e) => super::complain(&format!("cgroup {} not removed: {e}", task.cgroup)),
    }
    if let Some(reaped) = task.leader.as_ref().and_then(|leader| leader.reaped) {
        if usage.cpu_user_us + usage.cpu_system_us == 0 {
            (usage.cpu_user_us, usage.cpu_system_us) = reaped.cpu_us;
        }
        if usage.memory_peak_bytes == 0 {
            usage.memory_peak_bytes = reaped.memory_bytes;
        }
    }
    usage.leaked_processes = task.life.leaked();
    let kill_us = u64::try_from(task.life.kill_time(Instant::now()).as_micros()).unwrap_or(u64::MAX);
    let status = task.life.status()?;
    Some(ExitReport { status, usage, lease_expired: task.life.lease_expired(), kill_us })
}
