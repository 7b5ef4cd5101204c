//! What goes in and what comes out.

use serde_json::json;
use windlass::task::log_chunk::LogStream;
use windlass::task::{EventKind, Reason};
use windlass::wire::sha256_hex;

use super::{Home, World, reason};
use crate::harness::job::Gate;

const FLOOD: usize = 20_000_000;

pub async fn flood(home: Home) {
    let Some(world) = World::new(home).await else { return };
    let script = format!("yes 0123456789abcdef | head -c {FLOOD}; yes fedcba9876543210 | head -c 1000000 >&2");
    let (_, end) = world.run(&world.script(script)).await;
    let logs = end.logs.clone().unwrap();
    assert_eq!((reason(&end), logs.stdout.bytes, logs.stdout.dropped_bytes), (Reason::Ok, FLOOD as u64, 0), "{end:?}");
    let expected: Vec<u8> = b"0123456789abcdef\n".iter().copied().cycle().take(FLOOD).collect();
    assert_eq!(logs.stdout.sha256, sha256_hex(&expected), "not the bytes in their order");
    let expected: Vec<u8> = b"fedcba9876543210\n".iter().copied().cycle().take(1_000_000).collect();
    assert_eq!(logs.stderr.sha256, sha256_hex(&expected), "not the bytes in their order");
    world.finish().await;
}

pub async fn bytes_as_they_are(home: Home) {
    let Some(world) = World::new(home).await else { return };
    for (script, expected) in [
        ("true", b"".to_vec()),
        ("printf 'no newline'", b"no newline".to_vec()),
        // As the header of a frame of the engine's would be.
        ("printf '\\1\\0\\0\\0\\0\\0\\0\\5hello'", b"\x01\0\0\0\0\0\0\x05hello".to_vec()),
        ("printf '\\377\\376\\200 invalid'", b"\xff\xfe\x80 invalid".to_vec()),
        ("printf 'half \\303'; sleep 0.4; printf '\\274 whole'", "half ü whole".as_bytes().to_vec()),
        ("echo mine; setsid sh -c 'sleep 600; echo never' & exit 0", b"mine\n".to_vec()),
    ] {
        let (task, end) = world.run(&world.script(script)).await;
        assert_eq!(reason(&end), Reason::Ok, "{script}: {:?}", end.error);
        assert_eq!(world.output(&task, &end, LogStream::Stdout).await, expected, "{script}");
    }
    world.finish().await;
}

pub async fn output_while_it_runs(home: Home) {
    let Some(world) = World::new(home).await else { return };
    let gate = Gate::new(&world.dir, "live");
    let task = world.submit(&world.script(format!("echo first; printf prompt >&2; {}; echo last", gate.wait()))).await;
    world.output_has(&task, "first").await;
    world.output_has(&task, "prompt").await;
    assert!(world.chain(&task).iter().all(|link| !link.event.event.is_terminal()), "it still runs");
    gate.open();
    let end = world.told(&task).await;
    assert_eq!(world.stdout(&task, &end).await, "first\nlast\n");
    world.finish().await;
}

pub async fn result(home: Home) {
    let Some(world) = World::new(home).await else { return };
    let script = r#"echo '{"answer": 42, "metrics": {"tokens": 512}}' > "$WINDLASS_RESULT"; exit 4"#;
    let (_, end) = world.run(&world.script(script)).await;
    assert_eq!((reason(&end), end.exit_code), (Reason::ExitNonzero, Some(4)));
    let result = end.result.expect("a result");
    assert_eq!((&result.value, &result.metrics), (&json!({"answer": 42, "metrics": {"tokens": 512}}), &json!({"tokens": 512})));
    world.finish().await;
}

