//! What a task used, read from its cgroup before that goes. A figure that this kernel does not offer is 0.

use std::os::fd::{AsFd, BorrowedFd};

use super::layout::Controller;
use super::{files, sweep};
use crate::task::limits::Usage;

/// Adds what one hierarchy knows.
pub(super) fn read(dir: BorrowedFd<'_>, v2: bool, carries: &[Controller], usage: &mut Usage) {
    if v2 {
        unified(dir, carries, usage);
        return;
    }
    for controller in carries {
        match controller {
            Controller::Cpu => {
                let stat = files::read(dir, "cpu.stat").unwrap_or_default();
                usage.throttled_us = files::keyed(&stat, "throttled_time").unwrap_or(0) / 1000;
            }
            // cgroup2's own cpu.stat counts the same on a hybrid machine and was read before.
            Controller::Cpuacct if usage.cpu_user_us + usage.cpu_system_us == 0 => {
                usage.cpu_user_us = files::read_number(dir, "cpuacct.usage_user").unwrap_or(0) / 1000;
                usage.cpu_system_us = files::read_number(dir, "cpuacct.usage_sys").unwrap_or(0) / 1000;
            }
            Controller::Memory => {
                usage.memory_peak_bytes = files::read_number(dir, "memory.max_usage_in_bytes").unwrap_or(0);
                let oom = files::read(dir, "memory.oom_control").unwrap_or_default();
                usage.oom_kills = files::keyed(&oom, "oom_kill").unwrap_or(0);
            }
            Controller::Pids => usage.pids_peak = files::read_number(dir, "pids.peak").unwrap_or(0),
            Controller::Cpuacct | Controller::Io => {}
        }
    }
}

/// What the kernel counts in the directory of the processes alone, and not in those above it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Below {
    oom_kills: u64,
    throttled_us: u64,
}

impl Below {
    /// The greater of each: these counts only grow, until their directories go.
    pub(super) fn max(self, other: Self) -> Self {
        Self { oom_kills: self.oom_kills.max(other.oom_kills), throttled_us: self.throttled_us.max(other.throttled_us) }
    }

    /// On top of what was counted above.
    pub(super) fn add_to(self, usage: &mut Usage) {
        usage.oom_kills += self.oom_kills;
        usage.throttled_us += self.throttled_us;
    }
}

/// Sums it up over all directories below `dir`.
pub(super) fn below(dir: BorrowedFd<'_>, v2: bool, carries: &[Controller]) -> Below {
    let mut sum = Below::default();
    for child in sweep::open_children(dir) {
        if carries.contains(&Controller::Cpu) {
            let stat = files::read(&child, "cpu.stat").unwrap_or_default();
            sum.throttled_us += if v2 {
                files::keyed(&stat, "throttled_usec").unwrap_or(0)
            } else {
                files::keyed(&stat, "throttled_time").unwrap_or(0) / 1000
            };
        }
        // On cgroup2 the events of all below are in `memory.events` above.
        if carries.contains(&Controller::Memory) && !v2 {
            let oom = files::read(&child, "memory.oom_control").unwrap_or_default();
            sum.oom_kills += files::keyed(&oom, "oom_kill").unwrap_or(0);
        }
        let deeper = below(child.as_fd(), v2, carries);
        sum.oom_kills += deeper.oom_kills;
        sum.throttled_us += deeper.throttled_us;
    }
    sum
}

fn unified(dir: BorrowedFd<'_>, carries: &[Controller], usage: &mut Usage) {
    // cpu.stat counts time in every cgroup2 directory, with or without the controller.
    let stat = files::read(dir, "cpu.stat").unwrap_or_default();
    usage.cpu_user_us = files::keyed(&stat, "user_usec").unwrap_or(0);
    usage.cpu_system_us = files::keyed(&stat, "system_usec").unwrap_or(0);
    if carries.contains(&Controller::Cpu) {
        usage.throttled_us = files::keyed(&stat, "throttled_usec").unwrap_or(0);
    }
    if carries.contains(&Controller::Memory) {
        usage.memory_peak_bytes = files::read_number(dir, "memory.peak").unwrap_or(0);
        let events = files::read(dir, "memory.events").unwrap_or_default();
        usage.oom_kills = files::keyed(&events, "oom_kill").unwrap_or(0);
    }
    if carries.contains(&Controller::Pids) {
        usage.pids_peak = files::read_number(dir, "pids.peak").unwrap_or(0);
    }
}
