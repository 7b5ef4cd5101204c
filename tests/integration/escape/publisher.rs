//! What somebody who may publish assignments, and no more, can do to a worker: nothing but have his own tasks fail.

use std::time::Duration;

use serde_json::{Value, json};
use windlass::task::log_chunk::LogStream;
use windlass::task::{EventKind, Reason};

use super::attacker::{World, instances};
use crate::harness::{Fleet, Job};

/// A value of so many levels.
fn nested(levels: usize) -> Value {
    (0..levels).fold(json!(1), |inner, n| if n % 2 == 0 { json!([inner]) } else { json!({"a": inner}) })
}

async fn goes_on(fleet: &Fleet, after: &str) {
    let next = fleet.submit(&Job::argv(["true"])).await;
    let end = fleet.end(&next).await;
    assert_eq!((end.reason, end.worker.worker_id.as_str()), (Some(Reason::Ok), "worker-0"), "after {after}");
}

#[tokio::test]
async fn names_that_would_leave_their_place_are_refused() {
    let Some(fleet) = Fleet::with_worker(1, &[]).await else { return };
    let body = Job::argv(["true"]);
    // What a subject can hold and no file name should.
    let tokens = ["a/b", "/etc/passwd", "%2e%2e%2f", "~root", "a\u{202e}b", "-rf", "\u{1b}[2J", "a:b", "a\\b", "ü", "$HOME", "`id`"];
    let refused = tokens.iter().filter(|t| **t != "-rf");
    for token in &tokens {
        for subject in
            [format!("{}.tasks.cpu_short.normal.acme.{token}", fleet.prefix), format!("{}.tasks.cpu_short.normal.{token}.t1", fleet.prefix)]
        {
            let body = body.clone().set("/task_id", subject.rsplit('.').next().unwrap());
            fleet.publish(&subject, body.media_type(), body.encode()).await.unwrap_or_else(|e| panic!("{subject:?}: {e}"));
        }
    }
    // One message is refused as a whole by an id in the body that the subject does not have.
    for id in ["..", "../../../etc/cron.d/x", "/etc/passwd", "a\u{0}b", ""] {
        let task = fleet.submit_raw(&format!("body{}", id.len()), None, body.clone().set("/task_id", id).encode()).await;
        assert_eq!(fleet.end(&task).await.reason, Some(Reason::InvalidAssignment), "{id:?}");
    }
    goes_on(&fleet, "all of them").await;
    let dead = fleet.dead().await;
    for token in refused {
        let of = dead.iter().filter(|d| d.header("Windlass-Subject").is_some_and(|s| s.split('.').any(|t| t == *token))).count();
        assert_eq!(of, 2, "{token:?}");
    }
    fleet.finish().await;
}

#[tokio::test]
async fn what_a_task_is_told_about_itself_cannot_be_changed() {
    let Some(fleet) = Fleet::with_worker(1, &[]).await else { return };
    let forged = [
        "WINDLASS_TASK_ID",
        "WINDLASS_ATTEMPT",
        "WINDLASS_FENCE",
        "WINDLASS_TENANT",
        "WINDLASS_CLASS",
        "WINDLASS_WORKDIR",
        "WINDLASS_RESULT",
        "WINDLASS_PROGRESS",
        "WINDLASS_OUTPUTS",
    ];
    let mut env: serde_json::Map<_, _> = forged.iter().map(|name| ((*name).to_owned(), json!("/etc/forged"))).collect();
    // These are the task's own affair: they reach its program, and nothing of the worker's.
    env.extend(
        [("LD_PRELOAD", "/no/such.so"), ("PATH", "/usr/bin:/bin"), ("WINDLASS__BUS__SERVER", "nats://127.0.0.1:1")]
            .map(|(n, v)| (n.to_owned(), json!(v))),
    );
    let task = fleet.submit(&Job::argv(["env"]).set("/execution/env", env)).await;
    let end = fleet.end(&task).await;
    assert_eq!(end.reason, Some(Reason::Ok), "{:?}", end.error);
    let seen = String::from_utf8(fleet.output(&task, &end, LogStream::Stdout).await).unwrap();
    assert!(!seen.contains("/etc/forged"), "{seen}");
    for name in forged {
        assert_eq!(seen.lines().filter(|l| l.starts_with(&format!("{name}="))).count(), 1, "{name} in {seen}");
    }
    assert!(seen.contains(&format!("WINDLASS_TASK_ID={}\n", task.id)) && seen.contains("PATH=/usr/bin:/bin\n"), "{seen}");
    goes_on(&fleet, "a preload").await;
    fleet.finish().await;
}

