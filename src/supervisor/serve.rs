//! The supervisor's loop: socket, children and clocks in, system calls and replies out.
//!
//! It never blocks on anything but `poll`: a worker that does not read its replies must not keep
//! leases from running out, and a task that cannot die must not keep the others from being served.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::channel::{self, Outgoing};
use super::image::{self, Program};
use super::jail::{Cell, Jail};
use super::kept::Kept;
use super::life::{Event, Life, Step};
use super::protocol::{ContainerGuard, ExitReport, ExitStatus, HoldRequest, Reply, Request, SpawnError, SpawnRequest};
use super::sys::{self, Origin};
use super::task::{Leader, Task, bury, give};
use super::tree::{self, Tree};
use crate::crash::{self, Point};
use crate::execute::native::cgroup::{Entrance, Group, Site};

/// Requests taken in one turn, so that a burst of them does not keep the dead waiting.
const REQUESTS_PER_TURN: usize = 32;
/// How long the trees may take to die when the worker is gone. What is left then, the next start sweeps.
const LAST_PATIENCE: Duration = Duration::from_secs(10);

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
    kept: Kept,
    /// The worker is gone.
    orphaned: bool,
    /// Containers may be left when the worker is gone, and this is how they are found.
    guard: Option<ContainerGuard>,
}

impl Server {
    pub(super) fn new(socket: OwnedFd, signals: OwnedFd, site: Site, jail: Jail) -> Self {
        let has_cgroups = !site.directories().is_empty();
        let origin = Origin::take();
        let (tasks, by_pid, replies, buffer) = (BTreeMap::new(), HashMap::new(), VecDeque::new(), channel::packet_buffer());
        let (kept, orphaned, guard) = (Kept::default(), false, None);
        Self { socket, signals, site, jail, tasks, by_pid, replies, buffer, clone_into: true, has_cgroups, origin, kept, orphaned, guard }
    }

