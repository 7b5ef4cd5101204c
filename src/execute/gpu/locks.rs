//! One lock per device, for all workers of a machine: `flock` on a file.
//!
//! A lock belongs to an open file, not to a process: everybody who got its descriptor holds it, and it is free when the last
//! of them is gone, however that came about. The file tells where the processes of its last holder's task are (one cgroup
//! directory a line). Anybody may write there, so that workers of several users can share a device: what it says can keep a
//! device busy, and nothing else. Files are never removed: two workers must never lock two files of one name.

use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;

/// Whoever makes a file there owns it, and only its owner can remove it.
const SHARED: u32 = 0o1777;
/// More text than the cgroups of any task.
const MOST_TEXT: u64 = 64 * 1024;
/// A look of another worker holds a lock for some microseconds: a taker comes again.
const TRIES: u32 = 5;

/// The directory of the locks.
#[derive(Debug)]
pub struct LockDir {
    path: PathBuf,
    dir: OwnedFd,
    /// Where the cgroups are mounted that a lock's file may name.
    cgroups: PathBuf,
}

/// A lock that is held while this lives, or anybody has a [share](Lock::share) of it.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl LockDir {
    /// Opens the directory; made where it does not exist, open to all users.
    ///
    /// # Errors
    /// When it cannot be made, is a link, or belongs to another user, who could put other files in the place of those that
    /// are locked.
    pub fn open(path: &Path, cgroups: &Path) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        match DirBuilder::new().mode(SHARED).create(path) {
            // The mode is subject to the umask.
            Ok(()) => std::fs::set_permissions(path, Permissions::from_mode(SHARED))?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        Ok(Self { path: path.to_owned(), dir: open_dir(path)?, cgroups: cgroups.to_owned() })
    }

    /// Whether it could be opened; nothing is made.
    ///
    /// # Errors
    /// As [`LockDir::open`].
    pub fn look(path: &Path) -> io::Result<()> {
        match open_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let above = path.ancestors().find(|above| above.exists()).unwrap_or(Path::new("/"));
                let may = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
                Ok(rustix::fs::accessat(rustix::fs::CWD, above, may, rustix::fs::AtFlags::EACCESS)?)
            }
            opened => opened.map(drop),
        }
    }

    /// Whether nobody has that lock, nor a task of who had it last is alive.
    #[must_use]
    pub fn is_free(&self, name: &str) -> bool {
        match self.existing(name) {
            // Nobody ever had it.
            Err(Errno::NOENT) => true,
            Err(_) => false,
            // Shared: those who only look are not in each other's way.
            Ok(mut file) => flock(&file, FlockOperation::NonBlockingLockShared).is_ok() && !self.is_inhabited(&mut file),
        }
    }

    /// Takes it; none when somebody has it, or a task of who had it last is alive.
    ///
    /// # Errors
    /// When there is something else in its place.
    pub fn take(&self, name: &str) -> io::Result<Option<Lock>> {
        let mut file =
            self.file(name).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", self.path.join(name).display())))?;
        let is_ours = (0..TRIES).any(|again| {
            if again > 0 {
                std::thread::yield_now();
            }
            flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
        });
        let free = is_ours && !self.is_inhabited(&mut file);
        Ok(free.then_some(Lock { file }))
    }

    fn file(&self, name: &str) -> io::Result<File> {
        loop {
            match self.existing(name) {
                // Never O_CREAT on what is there: in a directory that all may write to, the kernel refuses that for another's file.
                Err(Errno::NOENT) => match self.make(name) {
                    Err(Errno::EXIST) => {}
                    made => return Ok(made?),
                },
                found => return Ok(found?),
            }
        }
    }

    fn existing(&self, name: &str) -> Result<File, Errno> {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(&self.dir, name, flags, Mode::empty())?);
        let metadata = file.metadata().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        // A second name could be anybody's file.
        if metadata.is_file() && metadata.nlink() == 1 { Ok(file) } else { Err(Errno::LOOP) }
    }

    fn make(&self, name: &str) -> Result<File, Errno> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let everybody = Mode::from_raw_mode(0o666);
        let file = rustix::fs::openat(&self.dir, name, flags, everybody)?;
        rustix::fs::fchmod(&file, everybody)?;
        Ok(file.into())
    }

    /// Whether somebody lives in one of the cgroups that the file names.
    fn is_inhabited(&self, file: &mut File) -> bool {
        let mut text = String::new();
        // What is no text is not ours.
        if file.take(MOST_TEXT).read_to_string(&mut text).is_err() {
            return false;
        }
        text.lines().map(Path::new).filter(|path| self.is_cgroup(path)).any(has_processes)
    }

    /// Nothing is opened for others but files of a cgroup.
    fn is_cgroup(&self, path: &Path) -> bool {
        path.starts_with(&self.cgroups) && path.components().all(|part| !matches!(part, Component::ParentDir))
    }
}

