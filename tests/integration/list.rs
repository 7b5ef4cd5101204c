//! `windlass list` and the filters of `windlass events`: what an operator finds, in a fleet's whole variety and among many.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use windlass::task::EventKind;

use super::cli::{code, json_lines, run, said, text};
use crate::harness::job::Gate;
use crate::harness::orchestrator::Link;
use crate::harness::{Fleet, Job, PATIENCE, Task};

/// What a verb prints, line by line.
async fn lines(fleet: &Fleet, args: &[&str]) -> Vec<Value> {
    let output = run(fleet.cli([args, &["-o", "json"]].concat())).await;
    assert_eq!(code(&output), 0, "{args:?}: {}", said(&output));
    json_lines(&output)
}

fn ids(rows: &[Value]) -> Vec<&str> {
    rows.iter().map(|row| row["task_id"].as_str().expect("an id")).collect()
}

/// A fleet with a task in each state, and in which order something happened to them last.
async fn one_of_each(fleet: &Fleet) -> (Vec<Task>, Gate) {
    let worker = fleet.worker(&[("CAPACITY__SLOTS", "1")]);
    let mut tasks = Vec::new();
    for job in [
        Job::argv(["true"]).set("/name", "the good \u{1b}[31mone").id("good"),
        Job::bash("exit 3").id("bad").set("/workflow_id", "nightly"),
        Job::bash("sleep 1000").timeout(0.2).grace(0.0).id("slow"),
    ] {
        let task = fleet.submit(&job).await;
        fleet.end(&task).await;
        tasks.push(task);
    }
    let backoff = json!({"initial_ms": 3_000_000, "factor": 1.0, "max_ms": 3_000_000});
    let again = Job::bash("exit 4").set("/retry", json!({"max_attempts": 2, "on": ["failure"], "backoff": backoff})).id("again");
    let task = fleet.submit(&again).await;
    fleet.event(&task, EventKind::TaskRetrying).await;
    tasks.push(task);
    let unwanted = fleet.submit(&Job::bash("sleep 1000").grace(0.0).id("unwanted")).await;
    fleet.event(&unwanted, EventKind::TaskStarted).await;
    fleet.cancel(&unwanted).await;
    fleet.end(&unwanted).await;
    tasks.push(unwanted);
    let gate = Gate::new(&fleet.dir, "list");
    let running = fleet.submit(&Job::bash(gate.wait()).id("runs")).await;
    fleet.event(&running, EventKind::TaskStarted).await;
    tasks.push(running);
    let mut foreign = Job::argv(["true"]).id("waits").set("/workflow_id", "nightly").set("/name", "patient").priority("low").msgpack();
    foreign.tenant = "other".into();
    tasks.push(fleet.submit(&foreign).await);
    worker.ready().await;
    (tasks, gate)
}

#[tokio::test]
async fn every_task_is_listed_newest_first_as_status_tells_it() {
    let Some(fleet) = Fleet::start(&[]).await else { return };
    let (tasks, gate) = one_of_each(&fleet).await;
    let rows = lines(&fleet, &["list"]).await;
    assert_eq!(ids(&rows), ["waits", "runs", "unwanted", "again", "slow", "bad", "good"]);
    for (row, task) in rows.iter().zip(tasks.iter().rev()) {
        let status = lines(&fleet, &["status", &task.id]).await.remove(0);
        for key in ["task_id", "tenant", "class", "state", "attempt", "outcome", "reason", "exit_code", "submitted_at", "sequence"] {
            assert_eq!(row[key], status[key], "{key} of {}: {row} {status}", task.id);
        }
    }
    assert_eq!((&rows[0]["name"], &rows[0]["workflow_id"]), (&json!("patient"), &json!("nightly")), "as its message says, in MessagePack");
    assert_eq!(rows[0]["queued"]["priority"], "low");
    let before_all = rows[6]["submitted_at"].as_str().unwrap().to_owned();
    let since_bad = rows[5]["at"].as_str().unwrap().to_owned();
    for (args, expected) in [
        (&["--tenant", "other"][..], &["waits"][..]),
        (&["--tenant", "acme", "--limit", "2"], &["runs", "unwanted"]),
        (&["--class", "cpu_long"], &[]),
        (&["--class", "cpu_short", "-n", "1"], &["waits"]),
        (&["--workflow", "nightly"], &["waits", "bad"]),
        (&["--state", "pending"], &["waits"]),
        (&["--state", "RUNNING"], &["runs"]),
        (&["--state", "running,retrying"], &["runs", "again"]),
        (&["--state", "running,failed"], &["runs", "bad"]),
        (&["--state", "pending,succeeded"], &["waits", "good"]),
        (&["--state", "failed,timeout,canceled"], &["unwanted", "slow", "bad"]),
        (&["--state", "succeeded"], &["good"]),
        (&["--outcome", "failure"], &["again", "bad"]),
        (&["--outcome", "failure", "--state", "failed"], &["bad"]),
        (&["--reason", "timeout,canceled"], &["unwanted", "slow"]),
        (&["--since", "1h"], &["waits", "runs", "unwanted", "again", "slow", "bad", "good"]),
        (&["--since", &before_all, "--state", "succeeded"], &["good"]),
        (&["--since", &since_bad, "--outcome", "failure"], &["again", "bad"]),
        (&["--since", &since_bad, "--state", "succeeded"], &[]),
    ] {
        assert_eq!(ids(&lines(&fleet, &[&["list"], args].concat()).await), expected, "{args:?}");
    }
    let output = run(fleet.cli(["list"])).await;
    let table = text(&output);
    assert!(table.starts_with("TASK") && table.lines().count() == 8, "{table}");
    assert!(!table.contains('\u{1b}') && table.contains("the good \u{fffd}[31mone"), "what tasks wrote drives no terminal: {table}");
    for wrong in [["--state", "sleeping"], ["--reason", "bad"], ["--since", "soon"], ["--limit", "0"]] {
        let output = run(fleet.cli([&["list"][..], &wrong].concat())).await;
        assert_eq!(code(&output), 2, "{wrong:?}: {}", said(&output));
    }
    gate.open();
    // One waits for its second attempt for longer than anybody would here.
    for task in tasks.iter().filter(|task| task.id != "again") {
        fleet.end(task).await;
    }
    fleet.finish_unchecked().await;
}

