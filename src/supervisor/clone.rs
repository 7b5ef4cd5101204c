//! From a request to a running program: `clone3` into the cgroup, a few calls, `execve`.
//!
//! The supervisor has one thread, so the child of a fork may do whatever a process may: no lock is held by a thread that
//! is not there any more.
#![expect(unsafe_code, reason = "clone, signal dispositions and exec have no safe form")]

use std::ffi::CString;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::protocol::{SpawnError, SpawnRequest};
use crate::execute::native::cgroup::Group;

/// `libc`'s constant of this name is 0 on some targets, and using it would silently do nothing.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// What failed between clone and exec, as the child says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Step {
    Cgroup = 1,
    Stdio = 2,
    WorkingDir = 3,
    Isolation = 4,
    Exec = 5,
}

/// A child between clone and exec, or beyond.
#[derive(Debug)]
pub struct Child {
    /// Its process id.
    pub pid: i32,
    /// Ends without a byte when the program runs.
    pub fate: File,
}

/// Everything that the child needs, made before there is one.
struct Prepared {
    candidates: Vec<CString>,
    argv: Vec<CString>,
    env: Vec<CString>,
    cwd: CString,
    stdio: [RawFd; 3],
    entrances: Vec<RawFd>,
    fate: RawFd,
    parent: i32,
}

fn other(request: &SpawnRequest, step: &str, error: impl std::fmt::Display) -> SpawnError {
    let program = request.argv.first().cloned().unwrap_or_default();
    SpawnError::Other { program, step: step.to_owned(), error: error.to_string() }
}

/// Starts the program of `request` in `group`. Whether it really runs is known when [`Child::fate`] ends.
///
/// # Errors
/// When there is no child.
pub fn start(request: &SpawnRequest, group: Option<&Group>, stdio: &[OwnedFd]) -> Result<Child, SpawnError> {
    let fail = |step: &'static str| move |error: std::io::Error| other(request, step, error);
    let [stdin, stdout, stderr] = stdio else { return Err(other(request, "descriptors", "three are needed")) };
    let (fate_read, fate_write) = std::io::pipe().map_err(fail("pipe"))?;
    let tracking = group.map(Group::tracking).transpose().map_err(fail("cgroup"))?.flatten();
    let mut entrances = group.map(Group::entrances).transpose().map_err(fail("cgroup"))?.unwrap_or_default();
    let text = |text: &str| CString::new(text).map_err(|error| other(request, "NUL byte", error));
    let mut prepared = Prepared {
        candidates: candidates(request).iter().map(|c| text(c)).collect::<Result<_, _>>()?,
        argv: request.argv.iter().map(|a| text(a)).collect::<Result<_, _>>()?,
        env: request.env.iter().map(|(n, v)| text(&format!("{n}={v}"))).collect::<Result<_, _>>()?,
        cwd: text(&request.cwd)?,
        stdio: [stdin.as_raw_fd(), stdout.as_raw_fd(), stderr.as_raw_fd()],
        entrances: entrances.iter().map(AsRawFd::as_raw_fd).collect(),
        fate: fate_write.as_raw_fd(),
        parent: std::process::id().cast_signed(),
    };
    let pid = match clone3(tracking.as_ref().map(AsRawFd::as_raw_fd)) {
        Ok(0) => child(&prepared),
        Ok(pid) => pid,
        // Old kernels, and containers whose seccomp filter hides clone3: fork, and enter the group by hand.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM | libc::EINVAL | libc::EOPNOTSUPP)) => {
            entrances.extend(group.map(Group::late_entrance).transpose().map_err(fail("cgroup"))?.flatten());
            prepared.entrances = entrances.iter().map(AsRawFd::as_raw_fd).collect();
            // SAFETY: this process has one thread.
            match unsafe { libc::fork() } {
                -1 => return Err(other(request, "fork", std::io::Error::last_os_error())),
                0 => child(&prepared),
                pid => pid,
            }
        }
        Err(error) => return Err(other(request, "clone3", error)),
    };
    drop(fate_write);
    // SAFETY: the descriptor is taken out of its owner, so it has one owner again.
    let fate = unsafe { File::from_raw_fd(std::os::fd::IntoRawFd::into_raw_fd(fate_read)) };
    Ok(Child { pid, fate })
}

/// The paths to try: as given with a slash, else in every directory of `PATH`.
fn candidates(request: &SpawnRequest) -> Vec<String> {
    let Some(program) = request.argv.first() else { return vec![] };
    if program.contains('/') {
        return vec![program.clone()];
    }
    path(request).split(':').map(|dir| if dir.is_empty() { format!("./{program}") } else { format!("{dir}/{program}") }).collect()
}

