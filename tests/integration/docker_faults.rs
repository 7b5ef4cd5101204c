//! Containers when somebody else is at them, and engines that go away: a typed outcome, another attempt, and nothing left.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;
use windlass::task::{EventKind, Outcome, Reason};
use windlass::wire::sha256_hex;

use crate::harness::docker::relay::Relay;
use crate::harness::orchestrator::Link;
use crate::harness::worker::Worker;
use crate::harness::{Engine, Fleet, Job, PATIENCE, Server, Task, leftovers};

/// A fleet with an engine of its own, and a worker that runs tasks there.
async fn with_own_engine(settings: &[(&str, &str)]) -> Option<(Fleet, Arc<Engine>, Arc<Worker>)> {
    let (server, engine) = (Server::shared()?, Engine::private(&[])?);
    let fleet = Fleet::with_engine(server, Arc::clone(&engine), settings).await;
    let worker = fleet.worker_named("host", &[]);
    worker.ready().await;
    Some((fleet, engine, worker))
}

/// Its first attempt stays until somebody ends it.
fn stays() -> Job {
    Job::container_script("echo attempt $WINDLASS_ATTEMPT; [ $WINDLASS_ATTEMPT -gt 1 ] || sleep 1000")
        .set("/retry", json!({"backoff": {"initial_ms": 100, "factor": 1.0, "max_ms": 100}}))
}

/// A task in its first attempt, with its container.
async fn running(fleet: &Fleet, engine: &Engine) -> (Task, String) {
    let task = fleet.submit(&stays()).await;
    fleet.output_has(&task, "attempt 1").await;
    let container = engine.container_of(&task).await;
    (task, container)
}

async fn second_attempt_works(fleet: &Fleet, task: &Task) {
    let end = fleet.end(task).await;
    assert_eq!((end.reason, end.task.attempt), (Some(Reason::Ok), 2), "{end:?}\n{}", fleet.logs());
}

#[tokio::test]
async fn an_engine_that_is_killed_costs_an_attempt_and_no_more() {
    let Some((fleet, engine, _worker)) = with_own_engine(&[]).await else { return };
    let (task, _) = running(&fleet, &engine).await;
    engine.kill9();
    let retrying = fleet.event(&task, EventKind::TaskRetrying).await;
    assert_eq!((retrying.reason, retrying.outcome), (Some(Reason::DockerUnavailable), Some(Outcome::Error)), "{retrying:?}");
    assert_eq!(fleet.processes_of(&task.id), [], "what ran is not stopped, and its attempt is over");
    engine.restart();
    second_attempt_works(&fleet, &task).await;
    fleet.finish().await;
}

#[tokio::test]
async fn an_engine_that_is_restarted_costs_an_attempt_and_no_more() {
    let Some((fleet, engine, _worker)) = with_own_engine(&[]).await else { return };
    let (task, _) = running(&fleet, &engine).await;
    // It stops its containers first: their deaths are not the task's doing.
    engine.stop();
    engine.restart();
    let retrying = fleet.event(&task, EventKind::TaskRetrying).await;
    assert_eq!(retrying.reason, Some(Reason::DockerUnavailable), "{retrying:?}");
    second_attempt_works(&fleet, &task).await;
    fleet.finish().await;
}

#[tokio::test]
async fn without_an_engine_containers_wait_unclaimed_and_others_run() {
    let Some((fleet, engine, _worker)) = with_own_engine(&[]).await else { return };
    engine.stop();
    let container = fleet.submit(&Job::container(["true"])).await;
    // Two rounds of native tasks through the same queue: the container has been met by then.
    for _ in 0..2 {
        let native = fleet.submit(&Job::argv(["true"])).await;
        assert_eq!(fleet.end(&native).await.reason, Some(Reason::Ok));
    }
    // A worker that starts meanwhile is in the same place.
    fleet.worker_named("late", &[]).ready().await;
    assert!(fleet.chain(&container).is_empty(), "an attempt was spent on an engine that is not there");
    engine.restart();
    let end = fleet.end(&container).await;
    assert_eq!((end.reason, end.task.attempt), (Some(Reason::Ok), 1), "{end:?}");
    fleet.finish().await;
}

#[tokio::test]
async fn an_engine_that_stands_still_does_not_keep_a_task_from_ending() {
    let Some((fleet, engine, _worker)) = with_own_engine(&[("DOCKER__REQUEST_TIMEOUT_S", "2")]).await else { return };
    let (task, _) = running(&fleet, &engine).await;
    engine.freeze();
    fleet.cancel(&task).await;
    let end = tokio::time::timeout(PATIENCE, fleet.end(&task)).await;
    engine.thaw();
    let end = end.expect("an end, although the engine does not answer");
    assert_eq!(end.reason, Some(Reason::Canceled), "{end:?}");
    let next = fleet.submit(&Job::container(["true"])).await;
    assert_eq!(fleet.end(&next).await.reason, Some(Reason::Ok));
    fleet.finish().await;
}