#[tokio::test]
async fn events_are_picked_by_what_they_say() {
    let Some(fleet) = Fleet::start(&[]).await else { return };
    let (tasks, gate) = one_of_each(&fleet).await;
    let kinds = |rows: &[Value]| -> Vec<String> {
        let one =
            |row: &Value| format!("{} {}", row["event"]["task"]["task_id"].as_str().unwrap(), row["event"]["event"].as_str().unwrap());
        rows.iter().map(one).collect()
    };
    let all = lines(&fleet, &["events"]).await;
    assert_eq!(all.len(), 11, "{:?}", kinds(&all));
    let since = all[5]["event"]["time"].as_str().unwrap().to_owned();
    for (args, expected) in [
        (&["--tenant", "other"][..], &[][..]),
        (&["--workflow", "nightly"], &["bad task_started", "bad task_failed"]),
        (&["--event", "task_completed"], &["good task_completed"]),
        (&["--event", "task_retrying,task_completed"], &["good task_completed", "again task_retrying"]),
        (&["--outcome", "failure,timeout"], &["bad task_failed", "slow task_failed", "again task_retrying"]),
        (&["--reason", "canceled"], &["unwanted task_failed"]),
        (
            &["--worker", "worker-0", "--class", "cpu_short", "--event", "task_started", "--tenant", "acme", "--workflow", "nightly"],
            &["bad task_started"],
        ),
        (&["--worker", "worker-1"], &[]),
        (&["--class", "cpu_long"], &[]),
        (&["bad", "--event", "task_failed"], &["bad task_failed"]),
        (&["bad", "--event", "task_completed"], &[]),
        (&["bad", "-f", "--event", "task_started"], &["bad task_started"]),
        (&["--since", &since, "--outcome", "failure"], &["again task_retrying"]),
    ] {
        assert_eq!(kinds(&lines(&fleet, &[&["events"], args].concat()).await), expected, "{args:?}");
    }
    // Of the past and of what comes, only what was asked for, and each once.
    let mut verb = fleet.cli(["events", "-f", "--since", &since, "--event", "task_failed,task_completed", "-o", "json"]);
    let mut follower = verb.stdout(Stdio::piped()).spawn().unwrap();
    let mut told = BufReader::new(follower.stdout.take().unwrap()).lines();
    let mut next = async || -> String {
        let line = tokio::time::timeout(PATIENCE, told.next_line()).await.expect("it comes").unwrap().expect("a line");
        kinds(&[serde_json::from_str(&line).unwrap()]).remove(0)
    };
    assert_eq!(next().await, "slow task_failed");
    assert_eq!(next().await, "unwanted task_failed");
    gate.open();
    assert_eq!(next().await, "runs task_completed");
    assert_eq!(next().await, "waits task_completed");
    follower.kill().await.unwrap();
    fleet.left_the_queue(&tasks[6]).await;
    fleet.finish_unchecked().await;
}

