//! `windlass workers`: who is there, who drains, who is lost.

use std::process::Stdio;

use rustix::process::Signal;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::ChildStdout;
use windlass::task::EventKind;

use super::cli::{code, json_lines, run, said, text};
use crate::harness::job::Gate;
use crate::harness::{Fleet, Job, PATIENCE};

/// The next line about that worker in that state.
async fn told(lines: &mut Lines<BufReader<ChildStdout>>, worker: &str, state: &str) -> Value {
    let mut seen = Vec::new();
    let waiting = async {
        loop {
            let line: Value = serde_json::from_str(&lines.next_line().await.unwrap().expect("it goes on")).unwrap();
            if line["worker_id"] == worker && line["state"] == state {
                return line;
            }
            seen.push(line);
        }
    };
    match tokio::time::timeout(PATIENCE, waiting).await {
        Ok(line) => line,
        Err(_) => panic!("{worker} did not become {state}: {seen:?}"),
    }
}

#[tokio::test]
async fn a_watcher_sees_workers_come_drain_get_lost_and_go() {
    let Some(fleet) = Fleet::start(&[]).await else { return };
    let mut watch = fleet.cli(["workers", "--watch", "-o", "json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let worker = fleet.worker(&[("CAPACITY__SLOTS", "3")]);
    let doomed = fleet.worker(&[]);
    let line = told(&mut lines, &worker.id, "ready").await;
    assert_eq!((&line["slots"], &line["running"]), (&3.into(), &0.into()), "{line}");
    assert_eq!((&line["classes"][0], line["version"].as_str()), (&"cpu_short".into(), Some(env!("CARGO_PKG_VERSION"))), "{line}");
    let old = told(&mut lines, &doomed.id, "ready").await["instance"].clone();
    doomed.kill9().await;
    let gate = Gate::new(&fleet.dir, "workers");
    let task = fleet.submit(&Job::bash(gate.wait())).await;
    fleet.event(&task, EventKind::TaskStarted).await;
    worker.signal(Signal::TERM);
    let line = told(&mut lines, &worker.id, "draining").await;
    assert_eq!(line["running"], 1, "{line}");
    let table = run(fleet.cli(["workers"])).await;
    assert_eq!(code(&table), 0, "{}", said(&table));
    assert!(text(&table).starts_with("WORKER") && text(&table).contains("draining"), "{}", said(&table));
    let line = told(&mut lines, &doomed.id, "lost").await;
    assert_eq!(line["instance"], old);
    told(&mut lines, &doomed.id, "gone").await;
    let successor = fleet.worker_named(&doomed.id, &[]);
    assert_ne!(told(&mut lines, &doomed.id, "ready").await["instance"], old);
    gate.open();
    assert!(worker.exit(PATIENCE).await.success());
    let left = json_lines(&run(fleet.cli(["workers", "-o", "json"])).await);
    assert_eq!(left.len(), 1, "who ended as asked is gone at once: {left:?}");
    assert_eq!(left[0]["worker_id"], successor.id.as_str());
    told(&mut lines, &worker.id, "gone").await;
    watch.kill().await.unwrap();
    fleet.finish().await;
}

#[tokio::test]
async fn tables_follow_each_other_where_no_terminal_is() {
    let Some(fleet) = Fleet::with_worker(1, &[]).await else { return };
    let mut watch = fleet.cli(["workers", "-w"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let (mut headings, mut workers) = (0, 0);
    while headings < 2 || workers < 1 {
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("it goes on").unwrap().expect("it goes on");
        assert!(!line.contains('\u{1b}'), "{line:?}");
        headings += u32::from(line.starts_with("WORKER"));
        workers += u32::from(line.starts_with("worker-0"));
    }
    rustix::process::kill_process(rustix::process::Pid::from_raw(watch.id().unwrap().cast_signed()).unwrap(), Signal::INT).unwrap();
    let status = tokio::time::timeout(PATIENCE, watch.wait()).await.expect("Ctrl-C ends it").unwrap();
    assert_eq!(status.code(), Some(0));
    fleet.finish().await;
}
