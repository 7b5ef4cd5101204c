//! One task as the supervisor sees it, from its clone to the removal of its cgroup.

use std::fs::File;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::clone::{self, Child, Reaped};
use super::loose;
use super::protocol::{ExitReport, ExitStatus, Reply, SpawnError, SpawnRequest};
use crate::execute::native::cgroup::Group;
use crate::task::limits::Usage;

/// How long an emptied group is waited for before the task is reported in spite of it.
const BURIAL_PATIENCE: Duration = Duration::from_secs(10);

/// A task.
#[derive(Debug)]
pub struct Task {
    request: SpawnRequest,
    pid: i32,
    /// Until the program runs or its failure is known.
    fate: Option<File>,
    refused: Option<SpawnError>,
    group: Option<Group>,
    lease_until: Option<Instant>,
    kill_at: Option<Instant>,
    killed_at: Option<Instant>,
    lease_expired: bool,
    ended: Option<Ended>,
}

#[derive(Debug, Clone, Copy)]
struct Ended {
    status: ExitStatus,
    at: Instant,
    leaked: u64,
    cpu_us: (u64, u64),
}

impl Task {
    /// A task whose child was just made.
    #[must_use]
    pub fn new(request: SpawnRequest, child: Child, group: Option<Group>) -> Self {
        let lease_until = request.lease_ms.map(|ms| Instant::now() + Duration::from_millis(ms));
        Self {
            request,
            pid: child.pid,
            fate: Some(child.fate),
            refused: None,
            group,
            lease_until,
            kill_at: None,
            killed_at: None,
            lease_expired: false,
            ended: None,
        }
    }

    /// The worker's number.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.request.id
    }

    /// The process id of its leader.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Readable when its fate is known, until it is.
    #[must_use]
    pub fn fate(&self) -> Option<&File> {
        self.fate.as_ref()
    }

    /// Its fate is known: says so when the program runs. A refusal is told when everything is gone.
    pub fn learn_fate(&mut self) -> Option<Reply> {
        let fate = self.fate.take()?;
        self.refused = clone::fate(&fate, &self.request);
        let pid = u32::try_from(self.pid).unwrap_or_default();
        self.refused.is_none().then(|| Reply::Started { id: self.request.id, pid })
    }

    /// SIGTERM to every process, and SIGKILL to all of them after `grace`.
    pub fn stop(&mut self, grace: Duration) {
        let at = Instant::now() + grace;
        if self.kill_at.is_none() && self.killed_at.is_none() && !grace.is_zero() {
            for pid in self.processes().into_iter().filter_map(Pid::from_raw) {
                let _ = kill_process(pid, Signal::TERM);
                // A stopped process sees nothing until it goes on.
                let _ = kill_process(pid, Signal::CONT);
            }
        }
        // A later order can only shorten the time that is left.
        self.kill_at = Some(self.kill_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// The lease holds for another `lease`.
    pub fn renew(&mut self, lease: Duration) {
        if self.lease_until.is_some() {
            self.lease_until = Some(Instant::now() + lease);
        }
    }

    fn processes(&self) -> Vec<i32> {
        self.group.as_ref().map_or_else(|| loose::processes(self.pid, &self.request), Group::processes)
    }

    /// Kills the whole tree now.
    pub fn kill(&mut self) {
        self.killed_at.get_or_insert_with(Instant::now);
        match &mut self.group {
            Some(group) => group.kill(),
            None => loose::kill(self.pid, &self.request),
        }
    }

    /// Its leader has ended.
    pub fn leader_ended(&mut self, reaped: &Reaped) {
        let status = if libc::WIFSIGNALED(reaped.status) {
            ExitStatus::Signal(libc::WTERMSIG(reaped.status))
        } else {
            ExitStatus::Code(libc::WEXITSTATUS(reaped.status))
        };
        self.ended = Some(Ended { status, at: Instant::now(), leaked: 0, cpu_us: reaped.cpu_us });
    }

    /// When something is to be done again, if nothing else happens.
    #[must_use]
    pub fn next_look(&self, now: Instant) -> Option<Instant> {
        if self.ended.is_some() || self.killed_at.is_some() {
            return Some(now + Duration::from_millis(1));
        }
        [self.kill_at, self.lease_until].into_iter().flatten().min()
    }

    /// Does what is due; the last reply when the task is over and nothing of it is left.
    pub fn look(&mut self, now: Instant) -> Option<Reply> {
        if self.ended.is_none() {
            if self.lease_until.is_some_and(|until| until <= now) && self.killed_at.is_none() {
                self.lease_expired = true;
                self.kill();
            }
            if self.kill_at.is_some_and(|at| at <= now) || self.killed_at.is_some() {
                self.kill();
            }
            return None;
        }
        self.bury(now)
    }

    fn bury(&mut self, now: Instant) -> Option<Reply> {
        let ended = self.ended?;
        // Read first: with the group go its counts. Empty groups, the usual case, cost one look.
        let mut usage = self.group.as_ref().map_or_else(Usage::default, Group::read);
        let gone = match &mut self.group {
            Some(group) => group.remove(),
            None => loose::processes(self.pid, &self.request).is_empty(),
        };
        if !gone && now.duration_since(ended.at) < BURIAL_PATIENCE {
            if self.killed_at.is_none() {
                let leaked = u64::try_from(self.processes().iter().filter(|pid| **pid != self.pid).count()).unwrap_or(0);
                self.ended = Some(Ended { leaked, ..ended });
            }
            self.kill();
            return None;
        }
        if usage.cpu_user_us + usage.cpu_system_us == 0 {
            (usage.cpu_user_us, usage.cpu_system_us) = ended.cpu_us;
        }
        usage.leaked_processes = ended.leaked;
        let kill_us = self.killed_at.map_or(0, |at| u64::try_from(now.duration_since(at).as_micros()).unwrap_or(u64::MAX));
        let id = self.request.id;
        Some(match self.refused.take() {
            Some(error) => Reply::Refused { id, error },
            None => Reply::Exited { id, report: ExitReport { status: ended.status, usage, lease_expired: self.lease_expired, kill_us } },
        })
    }
}