/// Publishes the chain of a task that has ended under other names, as if `count` more had run.
async fn multiply(fleet: &Fleet, chain: &[Link], count: usize) {
    let told: Vec<Value> = chain.iter().map(|link| serde_json::from_slice(&link.stored.body).expect("JSON")).collect();
    let mut sent = Vec::new();
    for n in 0..count {
        for body in &told {
            let mut body = body.clone();
            body["task"]["task_id"] = format!("copy-{n}").into();
            if n == 0 && body["event"] == "task_completed" {
                (body["event"], body["outcome"], body["reason"]) = ("task_failed".into(), "failure".into(), "oom_killed".into());
            }
            let subject = format!("{}.events.acme.copy-{n}.{}", fleet.prefix, body["event"].as_str().expect("a kind"));
            sent.push(fleet.js.publish(subject, body.to_string().into()).await.expect("sent"));
        }
        if sent.len() >= 512 || n + 1 == count {
            for stored in sent.drain(..) {
                stored.await.expect("stored");
            }
        }
    }
}

#[tokio::test]
async fn among_many_the_newest_and_the_rarest_are_found() {
    let Some(fleet) = Fleet::start(&[]).await else { return };
    let count = std::env::var("WINDLASS_TEST_TASKS").ok().and_then(|n| n.parse().ok()).unwrap_or(3000);
    let worker = fleet.worker(&[]);
    let task = fleet.submit(&Job::argv(["true"])).await;
    fleet.end(&task).await;
    worker.signal(rustix::process::Signal::TERM);
    worker.exit(PATIENCE).await;
    multiply(&fleet, &fleet.chain(&task), count).await;
    for n in 0..600 {
        fleet.publish(&format!("{}.tasks.cpu_short.normal.acme.queued-{n}", fleet.prefix), None, "{}").await.expect("queued");
    }
    let timed = async |args: &[&str]| {
        let before = std::time::Instant::now();
        let rows = lines(&fleet, args).await;
        println!("{args:?}: {} lines in {:?}", rows.len(), before.elapsed());
        rows
    };
    let rows = timed(&["list"]).await;
    assert_eq!(rows.len(), 50, "the default");
    assert_eq!((ids(&rows)[0], ids(&rows)[49]), ("queued-599", "queued-550"));
    let rows = timed(&["list", "-n", "700"]).await;
    assert_eq!((ids(&rows)[599], ids(&rows)[600]), ("queued-0", format!("copy-{}", count - 1).as_str()));
    let rows = timed(&["list", "-n", "1000000"]).await;
    assert_eq!(rows.len(), count + 601);
    let mut names = ids(&rows);
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count + 601, "each once");
    assert!(rows.windows(2).all(|pair| pair[0]["at"].as_str() >= pair[1]["at"].as_str()), "newest first");
    let rows = timed(&["list", "--reason", "oom_killed"]).await;
    assert_eq!((ids(&rows), &rows[0]["state"]), (vec!["copy-0"], &json!("FAILED")), "the oldest of all but one");
    assert_eq!(ids(&timed(&["list", "--state", "failed"]).await), ["copy-0"]);
    assert_eq!(timed(&["list", "--state", "pending", "-n", "1000"]).await.len(), 600);
    assert_eq!(ids(&timed(&["list", "--state", "pending", "-n", "2"]).await), ["queued-599", "queued-598"]);
    assert_eq!(timed(&["list", "--state", "running"]).await.len(), 0);
    assert_eq!(timed(&["list", "--class", "none"]).await.len(), 0);
    let told = timed(&["events"]).await;
    assert_eq!(told.len(), 2 * (count + 1));
    assert!(told.windows(2).all(|pair| pair[0]["sequence"].as_u64() < pair[1]["sequence"].as_u64()));
    fleet.finish_unchecked().await;
}

#[tokio::test]
async fn streams_of_before_are_mended_by_init() {
    let Some(fleet) = Fleet::with_worker(1, &[]).await else { return };
    let task = fleet.submit(&Job::argv(["true"])).await;
    fleet.end(&task).await;
    for kind in ["TASKS", "EVENTS"] {
        let mut config = fleet.js.get_stream(fleet.stream(kind)).await.unwrap().cached_info().config.clone();
        assert!(config.allow_direct, "{kind}");
        config.allow_direct = false;
        fleet.js.update_stream(config).await.unwrap();
    }
    let output = run(fleet.cli(["list"])).await;
    assert_eq!(code(&output), 1, "{}", said(&output));
    assert!(said(&output).contains("windlass init"), "{}", said(&output));
    assert_eq!(lines(&fleet, &["events"]).await.len(), 2, "slower, but they are read");
    let other = fleet.worker(&[]);
    other.ready().await;
    let output = run(fleet.cli(["init"])).await;
    assert_eq!(code(&output), 0, "{}", said(&output));
    assert!(text(&output).contains("allow_direct"), "{}", said(&output));
    assert_eq!(ids(&lines(&fleet, &["list"]).await), [task.id.as_str()]);
    fleet.finish().await;
}
