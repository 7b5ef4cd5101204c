//! Killing and removing cgroup directories whose owner is gone.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
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
    for child in open_children(dir) {
        kill_below(child.as_fd());
    }
}

/// The directories right below `dir`, without those that go while we look.
pub(super) fn open_children(dir: BorrowedFd<'_>) -> Vec<OwnedFd> {
    let names = files::children(dir).unwrap_or_default();
    names.iter().filter_map(|name| files::open_dir_at(dir, name).ok()).collect()
}

/// Removes all directories below `dir`, deepest first.
pub(super) fn remove_below(dir: BorrowedFd<'_>) -> io::Result<()> {
    for name in files::children(dir)? {
        let child = match files::open_dir_at(dir, &name) {
            // An engine removes its own, too.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            opened => opened?,
        };
        match remove_below(child.as_fd()) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            Ok(()) | Err(_) => {}
        }
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

/// What a worker that starts may wait for the lock of the parent: who sweeps has it, for two seconds for each instance that does
/// not go.
pub(super) const PARENT: Duration = Duration::from_secs(20);
/// Likewise of one that has tasks to watch, or that can do without.
pub(super) const BRIEFLY: Duration = Duration::from_millis(100);
/// Between two tries.
const TRY_AGAIN: Duration = Duration::from_millis(5);

/// Makes a directory, and those above it, that only its owner can read, and so lock: a task that could would keep
/// workers from starting. What is in it can be read by whoever knows its name.
pub(super) fn make_dir(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o711).create(path)
}

/// Makes and opens the directory of all instances, and waits for its lock: creation of one, sweeping, and the removal of
/// the directory itself exclude each other.
///
/// # Errors
/// `WouldBlock` when somebody else has the lock for longer than `patience`.
pub(super) fn locked_parent(path: &Path, patience: Duration) -> io::Result<OwnedFd> {
    let until = Instant::now() + patience;
    loop {
        make_dir(path)?;
        let dir = match files::open_dir(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            opened => opened?,
        };
        while let Err(error) = lock(dir.as_fd()) {
            if error.kind() != io::ErrorKind::WouldBlock {
                return Err(error);
            }
            if Instant::now() >= until {
                let error = format!("another process has locked it for {} s", patience.as_secs_f64());
                return Err(io::Error::new(io::ErrorKind::WouldBlock, error));
            }
            std::thread::sleep(TRY_AGAIN);
        }
        // While we waited, the last worker that left may have removed it, and somebody made another one.
        let (held, named) = (rustix::fs::fstat(&dir)?, rustix::fs::stat(path));
        if named.is_ok_and(|named| (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)) {
            return Ok(dir);
        }
    }
}

/// How often a worker that leaves asks for the lock of the parent: another one that leaves holds it for a moment, one that
/// starts for longer, and then the directory is needed anyway.
const LAST_TRIES: u32 = 20;

/// Removes the directories of all instances above these, where no other instance is in them.
pub fn remove_parents(directories: &[PathBuf]) {
    for parent in directories.iter().filter_map(|path| path.parent()) {
        let Ok(dir) = files::open_dir(parent) else { continue };
        for _ in 0..LAST_TRIES {
            if lock(dir.as_fd()).is_ok() {
                let _ = std::fs::remove_dir(parent);
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Gives it back.
pub(super) fn unlock(dir: &OwnedFd) {
    let _ = rustix::fs::flock(dir, FlockOperation::Unlock);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_one_to_leave_removes_the_parent() {
        let mount = tempfile::tempdir().unwrap();
        let parent = mount.path().join("windlass");
        let (one, two) = (parent.join("one"), parent.join("two"));
        for dir in [&one, &two] {
            drop(locked_parent(&parent, PARENT).unwrap());
            std::fs::create_dir(dir).unwrap();
        }
        std::fs::remove_dir(&one).unwrap();
        remove_parents(&[one]);
        assert!(two.exists(), "another one is still there");
        std::fs::remove_dir(&two).unwrap();
        let starting = locked_parent(&parent, PARENT).unwrap();
        remove_parents(std::slice::from_ref(&two));
        assert!(parent.exists(), "one that starts has the lock");
        drop(starting);
        remove_parents(&[two]);
        assert!(!parent.exists());
    }

    #[test]
    fn a_lock_that_somebody_keeps_is_not_waited_for_for_ever_and_tasks_cannot_have_it() {
        use std::os::unix::fs::PermissionsExt as _;
        let mount = tempfile::tempdir().unwrap();
        let parent = mount.path().join("windlass");
        let kept = locked_parent(&parent, PARENT).unwrap();
        let error = locked_parent(&parent, BRIEFLY).unwrap_err();
        assert!(error.kind() == io::ErrorKind::WouldBlock && error.to_string().contains("locked it"), "{error}");
        assert_eq!(std::fs::metadata(&parent).unwrap().permissions().mode() & 0o044, 0, "who cannot open it cannot lock it");
        drop(kept);
        assert!(locked_parent(&parent, BRIEFLY).is_ok());
    }

    #[test]
    fn who_waited_for_a_parent_that_went_makes_another_one() {
        let mount = tempfile::tempdir().unwrap();
        let parent = mount.path().join("windlass");
        let leaving = locked_parent(&parent, PARENT).unwrap();
        let path = parent.clone();
        let starting = std::thread::spawn(move || locked_parent(&path, PARENT).map(|dir| rustix::fs::fstat(&dir).unwrap().st_ino));
        // Whether it waits for the lock by now or only comes to it: it must end with a directory that is there.
        std::fs::remove_dir(&parent).unwrap();
        drop(leaving);
        let inode = starting.join().unwrap().unwrap();
        assert_eq!(rustix::fs::stat(&parent).unwrap().st_ino, inode);
    }
}
