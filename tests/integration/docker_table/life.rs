//! Canceled, tried again, drained, released, taken over.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use windlass::task::{EventKind, Outcome, Reason, Time};

use super::{Home, World, reason};
use crate::harness::PATIENCE;
use crate::harness::job::Gate;

pub async fn canceled_while_queued(home: Home) {
    let Some(world) = World::idle(home, &[]).await else { return };
    let marker = world.dir.join("ran");
    let task = world.submit(&world.script(format!("echo x > '{}'", marker.display()))).await;
    world.cancel(&task).await;
    world.worker(&[]);
    let end = world.end(&task).await;
    assert_eq!((reason(&end), end.outcome, end.task.attempt), (Reason::Canceled, Some(Outcome::Cancellation), 0));
    assert!(!marker.exists());
    world.finish().await;
}

pub async fn canceled_while_it_runs(home: Home) {
    let Some(world) = World::new(home).await else { return };
    let loops = "echo up; while :; do sleep 0.05; done";
    let polite = world.submit(&world.script(format!("trap 'echo bye; exit 0' TERM; {loops}")).grace(30.0)).await;
    let rude = world.submit(&world.script(format!("trap '' TERM; {loops}")).grace(0.3)).await;
    for task in [&polite, &rude] {
        world.output_has(task, "up").await;
        world.cancel(task).await;
    }
    let end = world.told(&polite).await;
    assert_eq!((reason(&end), world.stdout(&polite, &end).await.as_str()), (Reason::Canceled, "up\nbye\n"), "exit 0 is no success");
    assert_eq!(reason(&world.told(&rude).await), Reason::Canceled);
    // Wherever on its way it is met.
    for round in 0..6 {
        let task = world.submit(&world.script("sleep 1000").grace(0.0)).await;
        if round % 2 == 1 {
            world.event(&task, EventKind::TaskStarted).await;
        }
        world.cancel(&task).await;
        assert_eq!(reason(&world.end(&task).await), Reason::Canceled);
        assert_eq!(world.processes_of(&task.id), []);
    }
    world.finish().await;
}

pub async fn retry(home: Home) {
    let Some(world) = World::new(home).await else { return };
    let retry = json!({"max_attempts": 3, "on": ["failure"], "backoff": {"initial_ms": 50, "factor": 1.0, "max_ms": 50}});
    let job = world.script("echo try $WINDLASS_ATTEMPT; [ $WINDLASS_ATTEMPT -ge 3 ] || exit 3").set("/retry", retry);
    let (task, end) = world.run(&job).await;
    assert_eq!((reason(&end), end.task.attempt), (Reason::Ok, 3));
    let (started, retrying) = (EventKind::TaskStarted, EventKind::TaskRetrying);
    let kinds: Vec<_> = world.chain(&task).iter().map(|link| link.event.event).collect();
    assert_eq!(kinds, [started, retrying, started, retrying, started, EventKind::TaskCompleted]);
    assert_eq!(world.stdout(&task, &end).await, "try 3\n");
    world.finish().await;
}

pub async fn deadline(home: Home) {
    let Some(world) = World::new(home).await else { return };
    let in_time = Time::now().plus(Duration::from_millis(2500)).to_string();
    let (_, end) = world.run(&world.script("sleep 1000").grace(0.0).set("/deadline", in_time.clone())).await;
    assert_eq!((reason(&end), end.outcome), (Reason::DeadlinePassed, Some(Outcome::Timeout)));
    assert!(end.time >= in_time.parse().unwrap());
    let late = world.submit(&world.argv(&["true"]).set("/deadline", "2020-01-01T00:00:00Z")).await;
    let end = world.end(&late).await;
    assert_eq!((reason(&end), end.task.attempt), (Reason::DeadlinePassed, 0));
    world.finish().await;
}

pub async fn drained(home: Home) {
    let Some(world) = World::idle(home, &[]).await else { return };
    let worker = world.worker(&[("CAPACITY__SLOTS", "1")]);
    let gate = Gate::new(&world.dir, "drain");
    let running = world.submit(&world.script(format!("trap 'exit 9' TERM; echo up; {}; echo finished", gate.wait()))).await;
    world.output_has(&running, "up").await;
    worker.signal(Signal::TERM);
    worker.says(&["draining"]).await;
    let waiting = world.submit(&world.argv(&["true"])).await;
    gate.open();
    assert!(worker.exit(PATIENCE).await.success());
    assert_eq!(reason(&world.told(&running).await), Reason::Ok, "drained means finished, not stopped");
    assert!(world.chain(&waiting).is_empty(), "a draining worker took new work");
    world.worker(&[]);
    assert_eq!(reason(&world.told(&waiting).await), Reason::Ok);
    world.finish().await;
}

pub async fn released(home: Home) {
    let Some(world) = World::idle(home, &[("WORKER__DRAIN_TIMEOUT_S", "0.5")]).await else { return };
    let worker = world.worker(&[]);
    let job = world.script("echo up; [ $WINDLASS_ATTEMPT -gt 1 ] || sleep 1000").grace(0.2).set("/retry/max_attempts", 1);
    let task = world.submit(&job).await;
    world.output_has(&task, "up").await;
    worker.signal(Signal::TERM);
    assert!(worker.exit(PATIENCE).await.success());
    assert_eq!(world.event(&task, EventKind::TaskReleased).await.task.attempt, 1);
    assert_eq!(world.processes_of(&task.id), []);
    world.worker(&[]);
    let end = world.told(&task).await;
    assert_eq!((reason(&end), end.task.attempt, end.task.released_attempts), (Reason::Ok, 2, 1), "the release did not count");
    world.finish().await;
}

pub async fn aborted(home: Home) {
    let Some(world) = World::idle(home, &[("WORKER__DRAIN_TIMEOUT_S", "600")]).await else { return };
    let worker = world.worker(&[]);
    let job = world.script("trap '' TERM; echo up; [ $WINDLASS_ATTEMPT -gt 1 ] || while :; do sleep 0.1; done").grace(60.0);
    let task = world.submit(&job).await;
    world.output_has(&task, "up").await;
    worker.signal(Signal::TERM);
    worker.says(&["draining"]).await;
    worker.signal(Signal::TERM);
    worker.exit(PATIENCE).await;
    world.event(&task, EventKind::TaskReleased).await;
    world.worker(&[]);
    assert_eq!(reason(&world.told(&task).await), Reason::Ok);
    world.finish().await;
}

pub async fn worker_killed(home: Home) {
    let Some(world) = World::idle(home, &[("LEASE__ACK_WAIT_S", "4")]).await else { return };
    let worker = world.host();
    let task = world.submit(&world.script("echo attempt $WINDLASS_ATTEMPT; [ $WINDLASS_ATTEMPT -gt 1 ] || sleep 1000")).await;
    world.output_has(&task, "attempt 1").await;
    worker.kill9().await;
    let gone = crate::harness::leftovers::gone(Duration::from_secs(10), || world.processes_of(&task.id)).await;
    assert!(gone.is_empty(), "its program outlives the worker: {gone:?}");
    world.host();
    let end = world.told(&task).await;
    assert_eq!((reason(&end), end.task.attempt), (Reason::Ok, 2));
    assert_eq!(world.stdout(&task, &end).await, "attempt 2\n");
    world.finish().await;
}
