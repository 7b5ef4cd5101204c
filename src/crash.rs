//! Crash points: named places at which a test build dies, to prove what the next worker makes of it.
//!
//! `WINDLASS_CRASH_AT=<name>` kills the process that first comes to that point, by SIGKILL to itself: nothing is unwound,
//! dropped or flushed. `<name>:<n>` waits for the n-th time. Only with the cargo feature `crash-points`, which a release build
//! refuses; without it [`point`] is empty and no name is in the program. The cases are in `tests/integration/crash_points.rs`,
//! their table in `docs/guarantees.md`.

use crate::task::EventKind;

#[cfg(all(feature = "crash-points", not(debug_assertions)))]
compile_error!("crash-points is for test builds: a release must not be able to kill itself by an environment variable");

/// The variable that arms a point.
#[cfg(feature = "crash-points")]
const ARMED: &str = "WINDLASS_CRASH_AT";

macro_rules! points {
    ($($point:ident $name:literal $happened:literal;)*) => {
        /// A place to die.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Point {
            $(#[doc = $happened] $point,)*
        }

        #[cfg(feature = "crash-points")]
        impl Point {
            /// All of them, in the order of a task's way.
            pub const ALL: &[Self] = &[$(Self::$point,)*];

            /// As [`ARMED`] has it.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$point => $name,)* }
            }

            /// What had happened when the process dies here.
            #[must_use]
            pub fn happened(self) -> &'static str {
                match self { $(Self::$point => $happened,)* }
            }
        }
    };
}

points! {
    Pulled "pulled" "message received, not looked at";
    Decoded "decoded" "assignment understood, history not read";
    ClaimReady "claim_ready" "decided to run it, claim not sent";
    ClaimStored "claim_stored" "claim stored, answer not read";
    Claimed "claimed" "claim confirmed, no work directory yet";
    WorkspaceMade "workspace_made" "work directory made, nothing started";
    ImageReady "image_ready" "container: the engine has the image, nothing made";
    ContainerHeld "container_held" "container: its cgroup made, the engine not asked";
    ContainerCreated "container_created" "container: created, not started";
    ContainerAttached "container_attached" "container: output attached, not started";
    ContainerStarted "container_started" "container: started, nobody told";
    ContainerEnded "container_ended" "container: ended and looked at, its cgroup still there";
    ContainerRemoval "container_removal" "container: ended, about to be removed";
    SpawnSent "spawn_sent" "start request sent to the supervisor, no answer";
    StartedUnread "started_unread" "program runs, the supervisor's word of it not acted on";
    Running "running" "program runs";
    ProgressStored "progress_stored" "progress event stored, answer not read";
    Renewing "renewing" "renewal confirmed, chain not looked at";
    CancelHeard "cancel_heard" "cancel request heard, program not told";
    StopAsked "stop_asked" "stop with grace asked of the supervisor, program still runs";
    OutputRead "output_read" "output read from the pipe, in memory only";
    Spooled "spooled" "output in the spool, no chunk cut";
    ChunkReady "chunk_ready" "chunk numbered, not sent";
    ChunkStored "chunk_stored" "chunk stored, confirmation not read";
    BetweenChunks "between_chunks" "some chunks confirmed, others not sent";
    SpoolReplay "spool_replay" "broker was away, first chunk from the spool confirmed";
    ProgramEnded "program_ended" "program's end reported, output not finished";
    ChunksConfirmed "chunks_confirmed" "last chunk confirmed, no terminal event made";
    EndKept "end_kept" "terminal event on this disk, not sent";
    EndStored "end_stored" "terminal event stored, answer not read";
    WorkspaceRemoval "workspace_removal" "terminal event confirmed, its copy and the work directory about to go";
    Committed "committed" "terminal event confirmed, ack not sent";
    AckSent "ack_sent" "ack taken by the server, confirmation not read";
    RetryStored "retry_stored" "retry event stored, answer not read";
    RetryDecided "retry_decided" "retry event confirmed, message not given back";
    NakSent "nak_sent" "message given back, confirmation not read";
    ReleaseStored "release_stored" "drain: release event stored, answer not read";
    Released "released" "drain: release event confirmed, message not given back";
    InstanceRemoval "instance_removal" "drained, own directory about to go";
    TakeoverDecided "takeover_decided" "takeover: dead worker's history read, not claimed";
    TakenOver "taken_over" "takeover: claim of the next attempt confirmed";
    LetterStored "letter_stored" "dead letter stored, terminal event not";
    LetterTold "letter_told" "dead letter and terminal event stored, ack not sent";
    LetterOwed "letter_owed" "terminal event of used up attempts stored, dead letter not";
    SweepLocked "sweep_locked" "sweep: lock taken, nothing looked at";
    SweepQueued "sweep_queued" "sweep: lost task queued again, answer not acted on";
    SweepEnded "sweep_ended" "sweep: end of a lost task stored, nothing else";
    SweepRemoved "sweep_removed" "sweep: message of an ended task removed";
    ReplayRead "replay_read" "next life: kept terminal event read, not sent";
    ReplayStored "replay_stored" "next life: kept terminal event stored, directory still there";
    SupervisorReady "supervisor_ready" "supervisor: cgroups made, worker not told";
    CgroupMade "cgroup_made" "supervisor: task's cgroup made, program not started";
    Cloned "cloned" "supervisor: program started, worker not told";
    Terminated "terminated" "supervisor: SIGTERM sent, grace not over";
    Killed "killed" "supervisor: SIGKILL sent, tree not waited for";
    Reaped "reaped" "supervisor: program ended, cgroup still there";
    Buried "buried" "supervisor: cgroup removed, end not reported";
    Orphaned "orphaned" "supervisor: worker is gone, its trees not killed";
}

