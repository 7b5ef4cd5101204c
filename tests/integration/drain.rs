//! SIGTERM, or an operator who asks for the same: drain, deadline, abort.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use windlass::task::{EventKind, Reason};

use super::cli::{code, json_lines, run};
use crate::harness::job::Gate;
use crate::harness::server::{Options, Server};
use crate::harness::{Fleet, Job, PATIENCE};

#[tokio::test]
async fn a_draining_worker_finishes_what_runs_and_takes_nothing_new() {
    let Some(fleet) = Fleet::start(&[]).await else { return };
    let worker = fleet.worker(&[("CAPACITY__SLOTS", "1")]);
    let gate = Gate::new(&fleet.dir, "drain");
    let running = fleet.submit(&Job::bash(format!("trap 'exit 9' TERM; {}; echo finished", gate.wait()))).await;
    fleet.event(&running, EventKind::TaskStarted).await;
    let waiting = fleet.submit(&Job::argv(["true"])).await;
    worker.signal(Signal::TERM);
    let deadline = Instant::now() + PATIENCE;
    while !worker.log().contains("draining") {
        assert!(Instant::now() < deadline, "{}", worker.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    gate.open();
    assert!(worker.exit(PATIENCE).await.success());
    assert_eq!(fleet.end(&running).await.reason, Some(Reason::Ok), "drained means finished, not stopped");
    assert!(fleet.chain(&waiting).is_empty(), "a draining worker took new work");
    fleet.worker(&[]);
    // ack_wait is 30 s here: it comes at once only if it was never held, or given back.
    let second = Instant::now();
    fleet.end(&waiting).await;
    assert!(second.elapsed() < Duration::from_secs(10), "unstarted work was kept for {:?}", second.elapsed());
    fleet.finish().await;
}

#[tokio::test]
async fn after_the_deadline_what_runs_is_released_and_does_not_count() {
    let Some(fleet) = Fleet::start(&[("WORKER__DRAIN_TIMEOUT_S", "0.5")]).await else { return };
    let worker = fleet.worker(&[]);
    let job = Job::bash("echo up; [ $WINDLASS_ATTEMPT -gt 1 ] || sleep 1000").grace(0.2).set("/retry/max_attempts", 1);
    let task = fleet.submit(&job).await;
    fleet.output_has(&task, "up").await;
    worker.signal(Signal::TERM);
    assert!(worker.exit(PATIENCE).await.success());
    let released = fleet.event(&task, EventKind::TaskReleased).await;
    assert_eq!(released.task.attempt, 1);
    assert_eq!(fleet.processes_of(&task.id), []);
    let second = Instant::now();
    fleet.worker(&[]);
    let end = fleet.end(&task).await;
    assert_eq!(
        (end.reason, end.task.attempt, end.task.released_attempts),
        (Some(Reason::Ok), 2, 1),
        "max_attempts is 1, the release did not count"
    );
    assert!(second.elapsed() < Duration::from_secs(10), "released work waits for nothing: {:?}", second.elapsed());
    fleet.finish().await;
}

#[tokio::test]
async fn the_second_signal_aborts() {
    let Some(fleet) = Fleet::start(&[("WORKER__DRAIN_TIMEOUT_S", "600")]).await else { return };
    let worker = fleet.worker(&[]);
    let job = Job::bash("trap '' TERM; echo up; [ $WINDLASS_ATTEMPT -gt 1 ] || while :; do sleep 0.1; done").grace(60.0);
    let task = fleet.submit(&job).await;
    fleet.output_has(&task, "up").await;
    worker.signal(Signal::TERM);
    let deadline = Instant::now() + PATIENCE;
    while !worker.log().contains("draining") {
        assert!(Instant::now() < deadline, "{}", worker.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let asked = Instant::now();
    worker.signal(Signal::TERM);
    worker.exit(PATIENCE).await;
    assert!(asked.elapsed() < Duration::from_secs(15), "the second signal waited {:?}", asked.elapsed());
    fleet.event(&task, EventKind::TaskReleased).await;
    fleet.worker(&[]);
    assert_eq!(fleet.end(&task).await.reason, Some(Reason::Ok));
    fleet.finish().await;
}

#[tokio::test]
async fn an_idle_worker_ends_at_once() {
    let Some(fleet) = Fleet::start(&[]).await else { return };
    let worker = fleet.worker(&[]);
    let task = fleet.submit(&Job::argv(["true"])).await;
    fleet.end(&task).await;
    let asked = Instant::now();
    worker.signal(Signal::INT);
    assert!(worker.exit(PATIENCE).await.success());
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    fleet.finish().await;
}

#[tokio::test]
async fn a_worker_that_waits_for_its_server_ends_when_asked() {
    let Some(fleet) = Fleet::start(&[]).await else { return };
    let worker = fleet.worker(&[("BUS__SERVER", "nats://127.0.0.1:1")]);
    let deadline = Instant::now() + PATIENCE;
    while !worker.log().contains("supervisor ready") {
        assert!(Instant::now() < deadline, "{}", worker.log());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    worker.signal(Signal::TERM);
    assert!(worker.exit(PATIENCE).await.success());
    fleet.finish_unchecked().await;
}

/// What a verb prints as JSON, with its exit code.
async fn verb(fleet: &Fleet, args: &[&str]) -> (i32, Vec<Value>) {
    let output = run(fleet.cli([args, &["-o", "json"]].concat())).await;
    (code(&output), json_lines(&output))
}

#[tokio::test]
async fn an_operator_drains_a_worker_as_a_signal_does() {
    let Some(fleet) = Fleet::start(&[("WORKER__DRAIN_TIMEOUT_S", "600")]).await else { return };
    let worker = fleet.worker(&[("CAPACITY__SLOTS", "1")]);
    let gate = Gate::new(&fleet.dir, "asked");
    let running = fleet.submit(&Job::bash(format!("trap 'exit 9' TERM; {}; echo finished", gate.wait()))).await;
    fleet.event(&running, EventKind::TaskStarted).await;
    let waiting = fleet.submit(&Job::argv(["true"])).await;
    let (exit, answers) = verb(&fleet, &["drain", &worker.id]).await;
    assert_eq!((exit, answers.len()), (0, 1), "{answers:?}");
    let answer = &answers[0];
    assert_eq!((&answer["state"], &answer["running"], &answer["gone"]), (&"draining".into(), &1.into(), &false.into()), "{answer}");
    assert_eq!((&answer["worker_id"], &answer["drain_timeout_s"]), (&worker.id.as_str().into(), &600.0.into()), "{answer}");
    worker.says(&["draining", "running=1"]).await;
    let (exit, answers) = verb(&fleet, &["drain", &worker.id]).await;
    assert_eq!((exit, &answers[0]["state"]), (0, &"draining".into()), "to ask twice is to ask once: {answers:?}");
    let (exit, _) = verb(&fleet, &["drain", &worker.id, "--wait", "--wait-timeout", "0.2"]).await;
    assert_eq!(exit, 124, "it still runs a task");
    let mut wait = fleet.cli(["drain", &worker.id, "--wait"]);
    let mut wait = wait.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(wait.stdout.take().unwrap()).lines();
    let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("it answers").unwrap().expect("a line");
    assert!(line.contains("drains: 1 running"), "{line}");
    assert_eq!(wait.try_wait().unwrap(), None, "it waits");
    gate.open();
    let status = tokio::time::timeout(PATIENCE, wait.wait()).await.expect("it is gone").unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(worker.exit(PATIENCE).await.success());
    assert_eq!(fleet.end(&running).await.reason, Some(Reason::Ok), "drained means finished, not stopped");
    assert!(fleet.chain(&waiting).is_empty(), "a draining worker took new work");
    let (exit, _) = verb(&fleet, &["drain", &worker.id]).await;
    assert_eq!(exit, 3, "nobody of that name is there");
    fleet.worker(&[]);
    fleet.end(&waiting).await;
    fleet.finish().await;
}

#[tokio::test]
async fn an_operator_who_cannot_wait_has_what_runs_killed_and_given_back() {
    let Some(fleet) = Fleet::start(&[("WORKER__DRAIN_TIMEOUT_S", "600")]).await else { return };
    let worker = fleet.worker(&[]);
    let job = Job::bash("trap '' TERM; echo up; [ $WINDLASS_ATTEMPT -gt 1 ] || while :; do sleep 0.1; done").grace(60.0);
    let task = fleet.submit(&job).await;
    fleet.output_has(&task, "up").await;
    let (exit, answers) = verb(&fleet, &["drain", &worker.id, "--now", "--wait"]).await;
    assert_eq!((exit, &answers[0]["state"], &answers[0]["gone"]), (0, &"aborting".into(), &true.into()), "{answers:?}");
    assert!(worker.exit(PATIENCE).await.success());
    fleet.event(&task, EventKind::TaskReleased).await;
    fleet.worker(&[]);
    assert_eq!(fleet.end(&task).await.reason, Some(Reason::Ok));
    fleet.finish().await;
}

#[tokio::test]
async fn of_two_workers_of_one_name_both_answer_or_the_one_that_is_meant() {
    let Some(fleet) = Fleet::start(&[]).await else { return };
    let (first, second) = (fleet.worker_named("twin", &[]), fleet.worker_named("twin", &[]));
    first.ready().await;
    second.ready().await;
    let deadline = Instant::now() + PATIENCE;
    // Both have announced themselves, so both listen or are about to; `status` changes nothing.
    let both = loop {
        let answers = ask(&fleet, "twin", &json!({"v": 1, "action": "status"}).to_string()).await;
        if answers.len() == 2 {
            break answers;
        }
        assert!(Instant::now() < deadline, "{answers:?}");
    };
    let instance = both[0]["instance"].as_str().unwrap().to_owned();
    let (exit, answers) = verb(&fleet, &["drain", "twin", "--instance", &instance, "--wait"]).await;
    assert_eq!((exit, answers.len()), (0, 1), "{answers:?}");
    assert_eq!(answers[0]["instance"], instance.as_str());
    let left = ask(&fleet, "twin", &json!({"v": 1, "action": "status"}).to_string()).await;
    assert_eq!((left.len(), &left[0]["state"], &left[0]["instance"]), (1, &"ready".into(), &both[1]["instance"]), "{left:?}");
    let (exit, _) = verb(&fleet, &["drain", "twin", "--instance", "nobody"]).await;
    assert_eq!(exit, 3);
    let (exit, answers) = verb(&fleet, &["drain", "twin", "--wait"]).await;
    assert_eq!((exit, answers.len()), (0, 1), "{answers:?}");
    for worker in [first, second] {
        assert!(worker.exit(PATIENCE).await.success());
    }
    fleet.finish_unchecked().await;
}

#[tokio::test]
async fn who_waits_for_a_worker_is_told_when_nats_is_gone_too() {
    let Some(server) = Server::private(Options::default()) else { return };
    let fleet = Fleet::on(server, &[("WORKER__DRAIN_TIMEOUT_S", "600"), ("BUS__REQUEST_TIMEOUT_S", "2")]).await;
    let worker = fleet.worker(&[]);
    let gate = Gate::new(&fleet.dir, "gone");
    let task = fleet.submit(&Job::bash(gate.wait())).await;
    fleet.event(&task, EventKind::TaskStarted).await;
    let mut verb = fleet.cli(["drain", &worker.id, "--wait"]);
    let mut wait = verb.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(wait.stdout.take().unwrap()).lines();
    tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("it answers").unwrap().expect("a line");
    fleet.server.kill9();
    let status = tokio::time::timeout(PATIENCE, wait.wait()).await.expect("it does not wait for ever").unwrap();
    assert_eq!(status.code(), Some(6));
    fleet.server.restart();
    gate.open();
    assert!(worker.exit(PATIENCE).await.success());
    // It may have lost its lease meanwhile, and with it the task.
    fleet.worker(&[]);
    assert_eq!(fleet.end(&task).await.reason, Some(Reason::Ok));
    fleet.finish_unchecked().await;
}

/// Asks as a stranger would, and gathers what comes within a while.
async fn ask(fleet: &Fleet, worker: &str, body: &str) -> Vec<Value> {
    use futures_util::StreamExt as _;
    let client = fleet.js.client();
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.unwrap();
    let subject = format!("{}.control-workers.{worker}", fleet.prefix);
    client.publish_with_reply(subject, inbox, body.to_owned().into()).await.unwrap();
    let mut heard = Vec::new();
    while let Ok(Some(message)) = tokio::time::timeout(Duration::from_secs(1), answers.next()).await {
        if message.status.is_some() {
            break;
        }
        heard.push(serde_json::from_slice(&message.payload).unwrap());
    }
    heard
}

#[tokio::test]
async fn what_a_worker_does_not_understand_it_refuses_and_goes_on() {
    let Some(fleet) = Fleet::start(&[]).await else { return };
    let worker = fleet.worker(&[]);
    worker.ready().await;
    let deadline = Instant::now() + PATIENCE;
    while ask(&fleet, &worker.id, r#"{"v":1,"action":"status"}"#).await.is_empty() {
        assert!(Instant::now() < deadline, "it does not listen");
    }
    for (body, word) in [
        ("", ""),
        ("drain", ""),
        ("[]", ""),
        (r#"{"v":1}"#, "action"),
        (r#"{"v":1,"action":"explode"}"#, "explode"),
        (r#"{"v":9,"action":"drain"}"#, "version 9"),
        (r#"{"v":1,"action":"drain","now":"yes"}"#, "now"),
    ] {
        let answers = ask(&fleet, &worker.id, body).await;
        assert_eq!((answers.len(), &answers[0]["ok"], &answers[0]["state"]), (1, &false.into(), &"ready".into()), "{body}: {answers:?}");
        assert!(answers[0]["error"].as_str().unwrap().contains(word), "{body}: {answers:?}");
    }
    let answers = ask(&fleet, &worker.id, r#"{"v":1,"action":"drain","instance":"another"}"#).await;
    assert!(answers.is_empty(), "it was not meant: {answers:?}");
    let task = fleet.submit(&Job::argv(["true"])).await;
    assert_eq!(fleet.end(&task).await.reason, Some(Reason::Ok), "it takes work as before");
    fleet.finish().await;
}
