//! What a task used, read from its cgroup before that goes. A figure that this kernel does not offer is 0.

use std::os::fd::BorrowedFd;

use super::files;
use super::layout::Controller;
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
