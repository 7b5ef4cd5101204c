//! Trees as an enemy leaves them, on the real file system.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::PathBuf;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::*;

struct Tree {
    dir: tempfile::TempDir,
}

impl Tree {
    fn new() -> Self {
        let tree = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(tree.root()).unwrap();
        tree
    }

    /// In memory where that can be had: making so many files is what takes time, and is not what is tested.
    fn large() -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        Self { dir }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    /// Removes it, and looks that nothing is left and nothing beside it is gone.
    fn removed(&self) {
        let started = Instant::now();
        remove_tree(&self.root()).unwrap();
        println!("removed in {:?}", started.elapsed());
        assert!(!self.root().exists() && self.root().symlink_metadata().is_err());
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Makes `levels` directories, one in another, by descriptors: the path is longer than any call takes.
fn nest(root: &Path, levels: usize) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut here = rustix::fs::open(root, flags, Mode::empty()).unwrap();
    for _ in 0..levels {
        rustix::fs::mkdirat(&here, "d", Mode::RWXU).unwrap();
        here = rustix::fs::openat(&here, "d", flags, Mode::empty()).unwrap();
    }
    rustix::fs::openat(&here, "bottom", OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).unwrap();
}

#[test]
fn ten_thousand_levels_need_neither_descriptors_nor_stack() {
    let tree = Tree::large();
    nest(&tree.root(), 10_000);
    // The limit is the process's, so other tests keep enough: far fewer than there are levels.
    let was = getrlimit(Resource::Nofile);
    let few = was.current.map_or(1024, |n| n.min(1024));
    setrlimit(Resource::Nofile, Rlimit { current: Some(few), maximum: was.maximum }).unwrap();
    // The stack of a thread in a runtime's pool is 2 MiB; here it is a small part of that.
    let root = tree.root();
    let removal = std::thread::Builder::new().stack_size(128 * 1024).spawn(move || remove_tree(&root)).unwrap();
    let started = Instant::now();
    removal.join().unwrap().unwrap();
    println!("removed in {:?}", started.elapsed());
    setrlimit(Resource::Nofile, was).unwrap();
    assert!(!tree.root().exists());
}

#[test]
fn fifty_thousand_files_and_wide_trees_go() {
    let tree = Tree::large();
    fs::create_dir(tree.path("many")).unwrap();
    for n in 0..50_000 {
        fs::File::create(tree.path("many").join(n.to_string())).unwrap();
    }
    for n in 0..300 {
        fs::create_dir_all(tree.path(&format!("wide/{n}/a/b"))).unwrap();
        fs::write(tree.path(&format!("wide/{n}/a/b/file")), "x").unwrap();
    }
    tree.removed();
}

#[test]
fn links_are_removed_and_not_followed() {
    let tree = Tree::new();
    let outside = tree.dir.path().join("outside");
    fs::create_dir_all(outside.join("inner")).unwrap();
    fs::write(outside.join("inner/precious"), "x").unwrap();
    symlink(&outside, tree.path("to-dir")).unwrap();
    symlink(outside.join("inner/precious"), tree.path("to-file")).unwrap();
    symlink("..", tree.path("up")).unwrap();
    symlink("loop", tree.path("loop")).unwrap();
    fs::create_dir_all(tree.path("a/b")).unwrap();
    symlink(&outside, tree.path("a/b/deep")).unwrap();
    fs::hard_link(outside.join("inner/precious"), tree.path("a/hard")).unwrap();
    tree.removed();
    assert_eq!(fs::read_to_string(outside.join("inner/precious")).unwrap(), "x");
    // A link in the tree's own place is itself what goes.
    symlink(&outside, tree.root()).unwrap();
    tree.removed();
    assert!(outside.join("inner/precious").exists());
    remove_tree(&tree.root()).unwrap();
}

#[test]
fn names_of_every_kind_and_special_files_go() {
    use std::os::unix::ffi::OsStringExt as _;
    let tree = Tree::new();
    for name in [&b"new\nline"[..], b"\x1b[31m", b"\xff\xfe", b"-rf", b"...", &[b'x'; 255]] {
        fs::create_dir_all(tree.root().join(std::ffi::OsString::from_vec(name.to_vec())).join("inner")).unwrap();
    }
    rustix::fs::mknodat(CWD, tree.path("pipe"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(tree.path("socket")).unwrap();
    tree.removed();
}

#[test]
fn modes_are_no_obstacle() {
    let tree = Tree::new();
    fs::create_dir_all(tree.path("a/b/c")).unwrap();
    fs::write(tree.path("a/b/c/file"), "x").unwrap();
    for name in ["a/b/c", "a/b", "a", ""] {
        fs::set_permissions(tree.path(name), fs::Permissions::from_mode(0o0)).unwrap();
    }
    // As root modes do not count; a thread of another user shows that they are really changed.
    let root = tree.root();
    as_nobody(&tree, move || remove_tree(&root)).unwrap();
    assert!(!tree.root().exists());
}

/// Runs `act` as somebody without privileges, who is given the tree first.
fn as_nobody<T: Send + 'static>(tree: &Tree, act: impl FnOnce() -> T + Send + 'static) -> T {
    const NOBODY: u32 = 65534;
    if !is_root() {
        return act();
    }
    let mut todo = vec![tree.dir.path().to_owned()];
    while let Some(path) = todo.pop() {
        if fs::metadata(&path).unwrap().gid() != NOBODY {
            std::os::unix::fs::lchown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        todo.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|e| e.path()));
    }
    // Of this thread only; with the user go the capabilities that would let it pass.
    let thread = std::thread::spawn(move || {
        let nobody = rustix::process::Uid::from_raw(NOBODY);
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        act()
    });
    thread.join().unwrap()
}

#[test]
fn what_somebody_else_owns_is_named_and_everything_else_goes() {
    if !is_root() {
        return println!("SKIPPED: needs root to give a file to somebody else");
    }
    let tree = Tree::new();
    fs::create_dir_all(tree.path("theirs/locked")).unwrap();
    fs::write(tree.path("theirs/locked/file"), "x").unwrap();
    fs::write(tree.path("mine"), "x").unwrap();
    // Its group says that it is given away already, its user that it is root's.
    std::os::unix::fs::chown(tree.path("theirs/locked"), Some(0), Some(65534)).unwrap();
    std::os::unix::fs::chown(tree.path("theirs/locked/file"), Some(0), Some(65534)).unwrap();
    let root = tree.root();
    let error = as_nobody(&tree, move || remove_tree(&root)).unwrap_err();
    assert!(error.to_string().contains("locked"), "{error}");
    assert!(!tree.path("mine").exists(), "what could go is gone");
    tree.removed();
}

#[test]
fn immutable_and_append_only_files_go() {
    let tree = Tree::new();
    fs::create_dir_all(tree.path("a/kept")).unwrap();
    fs::write(tree.path("a/file"), "x").unwrap();
    for (name, flag) in [("a/file", IFlags::IMMUTABLE), ("a/kept", IFlags::APPEND), ("a", IFlags::IMMUTABLE)] {
        let file = fs::File::open(tree.path(name)).unwrap();
        let flags = rustix::fs::ioctl_getflags(&file).unwrap_or(IFlags::empty());
        if let Err(error) = rustix::fs::ioctl_setflags(&file, flags | flag) {
            return println!("SKIPPED: this file system or user cannot set flags: {error}");
        }
    }
    tree.removed();
}

#[test]
fn a_mount_inside_is_detached_and_not_emptied() {
    let tree = Tree::new();
    let outside = tree.dir.path().join("outside");
    fs::create_dir_all(outside.join("inner")).unwrap();
    fs::write(outside.join("inner/precious"), "x").unwrap();
    fs::create_dir_all(tree.path("a/b/mount")).unwrap();
    fs::write(tree.path("a/file"), "").unwrap();
    for (from, to) in [
        (outside.clone(), tree.path("a/b/mount")),
        (outside.clone(), tree.path("a/b/mount")),
        (outside.join("inner/precious"), tree.path("a/file")),
        (outside.clone(), tree.root()),
    ] {
        if let Err(error) = rustix::mount::mount_bind(&from, &to) {
            return println!("SKIPPED: no mounts for this user: {error}");
        }
    }
    tree.removed();
    assert!(outside.join("inner/precious").exists(), "a mount was emptied");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(tree.dir.path().to_str().unwrap()), "a mount is left");
}