fn path(request: &SpawnRequest) -> &str {
    request.env.iter().find(|(name, _)| name == "PATH").map_or("/usr/bin:/bin", |(_, value)| value)
}

/// `struct clone_args` of the kernel.
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

/// A fork, into the cgroup where there is one to enter.
fn clone3(cgroup: Option<RawFd>) -> std::io::Result<i32> {
    let exit_signal = u64::try_from(libc::SIGCHLD).unwrap_or_default();
    let mut args = CloneArgs { exit_signal, ..CloneArgs::default() };
    if let Some(fd) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::try_from(fd).unwrap_or_default();
    }
    // SAFETY: no stack and no memory sharing, so this is a fork; `args` has the kernel's layout and lives through the call.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, std::mem::size_of::<CloneArgs>()) };
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(i32::try_from(result).unwrap_or(-1)) }
}

/// The child: never returns.
fn child(prepared: &Prepared) -> ! {
    let (step, errno) = become_program(prepared);
    let mut message = [0_u8; 5];
    message[0] = step as u8;
    message[1..].copy_from_slice(&errno.to_ne_bytes());
    // SAFETY: writes five bytes to a descriptor that stays open until exec, and ends this process.
    unsafe {
        libc::write(prepared.fate, message.as_ptr().cast(), message.len());
        libc::_exit(127)
    }
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

fn become_program(prepared: &Prepared) -> (Step, i32) {
    for entrance in &prepared.entrances {
        // SAFETY: writes one byte to an open descriptor.
        if unsafe { libc::write(*entrance, c"0".as_ptr().cast(), 1) } != 1 {
            return (Step::Cgroup, errno());
        }
    }
    if let Err(errno) = stdio(prepared.stdio) {
        return (Step::Stdio, errno);
    }
    reset_signals();
    // SAFETY: plain calls on this process; the strings outlive them.
    unsafe {
        libc::setsid();
        if libc::chdir(prepared.cwd.as_ptr()) != 0 {
            return (Step::WorkingDir, errno());
        }
        let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        if libc::setrlimit(libc::RLIMIT_CORE, &raw const no_core) != 0
            || libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0
        {
            return (Step::Isolation, errno());
        }
        // The supervisor may have died between clone and prctl.
        if libc::getppid() != prepared.parent {
            return (Step::Isolation, libc::ESRCH);
        }
        // Nothing but the three is inherited; the fate pipe closes by itself at exec.
        libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC.cast_signed());
    }
    (Step::Exec, exec(prepared))
}

/// Puts the three descriptors in place. They were received after 0, 1 and 2 were taken, so all of them are above.
fn stdio(fds: [RawFd; 3]) -> Result<(), i32> {
    for (target, fd) in fds.into_iter().enumerate() {
        // SAFETY: both are descriptors of this process; dup2 leaves the copy open over exec.
        if unsafe { libc::dup2(fd, RawFd::try_from(target).unwrap_or_default()) } < 0 {
            return Err(errno());
        }
    }
    Ok(())
}

