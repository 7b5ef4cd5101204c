//! What the fuzz targets do with bytes (`fuzz/`). Here, because some of it is private to the crate, and so that the kept
//! corpus also runs as an ordinary test. Each function panics when a promise is broken.
#![expect(clippy::expect_used, clippy::panic, reason = "a broken promise is told by a panic")]

use crate::config::{self, Class, Config, TenantPolicy};
use crate::intake::Task;
use crate::plan::{self, Policy};
use crate::task::chain::{Chain, RunState};
use crate::task::{Assignment, Event, EventKind, Outcome, Reason, TaskId};
use crate::wire::{Encoding, sha256_hex};

pub use crate::report::fuzz_log_chunker as log_chunker;

/// Any bytes as an assignment in JSON: refused with words, or read and planned; what was read is written and read alike.
pub fn assignment_json(bytes: &[u8]) {
    assignment(Encoding::Json, bytes);
}

/// Likewise in MessagePack.
pub fn assignment_msgpack(bytes: &[u8]) {
    assignment(Encoding::Msgpack, bytes);
}

fn has_no_number(assignment: &Assignment) -> bool {
    let text = format!("{assignment:?}");
    ["NaN", "inf", "-inf"].iter().any(|none| text.contains(&format!("Some({none})")) || text.contains(&format!(": {none}")))
}

fn assignment(encoding: Encoding, bytes: &[u8]) {
    let assignment: Assignment = match encoding.decode(bytes) {
        Ok(assignment) => assignment,
        Err(error) => return assert!(!error.to_string().is_empty(), "a refusal without a word"),
    };
    for again in [Encoding::Json, Encoding::Msgpack] {
        let written = again.encode(&assignment).expect("what was read can be written");
        match again.decode::<Assignment>(&written) {
            // MessagePack holds numbers that are none: they equal nothing, and JSON has null for them. The plan refuses them.
            Ok(_) if encoding == Encoding::Msgpack && has_no_number(&assignment) => {}
            Ok(read) => assert_eq!(read, assignment, "{again:?} reads something else than it wrote"),
            // MessagePack may hold what JSON has no word for: a number that is none, as JSON null.
            Err(error) => assert!(encoding == Encoding::Msgpack && again == Encoding::Json, "{again:?} cannot read what it wrote: {error}"),
        }
    }
    let task = Task { sha256: sha256_hex(bytes), ..Task::of(assignment) };
    let policy: TenantPolicy = serde_json::from_str(r#"{"secrets": ["env:A*", "file:/s/*", "kv:b/k"]}"#).expect("a policy");
    let class = Class::default();
    match plan::plan(&task, &Policy::of_class(&class).with_tenant(&policy)) {
        Ok(plan) => {
            let limits = plan.limits();
            assert!(limits.cpus > 0.0 && limits.memory_bytes > 0 && limits.pids > 0 && limits.timeout_ms > 0, "{limits:?}");
            assert!((1..=Class::default().max_max_attempts).contains(&plan.max_attempts.value));
            for failed in [1, 2, plan.max_attempts.value, u32::MAX] {
                let _ = crate::retry::task_delay(&plan.backoff.value, failed);
            }
        }
        Err(rejection) => assert!(
            matches!(rejection.reason, Reason::InvalidAssignment | Reason::PolicyRefused | Reason::Unschedulable)
                && !rejection.error.is_empty()
        ),
    }
}

/// Any bytes as a configuration file: every mistake has words, and what is taken is written and taken alike.
pub fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(config) = config::load_text(text) else { return };
    let written = toml::to_string(&config).expect("what was read can be written");
    let read: Config = config::load_text(&written).unwrap_or_else(|error| panic!("it does not take its own words: {error}\n{written}"));
    assert_eq!(Config { origins: config.origins.clone(), ..read }, config);
}

