//! Classes that a worker has the means for are served, and the others are left alone, with a reason for everybody who asks.

use std::sync::Arc;

use serde_json::Value;
use windlass::task::Reason;

use crate::harness::docker::{Engine, IMAGE};
use crate::harness::job::Gate;
use crate::harness::{Fleet, Job, PATIENCE, Server};

fn long(mut job: Job) -> Job {
    "cpu_long".clone_into(&mut job.class);
    job
}

/// Why a class is not served, as `/readyz` has it.
fn why<'a>(body: &'a Value, class: &str) -> Option<&'a str> {
    body["unserved"][class].as_str()
}

#[tokio::test]
async fn a_class_of_containers_waits_for_the_engine_and_runs_when_it_answers() {
    let (Some(server), Some(engine)) = (Server::shared(), Engine::private(&[])) else { return };
    let fleet = Fleet::with_engine(server, Arc::clone(&engine), &[]).await;
    engine.stop();
    let worker = fleet.worker(&[]);
    let told = |status: u16, body: &Value| status == 200 && why(body, "cpu_long").is_some_and(|why| why.contains("does not answer"));
    let body = worker.readiness("told that there is no engine", told).await;
    assert!(why(&body, "gpu").is_some_and(|why| why.contains("1 GPUs each")), "{body}");
    assert!(why(&body, "gpu_slurm").is_some_and(|why| why.contains("no worker of this version")), "{body}");
    assert!(why(&body, "cpu_short").is_none(), "{body}");
    let waits = fleet.submit(&long(Job::container(["echo", "there"]))).await;
    let native = fleet.submit(&Job::argv(["true"])).await;
    assert_eq!(fleet.end(&native).await.reason, Some(Reason::Ok), "what needs no engine goes on");
    engine.restart();
    let end = fleet.end(&waits).await;
    let counted = (end.reason, end.task.attempt, end.task.deliveries);
    assert_eq!(counted, (Some(Reason::Ok), 1, 1), "it was left in the queue until then: {:?}", end.error);
    worker.readiness("serving containers", |status, body| status == 200 && why(body, "cpu_long").is_none()).await;
    // A worker that had an engine and has none is not what it was.
    engine.stop();
    worker.not_ready_for(&["engine"]).await;
    worker.readiness("without its class", |_, body| why(body, "cpu_long").is_some()).await;
    engine.restart();
    worker.is_fit().await;
    fleet.finish().await;
}

#[tokio::test]
async fn what_is_not_served_needs_no_queues_and_is_told_to_operators() {
    let Some(fleet) = Fleet::start(&[("DOCKER__HOST", "unix:///nonexistent/windlass.sock")]).await else { return };
    let tasks = fleet.js.get_stream(fleet.stream("TASKS")).await.unwrap();
    // As streams are that an older version has made.
    for consumer in ["cpu_long-high", "cpu_long-normal", "cpu_long-low", "gpu-high", "gpu-normal", "gpu-low"] {
        tasks.delete_consumer(consumer).await.unwrap();
    }
    let worker = fleet.worker(&[]);
    worker.is_fit().await;
    worker.says(&["class=cpu_long", "not served here for now"]).await;
    worker.says(&["class=gpu_slurm", "not served here"]).await;
    let deadline = std::time::Instant::now() + PATIENCE;
    let line = loop {
        let output = fleet.cli(["workers", "-o", "json"]).output().await.unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text.lines().next().map(|line| serde_json::from_str::<Value>(line).unwrap());
        if let Some(line) = line.filter(|line| why(line, "cpu_long").is_some_and(|why| why.contains("does not answer"))) {
            break line;
        }
        assert!(std::time::Instant::now() < deadline, "{text}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    assert_eq!(line["classes"], serde_json::json!(["cpu_short"]), "{line}");
    assert!(why(&line, "gpu").is_some() && why(&line, "gpu_slurm").is_some(), "{line}");
    fleet.finish().await;
}

#[tokio::test]
async fn a_container_is_run_from_the_command_line() {
    let Some(fleet) = Fleet::docker(&[]).await else { return };
    fleet.worker(&[]);
    let output = fleet.cli(["run", "-q", "--image", IMAGE, "-e", "A=b c", "--", "sh", "-c", "echo \"$A\"; exit 7"]).output();
    let output = tokio::time::timeout(PATIENCE, output).await.expect("it ends").unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stdout).as_ref()), (Some(7), "b c\n"), "{output:?}");
    let queued = fleet.cli(["list", "-o", "json"]).output().await.unwrap();
    let listed: Value = serde_json::from_slice(&queued.stdout).unwrap();
    assert_eq!(listed["class"], "cpu_long", "where containers go unless told otherwise: {listed}");
    fleet.finish().await;
}

/// Small tasks in a flood; far more of them than one second of looking takes.
const FLOOD: usize = 200;

#[tokio::test]
async fn who_takes_more_is_not_kept_out_for_ever_by_a_flood_of_who_takes_less() {
    let settings = [("CLASSES__LARGE__CPUS", "4"), ("CAPACITY__CPUS", "4"), ("CAPACITY__SLOTS", "8")];
    let Some(fleet) = Fleet::start(&settings).await else { return };
    fleet.worker(&settings);
    // All four of them never end at the same time.
    let small = |n: usize| Job::argv(["sleep".to_owned(), format!("0.{}", 17 + 2 * (n % 5))]);
    let mut flood = std::collections::VecDeque::new();
    for n in 0..12 {
        flood.push_back(fleet.submit(&small(n)).await);
    }
    let mut large = Job::argv(["true"]);
    "large".clone_into(&mut large.class);
    let large = fleet.submit(&large).await;
    let mut after = 0;
    while !fleet.chain(&large).iter().any(|link| link.event.event.is_terminal()) {
        after += 1;
        assert!(after < FLOOD, "it did not run beside {after} small ones");
        fleet.end(&flood.pop_front().expect("there are always twelve")).await;
        flood.push_back(fleet.submit(&small(after)).await);
    }
    assert_eq!(fleet.end(&large).await.reason, Some(Reason::Ok));
    for small in flood {
        assert_eq!(fleet.end(&small).await.reason, Some(Reason::Ok));
    }
    fleet.finish().await;
}

#[tokio::test]
async fn who_has_no_room_keeps_nobody_from_what_is_free() {
    let settings = [("CLASSES__LARGE__CPUS", "4"), ("CAPACITY__CPUS", "4"), ("CAPACITY__SLOTS", "8")];
    let Some(fleet) = Fleet::start(&settings).await else { return };
    fleet.worker(&settings);
    let gate = Gate::new(&fleet.dir, "long");
    let long = fleet.submit(&Job::bash(gate.wait())).await;
    fleet.running(&long).await;
    // Far longer than any request waits at a queue.
    for _ in 0..6 {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        let small = fleet.submit(&Job::argv(["true"])).await;
        assert_eq!(fleet.end(&small).await.reason, Some(Reason::Ok));
    }
    gate.open();
    assert_eq!(fleet.end(&long).await.reason, Some(Reason::Ok));
    fleet.finish().await;
}
