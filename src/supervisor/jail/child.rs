//! What a child does to confine itself, between clone and exec: system calls on memory that was prepared before.
//!
//! ```text
//! enter (still privileged): user map ─ /tmp ─ /proc ─ loopback
//! renounce: groups, user, capabilities, no_new_privs
//! seal (last): Landlock ─ seccomp
//! ```
#![expect(unsafe_code, reason = "system calls that must not allocate")]

use std::ffi::CStr;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;

use super::Cell;
use crate::supervisor::sys::{Step, last_errno};

type Done = Result<(), (Step, i32)>;

/// Zero or positive is success.
fn check(step: Step, result: libc::c_long) -> Done {
    if result < 0 { Err((step, last_errno())) } else { Ok(()) }
}

/// Steps that need the supervisor's rights.
pub(in crate::supervisor) fn enter(cell: &Cell) -> Done {
    if let Some(map) = &cell.user_map {
        write_file(c"/proc/self/setgroups", b"deny").map_err(|e| (Step::Namespaces, e))?;
        write_file(c"/proc/self/uid_map", map.uid.to_bytes()).map_err(|e| (Step::Namespaces, e))?;
        write_file(c"/proc/self/gid_map", map.gid.to_bytes()).map_err(|e| (Step::Namespaces, e))?;
    }
    if cell.tmp.is_some() {
        mounts(cell).map_err(|e| (Step::Mounts, e))?;
    }
    if cell.isolated {
        loopback().map_err(|e| (Step::Namespaces, e))?;
    }
    Ok(())
}

/// In a namespace of a user's own `/proc/self` belongs to root while this memory may not be dumped: allowed for a moment.
fn write_file(path: &CStr, text: &[u8]) -> Result<(), i32> {
    // SAFETY: the path ends with NUL, the buffer is as long as said, the descriptor is closed.
    unsafe {
        libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0);
        let fd = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        let open_errno = last_errno();
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
        if fd < 0 {
            return Err(open_errno);
        }
        let written = libc::write(fd, text.as_ptr().cast(), text.len());
        let errno = last_errno();
        libc::close(fd);
        if written < 0 { Err(errno) } else { Ok(()) }
    }
}

/// The private `/tmp`, and in a process namespace its `/proc`.
fn mounts(cell: &Cell) -> Result<(), i32> {
    let Some(tmp) = &cell.tmp else { return Ok(()) };
    let ok = |result: libc::c_long| if result < 0 { Err(last_errno()) } else { Ok(result) };
    // At most this many paths can be kept; more are refused before.
    let mut trees: [RawFd; MAX_KEPT] = [-1; MAX_KEPT];
    // SAFETY: every path is a CString of `cell`, which lives in this process's memory; flags are the kernel's.
    unsafe {
        if cell.user_map.is_some() {
            // In a user namespace nothing may flow back; as root the supervisor has seen to that.
            let flags = libc::MS_REC | libc::MS_PRIVATE;
            ok(libc::mount(ptr::null(), c"/".as_ptr(), ptr::null(), flags, ptr::null()).into())?;
        }
        for (slot, kept) in trees.iter_mut().zip(&tmp.kept) {
            let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_RECURSIVE as libc::c_uint;
            *slot = ok(libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, kept.path.as_ptr(), flags))? as RawFd;
            if kept.read_only {
                // `struct mount_attr`: set, clear, propagation, user namespace.
                let read_only: [u64; 4] = [libc::MOUNT_ATTR_RDONLY, 0, 0, 0];
                let how = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
                ok(libc::syscall(libc::SYS_mount_setattr, *slot, c"".as_ptr(), how, read_only.as_ptr(), size_of_val(&read_only)))?;
            }
        }
        let safe = libc::MS_NOSUID | libc::MS_NODEV;
        ok(libc::mount(c"tmpfs".as_ptr(), c"/tmp".as_ptr(), c"tmpfs".as_ptr(), safe, tmp.options.as_ptr().cast()).into())?;
        for place in &tmp.also {
            ok(libc::mount(c"/tmp".as_ptr(), place.as_ptr(), ptr::null(), libc::MS_BIND, ptr::null()).into())?;
        }
        for (tree, kept) in trees.iter().zip(&tmp.kept) {
            for dir in &kept.dirs {
                // It may be there from another one.
                libc::mkdir(dir.as_ptr(), 0o711);
            }
            let empty_path = 4u32;
            ok(libc::syscall(libc::SYS_move_mount, *tree, c"".as_ptr(), libc::AT_FDCWD, kept.path.as_ptr(), empty_path))?;
        }
        grant(cell, c"/tmp", cell.write_bits)?;
        if cell.isolated {
            let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
            ok(libc::mount(c"proc".as_ptr(), c"/proc".as_ptr(), c"proc".as_ptr(), flags, ptr::null()).into())?;
            grant(cell, c"/proc", cell.read_bits)?;
        }
    }
    Ok(())
}

