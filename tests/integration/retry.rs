//! Another attempt: when, how often, how soon.

use std::time::Duration;

use serde_json::json;
use windlass::task::log_chunk::LogStream;
use windlass::task::{EventKind, Reason, Time};

use crate::harness::{Fleet, Job, PATIENCE};

fn in_ms(ms: u64) -> String {
    Time::now().plus(Duration::from_millis(ms)).to_string()
}

#[tokio::test]
async fn a_failure_is_tried_again_only_when_the_assignment_asks() {
    let Some(fleet) = Fleet::with_worker(2, &[]).await else { return };
    let plain = fleet.submit(&Job::bash("exit 3").set("/retry/max_attempts", 3)).await;
    let end = fleet.end(&plain).await;
    assert_eq!((end.reason, end.task.attempt), (Some(Reason::ExitNonzero), 1));
    let asked = fleet.submit(&Job::bash("echo try $WINDLASS_ATTEMPT; exit 3").set("/retry", retry(3, &["exit_nonzero"]))).await;
    let end = fleet.end(&asked).await;
    assert_eq!((end.reason, end.task.attempt, end.exit_code), (Some(Reason::ExitNonzero), 3, Some(3)));
    let kinds: Vec<_> = fleet.chain(&asked).iter().map(|l| l.event.event).collect();
    let (s, r) = (EventKind::TaskStarted, EventKind::TaskRetrying);
    assert_eq!(kinds, [s, r, s, r, s, EventKind::TaskFailed]);
    assert_eq!(fleet.output(&asked, &end, LogStream::Stdout).await, b"try 3\n");
    fleet.finish().await;
}

fn retry(max: u32, on: &[&str]) -> serde_json::Value {
    json!({"max_attempts": max, "on": on, "backoff": {"initial_ms": 200, "factor": 2.0, "max_ms": 10_000}})
}

#[tokio::test]
async fn a_later_attempt_may_succeed() {
    let Some(fleet) = Fleet::with_worker(2, &[]).await else { return };
    let task = fleet.submit(&Job::bash("[ $WINDLASS_ATTEMPT -ge 2 ]").set("/retry", retry(5, &["failure"]))).await;
    let end = fleet.end(&task).await;
    assert_eq!((end.reason, end.task.attempt, end.task.max_attempts), (Some(Reason::Ok), 2, 5));
    fleet.finish().await;
}

#[tokio::test]
async fn delays_between_attempts_grow_and_are_kept() {
    let Some(fleet) = Fleet::with_worker(2, &[]).await else { return };
    let task = fleet.submit(&Job::bash("exit 1").set("/retry", retry(4, &["failure"]))).await;
    fleet.end(&task).await;
    let chain = fleet.chain(&task);
    let mut delays = Vec::new();
    for pair in chain.windows(2).filter(|p| p[0].event.event == EventKind::TaskRetrying) {
        let promised = pair[0].event.retry.as_ref().unwrap();
        assert!(promised.will_retry);
        assert_eq!(promised.next_attempt, Some(pair[1].event.task.attempt));
        assert!(pair[1].event.time >= promised.not_before.unwrap(), "attempt {} came too early", pair[1].event.task.attempt);
        delays.push(promised.not_before.unwrap().after(pair[0].event.time).as_millis());
    }
    // 200, 400, 800 ms, with whatever jitter up to a half either way.
    assert_eq!(delays.len(), 3);
    for (delay, expected) in delays.iter().zip([200, 400, 800]) {
        assert!((expected / 2..=expected * 2).contains(delay), "{delays:?}");
    }
    assert!(delays.is_sorted(), "{delays:?}");
    fleet.finish().await;
}

#[tokio::test]
async fn a_waiting_retry_holds_no_slot() {
    let Some(fleet) = Fleet::with_worker(1, &[]).await else { return };
    let backoff = json!({"initial_ms": 3000, "factor": 1.0, "max_ms": 3000});
    let task = fleet
        .submit(&Job::bash("[ $WINDLASS_ATTEMPT -ge 2 ]").set("/retry", json!({"max_attempts": 2, "on": ["failure"], "backoff": backoff})))
        .await;
    fleet.event(&task, EventKind::TaskRetrying).await;
    let other = fleet.submit(&Job::argv(["true"])).await;
    fleet.end(&other).await;
    assert!(fleet.chain(&task).iter().all(|l| !l.event.event.is_terminal()), "the other one had to wait for the retry");
    assert_eq!(fleet.end(&task).await.reason, Some(Reason::Ok));
    fleet.finish().await;
}

#[tokio::test]
async fn a_timeout_is_tried_again_when_asked() {
    let Some(fleet) = Fleet::with_worker(2, &[]).await else { return };
    let job = Job::bash("[ $WINDLASS_ATTEMPT -ge 2 ] || sleep 1000").timeout(0.4).grace(0.0).set("/retry", retry(2, &["timeout"]));
    let end = fleet.end(&fleet.submit(&job).await).await;
    assert_eq!((end.reason, end.task.attempt), (Some(Reason::Ok), 2));
    fleet.finish().await;
}

