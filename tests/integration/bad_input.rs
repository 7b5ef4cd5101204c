//! Every bad input has a name: a typed reason, an event, a dead letter where it cannot be a task; and the worker goes on.

use serde_json::json;
use windlass::task::{EventKind, Reason};

use crate::harness::job::Gate;
use crate::harness::server::{Options, Server};
use crate::harness::{Fleet, Job, Task, checker};

/// The worker that got it must still do its work.
async fn goes_on(fleet: &Fleet, after: &str) {
    let next = fleet.submit(&Job::argv(["true"])).await;
    let end = fleet.end(&next).await;
    assert_eq!((end.reason, end.worker.worker_id.as_str()), (Some(Reason::Ok), "worker-0"), "after {after}");
}

async fn dead_letter(fleet: &Fleet, task: &Task) -> Option<(String, String, bytes::Bytes)> {
    let dead = fleet.dead().await;
    let own = dead.iter().find(|d| d.header("Windlass-Task-Id") == Some(&task.id));
    own.map(|d| (d.header("Windlass-Reason").unwrap().into(), d.header("Windlass-Error").unwrap().into(), d.body.clone()))
}

fn truncated_msgpack() -> Vec<u8> {
    let whole = Job::argv(["true"]).id("b").msgpack().encode();
    whole[..whole.len() - 3].to_vec()
}

#[tokio::test]
async fn what_is_no_assignment_is_a_dead_letter_and_a_typed_failure() {
    let Some(fleet) = Fleet::with_worker(2, &[]).await else { return };
    let json = Some("application/json");
    let msgpack = Some("application/vnd.msgpack");
    let valid = |key: &str, value: serde_json::Value| serde_json::to_vec(&Job::argv(["true"]).id("b").set(key, value).body).unwrap();
    let mut deep = b"[".repeat(100_000);
    deep.splice(0..0, *b"{\"context\":");
    let cases: Vec<(&str, Option<&str>, Vec<u8>, &str)> = vec![
        ("broken JSON", json, b"{\"task_id\": \"b\", ".to_vec(), ""),
        ("no JSON at all", json, b"hello".to_vec(), ""),
        ("nothing", None, Vec::new(), ""),
        ("nothing, as JSON", json, Vec::new(), ""),
        ("a JSON list", json, b"[1,2]".to_vec(), ""),
        ("truncated MessagePack", msgpack, truncated_msgpack(), ""),
        ("random bytes", msgpack, vec![0xc1, 0xff, 0x00, 0x93], ""),
        ("JSON that says MessagePack", msgpack, valid("/v", json!(1)), ""),
        ("MessagePack that says JSON", json, Job::argv(["true"]).id("b").msgpack().encode(), ""),
        ("a media type of its own", Some("text/yaml"), b"task_id: b".to_vec(), "text/yaml"),
        ("unknown key", json, valid("/execution/timout_s", json!(5)), "execution.timout_s"),
        ("unknown key at the top", json, valid("/comand", json!([])), "comand"),
        ("wrong type", json, valid("/execution/command", json!("true")), "execution.command"),
        ("wrong type deep down", json, valid("/retry/backoff/factor", json!("twice")), "retry.backoff.factor"),
        ("unknown runtime", json, valid("/execution/runtime", json!("natve")), "execution.runtime"),
        ("unknown retry word", json, valid("/retry/on", json!(["sometimes"])), "retry.on"),
        ("a size that is none", json, valid("/execution/resources/memory", json!("lots")), "execution.resources.memory"),
        ("a time that is none", json, valid("/deadline", json!("tomorrow")), "deadline"),
        ("a version from the future", json, valid("/v", json!(2)), "v"),
        ("another id than the subject's", json, valid("/task_id", json!("other")), "task_id"),
        ("another tenant than the subject's", json, valid("/tenant", json!("other")), "tenant"),
        ("another class than the subject's", json, valid("/class", json!("gpu")), "class"),
        ("an id that is no token", json, valid("/task_id", json!("a.b")), "task_id"),
        ("no execution", json, b"{\"task_id\":\"b\"}".to_vec(), "execution"),
        ("bytes after the end", json, [valid("/v", json!(1)), b"}".to_vec()].concat(), ""),
        ("a nested bomb", json, deep, ""),
        ("invalid UTF-8", json, b"{\"task_id\":\"\xff\"}".to_vec(), ""),
    ];
    for (n, (what, content_type, body, word)) in cases.into_iter().enumerate() {
        let id = format!("bad{n}");
        // The id that the subject has, unless the id is what is wrong.
        let body = if word == "task_id" { body } else { replace(&body, b"\"task_id\":\"b\"", format!("\"task_id\":\"{id}\"").as_bytes()) };
        let task = fleet.submit_raw(&id, content_type, body.clone()).await;
        let end = fleet.end(&task).await;
        assert_eq!(
            (end.event, end.reason, end.task.attempt),
            (EventKind::TaskFailed, Some(Reason::InvalidAssignment), 0),
            "{what}: {:?}",
            end.error
        );
        let error = end.error.unwrap_or_default();
        assert!(error.contains(word) && !error.is_empty(), "{what}: {error:?} does not name {word:?}");
        let (reason, text, payload) = dead_letter(&fleet, &task).await.unwrap_or_else(|| panic!("{what}: no dead letter"));
        assert_eq!((reason.as_str(), &payload[..]), ("invalid_assignment", &body[..]), "{what}: the dead letter has the raw payload");
        assert!(!text.is_empty());
    }
    goes_on(&fleet, "all of them").await;
    fleet.finish().await;
}

