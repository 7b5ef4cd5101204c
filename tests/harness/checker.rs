//! The proof, task by task, from nothing but the streams: what any reader of the contract may rely on.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use windlass::task::event::{Manifest, StreamManifest};
use windlass::task::log_chunk::{LogChunk, LogStream};
use windlass::task::{Event, EventKind, Reason, chain};
use windlass::wire::sha256_hex;

use super::feed::{Stored, read_all};
use super::orchestrator::{Link, chunk_of, event_of, story};
use super::{Orchestrator, Task};

/// Proves every promise for every task that was submitted; panics with the story of the first that is broken.
pub async fn check(bus: &Orchestrator) {
    let mut tasks = bus.submitted();
    tasks.sort();
    tasks.dedup();
    for task in &tasks {
        bus.end(task).await;
    }
    for (task, Verdict { chain, history, output }) in tasks.iter().zip(examine(bus, &tasks).await) {
        if let Err(broken) = history.and(output) {
            panic!("task {}: {broken}\n  {}", task.id, story(&chain));
        }
    }
    queue_is_clear(bus, &tasks).await;
}

/// Proves that no acknowledgement passed before the end of its task was stored: by the time of each that was overheard, and
/// the time that the server gave to the event. Both are of this machine's clock.
pub async fn check_acks(bus: &Orchestrator) {
    let acks = bus.acks.heard();
    let events = read_all(&bus.js, &bus.stream("EVENTS"), &format!("{}.events.>", bus.prefix)).await;
    let mut ends = BTreeMap::new();
    for stored in &events {
        let event = event_of(stored);
        if event.event.is_terminal() {
            ends.insert((event.task.tenant.to_string(), event.task.task_id.to_string()), stored.time);
        }
    }
    for ack in acks {
        // What the sweeper queued again has a sequence that nobody here knows.
        let Some(task) = bus.task_of(ack.sequence) else { continue };
        let stored = ends.get(&(task.tenant.clone(), task.id.clone()));
        let stored = stored.unwrap_or_else(|| panic!("task {} was acknowledged and has no end", task.id));
        assert!(*stored <= ack.at, "task {} was acknowledged at {:?}, its end was stored at {stored:?}", task.id, ack.at);
    }
}

/// What the streams say of one task.
pub struct Verdict {
    /// Its events.
    pub chain: Vec<Link>,
    /// Whether they are one linear history with one end.
    pub history: Result<(), String>,
    /// Whether the output that the end promises is there.
    pub output: Result<(), String>,
}

/// Reads everything and judges each task.
pub async fn examine(bus: &Orchestrator, tasks: &[Task]) -> Vec<Verdict> {
    let events = read_all(&bus.js, &bus.stream("EVENTS"), &format!("{}.events.>", bus.prefix)).await;
    let logs = read_all(&bus.js, &bus.stream("LOGS"), &format!("{}.logs.>", bus.prefix)).await;
    let judge = |task: &Task| {
        let prefix = format!("{}.events.{}.{}.", bus.prefix, task.tenant, task.id);
        let own = events.iter().filter(|s| s.subject.starts_with(&prefix));
        let chain: Vec<Link> = own.map(|s| Link { event: event_of(s), stored: s.clone() }).collect();
        let history = check_chain(&chain, &prefix);
        let prefix = format!("{}.logs.{}.{}.", bus.prefix, task.tenant, task.id);
        let own: Vec<_> = logs.iter().filter(|s| s.subject.starts_with(&prefix)).collect();
        let output = check_logs(&chain, &own, &prefix);
        Verdict { chain, history, output }
    };
    tasks.iter().map(judge).collect()
}

macro_rules! ensure {
    ($condition:expr, $($word:tt)*) => {
        if !$condition {
            return Err(format!($($word)*));
        }
    };
}

