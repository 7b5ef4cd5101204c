//! `schemas/asyncapi.yaml`: taken by the official parser, and true of every message that real workers leave in real streams.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use serde_json::{Value, json};
use windlass::task::log_chunk::{ChunkData, LogChunk};
use windlass::task::{EventKind, Reason};
use windlass::wire::Encoding;
use windlass::wire::schema::{self, asyncapi};

use crate::harness::feed::{Stored, read_all};
use crate::harness::job::Gate;
use crate::harness::{Fleet, Job, PATIENCE, slowness};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

#[test]
fn published_files_are_those_of_the_types() {
    for (name, text) in schema::files() {
        let path = repository().join("schemas").join(&name);
        let is = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(is == text, "{} has drifted: `make schemas`", path.display());
    }
}

/// JavaScript has one kind of numbers.
fn with_floats(value: Value) -> Value {
    match value {
        Value::Number(number) => number.as_f64().into(),
        Value::Array(items) => items.into_iter().map(with_floats).collect(),
        Value::Object(map) => Value::Object(map.into_iter().map(|(key, value)| (key, with_floats(value))).collect()),
        Value::Null | Value::Bool(_) | Value::String(_) => value,
    }
}

/// What the parser says of a document.
async fn parse(node: &Path, document: &Path) -> Output {
    let mut parser = tokio::process::Command::new(node);
    parser.arg("asyncapi.mjs").arg(document).current_dir(repository().join("tests/node")).stdin(Stdio::null()).kill_on_drop(true);
    tokio::time::timeout(PATIENCE * 2 * slowness(), parser.output()).await.expect("the parser ends").expect("node starts")
}

#[tokio::test]
async fn the_official_parser_takes_the_document_and_reads_what_was_meant() {
    let Some(node) = crate::examples::node(&repository().join("tests/node"), "@asyncapi/parser").await else { return };
    let said = parse(&node, &repository().join("schemas/asyncapi.yaml")).await;
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let read: Value = serde_json::from_slice(&said.stdout).expect("JSON");
    assert!(with_floats(read) == with_floats(asyncapi::document()), "YAML that says something else");

    let dir = tempfile::tempdir().unwrap();
    for (from, to) in [("action: receive", "action: listen"), ("#/channels/events", "#/channels/nothing"), ("type: object", "type: thing")]
    {
        let broken = dir.path().join("broken.yaml");
        std::fs::write(&broken, asyncapi::text().replacen(from, to, 1)).unwrap();
        assert!(!parse(&node, &broken).await.status.success(), "{to} is taken");
    }
}

/// Checks bodies and headers against the document, as somebody does who has nothing else.
struct Reader {
    document: Value,
    seen: BTreeSet<String>,
}

impl Reader {
    fn new() -> Self {
        Self { document: asyncapi::document(), seen: BTreeSet::new() }
    }

    fn complaints(&self, reference: &Value, value: &Value) -> Vec<String> {
        let root = json!({"$ref": reference["$ref"], "components": self.document["components"]});
        let validator = jsonschema::draft7::new(&root).expect("a schema");
        validator.iter_errors(value).map(|e| format!("{}: {e}", e.instance_path())).collect()
    }

    fn message(&self, name: &str) -> &Value {
        let message = &self.document["components"]["messages"][name];
        assert!(message.is_object(), "no message {name}");
        message
    }

    /// Names of the messages that a subject carries, found by the channels' addresses.
    fn messages_on(&self, subject: &str) -> Vec<String> {
        let tokens: Vec<_> = subject.split('.').collect();
        let channels = self.document["channels"].as_object().expect("channels");
        let fits = |address: &str| {
            let expected: Vec<_> = address.split('.').collect();
            expected.len() == tokens.len() && expected.iter().zip(&tokens).all(|(e, t)| e == t || e.starts_with('{'))
        };
        let found: Vec<_> = channels.values().filter(|c| fits(c["address"].as_str().expect("an address"))).collect();
        assert_eq!(found.len(), 1, "{subject} is on {} channels", found.len());
        found[0]["messages"].as_object().expect("messages").keys().cloned().collect()
    }

