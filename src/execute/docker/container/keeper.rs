//! Who makes a container, watches it and removes it.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::super::output::{self, Frames, Input, Pipes};
use super::super::refusal::Refusal;
use super::super::removal::{Kind, Removal};
use super::super::requests::Ended;
use super::super::{Engine, EngineError};
use super::own::Own;
use super::usage::{Meter, highest};
use super::{Command, Launch, until};
use crate::crash::{self, Point};
use crate::execute::native::Held;
use crate::execute::{Exit, SupervisorLost};
use crate::supervisor::protocol::{ExitReport, ExitStatus};
use crate::task::limits::Usage;
use crate::telemetry::causes;

mod start;

/// Time without a byte after which the rest of an ended container's output counts as broken off.
const DRAIN: Duration = Duration::from_secs(10);
/// What a killed container may take before the engine is asked to kill it as well: one that somebody paused does not die.
const LINGER: Duration = Duration::from_secs(5);
/// What the engine may take to notice a kill.
const DEAF: Duration = Duration::from_secs(15);
/// Looks at a container whose output ended before it, and the time between them.
const LOOKS: u32 = 5;
const LOOK: Duration = Duration::from_millis(200);

/// A container whose program runs.
pub(super) struct Running {
    id: String,
    frames: Frames,
    pipes: Pipes,
    input: Option<(Input, String)>,
    /// Its cgroup, if that is not below one of ours and to be seen all the same.
    own: Option<Own>,
    /// What it was seen to use so far, where it was not known to be below one of ours.
    early: Usage,
}

/// How far a running container has come.
#[derive(Default)]
struct Course {
    /// It does not run any more, or nobody can tell.
    over: Option<Result<(), EngineError>>,
    /// Its output came to an end, or broke.
    copied: Option<Result<(), String>>,
    /// It was told to stop: from then on the engine kills it as well.
    kill_at: Option<Instant>,
    /// It was killed, and the engine has until then to say so.
    deaf_at: Option<Instant>,
    lease_expired: bool,
}

pub(super) struct Keeper {
    engine: Engine,
    launch: Option<Launch>,
    name: String,
    held: Option<Held>,
    /// Its cgroup is the supervisor's: so are limits, lease and kill.
    within: bool,
    /// Where cgroups are mounted.
    cgroups: PathBuf,
    lease: Option<Instant>,
    commands: mpsc::UnboundedReceiver<Command>,
    unwanted: CancellationToken,
    /// The engine may have it.
    left: bool,
    /// It did not answer when it was told to make it.
    unanswered: bool,
}

impl Keeper {
    pub(super) fn new(launch: Launch, commands: mpsc::UnboundedReceiver<Command>, unwanted: CancellationToken) -> Self {
        Self {
            engine: launch.engine.clone(),
            name: launch.name.clone(),
            within: launch.within,
            cgroups: launch.cgroups.clone(),
            lease: until(launch.lease),
            held: None,
            launch: Some(launch),
            commands,
            unwanted,
            left: false,
            unanswered: false,
        }
    }

    /// Creates and starts it; says so, or why not.
    pub(super) async fn bring_up(&mut self, tell: oneshot::Sender<Result<String, Refusal>>) -> Option<Running> {
        let launch = self.launch.take()?;
        match Box::pin(self.start(launch)).await {
            Ok(running) => tell.send(Ok(running.id.clone())).is_ok().then_some(running).filter(|_| !self.unwanted.is_cancelled()),
            Err(refusal) => {
                // First the container, then the news: whoever hears it may try again at once.
                self.remove().await;
                let _ = tell.send(Err(refusal));
                None
            }
        }
    }

    /// Watches it to its end.
    pub(super) async fn attend(&mut self, running: Running) -> Result<Exit, SupervisorLost> {
        let Running { id, frames, pipes, input, own, early } = running;
        let feeding = input.map(|(input, text)| Abort(tokio::spawn(output::feed(input, text))));
        let count = pipes.copied();
        let meter = (!self.within).then(|| Meter::of(&self.engine, &id, own, early));
        let (course, ended) = {
            let engine = self.engine.clone();
            let mut copying = std::pin::pin!(pipes.copy(frames));
            let mut over = std::pin::pin!(engine.over(&id));
            let mut course = Course::default();
            while course.over.is_none() && course.copied.is_none() {
                tokio::select! {
                    // All arms are cancel safe.
                    end = &mut over => course.over = Some(end),
                    end = &mut copying => course.copied = Some(end),
                    done = self.serve(&id, &mut course) => done?,
                }
            }
            let broken_off = matches!((&course.copied, &course.over), (Some(_), None)) && !self.over_soon(&id).await;
            if broken_off && course.copied == Some(Ok(())) {
                course.copied = Some(Err("it ended while the container ran".to_owned()));
            }
            if matches!(course.over, Some(Err(_))) || broken_off {
                self.kill(&id);
            }
            if course.copied.is_none() {
                course.copied = Some(drain(copying, &count).await);
            }
            let ended = self.engine.ended(&id).await;
            (course, ended)
        };
        drop(feeding);
        crash::point(Point::ContainerEnded);
        let seen = match meter {
            Some(meter) => meter.read().await,
            None => early,
        };
        self.conclude(course, ended, seen).await
    }

