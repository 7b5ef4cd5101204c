//! Everything at once: mixed tasks over three workers, under random faults, with exact accounting.
//!
//! The plan (which tasks in which order, which fault after which task) is a function of the seed alone. A failed run prints the
//! seed; `WINDLASS_SOAK_SEED=… make soak` has the same plan again. In the suite it is short; `make soak` is the long form.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use windlass::task::log_chunk::LogStream;
use windlass::task::{Event, EventKind, Reason};

use crate::harness::crew::Crew;
use crate::harness::dice::number;
use crate::harness::orchestrator::{Link, chunk_of};
use crate::harness::server::{Options, Server};
use crate::harness::{Fleet, Task, checker, feed, leftovers};

#[path = "soak/plan.rs"]
mod plan;

use plan::{Kind, Plan, Planned};

/// Tasks of the form that is in the suite.
const SHORT_FORM: u64 = 240;
/// Tasks submitted and not ended at one time.
const OPEN: usize = 36;

const SETTINGS: &[(&str, &str)] = &[
    ("LEASE__ACK_WAIT_S", "2"),
    ("SWEEPER__INTERVAL_S", "1"),
    ("CLASSES__CPU_SHORT__MAX_ATTEMPTS", "20"),
    ("BUS__REQUEST_TIMEOUT_S", "2"),
];
const CREW: &[(&str, &str)] = &[("CAPACITY__SLOTS", "4"), ("WORKER__DRAIN_TIMEOUT_S", "1")];

#[test]
fn the_plan_is_a_function_of_its_seed() {
    assert_eq!(Plan::of(7, 300), Plan::of(7, 300));
    assert_ne!(Plan::of(7, 300), Plan::of(8, 300));
    for seed in 0..50 {
        let plan = Plan::of(seed, SHORT_FORM);
        let kinds: BTreeSet<_> = plan.tasks.iter().map(|t| t.kind.name()).collect();
        assert_eq!(kinds.len(), Kind::NAMES, "seed {seed} lacks a kind of task: {kinds:?}");
        let faults: BTreeSet<_> = plan.faults.iter().map(|f| f.fault).collect();
        assert_eq!(faults.len(), 6, "seed {seed} lacks a kind of fault: {faults:?}");
    }
}

#[tokio::test]
async fn every_task_is_accounted_for() {
    let Some(server) = Server::private(Options::default()) else { return };
    let (seed, tasks) = (number("WINDLASS_SOAK_SEED", u64::from(std::process::id())), number("WINDLASS_SOAK_TASKS", SHORT_FORM));
    let plan = Plan::of(seed, tasks);
    println!("soak of {tasks} tasks and {} faults; again with: SOAK_TASKS={tasks} WINDLASS_SOAK_SEED={seed} make soak", plan.faults.len());
    let began = Instant::now();
    let fleet = Fleet::on(server, SETTINGS).await;
    let submitted = work_off(&fleet, &plan).await;
    let mut tally = Tally::default();
    let outputs = outputs(&fleet).await;
    for (planned, task) in plan.tasks.iter().zip(&submitted) {
        account(&fleet, planned, task, &outputs, &mut tally).await;
    }
    checker::check(&fleet).await;
    checker::check_acks(&fleet).await;
    // Once the queue is empty: an owed letter may come after the end.
    let dead: BTreeSet<String> = fleet.dead().await.iter().filter_map(|m| m.header("Windlass-Task-Id").map(str::to_owned)).collect();
    assert_eq!(dead, tally.dead, "dead letters are for exactly those that end so");
    assert_eq!(fleet.dead().await.len(), dead.len(), "a dead letter twice");
    assert_eq!(fleet.queued().await.len(), 0, "something that was never submitted is queued");
    let strays = leftovers::gone(Duration::from_secs(5), || fleet.strays()).await;
    assert!(strays.is_empty(), "left behind: {strays:?}");
    println!("{:.0} s, {} attempts, {} of them lost, ends: {:?}", began.elapsed().as_secs_f64(), tally.attempts, tally.lost, tally.ends);
    fleet.finish().await;
}

