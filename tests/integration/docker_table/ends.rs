//! How it ends, and what is said of it.

use windlass::task::log_chunk::LogStream;
use windlass::task::{EventKind, Outcome, Reason};
use windlass::wire::sha256_hex;

use super::{Home, World, reason};

pub async fn success(home: Home) {
    let Some(world) = World::new(home).await else { return };
    let (task, end) = world.run(&world.script("echo to stdout; echo to stderr >&2")).await;
    assert_eq!((end.event, reason(&end), end.exit_code, end.signal), (EventKind::TaskCompleted, Reason::Ok, Some(0), None), "{end:?}");
    assert_eq!((end.phase.as_deref(), end.outcome), (Some("execute"), Some(Outcome::Success)));
    assert_eq!(world.output(&task, &end, LogStream::Stdout).await, b"to stdout\n");
    assert_eq!(world.output(&task, &end, LogStream::Stderr).await, b"to stderr\n");
    let logs = end.logs.as_ref().unwrap();
    assert_eq!((logs.stdout.sha256.as_str(), logs.stdout.dropped_bytes), (sha256_hex(b"to stdout\n").as_str(), 0));
    assert_eq!(end.stderr_tail.as_deref().map(str::trim), Some("to stderr"));
    let stages: Vec<_> = end.stages.iter().map(|s| s.stage.as_str()).collect();
    assert_eq!((stages.first(), stages.last()), (Some(&"VALIDATING"), Some(&"DONE")), "{stages:?}");
    let usage = end.usage.unwrap();
    assert_eq!((usage.oom_kills, usage.leaked_processes), (0, 0), "{usage:?}");
    world.finish().await;
}

pub async fn exit_codes(home: Home) {
    let Some(world) = World::new(home).await else { return };
    // A container's exit status does not tell a signal from 128 and its number; nothing is guessed from it.
    let signaled = |signal: i32| match home {
        Home::Native => (Reason::Signaled, None, Some(signal)),
        Home::Docker | Home::Elsewhere => (Reason::ExitNonzero, Some(128 + signal), None),
    };
    let exited = |code| (Reason::ExitNonzero, Some(code), None);
    for (script, expected) in [
        ("exit 1", exited(1)),
        ("exit 137", exited(137)),
        ("exit 255", exited(255)),
        ("kill -TERM $$; sleep 60", signaled(15)),
        ("kill -KILL $$; sleep 60", signaled(9)),
    ] {
        let (_, end) = world.run(&world.script(script)).await;
        assert_eq!((reason(&end), end.exit_code, end.signal), expected, "{script}: {:?}", end.error);
        assert_eq!((end.event, end.outcome), (EventKind::TaskFailed, Some(Outcome::Failure)), "{script}");
        assert_eq!(end.usage.unwrap().oom_kills, 0, "{script}: status 137 is no proof of an OOM");
    }
    world.finish().await;
}

pub async fn no_such_program(home: Home) {
    let Some(world) = World::new(home).await else { return };
    for argv in [["/no/such/program"], ["/etc/passwd"]] {
        let task = world.submit(&world.argv(&argv)).await;
        let end = world.end(&task).await;
        assert_eq!((end.event, reason(&end), end.task.attempt), (EventKind::TaskFailed, Reason::SpawnFailed, 1), "{argv:?}: {end:?}");
        assert!(end.error.as_ref().is_some_and(|e| e.contains(argv[0])), "it names it: {:?}", end.error);
        assert!(end.hint.is_some(), "{end:?}");
    }
    world.finish().await;
}

pub async fn timeout_with_grace(home: Home) {
    let Some(world) = World::new(home).await else { return };
    let script = "trap 'echo asked; exit 0' TERM; echo ready; while :; do sleep 0.05; done";
    let (task, end) = world.run(&world.script(script).timeout(2.0).grace(30.0)).await;
    assert_eq!((end.event, reason(&end)), (EventKind::TaskFailed, Reason::Timeout), "exit 0 after SIGTERM is no success");
    assert_eq!(end.outcome, Some(Outcome::Timeout));
    assert_eq!(world.stdout(&task, &end).await, "ready\nasked\n");
    assert!(end.run.unwrap().duration_ms.unwrap() < 25_000, "the grace was waited out");
    world.finish().await;
}

