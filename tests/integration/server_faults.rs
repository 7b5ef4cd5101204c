//! The server dies, is full, forgets, or refuses: what was promised is kept, the worker says what to do, and goes on by
//! itself when it was done.

use std::time::{Duration, Instant};

use async_nats::jetstream::stream::{Config, DiscardPolicy};
use windlass::task::event::Event;
use windlass::task::log_chunk::LogStream;
use windlass::task::{EventKind, Reason};

use crate::harness::job::Gate;
use crate::harness::orchestrator::chunk_of;
use crate::harness::proxy::{Direction, Proxy, Spring};
use crate::harness::server::{Options, Server};
use crate::harness::{Fleet, Job, Orchestrator, PATIENCE, Task, checker, feed, leftovers};

/// What was asked in vain is asked again soon.
pub const QUICK: &[(&str, &str)] = &[("BUS__REQUEST_TIMEOUT_S", "1"), ("STREAMS__LOGS_MAX", "16MiB")];

async fn own(settings: &[(&str, &str)]) -> Option<Fleet> {
    let server = Server::private(Options::default())?;
    Some(Fleet::on(server, &[QUICK, settings].concat()).await)
}

/// A server whose configuration ends with `more`.
pub async fn configured(more: &str, settings: &[(&str, &str)]) -> Option<Fleet> {
    let server = Server::with_config(|port, dir| {
        format!("listen: 127.0.0.1:{port}\njetstream {{ store_dir: \"{}\"\n max_file: 2TB }}\n{more}\n", dir.join("data").display())
    })?;
    Some(Fleet::on(server, &[QUICK, settings].concat()).await)
}

/// Replaces something in the server's configuration.
pub fn reconfigure(fleet: &Fleet, from: &str, to: &str) {
    let text = fleet.server.config();
    assert!(text.contains(from), "{from:?} is not in {text}");
    fleet.server.configure(&text.replace(from, to));
}

