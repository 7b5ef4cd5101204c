//! Killing and removing cgroup directories whose owner is gone.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FlockOperation};
use rustix::process::{Pid, Signal};

use super::files;

/// A process in uninterruptible sleep can outlast any kill; its cgroup is then left to the next sweep.
const PATIENCE: Duration = Duration::from_secs(2);

/// Kills everything in these directories and below, and removes them.
///
/// Blocking, at most two seconds. A directory that does not exist is done.
///
/// # Errors
/// Names the first directory that could not be emptied and removed.
pub fn remove_instances(directories: &[PathBuf]) -> Result<(), (PathBuf, io::Error)> {
    let deadline = Instant::now() + PATIENCE;
    // All are killed before the first is waited for: one kill in the cgroup2 hierarchy empties the others.
    for path in directories {
        if let Ok(dir) = files::open_dir(path) {
            kill_below(dir.as_fd());
        }
    }
    for path in directories {
        remove_when_empty(path, deadline).map_err(|e| (path.clone(), e))?;
    }
    Ok(())
}

fn remove_when_empty(path: &Path, deadline: Instant) -> io::Result<()> {
    let dir = match files::open_dir(path) {
        Ok(dir) => dir,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    loop {
        let removed = remove_below(dir.as_fd()).and_then(|()| std::fs::remove_dir(path));
        match removed {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) if Instant::now() >= deadline => return Err(e),
            Err(_) => {
                kill_below(dir.as_fd());
                std::thread::sleep(Duration::from_micros(500));
            }
        }
    }
}

/// SIGKILL to every process in `dir` and below: with `cgroup.kill` where the kernel has it, one by one elsewhere.
pub(super) fn kill_below(dir: BorrowedFd<'_>) {
    if files::write(dir, "cgroup.kill", "1").is_ok() {
        return;
    }
    // Without it a fork bomb outruns a loop of kills, unless it can no longer fork.
    let _ = files::write(dir, "pids.max", "0");
    for pid in files::pids(dir, "cgroup.procs").unwrap_or_default() {
        signal(pid, Signal::KILL);
    }
    for name in files::children(dir).unwrap_or_default() {
        if let Ok(child) = files::open_dir_at(dir, &name) {
            kill_below(child.as_fd());
        }
    }
}

/// Removes all directories below `dir`, deepest first.
pub(super) fn remove_below(dir: BorrowedFd<'_>) -> io::Result<()> {
    for name in files::children(dir)? {
        let child = files::open_dir_at(dir, &name)?;
        remove_below(child.as_fd())?;
        match rustix::fs::unlinkat(dir, name.as_str(), AtFlags::REMOVEDIR) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// One signal; a process that is gone is no error.
pub fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Removes the sibling instances whose owner is dead: those whose lock can be had.
///
/// The supervisor of an instance holds a `flock` on its directory for life, so the kernel itself says who is
/// dead, however it died. Returns the names that were removed and those that could not be.
pub(super) fn sweep_siblings(parent: BorrowedFd<'_>, parent_path: &Path, own: &str) -> Vec<(String, bool)> {
    let mut swept = Vec::new();
    for name in files::children(parent).unwrap_or_default() {
        if name == own {
            continue;
        }
        let Ok(dir) = files::open_dir_at(parent, &name) else { continue };
        if lock(dir.as_fd()).is_ok() {
            let removed = remove_instances(&[parent_path.join(&name)]).is_ok();
            swept.push((name, removed));
        }
    }
    swept
}

/// Takes the lock of an instance's directory, without waiting.
pub(super) fn lock(dir: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::fs::flock(dir, FlockOperation::NonBlockingLockExclusive)?)
}

/// Waits for the lock of the directory of all instances: creation of one and sweeping exclude each other.
pub(super) fn lock_parent(dir: &OwnedFd) -> io::Result<()> {
    Ok(rustix::fs::flock(dir, FlockOperation::LockExclusive)?)
}

/// Gives it back.
pub(super) fn unlock(dir: &OwnedFd) {
    let _ = rustix::fs::flock(dir, FlockOperation::Unlock);
}