/// Submits everything, with the faults in between, and waits until all have ended.
async fn work_off(fleet: &Fleet, plan: &Plan) -> Vec<Task> {
    let mut crew = Crew::start(fleet, 3, CREW, Duration::from_millis(2500));
    let mut submitted: Vec<Task> = Vec::new();
    let mut faults = plan.faults.iter().peekable();
    for (n, planned) in plan.tasks.iter().enumerate() {
        if n >= OPEN {
            fleet.end(&submitted[n - OPEN]).await;
        }
        let task = fleet.submit_surely(&planned.job()).await;
        if planned.kind == Kind::CanceledRunning {
            fleet.event(&task, EventKind::TaskStarted).await;
        }
        if matches!(planned.kind, Kind::CanceledWaiting | Kind::CanceledRunning) {
            fleet.cancel_surely(&task).await;
        }
        submitted.push(task);
        while let Some(next) = faults.next_if(|next| next.after == n) {
            crew.suffer(next.fault, next.victim).await;
        }
    }
    for task in &submitted {
        fleet.end(task).await;
    }
    crew.ready().await;
    submitted
}

/// What came of all tasks.
#[derive(Debug, Default)]
struct Tally {
    attempts: u32,
    /// Attempts that ended with their worker, without a word.
    lost: usize,
    ends: BTreeMap<String, u32>,
    /// Those that must be dead letters.
    dead: BTreeSet<String>,
}

/// Standard output by the fence of its attempt: no two attempts of any tasks share one.
type Outputs = BTreeMap<u64, Vec<u8>>;

/// All of it, in one reading: a consumer for each of thousands of tasks takes minutes.
async fn outputs(fleet: &Fleet) -> Outputs {
    let logs = feed::read_all(&fleet.js, &fleet.stream("LOGS"), &format!("{}.logs.>", fleet.prefix)).await;
    let mut chunks: Vec<_> = logs.iter().map(chunk_of).filter(|(chunk, _)| chunk.stream == LogStream::Stdout).collect();
    chunks.sort_by_key(|(chunk, _)| (chunk.fence, chunk.seq));
    let mut outputs = Outputs::new();
    for (chunk, bytes) in chunks {
        outputs.entry(chunk.fence).or_default().extend(bytes);
    }
    outputs
}

/// One task against what its kind allows.
async fn account(fleet: &Fleet, planned: &Planned, task: &Task, outputs: &Outputs, tally: &mut Tally) {
    let end = fleet.end(task).await;
    let reason = end.reason.expect("an end has a reason");
    let allowed = planned.kind.may_end_by();
    assert!(allowed.contains(&reason), "task {} ({:?}) ended by {reason}, allowed is {allowed:?}: {:?}", task.id, planned.kind, end.error);
    if let (Some(expected), Some(manifest)) = (planned.output(), &end.logs) {
        let found = outputs.get(&manifest.fence).map_or(&[][..], Vec::as_slice);
        assert_eq!(found.len(), expected.len(), "output of {} ({:?})", task.id, planned.kind);
        assert!(found == expected.as_bytes(), "output of {} ({:?}) is not what it wrote", task.id, planned.kind);
    }
    if let Kind::Fails { code } = planned.kind {
        assert_eq!(end.exit_code, Some(code), "{}", task.id);
    }
    if matches!(reason, Reason::AttemptsExhausted | Reason::InvalidAssignment | Reason::PolicyRefused) {
        tally.dead.insert(task.id.clone());
    }
    tally.attempts += end.task.attempt;
    tally.lost += lost(&fleet.chain(task));
    *tally.ends.entry(reason.to_string()).or_default() += 1;
}

/// Claims of a chain that no other event of their attempt gives up or ends.
fn lost(chain: &[Link]) -> usize {
    let count = |wanted: fn(&Event) -> bool| chain.iter().filter(|l| wanted(&l.event)).count();
    let claims: Vec<_> = chain.iter().filter(|l| l.event.event == EventKind::TaskStarted).map(|l| &l.event.nonce).collect();
    let given_up = count(|e| matches!(e.event, EventKind::TaskRetrying | EventKind::TaskReleased));
    let ended = chain.last().is_some_and(|l| l.event.event.is_terminal() && claims.last() == Some(&&l.event.nonce));
    claims.len() - given_up - usize::from(ended)
}
