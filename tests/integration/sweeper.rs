//! The sweeper: what crashes and operators leave behind is mended.

use rustix::process::Signal;
use windlass::task::{EventKind, Reason};

use crate::harness::{Fleet, Job, PATIENCE};

const SWEEPING: &[(&str, &str)] = &[("LEASE__ACK_WAIT_S", "1"), ("SWEEPER__INTERVAL_S", "0.5")];

/// A task whose worker was killed, and then its message was taken out of the queue.
async fn orphan(fleet: &Fleet, job: &Job) -> crate::harness::Task {
    let worker = fleet.worker(&[]);
    let task = fleet.submit(job).await;
    fleet.event(&task, EventKind::TaskStarted).await;
    worker.kill9().await;
    let queued = fleet.queued().await;
    let message = queued.iter().find(|m| m.subject.ends_with(&task.id)).expect("still queued");
    let stream = fleet.js.get_stream(fleet.stream("TASKS")).await.unwrap();
    stream.delete_message(message.sequence).await.unwrap();
    assert!(fleet.queued().await.is_empty());
    task
}

#[tokio::test]
async fn a_chain_whose_message_is_gone_is_queued_again() {
    let Some(fleet) = Fleet::start(SWEEPING).await else { return };
    for job in [Job::bash("[ $WINDLASS_ATTEMPT -gt 1 ] || sleep 1000"), Job::bash("[ $WINDLASS_ATTEMPT -gt 1 ] || sleep 1000").msgpack()] {
        let task = orphan(&fleet, &job).await;
        let worker = fleet.worker(&[]);
        let end = fleet.end(&task).await;
        assert_eq!((end.reason, end.task.attempt), (Some(Reason::Ok), 2));
        assert_eq!(end.task.assignment_sha256, windlass::wire::sha256_hex(&job.encode()), "queued again byte for byte");
        worker.signal(Signal::TERM);
        worker.exit(PATIENCE).await;
    }
    fleet.finish().await;
}

#[tokio::test]
async fn a_chain_whose_assignment_is_lost_gets_an_end() {
    let Some(fleet) = Fleet::start(SWEEPING).await else { return };
    // Near max_payload: task_started cannot carry the assignment.
    let job = Job::bash("sleep 1000").set("/context", "x".repeat(1_000_000));
    let task = orphan(&fleet, &job).await;
    fleet.worker(&[]);
    let end = fleet.end(&task).await;
    assert_eq!((end.event, end.reason), (EventKind::TaskFailed, Some(Reason::WorkerLost)), "{:?}", end.error);
    fleet.finish().await;
}

#[tokio::test]
async fn another_tenants_task_of_the_same_id_hides_nothing() {
    let Some(fleet) = Fleet::start(SWEEPING).await else { return };
    let task = orphan(&fleet, &Job::bash("[ $WINDLASS_ATTEMPT -gt 1 ] || sleep 1000")).await;
    let mut theirs = Job::argv(["true"]).id(task.id.clone()).set("/not_before", "2126-01-01T00:00:00Z");
    theirs.tenant = "other".into();
    let waiting = fleet.submit(&theirs).await;
    fleet.worker(&[]);
    assert_eq!(fleet.end(&task).await.reason, Some(Reason::Ok));
    assert!(fleet.chain(&waiting).is_empty());
    fleet.finish_unchecked().await;
}

#[tokio::test]
async fn a_queued_message_whose_chain_has_ended_is_removed() {
    // No worker serves the class's queue of this priority in time to do it the usual way: the worker has no free slot.
    let Some(fleet) = Fleet::start(SWEEPING).await else { return };
    fleet.worker(&[("CAPACITY__SLOTS", "1")]);
    let job = Job::argv(["true"]);
    let task = fleet.submit(&job).await;
    fleet.end(&task).await;
    let gate = crate::harness::job::Gate::new(&fleet.dir, "sweep");
    let blocker = fleet.submit(&Job::bash(gate.wait())).await;
    fleet.event(&blocker, EventKind::TaskStarted).await;
    fleet.publish(&fleet.subject(&job, &task.id), job.media_type(), job.encode()).await.expect("its message is gone");
    let deadline = std::time::Instant::now() + PATIENCE;
    while fleet.queued().await.iter().any(|m| m.subject.ends_with(&format!(".{}", task.id))) {
        assert!(std::time::Instant::now() < deadline, "still queued although its chain has ended");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(fleet.chain(&task).len(), 2);
    gate.open();
    fleet.finish().await;
}

#[tokio::test]
async fn sweeping_leaves_healthy_tasks_alone() {
    let Some(fleet) = Fleet::start(SWEEPING).await else { return };
    fleet.worker(&[]);
    fleet.worker(&[]);
    // Runs for several times twice the ack_wait and several sweeps.
    let long = fleet.submit(&Job::bash("sleep 5")).await;
    let end = fleet.end(&long).await;
    assert_eq!((end.reason, end.task.attempt, fleet.chain(&long).len()), (Some(Reason::Ok), 1, 2));
    fleet.finish().await;
}
