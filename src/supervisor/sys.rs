//! The system calls that no safe crate offers: clone into a cgroup, the child's last steps, signalfd, wait4.
//!
//! The process is single-threaded, so a forked child may do what it likes. It still does nothing but system
//! calls on memory that was prepared before: that is faster, and stays right should a thread ever appear.

use std::ffi::{CString, c_char};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use super::clone::clone;
use super::jail::{Cell, child as confine};
use super::protocol::ExitStatus;
use crate::execute::native::cgroup::Entrance;

/// Where a child failed between clone and exec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Cgroup,
    Session,
    Guard,
    Stdio,
    Privileges,
    Directory,
    Exec,
    Namespaces,
    Mounts,
    User,
    Landlock,
    Seccomp,
}

impl Step {
    const ALL: [Self; 12] = [
        Self::Cgroup,
        Self::Session,
        Self::Guard,
        Self::Stdio,
        Self::Privileges,
        Self::Directory,
        Self::Exec,
        Self::Namespaces,
        Self::Mounts,
        Self::User,
        Self::Landlock,
        Self::Seccomp,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Cgroup => "enter cgroup",
            Self::Session => "setsid",
            Self::Guard => "prctl(PR_SET_PDEATHSIG)",
            Self::Stdio => "dup2",
            Self::Privileges => "prctl(PR_SET_NO_NEW_PRIVS)",
            Self::Directory => "chdir",
            Self::Exec => "execve",
            Self::Namespaces => "namespaces",
            Self::Mounts => "mounts",
            Self::User => "change of user",
            Self::Landlock => "landlock",
            Self::Seccomp => "seccomp",
        }
    }
}

/// A program image prepared for exec: every string with its NUL, every array with its null pointer.
pub(super) struct Image {
    candidates: Vec<CString>,
    directory: CString,
    argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
    /// What the pointers point to.
    _strings: Vec<CString>,
}

impl Image {
    /// `candidates`: paths to try in turn.
    pub(super) fn new(candidates: Vec<CString>, directory: CString, argv: Vec<CString>, env: Vec<CString>) -> Self {
        let pointers = |strings: &[CString]| strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect();
        let (argv_pointers, envp) = (pointers(&argv), pointers(&env));
        // A CString's bytes are on the heap: moving the CString does not move them.
        Self { candidates, directory, argv: argv_pointers, envp, _strings: argv.into_iter().chain(env).collect() }
    }
}

/// What a child has to know of the supervisor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin {
    /// Process id of the supervisor.
    pub pid: i32,
    /// Limit of open files, soft and hard, as the worker had it.
    pub open_files: (u64, u64),
}

impl Origin {
    /// Notes what children get back, and takes as many open files as may be had: five for each running task.
    pub(super) fn take() -> Self {
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        let found = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let raised = rustix::process::Rlimit { current: found.maximum, maximum: found.maximum };
        let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, raised);
        let number = |limit: Option<u64>| limit.unwrap_or(libc::RLIM_INFINITY);
        Self { pid, open_files: (number(found.current), number(found.maximum)) }
    }
}

/// A child that was cloned.
#[derive(Debug)]
pub(super) struct Started {
    /// Its process id.
    pub pid: u32,
    /// End of a pipe that is closed by a successful exec and otherwise tells the failure (see [`failure`]).
    pub report: OwnedFd,
    /// Where a process namespace's init tells how the program ended (see [`ending`]).
    pub status: Option<OwnedFd>,
}

/// Starts `image` with `stdio` in the cgroup of `entrance`, confined to `cell`.
pub(super) fn start(image: &Image, stdio: &[OwnedFd; 3], entrance: &Entrance, origin: Origin, cell: &Cell) -> io::Result<Started> {
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK);
    let (report_read, report_write) = pipe()?;
    let status = if cell.isolated { Some(pipe()?) } else { None };
    let pid = clone(entrance.clone_into, cell.flags)?;
    if pid == 0 {
        let status_write = status.as_ref().map(|(_, write)| write.as_raw_fd());
        let (step, errno) = child(image, stdio, entrance, origin, cell, status_write);
        let code = Step::ALL.iter().position(|s| *s == step).unwrap_or(0) as u8;
        let mut message = [code, 0, 0, 0, 0];
        message[1..].copy_from_slice(&errno.to_ne_bytes());
        let _ = rustix::io::write(&report_write, &message);
        exit_now(127);
    }
    let pid = u32::try_from(pid).map_err(io::Error::other)?;
    Ok(Started { pid, report: report_read, status: status.map(|(read, _)| read) })
}

/// How the program of an isolated task ended; `None` while it runs, and when its init was killed before it could tell.
pub(super) fn ending(status: &OwnedFd) -> Option<ExitStatus> {
    let mut message = [0u8; 4];
    let read = rustix::io::read(status, &mut message).ok()?;
    (read == message.len()).then(|| exit_status(i32::from_ne_bytes(message)))
}

