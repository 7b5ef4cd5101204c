//! What a task gives back: result, progress, exit codes, signals, the end of its standard error, stages.

use serde_json::json;
use windlass::task::{EventKind, Outcome, Reason};

use crate::harness::job::Gate;
use crate::harness::{Fleet, Job};

#[tokio::test]
async fn the_result_file_becomes_the_result() {
    let Some(fleet) = Fleet::with_worker(2, &[]).await else { return };
    let script = r#"echo '{"answer": 42, "metrics": {"tokens": 512}}' > "$WINDLASS_RESULT""#;
    let with = fleet.submit(&Job::bash(script)).await;
    let without = fleet.submit(&Job::argv(["true"])).await;
    let result = fleet.end(&with).await.result.expect("a result");
    assert_eq!((&result.value, &result.metrics), (&json!({"answer": 42, "metrics": {"tokens": 512}}), &json!({"tokens": 512})));
    let end = fleet.end(&without).await;
    assert!(end.result.is_none_or(|r| r.value.is_null()), "nothing was given back");
    fleet.finish().await;
}

#[tokio::test]
async fn a_failed_task_may_give_back_a_result_too() {
    let Some(fleet) = Fleet::with_worker(2, &[]).await else { return };
    let task = fleet.submit(&Job::bash(r#"echo '{"half": true}' > "$WINDLASS_RESULT"; exit 4"#)).await;
    let end = fleet.end(&task).await;
    assert_eq!((end.reason, end.exit_code), (Some(Reason::ExitNonzero), Some(4)));
    assert_eq!(end.result.map(|r| r.value), Some(json!({"half": true})));
    fleet.finish().await;
}

#[tokio::test]
async fn an_unusable_result_is_a_failure_with_its_reason() {
    let Some(fleet) = Fleet::with_worker(2, &[]).await else { return };
    for (script, word) in [
        (r#"echo '{"half":' > "$WINDLASS_RESULT""#, "JSON"),
        (r#"(printf '"'; head -c 300000 /dev/zero | tr '\0' x; printf '"') > "$WINDLASS_RESULT""#, "larger"),
        (r#"ln -s /etc/hostname "$WINDLASS_RESULT""#, "symbolic link"),
        (r#"mkfifo "$WINDLASS_RESULT""#, "plain file"),
        (r#"mkdir "$WINDLASS_RESULT""#, "plain file"),
    ] {
        let task = fleet.submit(&Job::bash(script)).await;
        let end = fleet.end(&task).await;
        assert_eq!((end.event, end.reason, end.exit_code), (EventKind::TaskFailed, Some(Reason::ResultInvalid), Some(0)), "{script}");
        assert!(end.error.as_ref().is_some_and(|e| e.contains(word)), "{script}: {:?}", end.error);
    }
    fleet.finish().await;
}

#[tokio::test]
async fn the_largest_result_that_is_allowed_arrives_whole() {
    let Some(fleet) = Fleet::with_worker(2, &[]).await else { return };
    let script = r#"(printf '"'; head -c 262142 /dev/zero | tr '\0' x; printf '"') > "$WINDLASS_RESULT""#;
    let task = fleet.submit(&Job::bash(script)).await;
    let end = fleet.end(&task).await;
    assert_eq!(end.result.expect("a result").value.as_str().map(str::len), Some(262_142));
    assert!(end.shortened.is_empty(), "{:?}", end.shortened);
    fleet.finish().await;
}

#[tokio::test]
async fn exit_codes_and_signals_are_told_apart() {
    let Some(fleet) = Fleet::with_worker(4, &[]).await else { return };
    for (script, reason, code, signal) in [
        ("exit 0", Reason::Ok, Some(0), None),
        ("exit 1", Reason::ExitNonzero, Some(1), None),
        ("exit 137", Reason::ExitNonzero, Some(137), None),
        ("exit 255", Reason::ExitNonzero, Some(255), None),
        ("kill -TERM $$", Reason::Signaled, None, Some(15)),
        ("kill -SEGV $$", Reason::Signaled, None, Some(11)),
    ] {
        let task = fleet.submit(&Job::bash(script)).await;
        let end = fleet.end(&task).await;
        assert_eq!((end.reason, end.exit_code, end.signal), (Some(reason), code, signal), "{script}");
        assert_eq!(end.phase.as_deref(), Some("execute"), "{script}");
        let expected = if reason == Reason::Ok { Outcome::Success } else { Outcome::Failure };
        assert_eq!(end.outcome, Some(expected), "{script}");
    }
    fleet.finish().await;
}

#[tokio::test]
async fn the_end_of_standard_error_is_in_the_event() {
    let Some(fleet) = Fleet::with_worker(2, &[]).await else { return };
    let long = fleet.submit(&Job::bash("seq 1 5000 >&2; printf 'last \\377 words' >&2; exit 1")).await;
    let end = fleet.end(&long).await;
    let tail = end.stderr_tail.expect("a tail");
    assert!(tail.len() <= 4096 && tail.len() > 4000, "{} bytes", tail.len());
    assert!(tail.ends_with("4999\n5000\nlast \u{fffd} words"), "{:?}", &tail[tail.len() - 40..]);
    assert!(end.hint.is_some_and(|h| h.contains("stderr_tail")));
    let silent = fleet.submit(&Job::bash("exit 1")).await;
    assert!(fleet.end(&silent).await.stderr_tail.is_none_or(|t| t.is_empty()));
    fleet.finish().await;
}

#[tokio::test]
async fn stages_are_told_in_order_with_their_times() {
    let Some(fleet) = Fleet::with_worker(2, &[]).await else { return };
    let task = fleet.submit(&Job::argv(["true"])).await;
    let end = fleet.end(&task).await;
    let names: Vec<_> = end.stages.iter().map(|s| (s.stage.as_str(), s.pct)).collect();
    let expected = [("VALIDATING", 5.0), ("LOADING", 15.0), ("EXECUTING", 60.0), ("FINALIZING", 90.0), ("DONE", 100.0)];
    assert_eq!(names, expected);
    assert!(end.stages.is_sorted_by_key(|s| s.at), "{:?}", end.stages);
    let run = end.run.expect("run");
    assert!(run.started_at.unwrap() <= run.finished_at.unwrap());
    assert!(run.pid.is_some() && run.duration_ms.is_some() && run.prepare_ms.is_some());
    fleet.finish().await;
}

#[tokio::test]
async fn progress_is_seen_while_the_task_runs() {
    let Some(fleet) = Fleet::with_worker(2, &[("EVENTS__PROGRESS_INTERVAL_MS", "50")]).await else { return };
    let gate = Gate::new(&fleet.dir, "progress");
    let script = format!(
        r#"echo '{{"stage": "TRAIN", "pct": 40, "message": "half way"}}' >> "$WINDLASS_PROGRESS"; echo nonsense >> "$WINDLASS_PROGRESS"; {}
        echo '{{"stage": "EVAL", "pct": 80}}' >> "$WINDLASS_PROGRESS""#,
        gate.wait()
    );
    let task = fleet.submit(&Job::bash(script)).await;
    let seen = fleet.event(&task, EventKind::TaskProgress).await;
    let progress = seen.progress.expect("progress");
    assert_eq!((progress.stage.as_deref(), progress.pct, progress.message.as_deref()), (Some("TRAIN"), Some(40.0), Some("half way")));
    assert!(fleet.chain(&task).iter().all(|l| !l.event.event.is_terminal()), "it still runs");
    gate.open();
    let end = fleet.end(&task).await;
    let names: Vec<_> = end.stages.iter().map(|s| s.stage.as_str()).collect();
    assert_eq!(names, ["VALIDATING", "LOADING", "EXECUTING", "TRAIN", "EVAL", "FINALIZING", "DONE"]);
    fleet.finish().await;
}

#[tokio::test]
async fn progress_faster_than_its_interval_is_thinned_not_queued() {
    let Some(fleet) = Fleet::with_worker(2, &[("EVENTS__PROGRESS_INTERVAL_MS", "200")]).await else { return };
    let script = r#"for i in $(seq 2000); do echo "{\"pct\": $i}"; done >> "$WINDLASS_PROGRESS""#;
    let task = fleet.submit(&Job::bash(script)).await;
    let end = fleet.end(&task).await;
    assert_eq!(end.reason, Some(Reason::Ok));
    let allowed = end.run.unwrap().duration_ms.unwrap() / 200 + 3;
    let told = fleet.chain(&task).iter().filter(|l| l.event.event == EventKind::TaskProgress).count() as u64;
    assert!(told <= allowed, "{told} progress events, {allowed} allowed");
    fleet.finish().await;
}