fn check_chain(links: &[Link], prefix: &str) -> Result<(), String> {
    let mut folded = chain::Chain::default();
    let mut prev: Option<String> = None;
    let mut nonces = BTreeSet::new();
    let mut claims = 0;
    for (place, Link { stored, event }) in links.iter().enumerate() {
        folded.push(event.clone(), sha256_hex(&stored.body)).map_err(|e| e.to_string())?;
        // The same again, by other means than the product's own fold.
        ensure!(event.seq == place as u64, "event at place {place} says seq {}", event.seq);
        ensure!(event.prev_sha256 == prev, "event {place}: prev_sha256 {:?}, but the body before it has {prev:?}", event.prev_sha256);
        prev = Some(sha256_hex(&stored.body));
        ensure!(
            event.event.is_terminal() == (place + 1 == links.len()),
            "event {place}: a terminal event not at the end, or none at the end"
        );
        ensure!(stored.subject == format!("{prefix}{}", event.event), "event {place} on subject {}", stored.subject);
        if event.event == EventKind::TaskStarted {
            claims += 1;
            ensure!(event.task.attempt == claims, "claim number {claims} says attempt {}", event.task.attempt);
            ensure!(nonces.insert(event.nonce.clone()), "nonce {} used by two attempts", event.nonce);
        }
        ensure!(event.task.attempt == claims, "event {place} of attempt {}, but {claims} were claimed", event.task.attempt);
        check_headers(stored, event)?;
    }
    let Some(last) = links.last().map(|l| &l.event) else { return Err("no events at all".into()) };
    check_end(last)?;
    let claim = links.iter().rev().find(|l| l.event.event == EventKind::TaskStarted).map(|l| &l.event);
    let owned = claim.is_some_and(|c| c.nonce == last.nonce);
    let without_claim = [
        Reason::Canceled,
        Reason::AttemptsExhausted,
        Reason::DeadlinePassed,
        Reason::InvalidAssignment,
        Reason::ImageRefused,
        Reason::PolicyRefused,
        Reason::Unschedulable,
        Reason::WorkerLost,
    ];
    ensure!(owned || last.reason.is_some_and(|r| without_claim.contains(&r)), "the end does not belong to the last claim");
    Ok(())
}

fn check_end(last: &Event) -> Result<(), String> {
    let (Some(status), Some(outcome), Some(reason)) = (last.status, last.outcome, last.reason) else {
        return Err("the end lacks status, outcome or reason".into());
    };
    let completed = last.event == EventKind::TaskCompleted;
    ensure!(completed == (status == windlass::task::event::Status::Completed), "{} with status {status:?}", last.event);
    ensure!(completed == (reason == Reason::Ok), "{} with reason {reason}", last.event);
    ensure!(reason.outcome() == outcome, "reason {reason} with outcome {outcome}");
    ensure!(completed || last.error.as_ref().is_some_and(|e| !e.is_empty()), "a failure without an error text");
    ensure!(last.retry.as_ref().is_none_or(|r| !r.will_retry), "the end says that a retry follows");
    Ok(())
}

fn check_headers(stored: &Stored, event: &Event) -> Result<(), String> {
    let kind = event.event;
    let id = if kind == EventKind::TaskProgress {
        format!("{}.{}.{kind}.{}", event.task.task_id, event.task.attempt, event.seq)
    } else {
        format!("{}.{}.{kind}", event.task.task_id, event.task.attempt)
    };
    for (name, expected) in [
        ("ce-specversion", "1.0"),
        ("ce-id", event.id.as_str()),
        ("ce-id", &id),
        ("ce-type", &format!("dev.windlass.{kind}.v1")),
        ("ce-time", &event.time.to_string()),
        ("ce-datacontenttype", stored.header("Content-Type").unwrap_or("(no Content-Type)")),
    ] {
        ensure!(stored.header(name) == Some(expected), "event {}: {name} is {:?}, not {expected:?}", event.seq, stored.header(name));
    }
    for name in ["ce-source", "ce-subject", "ce-dataschema"] {
        ensure!(stored.header(name).is_some_and(|v| !v.is_empty()), "event {}: no {name}", event.seq);
    }
    ensure!(stored.header("Nats-Msg-Id").is_none(), "event {}: appended with a Nats-Msg-Id", event.seq);
    Ok(())
}

