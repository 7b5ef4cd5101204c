//! Crashes of everything, at any moment: never two ends, never none.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use windlass::task::Reason;
use windlass::task::log_chunk::LogStream;

use crate::harness::job::Gate;
use crate::harness::server::{Options, Server};
use crate::harness::{Fleet, Job, PATIENCE, leftovers};

/// Short leases, so that a takeover is soon; takeovers are cheap, so many attempts.
const SHORT: &[(&str, &str)] = &[("LEASE__ACK_WAIT_S", "2"), ("CLASSES__CPU_SHORT__MAX_ATTEMPTS", "20")];

#[tokio::test]
async fn another_worker_takes_over_from_one_that_was_killed() {
    let Some(fleet) = Fleet::start(SHORT).await else { return };
    let first = fleet.worker(&[]);
    let marker = fleet.dir.join("ran");
    let script = format!("echo attempt $WINDLASS_ATTEMPT; echo x >> '{0}'; [ $WINDLASS_ATTEMPT -gt 1 ] || sleep 1000", marker.display());
    let task = fleet.submit(&Job::bash(script)).await;
    fleet.output_has(&task, "attempt 1").await;
    fleet.worker(&[]);
    first.kill9().await;
    let left = leftovers::gone(Duration::from_secs(1), || leftovers::processes(&first.state_dir().to_string_lossy())).await;
    assert!(left.is_empty(), "one second after its worker's death it still runs: {left:?}");
    fleet.attempt(&task, 2).await;
    let end = fleet.end(&task).await;
    assert_eq!((end.reason, end.task.attempt, end.worker.worker_id.as_str()), (Some(Reason::Ok), 2, "worker-1"));
    assert_eq!(fleet.output(&task, &end, LogStream::Stdout).await, b"attempt 2\n", "the dead attempt's output does not count");
    fleet.finish().await;
}

#[tokio::test]
async fn the_same_worker_started_again_takes_over_and_cleans_up() {
    let Some(fleet) = Fleet::start(SHORT).await else { return };
    let worker = fleet.worker_named("phoenix", &[]);
    let task = fleet.submit(&Job::bash("echo up; [ $WINDLASS_ATTEMPT -gt 1 ] || sleep 1000")).await;
    fleet.output_has(&task, "up").await;
    worker.kill9().await;
    assert!(worker.state_dir().read_dir().unwrap().next().is_some(), "the dead one left its directory");
    fleet.worker_named("phoenix", &[]);
    assert_eq!(fleet.end(&task).await.task.attempt, 2);
    // finish() finds the state directory empty only if the second life removed what the first one left.
    fleet.finish().await;
}

#[tokio::test]
async fn workers_killed_at_random_moments_lose_nothing_and_end_nothing_twice() {
    let Some(fleet) = Fleet::start(SHORT).await else { return };
    let names = ["a", "b", "c"];
    let settings = [("CAPACITY__SLOTS", "4")];
    let mut workers: Vec<_> = names.iter().map(|n| fleet.worker_named(n, &settings)).collect();
    let mut tasks = Vec::new();
    for i in 0..45 {
        tasks.push(fleet.submit(&Job::bash(format!("echo start; sleep 0.{}; seq 1 {}", i % 10, i * 40))).await);
    }
    let mut seed = std::process::id();
    let mut kills = 0;
    for (n, task) in tasks.iter().enumerate() {
        // Chaos at moments given by the run itself: whenever the next task has come to its end.
        if n % 4 == 0 && kills < 9 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let victim = (seed >> 16) as usize % names.len();
            workers[victim].kill9().await;
            workers[victim] = fleet.worker_named(names[victim], &settings);
            kills += 1;
        }
        fleet.end(task).await;
    }
    assert!(kills >= 8);
    for task in &tasks {
        assert_eq!(fleet.end(task).await.reason, Some(Reason::Ok));
    }
    fleet.finish().await;
}

#[tokio::test]
async fn a_killed_supervisor_takes_its_tasks_along_and_they_run_again() {
    let Some(fleet) = Fleet::start(SHORT).await else { return };
    let first = fleet.worker(&[]);
    let task = fleet.submit(&Job::bash("echo up; [ $WINDLASS_ATTEMPT -gt 1 ] || sleep 1000")).await;
    fleet.output_has(&task, "up").await;
    let supervisor = first.children();
    assert_eq!(supervisor.len(), 1, "the worker's own children are its supervisor: {supervisor:?}");
    let pid = rustix::process::Pid::from_raw(supervisor[0].cast_signed()).unwrap();
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
    let status = first.exit(PATIENCE).await;
    assert!(!status.success(), "a worker without supervisor must not look healthy");
    let left = leftovers::gone(Duration::from_secs(5), || leftovers::processes(&first.state_dir().to_string_lossy())).await;
    assert!(left.is_empty(), "still running without supervisor: {left:?}");
    fleet.worker(&[]);
    assert_eq!(fleet.end(&task).await.reason, Some(Reason::Ok));
    fleet.finish().await;
}

