//! The mounts that tasks see: a namespace of the supervisor's own, from which each task gets a copy with a `/tmp` of its own.
//!
//! Done once, not for each task: everything that no granted path needs is let go (so that no foreign mount is kept busy,
//! and copies are cheap), `/run` with the system's sockets is empty but for what is granted, `/proc` shows a user only its
//! own processes, and directories that are closed to the tenants' users are passable where something granted lies below.
//! Propagation goes one way: what is mounted on the machine later is seen here, nothing of this is seen there.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_change};
use rustix::thread::UnshareFlags;

use crate::execute::native::sandbox::Wish;
use crate::supervisor::complain;

/// What every task has for itself.
pub(super) const PRIVATE: [&str; 3] = ["/tmp", "/var/tmp", "/dev/shm"];
/// Sockets of the system: whoever reaches them can start processes outside the task's cgroup.
const HIDDEN: [&str; 2] = ["/run", "/var/run"];
/// What programs expect besides the granted paths.
const NEEDED: [&str; 3] = ["/dev", "/proc", "/sys"];

/// The namespace that the supervisor came from, for tasks without a sandbox.
#[derive(Debug)]
pub(super) struct Host {
    /// Itself.
    pub namespace: OwnedFd,
    /// The root directory in it, where that is not the namespace's own: in a chroot.
    pub root: Option<OwnedFd>,
}

impl Host {
    fn here() -> io::Result<Self> {
        let chrooted = !mount_points(&std::fs::read("/proc/self/mountinfo")?).iter().any(|point| point == Path::new("/"));
        Ok(Self { namespace: own_namespace()?, root: chrooted.then(root).transpose()? })
    }

    /// Moves this process back there.
    pub(super) fn enter(&self) -> io::Result<()> {
        rustix::thread::move_into_link_name_space(self.namespace.as_fd(), Some(rustix::thread::LinkNameSpaceType::Mount))?;
        self.root.as_ref().map_or(Ok(()), go_to)
    }
}

fn own_namespace() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open("/proc/self/ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

fn root() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Makes it the root directory: who enters a namespace is at its own root.
fn go_to(root: &OwnedFd) -> io::Result<()> {
    rustix::process::fchdir(root)?;
    Ok(rustix::process::chroot(".")?)
}

/// Moves this process into a namespace of its own and prepares it. On failure it is back where it was.
pub(super) fn separate(wish: &Wish, hide_processes: bool) -> io::Result<Host> {
    let host = Host::here()?;
    unshare(UnshareFlags::NEWNS)?;
    if let Err(error) = one_way(host.root.is_some()).and_then(|()| prepare(wish, hide_processes)) {
        let _ = host.enter();
        return Err(error);
    }
    Ok(host)
}

#[expect(unsafe_code, reason = "the library has it as unsafe for flags that unshare descriptors")]
fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: only a mount namespace is unshared.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

/// Nothing of what is mounted here is seen outside. In a chroot the mount that holds the root has no name: it is left for that.
fn one_way(chrooted: bool) -> io::Result<()> {
    let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    if !chrooted {
        return Ok(mount_change("/", flags)?);
    }
    let (root, namespace) = (root()?, own_namespace()?);
    Host { namespace, root: None }.enter()?;
    let changed = mount_change("/", flags);
    go_to(&root)?;
    Ok(changed?)
}

fn prepare(wish: &Wish, hide_processes: bool) -> io::Result<()> {
    let granted = granted(wish);
    let needed: Vec<PathBuf> = granted.iter().cloned().chain(NEEDED.iter().map(PathBuf::from)).collect();
    prune(&needed)?;
    for dir in HIDDEN.iter().map(Path::new).filter(|dir| is_directory(dir)) {
        cover(dir, &granted)?;
    }
    while let Some(closed) = granted.iter().find_map(|path| closed_ancestor(path)) {
        cover(&closed, &granted)?;
    }
    if hide_processes {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        // Kernels before 5.8 have one set of options for all mounts of it: then it stays as it is.
        let _ = mount("proc", "/proc", "proc", flags, Some(c"hidepid=2"));
    }
    Ok(())
}

/// Paths that tasks may use, as far as they exist.
fn granted(wish: &Wish) -> Vec<PathBuf> {
    let all = wish.read_paths.iter().chain(&wish.write_paths).chain([&wish.state_dir]).chain(&wish.secrets_dir);
    all.filter_map(|path| path.canonicalize().ok()).collect()
}

/// Lets go of every mount that neither holds a needed path nor lies below one.
fn prune(needed: &[PathBuf]) -> io::Result<()> {
    let mut points = mount_points(&std::fs::read("/proc/self/mountinfo")?);
    points.sort_by_key(|point| std::cmp::Reverse(point.as_os_str().len()));
    for point in points {
        let private = PRIVATE.iter().any(|dir| point == Path::new(dir));
        let needed = needed.iter().any(|path| path.starts_with(&point) || point.starts_with(path));
        if !needed && !private {
            // Gone with what was mounted below it, or a part of something larger: then it stays.
            let _ = rustix::mount::unmount(&point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
    }
    Ok(())
}

fn mount_points(mountinfo: &[u8]) -> Vec<PathBuf> {
    let lines = mountinfo.split(|b| *b == b'\n');
    lines.filter_map(|line| Some(unescape(line.split(|b| *b == b' ').nth(4)?))).collect()
}

/// `\040` and the like stand for blanks, tabs, line breaks and backslashes.
fn unescape(text: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| *first == b'\\').and_then(|o| u8::from_str_radix(std::str::from_utf8(o).ok()?, 8).ok());
        bytes.push(octal.unwrap_or(*first));
        rest = if octal.is_some() { &tail[3..] } else { tail };
    }
    std::ffi::OsString::from_vec(bytes).into()
}

fn is_directory(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|m| m.is_dir())
}