/// Most paths that can be kept visible below a private directory.
pub(super) const MAX_KEPT: usize = 32;

/// `struct landlock_path_beneath_attr`
#[repr(C, packed)]
struct PathBeneath {
    allowed_access: u64,
    parent_fd: i32,
}

/// Adds a rule for a file system that was mounted after the ruleset was made.
fn grant(cell: &Cell, path: &CStr, access: u64) -> Result<(), i32> {
    const PATH_BENEATH: libc::c_int = 1;
    let Some(ruleset) = &cell.ruleset else { return Ok(()) };
    // SAFETY: the attribute outlives the call, and the descriptors are open.
    unsafe {
        let fd = libc::open(path.as_ptr(), libc::O_PATH | libc::O_CLOEXEC);
        if fd < 0 {
            return Err(last_errno());
        }
        let rule = PathBeneath { allowed_access: access, parent_fd: fd };
        let added = libc::syscall(libc::SYS_landlock_add_rule, ruleset.as_raw_fd(), PATH_BENEATH, &raw const rule, 0u32);
        let errno = last_errno();
        libc::close(fd);
        if added < 0 { Err(errno) } else { Ok(()) }
    }
}

/// A network namespace begins with its loopback interface down.
fn loopback() -> Result<(), i32> {
    // SAFETY: the request is a whole `ifreq` with a name that ends with NUL.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        if socket < 0 {
            return Err(last_errno());
        }
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        let set = libc::ioctl(socket, libc::SIOCSIFFLAGS, &raw const request);
        let errno = last_errno();
        libc::close(socket);
        if set < 0 { Err(errno) } else { Ok(()) }
    }
}

/// Gives up every right that is not needed to run the task.
pub(in crate::supervisor) fn renounce(cell: &Cell) -> Done {
    // SAFETY: plain values, and structures that outlive their calls.
    unsafe {
        for (resource, limit) in &cell.limits {
            libc::setrlimit(*resource, limit);
        }
        libc::umask(0o022);
        if cell.drop_bounding {
            for capability in 0..=cell.last_capability {
                // Only what is there can be dropped, and without CAP_SETPCAP nothing; no_new_privs stands behind it.
                libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0);
            }
        }
        if let Some(user) = cell.user {
            check(Step::User, libc::setgroups(0, ptr::null()).into())?;
            check(Step::User, libc::setresgid(user.gid, user.gid, user.gid).into())?;
            check(Step::User, libc::setresuid(user.uid, user.uid, user.uid).into())?;
        }
        libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
        // Version 3, this thread; no capability in any set.
        let header: [u32; 2] = [0x2008_0522, 0];
        let none = [0u32; 6];
        check(Step::User, libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()))?;
        // A change of user takes it away.
        check(Step::Guard, libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL).into())?;
        check(Step::Privileges, libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0).into())
    }
}

/// The last steps before exec: from here on the child is as confined as its program.
pub(in crate::supervisor) fn seal(cell: &Cell) -> Done {
    // SAFETY: the filter lives in this process's memory and is as long as said.
    unsafe {
        if let Some(ruleset) = &cell.ruleset {
            check(Step::Landlock, libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0u32))?;
        }
        if let Some(filter) = &cell.filter {
            let program = libc::sock_fprog { len: filter.len() as libc::c_ushort, filter: filter.as_ptr().cast_mut().cast() };
            let set = libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0u32, &raw const program);
            check(Step::Seccomp, set)?;
        }
    }
    Ok(())
}