    /// One stored message, with the default prefix in the place of the test's.
    fn check(&mut self, message: &Stored, prefix: &str) {
        let subject = message.subject.replacen(prefix, "windlass", 1).replace(&prefix.to_uppercase(), "WINDLASS");
        let content_type = message.header("Content-Type");
        let names = self.messages_on(&subject);
        let kind = subject.split('.').next_back().expect("a token").replace('_', "");
        let fits = |name: &&String| {
            let plain = name.trim_end_matches("Msgpack");
            let right_kind = !subject.contains(".events.") || plain.eq_ignore_ascii_case(&kind);
            let media = &self.message(name)["contentType"];
            right_kind && (media.is_null() || content_type.is_none() || *media == content_type.expect("it has one"))
        };
        let name = names.iter().find(fits).unwrap_or_else(|| panic!("{subject} ({content_type:?}): none of {names:?}")).clone();
        let described = self.message(&name);
        let headers: serde_json::Map<_, _> =
            message.headers.iter().map(|(name, values)| (name.to_string(), values[0].as_str().into())).collect();
        if described["headers"].is_object() {
            let schema = described["headers"]["$ref"].as_str().expect("a reference").trim_start_matches('#');
            let known = self.document.pointer(schema).expect("the schema of headers")["properties"].as_object().expect("properties");
            let unknown: Vec<_> = headers.keys().filter(|name| !known.contains_key(*name)).collect();
            assert!(unknown.is_empty(), "{subject}: headers that are not described: {unknown:?}");
            assert_eq!(self.complaints(&described["headers"], &headers.into()), [""; 0], "{subject}: headers");
        } else {
            assert!(headers.is_empty(), "{subject}: {headers:?}");
        }
        if name != "deadLetter" {
            assert_eq!(self.complaints(&described["payload"], &body(message)), [""; 0], "{subject}: body");
        }
        self.seen.insert(name);
    }
}

/// The body as JSON; a chunk's bytes, which JSON has not, as text.
fn body(message: &Stored) -> Value {
    let encoding = Encoding::detect(message.header("Content-Type"), &message.body).expect("a known encoding");
    if encoding == Encoding::Msgpack && message.subject.contains(".logs.") {
        let mut chunk: LogChunk = encoding.decode(&message.body).expect("a chunk");
        chunk.data = ChunkData::Text("bytes".to_owned());
        return serde_json::to_value(chunk).expect("JSON");
    }
    encoding.decode(&message.body).expect("a map")
}

#[test]
fn samples_are_of_the_messages_that_the_document_says() {
    let reader = Reader::new();
    let mut samples = 0;
    for entry in std::fs::read_dir(repository().join("tests/golden")).unwrap().flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|e| e != "json") {
            continue;
        }
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        let value: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let name = match value["event"].as_str() {
            Some(event) => event.replacen("task_", "task", 1),
            None if stem.starts_with("assignment") => "assignment".to_owned(),
            None => "logChunk".to_owned(),
        };
        let messages = reader.document["components"]["messages"].as_object().unwrap();
        let (name, message) =
            messages.iter().find(|(n, _)| n.eq_ignore_ascii_case(&name)).unwrap_or_else(|| panic!("no message for {stem}"));
        assert_eq!(reader.complaints(&message["payload"], &value), [""; 0], "{stem}");
        let examples = message["examples"].as_array().unwrap_or_else(|| panic!("{name} has no examples"));
        assert!(examples.iter().any(|e| e["name"] == stem.as_str() && e["payload"] == value), "{stem} is no example of {name}");
        let mut broken = value.clone();
        broken["event"] = "task_lost".into();
        broken["v"] = "one".into();
        assert!(!reader.complaints(&message["payload"], &broken).is_empty(), "{name} takes anything");
        samples += 1;
    }
    assert!(samples >= 13, "{samples} samples");
}