/// A task that waits at a gate, claimed and running.
pub async fn running(fleet: &Fleet, gate: &Gate) -> Task {
    let task = fleet.submit(&Job::bash(format!("{}; echo done", gate.wait()))).await;
    fleet.attempt(&task, 1).await;
    let deadline = Instant::now() + PATIENCE;
    while fleet.processes_of(&task.id).is_empty() {
        assert!(Instant::now() < deadline, "claimed and not run");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    task
}

/// It ended on the machine, but is neither said to be over nor out of the queue.
pub async fn done_but_not_acked(fleet: &Fleet, task: &Task) {
    let gone = leftovers::gone(PATIENCE, || fleet.processes_of(&task.id)).await;
    assert!(gone.is_empty());
    assert!(fleet.chain(task).iter().all(|l| !l.event.event.is_terminal()), "said to be over");
    let queued = fleet.queued().await;
    assert!(queued.iter().any(|m| m.subject.ends_with(&format!(".{}", task.id))), "acked although nothing is stored");
}

pub fn first_and_well(end: &Event) {
    assert_eq!((end.reason, end.task.attempt), (Some(Reason::Ok), 1), "{:?}", end.error);
}

#[tokio::test]
async fn a_server_killed_at_each_step_loses_nothing() {
    let Some(fleet) = own(&[]).await else { return };
    let proxy = Proxy::before(&fleet.server);
    fleet.worker_at("far", &proxy.url(), &[]);
    for step in [".task_started", ".1.stdout", ".task_completed", "+ACK"] {
        let mut trap = proxy.trap(Direction::ToServer, &[step], Spring::Tell);
        let task = fleet.submit(&Job::bash("seq 1 9000")).await;
        trap.sprung().await;
        // Whether it has stored what it was just given is not known to anybody.
        fleet.server.kill9();
        fleet.server.restart();
        first_and_well(&fleet.end(&task).await);
        // The orchestrator is back too.
        let deadline = Instant::now() + PATIENCE;
        while fleet.js.query_account().await.is_err() {
            assert!(Instant::now() < deadline, "no connection");
        }
    }
    fleet.finish().await;
}

/// Leaves a stream of the fleet no room; returns what it was before.
async fn fill(fleet: &Fleet, kind: &str) -> Config {
    let mut stream = fleet.js.get_stream(fleet.stream(kind)).await.unwrap();
    let info = stream.info().await.unwrap();
    let before = info.config.clone();
    let max_bytes = i64::try_from(info.state.bytes.max(1)).unwrap();
    fleet.js.update_stream(Config { max_bytes, discard: DiscardPolicy::New, ..before.clone() }).await.unwrap();
    before
}

#[tokio::test]
async fn full_streams_delay_and_lose_nothing() {
    let Some(fleet) = own(&[]).await else { return };
    let worker = fleet.worker(&[("CAPACITY__SLOTS", "4")]);
    for kind in ["EVENTS", "LOGS"] {
        let gate = Gate::new(&fleet.dir, kind);
        let task = running(&fleet, &gate).await;
        let before = fill(&fleet, kind).await;
        gate.open();
        let subject = format!("{}.{}.acme.{}", fleet.prefix, kind.to_lowercase(), task.id);
        worker.says(&[&subject, "the stream is full: raise its limits"]).await;
        done_but_not_acked(&fleet, &task).await;
        // What cannot be claimed does not run.
        let late = (kind == "EVENTS").then(|| Job::bash(format!("echo x > '{}'", fleet.dir.join("late").display())));
        let late = match &late {
            Some(job) => {
                let task = fleet.submit(job).await;
                worker.says(&[&format!("{}.events.acme.{}.task_started", fleet.prefix, task.id), "the stream is full"]).await;
                assert!(!fleet.dir.join("late").exists());
                Some(task)
            }
            None => None,
        };
        fleet.js.update_stream(before).await.unwrap();
        let end = fleet.end(&task).await;
        first_and_well(&end);
        assert_eq!(fleet.output(&task, &end, LogStream::Stdout).await, b"done\n");
        if let Some(late) = late {
            first_and_well(&fleet.end(&late).await);
        }
    }
    fleet.finish().await;
}

#[tokio::test]
async fn a_full_queue_is_said_to_who_submits_and_empties_itself() {
    let Some(fleet) = own(&[]).await else { return };
    fleet.worker(&[]);
    let gate = Gate::new(&fleet.dir, "queue");
    let task = running(&fleet, &gate).await;
    let before = fill(&fleet, "TASKS").await;
    let file = fleet.dir.join("assignment.json");
    std::fs::write(&file, r#"{"execution":{"runtime":"native","command":["true"]}}"#).unwrap();
    let submit = async |id: &str| fleet.cli(["submit", "--id", id, &file.to_string_lossy()]).output().await.unwrap();
    let output = submit("refused").await;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("the stream is full: raise its limits"), "{text}");
    gate.open();
    // The message that goes makes room.
    first_and_well(&fleet.end(&task).await);
    let deadline = Instant::now() + PATIENCE;
    while !fleet.queued().await.is_empty() {
        assert!(Instant::now() < deadline, "not acked");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    fleet.js.update_stream(before).await.unwrap();
    let output = submit("taken").await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    first_and_well(&fleet.end(&Task { tenant: "default".into(), id: "taken".into() }).await);
    fleet.finish().await;
}

#[tokio::test]
async fn a_full_store_delays_and_loses_nothing() {
    let server = Server::with_config(|port, dir| {
        format!("listen: 127.0.0.1:{port}\njetstream {{ store_dir: \"{}\"\n max_file: 40MB }}\n", dir.join("data").display())
    });
    let Some(server) = server else { return };
    let fleet = Fleet::on(server, QUICK).await;
    let worker = fleet.worker(&[]);
    let gate = Gate::new(&fleet.dir, "store");
    let task = running(&fleet, &gate).await;
    fleet.js.create_stream(Config { name: "FOREIGN".into(), subjects: vec!["foreign".into()], ..Config::default() }).await.unwrap();
    let mut size = 512 << 10;
    while size > 0 {
        if fleet.publish("foreign", None, vec![0; size]).await.is_err() {
            size /= 2;
        }
    }
    gate.open();
    worker.says(&["the server's JetStream store is full: raise jetstream.max_file"]).await;
    done_but_not_acked(&fleet, &task).await;
    fleet.js.delete_stream("FOREIGN").await.unwrap();
    first_and_well(&fleet.end(&task).await);
    fleet.finish().await;
}

#[tokio::test]
async fn jetstream_switched_off_under_way_is_waited_for() {
    let Some(fleet) = own(&[]).await else { return };
    let worker = fleet.worker(&[]);
    let gate = Gate::new(&fleet.dir, "off");
    let task = running(&fleet, &gate).await;
    let with = fleet.server.config();
    let without = with.split("jetstream {").next().unwrap().to_owned();
    fleet.server.configure(&without);
    fleet.server.restart();
    gate.open();
    worker.says(&["nobody answers", "run `windlass init`"]).await;
    let gone = leftovers::gone(PATIENCE, || fleet.processes_of(&task.id)).await;
    assert!(gone.is_empty());
    fleet.server.configure(&with);
    fleet.server.restart();
    first_and_well(&fleet.end(&task).await);
    fleet.finish().await;
}

async fn init(fleet: &Fleet) {
    let output = fleet.cli(["init"]).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn output_waits_for_a_removed_stream_of_logs() {
    let Some(fleet) = own(&[]).await else { return };
    let worker = fleet.worker(&[]);
    let (gate, second) = (Gate::new(&fleet.dir, "one"), Gate::new(&fleet.dir, "two"));
    let task = running(&fleet, &gate).await;
    let other = fleet.submit(&Job::bash(format!("echo before; {}; echo after", second.wait()))).await;
    fleet.output_has(&other, "before").await;
    fleet.js.delete_stream(fleet.stream("LOGS")).await.unwrap();
    gate.open();
    worker.says(&["output is not stored yet", "run `windlass init`"]).await;
    done_but_not_acked(&fleet, &task).await;
    init(&fleet).await;
    let end = fleet.end(&task).await;
    first_and_well(&end);
    assert_eq!(fleet.output(&task, &end, LogStream::Stdout).await, b"done\n");
    // What was stored before, and removed with the stream, cannot come back: the manifest tells every reader.
    second.open();
    let end = fleet.end(&other).await;
    let manifest = end.logs.unwrap();
    let chunks: Vec<_> = feed::read_all(&fleet.js, &fleet.stream("LOGS"), &manifest.subject).await.iter().map(chunk_of).collect();
    assert!(checker::check_manifest(&manifest, &chunks).is_err_and(|e| e.contains("the manifest says 2")), "the loss cannot be seen");
    fleet.finish_unchecked().await;
}

#[tokio::test]
async fn a_task_whose_events_were_removed_runs_again() {
    let Some(fleet) = own(&[("LEASE__ACK_WAIT_S", "2"), ("CAPACITY__SLOTS", "1")]).await else { return };
    let worker = fleet.worker(&[]);
    let warm = fleet.submit(&Job::argv(["true"])).await;
    fleet.end(&warm).await;
    let gate = Gate::new(&fleet.dir, "events");
    let runs = fleet.dir.join("runs");
    // Without output: that of the first run would lie in LOGS without a claim that tells whose it is.
    let task = fleet.submit(&Job::bash(format!("echo x >> '{}'; {}", runs.display(), gate.wait()))).await;
    fleet.attempt(&task, 1).await;
    worker.says(&["started", &format!("task_id={}", task.id)]).await;
    fleet.js.delete_stream(fleet.stream("EVENTS")).await.unwrap();
    init(&fleet).await;
    gate.open();
    worker.says(&["the events before this one are gone", "runs again"]).await;
    let again = fleet.anew();
    let end = again.end(&task).await;
    first_and_well(&end);
    assert_eq!(std::fs::read_to_string(&runs).unwrap(), "x\nx\n");
    let kinds: Vec<_> = again.chain(&task).iter().map(|l| l.event.event).collect();
    assert_eq!(kinds, [EventKind::TaskStarted, EventKind::TaskCompleted], "a whole chain in the new stream");
    // Nothing of the first task is left to be looked for.
    let only = Orchestrator::connect(&fleet.server.url(), &fleet.prefix).await;
    only.count(&task);
    checker::check(&only).await;
    fleet.finish_unchecked().await;
}

#[tokio::test]
async fn tasks_whose_queue_was_removed_are_queued_again_from_their_chains() {
    let Some(fleet) = own(&[("LEASE__ACK_WAIT_S", "2"), ("SWEEPER__INTERVAL_S", "0.5")]).await else { return };
    let worker = fleet.worker(&[]);
    let gate = Gate::new(&fleet.dir, "tasks");
    let task = running(&fleet, &gate).await;
    fleet.js.delete_stream(fleet.stream("TASKS")).await.unwrap();
    // It cannot renew what does not exist, and another worker might: it stops.
    worker.says(&["lease not renewed", "run `windlass init`"]).await;
    worker.says(&["task lost", &task.id]).await;
    worker.says(&["cannot pull", "stream not found", "run `windlass init`"]).await;
    init(&fleet).await;
    gate.open();
    let end = fleet.end(&task).await;
    assert_eq!((end.reason, end.task.attempt), (Some(Reason::Ok), 2));
    fleet.finish().await;
}

#[tokio::test]
async fn an_ack_never_takes_another_tasks_message_from_a_queue_that_was_made_anew() {
    let Some(fleet) = own(&[]).await else { return };
    fleet.worker(&[("CAPACITY__SLOTS", "1")]);
    let gate = Gate::new(&fleet.dir, "anew");
    let task = running(&fleet, &gate).await;
    fleet.js.delete_stream(fleet.stream("TASKS")).await.unwrap();
    init(&fleet).await;
    // The same sequence, another task; taken by a worker that has not claimed it.
    let other = fleet.submit(&Job::bash("echo other")).await;
    let stream = fleet.js.get_stream(fleet.stream("TASKS")).await.unwrap();
    let consumer = stream.get_consumer::<async_nats::jetstream::consumer::pull::Config>("cpu_short-normal").await.unwrap();
    let taken = futures_util::StreamExt::next(&mut consumer.fetch().max_messages(1).messages().await.unwrap()).await.unwrap().unwrap();
    assert_eq!(taken.info().unwrap().stream_sequence, 1);
    gate.open();
    first_and_well(&fleet.end(&task).await);
    // The worker is through with it: it asks for more.
    let next = fleet.submit(&Job::argv(["true"])).await;
    fleet.end(&next).await;
    let queued = fleet.queued().await;
    assert!(queued.iter().any(|m| m.subject.ends_with(&format!(".{}", other.id))), "acked by who never had it");
    taken.ack_with(async_nats::jetstream::AckKind::Nak(None)).await.unwrap();
    assert_eq!(fleet.end(&other).await.reason, Some(Reason::Ok));
    fleet.finish().await;
}

#[tokio::test]
async fn a_removed_consumer_is_made_anew() {
    let Some(fleet) = own(&[("LEASE__ACK_WAIT_S", "4")]).await else { return };
    let worker = fleet.worker(&[("CAPACITY__SLOTS", "2")]);
    let gate = Gate::new(&fleet.dir, "consumer");
    let task = running(&fleet, &gate).await;
    let stream = fleet.js.get_stream(fleet.stream("TASKS")).await.unwrap();
    stream.delete_consumer("cpu_short-normal").await.unwrap();
    worker.says(&["made anew", "cpu_short"]).await;
    let next = fleet.submit(&Job::argv(["true"])).await;
    first_and_well(&fleet.end(&next).await);
    gate.open();
    first_and_well(&fleet.end(&task).await);
    fleet.finish().await;
}

#[tokio::test]
async fn a_limit_of_connections_is_said_and_waited_for() {
    let Some(fleet) = configured("max_connections: 100", &[]).await else { return };
    let worker = fleet.worker(&[]);
    let gate = Gate::new(&fleet.dir, "connections");
    let task = running(&fleet, &gate).await;
    reconfigure(&fleet, "max_connections: 100", "max_connections: 1");
    fleet.server.reload();
    worker.says(&["takes no more connections: raise max_connections"]).await;
    gate.open();
    reconfigure(&fleet, "max_connections: 1", "max_connections: 100");
    fleet.server.reload();
    first_and_well(&fleet.end(&task).await);
    fleet.finish().await;
}

#[tokio::test]
async fn a_server_in_lame_duck_mode_is_left_without_loss() {
    let Some(fleet) = own(&[]).await else { return };
    let worker = fleet.worker(&[]);
    let gate = Gate::new(&fleet.dir, "duck");
    let task = running(&fleet, &gate).await;
    fleet.server.lame_duck();
    worker.says(&["the NATS server is about to stop"]).await;
    gate.open();
    let gone = leftovers::gone(PATIENCE, || fleet.processes_of(&task.id)).await;
    assert!(gone.is_empty());
    // It would take half a minute over its end.
    fleet.server.restart();
    first_and_well(&fleet.end(&task).await);
    fleet.finish().await;
}

#[tokio::test]
async fn a_lowered_max_payload_costs_one_attempt_at_most() {
    let Some(fleet) = configured("max_payload: 1048576", &[]).await else { return };
    let worker = fleet.worker(&[]);
    let gate = Gate::new(&fleet.dir, "payload");
    let job = Job::bash(format!("{}; seq 1 60000", gate.wait())).set("/retry/backoff/initial_ms", 1);
    let task = fleet.submit(&job).await;
    fleet.attempt(&task, 1).await;
    reconfigure(&fleet, "max_payload: 1048576", "max_payload: 16384");
    fleet.server.reload();
    gate.open();
    worker.says(&["max_payload"]).await;
    let end = fleet.end(&task).await;
    assert_eq!((end.reason, end.task.attempt), (Some(Reason::Ok), 2), "{:?}", end.error);
    let retrying = fleet.event(&task, EventKind::TaskRetrying).await;
    assert_eq!(retrying.reason, Some(Reason::OutputFailed), "{:?}", retrying.error);
    assert!(fleet.output(&task, &end, LogStream::Stdout).await.ends_with(b"59999\n60000\n"));
    fleet.finish().await;
}
