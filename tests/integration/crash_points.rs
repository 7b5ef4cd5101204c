//! What happens when a worker, or its supervisor, dies at any step from receive to ack.
//!
//! One test per point of `src/crash.rs`: a worker is started with the point armed and dies there by its own SIGKILL; at that moment
//! the message must still be queued, or the task's end be stored. Then others go on, and the checker reads the streams: one end,
//! attempts without a gap, chunks and digests of the attempt that counts, no ack before the end, and nothing left on the machine.
//! The table of `docs/guarantees.md` is written from the cases (`make test-faults`).

use std::os::unix::process::ExitStatusExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use windlass::crash::{Point, death_note};
use windlass::task::log_chunk::LogStream;
use windlass::task::{Event, EventKind};

use crate::harness::job::Gate;
use crate::harness::orchestrator::event_of;
use crate::harness::server::{Options, Server};
use crate::harness::worker::Worker;
use crate::harness::{Engine, Fleet, Job, PATIENCE, Task, checker, feed, leftovers};

#[path = "crash_points/cases.rs"]
mod cases;
#[path = "crash_points/table.rs"]
mod table;

use cases::{Case, Heir, Home, Way, case};

/// The host whose worker dies; the one that goes on; the one that died before, where two die.
const VICTIM: &str = "victim";
const HEIR: &str = "heir";
const FIRST: &str = "first";

macro_rules! tests {
    ($($test:ident $point:ident,)*) => {
        $(#[tokio::test]
        async fn $test() {
            run(Point::$point, case(Point::$point).home).await;
        })*

        /// Every point that has a test.
        const TESTED: &[(&str, Point)] = &[$((stringify!($test), Point::$point),)*];
    };
}

tests! {
    // The slow ones first: they wait for a lease of ten seconds, or for a lock of twenty.
    sweep_locked SweepLocked,
    replay_read ReplayRead,
    replay_stored ReplayStored,
    spool_replay SpoolReplay,
    pulled Pulled,
    decoded Decoded,
    claim_ready ClaimReady,
    claim_stored ClaimStored,
    claimed Claimed,
    workspace_made WorkspaceMade,
    image_ready ImageReady,
    container_held ContainerHeld,
    container_created ContainerCreated,
    container_attached ContainerAttached,
    container_started ContainerStarted,
    container_ended ContainerEnded,
    container_removal ContainerRemoval,
    spawn_sent SpawnSent,
    started_unread StartedUnread,
    running Running,
    progress_stored ProgressStored,
    renewing Renewing,
    cancel_heard CancelHeard,
    stop_asked StopAsked,
    output_read OutputRead,
    spooled Spooled,
    chunk_ready ChunkReady,
    chunk_stored ChunkStored,
    between_chunks BetweenChunks,
    program_ended ProgramEnded,
    chunks_confirmed ChunksConfirmed,
    end_kept EndKept,
    end_stored EndStored,
    workspace_removal WorkspaceRemoval,
    committed Committed,
    ack_sent AckSent,
    retry_stored RetryStored,
    retry_decided RetryDecided,
    nak_sent NakSent,
    release_stored ReleaseStored,
    released Released,
    instance_removal InstanceRemoval,
    takeover_decided TakeoverDecided,
    taken_over TakenOver,
    letter_stored LetterStored,
    letter_told LetterTold,
    letter_owed LetterOwed,
    sweep_queued SweepQueued,
    sweep_ended SweepEnded,
    sweep_removed SweepRemoved,
    supervisor_ready SupervisorReady,
    cgroup_made CgroupMade,
    cloned Cloned,
    terminated Terminated,
    killed Killed,
    reaped Reaped,
    buried Buried,
    orphaned Orphaned,
}

macro_rules! docker_tests {
    ($($test:ident $point:ident,)*) => {
        /// Points that every task passes, with a container.
        mod docker {
            $(#[tokio::test]
            async fn $test() {
                super::run(super::Point::$point, super::Home::Docker).await;
            })*
        }

        /// Points that are tested with a container as well.
        const TESTED_WITH_DOCKER: &[Point] = &[$(Point::$point,)*];
    };
}

docker_tests! {
    claimed Claimed,
    workspace_made WorkspaceMade,
    running Running,
    progress_stored ProgressStored,
    renewing Renewing,
    cancel_heard CancelHeard,
    stop_asked StopAsked,
    output_read OutputRead,
    between_chunks BetweenChunks,
    program_ended ProgramEnded,
    end_stored EndStored,
    workspace_removal WorkspaceRemoval,
    committed Committed,
    release_stored ReleaseStored,
    taken_over TakenOver,
    cgroup_made CgroupMade,
    terminated Terminated,
    killed Killed,
    buried Buried,
    orphaned Orphaned,
}

#[test]
fn every_point_has_its_test() {
    for point in Point::ALL {
        let tests: Vec<_> = TESTED.iter().filter(|(_, tested)| tested == point).collect();
        assert_eq!(tests.len(), 1, "{point:?} has {} tests", tests.len());
        assert_eq!(tests[0].0, point.name(), "a test is called as its point");
    }
}

