//! The supervisor's loop: socket, children and clocks in, system calls and replies out.
//!
//! It never blocks on anything but `poll`: a worker that does not read its replies must not keep
//! leases from running out, and a task that cannot die must not keep the others from being served.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::channel::{self, Outgoing};
use super::image::{self, Program};
use super::jail::{Cell, Jail};
use super::life::{Event, Life, Step};
use super::protocol::{ExitReport, Reply, Request, SpawnError, SpawnRequest};
use super::sys::{self, Origin, Reaped};
use super::tree::{self, Tree};
use crate::crash::{self, Point};
use crate::execute::native::cgroup::{Entrance, Site};
use crate::execute::native::sandbox::User;

/// Requests taken in one turn, so that a burst of them does not keep the dead waiting.
const REQUESTS_PER_TURN: usize = 32;
/// How long the trees may take to die when the worker is gone. What is left then, the next start sweeps.
const LAST_PATIENCE: Duration = Duration::from_secs(10);

struct Task {
    life: Life,
    tree: Tree,
    pid: u32,
    program: Program,
    cgroup: String,
    /// Pipe of a child that has not come to exec.
    report: Option<OwnedFd>,
    /// Where the init of a process namespace tells how the program ended; `None` once it has, and without one.
    status: Option<OwnedFd>,
    /// Its own process is an init, which is no part of what the task left behind.
    has_init: bool,
    /// The child said that it cannot.
    failed: Option<SpawnError>,
    /// Of the leader.
    reaped: Option<Reaped>,
}

impl Task {
    /// Its processes, without the init that is ours.
    fn alive(&self, site: &Site) -> u64 {
        let own_init = self.has_init && self.reaped.is_none();
        self.tree.pids(site).into_iter().filter(|pid| !(own_init && *pid == self.pid)).count() as u64
    }
}

/// The supervisor at work.
pub(super) struct Server {
    socket: OwnedFd,
    signals: OwnedFd,
    site: Site,
    jail: Jail,
    tasks: BTreeMap<u64, Task>,
    by_pid: HashMap<u32, u64>,
    replies: VecDeque<Outgoing>,
    buffer: Vec<u8>,
    /// The kernel starts children into a cgroup2 directory. Cleared for good when it refuses.
    clone_into: bool,
    has_cgroups: bool,
    origin: Origin,
    /// Descriptors that are open for the sake of tasks, by the names of their cgroups: locks of what is theirs alone.
    kept: HashMap<String, Vec<OwnedFd>>,
}

impl Server {
    pub(super) fn new(socket: OwnedFd, signals: OwnedFd, site: Site, jail: Jail) -> Self {
        let has_cgroups = !site.directories().is_empty();
        let origin = Origin::take();
        let (tasks, by_pid, replies, buffer) = (BTreeMap::new(), HashMap::new(), VecDeque::new(), channel::packet_buffer());
        Self { socket, signals, site, jail, tasks, by_pid, replies, buffer, clone_into: true, has_cgroups, origin, kept: HashMap::new() }
    }