/// What the supervisor ignores or blocks, a task must not.
fn reset_signals() {
    // SAFETY: an empty set is valid; signals that cannot be changed are refused without harm.
    unsafe {
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        for signal in 1..=libc::SIGRTMAX() {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
}

/// Tries the candidates; returns what went wrong.
fn exec(prepared: &Prepared) -> i32 {
    let pointers = |texts: &[CString]| -> Vec<*const libc::c_char> {
        texts.iter().map(|t| t.as_ptr()).chain(std::iter::once(std::ptr::null())).collect()
    };
    let (argv, env) = (pointers(&prepared.argv), pointers(&prepared.env));
    let mut worst = libc::ENOENT;
    for candidate in &prepared.candidates {
        // SAFETY: null-terminated arrays of strings that outlive the call; it returns only when it failed.
        unsafe { libc::execve(candidate.as_ptr(), argv.as_ptr(), env.as_ptr()) };
        match errno() {
            libc::ENOENT | libc::ENOTDIR => {}
            libc::EACCES => worst = libc::EACCES,
            other => return other,
        }
    }
    worst
}

/// What a child's fate says: nothing when the program runs.
#[must_use]
pub fn fate(mut pipe: &File, request: &SpawnRequest) -> Option<SpawnError> {
    let mut message = [0_u8; 5];
    if pipe.read_exact(&mut message).is_err() {
        return None;
    }
    let errno = i32::from_ne_bytes([message[1], message[2], message[3], message[4]]);
    let error = std::io::Error::from_raw_os_error(errno).to_string();
    let program = request.argv.first().cloned().unwrap_or_default();
    Some(match message[0] {
        step if step == Step::Cgroup as u8 => SpawnError::Cgroup { path: request.cgroup.clone(), error },
        step if step == Step::WorkingDir as u8 => SpawnError::WorkingDir { path: request.cwd.clone(), error },
        step if step == Step::Stdio as u8 => SpawnError::Other { program, step: "standard streams".to_owned(), error },
        step if step == Step::Isolation as u8 => SpawnError::Other { program, step: "isolation".to_owned(), error },
        _ => exec_error(program, request, errno, error),
    })
}

fn exec_error(program: String, request: &SpawnRequest, errno: i32, error: String) -> SpawnError {
    let with_slash = program.contains('/');
    match errno {
        libc::ENOENT if with_slash && std::path::Path::new(&request.cwd).join(&program).exists() => {
            SpawnError::NotExecutable { program, error: "the interpreter that it names does not exist".to_owned() }
        }
        libc::ENOENT | libc::ENOTDIR => SpawnError::ProgramNotFound { program, searched: (!with_slash).then(|| path(request).to_owned()) },
        libc::ENOEXEC => {
            SpawnError::NotExecutable { program, error: "it is neither a binary of this machine nor a script with #!".to_owned() }
        }
        libc::EACCES | libc::EPERM | libc::EISDIR | libc::ELIBBAD | libc::ETXTBSY => SpawnError::NotExecutable { program, error },
        libc::E2BIG => SpawnError::Other { program, step: "arguments and environment are larger than the kernel takes".to_owned(), error },
        _ => SpawnError::Other { program, step: "exec".to_owned(), error },
    }
}

/// Makes reading of a child's fate not wait.
///
/// # Errors
/// When the descriptor is broken.
pub fn nonblocking(pipe: &File) -> std::io::Result<()> {
    Ok(rustix::io::ioctl_fionbio(pipe, true)?)
}

/// A child that ended.
#[derive(Debug, Clone, Copy)]
pub struct Reaped {
    /// Its process id.
    pub pid: i32,
    /// Its wait status.
    pub status: i32,
    /// CPU time of it and the children it waited for, user and system, microseconds.
    pub cpu_us: (u64, u64),
}

/// The next child that has ended, if there is one: tasks, and orphans of tasks that came to this subreaper.
#[must_use]
pub fn reap() -> Option<Reaped> {
    let mut status = 0;
    // SAFETY: both results are written by the kernel; zeroed usage is valid.
    let (pid, usage) = unsafe {
        let mut usage = std::mem::zeroed::<libc::rusage>();
        (libc::wait4(-1, &raw mut status, libc::WNOHANG, &raw mut usage), usage)
    };
    let micros = |time: libc::timeval| u64::try_from(time.tv_sec * 1_000_000 + time.tv_usec).unwrap_or(0);
    (pid > 0).then(|| Reaped { pid, status, cpu_us: (micros(usage.ru_utime), micros(usage.ru_stime)) })
}

/// Makes this process the supervisor it has to be: a session of its own, parent of all orphans below it, deaf to the
/// signals that end a worker (its life is bound to the socket). Returns a descriptor that is readable when a child ended.
///
/// # Errors
/// When the kernel refuses one of these.
pub fn settle_in() -> std::io::Result<OwnedFd> {
    // SAFETY: plain calls on this process, which has one thread; the set is initialised before it is used.
    unsafe {
        libc::setsid();
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGPIPE, libc::SIGUSR1, libc::SIGUSR2] {
            libc::signal(signal, libc::SIG_IGN);
        }
        if libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0 {
            return Err(std::io::Error::last_os_error());
        }
        let mut children = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut children);
        libc::sigaddset(&raw mut children, libc::SIGCHLD);
        if libc::sigprocmask(libc::SIG_BLOCK, &raw const children, std::ptr::null_mut()) != 0 {
            return Err(std::io::Error::last_os_error());
        }
        let fd = libc::signalfd(-1, &raw const children, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        if fd < 0 { Err(std::io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

/// Less likely to be killed for memory than what it guards; only where that is allowed.
pub fn protect_from_oom() {
    if let Ok(mut file) = std::fs::OpenOptions::new().write(true).open("/proc/self/oom_score_adj") {
        let _ = file.write_all(b"-900");
    }
}