#[test]
fn who_builds_windlass_gets_no_crash_points() {
    let manifest: toml::Table = include_str!("../../Cargo.toml").parse().unwrap();
    let features = manifest["features"].as_table().unwrap();
    for (name, enables) in features.iter().filter(|(name, _)| *name != "crash-points") {
        assert!(!enables.to_string().contains("crash-points"), "feature {name} brings the crash points along");
    }
    // In a normal build there is neither a name to print nor a variable to read, and a release build with the feature fails.
    let source = include_str!("../../src/crash.rs");
    assert!(source.contains("compile_error!"), "a release could be built with crash points");
    let bare = source.matches("\n#[cfg(not(feature = \"crash-points\"))]\n#[inline(always)]\npub fn point(_: Point) {}\n").count();
    assert_eq!(bare, 1, "without the feature a point must be nothing");
}

/// One case from the first message to the empty machine.
async fn run(point: Point, home: Home) {
    let mut case = case(point);
    case.home = home;
    let server = if case.way == Way::Outage { Server::private(Options::default()) } else { Server::shared() };
    let Some(server) = server else { return };
    let settings = [cases::SHORT, case.settings].concat();
    let fleet = match home {
        Home::Native => Fleet::on(server, &settings).await,
        Home::Docker => {
            let Some(engine) = Engine::shared() else { return };
            Fleet::with_engine(server, engine, &settings).await
        }
    };
    let task = dies(&fleet, point, &case).await;
    still_owed(&fleet, &task, point).await;
    if case.way != Way::Orphan {
        let left = leftovers::gone(Duration::from_secs(10), || fleet.processes_of(&task.id)).await;
        assert!(left.is_empty(), "its program outlives the worker that died at {point:?}: {left:?}");
    }
    // By the dead worker's supervisor; where that is dead too, by the next worker of the machine.
    if case.way != Way::Orphan && !cases::in_supervisor(point) {
        let left = leftovers::gone(Duration::from_secs(20), || fleet.containers_left()).await;
        assert!(left.is_empty(), "its container outlives the worker that died at {point:?}: {left:?}");
    }
    let last = match case.heir {
        Heir::SameHost => fleet.worker_named(VICTIM, &[]),
        Heir::OtherHost => fleet.worker_named(HEIR, &[]),
    };
    let end = fleet.end(&task).await;
    assert_eq!((end.reason, end.task.attempt), (Some(case.outcome), case.attempts), "{point:?}: {:?}\n{}", end.error, last.log());
    assert_eq!(end.task.released_attempts, case.released, "attempts that do not count");
    if let Some(said) = case.output {
        let text = String::from_utf8(fleet.output(&task, &end, LogStream::Stdout).await).unwrap();
        assert_eq!(text, said.replace('#', &case.attempts.to_string()), "output of another attempt than the one that counts");
    }
    // The hosts of the dead come back, so that what they left is found.
    if case.heir == Heir::OtherHost {
        fleet.worker_named(VICTIM, &[]).ready().await;
    }
    if case.way.has_first() {
        fleet.worker_named(FIRST, &[]).ready().await;
    }
    checker::check(&fleet).await;
    checker::check_acks(&fleet).await;
    // Once the queue is empty: an owed letter may come after the end.
    let letters = fleet.dead().await.len();
    assert_eq!(letters, usize::from(case.letter), "dead letters");
    let strays = leftovers::gone(Duration::from_secs(5), || fleet.strays()).await;
    assert!(strays.is_empty(), "left behind: {strays:?}");
    fleet.finish().await;
}

/// Brings a worker to the point; returns the task when the process is dead.
async fn dies(fleet: &Fleet, point: Point, case: &Case) -> Task {
    let job = case.job(fleet);
    let armed = case.nth.map_or_else(|| point.name().to_owned(), |nth| format!("{}:{nth}", point.name()));
    let victim = |settings: &[(&str, &str)]| fleet.armed(VICTIM, &armed, settings);
    match case.way {
        Way::Straight => {
            let task = fleet.submit(&job).await;
            death(&victim(&[]), point).await;
            task
        }
        Way::Drain => {
            let task = fleet.submit(&job).await;
            let victim = victim(&[("WORKER__DRAIN_TIMEOUT_S", "0.1")]);
            fleet.output_has(&task, "attempt 1").await;
            victim.signal(Signal::TERM);
            death(&victim, point).await;
            task
        }
        Way::Idle => {
            let task = fleet.submit(&job).await;
            let victim = victim(&[]);
            fleet.end(&task).await;
            victim.signal(Signal::TERM);
            death(&victim, point).await;
            task
        }
        Way::Cancel => {
            let task = fleet.submit(&job).await;
            let victim = victim(&[]);
            fleet.output_has(&task, "attempt 1").await;
            fleet.cancel(&task).await;
            death(&victim, point).await;
            task
        }
        Way::Orphan => {
            let task = fleet.submit(&job).await;
            let victim = victim(&[]);
            fleet.output_has(&task, "attempt 1").await;
            victim.kill9().await;
            until("its supervisor died, too", &victim, || victim.said(&death_note(point)) && supervisors(fleet) == 0).await;
            task
        }
        Way::Outage => outage(fleet, point, &job, &victim(&[("LOG__LEVEL", "debug")])).await,
        Way::After(first) => {
            let task = fleet.submit(&job).await;
            // On the same host when what counts is what the first one left on its disk.
            let host = if case.way.has_first() { FIRST } else { VICTIM };
            death(&fleet.armed(host, first.name(), &[]), first).await;
            death(&victim(&[]), point).await;
            task
        }
        Way::Lost => {
            let task = lost(fleet, &job).await;
            death(&victim(&[("SWEEPER__INTERVAL_S", "0.2")]), point).await;
            task
        }
        Way::Twice => twice(fleet, point, &job, &victim(&[("SWEEPER__INTERVAL_S", "0.2"), ("CAPACITY__SLOTS", "1")])).await,
    }
}

