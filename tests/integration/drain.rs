//! SIGTERM: drain, deadline, abort.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use windlass::task::{EventKind, Reason};

use crate::harness::job::Gate;
use crate::harness::{Fleet, Job, PATIENCE};

#[tokio::test]
async fn a_draining_worker_finishes_what_runs_and_takes_nothing_new() {
    let Some(fleet) = Fleet::start(&[]).await else { return };
    let worker = fleet.worker(&[("CAPACITY__SLOTS", "1")]);
    let gate = Gate::new(&fleet.dir, "drain");
    let running = fleet.submit(&Job::bash(format!("trap 'exit 9' TERM; {}; echo finished", gate.wait()))).await;
    fleet.event(&running, EventKind::TaskStarted).await;
    let waiting = fleet.submit(&Job::argv(["true"])).await;
    worker.signal(Signal::TERM);
    let deadline = Instant::now() + PATIENCE;
    while !worker.log().contains("draining") {
        assert!(Instant::now() < deadline, "{}", worker.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    gate.open();
    assert!(worker.exit(PATIENCE).await.success());
    assert_eq!(fleet.end(&running).await.reason, Some(Reason::Ok), "drained means finished, not stopped");
    assert!(fleet.chain(&waiting).is_empty(), "a draining worker took new work");
    fleet.worker(&[]);
    // ack_wait is 30 s here: it comes at once only if it was never held, or given back.
    let second = Instant::now();
    fleet.end(&waiting).await;
    assert!(second.elapsed() < Duration::from_secs(10), "unstarted work was kept for {:?}", second.elapsed());
    fleet.finish().await;
}

#[tokio::test]
async fn after_the_deadline_what_runs_is_released_and_does_not_count() {
    let Some(fleet) = Fleet::start(&[("WORKER__DRAIN_TIMEOUT_S", "0.5")]).await else { return };
    let worker = fleet.worker(&[]);
    let job = Job::bash("echo up; [ $WINDLASS_ATTEMPT -gt 1 ] || sleep 1000").grace(0.2).set("/retry/max_attempts", 1);
    let task = fleet.submit(&job).await;
    fleet.output_has(&task, "up").await;
    worker.signal(Signal::TERM);
    assert!(worker.exit(PATIENCE).await.success());
    let released = fleet.event(&task, EventKind::TaskReleased).await;
    assert_eq!(released.task.attempt, 1);
    assert_eq!(fleet.processes_of(&task.id), []);
    let second = Instant::now();
    fleet.worker(&[]);
    let end = fleet.end(&task).await;
    assert_eq!(
        (end.reason, end.task.attempt, end.task.released_attempts),
        (Some(Reason::Ok), 2, 1),
        "max_attempts is 1, the release did not count"
    );
    assert!(second.elapsed() < Duration::from_secs(10), "released work waits for nothing: {:?}", second.elapsed());
    fleet.finish().await;
}

#[tokio::test]
async fn the_second_signal_aborts() {
    let Some(fleet) = Fleet::start(&[("WORKER__DRAIN_TIMEOUT_S", "600")]).await else { return };
    let worker = fleet.worker(&[]);
    let job = Job::bash("trap '' TERM; echo up; [ $WINDLASS_ATTEMPT -gt 1 ] || while :; do sleep 0.1; done").grace(60.0);
    let task = fleet.submit(&job).await;
    fleet.output_has(&task, "up").await;
    worker.signal(Signal::TERM);
    let deadline = Instant::now() + PATIENCE;
    while !worker.log().contains("draining") {
        assert!(Instant::now() < deadline, "{}", worker.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let asked = Instant::now();
    worker.signal(Signal::TERM);
    worker.exit(PATIENCE).await;
    assert!(asked.elapsed() < Duration::from_secs(15), "the second signal waited {:?}", asked.elapsed());
    fleet.event(&task, EventKind::TaskReleased).await;
    fleet.worker(&[]);
    assert_eq!(fleet.end(&task).await.reason, Some(Reason::Ok));
    fleet.finish().await;
}

#[tokio::test]
async fn an_idle_worker_ends_at_once() {
    let Some(fleet) = Fleet::start(&[]).await else { return };
    let worker = fleet.worker(&[]);
    let task = fleet.submit(&Job::argv(["true"])).await;
    fleet.end(&task).await;
    let asked = Instant::now();
    worker.signal(Signal::INT);
    assert!(worker.exit(PATIENCE).await.success());
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    fleet.finish().await;
}

#[tokio::test]
async fn a_worker_that_waits_for_its_server_ends_when_asked() {
    let Some(fleet) = Fleet::start(&[]).await else { return };
    let worker = fleet.worker(&[("BUS__SERVER", "nats://127.0.0.1:1")]);
    let deadline = Instant::now() + PATIENCE;
    while !worker.log().contains("supervisor ready") {
        assert!(Instant::now() < deadline, "{}", worker.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    worker.signal(Signal::TERM);
    assert!(worker.exit(PATIENCE).await.success());
    fleet.finish_unchecked().await;
}