/// Tasks that end in every way, with a worker that is drained in between.
async fn everything_happens(fleet: &Fleet, reader: &mut Reader) {
    let gate = Gate::new(&fleet.dir, "released");
    let once = format!("[ $WINDLASS_ATTEMPT -gt 1 ] || {{ echo up; {}; }}", gate.wait());
    let heard = Gate::new(&fleet.dir, "heard");
    let progress = r#"echo '{"stage": "a", "pct": 50}' >> "$WINDLASS_PROGRESS"; echo '{"metrics": {"n": 1}}' > "$WINDLASS_RESULT"; echo out; printf '\377' >&2"#;
    let progress = format!("{progress}; {}", heard.wait());
    let released = fleet.submit(&Job::bash(once).grace(0.0)).await;
    let tasks = [
        fleet.submit(&Job::bash(progress).set("/labels/a", "b").set("/context/deep", json!([1, {"x": null}]))).await,
        fleet
            .submit(
                &Job::bash("exit 3")
                    .msgpack()
                    .set("/retry", json!({"max_attempts": 2, "on": ["failure"], "backoff": {"initial_ms": 1, "factor": 1.0, "max_ms": 1}})),
            )
            .await,
        fleet.submit(&Job::bash("sleep 1000").timeout(0.2).grace(0.0)).await,
        fleet.submit(&Job::bash("true").set("/execution/runtime", "docker")).await,
        fleet.submit_raw("no-task", Some("application/json"), "{").await,
    ];
    let canceled = fleet.submit(&Job::bash("sleep 1000").set("/not_before", "2100-01-01T00:00:00Z")).await;
    fleet.cancel(&canceled).await;
    for message in fleet.queued().await.iter().filter(|m| !m.subject.ends_with(".no-task")) {
        reader.check(message, &fleet.prefix);
    }
    let first = fleet.worker(&[]);
    fleet.output_has(&released, "up").await;
    first.signal(rustix::process::Signal::TERM);
    first.signal(rustix::process::Signal::TERM);
    assert!(first.exit(PATIENCE).await.code().is_some());
    fleet.event(&released, EventKind::TaskReleased).await;
    fleet.worker(&[]);
    fleet.event(&tasks[0], EventKind::TaskProgress).await;
    heard.open();
    for task in tasks.iter().chain([&released]) {
        fleet.end(task).await;
    }
    assert_eq!(fleet.end(&canceled).await.reason, Some(Reason::Canceled));
}

#[tokio::test]
async fn every_stored_message_is_as_the_document_says() {
    let mut reader = Reader::new();
    for encoding in ["json", "msgpack"] {
        let Some(fleet) = Fleet::start(&[("EVENTS__ENCODING", encoding)]).await else { return };
        everything_happens(&fleet, &mut reader).await;
        for (kind, filter) in [("EVENTS", "events"), ("LOGS", "logs"), ("CONTROL", "control"), ("DEAD", "dead")] {
            for message in read_all(&fleet.js, &fleet.stream(kind), &format!("{}.{filter}.>", fleet.prefix)).await {
                reader.check(&message, &fleet.prefix);
            }
        }
        let bucket = fleet.stream("WORKERS");
        for message in read_all(&fleet.js, &format!("KV_{bucket}"), &format!("$KV.{bucket}.worker-1")).await {
            reader.check(&message, &fleet.prefix);
        }
        fleet.finish().await;
    }
    let messages = reader.document["components"]["messages"].as_object().unwrap();
    let all: BTreeSet<_> = messages.keys().cloned().collect();
    let unseen: Vec<_> = all.difference(&reader.seen).map(String::as_str).collect();
    // Requests in MessagePack are read, but nothing here writes them.
    assert_eq!(unseen, ["cancelMsgpack"], "messages that never came by");
}
