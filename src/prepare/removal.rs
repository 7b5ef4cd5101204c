//! Removing a tree that an enemy may have made.
//!
//! The standard library's `remove_dir_all` keeps a descriptor and a stack frame for each level: a directory 10,000 levels deep
//! makes a worker with the usual 1,024 descriptors fail, and takes them all from its other tasks meanwhile. Here subdirectories
//! are *hoisted*: what is in `root/a/b` is moved up to `root/<new name>`, until nothing has a second level. So three
//! descriptors and a flat stack do for any depth, in time that grows with the number of entries only.
//!
//! Nothing is resolved by more than one name at a time, no link is followed and no mount is entered: a mount that was left
//! inside is detached, never emptied.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Dir, FileType, IFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

/// Longest time spent at one call: who still writes into the tree must not keep us for ever.
const BUDGET: Duration = Duration::from_secs(60);

/// Most mounts on top of one another that are detached at one place.
const MOUNTS: usize = 64;

/// Removes `path` and everything below it; fine when it does not exist. Blocks for as long as that takes, a minute at most.
/// The directory that it is in is trusted.
///
/// # Errors
/// The first thing that could not be removed. Everything else is gone then, unless the time was over.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(io::ErrorKind::InvalidInput.into()) };
    let name = CString::new(name.as_bytes())?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = match rustix::fs::open(parent, flags, Mode::empty()) {
        Ok(parent) => parent,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for _ in 0..MOUNTS {
        match place(parent.as_fd(), &name) {
            Ok(place) => return remove_place(&parent, &name, place),
            Err(Errno::NOENT) => return Ok(()),
            Err(Errno::XDEV) => detach(parent.as_fd(), &name)?,
            Err(error) => return Err(error.into()),
        }
    }
    Err(Errno::XDEV.into())
}

