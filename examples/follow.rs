//! Publishes a task, follows its events to the end, and proves that history and output are whole.
//!
//!     cargo run --example follow -- 'echo hello'          a bash script
//!     cargo run --example follow -- --verify TASK_ID      a task that somebody else published
//!
//! Ends with 0 when the task worked, 1 when it did not, 7 when what is stored is not what was promised.
//! `NATS_URL`, `WINDLASS_PREFIX` and `WINDLASS_TENANT` say where. It uses nothing of the windlass crate.
#![expect(clippy::print_stdout, reason = "a program for people")]

use std::{collections::BTreeMap, process::ExitCode, time::Duration};

use async_nats::jetstream::{self, Message, consumer::pull};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::StreamExt as _;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

type Error = Box<dyn std::error::Error + Send + Sync>;

enum Failure {
    Verification(String),
    Other(Error),
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

fn require(condition: bool, what: impl FnOnce() -> String) -> Result<(), Failure> {
    if condition { Ok(()) } else { Err(Failure::Verification(what())) }
}

#[derive(Deserialize)]
struct Chunk {
    fence: u64,
    seq: u64,
    stream: String,
    offset: usize,
    encoding: String,
    data: serde_bytes::ByteBuf,
    eof: bool,
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn variable(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

fn decode<T: DeserializeOwned>(message: &Message) -> Result<T, Failure> {
    let json = message.headers.as_ref().and_then(|h| h.get("Content-Type")).is_some_and(|t| t.as_str() == "application/json");
    Ok(if json { serde_json::from_slice(&message.payload)? } else { rmp_serde::from_slice(&message.payload)? })
}

async fn publish(js: &jetstream::Context, tenant: &str, script: &str) -> Result<String, Failure> {
    let id = uuid::Uuid::now_v7().to_string();
    let task = json!({"task_id": id, "execution": {"runtime": "bash", "script": script, "timeout_s": 60}});
    let subject = format!("{}.tasks.cpu_short.normal.{tenant}.{id}", variable("WINDLASS_PREFIX", "windlass"));
    // Without a Content-Type a first byte `{` means JSON.
    js.publish(subject, task.to_string().into()).await?.await?;
    println!("queued {id}");
    Ok(id)
}

async fn read(js: &jetstream::Context, stream: &str, subject: String) -> Result<pull::Ordered, Failure> {
    let stream = js.get_stream(format!("{}_{stream}", variable("WINDLASS_PREFIX", "windlass").to_uppercase())).await?;
    let consumer = stream.create_consumer(pull::OrderedConfig { filter_subject: subject, ..Default::default() }).await?;
    Ok(consumer.messages().await?)
}

/// The event that ends the task and the fence of its last attempt, after the whole chain was checked link by link.
async fn follow(mut events: pull::Ordered) -> Result<(Value, u64), Failure> {
    let (mut digest, mut fence) = (Value::Null, 0);
    for seq in 0_u64.. {
        let message = events.next().await.ok_or("the events ended without an end")??;
        let event: Value = decode(&message)?;
        let word = |key: &str| event[key].as_str().unwrap_or_default();
        println!("{} {} {}", word("time"), word("event"), word("reason"));
        require(event["seq"] == seq, || format!("event {} where {seq} belongs", event["seq"]))?;
        require(event["prev_sha256"] == digest, || format!("event {seq} does not follow the one before it"))?;
        digest = sha256(&message.payload).into();
        match word("event") {
            "task_started" => fence = message.info()?.stream_sequence,
            "task_completed" | "task_failed" => return Ok((event, fence)),
            _ => {}
        }
    }
    Err("more events than there are numbers".into())
}

/// The chunks that count, by number; repetitions and those of lost attempts are left out.
async fn chunks_of(mut messages: pull::Ordered, fence: u64) -> Result<BTreeMap<u64, Chunk>, Failure> {
    let mut found = BTreeMap::new();
    while let Ok(Some(message)) = tokio::time::timeout(Duration::from_secs(5), messages.next()).await {
        let message = message?;
        let chunk: Chunk = decode(&message)?;
        if chunk.fence == fence {
            found.insert(chunk.seq, chunk);
        }
        // All were stored before the end was: what is missing then is lost.
        if message.info()?.pending == 0 {
            break;
        }
    }
    Ok(found)
}

async fn output(js: &jetstream::Context, manifest: &Value, fence: u64) -> Result<BTreeMap<String, Vec<u8>>, Failure> {
    require(manifest["fence"] == fence, || "the manifest is of another attempt".into())?;
    let (promised, mut streams) = (manifest["chunks"].as_u64().unwrap_or(0), BTreeMap::<String, Vec<u8>>::new());
    let subject = manifest["subject"].as_str().unwrap_or_default().to_owned();
    let found = if promised == 0 { BTreeMap::new() } else { chunks_of(read(js, "LOGS", subject).await?, fence).await? };
    for seq in 0..promised {
        let chunk = found.get(&seq).ok_or_else(|| Failure::Verification(format!("chunk {seq} of {promised} is missing")))?;
        let bytes = streams.entry(chunk.stream.clone()).or_default();
        require(chunk.offset == bytes.len(), || format!("chunk {seq} is not where the one before it ends"))?;
        require(chunk.eof == (seq + 1 == promised), || format!("chunk {seq}: eof is {}", chunk.eof))?;
        bytes.extend(if chunk.encoding == "base64" { STANDARD.decode(&chunk.data)? } else { chunk.data.to_vec() });
    }
    for name in ["stdout", "stderr", "system"].into_iter().filter(|name| !manifest[name].is_null()) {
        let (bytes, promised) = (streams.entry(name.to_owned()).or_default(), &manifest[name]);
        require(promised["bytes"] == bytes.len(), || format!("{name} has {} bytes, promised are {}", bytes.len(), promised["bytes"]))?;
        require(promised["sha256"] == sha256(bytes), || format!("{name} has another SHA-256 than promised"))?;
    }
    Ok(streams)
}

async fn run(arguments: &[String]) -> Result<bool, Failure> {
    let js = jetstream::new(async_nats::connect(variable("NATS_URL", "nats://127.0.0.1:4222")).await?);
    let (prefix, tenant) = (variable("WINDLASS_PREFIX", "windlass"), variable("WINDLASS_TENANT", "default"));
    let id = match arguments {
        [verify, id] if verify == "--verify" => id.clone(),
        [script] => publish(&js, &tenant, script).await?,
        _ => return Err("usage: follow SCRIPT | --verify TASK_ID".into()),
    };
    let (end, fence) = follow(read(&js, "EVENTS", format!("{prefix}.events.{tenant}.{id}.*")).await?).await?;
    let streams = if end["logs"].is_null() { BTreeMap::new() } else { output(&js, &end["logs"], fence).await? };
    let bytes = |name| streams.get(name).map_or(0, Vec::len);
    println!("verified: stdout {} bytes, stderr {} bytes", bytes("stdout"), bytes("stderr"));
    if let Some(result) = end.get("result") {
        println!("result: {}", result["value"]);
    }
    Ok(end["event"] == "task_completed")
}

#[tokio::main]
async fn main() -> ExitCode {
    let (code, error) = match run(&std::env::args().skip(1).collect::<Vec<_>>()).await {
        Ok(worked) => return ExitCode::from(u8::from(!worked)),
        Err(Failure::Verification(what)) => (7, format!("verification failed: {what}")),
        Err(Failure::Other(error)) => (2, error.to_string()),
    };
    eprintln!("{error}");
    ExitCode::from(code)
}