    /// Serves until the worker is gone; then kills and removes everything.
    pub(super) fn run(mut self) -> io::Result<()> {
        while self.turn()? {}
        crash::point(Point::Orphaned);
        self.site.kill_all();
        let now = Instant::now();
        for id in self.ids() {
            self.advance(id, Event::Stop { grace: Duration::ZERO }, now);
        }
        let end = now + LAST_PATIENCE;
        while !self.tasks.is_empty() && Instant::now() < end {
            self.replies.clear();
            self.wait(false)?;
            self.reap_all();
            self.clocks();
        }
        if !self.has_cgroups {
            tree::kill_orphans();
        }
        self.site.close().map_err(|(path, e)| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
    }

    fn ids(&self) -> Vec<u64> {
        self.tasks.keys().copied().collect()
    }

    /// One round; false when the worker is gone.
    fn turn(&mut self) -> io::Result<bool> {
        self.wait(true)?;
        // The dead first: their slots are what the next requests may be about.
        self.reap_all();
        self.reports();
        self.endings();
        let alive = self.requests();
        self.clocks();
        Ok(alive && self.flush())
    }

    /// Sleeps until something happens.
    fn wait(&self, with_socket: bool) -> io::Result<()> {
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        if with_socket {
            let out = if self.replies.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            fds.push(PollFd::new(&self.socket, PollFlags::IN | out));
        }
        let pipes = self.tasks.values().flat_map(|t| [t.report.as_ref(), t.status.as_ref()]).flatten();
        fds.extend(pipes.map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        let deadline = self.tasks.values().filter_map(|t| t.life.deadline()).min();
        let timeout = deadline.map(|at| {
            let left = at.saturating_duration_since(Instant::now());
            Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: i64::from(left.subsec_nanos()) }
        });
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    fn reap_all(&mut self) {
        sys::drain(&self.signals);
        let mut reaped_orphans = false;
        while let Some(reaped) = sys::reap() {
            let Some(id) = self.by_pid.remove(&reaped.pid) else {
                reaped_orphans = true;
                continue;
            };
            self.report(id);
            self.ending(id);
            crash::point(Point::Reaped);
            let Some(task) = self.tasks.get_mut(&id) else { continue };
            task.reaped = Some(reaped);
            task.status = None;
            // An init that has told of its program's end is only gone now; one that was killed took the program with it.
            let event = if task.life.is_leaderless() { Event::Tick } else { Event::Ended(reaped.status) };
            self.advance(id, event, Instant::now());
        }
        if reaped_orphans {
            // Orphans tell nothing of their task; a tree that is waited for may be empty now.
            let waiting: Vec<u64> = self.tasks.iter().filter(|(_, t)| t.life.is_leaderless()).map(|(id, _)| *id).collect();
            for id in waiting {
                self.advance(id, Event::Tick, Instant::now());
            }
        }
    }

    fn reports(&mut self) {
        let starting: Vec<u64> = self.tasks.iter().filter(|(_, t)| t.report.is_some()).map(|(id, _)| *id).collect();
        for id in starting {
            self.report(id);
        }
    }

    fn endings(&mut self) {
        for id in self.tasks.iter().filter(|(_, t)| t.status.is_some()).map(|(id, _)| *id).collect::<Vec<_>>() {
            self.ending(id);
        }
    }

    /// Hears whether the program of an isolated task has ended.
    fn ending(&mut self, id: u64) {
        let status = self.tasks.get(&id).and_then(|task| task.status.as_ref());
        let Some(ended) = status.and_then(sys::ending) else { return };
        self.report(id);
        if let Some(task) = self.tasks.get_mut(&id) {
            task.status = None;
        }
        self.advance(id, Event::Ended(ended), Instant::now());
    }

    /// Hears what a child that was cloned has to say.
    fn report(&mut self, id: u64) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let Some(report) = &task.report else { return };
        match sys::failure(report) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
            Err(e) => task.failed = Some(task.program.failed(sys::Step::Exec, &e, &task.cgroup)),
            Ok(Some((step, e))) => task.failed = Some(task.program.failed(step, &e, &task.cgroup)),
            Ok(None) => {
                let reply = Reply::Started { id, pid: task.pid };
                task.report = None;
                self.reply(&reply);
                return;
            }
        }
        task.report = None;
    }

    fn requests(&mut self) -> bool {
        for _ in 0..REQUESTS_PER_TURN {
            match channel::receive::<Request>(&self.socket, &mut self.buffer) {
                Ok(Some((Request::Spawn(request), descriptors))) => self.spawn(*request, descriptors),
                Ok(Some((Request::Keep { cgroup }, descriptors))) => self.kept.entry(cgroup).or_default().extend(descriptors),
                Ok(Some((Request::LetGo { cgroup }, _))) => self.let_go(&cgroup),
                Ok(Some((Request::Stop { id, grace_ms }, _))) => {
                    self.advance(id, Event::Stop { grace: Duration::from_millis(grace_ms) }, Instant::now());
                }
                Ok(Some((Request::Renew { id, lease_ms }, _))) => {
                    self.advance(id, Event::Renew { lease: Duration::from_millis(lease_ms) }, Instant::now());
                }
                Ok(None) => return false,
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => return true,
                // A frame that cannot be read has no number to answer to: worker and supervisor no longer understand each other.
                Err(e) => {
                    super::complain(&format!("unreadable request: {e}"));
                    return false;
                }
            }
        }
        true
    }

