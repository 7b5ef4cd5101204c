//! Limits that hold, and the typed reason of each death.

use std::time::Duration;

use windlass::task::log_chunk::LogStream;
use windlass::task::{EventKind, Reason};

use crate::harness::worker::windlass as command;
use crate::harness::{Fleet, Job, PATIENCE, leftovers, slowness};

#[tokio::test]
async fn memory_above_the_limit_ends_in_oom_killed() {
    let Some(fleet) = Fleet::with_worker(2, &[]).await else { return };
    let task = fleet.submit(&Job::bash("echo before; head -c 300000000 /dev/zero | tail").memory("32MiB")).await;
    let end = fleet.end(&task).await;
    assert_eq!((end.event, end.reason), (EventKind::TaskFailed, Some(Reason::OomKilled)), "{end:?}");
    let usage = end.usage.unwrap();
    assert!(usage.oom_kills >= 1, "{usage:?}");
    assert!(usage.memory_peak_bytes > 16 << 20 && usage.memory_peak_bytes <= 33 << 20, "{usage:?}");
    assert_eq!(end.run.as_ref().unwrap().limits.as_ref().unwrap().memory_bytes, 32 << 20);
    assert_eq!(fleet.output(&task, &end, LogStream::Stdout).await, b"before\n", "output before the kill is kept");
    fleet.finish().await;
}

#[tokio::test]
async fn a_kill_that_was_not_for_memory_is_not_called_so() {
    let Some(fleet) = Fleet::with_worker(2, &[]).await else { return };
    let task = fleet.submit(&Job::bash("kill -KILL $$")).await;
    let end = fleet.end(&task).await;
    assert_eq!((end.reason, end.signal, end.exit_code), (Some(Reason::Signaled), Some(9), None), "status 137 is not proof of an OOM");
    assert_eq!(end.usage.unwrap().oom_kills, 0);
    fleet.finish().await;
}

#[tokio::test]
async fn processes_are_limited_and_counted() {
    let Some(fleet) = Fleet::with_worker(2, &[]).await else { return };
    let script = "for i in $(seq 40); do sleep 30 & done 2>/dev/null; jobs -p | wc -l; kill $(jobs -p)";
    let task = fleet.submit(&Job::bash(script).set("/execution/resources/pids", 10).timeout(20.0)).await;
    let end = fleet.end(&task).await;
    let usage = end.usage.unwrap();
    assert!((2..=10).contains(&usage.pids_peak), "{usage:?}");
    fleet.finish().await;
}

#[tokio::test]
async fn cpu_time_is_limited_and_counted() {
    let Some(fleet) = Fleet::with_worker(2, &[]).await else { return };
    let task = fleet.submit(&Job::bash("while :; do :; done").set("/execution/resources/cpus", 0.2).timeout(2.0).grace(0.0)).await;
    let end = fleet.end(&task).await;
    assert_eq!(end.reason, Some(Reason::Timeout));
    let usage = end.usage.unwrap();
    let (used, ran) = (usage.cpu_user_us + usage.cpu_system_us, end.run.unwrap().duration_ms.unwrap() * 1000);
    assert!(usage.throttled_us > 0, "{usage:?}");
    // 0.2 of a CPU, with one period of the scheduler's bandwidth at both ends.
    assert!(used > 0 && used <= ran / 5 + 100_000, "used {used} µs of {ran} µs: {usage:?}");
    fleet.finish().await;
}

#[tokio::test]
async fn a_timeout_ends_politely_where_the_task_allows_it() {
    let Some(fleet) = Fleet::with_worker(2, &[]).await else { return };
    let script = "trap 'echo asked; exit 0' TERM; echo ready; while :; do sleep 0.05; done";
    let task = fleet.submit(&Job::bash(script).timeout(0.5).grace(30.0)).await;
    let end = fleet.end(&task).await;
    assert_eq!((end.event, end.reason), (EventKind::TaskFailed, Some(Reason::Timeout)), "exit 0 after SIGTERM is no success");
    assert_eq!(fleet.output(&task, &end, LogStream::Stdout).await, b"ready\nasked\n");
    assert!(end.run.unwrap().duration_ms.unwrap() < 25_000, "the grace was waited out");
    fleet.finish().await;
}

#[tokio::test]
async fn a_timeout_kills_the_whole_tree_that_ignores_it() {
    let Some(fleet) = Fleet::with_worker(2, &[]).await else { return };
    let script =
        "trap '' TERM; setsid sh -c 'trap \"\" TERM; sleep 1000' & (setsid sleep 1000 & exec sleep 1000) & echo up; sleep 1000; sleep 1000";
    let task = fleet.submit(&Job::bash(script).timeout(2.0 * f64::from(slowness())).grace(0.3)).await;
    let end = fleet.end(&task).await;
    assert_eq!(end.reason, Some(Reason::Timeout));
    assert_eq!(fleet.processes_of(&task.id), [], "the event says it is over, so nothing of it may run");
    assert_eq!(fleet.output(&task, &end, LogStream::Stdout).await, b"up\n");
    fleet.finish().await;
}

#[tokio::test]
async fn processes_left_behind_are_killed_and_counted() {
    let Some(fleet) = Fleet::with_worker(2, &[]).await else { return };
    let task = fleet.submit(&Job::bash("setsid sleep 1000 >/dev/null 2>&1 & (sleep 1000 >/dev/null 2>&1 &) ; echo done")).await;
    let end = fleet.end(&task).await;
    assert_eq!((end.reason, end.usage.unwrap().leaked_processes), (Some(Reason::Ok), 2));
    assert_eq!(fleet.processes_of(&task.id), []);
    fleet.finish().await;
}