#[tokio::test]
async fn more_than_the_kernel_takes_has_a_reason() {
    let Some(fleet) = Fleet::with_worker(1, &[]).await else { return };
    let large = "x".repeat(200_000);
    for (what, job) in [
        ("an argument", Job::argv(["true", &large])),
        ("a variable", Job::argv(["true"]).set("/execution/env", json!({"A": large}))),
        ("an argument of a script", Job::bash("true").set("/execution/args", json!([large]))),
    ] {
        let task = fleet.submit(&job).await;
        let end = fleet.end(&task).await;
        assert_eq!((end.event, end.reason), (EventKind::TaskFailed, Some(Reason::SpawnFailed)), "{what}: {:?}", end.error);
        assert!(end.hint.as_ref().is_some_and(|h| h.contains("stdin")), "{what}: {:?}", end.hint);
    }
    // The way that the hint names.
    let task = fleet.submit(&Job::bash("wc -c").set("/execution/stdin", "y".repeat(900_000))).await;
    let end = fleet.end(&task).await;
    assert_eq!(fleet.output(&task, &end, LogStream::Stdout).await, b"900000\n");
    fleet.finish().await;
}

#[tokio::test]
async fn a_message_full_of_small_things_costs_what_its_bytes_cost() {
    let Some(fleet) = Fleet::with_worker(1, &[]).await else { return };
    let many = |bytes: usize| (0..bytes / 10).map(|n| (format!("{n:05}"), json!(""))).collect::<serde_json::Map<_, _>>();
    let task = fleet.submit(&Job::argv(["true"]).set("/execution/env", many(600_000))).await;
    let end = fleet.end(&task).await;
    assert_eq!(end.reason, Some(Reason::Ok), "{:?}", end.error);
    // Measured by the worker itself: a variable that was looked for among all others took minutes here.
    let prepare = Duration::from_millis(end.run.and_then(|r| r.prepare_ms).unwrap());
    println!("60,000 variables: prepared in {prepare:?}");
    let task = fleet.submit(&Job::argv(["true"]).set("/labels", many(900_000)).set("/name", "n".repeat(50_000))).await;
    let end = fleet.end(&task).await;
    assert_eq!(end.reason, Some(Reason::Ok), "{:?}", end.error);
    assert!(end.shortened.contains(&"assignment".to_owned()) || !end.task.labels.is_empty(), "{:?}", end.shortened);
    let path = format!("/usr/bin:/bin{}", ":/x".repeat(30_000));
    let task = fleet.submit(&Job::argv(["no-such-program"]).set("/execution/env", json!({"PATH": path}))).await;
    assert_eq!(fleet.end(&task).await.reason, Some(Reason::SpawnFailed));
    goes_on(&fleet, "all of them").await;
    fleet.finish().await;
}

#[tokio::test]
async fn what_is_nested_too_deep_to_be_read_again_is_refused() {
    for encoding in ["json", "msgpack"] {
        let Some(fleet) = Fleet::with_worker(2, &[("EVENTS__ENCODING", encoding)]).await else { return };
        for levels in [33, 60, 62, 100, 120, 125] {
            for job in [Job::argv(["true"]), Job::argv(["true"]).msgpack()] {
                let task = fleet.submit(&job.set("/context", nested(levels))).await;
                let end = fleet.end(&task).await;
                assert_eq!(end.reason, Some(Reason::InvalidAssignment), "{levels} levels: {:?}", end.error);
            }
            let result = serde_json::to_string(&nested(levels)).unwrap();
            let task = fleet.submit(&Job::bash("cat > \"$WINDLASS_RESULT\"").set("/execution/stdin", result)).await;
            let end = fleet.end(&task).await;
            assert_eq!(end.reason, Some(Reason::ResultInvalid), "{levels} levels: {:?}", end.error);
        }
        let deep = nested(32);
        let job = Job::bash("cat > \"$WINDLASS_RESULT\"").set("/execution/stdin", deep.to_string()).set("/context", deep.clone());
        let task = fleet.submit(&job).await;
        let end = fleet.end(&task).await;
        assert_eq!((&end.task.context, &end.result.unwrap().value), (&deep, &deep), "what is not too deep arrives");
        fleet.finish().await;
    }
}

