//! The supervisor: a small single-threaded process that starts, limits, kills and buries tasks.
//!
//! One per worker, started before anything else and spoken to over a socket that is its standard input. It knows nothing
//! of NATS or of what a task means. It is also the guard: when the worker dies, however it dies, the socket ends, and the
//! supervisor kills and removes everything of that worker. And when a worker stands still, it kills the tasks whose lease
//! was not renewed.
//!
//! ```text
//! worker ──Spawn, Stop, Renew──▶ ┌────────────┐ ──clone3 into cgroup──▶ task
//!        ◀─Started, Exited────── │ one poll() │ ◀──SIGCHLD, orphans────
//!                                └────────────┘
//! ```

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

mod clone;
mod loose;
pub mod protocol;
pub mod socket;
mod task;

use crate::config;
use crate::execute::native::cgroup::{Instance, Layout};
use crate::wire::frame;
use protocol::{INLINE_LIMIT, Reply, Request, SpawnError, SpawnRequest};
use socket::Packet;
use task::Task;

/// Longest time that the end may take before the rest is left to the next sweep.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// The whole life of the supervisor process: its standard input is the socket.
#[must_use]
pub fn main() -> ExitCode {
    let children = match clone::settle_in() {
        Ok(children) => children,
        Err(error) => return say(&format!("cannot settle in: {error}")),
    };
    let Ok(socket) = rustix::io::fcntl_dupfd_cloexec(std::io::stdin().as_fd(), 3) else { return say("no socket on standard input") };
    match first_request(&socket) {
        Some(Request::Start { cgroup, instance }) => {
            Supervisor { socket, children, tasks: vec![], outbox: VecDeque::new(), cgroups: None }.run(&cgroup, &instance)
        }
        Some(Request::Spawn(_) | Request::Stop { .. } | Request::Renew { .. }) | None => say("standard input is not a worker's socket"),
    }
}

fn say(line: &str) -> ExitCode {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "windlass supervisor: {line}");
    ExitCode::FAILURE
}

fn first_request(socket: &OwnedFd) -> Option<Request> {
    poll(&mut [PollFd::new(socket, PollFlags::IN)], None).ok()?;
    let (frame, _) = socket::receive(socket.as_fd(), &mut vec![0; INLINE_LIMIT + 1]).ok()??;
    frame::decode(&frame).ok()
}

struct Supervisor {
    socket: OwnedFd,
    children: OwnedFd,
    tasks: Vec<Task>,
    /// What the worker has not taken yet: a worker that stands still must not stop this process.
    outbox: VecDeque<Packet>,
    cgroups: Option<(Layout, Instance)>,
}

