//! `windlass top`: on a terminal of its own, and as a snapshot.

use std::process::Output;

use rustix::process::Signal;
use serde_json::{Value, json};
use windlass::task::EventKind;

use crate::harness::job::Gate;
use crate::harness::pty::Pty;
use crate::harness::server::Options;
use crate::harness::{Fleet, Job, PATIENCE, Server};

async fn once(fleet: &Fleet, more: &[&str]) -> Output {
    let mut command = fleet.cli([&["top", "--once"], more].concat());
    tokio::time::timeout(PATIENCE, command.output()).await.expect("it ends").expect("windlass starts")
}

fn top(fleet: &Fleet) -> Pty {
    Pty::start(fleet.cli(["top"]), 40, 160)
}

/// A task that reports and then waits.
fn reporting(gate: &Gate, report: &str) -> Job {
    Job::bash(format!("printf '%s\\n' '{report}' >> \"$WINDLASS_PROGRESS\"; {}", gate.wait())).timeout(600.0)
}

#[tokio::test]
async fn a_task_is_seen_from_its_start_over_its_progress_to_its_end() {
    if !Pty::available() {
        return;
    }
    let Some(fleet) = Fleet::with_worker(2, &[]).await else { return };
    let (first, second) = (Gate::new(&fleet.dir, "first"), Gate::new(&fleet.dir, "second"));
    let early = fleet.submit(&reporting(&first, r#"{"stage":"LOAD","pct":70}"#).id("early")).await;
    fleet.event(&early, EventKind::TaskProgress).await;
    let mut top = top(&fleet);
    // What ran before it was started is there too.
    top.line(&["early", "acme", "cpu_short", "1/3", "worker-0", "70 %", "LOAD"]).await;
    let late = fleet.submit(&reporting(&second, r#"{"stage":"FIT","pct":40,"message":"x\u001b[2J\u202ey"}"#).id("late")).await;
    // What stands for a character that could drive a terminal is not shown by this one.
    top.line(&["late", "40 %", "FIT", "x[2Jy"]).await;
    top.line(&["worker-0", "2/2"]).await;
    let waiting = fleet.submit(&Job::argv(["true"]).id("waiting")).await;
    top.line(&["queues, 1 waiting"]).await;
    top.line(&["cpu_short", "normal", "1"]).await;
    second.open();
    fleet.end(&late).await;
    fleet.end(&waiting).await;
    top.until("a screen without the task that is over", |text| (!text.contains("late") && text.contains("early")).then_some(())).await;
    top.press(b"/no-such");
    top.line(&["filter", "no-such"]).await;
    top.until("a screen without what the filter excludes", |text| text.contains("running 0").then_some(())).await;
    // Escape ends the filter; the second one the view.
    top.press(b"\x1b");
    top.line(&["early"]).await;
    top.press(b"q");
    assert!(top.end().await.success());
    first.open();
    fleet.end(&early).await;
    fleet.finish().await;
}

#[tokio::test]
async fn the_terminal_is_given_back_however_it_ends() {
    if !Pty::available() {
        return;
    }
    let Some(fleet) = Fleet::start(&[]).await else { return };
    for signal in [Some(Signal::TERM), Some(Signal::INT), None] {
        let mut top = top(&fleet);
        top.line(&["queues, 0 waiting"]).await;
        match signal {
            Some(signal) => top.signal(signal),
            // In raw mode Ctrl-C is a key.
            None => top.press(b"\x03"),
        }
        assert!(top.end().await.success(), "{signal:?}");
    }
    fleet.finish_unchecked().await;
}

#[tokio::test]
async fn it_says_that_it_is_disconnected_and_goes_on_afterwards() {
    if !Pty::available() {
        return;
    }
    let Some(server) = Server::private(Options::default()) else { return };
    let fleet = Fleet::on(server, &[]).await;
    let mut top = top(&fleet);
    top.line(&["queues, 0 waiting"]).await;
    fleet.server.kill9();
    top.line(&["disconnected"]).await;
    fleet.server.restart();
    top.until("a screen that is not old", |text| (!text.contains("disconnected")).then_some(())).await;
    let gate = Gate::new(&fleet.dir, "after");
    fleet.worker(&[]);
    let task = fleet.submit_surely(&Job::bash(gate.wait()).timeout(600.0).id("after")).await;
    top.line(&["after", "worker-0"]).await;
    gate.open();
    fleet.end(&task).await;
    top.until("a screen without the task that is over", |text| text.contains("running 0").then_some(())).await;
    top.press(b"q");
    assert!(top.end().await.success());
    fleet.finish().await;
}

#[tokio::test]
async fn a_snapshot_has_what_runs_waits_and_works() {
    let Some(fleet) = Fleet::with_worker(1, &[]).await else { return };
    let gate = Gate::new(&fleet.dir, "snapshot");
    let done = fleet.submit(&Job::argv(["true"])).await;
    fleet.end(&done).await;
    let task = fleet.submit(&reporting(&gate, r#"{"stage":"FIT","pct":40}"#).set("/name", "a\u{1b}name")).await;
    fleet.event(&task, EventKind::TaskProgress).await;
    let waiting = fleet.submit(&Job::argv(["true"]).priority("high")).await;
    let output = once(&fleet, &["-o", "json"]).await;
    assert!(output.status.success(), "{output:?}");
    let value: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let running = &value["running"][0];
    assert_eq!((&running["task_id"], &running["pct"], &running["stage"]), (&json!(task.id), &json!(40.0), &json!("FIT")), "{value}");
    assert_eq!((&running["worker_id"], &running["attempt"]), (&json!("worker-0"), &json!(1)), "{value}");
    let started = fleet.event(&task, EventKind::TaskStarted).await;
    let shown: windlass::task::Time = serde_json::from_value(running["started_at"].clone()).expect("a time");
    assert!(shown.as_micros().abs_diff(started.time.as_micros()) < 60_000_000, "{value}");
    let queues = value["queues"].as_array().expect("queues");
    let queue = |priority: &str| queues.iter().find(|q| q["class"] == "cpu_short" && q["priority"] == priority).cloned().expect("there");
    assert_eq!((&queue("high")["waiting"], &queue("high")["in_flight"]), (&json!(1), &json!(0)), "{value}");
    assert!(queue("high")["oldest"].is_string() && queue("normal")["oldest"].is_null(), "what runs does not wait: {value}");
    assert_eq!(queue("normal")["in_flight"], 1, "{value}");
    let minute = &value["per_second"]["last_60s"];
    assert!(minute["started"].as_f64() > Some(0.0) && minute["completed"].as_f64() > Some(0.0), "{value}");
    let output = once(&fleet, &["--filter", "nobody"]).await;
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(text.contains("running 0") && text.contains("queues, 1 waiting"), "{text}");
    let text = String::from_utf8(once(&fleet, &[]).await.stdout).expect("UTF-8");
    assert!(text.contains(&task.id) && text.contains("40 %") && !text.contains('\x1b'), "{text}");
    gate.open();
    fleet.end(&waiting).await;
    fleet.finish().await;
}

#[tokio::test]
async fn without_a_terminal_it_says_what_to_do() {
    let Some(fleet) = Fleet::start(&[]).await else { return };
    for args in [&["top"][..], &["top", "-o", "json"]] {
        let output = fleet.cli(args).output().await.expect("windlass starts");
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("windlass top --once"), "{output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
    }
    fleet.finish_unchecked().await;
}

/// Events of tasks that are long over, as they would be stored.
async fn old_events(fleet: &Fleet, tasks: usize) {
    use futures_util::StreamExt as _;
    let body = |task: usize, kind: &str| {
        json!({"v": 1, "event": kind, "id": "i", "time": "2026-01-01T00:00:00Z", "seq": 0, "nonce": "n", "prev_sha256": null,
            "task": {"task_id": format!("old-{task}"), "tenant": "acme", "class": "cpu_short", "attempt": 1, "max_attempts": 1,
                     "deliveries": 1, "submitted_at": "2026-01-01T00:00:00Z", "assignment_sha256": "", "context": null, "labels": {}},
            "worker": {"worker_id": "w", "instance": "i", "host": "h", "version": "0"}})
        .to_string()
    };
    // No end before its beginning.
    for kind in ["task_started", "task_completed"] {
        let publishes = futures_util::stream::iter(0..tasks).map(|task| {
            let subject = format!("{}.events.acme.old-{task}.{kind}", fleet.prefix);
            async move { fleet.publish(&subject, Some("application/json"), body(task, kind)).await.expect("stored") }
        });
        publishes.buffer_unordered(256).for_each(|_| std::future::ready(())).await;
    }
}

#[tokio::test]
async fn what_runs_is_found_without_reading_every_event() {
    // A server of its own: every request to it is counted.
    let Some(server) = Server::private(Options::default()) else { return };
    let fleet = Fleet::on(server, &[]).await;
    let gate = Gate::new(&fleet.dir, "many");
    fleet.worker(&[("CAPACITY__SLOTS", "3")]);
    let mut tasks = Vec::new();
    for _ in 0..3 {
        let task = fleet.submit(&Job::bash(gate.wait()).timeout(600.0)).await;
        fleet.event(&task, EventKind::TaskStarted).await;
        tasks.push(task);
    }
    // More than it reads for the rates.
    old_events(&fleet, 4000).await;
    let client = async_nats::connect(fleet.server.url()).await.expect("connected");
    let mut requests = client.subscribe("$JS.API.STREAM.MSG.GET.>").await.expect("subscribed");
    client.flush().await.expect("flushed");
    let output = once(&fleet, &["-o", "json"]).await;
    assert!(output.status.success(), "{output:?}");
    let value: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let mut found: Vec<&str> = value["running"].as_array().expect("a list").iter().filter_map(|t| t["task_id"].as_str()).collect();
    let mut expected: Vec<&str> = tasks.iter().map(|task| task.id.as_str()).collect();
    found.sort_unstable();
    expected.sort_unstable();
    assert_eq!(found, expected, "their events are older than 8000 others");
    // Whatever was asked came before this.
    client.publish("$JS.API.STREAM.MSG.GET.the-end", bytes::Bytes::new()).await.expect("published");
    let mut count = 0;
    loop {
        let message = futures_util::StreamExt::next(&mut requests).await.expect("the connection stays");
        if message.subject.ends_with("the-end") {
            break;
        }
        count += 1;
    }
    // Of the checker's own feed too, which asks when there is something new.
    assert!(count < 200, "{count} requests for single messages, of which there are more than 8000");
    gate.open();
    for task in &tasks {
        fleet.end(task).await;
    }
    fleet.finish_unchecked().await;
}
