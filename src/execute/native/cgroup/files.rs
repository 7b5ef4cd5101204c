//! Reading and writing the small files of a cgroup through a descriptor of its directory.
//!
//! `openat` on a kept descriptor spares the walk from `/` for every file and cannot land in a namesake
//! that was made after ours was removed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, RawDir};
use rustix::io::Errno;

/// A cgroup file that is read here has at most a few hundred bytes; lists of processes are read in pieces of this size.
const CHUNK: usize = 16 * 1024;

/// Opens a directory.
pub(super) fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Opens a directory below another.
pub(super) fn open_dir_at(dir: impl AsFd, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, flags, Mode::empty())?)
}

/// Opens a file for writing, to be written to later.
pub(super) fn open_write(dir: impl AsFd, name: &str) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(dir, name, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Writes a value in one call, as the kernel wants it.
pub(super) fn write(dir: impl AsFd, name: &str, value: &str) -> io::Result<()> {
    let file = open_write(dir, name)?;
    rustix::io::write(&file, value.as_bytes())?;
    Ok(())
}

/// Reads a whole file.
pub(super) fn read(dir: impl AsFd, name: &str) -> io::Result<String> {
    let file = rustix::fs::openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut bytes = Vec::new();
    let mut chunk = [0u8; CHUNK];
    loop {
        match rustix::io::read(&file, &mut chunk) {
            Ok(0) => break,
            Ok(n) => bytes.extend_from_slice(&chunk[..n]),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    String::from_utf8(bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// A file that holds one number.
pub(super) fn read_number(dir: impl AsFd, name: &str) -> io::Result<u64> {
    let text = read(dir, name)?;
    text.trim().parse().map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("{name}: {e}")))
}

/// The value of `key` in a file of `key value` lines.
pub(super) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Process ids listed in `name`.
pub(super) fn pids(dir: impl AsFd, name: &str) -> io::Result<Vec<u32>> {
    // A directory that is gone, or a cgroup that was removed while it was open, holds nobody.
    match read(dir, name) {
        Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid != 0).collect()),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// Processes of `dir` and of everything below it. What cannot be read is left out.
pub(super) fn pids_below(dir: BorrowedFd<'_>) -> Vec<u32> {
    let mut found = pids(dir, "cgroup.procs").unwrap_or_default();
    for name in children(dir).unwrap_or_default() {
        if let Ok(child) = open_dir_at(dir, &name) {
            found.extend(pids_below(child.as_fd()));
        }
    }
    found
}

/// Names of the directories below `dir`.
pub(super) fn children(dir: BorrowedFd<'_>) -> io::Result<Vec<String>> {
    // A fresh description: the offset of `dir` itself is not moved.
    let dir = rustix::fs::openat(dir, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let mut entries = RawDir::new(&dir, &mut buffer);
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        if entry.file_type() != rustix::fs::FileType::Directory {
            continue;
        }
        match entry.file_name().to_str() {
            Ok("." | "..") | Err(_) => {}
            Ok(name) => names.push(name.to_owned()),
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_not_taken_for_its_prefix() {
        let text = "oom 3\noom_kill 2\noom_group_kill 1\n";
        assert_eq!(keyed(text, "oom_kill"), Some(2));
        assert_eq!(keyed(text, "oom"), Some(3));
        assert_eq!(keyed(text, "kill"), None);
    }
}