#[tokio::test]
async fn a_request_above_the_ceiling_is_refused_not_clipped() {
    let Some(fleet) = Fleet::with_worker(2, &[]).await else { return };
    for (pointer, value, field) in [
        ("/execution/timeout_s", serde_json::json!(3601), "execution.timeout_s"),
        ("/execution/grace_s", serde_json::json!(61), "execution.grace_s"),
        ("/execution/resources/cpus", serde_json::json!(9), "execution.resources.cpus"),
        ("/execution/resources/memory", serde_json::json!("17GiB"), "execution.resources.memory"),
        ("/execution/resources/pids", serde_json::json!(5000), "execution.resources.pids"),
        ("/retry/max_attempts", serde_json::json!(21), "retry.max_attempts"),
    ] {
        let task = fleet.submit(&Job::argv(["true"]).set(pointer, value)).await;
        let end = fleet.end(&task).await;
        assert_eq!((end.event, end.reason, end.task.attempt), (EventKind::TaskFailed, Some(Reason::PolicyRefused), 0), "{field}");
        let error = end.error.unwrap();
        assert!(error.starts_with(field) && error.contains("ceiling"), "{error}");
        assert!(end.hint.is_some() && end.run.is_none_or(|r| r.started_at.is_none()));
    }
    fleet.finish().await;
}

#[tokio::test]
async fn without_cgroup_rights_the_worker_says_what_to_grant_and_does_not_start() {
    let Some(fleet) = Fleet::start(&[]).await else { return };
    let nowhere = fleet.dir.join("no-cgroups");
    let worker = fleet.worker(&[("CGROUP__MOUNT", nowhere.to_str().unwrap())]);
    let status = worker.exit(PATIENCE).await;
    assert!(!status.success());
    assert!(worker.log().contains("cgroup"), "{}", worker.log());
    let task = fleet.submit(&Job::argv(["true"])).await;
    fleet.worker(&[("CGROUP__MOUNT", nowhere.to_str().unwrap()), ("CGROUP__ALLOW_UNLIMITED", "true")]);
    assert_eq!(fleet.end(&task).await.reason, Some(Reason::Ok));
    for link in fleet.chain(&task) {
        let limits = link.event.run.expect("run").limits.expect("limits");
        assert!(!limits.enforced, "{} pretends that limits hold", link.event.event);
    }
    fleet.finish().await;
}

#[tokio::test]
async fn a_worker_whose_classes_never_fit_does_not_start() {
    let mut worker = command();
    worker.args(["worker", "--server", "nats://127.0.0.1:1"]).env("WINDLASS__CAPACITY__CPUS", "0.5");
    let output = tokio::time::timeout(PATIENCE, worker.output()).await.expect("ends").unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("cpu_short"), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn misbehaving_programs_die_of_what_they_did() {
    let Some(fleet) = Fleet::with_worker(4, &[]).await else { return };
    for (program, args, reason) in [
        ("eat_memory.sh", vec!["child", "5"], Reason::OomKilled),
        ("eat_memory.sh", vec![], Reason::OomKilled),
        ("ignore_term.sh", vec!["1000"], Reason::Timeout),
        ("fork_bomb_setsid.sh", vec!["50"], Reason::Timeout),
        ("double_fork.sh", vec!["wait"], Reason::Timeout),
        ("stopped.sh", vec![], Reason::Timeout),
        ("bad_interpreter.sh", vec![], Reason::SpawnFailed),
    ] {
        // Only what is to run into the time limit has a short one: to fill memory takes its time on a slow machine.
        let timeout = if reason == Reason::Timeout { 1.5 } else { 60.0 };
        let task = fleet.submit(&Job::program(program, args.clone()).memory("48MiB").timeout(timeout).grace(0.3)).await;
        let end = fleet.end(&task).await;
        assert_eq!(end.reason, Some(reason), "{program} {args:?}: {:?}", end.error);
        assert_eq!(fleet.processes_of(&task.id), [], "{program} {args:?}");
    }
    // On cgroup2 the kernel kills the whole task (memory.oom.group). Version 1 kills the child alone, and a task that copes
    // with its death has worked; the figures say what happened.
    let expected = if std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { Reason::OomKilled } else { Reason::Ok };
    let task = fleet.submit(&Job::program("eat_memory.sh", ["child", "0"]).memory("48MiB")).await;
    let end = fleet.end(&task).await;
    assert_eq!((end.reason, end.usage.unwrap().oom_kills >= 1), (Some(expected), true));
    fleet.finish().await;
}

#[tokio::test]
async fn many_processes_die_at_once() {
    let Some(fleet) = Fleet::with_worker(1, &[]).await else { return };
    let script = "trap '' TERM; for i in $(seq 200); do setsid sleep 1000 & done; echo up; wait";
    let task = fleet.submit(&Job::bash(script).set("/execution/resources/pids", 500).timeout(30.0).grace(0.0)).await;
    fleet.output_has(&task, "up").await;
    fleet.cancel(&task).await;
    let end = fleet.end(&task).await;
    assert_eq!(end.reason, Some(Reason::Canceled));
    assert!(end.usage.unwrap().pids_peak >= 200, "{:?}", end.usage);
    let left = leftovers::gone(Duration::ZERO, || fleet.processes_of(&task.id)).await;
    assert_eq!(left, []);
    fleet.finish().await;
}