/// Dies here if this point is armed.
#[cfg(not(feature = "crash-points"))]
#[inline(always)]
pub fn point(_: Point) {}

/// Dies here if this point is armed.
#[cfg(feature = "crash-points")]
pub fn point(point: Point) {
    use std::io::Write as _;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    static PLAN: OnceLock<Option<(String, AtomicU32)>> = OnceLock::new();
    let plan = PLAN.get_or_init(|| {
        let armed = std::env::var(ARMED).ok()?;
        let (name, nth) = armed.split_once(':').unwrap_or((&armed, "1"));
        Some((name.to_owned(), AtomicU32::new(nth.parse().ok()?)))
    });
    let Some((name, left)) = plan else { return };
    if name != point.name() || left.fetch_sub(1, Ordering::Relaxed) != 1 {
        return;
    }
    let _ = writeln!(std::io::stderr(), "{}", death_note(point));
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    // The signal may reach another thread first.
    loop {
        std::thread::park();
    }
}

/// What a process writes to standard error before it dies at a point.
#[cfg(feature = "crash-points")]
#[must_use]
pub fn death_note(point: Point) -> String {
    format!("crash point reached: {}.", point.name())
}

/// The point after an event of that kind was stored, with the answer not acted on.
pub(crate) fn event_stored(kind: EventKind) {
    point(match kind {
        EventKind::TaskStarted => Point::ClaimStored,
        EventKind::TaskProgress => Point::ProgressStored,
        EventKind::TaskRetrying => Point::RetryStored,
        EventKind::TaskReleased => Point::ReleaseStored,
        EventKind::TaskCompleted | EventKind::TaskFailed => Point::EndStored,
    });
}

/// Lets a child process die, too: the supervisor is started with an empty environment.
#[cfg(not(feature = "crash-points"))]
#[inline(always)]
pub(crate) fn pass_on(_: &mut std::process::Command) {}

/// Lets a child process die, too: the supervisor is started with an empty environment.
#[cfg(feature = "crash-points")]
pub(crate) fn pass_on(command: &mut std::process::Command) {
    if let Some(armed) = std::env::var_os(ARMED) {
        command.env(ARMED, armed);
    }
}