fn replace(body: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    match body.windows(from.len()).position(|w| w == from) {
        Some(at) => [&body[..at], to, &body[at + from.len()..]].concat(),
        None => body.to_vec(),
    }
}

#[tokio::test]
async fn what_cannot_be_run_fails_with_its_reason() {
    let Some(fleet) = Fleet::with_worker(2, &[]).await else { return };
    let plain = fleet.dir.join("plain-file");
    std::fs::write(&plain, "not a program").unwrap();
    let plain = plain.to_str().unwrap().to_owned();
    for (what, job, reason, word) in [
        ("empty command", Job::argv([""; 0]), Reason::InvalidAssignment, "execution.command"),
        ("empty program", Job::argv([""]), Reason::InvalidAssignment, "execution.command"),
        ("no command", Job::bash("true").set("/execution/runtime", "native"), Reason::InvalidAssignment, "execution"),
        ("no script", Job::argv(["true"]).set("/execution/runtime", "bash"), Reason::InvalidAssignment, "execution"),
        ("a NUL in an argument", Job::argv(["echo", "a\0b"]), Reason::InvalidAssignment, "execution.command"),
        (
            "a NUL in the environment",
            Job::argv(["true"]).set("/execution/env", json!({"A": "x\0y"})),
            Reason::InvalidAssignment,
            "execution.env",
        ),
        ("a negative time limit", Job::argv(["true"]).timeout(-1.0), Reason::InvalidAssignment, "execution.timeout_s"),
        ("no processes", Job::argv(["true"]).set("/execution/resources/pids", 0), Reason::InvalidAssignment, "execution.resources.pids"),
        ("no attempts", Job::argv(["true"]).set("/retry/max_attempts", 0), Reason::InvalidAssignment, "retry.max_attempts"),
        ("missing program", Job::argv(["no-such-program-here"]), Reason::SpawnFailed, "no-such-program-here"),
        ("missing program by path", Job::argv(["/no/such/program"]), Reason::SpawnFailed, "/no/such/program"),
        ("not executable", Job::argv([plain.as_str()]), Reason::SpawnFailed, "plain-file"),
        ("a directory as program", Job::argv(["/tmp"]), Reason::SpawnFailed, "/tmp"),
        ("missing directory", Job::argv(["true"]).set("/execution/working_dir", "/no/such/dir"), Reason::SpawnFailed, "/no/such/dir"),
        ("a file as directory", Job::argv(["true"]).set("/execution/working_dir", plain.as_str()), Reason::SpawnFailed, "plain-file"),
        ("a runtime of a later version", Job::argv(["true"]).set("/execution/runtime", "python"), Reason::Unschedulable, "python"),
        ("a runtime of another class", Job::argv(["true"]).set("/execution/runtime", "docker"), Reason::PolicyRefused, "docker"),
        ("a GPU", Job::argv(["true"]).set("/execution/resources/gpus", 1), Reason::PolicyRefused, "gpus"),
        ("half a secret", Job::argv(["true"]).set("/secrets", json!([{"name": "x"}])), Reason::InvalidAssignment, "secrets"),
        (
            "another's secret",
            Job::argv(["true"]).set("/secrets", json!([{"name": "x", "ref": "env:HOME"}])),
            Reason::PolicyRefused,
            "secrets[0].ref",
        ),
    ] {
        let task = fleet.submit(&job).await;
        let end = fleet.end(&task).await;
        assert_eq!((end.event, end.reason), (EventKind::TaskFailed, Some(reason)), "{what}: {:?}", end.error);
        let error = end.error.unwrap_or_default();
        assert!(error.contains(word), "{what}: {error:?} does not name {word:?}");
        let ran = end.run.is_some_and(|r| r.pid.is_some() && r.duration_ms.is_some());
        assert!(!ran, "{what}: it says that it ran");
    }
    goes_on(&fleet, "all of them").await;
    fleet.finish().await;
}

