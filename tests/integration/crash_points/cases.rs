//! What each point's case is, and what must come of it. A point without a case does not compile.

use windlass::crash::Point;
use windlass::task::Reason;

use crate::harness::job::Gate;
use crate::harness::{Fleet, Job};

/// Takeovers are soon, and cheap.
pub const SHORT: &[(&str, &str)] = &[("LEASE__ACK_WAIT_S", "2.5"), ("CLASSES__CPU_SHORT__MAX_ATTEMPTS", "20")];
/// Long enough that the same host is back before the message is anybody else's.
const LONG: &[(&str, &str)] = &[("LEASE__ACK_WAIT_S", "10")];
const ONE_BY_ONE: &[(&str, &str)] = &[("LOGS__CHUNK", "1KiB"), ("LOGS__WINDOW", "1")];
const PATIENT: &[(&str, &str)] = &[("LEASE__ACK_WAIT_S", "8"), ("BUS__REQUEST_TIMEOUT_S", "1")];
const ONCE: &[(&str, &str)] = &[("CLASSES__CPU_SHORT__MAX_ATTEMPTS", "1")];

/// How the victim comes to the point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// By itself.
    Straight,
    /// Drained while the task runs.
    Drain,
    /// Drained when there is nothing to do.
    Idle,
    /// Its task is canceled.
    Cancel,
    /// Its server stands still for a while.
    Outage,
    /// Another worker has died there before.
    After(Point),
    /// The worker is killed, and the supervisor dies after it.
    Orphan,
    /// A task lost its worker and its message.
    Lost,
    /// A task that has ended is queued again.
    Twice,
}

impl Way {
    /// Whether a worker of a third host has died.
    pub fn has_first(self) -> bool {
        matches!(self, Self::After(Point::Running) | Self::Lost)
    }
}

/// Where the task runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Home {
    Native,
    Docker,
}

/// Who goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heir {
    SameHost,
    OtherHost,
}

/// What is submitted.
#[derive(Debug, Clone, Copy)]
enum Work {
    /// Says which attempt it is.
    Says,
    /// The first attempt never ends by itself.
    Stays,
    /// The first attempt never ends, not even by SIGTERM, and its time is over soon; with this grace.
    Overstays(f64),
    /// The first attempt writes several chunks.
    Writes,
    /// The first attempt reports progress.
    Reports,
    /// The first attempt fails, and the assignment wants another.
    FailsOnce,
    /// Says it when the gate is open.
    Gated,
    /// Wants more memory than any task may.
    Refused,
    /// Its chain is too small to carry it.
    Large,
}

/// One row of the table.
pub struct Case {
    /// What the next worker finds and does.
    pub next: &'static str,
    /// The attempt that ended.
    pub attempts: u32,
    /// How.
    pub outcome: Reason,
    pub way: Way,
    pub home: Home,
    pub heir: Heir,
    pub settings: &'static [(&'static str, &'static str)],
    /// Which hit of the point is the deadly one.
    pub nth: Option<u32>,
    /// All standard output of the attempt that counts; `#` stands for its number.
    pub output: Option<&'static str>,
    /// How many of the attempts do not count.
    pub released: u32,
    /// Whether there is a dead letter.
    pub letter: bool,
    work: Work,
}

impl Case {
    fn of(attempts: u32, next: &'static str) -> Self {
        Self {
            next,
            attempts,
            outcome: Reason::Ok,
            way: Way::Straight,
            home: Home::Native,
            heir: Heir::OtherHost,
            settings: &[],
            nth: None,
            output: Some("attempt #\nis done\n"),
            released: 0,
            letter: false,
            work: Work::Says,
        }
    }

    fn work(self, work: Work) -> Self {
        Self { work, ..self }
    }

    fn way(self, way: Way) -> Self {
        Self { way, ..self }
    }

    /// Only containers come to this point.
    fn in_a_container(self) -> Self {
        Self { home: Home::Docker, ..self }
    }

    fn on_the_same_host(self) -> Self {
        Self { heir: Heir::SameHost, ..self }
    }

    fn with(self, settings: &'static [(&'static str, &'static str)]) -> Self {
        Self { settings, ..self }
    }

    /// Its first attempt was given back and does not count.
    fn released(self) -> Self {
        Self { released: 1, ..self }
    }

    /// It ends without having run to its end.
    fn ends(self, outcome: Reason) -> Self {
        Self { outcome, output: None, ..self }
    }