/// The directory, if it is one that may hold locks.
fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    let dir = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let owner = rustix::fs::fstat(&dir)?.st_uid;
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        let why = format!("it belongs to user {owner}, neither to root nor to this worker's user");
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    Ok(dir)
}

/// Whether there is a process in `cgroup` or below it.
fn has_processes(cgroup: &Path) -> bool {
    let own = std::fs::read_to_string(cgroup.join("cgroup.procs")).is_ok_and(|pids| !pids.trim().is_empty());
    own || std::fs::read_dir(cgroup).into_iter().flatten().flatten().any(|entry| {
        // Of links there are none.
        entry.file_type().is_ok_and(|kind| kind.is_dir()) && has_processes(&entry.path())
    })
}

impl Lock {
    /// Writes down the cgroups of the task.
    ///
    /// # Errors
    /// When that cannot be written.
    pub fn note(&self, cgroups: &[PathBuf]) -> io::Result<()> {
        let text: String = cgroups.iter().map(|path| format!("{}\n", path.display())).collect();
        let mut file = &self.file;
        file.set_len(0)?;
        io::Seek::rewind(&mut file)?;
        file.write_all(text.as_bytes())
    }

    /// Its descriptor once more.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn share(&self) -> io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "195-0.lock";

    fn two() -> (tempfile::TempDir, LockDir, LockDir) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("locks");
        let cgroups = dir.path().join("cgroup");
        let one = LockDir::open(&path, &cgroups).unwrap();
        let other = LockDir::open(&path, &cgroups).unwrap();
        (dir, one, other)
    }

    #[test]
    fn a_lock_is_one_workers_until_its_last_share_is_gone() {
        let (dir, one, other) = two();
        assert!(one.is_free(NAME) && other.is_free(NAME), "nobody ever had it");
        let lock = one.take(NAME).unwrap().expect("free");
        assert!(!other.is_free(NAME) && other.take(NAME).unwrap().is_none());
        assert!(one.take(NAME).unwrap().is_none(), "not even by the same worker");
        assert!(other.is_free("195-1.lock"), "another device is another lock");
        let of_supervisor = lock.share().unwrap();
        drop(lock);
        assert!(!other.is_free(NAME), "the worker is dead, and the supervisor still at work");
        drop(of_supervisor);
        assert!(other.is_free(NAME) && other.take(NAME).unwrap().is_some());
        let mode = std::fs::metadata(dir.path().join("locks")).unwrap().permissions().mode();
        let file = std::fs::metadata(dir.path().join("locks").join(NAME)).unwrap().permissions().mode();
        assert_eq!((mode & 0o7777, file & 0o777), (0o1777, 0o666), "for the workers of all users");
    }

    #[test]
    fn a_free_lock_whose_task_lives_is_not_free() {
        let (dir, one, other) = two();
        // As a cgroup looks; a container's processes are below the task's own directory.
        let cgroup = dir.path().join("cgroup/windlass/i/t.1");
        std::fs::create_dir_all(cgroup.join("container")).unwrap();
        std::fs::write(cgroup.join("cgroup.procs"), "").unwrap();
        std::fs::write(cgroup.join("container/cgroup.procs"), "4711\n").unwrap();
        let lock = one.take(NAME).unwrap().unwrap();
        lock.note(&[dir.path().join("cgroup/longer/name/of/somebody/else"), cgroup.clone()]).unwrap();
        lock.note(std::slice::from_ref(&cgroup)).unwrap();
        drop(lock);
        assert!(!other.is_free(NAME) && other.take(NAME).unwrap().is_none(), "worker and supervisor died, the task did not");
        std::fs::write(cgroup.join("container/cgroup.procs"), "").unwrap();
        assert!(other.is_free(NAME) && other.take(NAME).unwrap().is_some());
        let outside = dir.path().join("elsewhere");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("cgroup.procs"), "4711\n").unwrap();
        other.take(NAME).unwrap().unwrap().note(&[outside, dir.path().join("cgroup/../elsewhere")]).unwrap();
        assert!(one.is_free(NAME), "only cgroups are looked at");
    }

    #[test]
    fn what_is_in_the_place_of_a_lock_is_not_locked() {
        let (dir, one, _) = two();
        let locks = dir.path().join("locks");
        std::fs::write(dir.path().join("victim"), "").unwrap();
        std::os::unix::fs::symlink(dir.path().join("victim"), locks.join("link")).unwrap();
        std::fs::hard_link(dir.path().join("victim"), locks.join("second-name")).unwrap();
        std::fs::create_dir(locks.join("directory")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, locks.join("pipe"), rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o666), 0).unwrap();
        for name in ["link", "second-name", "directory", "pipe"] {
            assert!(!one.is_free(name), "{name}");
            assert!(one.take(name).unwrap_err().to_string().contains(name));
        }
        std::os::unix::fs::symlink(&locks, dir.path().join("linked")).unwrap();
        LockDir::open(&dir.path().join("linked"), Path::new("/sys/fs/cgroup")).unwrap_err();
    }
}
