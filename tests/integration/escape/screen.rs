//! What hostile text does to the terminal of an operator who only looks: nothing.

use std::process::Stdio;

use serde_json::json;
use windlass::task::Reason;

use crate::harness::server::skip;
use crate::harness::{Fleet, Job, PATIENCE};

/// Runs a verb with a terminal for stdout and stderr; what the terminal was sent.
async fn on_terminal(fleet: &Fleet, args: &[&str]) -> Option<String> {
    let python = std::env::var("WINDLASS_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let mut command = tokio::process::Command::new(&python);
    command.args(["-c", "import pty, sys; pty.spawn(sys.argv[1:])", env!("CARGO_BIN_EXE_windlass")]).args(args);
    command.env("NATS_URL", fleet.server.url()).env("WINDLASS_PREFIX", &fleet.prefix).env("TERM", "xterm").env("NO_COLOR", "1");
    command.stdin(Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(PATIENCE, command.output()).await.expect("ends") {
        Ok(output) => Some(String::from_utf8_lossy(&output.stdout).into_owned()),
        Err(error) => {
            skip(&format!("no {python}: {error}"));
            None
        }
    }
}

/// Renames the window, fills the clipboard, clears the screen, asks for an answer; in seven and eight bits.
const EVIL: &str = "\u{1b}]0;owned\u{7}\u{1b}]52;c;cm0=\u{7}\u{1b}[2J\u{1b}[6n\u{9b}2J\u{8}\u{7f}\u{202e}";

fn harmful(c: char) -> bool {
    (c.is_control() && !matches!(c, '\n' | '\r' | '\t')) || ('\u{202a}'..='\u{202e}').contains(&c)
}

#[tokio::test]
async fn fields_of_events_cannot_drive_the_terminal() {
    let Some(fleet) = Fleet::with_worker(1, &[]).await else { return };
    let script = format!(
        "printf '{{\"stage\": \"S{0}\", \"pct\": 5, \"message\": \"m{0}\"}}\\n' >> $WINDLASS_PROGRESS; printf '{{\"r\": \"{0}\"}}' > $WINDLASS_RESULT; printf 'tail %s\\n' \"$1\" >&2; exit 3",
        "\\\\u001b]0;owned\\\\u0007\\\\u009b2J"
    );
    let job = Job::bash(script).set("/execution/args", json!([EVIL])).set("/name", EVIL).set("/workflow_id", EVIL);
    let job = job.set("/labels", json!({EVIL: EVIL})).set("/context", json!({EVIL: EVIL}));
    let task = fleet.submit(&job).await;
    let end = fleet.end(&task).await;
    assert_eq!((end.reason, end.task.name.as_deref()), (Some(Reason::ExitNonzero), Some(EVIL)), "the event itself tells what was said");
    let dead =
        fleet.submit_raw("evil", Some("application/json"), serde_json::to_vec(&json!({"task_id": "evil", EVIL: EVIL})).unwrap()).await;
    fleet.end(&dead).await;
    for args in [
        &["status", &task.id][..],
        &["status", &task.id, "-o", "json"],
        &["events", &task.id],
        &["events", "-o", "json"],
        &["status", &dead.id],
        &["events", &dead.id],
        &["cancel", &task.id],
        &["dead", "list"],
        &["dead", "show", "1"],
        &["dead", "show", "1", "-o", "json"],
        &["logs", &task.id, "-o", "json"],
    ] {
        let Some(seen) = on_terminal(&fleet, args).await else { return fleet.finish().await };
        assert!(seen.len() > 20, "{args:?}: {seen}");
        let found: Vec<_> = seen.chars().filter(|c| harmful(*c)).collect();
        assert!(found.is_empty(), "{args:?} sent {found:?}: {seen:?}");
    }
    fleet.finish().await;
}

#[tokio::test]
async fn output_on_a_terminal_keeps_its_colours_and_nothing_else() {
    let Some(fleet) = Fleet::with_worker(1, &[]).await else { return };
    let job = Job::bash("printf '\\033[31mred\\033[0m %s\\n' \"$1\"; printf 'err %s\\n' \"$1\" >&2").set("/execution/args", json!([EVIL]));
    let task = fleet.submit(&job).await;
    fleet.end(&task).await;
    for args in [&["logs", &task.id][..], &["logs", &task.id, "-f"], &["logs", &task.id, "--stream", "stderr"]] {
        let Some(seen) = on_terminal(&fleet, args).await else { return fleet.finish().await };
        let plain = seen.replace("\u{1b}[31m", "").replace("\u{1b}[0m", "");
        assert!(!plain.chars().any(harmful), "{args:?}: {seen:?}");
        assert!(seen.contains("]0;owned"), "{args:?} hides what was written: {seen:?}");
        assert_eq!(seen.contains("\u{1b}[31mred\u{1b}[0m"), !args.contains(&"--stream"), "{args:?}: {seen:?}");
    }
    // Into a file or a pipe goes what the task wrote.
    let output = fleet.cli(["logs", &task.id]).output().await.unwrap();
    assert_eq!(output.stdout, format!("\u{1b}[31mred\u{1b}[0m {EVIL}\n").as_bytes());
    assert_eq!(output.stderr, format!("err {EVIL}\n").as_bytes());
    fleet.finish().await;
}