#[tokio::test]
async fn an_error_text_adds_no_header() {
    let Some(fleet) = Fleet::with_worker(1, &[]).await else { return };
    let body = json!({"task_id": "h", "a\r\nNats-Rollup: all\r\nX: y": 1});
    let task = fleet.submit_raw("h", Some("application/json"), serde_json::to_vec(&body).unwrap()).await;
    assert_eq!(fleet.end(&task).await.reason, Some(Reason::InvalidAssignment));
    let dead = fleet.dead().await;
    assert_eq!(dead.len(), 1);
    let error = dead[0].header("Windlass-Error").unwrap();
    assert!(error.contains("Nats-Rollup") && !error.contains(['\r', '\n']), "{error:?}");
    assert!(dead[0].header("Nats-Rollup").is_none() && dead[0].header("X").is_none());
    fleet.finish().await;
}

#[tokio::test]
async fn a_working_directory_is_below_the_tasks_own() {
    let Some(fleet) = Fleet::with_worker(1, &[]).await else { return };
    for dir in ["..", "../..", "a/../../..", "./..", "/etc/..", "../../spool", "..//..", "/proc/self/root/.."] {
        let task = fleet.submit(&Job::argv(["pwd"]).set("/execution/working_dir", dir)).await;
        let end = fleet.end(&task).await;
        let error = end.error.unwrap_or_default();
        assert_eq!(end.reason, Some(Reason::InvalidAssignment), "{dir}: {error}");
        assert!(error.starts_with("execution.working_dir: ") && error.contains(dir), "{error}");
    }
    for (dir, end_of_path) in [(".", "/work\n"), ("./", "/work\n")] {
        let task = fleet.submit(&Job::argv(["pwd"]).set("/execution/working_dir", dir)).await;
        let end = fleet.end(&task).await;
        let seen = String::from_utf8(fleet.output(&task, &end, LogStream::Stdout).await).unwrap();
        assert!(seen.ends_with(end_of_path), "{dir}: {seen}");
    }
    for dir in ["missing", "~", "...", "work"] {
        let task = fleet.submit(&Job::argv(["pwd"]).set("/execution/working_dir", dir)).await;
        let end = fleet.end(&task).await;
        assert_eq!(end.reason, Some(Reason::SpawnFailed), "{dir}: {:?}", end.error);
    }
    fleet.finish().await;
}

#[tokio::test]
async fn forbidden_directories_cannot_be_worked_in() {
    let Some(world) = World::new("standard", &[]).await else { return };
    let victim = world.victim("globex").await;
    let mut closed = vec![victim.root.clone(), victim.root.join("work")];
    for instance in instances(&world.worker) {
        closed.extend([instance.join("spool"), instance.join("commit")]);
    }
    closed.push("/root".into());
    for dir in closed {
        let dir = dir.display().to_string();
        let task = world.fleet.submit(&Job::argv(["ls"]).set("/execution/working_dir", dir.as_str())).await;
        let end = world.fleet.end(&task).await;
        let out = world.fleet.output(&task, &end, LogStream::Stdout).await;
        assert!(out.is_empty() && end.reason != Some(Reason::Ok), "{dir}: {:?} {}", end.reason, String::from_utf8_lossy(&out));
        assert!(matches!(end.reason, Some(Reason::SpawnFailed | Reason::ExitNonzero)), "{dir}: {:?} {:?}", end.reason, end.error);
    }
    let seen = world.run(&Job::argv(["pwd"]).set("/execution/working_dir", "/usr")).await;
    assert_eq!(seen.lines, ["/usr"], "one that tasks may use");
    victim.ends_unharmed(&world).await;
    world.fleet.finish().await;
}
