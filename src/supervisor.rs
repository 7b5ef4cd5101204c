//! The supervisor: a small single-threaded process that starts, limits, kills and buries tasks.
//!
//! It owns every native task of one worker instance: their cgroups, their processes, their leases. It knows no
//! NATS and no tokio, and does nothing that the worker could not ask for again.
//!
//! ```text
//! worker ──Spawn(argv, limits, lease, stdio)──▶ image ─▶ cgroup made, limited, read back ─▶ clone3 ─▶ exec
//!        ◀─Started─────────────────────────────────────────────────────────────────────────────────────┘
//!        ──Stop, Renew──▶ life (pure) ─▶ SIGTERM, cgroup.kill ─▶ empty ─▶ usage read, cgroup removed
//!        ◀─Exited──────────────────────────────────────────────────────────────┘
//! ```
//! A container's processes are the engine's: for them a cgroup is only held, in the same life, and the worker says when it is over.
//!
//! A process of its own for two measured reasons. Forking the worker costs 30 ms at 500 MB, a small process stays at
//! 1.3 ms. And it is the guard: when the worker dies, however it dies, the socket closes, and every tree is killed and
//! removed within about a millisecond; when the worker hangs, the leases run out here.
//!
//! The worker starts it as `windlass supervisor <arguments as JSON>` with the socket as standard input.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use rustix::process::DumpableBehavior;
use serde::{Deserialize, Serialize};

use crate::crash::{self, Point};
use crate::execute::docker::reap::orphans;
use crate::execute::native::cgroup::{Site, Wish};
use crate::execute::native::sandbox;
use protocol::Reply;

pub mod channel;
mod clone;
mod image;
mod jail;
mod kept;
mod life;
pub mod protocol;
mod serve;
mod sys;
mod task;
mod tree;

/// What the supervisor has to know, as one JSON argument.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Args {
    /// Where the cgroup file systems are mounted.
    pub mount: PathBuf,
    /// Directory below each mount; empty: decided by the machine.
    pub parent: String,
    /// Work without limits where they cannot be had.
    pub allow_unlimited: bool,
    /// Name of this worker instance, a directory name that no other instance has.
    pub instance: String,
    /// Sandboxes to prepare; without it only tasks without one can run.
    pub sandbox: Option<sandbox::Wish>,
}

/// Entry point of the hidden subcommand. Returns when the worker is gone and nothing of its tasks is left; where containers may be
/// left, this process becomes the one that removes them.
#[must_use]
pub fn main(arguments: &str) -> ExitCode {
    let args: Args = match serde_json::from_str(arguments) {
        Ok(args) => args,
        Err(e) => {
            complain(&format!("bad arguments: {e}"));
            return ExitCode::from(2);
        }
    };
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            complain(&e.to_string());
            ExitCode::FAILURE
        }
    }
}

/// To the worker's standard error: there is no log here.
#[expect(clippy::print_stderr, reason = "the only way out for a message that has no reply to go with")]
fn complain(message: &str) {
    eprintln!("windlass supervisor: {message}");
}

/// Sets up and serves; false when this machine is unfit.
fn run(args: &Args) -> io::Result<bool> {
    // A terminal's interrupt goes to the worker's process group; we end when it does, not before. A leader has its own already.
    let _ = rustix::process::setsid();
    let signals = sys::take_signals()?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let socket: OwnedFd = io::stdin().as_fd().try_clone_to_owned()?;
    rustix::net::sockopt::socket_type(&socket)
        .map_err(|_| io::Error::other("standard input is not the worker's socket: this command is not for people"))?;
    let valid = !args.instance.is_empty() && !args.instance.starts_with('.') && !args.instance.contains('/');
    let wish = Wish { mount: &args.mount, parent: &args.parent, instance: &args.instance };
    let opened = if valid {
        Site::open(&wish, args.allow_unlimited).map_err(|e| e.to_string())
    } else {
        Err(format!("{:?} is not a directory name", args.instance))
    };
    let site = match opened {
        Ok(site) => site,
        Err(error) => {
            channel::Outgoing::new(&Reply::Unfit { error }, Vec::new())?.send(&socket)?;
            return Ok(false);
        }
    };
    // Not where processes are found by a walk over /proc: it must show them all.
    let hide_processes = !site.directories().is_empty();
    let (jail, sandbox) = jail::Jail::open(args.sandbox.as_ref(), hide_processes);
    // Last, because it takes away the ownership of our own files in /proc. Tasks run as the same user and
    // must not read this process's memory or take its socket through ptrace or pidfd_getfd.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    crash::point(Point::SupervisorReady);
    let ready = Reply::Ready {
        enforced: site.enforced,
        cgroups: site.description.clone(),
        controllers: site.controllers(),
        no_clone_into: clone::may_clone_into().err().map(|error| error.to_string()),
        directories: site.directories(),
        container_directories: site.container_directories(),
        swept: site.swept.clone(),
        sandbox,
    };
    let mut server = serve::Server::new(socket, signals, site, jail);
    server.reply(&ready);
    server.flush();
    if let Some((guard, directories, held)) = server.run()? {
        let (instance, own_parent) = (args.instance.clone(), args.parent.is_empty());
        return Err(become_reaper(&orphans::Args { guard, instance, directories, own_parent, held }));
    }
    Ok(true)
}

/// Goes on as the program that removes containers: that takes an HTTP client and a runtime, which have no place here. Returns
/// only when it cannot.
fn become_reaper(args: &orphans::Args) -> io::Error {
    let args = match serde_json::to_string(args) {
        Ok(args) => args,
        Err(error) => return error.into(),
    };
    // It may take a minute where the engine is away, and must not keep open what belonged to the worker: neither its socket
    // nor its log, whose readers wait for the end. All others are closed by the exec; std resets the signal mask before it.
    let mut command = Command::new("/proc/self/exe");
    command.arg("reap-containers").arg(args).env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.exec()
}