#[tokio::test]
async fn a_frozen_worker_that_wakes_up_says_nothing_more() {
    let Some(fleet) = Fleet::start(SHORT).await else { return };
    let first = fleet.worker(&[]);
    let gate = Gate::new(&fleet.dir, "second");
    let script = format!("echo up; [ $WINDLASS_ATTEMPT -gt 1 ] || exec sleep 1000; {}", gate.wait());
    let task = fleet.submit(&Job::bash(script)).await;
    fleet.output_has(&task, "up").await;
    first.signal(Signal::STOP);
    fleet.worker(&[]);
    fleet.attempt(&task, 2).await;
    let of_first = leftovers::processes("WINDLASS_ATTEMPT=1\0");
    let alive: Vec<_> = fleet.processes_of(&task.id).into_iter().filter(|p| of_first.contains(p)).collect();
    assert!(alive.is_empty(), "two attempts run at one time: {alive:?}");
    first.signal(Signal::CONT);
    // The woken worker is healthy: it takes new work.
    let next = fleet.submit(&Job::argv(["true"])).await;
    fleet.end(&next).await;
    gate.open();
    let end = fleet.end(&task).await;
    assert_eq!((end.reason, end.task.attempt, end.worker.worker_id.as_str()), (Some(Reason::Ok), 2, "worker-1"));
    let of_first = fleet.chain(&task).iter().filter(|l| l.event.worker.worker_id.as_str() == "worker-0").count();
    assert_eq!(of_first, 1, "the fenced worker wrote after its claim was taken over");
    assert_eq!(fleet.chain(&task).len(), 3, "two claims and one end");
    fleet.finish().await;
}

#[tokio::test]
async fn a_server_killed_under_load_loses_nothing() {
    let Some(server) = Server::private(Options::default()) else { return };
    let fleet = Fleet::on(server, &[("LEASE__ACK_WAIT_S", "4"), ("CLASSES__CPU_SHORT__MAX_ATTEMPTS", "20")]).await;
    fleet.worker(&[("CAPACITY__SLOTS", "4")]);
    fleet.worker(&[("CAPACITY__SLOTS", "4")]);
    let mut tasks = Vec::new();
    for i in 0..60 {
        tasks.push(fleet.submit(&Job::bash(format!("seq 1 {}; sleep 0.1", i * 50))).await);
    }
    for n in [10, 25, 40] {
        fleet.end(&tasks[n]).await;
        fleet.server.kill9();
        fleet.server.restart();
    }
    for task in &tasks {
        assert_eq!(fleet.end(task).await.reason, Some(Reason::Ok));
    }
    fleet.finish().await;
}

#[tokio::test]
async fn a_worker_starts_before_its_server_and_waits_for_it() {
    let Some(server) = Server::private(Options::default()) else { return };
    let fleet = Fleet::on(server, &[]).await;
    let task = fleet.submit(&Job::argv(["true"])).await;
    fleet.server.kill9();
    let worker = fleet.worker(&[]);
    let deadline = Instant::now() + PATIENCE;
    while !worker.log().contains("supervisor ready") {
        assert!(Instant::now() < deadline, "{}", worker.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    fleet.server.restart();
    assert_eq!(fleet.end(&task).await.reason, Some(Reason::Ok));
    fleet.finish().await;
}

#[tokio::test]
async fn what_was_done_but_not_yet_said_is_said_by_the_next_life() {
    let Some(server) = Server::private(Options::default()) else { return };
    let fleet = Fleet::on(server, &[("LEASE__ACK_WAIT_S", "8")]).await;
    let worker = fleet.worker_named("phoenix", &[]);
    let gate = Gate::new(&fleet.dir, "say");
    let count = fleet.dir.join("count");
    let task = fleet.submit(&Job::bash(format!("echo x >> '{}'; {}", count.display(), gate.wait()))).await;
    // Its own word: the answer to the claim may still be on its way when the event can be read.
    worker.says(&["started", &format!("task_id={}", task.id)]).await;
    fleet.server.freeze();
    gate.open();
    let spooled = || {
        let instances = std::fs::read_dir(worker.state_dir()).into_iter().flatten().flatten().map(|e| e.path().join("commit"));
        instances.filter_map(|dir| std::fs::read_dir(dir).ok()?.flatten().next()).any(|e| e.path().extension().is_some_and(|x| x == "json"))
    };
    let deadline = Instant::now() + PATIENCE;
    while !spooled() {
        assert!(Instant::now() < deadline, "the terminal event is not kept on disk\n{}", worker.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    worker.kill9().await;
    // What it had written to the socket dies with the server too, as in a crash of the whole machine.
    fleet.server.kill9();
    fleet.server.restart();
    fleet.worker_named("phoenix", &[]);
    let end = fleet.end(&task).await;
    assert_eq!((end.reason, end.task.attempt), (Some(Reason::Ok), 1), "finished from the spool, not run again");
    assert_eq!(std::fs::read_to_string(&count).unwrap(), "x\n");
    fleet.finish().await;
}