    /// Serves until the worker is gone; then kills and removes everything. What may be left are containers, and the cgroups that
    /// the engine makes for those which it only starts now; with them comes how many there may be.
    pub(super) fn run(mut self) -> io::Result<Option<(ContainerGuard, Vec<PathBuf>, usize)>> {
        while self.turn()? {}
        self.orphaned = true;
        crash::point(Point::Orphaned);
        self.site.kill_all();
        let held = self.tasks.values().filter(|task| task.leader.is_none()).count();
        let now = Instant::now();
        for id in self.ids() {
            self.advance(id, Event::Stop { grace: Duration::ZERO }, now);
            if self.tasks.get(&id).is_some_and(|task| task.leader.is_none()) {
                // Nobody will say any more that its container is over.
                self.advance(id, Event::Ended(ExitStatus::Signal(libc::SIGKILL)), now);
            }
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
        let directories = [self.site.directories(), self.site.container_directories()].concat();
        let left = self.guard.take().map(|guard| (guard, directories, held));
        if left.is_some() {
            self.kept.bequeath();
        }
        if left.is_some() {
            // Who removes them must see the engine's socket, which tasks do not.
            self.jail.leave()?;
        }
        match self.site.close() {
            Err((path, e)) if left.is_some() => super::complain(&format!("{}: {e}", path.display())),
            closed => closed.map_err(|(path, e)| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?,
        }
        Ok(left)
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
        let pipes = self.tasks.values().filter_map(|t| t.leader.as_ref()).flat_map(|l| [l.report.as_ref(), l.status.as_ref()]).flatten();
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
            if let Some(leader) = &mut task.leader {
                leader.reaped = Some(reaped);
                leader.status = None;
            }
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

    /// Tasks with a process of their own that is so.
    fn whose(&self, so: impl Fn(&Leader) -> bool) -> Vec<u64> {
        self.tasks.iter().filter(|(_, t)| t.leader.as_ref().is_some_and(&so)).map(|(id, _)| *id).collect()
    }

    fn leader(&mut self, id: u64) -> Option<&mut Leader> {
        self.tasks.get_mut(&id)?.leader.as_mut()
    }

    fn reports(&mut self) {
        for id in self.whose(|leader| leader.report.is_some()) {
            self.report(id);
        }
    }

    fn endings(&mut self) {
        for id in self.whose(|leader| leader.status.is_some()) {
            self.ending(id);
        }
    }

    /// Hears whether the program of an isolated task has ended.
    fn ending(&mut self, id: u64) {
        let status = self.leader(id).and_then(|leader| leader.status.as_ref());
        let Some(ended) = status.and_then(sys::ending) else { return };
        self.report(id);
        if let Some(leader) = self.leader(id) {
            leader.status = None;
        }
        self.advance(id, Event::Ended(ended), Instant::now());
    }

    /// Hears what a child that was cloned has to say.
    fn report(&mut self, id: u64) {
        let Some(Task { cgroup, leader: Some(leader), .. }) = self.tasks.get_mut(&id) else { return };
        let Some(report) = &leader.report else { return };
        match sys::failure(report) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
            Err(e) => leader.failed = Some(leader.program.failed(sys::Step::Exec, &e, cgroup)),
            Ok(Some((step, e))) => leader.failed = Some(leader.program.failed(step, &e, cgroup)),
            Ok(None) => {
                let reply = Reply::Started { id, pid: leader.pid };
                leader.report = None;
                self.reply(&reply);
                return;
            }
        }
        leader.report = None;
    }

    fn requests(&mut self) -> bool {
        for _ in 0..REQUESTS_PER_TURN {
            match channel::receive::<Request>(&self.socket, &mut self.buffer) {
                Ok(Some((Request::Spawn(request), descriptors))) => self.spawn(*request, descriptors),
                Ok(Some((Request::Keep { cgroup }, descriptors))) => self.kept.keep(cgroup, descriptors),
                Ok(Some((Request::LetGo { cgroup }, _))) => self.let_go(&cgroup),
                Ok(Some((Request::Hold(request), _))) => self.hold(*request),
                Ok(Some((Request::Release { id, status }, _))) => self.advance(id, Event::Ended(status), Instant::now()),
                Ok(Some((Request::GuardContainers(guard), _))) => self.guard = Some(*guard),
                Ok(Some((Request::ContainersGone, _))) => self.guard = None,
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

    /// Whether a task of that number and name can be had.
    fn admit(&self, id: u64, cgroup: &str) -> Result<(), SpawnError> {
        if self.tasks.contains_key(&id) {
            let (step, error) = ("request".to_owned(), "number already in use".to_owned());
            return Err(SpawnError::Other { program: String::new(), step, error });
        }
        if cgroup.is_empty() || cgroup.starts_with('.') || cgroup.contains('/') {
            return Err(SpawnError::Cgroup { path: cgroup.to_owned(), error: "not a directory name".to_owned() });
        }
        Ok(())
    }

    fn hold(&mut self, request: HoldRequest) {
        let id = request.id;
        let reply = match self.try_hold(request) {
            Ok(parent) => Reply::Held { id, parent },
            Err(error) => Reply::Refused { id, error },
        };
        self.reply(&reply);
    }

    /// A task whose processes somebody else starts: its cgroup is made, limited and watched like any other.
    fn try_hold(&mut self, request: HoldRequest) -> Result<Option<String>, SpawnError> {
        self.admit(request.id, &request.cgroup)?;
        let held = if request.elsewhere { None } else { self.site.hold(&request.cgroup)? };
        let (tree, parent) = match held {
            None => (Tree::Elsewhere, None),
            Some((mut group, parent)) => {
                crash::point(Point::CgroupMade);
                if let Err(error) = self.site.limit(&group, &request.limits, Path::new(&request.directory)) {
                    let _ = self.site.remove(&mut group);
                    return Err(error);
                }
                (Tree::Cgroup(group), Some(parent))
            }
        };
        let life = Life::new(request.lease_ms.map(Duration::from_millis), Instant::now());
        self.tasks.insert(request.id, Task { life, tree, cgroup: request.cgroup, leader: None });
        Ok(parent)
    }

    fn try_spawn(&mut self, mut request: SpawnRequest, descriptors: Vec<OwnedFd>) -> Result<(), SpawnError> {
        let other = |step: &str, error: &str| SpawnError::Other { program: String::new(), step: step.to_owned(), error: error.to_owned() };
        let stdio: [OwnedFd; 3] = descriptors.try_into().map_err(|_| other("request", "not three descriptors"))?;
        self.admit(request.id, &request.cgroup)?;
        if !self.has_cgroups {
            request.env.push((tree::MARK.to_owned(), request.cgroup.clone()));
        }
        let (program, image) = image::prepare(&request)?;
        let cell = self.jail.cell(&request.sandbox, &request.limits)?;
        if let Some(user) = cell.user {
            give(&stdio, user);
        }
        let hidden = &request.sandbox.hidden;
        let with_devices = !hidden.is_empty() && self.site.can_deny_devices();
        let mut group = self.site.create(&request.cgroup, request.limits.io.is_some() && request.limits.enforced, with_devices)?;
        crash::point(Point::CgroupMade);
        let started = self
            .site
            .limit(&group, &request.limits, Path::new(&request.cwd))
            .and_then(|()| self.site.deny_devices(&group, hidden))
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
        let has_init = status.is_some();
        let leader = Leader { pid, program, report: Some(report), status, has_init, failed: None, reaped: None };
        let task = Task { life, tree, cgroup: request.cgroup, leader: Some(leader) };
        crash::point(Point::Cloned);
        self.by_pid.insert(pid, request.id);
        self.tasks.insert(request.id, task);
        Ok(())
    }

    fn start(
        &mut self,
        group: &Group,
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
        // The engine removes a container's cgroup as soon as that ends: what only that one counts is noted while it is there.
        task.tree.glance(&self.site);
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
            self.kept.let_go(cgroup);
        }
    }

    fn buried(&mut self, id: u64, report: ExitReport) {
        let Some(task) = self.tasks.remove(&id) else { return };
        // Before the worker hears of it: what is free then must be free indeed. A container that is out of our reach when the worker
        // is gone lives until it is removed by whoever comes after us.
        if !(self.orphaned && matches!(task.tree, Tree::Elsewhere)) {
            self.let_go(&task.cgroup);
        }
        crash::point(Point::Buried);
        match task.leader.and_then(|leader| leader.failed) {
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