/// Any sequence of events as a chain: two bytes an event, what it is and what is wrong with it.
pub fn chain_fold(bytes: &[u8]) {
    const OUTCOMES: [Option<Outcome>; 4] = [None, Some(Outcome::Timeout), Some(Outcome::Cancellation), Some(Outcome::Failure)];
    let mut chain = Chain::default();
    let mut attempts = 0;
    for pair in bytes.chunks_exact(2) {
        let (kind, wrong) = (EventKind::ALL[usize::from(pair[0]) % EventKind::ALL.len()], pair[1]);
        let (state, last) = (chain.state(), chain.last().cloned());
        let mut event = blank(kind);
        let claimed = last.as_ref().map_or(0, |last| last.task.attempt);
        event.seq = last.as_ref().map_or(0, |last| last.seq + 1) + u64::from(wrong & 1);
        event.task.attempt = claimed + u32::from(kind == EventKind::TaskStarted) + u32::from(wrong >> 1 & 1);
        let owner =
            last.as_ref().filter(|_| kind != EventKind::TaskStarted).map_or_else(|| format!("n{claimed}"), |last| last.nonce.clone());
        event.nonce = if wrong >> 2 & 1 == 0 { owner } else { owner + "x" };
        event.prev_sha256 = last.as_ref().map(digest).filter(|_| wrong >> 3 & 1 == 0);
        event.outcome = OUTCOMES[usize::from(wrong >> 6)];
        let taken = chain.push(event.clone(), digest(&event));
        if taken.is_ok() {
            assert!(!state.is_over(), "{kind} was taken after the end");
            assert_eq!(event.seq, last.as_ref().map_or(0, |last| last.seq + 1), "a gap was taken");
            assert_eq!(event.prev_sha256, last.as_ref().map(digest), "a chain that was tampered with was taken");
            assert_eq!(chain.state(), RunState::of_last(&event));
            assert_eq!(chain.last(), Some(&event));
            if kind == EventKind::TaskStarted {
                attempts += 1;
                assert_eq!(event.task.attempt, attempts, "attempts do not count up");
            } else if kind != EventKind::TaskFailed {
                assert_eq!((Some(&event.nonce), state), (last.as_ref().map(|l| &l.nonce), RunState::Running), "{kind} of a stranger");
            }
        } else {
            assert_eq!((chain.state(), chain.last()), (state, last.as_ref()), "a refused event left something");
            assert!(wrong & 0b1111 != 0 || state != RunState::Running || kind == EventKind::TaskStarted, "a rightful {kind} was refused");
        }
    }
}

fn digest(event: &Event) -> String {
    format!("{}.{}.{}", event.seq, event.event, event.nonce)
}

fn blank(kind: EventKind) -> Event {
    let task_id = TaskId::new("t").expect("a token");
    let value = serde_json::json!({
        "v": 1, "event": kind, "id": "i", "time": "2026-01-01T00:00:00Z", "seq": 0, "nonce": "n", "prev_sha256": null,
        "task": {"task_id": task_id, "tenant": "acme", "class": "c", "attempt": 0, "max_attempts": 3, "released_attempts": 0,
                 "deliveries": 1, "submitted_at": "2026-01-01T00:00:00Z", "assignment_sha256": "", "context": null, "labels": {}},
        "worker": {"worker_id": "w", "instance": "i", "host": "h", "version": "0"},
    });
    serde_json::from_value(value).expect("an event")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    type Target = (&'static str, fn(&[u8]));

    /// Everything that a fuzzer ever found to be worth keeping, findings included.
    #[test]
    fn the_kept_corpus_breaks_no_promise() {
        let targets: [Target; 5] = [
            ("assignment_json", super::assignment_json),
            ("assignment_msgpack", super::assignment_msgpack),
            ("config", super::config),
            ("log_chunker", super::log_chunker),
            ("chain_fold", super::chain_fold),
        ];
        for (name, target) in targets {
            let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
            let files: Vec<_> = std::fs::read_dir(&dir).unwrap().flatten().map(|e| e.path()).collect();
            assert!(files.len() > 3, "{} is all but empty", dir.display());
            for file in files {
                let bytes = std::fs::read(&file).unwrap();
                let run = std::panic::catch_unwind(|| target(&bytes));
                assert!(run.is_ok(), "{} breaks a promise", file.display());
            }
        }
    }
}
