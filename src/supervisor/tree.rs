//! The processes of one task: a cgroup, or, where there is none, what a walk over `/proc` finds.
//!
//! The walk is the poor relation for `--allow-unlimited` machines. It knows a task's processes by descent, by session
//! and by a mark in their environment; a process that detaches itself from all three is only caught when the
//! supervisor has no task left. Cgroups have no such gap.

use std::collections::HashMap;
use std::io;

use rustix::process::Signal;

use crate::execute::native::cgroup::{Group, Site, signal};
use crate::task::limits::Usage;

/// Name of the mark.
pub(super) const MARK: &str = "WINDLASS_TREE";

/// Processes of one task.
#[derive(Debug)]
pub(super) enum Tree {
    /// Its cgroup.
    Cgroup(Group),
    /// No cgroup: pid of the leader and value of the mark.
    Walk { leader: u32, mark: String },
    /// Processes of an engine that does not put them where we could see them: its API is asked to kill them.
    Elsewhere,
}

impl Tree {
    /// Those that are alive.
    pub(super) fn pids(&self, site: &Site) -> Vec<u32> {
        match self {
            Self::Cgroup(group) => site.pids(group),
            Self::Walk { leader, mark } => walk(*leader, mark),
            Self::Elsewhere => Vec::new(),
        }
    }

    /// Notes what is counted only in cgroups below its own, which may be gone at the next look.
    pub(super) fn glance(&self, site: &Site) {
        if let Self::Cgroup(group) = self {
            site.glance(group);
        }
    }

    /// SIGTERM to all; stopped ones are continued to see it.
    pub(super) fn terminate(&self, site: &Site) {
        if let Self::Cgroup(group) = self {
            site.thaw(group);
        }
        for pid in self.pids(site) {
            signal(pid, Signal::TERM);
            signal(pid, Signal::CONT);
        }
    }

    /// SIGKILL to all.
    pub(super) fn kill(&self, site: &Site) {
        match self {
            Self::Cgroup(group) => site.kill(group),
            Self::Walk { .. } | Self::Elsewhere => self.pids(site).into_iter().for_each(|pid| signal(pid, Signal::KILL)),
        }
    }

    /// What they used, without what only the kernel's accounting of a cgroup knows.
    pub(super) fn usage(&self, site: &Site) -> Usage {
        match self {
            Self::Cgroup(group) => site.usage(group),
            Self::Walk { .. } | Self::Elsewhere => Usage::default(),
        }
    }

    /// Nothing of it is left. `Ok(false)`: somebody is alive.
    pub(super) fn remove(&mut self, site: &Site) -> io::Result<bool> {
        match self {
            Self::Cgroup(group) => site.remove(group),
            Self::Walk { leader, mark } => Ok(walk(*leader, mark).is_empty()),
            Self::Elsewhere => Ok(true),
        }
    }
}

struct Process {
    parent: u32,
    session: u32,
}

/// Every process of the machine that is not a zombie.
fn processes() -> HashMap<u32, Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return HashMap::new() };
    let pids = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: u32| Some((pid, parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?))).collect()
}

/// State, parent and session follow the last parenthesis: the name before it may contain anything.
fn parse_stat(text: &str) -> Option<Process> {
    let mut fields = text.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    let (parent, _group, session) = (fields.next()?.parse().ok()?, fields.next()?, fields.next()?.parse().ok()?);
    (state != "Z" && state != "X").then_some(Process { parent, session })
}

fn walk(leader: u32, mark: &str) -> Vec<u32> {
    let all = processes();
    let own = std::process::id();
    let marked = |pid: u32| {
        let wanted = format!("{MARK}={mark}");
        std::fs::read(format!("/proc/{pid}/environ")).is_ok_and(|env| env.split(|b| *b == 0).any(|v| v == wanted.as_bytes()))
    };
    let mut found: Vec<u32> = all
        .iter()
        .filter(|(pid, process)| **pid == leader || process.session == leader || (process.parent == own && marked(**pid)))
        .map(|(pid, _)| *pid)
        .collect();
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        let children: Vec<u32> = all.iter().filter(|(pid, p)| p.parent == parent && !found.contains(pid)).map(|(pid, _)| *pid).collect();
        found.extend(children);
        next += 1;
    }
    found
}

/// Kills whatever descends from this process: only orphans of tasks do when no task is left.
pub(super) fn kill_orphans() {
    let all = processes();
    let own = std::process::id();
    for pid in all.iter().filter(|(_, p)| p.parent == own).map(|(pid, _)| *pid) {
        signal(pid, Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_cannot_forge_its_parent() {
        let p = parse_stat("7 (x) S 1 1 1) R 42 7 99 0 -1").expect("parses");
        assert_eq!((p.parent, p.session), (42, 99));
        assert!(parse_stat("7 (x) Z 42 7 99").is_none(), "zombies are gone");
    }
}