    /// What it is told meanwhile, until the next that matters.
    async fn serve(&mut self, id: &str, course: &mut Course) -> Result<(), SupervisorLost> {
        let lease = self.lease.filter(|_| !self.within && !course.lease_expired);
        let lost = async {
            match &self.held {
                Some(held) => held.supervisor_lost().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // All arms are cancel safe.
            command = self.commands.recv() => match command {
                Some(Command::Renew(lease)) => self.renew(lease),
                Some(Command::Stop(grace)) => self.stop(id, grace, course),
                None => {
                    self.stop(id, Duration::ZERO, course);
                    // Nobody tells it anything any more.
                    at(course.kill_at).await;
                    self.kill_again(id, course);
                }
            },
            () = at(course.kill_at) => {
                self.kill_again(id, course);
            }
            () = at(lease) => {
                course.lease_expired = true;
                self.stop(id, Duration::ZERO, course);
            }
            () = lost => {
                self.kill(id);
                return Err(SupervisorLost);
            }
        }
        Ok(())
    }

    /// Again and again: an engine that was away comes back. One that does not is not waited for for ever.
    fn kill_again(&self, id: &str, course: &mut Course) {
        let now = Instant::now();
        if now >= *course.deaf_at.get_or_insert(now + DEAF) {
            course.over = Some(Err(self.engine.unavailable("wait for a container", "no word of a container that was killed".to_owned())));
        }
        self.signal(id, "SIGKILL");
        course.kill_at = Some(now + LINGER);
    }

    fn renew(&mut self, lease: Duration) {
        self.lease = self.lease.map(|_| Instant::now() + lease);
        if let Some(held) = &self.held {
            held.renew(lease);
        }
    }

    fn stop(&mut self, id: &str, grace: Duration, course: &mut Course) {
        let kill_at = if self.within {
            if let Some(held) = &self.held {
                held.stop(grace);
            }
            Instant::now() + grace + LINGER
        } else if grace.is_zero() {
            self.signal(id, "SIGKILL");
            Instant::now() + LINGER
        } else {
            self.signal(id, "SIGTERM");
            Instant::now() + grace
        };
        course.kill_at = Some(course.kill_at.map_or(kill_at, |before| before.min(kill_at)));
    }

    /// At once, by every way there is.
    fn kill(&self, id: &str) {
        if let Some(held) = &self.held {
            held.stop(Duration::ZERO);
        }
        self.signal(id, "SIGKILL");
    }

    /// Nobody waits for the answer: the end is what counts.
    fn signal(&self, id: &str, signal: &'static str) {
        let (engine, id) = (self.engine.clone(), id.to_owned());
        tokio::spawn(async move {
            if let Err(error) = engine.kill(&id, signal).await {
                tracing::debug!(error = %causes(&error), signal, "the engine did not signal a container");
            }
        });
    }

    /// Output ends with the container, never before it: an engine that says otherwise lost the connection.
    async fn over_soon(&self, id: &str) -> bool {
        for look in 0..LOOKS {
            if look > 0 {
                tokio::time::sleep(LOOK).await;
            }
            match self.engine.ended(id).await {
                Ok(Some(_)) => return true,
                Ok(None) => {}
                Err(_) => return false,
            }
        }
        false
    }

    /// What the end amounts to.
    async fn conclude(&mut self, course: Course, ended: Result<Option<Ended>, EngineError>, seen: Usage) -> Result<Exit, SupervisorLost> {
        let mut broken = None;
        if let Some(Err(error)) = &course.over {
            broken = Some(error.to_string());
        }
        if let Some(Err(error)) = &course.copied {
            broken.get_or_insert_with(|| format!("the container's output broke off: {error}"));
        }
        let end = match ended {
            Ok(Some(ended)) => Some(ended),
            Ok(None) => {
                broken.get_or_insert_with(|| "the engine says that the container still runs".to_owned());
                None
            }
            Err(error) if error.is_not_found() => {
                broken = Some("the container was removed from outside".to_owned());
                None
            }
            Err(error) => {
                broken.get_or_insert_with(|| error.to_string());
                None
            }
        };
        // 137 is what an engine makes of SIGKILL, which is how it ended where nobody knows better.
        let status = ExitStatus::Code(end.map_or(137, |end| end.code));
        let mut report = match self.held.take() {
            Some(held) => held.release(status).await?,
            None => ExitReport { status, usage: Usage::default(), lease_expired: false, kill_us: 0 },
        };
        report.lease_expired |= course.lease_expired;
        // Nothing was in the cgroup that is held, if the container's own is elsewhere.
        report.usage = highest(report.usage, seen);
        if end.is_some_and(|end| end.oom) {
            // On cgroup version 1 the count was the container's own and went with it.
            report.usage.oom_kills = report.usage.oom_kills.max(1);
        }
        Ok(Exit { report, broken })
    }

    /// Removes it, once.
    pub(super) async fn remove(&mut self) {
        // Dropped, it is killed.
        self.held = None;
        if !self.left {
            return;
        }
        crash::point(Point::ContainerRemoval);
        match self.removal().try_once().await {
            Ok(gone) => self.left = !gone,
            Err(error) => tracing::warn!(error = %causes(&error), name = self.name, "a container is not removed yet"),
        }
    }

    /// Until it is removed.
    pub(super) async fn insist(&mut self) {
        if self.left {
            self.removal().insist().await;
        }
    }

    fn removal(&self) -> Removal {
        Removal::of(&self.engine, Kind::Container, &self.name, self.unanswered)
    }
}

/// Resolves then; never without a time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// The rest of the output of a container that ended.
async fn drain(copying: impl Future<Output = Result<(), String>>, count: &std::sync::atomic::AtomicU64) -> Result<(), String> {
    let mut copying = std::pin::pin!(copying);
    loop {
        let before = count.load(Ordering::Relaxed);
        if let Ok(end) = timeout(DRAIN, &mut copying).await {
            return end;
        }
        if count.load(Ordering::Relaxed) == before {
            return Err(format!("nothing came for {} s after the container's end", DRAIN.as_secs()));
        }
    }
}

/// Ends with its owner.
pub(super) struct Abort(pub(super) tokio::task::JoinHandle<()>);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}
