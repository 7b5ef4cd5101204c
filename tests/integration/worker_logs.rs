//! The worker's own log: whose line it is, as JSON and for people, and its level changed while it runs.

use rustix::process::Signal;
use serde_json::Value;
use windlass::task::Reason;

use crate::harness::job::Gate;
use crate::harness::server::{Options, Server};
use crate::harness::worker::Worker;
use crate::harness::{Fleet, Job};

/// Every line of a worker that logs JSON.
fn lines(worker: &Worker) -> Vec<Value> {
    let lines = worker.whole_log();
    lines.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

#[tokio::test]
async fn lines_about_a_task_say_whose_it_is() {
    let Some(server) = Server::private(Options::default()) else { return };
    let fleet = Fleet::on(server, &[]).await;
    // At this level alone nothing of a task would be said.
    let worker = fleet.worker(&[("LOG__FORMAT", "json"), ("LOG__LEVEL", "warn,windlass::worker=info,windlass::report=debug")]);
    let gate = Gate::new(&fleet.dir, "said");
    let job = Job::bash(format!("echo up; {}; echo more", gate.wait())).set("/workflow_id", "nightly-7");
    let task = fleet.submit(&job).await;
    fleet.output_has(&task, "up").await;
    // What is published meanwhile is not confirmed: a line of a task of the runtime's that the attempt has started.
    fleet.server.kill9();
    gate.open();
    worker.says(&["\"chunk not confirmed\"", &task.id]).await;
    fleet.server.restart();
    assert_eq!(fleet.end(&task).await.reason, Some(Reason::Ok));
    fleet.left_the_queue(&task).await;
    let lines = lines(&worker);
    for line in &lines {
        for key in ["timestamp", "level", "target", "message"] {
            assert!(line[key].is_string(), "{key} in {line}");
        }
    }
    for message in ["started", "chunk not confirmed", "ended"] {
        let line = lines.iter().find(|line| line["message"] == message).unwrap_or_else(|| panic!("no {message:?}\n{}", worker.log()));
        let span = &line["span"];
        assert_eq!(
            (&span["task_id"], &span["tenant"], &span["class"], &span["workflow_id"], &span["attempt"]),
            (&task.id.as_str().into(), &"acme".into(), &"cpu_short".into(), &"nightly-7".into(), &1.into()),
            "{line}"
        );
    }
    assert!(lines.iter().any(|line| line["message"] == "ready" && line.get("span").is_none()), "what is about no task has none");
    fleet.finish().await;
}

#[tokio::test]
async fn people_read_the_same() {
    let Some(fleet) = Fleet::start(&[("LOG__LEVEL", "warn,windlass::worker=info")]).await else { return };
    let worker = fleet.worker(&[]);
    let task = fleet.submit(&Job::bash("exit 3")).await;
    fleet.end(&task).await;
    let line = worker.says(&["ended", &task.id]).await;
    for part in [&format!("task_id={} ", task.id) as &str, "tenant=acme", "class=cpu_short", "attempt=1", "reason=exit_nonzero"] {
        assert!(line.contains(part), "{part} in {line}");
    }
    assert!(!line.contains("workflow_id"), "{line}");
    fleet.left_the_queue(&task).await;
    fleet.finish().await;
}

#[tokio::test]
async fn the_level_changes_while_it_runs() {
    let Some(fleet) = Fleet::start(&[]).await else { return };
    let file = fleet.root().join("worker.toml");
    let write = |text: &str| std::fs::write(&file, text).unwrap();
    let defaults = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config/worker.toml")).unwrap();
    write(&defaults);
    // The environment goes before the file.
    let worker = fleet.worker(&[("unset:LOG__LEVEL", "")]);
    worker.is_fit().await;
    let run = async || {
        let task = fleet.submit(&Job::argv(["true"])).await;
        fleet.end(&task).await;
        fleet.left_the_queue(&task).await;
        task
    };
    let level = |level: &str| write(&defaults.replace("level = \"info\"", &format!("level = {level:?}")));
    run().await;
    worker.signal(Signal::HUP);
    worker.says(&["log.level is what it was", "level=\"info\""]).await;
    assert!(!worker.said("pull filled"), "{}", worker.log());

    level("info,windlass::bus::pull=trace");
    worker.signal(Signal::HUP);
    worker.says(&["log.level changed", "from=\"info\"", "to=\"info,windlass::bus::pull=trace\""]).await;
    run().await;
    worker.says(&["TRACE", "pull filled"]).await;

    level("info,windlass=loud");
    worker.signal(Signal::HUP);
    worker.says(&["ERROR", "has mistakes, nothing changes", "log.level", "loud"]).await;
    write(&defaults.replace("level = \"info\"", "level = \"warn\"\nlevle = \"warn\""));
    worker.signal(Signal::HUP);
    worker.says(&["has mistakes, nothing changes", "log.levle"]).await;
    let filled = worker.times_said("pull filled");
    run().await;
    worker.says_times(filled + 1, &["TRACE", "pull filled"]).await;

    // Other keys are only noticed; and no level shows what passes on the wire.
    write(&defaults.replace("level = \"info\"", "level = \"trace\"").replace("flush_ms = 100", "flush_ms = 50"));
    worker.signal(Signal::HUP);
    worker.says(&["log.level changed", "to=\"trace\""]).await;
    worker.says(&["WARN", "other keys", "from the next start"]).await;
    run().await;
    worker.says(&["TRACE", "pull filled"]).await;
    assert!(!worker.said("async_nats::connection"), "{}", worker.log());

    level("error");
    worker.signal(Signal::HUP);
    worker.says(&["log.level changed", "to=\"error\""]).await;
    let started = worker.times_said(": started");
    let quiet = run().await;
    assert_eq!(worker.times_said(": started"), started, "task {} was spoken of\n{}", quiet.id, worker.log());
    level("info");
    worker.signal(Signal::HUP);
    worker.says(&["from=\"error\"", "to=\"info\""]).await;
    fleet.finish().await;
}