    fn spawn(&mut self, request: SpawnRequest, descriptors: Vec<OwnedFd>) {
        let id = request.id;
        if let Err(error) = self.try_spawn(request, descriptors) {
            self.reply(&Reply::Refused { id, error });
        }
    }

    fn try_spawn(&mut self, mut request: SpawnRequest, descriptors: Vec<OwnedFd>) -> Result<(), SpawnError> {
        let other = |step: &str, error: &str| SpawnError::Other { program: String::new(), step: step.to_owned(), error: error.to_owned() };
        let stdio: [OwnedFd; 3] = descriptors.try_into().map_err(|_| other("request", "not three descriptors"))?;
        if self.tasks.contains_key(&request.id) {
            return Err(other("request", "number already in use"));
        }
        if request.cgroup.is_empty() || request.cgroup.starts_with('.') || request.cgroup.contains('/') {
            return Err(SpawnError::Cgroup { path: request.cgroup, error: "not a directory name".to_owned() });
        }
        if !self.has_cgroups {
            request.env.push((tree::MARK.to_owned(), request.cgroup.clone()));
        }
        let (program, image) = image::prepare(&request)?;
        let cell = self.jail.cell(&request.sandbox, &request.limits)?;
        if let Some(user) = cell.user {
            give(&stdio, user);
        }
        let mut group = self.site.create(&request.cgroup, request.limits.io.is_some() && request.limits.enforced)?;
        crash::point(Point::CgroupMade);
        let started = self
            .site
            .limit(&group, &request.limits, Path::new(&request.cwd))
            .and_then(|()| self.start(&group, &image, &stdio, &program, &request.cgroup, &cell));
        let sys::Started { pid, report, status } = match started {
            Ok(started) => started,
            Err(error) => {
                // Nobody was ever in there: it goes at once.
                let _ = self.site.remove(&mut group);
                return Err(error);
            }
        };
        let life = Life::new(request.lease_ms.map(Duration::from_millis), Instant::now());
        let tree = if self.has_cgroups { Tree::Cgroup(group) } else { Tree::Walk { leader: pid, mark: request.cgroup.clone() } };
        let task = Task {
            life,
            tree,
            pid,
            program,
            cgroup: request.cgroup,
            report: Some(report),
            has_init: status.is_some(),
            status,
            failed: None,
            reaped: None,
        };
        crash::point(Point::Cloned);
        self.by_pid.insert(pid, request.id);
        self.tasks.insert(request.id, task);
        Ok(())
    }