#[tokio::test]
async fn a_create_that_outlives_its_worker_leaves_no_container() {
    let (Some(server), Some(engine)) = (Server::shared(), Engine::private(&[])) else { return };
    let relay = Relay::holding(&engine, "POST /containers/create");
    let fleet = Fleet::with_engine(server, Arc::clone(&engine), &[("LEASE__ACK_WAIT_S", "2")]).await;
    let worker = fleet.worker_named("host", &[("DOCKER__HOST", &relay.host())]);
    let task = fleet.submit(&stays()).await;
    relay.held().await;
    // The engine has the request before its worker dies, and carries it out afterwards.
    engine.freeze();
    relay.pass();
    worker.kill9().await;
    engine.thaw();
    let deadline = Instant::now() + PATIENCE;
    while !engine.happened().iter().any(|(_, action, _)| action == "create") {
        assert!(Instant::now() < deadline, "the engine did not make it: {}", engine.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let left = leftovers::gone(PATIENCE, || engine.left_of(Some(fleet.root()))).await;
    assert!(left.is_empty(), "nobody removes what was made for a dead worker: {left:?}");
    fleet.worker_named("host", &[]);
    second_attempt_works(&fleet, &task).await;
    fleet.finish().await;
}

#[tokio::test]
async fn a_container_that_is_removed_from_outside_ends_with_a_reason() {
    let Some(fleet) = Fleet::docker(&[]).await else { return };
    let engine = fleet.engine.clone().unwrap();
    fleet.worker(&[]);
    let (task, container) = running(&fleet, &engine).await;
    engine.does("DELETE", &format!("/containers/{container}?force=1"), &[204]);
    // The engine kills it first, and removes it when it is dead: who looks in between sees how it ended, later nobody does.
    let said = |link: &Link| link.event.reason.is_some().then(|| link.event.clone());
    let first = fleet.until(&task, "an outcome", |chain| chain.iter().find_map(said)).await;
    match first.reason {
        Some(Reason::DockerUnavailable) => second_attempt_works(&fleet, &task).await,
        reason => assert_eq!((reason, first.exit_code), (Some(Reason::ExitNonzero), Some(137)), "{first:?}"),
    }
    fleet.finish().await;
}

#[tokio::test]
async fn a_container_that_is_killed_from_outside_has_its_exit_status() {
    let Some(fleet) = Fleet::docker(&[]).await else { return };
    let engine = fleet.engine.clone().unwrap();
    fleet.worker(&[]);
    let (task, container) = running(&fleet, &engine).await;
    engine.does("POST", &format!("/containers/{container}/kill?signal=KILL"), &[204]);
    let end = fleet.end(&task).await;
    assert_eq!((end.reason, end.exit_code), (Some(Reason::ExitNonzero), Some(137)), "{end:?}");
    assert_eq!(end.usage.unwrap().oom_kills, 0);
    fleet.finish().await;
}

#[tokio::test]
async fn a_container_that_is_paused_from_outside_still_ends() {
    let Some(fleet) = Fleet::docker(&[]).await else { return };
    let engine = fleet.engine.clone().unwrap();
    fleet.worker(&[]);
    // Frozen processes do not even die of SIGKILL.
    let task = fleet.submit(&Job::container_script("echo up; sleep 1000").timeout(3.0).grace(0.2)).await;
    fleet.output_has(&task, "up").await;
    let container = engine.container_of(&task).await;
    engine.does("POST", &format!("/containers/{container}/pause"), &[204]);
    assert_eq!(fleet.end(&task).await.reason, Some(Reason::Timeout));
    fleet.finish().await;
}

#[tokio::test]
async fn two_hundred_megabytes_arrive_whole_and_in_order() {
    const BYTES: usize = 200_000_000;
    let Some(fleet) = Fleet::docker(&[]).await else { return };
    let worker = fleet.worker(&[]);
    let task = fleet.submit(&Job::container_script(format!("yes 0123456789abcdef | head -c {BYTES}")).timeout(300.0)).await;
    let end = fleet.end(&task).await;
    let stdout = &end.logs.as_ref().expect("a manifest").stdout;
    assert_eq!((end.reason, stdout.bytes, stdout.dropped_bytes), (Some(Reason::Ok), BYTES as u64, 0), "{end:?}");
    let expected: Vec<u8> = b"0123456789abcdef\n".iter().copied().cycle().take(BYTES).collect();
    assert_eq!(stdout.sha256, sha256_hex(&expected), "not the bytes in their order");
    assert!(worker.peak_memory() < 200 << 20, "{} bytes for a flood that goes through the disk", worker.peak_memory());
    fleet.finish().await;
}

#[tokio::test]
async fn a_worker_that_is_drained_while_its_engine_is_away_ends() {
    let Some((fleet, engine, worker)) = with_own_engine(&[("WORKER__DRAIN_TIMEOUT_S", "1")]).await else { return };
    let (task, _) = running(&fleet, &engine).await;
    engine.kill9();
    worker.signal(Signal::TERM);
    assert!(worker.exit(PATIENCE).await.success());
    assert_eq!(fleet.processes_of(&task.id), []);
    engine.restart();
    fleet.worker_named("host", &[]);
    let end = fleet.end(&task).await;
    assert_eq!((end.reason, end.task.attempt), (Some(Reason::Ok), 2), "{end:?}");
    let left = leftovers::gone(Duration::from_secs(10), || engine.left_of(None)).await;
    assert!(left.is_empty(), "{left:?}");
    fleet.finish().await;
}