/// The outermost directory above `path` that other users cannot pass. Those that each task covers for itself do not count.
fn closed_ancestor(path: &Path) -> Option<PathBuf> {
    let mut above: Vec<&Path> = path.ancestors().skip(1).collect();
    above.reverse();
    if above.iter().any(|dir| PRIVATE.iter().any(|private| *dir == Path::new(private))) {
        return None;
    }
    above.into_iter().find(|dir| std::fs::metadata(dir).is_ok_and(|m| m.mode() & 0o001 == 0)).map(Path::to_path_buf)
}

/// Puts an empty directory over `dir`, with those of `keep` that lie in it.
fn cover(dir: &Path, keep: &[PathBuf]) -> io::Result<()> {
    let inside: Vec<&PathBuf> = outermost(keep.iter().filter(|path| path.starts_with(dir) && *path != dir));
    let mut kept = Vec::with_capacity(inside.len());
    for path in inside {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
        kept.push((path, path.is_dir(), rustix::mount::open_tree(CWD, path, flags)?));
    }
    mount("tmpfs", dir, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=711,size=1m"))?;
    for (path, is_dir, tree) in kept {
        let parent = if is_dir { path.as_path() } else { path.parent().unwrap_or(dir) };
        std::fs::DirBuilder::new().recursive(true).mode(0o711).create(parent)?;
        if !is_dir {
            std::fs::File::create(path)?;
        }
        rustix::mount::move_mount(&tree, c"", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    }
    // Only now: with the mounts in it, and before anybody else is here.
    mount_read_only(dir);
    Ok(())
}

fn mount_read_only(dir: &Path) {
    let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    // Nobody but root could write there anyway.
    let _ = rustix::mount::mount_remount(dir, flags, c"");
}

/// Without those that lie in another.
fn outermost<'a>(paths: impl Iterator<Item = &'a PathBuf>) -> Vec<&'a PathBuf> {
    let mut all: Vec<&PathBuf> = paths.collect();
    all.sort();
    all.dedup();
    let mut kept: Vec<&PathBuf> = Vec::new();
    for path in all {
        if !kept.iter().any(|k| path.starts_with(k)) {
            kept.push(path);
        }
    }
    kept
}

/// A `/tmp` of a task's own, as the child will mount it: every string ready.
#[derive(Debug)]
pub(super) struct Tmp {
    /// Options of the file system.
    pub options: CString,
    /// The same directory in these places.
    pub also: Vec<CString>,
    /// What stays visible below: the task's directory and granted paths, where they are in a place that is covered.
    pub kept: Vec<Kept>,
}

/// A directory that stays visible below a covered one.
#[derive(Debug)]
pub(super) struct Kept {
    /// Where.
    pub path: CString,
    /// The directories to be made for it, outermost first, itself last.
    pub dirs: Vec<CString>,
    /// It may only be read. Landlock alone would not see to that here: what is below the task's own `/tmp` may be written.
    pub read_only: bool,
}

/// What all tasks' private directories have in common.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// Of [`PRIVATE`] those that this machine has, without the first.
    also: Vec<CString>,
    /// Granted directories that a private one would hide, and whether tasks may write there.
    granted: Vec<(PathBuf, bool)>,
}

