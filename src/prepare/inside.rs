//! Looking at what a task wrote, while it may still change it.
//!
//! A task owns its directory and may put anything in the place of a file: a link to what only the worker can read, a pipe that
//! nobody writes, a device, a second name of somebody else's file, a mount. So the directory is held by a descriptor from before
//! the task began; a name in it is looked up once, without following or crossing anything; what it stands for is looked at
//! before it is opened; and then that very thing is opened, not its name again.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::removal::{place, through_proc};

/// A directory that belongs to a task.
#[derive(Debug)]
pub struct Inside {
    dir: OwnedFd,
}

/// Why a file of a task is not read. The words follow "the result" and the like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// It points elsewhere.
    #[error("is a symbolic link; write a plain file")]
    Link,
    /// A directory, pipe, socket or device.
    #[error("is not a plain file; write one")]
    NotPlain,
    /// Something is mounted there.
    #[error("is a mount; write a plain file")]
    Mount,
    /// It has other names, which may be somebody else's.
    #[error("has a second name (a hard link); write a file of its own")]
    SecondName,
    /// It belongs to another user than the task's.
    #[error("belongs to another user than the task's")]
    NotOwn,
    /// The system's answer.
    #[error("cannot be read: {0}")]
    Io(Errno),
}

impl Inside {
    /// Holds `dir`, wherever it may be moved.
    ///
    /// # Errors
    /// When it cannot be opened or is a link.
    pub fn open(dir: &Path) -> std::io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self { dir: rustix::fs::open(dir, flags, Mode::empty())? })
    }

    /// The plain file `name`, opened for reading; none when there is none. Never blocks on what the task put there.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn file(&self, name: &str) -> Result<Option<File>, Unusable> {
        let name = CString::new(name).map_err(|_| Unusable::Io(Errno::INVAL))?;
        let place = match place(self.dir.as_fd(), &name) {
            Ok(place) => place,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::XDEV) => return Err(Unusable::Mount),
            Err(error) => return Err(Unusable::Io(error)),
        };
        let stat = rustix::fs::fstat(&place).map_err(Unusable::Io)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Symlink {
            return Err(Unusable::Link);
        }
        if kind != FileType::RegularFile {
            return Err(Unusable::NotPlain);
        }
        if stat.st_nlink > 1 {
            return Err(Unusable::SecondName);
        }
        // Where the worker gave the directory to a user of the task's own, that user's files count and no others: it cannot
        // give away a file, nor take the directory from itself.
        let owner = rustix::fs::fstat(&self.dir).map_err(Unusable::Io)?.st_uid;
        if owner != rustix::process::geteuid().as_raw() && stat.st_uid != owner {
            return Err(Unusable::NotOwn);
        }
        // Not blocking, for a task can hold a lease on its file, which an ordinary open would wait for.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(CWD, through_proc(place.as_fd()), flags, Mode::empty()).map_err(Unusable::Io)?;
        Ok(Some(File::from(opened)))
    }
}