fn remove_place(parent: &OwnedFd, name: &CStr, place: OwnedFd) -> io::Result<()> {
    if FileType::from_raw_mode(rustix::fs::fstat(&place)?.st_mode) != FileType::Directory {
        return Ok(rustix::fs::unlinkat(parent, name, AtFlags::empty())?);
    }
    let root = enter(place)?;
    let prefix = format!(".windlass-{}", uuid::Uuid::now_v7().simple());
    let mut removal = Removal { root, prefix, names: 0, until: Instant::now() + BUDGET, trouble: None };
    removal.run().map_err(|(name, error)| {
        let error = io::Error::from(error);
        io::Error::new(error.kind(), format!("{}: {error}", name.to_string_lossy()))
    })?;
    Ok(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

/// A directory to be emptied, known by its place; its own modes are no obstacle where it is ours.
fn enter(place: OwnedFd) -> Result<OwnedFd, Errno> {
    // What fails here fails again below, with its reason.
    open_up(&place, rustix::fs::fstat(&place)?.st_mode);
    rustix::fs::openat(&place, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// A path of the kernel's to what a descriptor stands for.
pub(super) fn through_proc(descriptor: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", descriptor.as_raw_fd())
}

/// The entry `name` itself: no link is followed, no mount entered.
pub(super) fn place(dir: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(dir, name, flags, Mode::empty(), resolve)
}

/// Takes away a mount on `name`, whatever is mounted and whoever uses it.
fn detach(dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    let path = [through_proc(dir).as_bytes(), b"/", name.to_bytes()].concat();
    rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
}

struct Removal {
    root: OwnedFd,
    /// Of the names that hoisted directories get.
    prefix: String,
    names: u64,
    until: Instant,
    trouble: Option<(CString, Errno)>,
}

/// What became of an entry.
#[derive(PartialEq, Eq)]
enum Entry {
    Gone,
    /// A directory with something in it.
    Full,
    /// It stays, and is noted.
    Stays,
}

impl Removal {
    /// Passes over the root until it is empty or a pass changes nothing.
    fn run(&mut self) -> Result<(), (CString, Errno)> {
        let root = rustix::io::fcntl_dupfd_cloexec(&self.root, 0).map_err(|e| (c".".to_owned(), e))?;
        loop {
            self.trouble = None;
            let (mut changed, mut left) = (false, false);
            let emptied = self.each(root.as_fd(), |this, dir, name, kind| {
                let mut entry = this.remove(dir, name, kind);
                if entry == Entry::Full {
                    changed |= this.empty(dir, name);
                    entry = this.remove(dir, name, FileType::Directory);
                }
                changed |= entry == Entry::Gone;
                left |= entry != Entry::Gone;
            });
            if let Err(error) = emptied {
                return Err((c".".to_owned(), error));
            }
            match self.trouble.take() {
                Some(trouble) if !changed => return Err(trouble),
                None if !left && !changed => return Ok(()),
                Some(_) | None => {}
            }
            if Instant::now() >= self.until {
                return Err((c".".to_owned(), Errno::TIMEDOUT));
            }
        }
    }

    /// Empties the directory `name` of the root, whose own full directories move up to the root. True when that changed
    /// anything.
    fn empty(&mut self, parent: BorrowedFd<'_>, name: &CStr) -> bool {
        let dir = match place(parent, name).and_then(enter) {
            Ok(dir) => dir,
            Err(error) => {
                self.note(name, error);
                return false;
            }
        };
        let mut ever = false;
        loop {
            let mut changed = false;
            let passed = self.each(dir.as_fd(), |this, dir, name, kind| {
                let entry = match this.remove(dir, name, kind) {
                    Entry::Full => this.hoist(dir, name),
                    entry @ (Entry::Gone | Entry::Stays) => entry,
                };
                changed |= entry == Entry::Gone;
            });
            if let Err(error) = passed {
                self.note(name, error);
            }
            ever |= changed;
            if !changed || Instant::now() >= self.until {
                return ever;
            }
        }
    }

    /// One pass over a directory, from its beginning.
    fn each(&mut self, dir: BorrowedFd<'_>, mut visit: impl FnMut(&mut Self, BorrowedFd<'_>, &CStr, FileType)) -> Result<(), Errno> {
        let mut entries = Dir::read_from(dir)?;
        entries.rewind();
        while let Some(entry) = entries.read() {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            visit(self, dir, name, entry.file_type());
            if Instant::now() >= self.until {
                break;
            }
        }
        Ok(())
    }

    fn remove(&mut self, dir: BorrowedFd<'_>, name: &CStr, kind: FileType) -> Entry {
        self.persist(dir, name, |this| this.unlink(dir, name, kind))
    }

    /// Tries again as long as something that may have been in the way could be taken away.
    fn persist(&mut self, dir: BorrowedFd<'_>, name: &CStr, mut act: impl FnMut(&mut Self) -> Result<(), Errno>) -> Entry {
        let mut tries = 0;
        loop {
            match act(self) {
                Ok(()) | Err(Errno::NOENT) => return Entry::Gone,
                Err(Errno::NOTEMPTY | Errno::EXIST) => return Entry::Full,
                Err(_) if tries < MOUNTS && release(dir, name) => tries += 1,
                Err(error) => {
                    self.note(name, error);
                    return Entry::Stays;
                }
            }
        }
    }

    fn unlink(&self, dir: BorrowedFd<'_>, name: &CStr, kind: FileType) -> Result<(), Errno> {
        if kind == FileType::Directory {
            return rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR);
        }
        match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
            // Some file systems do not tell the kind.
            Err(Errno::ISDIR | Errno::PERM) if kind == FileType::Unknown => rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR),
            other => other,
        }
    }

    /// Moves a directory up to the root, where it gets its turn.
    fn hoist(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> Entry {
        self.persist(dir, name, |this| this.move_up(dir, name))
    }

    fn move_up(&mut self, dir: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
        self.names += 1;
        rustix::fs::renameat(dir, name, &self.root, format!("{}-{}", self.prefix, self.names))
    }

    fn note(&mut self, name: &CStr, error: Errno) {
        self.trouble.get_or_insert_with(|| (name.to_owned(), error));
    }
}

/// Takes away what can hold an entry: a mount on it, modes, the immutable and append-only flags of it and of its directory.
/// True when there was something.
fn release(dir: BorrowedFd<'_>, name: &CStr) -> bool {
    let mut released = detach(dir, name).is_ok() | unlock(dir);
    let Ok(place) = place(dir, name) else { return released };
    let Ok(stat) = rustix::fs::fstat(&place) else { return released };
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind == FileType::Directory {
        // A directory that moves to another parent has to be writable itself.
        released |= open_up(&place, stat.st_mode);
    }
    // Only what can be opened without a side effect.
    if matches!(kind, FileType::RegularFile | FileType::Directory) {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(CWD, through_proc(place.as_fd()), flags, Mode::empty());
        released |= opened.is_ok_and(|file| unlock(file.as_fd()));
    }
    released
}

/// Clears the flags that forbid to change something; true when there were any, and they are cleared.
fn unlock(file: BorrowedFd<'_>) -> bool {
    let held = IFlags::IMMUTABLE | IFlags::APPEND;
    let flags = rustix::fs::ioctl_getflags(file).unwrap_or(IFlags::empty());
    flags.intersects(held) && rustix::fs::ioctl_setflags(file, flags - held).is_ok()
}

/// Gives us every right to a directory of our own; true when one was missing, and is there now.
fn open_up(place: &OwnedFd, mode: u32) -> bool {
    let mode = Mode::from_raw_mode(mode);
    // Through /proc, since O_PATH descriptors take no fchmod.
    !mode.contains(Mode::RWXU) && rustix::fs::chmod(through_proc(place.as_fd()), mode | Mode::RWXU).is_ok()
}

#[cfg(test)]
mod tests;