#[tokio::test]
async fn an_id_used_again_for_other_content_is_a_dead_letter_and_leaves_the_chain_alone() {
    let Some(fleet) = Fleet::with_worker(1, &[]).await else { return };
    let job = Job::bash("echo first");
    let task = fleet.submit(&job).await;
    fleet.end(&task).await;
    goes_on(&fleet, "the first").await;
    let other = Job::bash("echo second").id(task.id.clone());
    fleet.publish(&fleet.subject(&other, &task.id), other.media_type(), other.encode()).await.expect("its message is gone");
    goes_on(&fleet, "the second").await;
    let (reason, error, payload) = dead_letter(&fleet, &task).await.expect("a dead letter");
    assert_eq!((reason.as_str(), &payload[..]), ("invalid_assignment", &other.encode()[..]));
    assert!(error.contains("used before"), "{error}");
    assert_eq!(fleet.chain(&task).len(), 2, "the ended task's chain grew");
    fleet.finish().await;
}

#[tokio::test]
async fn a_task_that_is_queued_twice_runs_once() {
    let settings = [("LEASE__ACK_WAIT_S", "2"), ("CLASSES__CPU_SHORT__MAX_ATTEMPTS", "1"), ("CAPACITY__SLOTS", "2")];
    let Some(fleet) = Fleet::start(&settings).await else { return };
    let worker = fleet.worker(&[]);
    let gate = Gate::new(&fleet.dir, "twice");
    let job = Job::bash(gate.wait());
    let task = fleet.submit(&job).await;
    fleet.event(&task, EventKind::TaskStarted).await;
    // The queue takes it: one message per subject is its limit, and this is another subject.
    let again = job.clone().priority("high").id(task.id.clone());
    fleet.publish(&fleet.subject(&again, &task.id), again.media_type(), again.encode()).await.expect("another subject");
    worker.says(&["queued twice", &task.id]).await;
    gate.open();
    let end = fleet.end(&task).await;
    assert_eq!((end.reason, end.task.attempt), (Some(Reason::Ok), 1), "{:?}", end.error);
    // When the queue is empty, the second message has been looked at again.
    checker::check(&fleet).await;
    assert_eq!(fleet.chain(&task).len(), 2, "the second message wrote into the chain of the first");
    fleet.finish().await;
}

#[tokio::test]
async fn subjects_that_name_no_task_are_dead_letters_without_events() {
    let Some(fleet) = Fleet::with_worker(1, &[]).await else { return };
    let long = "x".repeat(65);
    let job = Job::argv(["true"]);
    let subject = format!("{}.tasks.cpu_short.normal.acme.{long}", fleet.prefix);
    fleet.publish(&subject, job.media_type(), job.encode()).await.unwrap();
    goes_on(&fleet, "a long id").await;
    let dead = fleet.dead().await;
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].header("Windlass-Subject"), Some(subject.as_str()));
    assert!(!fleet.queued().await.iter().any(|message| message.subject == subject), "it is still queued");
    fleet.finish().await;
}

#[tokio::test]
async fn an_assignment_near_max_payload_runs_and_its_events_fit() {
    let Some(fleet) = Fleet::with_worker(1, &[]).await else { return };
    let big = |bytes: usize| Job::bash("echo ran").set("/context", json!({"ballast": "x".repeat(bytes)}));
    // The default max_payload is 1 MiB, headers included.
    let task = fleet.submit(&big(1_048_576 - 700)).await;
    let end = fleet.end(&task).await;
    assert_eq!(end.reason, Some(Reason::Ok), "{:?}", end.error);
    assert!(end.shortened.contains(&"task.context".to_owned()), "what was left out is named: {:?}", end.shortened);
    goes_on(&fleet, "a large one").await;
    fleet.finish().await;
}

#[tokio::test]
async fn a_poisonous_message_near_max_payload_does_not_stay_in_the_queue() {
    let Some(server) = Server::private(Options { max_payload: Some(65_536), ..Options::default() }) else { return };
    let fleet = Fleet::on(server, &[("LEASE__ACK_WAIT_S", "2"), ("LOGS__CHUNK", "16KiB")]).await;
    fleet.worker(&[]);
    let mut body = vec![b'x'; 65_536 - 100];
    body[0] = b'{';
    let task = fleet.submit_raw("poison", Some("application/json"), body).await;
    assert_eq!(fleet.end(&task).await.reason, Some(Reason::InvalidAssignment));
    let dead = fleet.dead().await;
    assert_eq!((dead.len(), dead[0].header("Windlass-Payload-Bytes")), (1, Some("65436")), "the letter says that it was shortened");
    goes_on(&fleet, "a large poison").await;
    fleet.finish().await;
}