    /// The assignment.
    pub fn job(&self, fleet: &Fleet) -> Job {
        const SAY: &str = "echo attempt $WINDLASS_ATTEMPT";
        let script = |text: String| match self.home {
            Home::Native => Job::bash(text),
            Home::Docker => Job::container_script(text).sees(&fleet.dir),
        };
        // Within the limit the next attempt has to end; the engine of a busy machine takes its time to start it.
        let limit = if self.home == Home::Docker { 5.0 } else { 0.5 };
        let stay = |how: &str| script(format!("{SAY}; [ $WINDLASS_ATTEMPT -gt 1 ] || {{ {how}; }}; echo is done"));
        match self.work {
            Work::Says => stay(":"),
            Work::Stays => stay("sleep 1000"),
            Work::Overstays(grace) => stay("trap '' TERM; while :; do sleep 0.05; done").timeout(limit).grace(grace),
            Work::Writes => stay("seq 1 2000"),
            Work::Reports => stay(r#"echo '{"stage":"half","pct":50}' >> "$WINDLASS_PROGRESS"; sleep 1000"#),
            Work::FailsOnce => stay("exit 3").set(
                "/retry",
                serde_json::json!({
                    "max_attempts": 3, "on": ["failure"], "backoff": {"initial_ms": 50, "factor": 1.0, "max_ms": 50}
                }),
            ),
            Work::Gated => script(format!("{}; {SAY}; echo is done", Gate::new(&fleet.dir, "outage").wait())),
            Work::Refused => stay(":").memory("1TiB"),
            // Near max_payload: task_started cannot carry it.
            Work::Large => stay("sleep 1000").set("/context", "x".repeat(1_000_000)),
        }
    }
}

/// Whether it is the supervisor that dies.
pub fn in_supervisor(point: Point) -> bool {
    let own = ["supervisor_ready", "cgroup_made", "cloned", "terminated", "killed", "reaped", "buried", "orphaned"];
    own.contains(&point.name())
}

/// The case of a point.
pub fn case(point: Point) -> Case {
    use Work::{FailsOnce, Gated, Large, Overstays, Refused, Reports, Stays, Writes};
    const AGAIN: &str = "finds a claim without an end: the next attempt, from the beginning";
    const ORPHANS: &str = "the next attempt with chunks of its own; what the dead one stored is in no manifest";
    const REMOVED: &str = "the supervisor has the engine remove the container; the next attempt";
    const OVER: &str = "finds the end stored: acknowledges, runs nothing";
    const RELEASED: &str = "its worker gives the task back and ends; another attempt that does not count";
    match point {
        Point::Pulled => Case::of(1, "gets the message when the lease is over; nothing was begun"),
        Point::Decoded => Case::of(1, "gets the message when the lease is over; nothing was begun"),
        Point::ClaimReady => Case::of(1, "finds no claim: the first attempt is its own"),
        Point::ClaimStored => Case::of(2, AGAIN),
        Point::Claimed => Case::of(2, AGAIN),
        Point::WorkspaceMade => Case::of(2, AGAIN),
        Point::ImageReady => Case::of(2, AGAIN).in_a_container(),
        Point::ContainerHeld => Case::of(2, "the supervisor removes the cgroup; the next attempt").in_a_container(),
        Point::ContainerCreated => Case::of(2, REMOVED).in_a_container(),
        Point::ContainerAttached => Case::of(2, REMOVED).in_a_container(),
        Point::ContainerStarted => {
            Case::of(2, "the supervisor kills what runs and removes the container; the next attempt").in_a_container().work(Stays)
        }
        Point::ContainerEnded => Case::of(2, REMOVED).in_a_container(),
        Point::ContainerRemoval => Case::of(2, REMOVED).in_a_container(),
        Point::SpawnSent => Case::of(2, "the supervisor kills what it was about to start; the next attempt"),
        Point::StartedUnread => Case::of(2, "the supervisor kills the program; the next attempt"),
        Point::Running => Case::of(2, "the supervisor kills the program; the next attempt").work(Stays),
        Point::ProgressStored => Case::of(2, "continues the chain after the progress event with the next attempt").work(Reports),
        Point::Renewing => Case::of(2, "the supervisor kills the program; the next attempt when the renewed lease is over").work(Stays),
        Point::CancelHeard => {
            Case::of(1, "reads the stored request: ends the task, runs nothing").work(Stays).way(Way::Cancel).ends(Reason::Canceled)
        }
        Point::StopAsked => Case::of(2, "the supervisor does not wait for the grace; the next attempt").work(Overstays(30.0)),
        Point::OutputRead => Case::of(2, ORPHANS),
        Point::Spooled => Case::of(2, ORPHANS),
        Point::ChunkReady => Case::of(2, ORPHANS),
        Point::ChunkStored => Case::of(2, ORPHANS),
        Point::BetweenChunks => Case { nth: Some(2), ..Case::of(2, ORPHANS) }.work(Writes).with(ONE_BY_ONE),
        Point::SpoolReplay => Case::of(2, ORPHANS).work(Gated).way(Way::Outage).with(PATIENT),
        Point::ProgramEnded => Case::of(2, ORPHANS),
        Point::ChunksConfirmed => Case::of(2, ORPHANS),
        Point::EndKept => Case::of(2, "another host: the next attempt, and the kept event is refused when the first host is back"),
        Point::EndStored => Case::of(1, OVER),
        Point::WorkspaceRemoval => {
            Case::of(1, "finds the end stored: acknowledges, runs nothing; the host's next worker removes the directory")
        }
        Point::Committed => Case::of(1, OVER),
        Point::AckSent => Case::of(1, "finds nothing queued"),
        Point::RetryStored => Case::of(2, "finds the retry: waits for its time, the next attempt").work(FailsOnce),
        Point::RetryDecided => Case::of(2, "finds the retry: waits for its time, the next attempt").work(FailsOnce),
        Point::NakSent => Case::of(2, "gets the message after the delay of the retry").work(FailsOnce),
        Point::ReleaseStored => {
            Case::of(2, "finds the release: another attempt that does not count").work(Stays).way(Way::Drain).released()
        }
        Point::Released => Case::of(2, "finds the release: another attempt that does not count").work(Stays).way(Way::Drain).released(),
        Point::InstanceRemoval => Case::of(1, "nothing is queued; the host's next worker removes the directory").way(Way::Idle),
        Point::TakeoverDecided => {
            Case::of(2, "a third worker finds the first one's claim: the next attempt").way(Way::After(Point::Running)).work(Stays)
        }
        Point::TakenOver => {
            Case::of(3, "a third worker finds two claims: the attempt after them").way(Way::After(Point::Running)).work(Stays)
        }
        Point::LetterStored => Case { letter: true, ..Case::of(0, "the same letter is no second one; stores the end, acknowledges") }
            .work(Refused)
            .ends(Reason::PolicyRefused),
        Point::LetterTold => Case { letter: true, ..Case::of(0, OVER) }.work(Refused).ends(Reason::PolicyRefused),
        Point::LetterOwed => {
            let next = "finds the end stored, stores the letter, acknowledges";
            Case { letter: true, ..Case::of(1, next) }
                .way(Way::After(Point::Running))
                .work(Stays)
                .with(ONCE)
                .ends(Reason::AttemptsExhausted)
        }
        Point::SweepLocked => {
            let next = "sweeps when the lock has expired (20 s); queues the lost task again; the next attempt";
            Case::of(2, next).work(Stays).way(Way::Lost).with(&[("SWEEPER__INTERVAL_S", "0.2")])
        }
        Point::SweepQueued => Case::of(2, "finds the message queued, once: the next attempt").work(Stays).way(Way::Lost),
        Point::SweepEnded => Case::of(1, "finds the end; nothing is queued").work(Large).way(Way::Lost).ends(Reason::WorkerLost),
        Point::SweepRemoved => Case::of(1, "nothing is queued; what else the dead one ran, again").way(Way::Twice),
        Point::ReplayRead => {
            let next = "a third life reads the kept event and stores it; nothing runs again";
            Case::of(1, next).way(Way::After(Point::EndKept)).on_the_same_host().with(LONG)
        }
        Point::ReplayStored => Case::of(1, OVER).way(Way::After(Point::EndKept)).on_the_same_host().with(LONG),
        Point::SupervisorReady => Case::of(1, "its worker does not start and has taken nothing; sweeps the cgroups"),
        Point::CgroupMade => Case::of(2, RELEASED).released(),
        Point::Cloned => Case::of(2, RELEASED).released(),
        Point::Terminated => Case::of(2, RELEASED).released().work(Overstays(30.0)),
        Point::Killed => Case::of(2, RELEASED).released().work(Overstays(0.0)),
        Point::Reaped => Case::of(2, RELEASED).released(),
        Point::Buried => Case::of(2, RELEASED).released(),
        Point::Orphaned => {
            let next = "sweeps the cgroups of both, killing what runs; the next attempt when the lease is over";
            Case::of(2, next).work(Stays).way(Way::Orphan)
        }
    }
}