pub async fn unusable_result(home: Home) {
    let Some(world) = World::new(home).await else { return };
    for (script, word) in [
        (r#"echo '{"half":' > "$WINDLASS_RESULT""#, "JSON"),
        (r#"ln -s /etc/hostname "$WINDLASS_RESULT""#, "symbolic link"),
        (r#"mkfifo "$WINDLASS_RESULT""#, "plain file"),
    ] {
        let (_, end) = world.run(&world.script(script)).await;
        assert_eq!((reason(&end), end.exit_code), (Reason::ResultInvalid, Some(0)), "{script}");
        assert!(end.error.as_ref().is_some_and(|e| e.contains(word)), "{script}: {:?}", end.error);
    }
    world.finish().await;
}

pub async fn progress(home: Home) {
    let Some(world) = World::idle(home, &[("EVENTS__PROGRESS_INTERVAL_MS", "50")]).await else { return };
    world.worker(&[]);
    let gate = Gate::new(&world.dir, "progress");
    let script = format!(
        r#"echo '{{"stage": "TRAIN", "pct": 40, "message": "half way"}}' >> "$WINDLASS_PROGRESS"; {}
        echo '{{"stage": "EVAL", "pct": 80}}' >> "$WINDLASS_PROGRESS""#,
        gate.wait()
    );
    let task = world.submit(&world.script(script)).await;
    let seen = world.event(&task, EventKind::TaskProgress).await.progress.expect("progress");
    assert_eq!((seen.stage.as_deref(), seen.pct, seen.message.as_deref()), (Some("TRAIN"), Some(40.0), Some("half way")));
    gate.open();
    let end = world.told(&task).await;
    let stages: Vec<_> = end.stages.iter().map(|s| s.stage.as_str()).collect();
    assert_eq!(&stages[stages.len() - 4..], ["TRAIN", "EVAL", "FINALIZING", "DONE"]);
    world.finish().await;
}

pub async fn standard_input(home: Home) {
    let Some(world) = World::new(home).await else { return };
    let text = "line ü\n".repeat(60_000);
    let (task, end) = world.run(&world.argv(&["cat"]).set("/execution/stdin", text.clone())).await;
    assert_eq!(reason(&end), Reason::Ok, "{end:?}");
    assert!(world.stdout(&task, &end).await == text, "not what went in: {:?}", end.logs);
    // Nobody's input is at its end at once, and what nobody reads harms nobody.
    let (task, end) = world.run(&world.script("cat; echo over")).await;
    assert_eq!(world.stdout(&task, &end).await, "over\n");
    let (_, end) = world.run(&world.script("exit 0").set("/execution/stdin", "z".repeat(500_000))).await;
    assert_eq!(reason(&end), Reason::Ok, "{end:?}");
    world.finish().await;
}

pub async fn environment(home: Home) {
    let Some(world) = World::new(home).await else { return };
    let script = r#"set -e
        echo "$WINDLASS_TASK_ID $WINDLASS_ATTEMPT $WINDLASS_TENANT $WINDLASS_CLASS $GREETING $LANG"
        [ "$WINDLASS_FENCE" -gt 0 ]; [ "$PWD" = "$WINDLASS_WORKDIR" ]; [ "$HOME" = "$WINDLASS_WORKDIR" ]
        echo mine > file; cat file; echo more > "$WINDLASS_OUTPUTS/one"; echo temporary > /tmp/file
        [ "$(id -u)" -gt 0 ]; ! touch /etc/mine 2>/dev/null
        echo done"#;
    let job = world.script(script).set("/execution/env", json!({"GREETING": "hello"}));
    let (task, end) = world.run(&job).await;
    // An image has a language of its own, or none.
    let lang = if home == Home::Native { "C.UTF-8" } else { "" };
    let expected = format!("{} 1 acme cpu_short hello {lang}\nmine\ndone\n", task.id);
    assert_eq!(world.stdout(&task, &end).await, expected, "{:?} {:?}", end.error, end.stderr_tail);
    world.finish().await;
}

pub async fn secrets(home: Home) {
    let Some(world) = World::idle(home, &[("TENANTS__ACME__SECRETS", r#"["env:CANARY_*"]"#)]).await else { return };
    let canary = format!("canary-{}", uuid::Uuid::now_v7().simple());
    let place = format!("/dev/shm/windlass-test-{}", world.prefix);
    world.worker(&[("env:CANARY_ONE", &canary), ("WORKER__SECRETS_DIR", &place)]);
    let script = r#"[ "$PLAIN" = "$(cat "$KEPT_FILE")" ] || exit 9
        ls -l "$KEPT_FILE" | cut -c1-10; ! { echo x > "$KEPT_FILE"; } 2>/dev/null || exit 8
        echo "$PLAIN"; cat "$KEPT_FILE" >&2; printf '"%s"' "$PLAIN" > "$WINDLASS_RESULT""#;
    let secrets = json!([{"name": "PLAIN", "ref": "env:CANARY_ONE"}, {"name": "KEPT", "ref": "env:CANARY_ONE", "as": "file"}]);
    let (task, end) = world.run(&world.script(script).set("/secrets", secrets)).await;
    assert_eq!(reason(&end), Reason::Ok, "{end:?}");
    assert_eq!(world.stdout(&task, &end).await, "-r--------\n***\n");
    assert_eq!(world.output(&task, &end, LogStream::Stderr).await, b"***");
    assert_eq!(end.result.as_ref().unwrap().value, json!("***"));
    let told: String = world.chain(&task).iter().map(|link| String::from_utf8_lossy(&link.stored.body).into_owned()).collect();
    assert!(!told.contains(&canary) && !world.logs().contains(&canary), "it is told");
    world.finish().await;
    let left: Vec<_> = std::fs::read_dir(&place).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "secrets left behind: {left:?}");
    let _ = std::fs::remove_dir(&place);
}