#[tokio::test]
async fn a_task_is_not_started_before_its_time() {
    let Some(fleet) = Fleet::with_worker(2, &[]).await else { return };
    let time = in_ms(1500);
    let task = fleet.submit(&Job::argv(["true"]).set("/not_before", time.clone())).await;
    let now = fleet.submit(&Job::argv(["true"])).await;
    fleet.end(&now).await;
    assert!(fleet.chain(&task).is_empty(), "started before its time");
    let started = fleet.event(&task, EventKind::TaskStarted).await;
    assert!(started.time >= time.parse().unwrap(), "{} is before {time}", started.time);
    assert_eq!(fleet.end(&task).await.task.attempt, 1, "waiting costs no attempt");
    fleet.finish().await;
}

#[tokio::test]
async fn a_deadline_ends_a_task_before_or_while_it_runs() {
    let Some(fleet) = Fleet::with_worker(2, &[]).await else { return };
    let late = fleet.submit(&Job::argv(["true"]).set("/deadline", "2020-01-01T00:00:00Z")).await;
    let end = fleet.end(&late).await;
    assert_eq!((end.reason, end.task.attempt), (Some(Reason::DeadlinePassed), 0));
    let deadline = in_ms(1500);
    let job = Job::bash("echo up; sleep 1000")
        .grace(0.0)
        .set("/deadline", deadline.clone())
        .set("/retry", retry(3, &["timeout", "deadline_passed"]));
    let running = fleet.submit(&job).await;
    let end = fleet.end(&running).await;
    assert_eq!((end.reason, end.task.attempt), (Some(Reason::DeadlinePassed), 1), "a deadline does not move: no other attempt");
    assert!(end.time >= deadline.parse().unwrap());
    assert_eq!(fleet.output(&running, &end, LogStream::Stdout).await, b"up\n");
    fleet.finish().await;
}

#[tokio::test]
async fn a_task_that_kills_its_workers_ends_when_its_attempts_are_used() {
    let Some(fleet) = Fleet::start(&[("LEASE__ACK_WAIT_S", "1")]).await else { return };
    let job = Job::bash("echo up; sleep 1000").set("/retry/max_attempts", 2);
    let task = fleet.submit(&job).await;
    for attempt in 1..=2 {
        let worker = fleet.worker(&[]);
        fleet.attempt(&task, attempt).await;
        worker.kill9().await;
    }
    fleet.worker(&[]);
    let end = fleet.end(&task).await;
    assert_eq!((end.reason, end.task.attempt), (Some(Reason::AttemptsExhausted), 2), "{:?}", end.error);
    assert!(end.error.unwrap().contains("worker-1"), "it names the worker that was lost");
    // The letter follows the end, for the lost worker might still have finished, and the message waits for it.
    fleet.left_the_queue(&task).await;
    let dead = fleet.dead().await;
    assert_eq!(dead.len(), 1, "a task that never came to an end is a dead letter");
    assert_eq!(dead[0].header("Windlass-Reason"), Some("attempts_exhausted"));
    assert_eq!(dead[0].header("Windlass-Task-Id"), Some(task.id.as_str()));
    // Whoever finds such an end owes the letter: the worker that stored it may have died before.
    fleet.publish(&fleet.subject(&job, &task.id), job.media_type(), job.encode()).await.expect("its message is gone");
    fleet.left_the_queue(&task).await;
    assert_eq!(fleet.dead().await.len(), 2, "another message has a letter of its own");
    assert_eq!(fleet.chain(&task).last().map(|link| link.event.seq), Some(end.seq), "nothing follows an end");
    fleet.finish().await;
}

#[tokio::test]
async fn a_fault_of_the_platform_is_tried_again_unasked() {
    let Some(fleet) = Fleet::start(&[]).await else { return };
    let worker = fleet.worker(&[]);
    let warm = fleet.submit(&Job::argv(["true"])).await;
    fleet.end(&warm).await;
    // Its work directory cannot be made: a file stands where the directory was.
    let instance = std::fs::read_dir(worker.state_dir()).unwrap().flatten().next().unwrap().path();
    std::fs::rename(instance.join("work"), instance.join("work-away")).unwrap();
    std::fs::write(instance.join("work"), "").unwrap();
    let task = fleet.submit(&Job::argv(["true"])).await;
    let event = fleet.event(&task, EventKind::TaskRetrying).await;
    assert_eq!(event.reason, Some(Reason::WorkspaceFailed));
    std::fs::remove_file(instance.join("work")).unwrap();
    std::fs::rename(instance.join("work-away"), instance.join("work")).unwrap();
    let end = tokio::time::timeout(PATIENCE, fleet.end(&task)).await.unwrap();
    assert_eq!((end.reason, end.task.attempt > 1), (Some(Reason::Ok), true));
    fleet.finish().await;
}
