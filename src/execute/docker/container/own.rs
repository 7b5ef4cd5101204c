//! A container's own cgroup, where this process can see it: for those that are not below one of the worker's.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::super::{Engine, Refusal};
use crate::execute::native::cgroup::{Foreign, Habit, Lacking};
use crate::task::limits::{Limits, Usage};

/// The cgroup, and the first process in it.
#[derive(Debug)]
pub(in crate::execute::docker) struct Own {
    cgroup: Foreign,
    /// None before Linux 5.3.
    first: Option<OwnedFd>,
}

impl Own {
    /// Of a container that was started. None where it is not to be seen: it has ended, or its engine has other processes or cgroups
    /// than we (remote, rootless, in a container or a virtual machine).
    pub(in crate::execute::docker) async fn of(engine: &Engine, id: &str, cgroups: &Path) -> Option<(Self, Habit)> {
        let inspected = engine.inspect(id).await.ok()?;
        let pid = inspected.state.and_then(|state| state.pid).and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw)?;
        // First: that it is in the container's cgroup shows below that it is the one that was meant.
        let first = pidfd_open(pid, PidfdFlags::empty()).ok();
        let found = Foreign::of(pid.as_raw_nonzero().get().unsigned_abs(), id, cgroups);
        match found {
            Ok((cgroup, habit)) => {
                tracing::debug!(container = id, "usage and limits are read from the container's own cgroup");
                Some((Self { cgroup, first }, habit))
            }
            Err(why) => {
                tracing::debug!(container = id, %why, "the container's cgroup is not to be seen: usage is what the engine says");
                None
            }
        }
    }

    /// The kernel must have the limits that the engine was asked for.
    pub(in crate::execute::docker) fn limited(&self, limits: &Limits) -> Result<(), Refusal> {
        if !limits.enforced {
            return Ok(());
        }
        self.cgroup.has(limits).map_err(|Lacking { limit, found }| {
            Refusal::isolation(format!("the container engine did not set the limit {limit} of the container's cgroup: {found}"))
        })
    }

    /// Looks at what was used, every `look` and once more at its end, until `given_up` hangs up. Blocks.
    ///
    /// Its end is that of its first process, and with it of all others: everything is counted then, and the directory is there for
    /// as long as the engine takes to notice and to have it removed. What was killed for memory just before is seen.
    pub(super) fn watch(self, given_up: &OwnedFd, look: Duration, note: impl Fn(Usage)) {
        let look = timespec(look);
        let ends: Vec<&OwnedFd> = std::iter::once(given_up).chain(&self.first).collect();
        loop {
            note(self.cgroup.usage());
            let mut ends: Vec<_> = ends.iter().map(|end| PollFd::new(end, PollFlags::IN)).collect();
            match poll(&mut ends, Some(&look)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) | Err(_) => break,
            }
        }
        note(self.cgroup.usage());
    }
}

/// Waits that long for the other end of a pipe to go.
pub(super) fn hung_up(end: &OwnedFd, within: Duration) -> bool {
    let mut ends = [PollFd::new(end, PollFlags::IN)];
    !matches!(poll(&mut ends, Some(&timespec(within))), Ok(0) | Err(Errno::INTR))
}

fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: i64::from(time.subsec_nanos()) }
}
