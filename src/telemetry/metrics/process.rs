//! A process as `/proc` tells of it.

use std::path::PathBuf;

/// Field numbers of `/proc/<pid>/stat` behind the name in brackets, counted from 0: see proc(5).
const UTIME: usize = 11;
const STIME: usize = 12;
const START: usize = 19;

/// Looked at anew by each question.
#[derive(Debug, Clone)]
pub(super) struct Process(PathBuf);

impl Process {
    /// This one.
    pub(super) fn this() -> Self {
        Self("/proc/self".into())
    }

    /// Another one.
    pub(super) fn of(pid: u32) -> Self {
        Self(format!("/proc/{pid}").into())
    }

    /// The name may hold anything, spaces and brackets too: what counts begins behind its last bracket.
    fn stat(&self, field: usize) -> Option<u64> {
        let text = std::fs::read_to_string(self.0.join("stat")).ok()?;
        text.rsplit_once(')')?.1.split_whitespace().nth(field)?.parse().ok()
    }

    /// Resident memory.
    pub(super) fn resident_bytes(&self) -> Option<u64> {
        let text = std::fs::read_to_string(self.0.join("statm")).ok()?;
        let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
        Some(pages * u64::try_from(rustix::param::page_size()).ok()?)
    }

    /// CPU time, user and system.
    pub(super) fn cpu_seconds(&self) -> Option<f64> {
        Some(seconds(self.stat(UTIME)? + self.stat(STIME)?))
    }

    /// Seconds since 1970 at which it was started.
    pub(super) fn start_time(&self) -> Option<f64> {
        let text = std::fs::read_to_string("/proc/stat").ok()?;
        let boot: f64 = text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
        Some(boot + seconds(self.stat(START)?))
    }

    /// Open descriptors. Those of a supervisor can be read only by root, because it gives nobody a look into itself.
    pub(super) fn open_descriptors(&self) -> Option<u64> {
        Some(std::fs::read_dir(self.0.join("fd")).ok()?.count() as u64)
    }
}

#[expect(clippy::cast_precision_loss, reason = "ticks of a process's life are far below 2^53")]
fn seconds(ticks: u64) -> f64 {
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_told_of() {
        let this = Process::this();
        assert!(this.resident_bytes().unwrap() > 100_000);
        assert!(this.open_descriptors().unwrap() >= 3);
        assert!(this.cpu_seconds().unwrap() >= 0.0);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        let started = this.start_time().unwrap();
        assert!(started <= now + 2.0 && started > now - 86_400.0, "{started} of {now}");
        assert_eq!(Process::of(u32::MAX).resident_bytes(), None, "what is not there is not told of");
    }
}