impl Places {
    /// Looks them up once: names are resolved here, not for each task.
    pub(super) fn new(wish: &Wish) -> Self {
        let resolved = |paths: &[PathBuf]| -> Vec<PathBuf> { paths.iter().filter_map(|path| path.canonicalize().ok()).collect() };
        let (read, write) = (resolved(&wish.read_paths), resolved(&wish.write_paths));
        let hidden = |path: &&PathBuf| covering(path).is_some() && path.is_dir();
        // What has something writable in it is left writable as a whole: modes and Landlock see to the rest.
        let writable = |path: &Path| write.iter().any(|w| path.starts_with(w) || w.starts_with(path));
        let protected = resolved(&wish.protected);
        // Landlock grants all that is below the task's own /tmp, with what is kept there: so nothing may be that is not for tasks.
        let harmless = |path: &&PathBuf| {
            let holds = protected.iter().find(|p| p.starts_with(path) || path.starts_with(p));
            if let Some(holds) = holds {
                let (path, holds) = (path.display(), holds.display());
                complain(&format!(
                    "sandbox: {path} is not given to tasks: it holds {holds} and is in a directory of which they have their own"
                ));
            }
            holds.is_none()
        };
        let kept = read.iter().chain(&write).filter(hidden).filter(harmless);
        let granted: Vec<_> = kept.map(|path| (path.clone(), writable(path))).collect();
        let also = PRIVATE.iter().skip(1).filter(|dir| is_directory(Path::new(dir))).map(|dir| c_string(dir.as_bytes()));
        Self { also: also.collect(), granted }
    }
}

impl Tmp {
    /// For a task with these directories, its own and that of its secrets, and that memory limit.
    pub(super) fn new(places: &Places, root: &Path, secrets: Option<&Path>, memory_bytes: u64) -> Self {
        // Half of the task's memory: what fills it up gets "no space left" before the task is killed for memory.
        let bytes = (memory_bytes / 2).max(1 << 20);
        let inodes = (bytes / 16_384).max(1024);
        let own: Vec<PathBuf> =
            [Some(root), secrets].into_iter().flatten().filter(|path| covering(path).is_some()).map(PathBuf::from).collect();
        let all = places.granted.iter().map(|(path, _)| path).chain(&own);
        let read_only = |path: &Path| {
            let granted = places.granted.iter().any(|(granted, writable)| granted == path && !writable);
            !root.starts_with(path) && (granted || secrets == Some(path))
        };
        Self {
            options: c_string(format!("mode=1777,size={bytes},nr_inodes={inodes}").as_bytes()),
            also: places.also.clone(),
            kept: outermost(all).into_iter().map(|path| Kept::new(path, read_only(path))).collect(),
        }
    }
}

impl Kept {
    fn new(path: &Path, read_only: bool) -> Self {
        let cover = covering(path).unwrap_or(Path::new("/"));
        let mut dirs: Vec<CString> =
            path.ancestors().take_while(|dir| *dir != cover).map(|dir| c_string(dir.as_os_str().as_bytes())).collect();
        dirs.reverse();
        Self { path: c_string(path.as_os_str().as_bytes()), dirs, read_only }
    }
}

/// The private directory that would hide `path`.
fn covering(path: &Path) -> Option<&'static Path> {
    PRIVATE.iter().map(Path::new).find(|dir| path.starts_with(dir) && path != *dir)
}

/// Paths of this machine and texts of our own have no NUL; one that had would only be cut short.
fn c_string(bytes: &[u8]) -> CString {
    CString::new(bytes.split(|b| *b == 0).next().unwrap_or_default()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_with_their_blanks() {
        let text = b"22 27 0:21 / /proc rw - proc proc rw\n30 27 8:1 / /mnt/a\\040b rw - ext4 /dev/sda1 rw\n";
        assert_eq!(mount_points(text), [PathBuf::from("/proc"), PathBuf::from("/mnt/a b")]);
    }

    #[test]
    fn a_directory_in_tmp_is_made_step_by_step() {
        let kept = Kept::new(Path::new("/tmp/a/b"), false);
        assert_eq!(kept.dirs, [c"/tmp/a".to_owned(), c"/tmp/a/b".to_owned()]);
        let paths = [PathBuf::from("/tmp/a/b"), PathBuf::from("/tmp/a"), PathBuf::from("/tmp/ab")];
        assert_eq!(outermost(paths.iter()), [&PathBuf::from("/tmp/a"), &PathBuf::from("/tmp/ab")]);
    }
}