pub async fn timeout_without_grace(home: Home) {
    let Some(world) = World::new(home).await else { return };
    let script =
        "trap '' TERM; setsid sh -c 'trap \"\" TERM; sleep 1000' & (setsid sleep 1000 & exec sleep 1000) & echo up; sleep 1000; sleep 1000";
    let (task, end) = world.run(&world.script(script).timeout(2.0).grace(0.2)).await;
    assert_eq!(reason(&end), Reason::Timeout);
    assert_eq!(world.stdout(&task, &end).await, "up\n");
    world.finish().await;
}

pub async fn out_of_memory(home: Home) {
    let Some(world) = World::new(home).await else { return };
    // The shell replaces itself: what the kernel kills is the task's own process.
    let script = "echo before; exec tail /dev/zero";
    let (task, end) = world.run(&world.script(script).memory("32MiB")).await;
    assert_eq!((end.event, reason(&end)), (EventKind::TaskFailed, Reason::OomKilled), "{end:?}");
    let usage = end.usage.as_ref().unwrap();
    assert!(usage.oom_kills >= 1 && usage.memory_peak_bytes > 16 << 20, "{usage:?}");
    assert_eq!(end.run.as_ref().unwrap().limits.as_ref().unwrap().memory_bytes, 32 << 20);
    assert_eq!(world.stdout(&task, &end).await, "before\n", "output before the kill is kept");
    world.finish().await;
}

pub async fn child_out_of_memory(home: Home) {
    let Some(world) = World::new(home).await else { return };
    // On cgroup2 a native task's kernel kills the whole of it; version 1 the child alone, and so does every engine.
    let whole = home == Home::Native && std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let (_, end) = world.run(&world.script("tail /dev/zero; exit 0").memory("32MiB")).await;
    let expected = if whole { Reason::OomKilled } else { Reason::Ok };
    assert_eq!((reason(&end), end.usage.as_ref().unwrap().oom_kills >= 1), (expected, true), "{end:?}");
    let (_, end) = world.run(&world.script("tail /dev/zero; exit 5").memory("32MiB")).await;
    assert_eq!((reason(&end), end.usage.as_ref().unwrap().oom_kills >= 1), (Reason::OomKilled, true), "{end:?}");
    world.finish().await;
}

pub async fn too_many_processes(home: Home) {
    let Some(world) = World::new(home).await else { return };
    let script = "for i in $(seq 60); do sleep 1000 & done; echo never";
    let job = world.script(script).set("/execution/resources/pids", 16).timeout(30.0).grace(0.1);
    let (task, end) = world.run(&job).await;
    assert_ne!(reason(&end), Reason::Ok, "{end:?}");
    assert!(!world.stdout(&task, &end).await.contains("never"));
    let usage = end.usage.unwrap();
    assert!((8..=16).contains(&usage.pids_peak), "{usage:?}");
    world.finish().await;
}

pub async fn refused_by_policy(home: Home) {
    let Some(world) = World::new(home).await else { return };
    for (pointer, value, field) in [
        ("/execution/timeout_s", serde_json::json!(3601), "execution.timeout_s"),
        ("/execution/resources/cpus", serde_json::json!(9), "execution.resources.cpus"),
        ("/execution/resources/memory", serde_json::json!("17GiB"), "execution.resources.memory"),
        ("/execution/resources/pids", serde_json::json!(5000), "execution.resources.pids"),
    ] {
        let task = world.submit(&world.argv(&["true"]).set(pointer, value)).await;
        let end = world.end(&task).await;
        assert_eq!((reason(&end), end.task.attempt), (Reason::PolicyRefused, 0), "{field}");
        assert!(end.error.unwrap().starts_with(field) && end.hint.is_some());
    }
    world.finish().await;
}