    fn start(
        &mut self,
        group: &crate::execute::native::cgroup::Group,
        image: &sys::Image,
        stdio: &[OwnedFd; 3],
        program: &Program,
        cgroup: &str,
        cell: &Cell,
    ) -> Result<sys::Started, SpawnError> {
        loop {
            let entrance: Entrance = self.site.entrance(group, self.clone_into)?;
            match sys::start(image, stdio, &entrance, self.origin, cell) {
                Ok(started) => return Ok(started),
                // clone3 unknown (kernel < 5.3), forbidden by a container's seccomp filter, or without cgroup argument (< 5.7).
                Err(e)
                    if entrance.clone_into.is_some()
                        && matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EPERM | libc::EINVAL | libc::E2BIG)) =>
                {
                    self.clone_into = false;
                }
                Err(e) => return Err(program.not_cloned(&e, cgroup)),
            }
        }
    }

    /// Every task whose time has come.
    fn clocks(&mut self) {
        let now = Instant::now();
        let due: Vec<u64> = self.tasks.iter().filter(|(_, t)| t.life.deadline().is_some_and(|at| at <= now)).map(|(id, _)| *id).collect();
        for id in due {
            self.advance(id, Event::Tick, now);
        }
    }

    /// Feeds one event to a task and does what its life demands.
    fn advance(&mut self, id: u64, event: Event, now: Instant) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let mut step = task.life.on(event, now);
        loop {
            match step {
                Step::Wait => return,
                Step::Terminate => {
                    task.tree.terminate(&self.site);
                    crash::point(Point::Terminated);
                    return;
                }
                Step::Kill => {
                    task.tree.kill(&self.site);
                    crash::point(Point::Killed);
                    return;
                }
                Step::Bury => match bury(task, &self.site) {
                    Some(report) => {
                        self.buried(id, report);
                        return;
                    }
                    None => {
                        let alive = task.alive(&self.site);
                        step = task.life.on(Event::Left(alive), Instant::now());
                    }
                },
            }
        }
    }

    /// Closes what was kept for a task, unless it lives: then its burial does.
    fn let_go(&mut self, cgroup: &str) {
        if !self.tasks.values().any(|task| task.cgroup == cgroup) {
            self.kept.remove(cgroup);
        }
    }

    fn buried(&mut self, id: u64, report: ExitReport) {
        let Some(task) = self.tasks.remove(&id) else { return };
        // Before the worker hears of it: what is free then must be free indeed.
        self.let_go(&task.cgroup);
        crash::point(Point::Buried);
        match task.failed {
            Some(error) => self.reply(&Reply::Refused { id, error }),
            None => self.reply(&Reply::Exited { id, report }),
        }
        if self.tasks.is_empty() && !self.has_cgroups {
            tree::kill_orphans();
        }
    }

    pub(super) fn reply(&mut self, reply: &Reply) {
        match Outgoing::new(reply, Vec::new()) {
            Ok(frame) => self.replies.push_back(frame),
            Err(e) => super::complain(&format!("cannot write a reply: {e}")),
        }
    }

    /// Sends what can be sent; false when the worker is gone.
    pub(super) fn flush(&mut self) -> bool {
        while let Some(frame) = self.replies.front() {
            match frame.send(&self.socket) {
                Ok(()) => drop(self.replies.pop_front()),
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => return true,
                Err(_) => return false,
            }
        }
        true
    }
}

/// Pipes to the task's user: else `/dev/stdout` could not be opened. Nothing but pipes; `/dev/null` is everybody's.
fn give(stdio: &[OwnedFd; 3], user: User) {
    let (uid, gid) = (rustix::fs::Uid::from_raw(user.uid), rustix::fs::Gid::from_raw(user.gid));
    for fd in stdio {
        let is_pipe = rustix::fs::fstat(fd).is_ok_and(|s| rustix::fs::FileType::from_raw_mode(s.st_mode) == rustix::fs::FileType::Fifo);
        if is_pipe {
            // Without it the task still has the descriptor itself.
            let _ = rustix::fs::fchown(fd, Some(uid), Some(gid));
        }
    }
}

/// Reads what the task used and removes its cgroup; `None` when somebody is still in there.
fn bury(task: &mut Task, site: &Site) -> Option<ExitReport> {
    let mut usage = task.tree.usage(site);
    match task.tree.remove(site) {
        Ok(true) => {}
        Ok(false) => return None,
        // It cannot be removed for a reason that waiting does not mend. The task is over all the same; the sweep tries again.
        Err(e) => super::complain(&format!("cgroup {} not removed: {e}", task.cgroup)),
    }
    if let Some(reaped) = task.reaped {
        if usage.cpu_user_us + usage.cpu_system_us == 0 {
            (usage.cpu_user_us, usage.cpu_system_us) = reaped.cpu_us;
        }
        if usage.memory_peak_bytes == 0 {
            usage.memory_peak_bytes = reaped.memory_bytes;
        }
    }
    usage.leaked_processes = task.life.leaked();
    let kill_us = u64::try_from(task.life.kill_time(Instant::now()).as_micros()).unwrap_or(u64::MAX);
    let status = task.life.status()?;
    Some(ExitReport { status, usage, lease_expired: task.life.lease_expired(), kill_us })
}
