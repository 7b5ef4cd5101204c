//! Cancellation: queued, running, waiting, and in the race between.

use windlass::task::log_chunk::LogStream;
use windlass::task::{EventKind, Outcome, Reason};

use crate::harness::job::Gate;
use crate::harness::{Fleet, Job};

#[tokio::test]
async fn a_queued_task_is_canceled_without_being_run() {
    let Some(fleet) = Fleet::start(&[]).await else { return };
    let marker = fleet.dir.join("ran");
    let task = fleet.submit(&Job::bash(format!("echo x > '{}'", marker.display()))).await;
    fleet.cancel(&task).await;
    fleet.worker(&[]);
    let end = fleet.end(&task).await;
    assert_eq!((end.event, end.reason, end.outcome), (EventKind::TaskFailed, Some(Reason::Canceled), Some(Outcome::Cancellation)));
    assert_eq!(end.task.attempt, 0);
    assert!(end.error.unwrap().contains("a test asked"), "it says why");
    assert!(!marker.exists());
    fleet.finish().await;
}

#[tokio::test]
async fn a_running_task_is_stopped_with_grace() {
    let Some(fleet) = Fleet::with_worker(2, &[]).await else { return };
    let polite = fleet.submit(&Job::bash("trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done").grace(30.0)).await;
    let rude = fleet.submit(&Job::bash("trap '' TERM; echo up; while :; do sleep 0.05; done").grace(0.3)).await;
    for task in [&polite, &rude] {
        fleet.output_has(task, "up").await;
        fleet.cancel(task).await;
    }
    let end = fleet.end(&polite).await;
    assert_eq!(end.reason, Some(Reason::Canceled), "exit 0 after a cancel is no success");
    assert_eq!(fleet.output(&polite, &end, LogStream::Stdout).await, b"up\nbye\n");
    let end = fleet.end(&rude).await;
    assert_eq!(end.reason, Some(Reason::Canceled));
    assert_eq!(fleet.processes_of(&rude.id), []);
    fleet.finish().await;
}

#[tokio::test]
async fn a_cancel_in_the_race_with_the_start_is_never_lost() {
    let Some(fleet) = Fleet::with_worker(8, &[]).await else { return };
    for round in 0..24 {
        let task = fleet.submit(&Job::bash("sleep 1000").grace(0.0)).await;
        match round % 3 {
            0 => {}
            1 => drop(fleet.event(&task, EventKind::TaskStarted).await),
            _ => tokio::task::yield_now().await,
        }
        fleet.cancel(&task).await;
        assert_eq!(fleet.end(&task).await.reason, Some(Reason::Canceled));
    }
    fleet.finish().await;
}

#[tokio::test]
async fn a_cancel_that_was_stored_first_holds_for_the_task_that_comes_later() {
    let Some(fleet) = Fleet::with_worker(1, &[]).await else { return };
    let job = Job::argv(["true"]);
    fleet.cancel(&crate::harness::Task { tenant: "acme".into(), id: job.task_id() }).await;
    let task = fleet.submit(&job).await;
    assert_eq!(fleet.end(&task).await.reason, Some(Reason::Canceled));
    fleet.finish().await;
}

#[tokio::test]
async fn a_task_that_waits_for_its_retry_is_canceled() {
    let Some(fleet) = Fleet::with_worker(1, &[]).await else { return };
    let backoff = serde_json::json!({"initial_ms": 1500, "factor": 1.0, "max_ms": 1500});
    let retry = serde_json::json!({"max_attempts": 3, "on": ["failure"], "backoff": backoff});
    let task = fleet.submit(&Job::bash("exit 1").set("/retry", retry)).await;
    fleet.event(&task, EventKind::TaskRetrying).await;
    fleet.cancel(&task).await;
    let end = fleet.end(&task).await;
    assert_eq!((end.reason, end.task.attempt), (Some(Reason::Canceled), 1));
    fleet.finish().await;
}

#[tokio::test]
async fn a_cancel_after_the_end_changes_nothing() {
    let Some(fleet) = Fleet::with_worker(1, &[]).await else { return };
    let task = fleet.submit(&Job::argv(["true"])).await;
    fleet.end(&task).await;
    fleet.cancel(&task).await;
    let other = fleet.submit(&Job::argv(["true"])).await;
    fleet.end(&other).await;
    assert_eq!(fleet.chain(&task).len(), 2);
    assert_eq!(fleet.chain(&task)[1].event.reason, Some(Reason::Ok));
    fleet.finish().await;
}

#[tokio::test]
async fn only_the_named_task_of_the_named_tenant_is_canceled() {
    let Some(fleet) = Fleet::with_worker(3, &[]).await else { return };
    let gate = Gate::new(&fleet.dir, "others");
    let job = Job::bash(gate.wait());
    let mine = fleet.submit(&job).await;
    let mut foreign = job.clone();
    foreign.tenant = "other".into();
    let theirs = fleet.submit(&foreign).await;
    for task in [&mine, &theirs] {
        fleet.event(task, EventKind::TaskStarted).await;
    }
    fleet.cancel(&mine).await;
    assert_eq!(fleet.end(&mine).await.reason, Some(Reason::Canceled));
    gate.open();
    assert_eq!(fleet.end(&theirs).await.reason, Some(Reason::Ok));
    fleet.finish().await;
}
