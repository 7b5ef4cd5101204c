//! Many faults at one time, and faults aimed at the moment after each step.

use std::time::Duration;

use rustix::process::Signal;
use windlass::task::log_chunk::LogStream;
use windlass::task::{EventKind, Reason};

use crate::harness::server::{Options, Server};
use crate::harness::{Fleet, Job, leftovers};

const SHORT: &[(&str, &str)] = &[("LEASE__ACK_WAIT_S", "2"), ("CLASSES__CPU_SHORT__MAX_ATTEMPTS", "20")];

/// Figures from a seed: the same run can be had again with `WINDLASS_TEST_SEED`.
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        let seed = std::env::var("WINDLASS_TEST_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| std::process::id().into());
        println!("WINDLASS_TEST_SEED={seed}");
        Self(seed)
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

#[tokio::test]
async fn a_worker_killed_right_after_its_claim_is_followed_by_another() {
    let Some(fleet) = Fleet::start(SHORT).await else { return };
    for _ in 0..3 {
        let worker = fleet.worker_named("victim", &[]);
        let task = fleet.submit(&Job::bash("sleep 0.3; echo done")).await;
        fleet.event(&task, EventKind::TaskStarted).await;
        worker.kill9().await;
        let second = fleet.worker_named("victim", &[]);
        let end = fleet.end(&task).await;
        assert_eq!((end.reason, end.task.attempt), (Some(Reason::Ok), 2));
        second.signal(Signal::TERM);
        second.exit(crate::harness::PATIENCE).await;
    }
    fleet.finish().await;
}

#[tokio::test]
async fn a_worker_killed_between_its_chunks_leaves_only_orphans() {
    let Some(fleet) = Fleet::start(SHORT).await else { return };
    let worker = fleet.worker(&[]);
    let task = fleet.submit(&Job::bash("for i in $(seq 60); do echo attempt $WINDLASS_ATTEMPT line $i; sleep 0.02; done")).await;
    fleet.output_has(&task, "attempt 1 line 5\n").await;
    worker.kill9().await;
    fleet.worker(&[]);
    let end = fleet.end(&task).await;
    let text = String::from_utf8(fleet.output(&task, &end, LogStream::Stdout).await).unwrap();
    assert_eq!(text.lines().count(), 60);
    assert!(text.lines().all(|l| l.starts_with("attempt 2 ")), "output of two attempts is mixed");
    fleet.finish().await;
}

#[tokio::test]
async fn a_worker_killed_right_after_its_commit_does_not_run_the_task_again() {
    let Some(fleet) = Fleet::start(SHORT).await else { return };
    let runs = fleet.dir.join("runs");
    for n in 1..=6 {
        let worker = fleet.worker_named("victim", &[]);
        let task = fleet.submit(&Job::bash(format!("echo x >> '{}'", runs.display()))).await;
        fleet.end(&task).await;
        worker.kill9().await;
        assert_eq!(std::fs::read_to_string(&runs).unwrap().lines().count(), n);
    }
    fleet.worker_named("victim", &[]);
    // Redeliveries of those whose ack was lost come before the check of the queue is satisfied.
    let probe = fleet.submit(&Job::argv(["true"])).await;
    fleet.end(&probe).await;
    fleet.finish().await;
}

#[tokio::test]
async fn everything_fails_at_once_and_every_task_ends_once() {
    let Some(server) = Server::private(Options::default()) else { return };
    let fleet = Fleet::on(server, &[SHORT, &[("SWEEPER__INTERVAL_S", "1")]].concat()).await;
    let mut dice = Dice::new();
    let names = ["a", "b", "c"];
    let settings = [("CAPACITY__SLOTS", "4")];
    let mut workers: Vec<_> = names.iter().map(|n| fleet.worker_named(n, &settings)).collect();
    let mut tasks = Vec::new();
    for _ in 0..60 {
        let (naps, lines) = (dice.roll(9), dice.roll(3000));
        let job = Job::bash(format!("echo up; sleep 0.{naps}; seq 1 {lines}; setsid sleep 30 >/dev/null 2>&1 & echo $WINDLASS_FENCE"));
        tasks.push(fleet.submit(&job).await);
    }
    for (n, task) in tasks.iter().enumerate() {
        fleet.end(task).await;
        if n % 4 != 3 || n > 50 {
            continue;
        }
        let victim = dice.roll(names.len() as u64) as usize;
        match dice.roll(4) {
            0 | 1 => {
                workers[victim].kill9().await;
                workers[victim] = fleet.worker_named(names[victim], &settings);
            }
            2 => {
                workers[victim].signal(Signal::STOP);
                // Longer than its lease: for a frozen process nothing else can tell when that is.
                tokio::time::sleep(Duration::from_millis(2500)).await;
                workers[victim].signal(Signal::CONT);
            }
            _ => {
                fleet.server.kill9();
                fleet.server.restart();
            }
        }
    }
    for task in &tasks {
        let end = fleet.end(task).await;
        assert_eq!(end.reason, Some(Reason::Ok), "{}: {:?}", task.id, end.error);
        let text = String::from_utf8(fleet.output(task, &end, LogStream::Stdout).await).unwrap();
        let fence = end.logs.unwrap().fence.to_string();
        assert_eq!(text.lines().last(), Some(fence.as_str()), "the output is of another attempt than the one that counts");
        assert_eq!(leftovers::gone(Duration::ZERO, || fleet.processes_of(&task.id)).await, []);
    }
    fleet.finish().await;
}