fn check_logs(links: &[Link], own: &[&Stored], prefix: &str) -> Result<(), String> {
    let Some(last) = links.last() else { return Ok(()) };
    for stored in own {
        let (chunk, _) = chunk_of(stored);
        let subject = format!("{prefix}{}.{}", chunk.attempt, chunk.stream.as_str());
        ensure!(stored.subject == subject, "chunk {} on subject {}, not {subject}", chunk.seq, stored.subject);
        let id = format!("{}.{}.{}.log.{}", chunk.task_id, chunk.attempt, chunk.fence, chunk.seq);
        ensure!(
            stored.header("Nats-Msg-Id") == Some(&id),
            "chunk {} with Nats-Msg-Id {:?}, not {id}",
            chunk.seq,
            stored.header("Nats-Msg-Id")
        );
        // An orphan of a fenced attempt is fine; a chunk that nobody claimed is not.
        let claim = links.iter().find(|l| l.stored.sequence == chunk.fence);
        let claimed = claim.is_some_and(|c| c.event.event == EventKind::TaskStarted && c.event.task.attempt == chunk.attempt);
        ensure!(claimed, "chunk {} of attempt {} has fence {}, which is no claim of it", chunk.seq, chunk.attempt, chunk.fence);
    }
    let claim = links.iter().rev().find(|l| l.event.event == EventKind::TaskStarted);
    let Some(manifest) = &last.event.logs else {
        let ran = last.event.run.as_ref().is_some_and(|r| r.started_at.is_some());
        ensure!(!ran, "the task ran, and its end has no manifest");
        return Ok(());
    };
    let Some(claim) = claim else { return Err("a manifest without a claim".into()) };
    ensure!(manifest.fence == claim.stored.sequence, "manifest of fence {}, but the claim is {}", manifest.fence, claim.stored.sequence);
    let filter = format!("{prefix}{}.>", claim.event.task.attempt);
    ensure!(manifest.subject == filter, "manifest subject {}, not {filter}", manifest.subject);
    let mut chunks: Vec<_> = own.iter().map(|s| chunk_of(s)).filter(|(c, _)| c.fence == manifest.fence).collect();
    chunks.sort_by_key(|(c, _)| c.seq);
    check_manifest(manifest, &chunks)
}

/// The manifest against the chunks of its attempt, in the order of their numbers.
pub fn check_manifest(manifest: &Manifest, chunks: &[(LogChunk, Vec<u8>)]) -> Result<(), String> {
    ensure!(chunks.len() as u64 == manifest.chunks, "{} chunks are stored, the manifest says {}", chunks.len(), manifest.chunks);
    for (place, (chunk, _)) in chunks.iter().enumerate() {
        ensure!(chunk.seq == place as u64, "chunk {} where {place} belongs", chunk.seq);
        ensure!(chunk.eof == (place + 1 == chunks.len()), "chunk {place} of {}: eof is {}", chunks.len(), chunk.eof);
    }
    let nothing = StreamManifest { bytes: 0, chunks: 0, sha256: sha256_hex(b""), dropped_bytes: 0 };
    let system = manifest.system.as_ref().unwrap_or(&nothing);
    for (stream, promised) in [(LogStream::Stdout, &manifest.stdout), (LogStream::Stderr, &manifest.stderr), (LogStream::System, system)] {
        let own: Vec<_> = chunks.iter().filter(|(c, _)| c.stream == stream).collect();
        let name = stream.as_str();
        let mut bytes = Vec::new();
        for (chunk, data) in &own {
            ensure!(chunk.offset == bytes.len() as u64, "{name}: chunk {} at offset {}, not {}", chunk.seq, chunk.offset, bytes.len());
            bytes.extend(data);
        }
        let dropped: u64 = own.iter().map(|(c, _)| c.dropped_bytes).sum();
        let found =
            StreamManifest { bytes: bytes.len() as u64, chunks: own.len() as u64, sha256: sha256_hex(&bytes), dropped_bytes: dropped };
        ensure!(found == *promised, "{name}: stored {found:?}, but the manifest says {promised:?}");
    }
    Ok(())
}

/// Waits until no message of an ended task is in the queue: the confirmed ack follows the terminal event.
async fn queue_is_clear(bus: &Orchestrator, tasks: &[Task]) {
    let deadline = Instant::now() + super::PATIENCE * super::slowness();
    loop {
        let left = bus.queued().await;
        let left: Vec<_> = left.iter().filter(|s| tasks.iter().any(|t| s.subject.ends_with(&format!(".{}.{}", t.tenant, t.id)))).collect();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "still queued although ended: {:?}", left.iter().map(|s| &s.subject).collect::<Vec<_>>());
        // An ack makes no message that could be waited for.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
