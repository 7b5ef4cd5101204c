//! `windlass bench`: figures that the events confirm, and nothing left behind.

use std::process::{Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use windlass::task::{Event, EventKind, Reason};

use crate::harness::job::Gate;
use crate::harness::{Fleet, Job, PATIENCE, Task};

async fn bench(fleet: &Fleet, more: &[&str]) -> Output {
    let mut command = fleet.cli([&["bench"], more].concat());
    tokio::time::timeout(PATIENCE, command.output()).await.expect("it ends").expect("windlass starts")
}

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
}

/// Waits for the ends of all, and has the checker look at them.
async fn ends(fleet: &Fleet, run: &str, tasks: usize) -> Vec<(Event, Event)> {
    let mut all = Vec::new();
    for number in 0..tasks {
        let task = Task { tenant: "default".into(), id: format!("{run}-{number}") };
        let end = fleet.end(&task).await;
        let start = fleet.chain(&task).first().expect("a chain").event.clone();
        fleet.count(&task);
        all.push((start, end));
    }
    all
}

/// Microseconds that a step took, by its task's first event and its last.
type Step = fn(&Event, &Event) -> i64;

fn rank(mut all: Vec<f64>, percent: usize) -> f64 {
    all.sort_by(f64::total_cmp);
    all[(all.len() * percent).div_ceil(100) - 1]
}

#[tokio::test]
async fn its_figures_are_those_of_the_events() {
    let Some(fleet) = Fleet::with_worker(4, &[]).await else { return };
    let output = bench(&fleet, &["--tasks", "50", "--concurrency", "8", "-o", "json"]).await;
    assert!(output.status.success(), "{output:?}");
    let report = report(&output);
    assert_eq!((report["submitted"].as_u64(), report["completed"].as_u64(), report["unfinished"].as_u64()), (Some(50), Some(50), Some(0)));
    let run = report["run"].as_str().expect("a name");
    assert!(run.starts_with("bench-"), "{run}");
    let events = ends(&fleet, run, 50).await;
    let micros = |e: &Event| e.time.as_micros();
    let steps: [(&str, Step); 4] = [
        ("queue_wait", |start, _| i64::try_from(start.run.as_ref().expect("run").queued_ms).expect("small") * 1000),
        ("publish_to_started", |start, _| start.time.as_micros() - start.task.submitted_at.as_micros()),
        ("started_to_completed", |start, end| end.time.as_micros() - start.time.as_micros()),
        ("end_to_end", |_, end| end.time.as_micros() - end.task.submitted_at.as_micros()),
    ];
    for (name, step) in steps {
        let all: Vec<f64> = events.iter().map(|(start, end)| step(start, end).max(0) as f64 / 1000.0).collect();
        for (figure, percent) in [("p50", 50), ("p90", 90), ("p99", 99), ("max", 100)] {
            let shown = report["latency_ms"][name][figure].as_f64().expect("a figure");
            assert!((shown - rank(all.clone(), percent)).abs() < 1e-6, "{name} {figure}: {report}");
        }
    }
    let first = events.iter().map(|(start, _)| start.task.submitted_at.as_micros()).min().expect("some");
    let last = events.iter().map(|(_, end)| micros(end)).max().expect("some");
    let rate = 50.0 / ((last - first) as f64 / 1e6);
    assert!((report["completed_per_s"].as_f64().expect("a rate") - rate).abs() < 1e-6 * rate, "{report}");
    assert!(report["latency_ms"]["publish"]["p50"].as_f64() > Some(0.0), "{report}");
    let output = bench(&fleet, &["--tasks", "3"]).await;
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(text.contains("completed per second") && text.contains("end to end"), "{text}");
    fleet.finish().await;
}

#[tokio::test]
async fn tasks_that_fail_are_no_success() {
    let Some(fleet) = Fleet::with_worker(2, &[]).await else { return };
    let output = bench(&fleet, &["--tasks", "3", "--command", "sh -c false", "-o", "json"]).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let report = report(&output);
    assert_eq!((report["failed"].as_u64(), report["completed"].as_u64()), (Some(3), Some(0)), "{report}");
    assert!(report["latency_ms"]["end_to_end"].is_null(), "nothing completed: {report}");
    let output = bench(&fleet, &["--command", ""]).await;
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    fleet.finish().await;
}

#[tokio::test]
async fn without_a_worker_it_gives_up_and_its_tasks_never_run() {
    let Some(fleet) = Fleet::start(&[]).await else { return };
    let marker = fleet.dir.join("ran");
    let command = format!("touch {}", marker.display());
    let output = bench(&fleet, &["--tasks", "5", "--patience", "1", "--command", &command]).await;
    assert_eq!(output.status.code(), Some(124), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("no worker serves class cpu_short"), "{said}");
    let queued = fleet.queued().await;
    assert_eq!(queued.len(), 5);
    fleet.worker(&[]);
    for message in queued {
        let id = message.subject.rsplit('.').next().expect("an id").to_owned();
        let task = Task { tenant: "default".into(), id };
        fleet.count(&task);
        assert_eq!(fleet.end(&task).await.reason, Some(Reason::Canceled));
    }
    assert!(!marker.exists(), "a task that was canceled ran");
    fleet.finish().await;
}

#[tokio::test]
async fn an_interrupt_cancels_what_is_left_and_nothing_else() {
    let Some(fleet) = Fleet::with_worker(2, &[]).await else { return };
    let gate = Gate::new(&fleet.dir, "stranger");
    let stranger = fleet.submit(&Job::bash(gate.wait()).timeout(600.0)).await;
    fleet.event(&stranger, EventKind::TaskStarted).await;
    let mut verb = fleet.cli(["bench", "--tasks", "20", "--command", "sleep 1000", "-o", "json"]);
    let child = verb.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("windlass starts");
    let deadline = std::time::Instant::now() + PATIENCE;
    let own = |message: &crate::harness::feed::Stored| message.subject.contains(".bench-");
    let first = loop {
        let queued = fleet.queued().await;
        if let Some(message) = queued.iter().find(|m| own(m)) {
            break message.subject.rsplit('.').next().expect("an id").to_owned();
        }
        assert!(std::time::Instant::now() < deadline, "nothing was queued");
        // A queued message is no event that could be waited for.
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    fleet.event(&Task { tenant: "default".into(), id: first }, EventKind::TaskStarted).await;
    kill_process(Pid::from_raw(child.id().expect("it runs").cast_signed()).expect("not zero"), Signal::INT).expect("it runs");
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.expect("it ends").expect("wait");
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    let report = report(&output);
    assert_eq!((report["canceled"].as_u64(), report["unfinished"].as_u64()), (report["submitted"].as_u64(), Some(0)), "{report}");
    let left: Vec<_> = fleet.queued().await.into_iter().filter(own).collect();
    for message in &left {
        // One whose publish was under way: it ends as the others did.
        let task = Task { tenant: "default".into(), id: message.subject.rsplit('.').next().expect("an id").to_owned() };
        assert_eq!(fleet.end(&task).await.reason, Some(Reason::Canceled));
    }
    gate.open();
    assert_eq!(fleet.end(&stranger).await.reason, Some(Reason::Ok), "what is not its own goes on");
    fleet.finish().await;
}
