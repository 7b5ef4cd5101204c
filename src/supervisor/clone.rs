//! Cloning a child, into a cgroup where the kernel does that.

use std::io;
use std::os::fd::RawFd;

use super::sys::exit_now;

/// `libc::CLONE_INTO_CGROUP` 0.2 is 0 on this target (the value overflows its type) and would silently do nothing.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args`, version 2 (88 bytes).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// 0 in the child, its process id in the parent.
#[expect(unsafe_code, reason = "clone3 has no wrapper anywhere")]
pub(super) fn clone(into: Option<RawFd>, namespaces: u64) -> io::Result<i64> {
    let mut args = CloneArgs { flags: namespaces, exit_signal: libc::SIGCHLD as u64, ..CloneArgs::default() };
    if let Some(directory) = into {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = directory as u64;
    }
    // SAFETY: like fork(): no CLONE_VM, no stack, so parent and child go on with their own copy of everything.
    // The arguments outlive the call. No other thread exists whose locks the child could inherit.
    let pid = unsafe {
        if into.is_some() {
            libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>())
        } else {
            libc::syscall(libc::SYS_clone, namespaces | libc::SIGCHLD as u64, 0usize, 0usize, 0usize, 0usize)
        }
    };
    if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid) }
}

/// Whether the kernel clones into a cgroup2 directory: told by how it refuses a descriptor that nobody has. No child is made.
///
/// # Errors
/// Why it does not: unknown to it (before 5.7), or forbidden by a container's filter.
pub(super) fn may_clone_into() -> io::Result<()> {
    match clone(Some(RawFd::MAX), 0) {
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => Ok(()),
        Err(error) => Err(error),
        // A kernel that does not know what it was asked for.
        Ok(0) => exit_now(0),
        Ok(_) => Err(io::ErrorKind::Unsupported.into()),
    }
}