impl Supervisor {
    fn run(mut self, cgroup: &config::Cgroup, instance: &str) -> ExitCode {
        match open_cgroups(cgroup, instance) {
            Ok(cgroups) => {
                let description =
                    cgroups.as_ref().map_or_else(|| "none: limits are not enforced".to_owned(), |(layout, _)| layout.description());
                self.reply(&Reply::Ready { enforced: cgroups.is_some(), cgroups: description });
                self.cgroups = cgroups;
            }
            Err(error) => {
                self.reply(&Reply::Unfit { error });
                let _ = poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], None);
                return ExitCode::FAILURE;
            }
        }
        // Not before: a non-root process that does this first may not look at its own cgroups.
        clone::protect_from_oom();
        let mut buffer = vec![0; INLINE_LIMIT + 1];
        loop {
            self.wait();
            loop {
                match socket::receive(self.socket.as_fd(), &mut buffer) {
                    // A worker that cannot be understood is as good as gone: waiting for it would be for ever.
                    Ok(Some((frame, fds))) => match frame::decode(&frame) {
                        Ok(request) => self.handle(request, &fds),
                        Err(error) => {
                            say(&error.to_string());
                            return self.end(instance);
                        }
                    },
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                    // The worker is gone.
                    Ok(None) | Err(_) => return self.end(instance),
                }
            }
            self.look();
        }
    }

    /// Until something happens or is due.
    fn wait(&mut self) {
        self.send();
        let now = Instant::now();
        let due = self.tasks.iter().filter_map(|task| task.next_look(now)).min();
        let timeout = due.map(|due| {
            let left = due.saturating_duration_since(now);
            Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() }
        });
        let socket_flags = if self.outbox.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
        let mut fds = vec![PollFd::new(&self.socket, socket_flags), PollFd::new(&self.children, PollFlags::IN)];
        fds.extend(self.tasks.iter().filter_map(Task::fate).map(|fate| PollFd::new(fate, PollFlags::IN)));
        // Interrupted or not: everything is looked at.
        let _ = poll(&mut fds, timeout.as_ref());
    }

    fn handle(&mut self, request: Request, fds: &[OwnedFd]) {
        match request {
            Request::Spawn(request) => self.spawn(*request, fds),
            Request::Stop { id, grace_ms } => {
                if let Some(task) = self.tasks.iter_mut().find(|task| task.id() == id) {
                    task.stop(Duration::from_millis(grace_ms));
                }
            }
            Request::Renew { id, lease_ms } => {
                if let Some(task) = self.tasks.iter_mut().find(|task| task.id() == id) {
                    task.renew(Duration::from_millis(lease_ms));
                }
            }
            Request::Start { .. } => {}
        }
    }

    fn spawn(&mut self, request: SpawnRequest, fds: &[OwnedFd]) {
        let id = request.id;
        if let Err(error) = self.try_spawn(request, fds) {
            self.reply(&Reply::Refused { id, error });
        }
    }

    fn try_spawn(&mut self, request: SpawnRequest, fds: &[OwnedFd]) -> Result<(), SpawnError> {
        let group = match &self.cgroups {
            Some((_, instance)) => Some(instance.create(&request.cgroup, &request.limits, std::path::Path::new(&request.cwd))?),
            None => None,
        };
        match clone::start(&request, group.as_ref(), fds) {
            Ok(child) => {
                if let Err(error) = clone::nonblocking(&child.fate) {
                    say(&error.to_string());
                }
                self.tasks.push(Task::new(request, child, group));
                Ok(())
            }
            Err(error) => {
                if let Some(mut group) = group {
                    group.remove();
                }
                Err(error)
            }
        }
    }

    /// Takes note of what happened to children, and does what is due.
    fn look(&mut self) {
        let mut replies = Vec::new();
        let mut drained = [0_u8; 128];
        while rustix::io::read(&self.children, &mut drained).is_ok_and(|n| n > 0) {}
        let mut ready: Vec<u64> = Vec::new();
        for task in &self.tasks {
            if let Some(fate) = task.fate()
                && is_readable(fate.as_fd())
            {
                ready.push(task.id());
            }
        }
        for task in self.tasks.iter_mut().filter(|task| ready.contains(&task.id())) {
            replies.extend(task.learn_fate());
        }
        while let Some(reaped) = clone::reap() {
            if let Some(task) = self.tasks.iter_mut().find(|task| task.pid() == reaped.pid) {
                // A program that ended at once: its start comes first.
                replies.extend(task.learn_fate());
                task.leader_ended(&reaped);
            }
        }
        let now = Instant::now();
        self.tasks.retain_mut(|task| match task.look(now) {
            Some(reply) => {
                replies.push(reply);
                false
            }
            None => true,
        });
        for reply in replies {
            self.reply(&reply);
        }
    }

    fn reply(&mut self, reply: &Reply) {
        match frame::encode(reply).map_err(|e| e.to_string()).and_then(|f| Packet::new(&f, vec![]).map_err(|e| e.to_string())) {
            Ok(packet) => self.outbox.push_back(packet),
            Err(error) => {
                say(&error);
            }
        }
        self.send();
    }

    fn send(&mut self) {
        while let Some(packet) = self.outbox.front() {
            match packet.send(self.socket.as_fd()) {
                Ok(()) => drop(self.outbox.pop_front()),
                // Later, or never: then the socket's end is seen when it is read.
                Err(_) => return,
            }
        }
    }

    /// The worker is gone: nothing of it stays.
    fn end(mut self, instance: &str) -> ExitCode {
        let until = Instant::now() + END_PATIENCE;
        for task in &mut self.tasks {
            task.kill();
        }
        while !self.tasks.is_empty() && Instant::now() < until {
            self.look();
            self.outbox.clear();
            if !self.tasks.is_empty() {
                let pause = Timespec { tv_sec: 0, tv_nsec: 500_000 };
                let _ = poll(&mut [PollFd::new(&self.children, PollFlags::IN)], Some(&pause));
            }
        }
        if let Some((layout, _held)) = &self.cgroups {
            layout.remove_instance(instance);
        }
        ExitCode::SUCCESS
    }
}

fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&now)).is_ok_and(|n| n > 0)
}

/// The cgroups of this instance; none where they cannot be had and need not be.
fn open_cgroups(config: &config::Cgroup, instance: &str) -> Result<Option<(Layout, Instance)>, String> {
    let opened = Layout::detect(config).and_then(|layout| {
        let opened = layout.open(instance)?;
        Ok((layout, opened))
    });
    match opened {
        Ok(opened) => Ok(Some(opened)),
        Err(_) if config.allow_unlimited => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}
