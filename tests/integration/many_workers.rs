//! Any number of workers on one queue.

use std::collections::BTreeMap;

use windlass::task::{EventKind, Reason};

use crate::harness::{Fleet, Job};

#[tokio::test]
async fn three_hundred_tasks_over_three_workers_run_once_each() {
    let Some(fleet) = Fleet::start(&[]).await else { return };
    for _ in 0..3 {
        fleet.worker(&[("CAPACITY__SLOTS", "4")]);
    }
    let runs = fleet.open_dir("runs");
    let mut tasks = Vec::new();
    for n in 0..300 {
        let job = Job::bash(format!("echo run >> '{}/'$WINDLASS_TASK_ID", runs.display())).priority(["high", "normal", "low"][n % 3]);
        tasks.push(fleet.submit(&if n % 2 == 0 { job } else { job.msgpack() }).await);
    }
    let mut by_worker = BTreeMap::<_, u32>::new();
    for task in &tasks {
        let end = fleet.end(task).await;
        assert_eq!((end.reason, end.task.attempt, end.task.deliveries), (Some(Reason::Ok), 1, 1));
        *by_worker.entry(end.worker.worker_id).or_default() += 1;
        assert_eq!(std::fs::read_to_string(runs.join(&task.id)).unwrap(), "run\n", "{} ran not exactly once", task.id);
    }
    assert_eq!(by_worker.len(), 3, "all workers share the queue: {by_worker:?}");
    assert!(by_worker.values().all(|n| *n >= 20), "{by_worker:?}");
    fleet.finish().await;
}

#[tokio::test]
async fn a_duplicate_is_not_run_twice() {
    let Some(fleet) = Fleet::with_worker(2, &[]).await else { return };
    let count = fleet.dir.join("count");
    let job = Job::bash(format!("echo x >> '{}'", count.display()));
    let task = fleet.submit(&job).await;
    fleet.end(&task).await;
    // The same again: by then its message is gone, so the queue takes it.
    let subject = fleet.subject(&job, &task.id);
    let deadline = std::time::Instant::now() + crate::harness::PATIENCE;
    while fleet.publish(&subject, job.media_type(), job.encode()).await.is_err() {
        assert!(std::time::Instant::now() < deadline, "the ended task still blocks its subject");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let after = fleet.submit(&Job::argv(["true"])).await;
    fleet.end(&after).await;
    assert_eq!(std::fs::read_to_string(&count).unwrap(), "x\n");
    assert_eq!(fleet.chain(&task).iter().filter(|l| l.event.event == EventKind::TaskStarted).count(), 1);
    fleet.finish().await;
}

#[tokio::test]
async fn two_tenants_may_use_the_same_id_at_the_same_time() {
    let Some(fleet) = Fleet::with_worker(4, &[]).await else { return };
    let gate = crate::harness::job::Gate::new(&fleet.dir, "tenants");
    let mut job = Job::bash(format!("echo mine > file; {}; cat file; echo \\\"$WINDLASS_TENANT\\\" > \"$WINDLASS_RESULT\"", gate.wait()));
    let mut tasks = Vec::new();
    for tenant in ["one", "two", "three"] {
        job.tenant = tenant.into();
        tasks.push(fleet.submit(&job).await);
    }
    for task in &tasks {
        fleet.event(task, EventKind::TaskStarted).await;
    }
    gate.open();
    for task in &tasks {
        let end = fleet.end(task).await;
        assert_eq!((end.reason, end.task.attempt), (Some(Reason::Ok), 1), "{}: {:?}", task.tenant, end.error);
        assert_eq!(end.result.unwrap().value, task.tenant.as_str());
    }
    fleet.finish().await;
}

#[tokio::test]
async fn a_task_is_queued_once() {
    let Some(fleet) = Fleet::start(&[]).await else { return };
    let job = Job::argv(["true"]);
    let task = fleet.submit(&job).await;
    let refused = fleet.publish(&fleet.subject(&job, &task.id), job.media_type(), job.encode()).await;
    assert!(refused.is_err_and(|e| e.contains("per subject")), "the second message was queued beside the first");
    fleet.worker(&[]);
    fleet.end(&task).await;
    fleet.finish().await;
}