fn supervisors(fleet: &Fleet) -> usize {
    leftovers::named(&format!("\"{}\"", fleet.cgroup_parent())).len()
}

async fn until(what: &str, worker: &Worker, mut look: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !look() {
        assert!(Instant::now() < deadline, "not so: {what}\n{}", worker.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits for the death: at this point, and by SIGKILL. A worker whose supervisor died ends by itself, and says so.
async fn death(worker: &Worker, point: Point) {
    let status = worker.exit(PATIENCE).await;
    assert!(worker.said(&death_note(point)), "{} ended with {status}, not at {point:?}\n{}", worker.id, worker.log());
    if cases::in_supervisor(point) {
        assert_eq!(status.code(), Some(1), "a worker without its supervisor must not look healthy\n{}", worker.log());
    } else {
        assert_eq!(status.signal(), Some(9), "{point:?} is a death by SIGKILL, not {status}\n{}", worker.log());
    }
}

/// At the time of death: the message is queued, or the end is stored. Read in this order, an end that lands in between is no excuse.
async fn still_owed(fleet: &Fleet, task: &Task, point: Point) {
    let queued = fleet.queued().await.iter().any(|m| m.subject.ends_with(&format!(".{}.{}", task.tenant, task.id)));
    let chain = format!("{}.events.{}.{}.>", fleet.prefix, task.tenant, task.id);
    let events: Vec<Event> = feed::read_all(&fleet.js, &fleet.stream("EVENTS"), &chain).await.iter().map(event_of).collect();
    let ended = events.last().is_some_and(|event| event.event.is_terminal());
    let sweeping = matches!(point, Point::SweepLocked);
    assert!(queued || ended || sweeping, "{point:?}: the message is gone, and the task has no end");
}

/// The server stands still while the program writes; what it wrote goes out afterwards.
async fn outage(fleet: &Fleet, point: Point, job: &Job, victim: &Worker) -> Task {
    let gate = Gate::new(&fleet.dir, "outage");
    let task = fleet.submit(job).await;
    fleet.event(&task, EventKind::TaskStarted).await;
    until("the program runs", victim, || !fleet.processes_of(&task.id).is_empty()).await;
    fleet.server.freeze();
    gate.open();
    until("a chunk was not confirmed", victim, || victim.said("chunk not confirmed")).await;
    fleet.server.thaw();
    death(victim, point).await;
    task
}

/// A task whose worker was killed, and whose message was then taken out of the queue by somebody.
async fn lost(fleet: &Fleet, job: &Job) -> Task {
    let worker = fleet.worker_named(FIRST, &[]);
    let task = fleet.submit(job).await;
    fleet.event(&task, EventKind::TaskStarted).await;
    worker.kill9().await;
    let message = fleet.queued().await.into_iter().find(|m| m.subject.ends_with(&format!(".{}", task.id))).expect("still queued");
    let stream = fleet.js.get_stream(fleet.stream("TASKS")).await.unwrap();
    stream.delete_message(message.sequence).await.unwrap();
    task
}

/// A task that has ended is queued again, and no slot is free to take it: the sweeper removes it.
async fn twice(fleet: &Fleet, point: Point, job: &Job, victim: &Arc<Worker>) -> Task {
    let task = fleet.submit(job).await;
    fleet.end(&task).await;
    let blocker = fleet.submit(&Job::bash("[ $WINDLASS_ATTEMPT -gt 1 ] || sleep 1000")).await;
    fleet.event(&blocker, EventKind::TaskStarted).await;
    let deadline = Instant::now() + PATIENCE;
    while fleet.publish(&fleet.subject(job, &task.id), job.media_type(), job.encode()).await.is_err() {
        assert!(Instant::now() < deadline, "its first message stays");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    death(victim, point).await;
    task
}