/// What the child said: `WouldBlock` while it has not come to exec, `None` once it has, else where it failed.
pub(super) fn failure(report: &OwnedFd) -> io::Result<Option<(Step, io::Error)>> {
    let mut message = [0u8; 5];
    let read = rustix::io::read(report, &mut message)?;
    if read < message.len() {
        return Ok(None);
    }
    let step = Step::ALL.get(usize::from(message[0])).copied().unwrap_or(Step::Exec);
    let errno = i32::from_ne_bytes([message[1], message[2], message[3], message[4]]);
    Ok(Some((step, io::Error::from_raw_os_error(errno))))
}

fn child(image: &Image, stdio: &[OwnedFd; 3], entrance: &Entrance, origin: Origin, cell: &Cell, status: Option<RawFd>) -> (Step, i32) {
    let steps = || {
        attach(stdio, entrance, origin, cell)?;
        confine_first(cell, status)?;
        change_directory(image)?;
        if cell.confined {
            confine::seal(cell)?;
        }
        Ok(())
    };
    match steps() {
        Ok(()) => exec(image),
        Err(failed) => failed,
    }
}

/// Into its cgroup, session and namespaces, with its descriptors and the signals of a fresh process.
#[expect(unsafe_code, reason = "the child does nothing but system calls")]
fn attach(stdio: &[OwnedFd; 3], entrance: &Entrance, origin: Origin, cell: &Cell) -> Result<(), (Step, i32)> {
    let Origin { pid: parent, open_files: limits } = origin;
    let isolated = cell.flags & libc::CLONE_NEWPID as u64 != 0;
    // SAFETY: every pointer is into memory of this process's own copy; every descriptor is open; nothing here is shared
    // with the parent.
    unsafe {
        for tasks in &entrance.tasks {
            // The thread itself, through `tasks`: the kernel skips the lock whose wait costs 9 ms elsewhere.
            if libc::write(tasks.as_raw_fd(), b"0".as_ptr().cast(), 1) != 1 {
                return Err((Step::Cgroup, last_errno()));
            }
        }
        if libc::setsid() < 0 {
            return Err((Step::Session, last_errno()));
        }
        // Should the supervisor be killed, the leader goes at once; the worker's sweep takes the rest.
        if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) < 0 {
            return Err((Step::Guard, last_errno()));
        }
        // A parent outside one's own process namespace has no number to compare.
        if !isolated && libc::getppid() != parent {
            return Err((Step::Guard, libc::ESRCH));
        }
        if let Some((namespace, root)) = cell.host {
            let rooted = |fd| libc::fchdir(fd) == 0 && libc::chroot(c".".as_ptr()) == 0;
            if libc::setns(namespace, libc::CLONE_NEWNS) < 0 || !root.is_none_or(rooted) {
                return Err((Step::Mounts, last_errno()));
            }
        }
        if cell.confined {
            confine::enter(cell)?;
        }
        for (number, descriptor) in stdio.iter().enumerate() {
            // Never the same number: received descriptors are above 2, because 0, 1 and 2 are open here.
            if libc::dup2(descriptor.as_raw_fd(), number as i32) < 0 {
                return Err((Step::Stdio, last_errno()));
            }
        }
        // All are close-on-exec anyway. Kernels before 5.11 do not know the call.
        libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
        let mut none = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut());
        let files = libc::rlimit { rlim_cur: limits.0, rlim_max: limits.1 };
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const files);
        let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        libc::setrlimit(libc::RLIMIT_CORE, &raw const no_core);
        Ok(())
    }
}

/// Without rights from here on; in a process namespace the caller of this goes on as the second process.
#[expect(unsafe_code, reason = "fork and prctl")]
fn confine_first(cell: &Cell, status: Option<RawFd>) -> Result<(), (Step, i32)> {
    // SAFETY: plain values; the fork is that of a process with one thread.
    unsafe {
        if !cell.confined {
            return match libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) {
                0 => Ok(()),
                _ => Err((Step::Privileges, last_errno())),
            };
        }
        confine::renounce(cell)?;
        let Some(status) = status else { return Ok(()) };
        // A change of user resets it to the system's setting: the init's memory is a copy of the supervisor's.
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
        match libc::syscall(libc::SYS_clone, libc::SIGCHLD as u64, 0usize, 0usize, 0usize, 0usize) {
            0 => {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                if libc::setsid() < 0 { Err((Step::Session, last_errno())) } else { Ok(()) }
            }
            program if program > 0 => init(program, status),
            _ => Err((Step::Namespaces, last_errno())),
        }
    }
}

/// First process of a process namespace: reaps everybody, tells how the program ended, goes when nobody is left.
///
/// It has no handlers, so the kernel lets no signal from inside through, and of those from outside only SIGKILL: what asks
/// the task to end reaches the program itself.
#[expect(unsafe_code, reason = "wait and write without allocation")]
fn init(program: i64, status: RawFd) -> ! {
    // SAFETY: plain values and a local variable.
    unsafe {
        // Nothing of the task's may be held open here: readers wait for the end of its output.
        libc::dup2(status, 0);
        libc::syscall(libc::SYS_close_range, 1u32, u32::MAX, 0);
        loop {
            let mut ended = 0;
            let pid = libc::wait4(-1, &raw mut ended, 0, ptr::null_mut());
            if i64::from(pid) == program {
                libc::write(0, (&raw const ended).cast(), size_of::<libc::c_int>());
            } else if pid < 0 && last_errno() != libc::EINTR {
                exit_now(0);
            }
        }
    }
}

#[expect(unsafe_code, reason = "chdir without allocation")]
fn change_directory(image: &Image) -> Result<(), (Step, i32)> {
    // SAFETY: the path ends with NUL.
    if unsafe { libc::chdir(image.directory.as_ptr()) } < 0 { Err((Step::Directory, last_errno())) } else { Ok(()) }
}

/// As `execvpe` does: goes on where a file is missing, remembers a forbidden one, stops at everything else.
#[expect(unsafe_code, reason = "execve")]
fn exec(image: &Image) -> (Step, i32) {
    let mut errno = libc::ENOENT;
    for candidate in &image.candidates {
        // SAFETY: see `child`.
        unsafe { libc::execve(candidate.as_ptr(), image.argv.as_ptr(), image.envp.as_ptr()) };
        match last_errno() {
            libc::ENOENT | libc::ENOTDIR if image.candidates.len() > 1 => {}
            libc::EACCES => errno = libc::EACCES,
            other => return (Step::Exec, other),
        }
    }
    (Step::Exec, errno)
}

#[expect(unsafe_code, reason = "_exit: the parent's exit handlers are not the child's to run")]
pub(super) fn exit_now(code: i32) -> ! {
    // SAFETY: always sound.
    unsafe { libc::_exit(code) }
}

pub(super) fn last_errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

/// All signals back to their default, the ones that must not end us blocked, and a descriptor that tells SIGCHLD.
///
/// Blocked rather than ignored: what is ignored stays ignored through exec, and tasks shall start with defaults.
#[expect(unsafe_code, reason = "signalfd has no wrapper in our crates")]
pub(super) fn take_signals() -> io::Result<OwnedFd> {
    // The kernel's `struct sigaction` with no handler, no flags, nothing masked is all zeroes on every architecture.
    let default = [0u64; 4];
    // SAFETY: the sets are initialised by sigemptyset before use; the default is a valid disposition for each signal,
    // and SIGKILL and SIGSTOP only return an error.
    unsafe {
        for signal in 1..=64 {
            // By system call: the C library does not let go of its own two, and a parent may have left them ignored.
            let none = ptr::null_mut::<u64>();
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), none, size_of::<u64>());
        }
        let mut blocked = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(blocked.as_mut_ptr());
        let mut watched = blocked;
        libc::sigaddset(watched.as_mut_ptr(), libc::SIGCHLD);
        for signal in [
            libc::SIGCHLD,
            libc::SIGINT,
            libc::SIGTERM,
            libc::SIGHUP,
            libc::SIGQUIT,
            libc::SIGPIPE,
            libc::SIGUSR1,
            libc::SIGUSR2,
            libc::SIGTSTP,
        ] {
            libc::sigaddset(blocked.as_mut_ptr(), signal);
        }
        if libc::sigprocmask(libc::SIG_SETMASK, blocked.as_ptr(), ptr::null_mut()) < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = libc::signalfd(-1, watched.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

/// Empties the signalfd.
pub(super) fn drain(signals: &OwnedFd) {
    let mut buffer = [0u8; 1024];
    while rustix::io::read(signals, &mut buffer).is_ok_and(|n| n == buffer.len()) {}
}

/// A process that ended and was reaped.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reaped {
    pub pid: u32,
    pub status: ExitStatus,
    /// CPU time of it and its waited-for children: user, system, microseconds.
    pub cpu_us: (u64, u64),
    /// Largest resident set among them, bytes.
    pub memory_bytes: u64,
}

/// Reaps one process that has ended, a task's own or an orphan.
#[expect(unsafe_code, reason = "wait4 tells usage, which waitpid does not")]
pub(super) fn reap() -> Option<Reaped> {
    let mut status = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: both pointers are valid for writes, and all zeroes is a valid rusage.
    let (pid, usage) = unsafe { (libc::wait4(-1, &raw mut status, libc::WNOHANG, usage.as_mut_ptr()), usage.assume_init()) };
    let pid = u32::try_from(pid).ok().filter(|pid| *pid > 0)?;
    let status = exit_status(status);
    let us = |t: libc::timeval| u64::try_from(t.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(t.tv_usec).unwrap_or(0);
    let memory_bytes = u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024;
    Some(Reaped { pid, status, cpu_us: (us(usage.ru_utime), us(usage.ru_stime)), memory_bytes })
}

fn exit_status(status: libc::c_int) -> ExitStatus {
    if libc::WIFSIGNALED(status) { ExitStatus::Signal(libc::WTERMSIG(status)) } else { ExitStatus::Code(libc::WEXITSTATUS(status)) }
}
