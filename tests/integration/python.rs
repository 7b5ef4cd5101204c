//! A client that nobody here wrote: an orchestrator in Python, with nats-py, that trusts nothing and checks everything.

use std::path::PathBuf;
use std::process::Stdio;

use crate::harness::server::skip;
use crate::harness::{Fleet, PATIENCE};

/// A Python that has nats-py and msgpack.
pub async fn python() -> Option<PathBuf> {
    let asked = std::env::var_os("WINDLASS_TEST_PYTHON").map(PathBuf::from);
    let local = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".windlass/venv/bin/python3");
    let candidates = asked.into_iter().chain([local, "python3".into()]);
    for python in candidates {
        let mut probe = tokio::process::Command::new(&python);
        probe.args(["-c", "import nats, msgpack"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if probe.status().await.is_ok_and(|s| s.success()) {
            return Some(python);
        }
    }
    skip("no Python with nats-py and msgpack: pip install nats-py msgpack, or set WINDLASS_TEST_PYTHON");
    None
}

#[tokio::test]
async fn a_stranger_in_python_gets_its_tasks_done_and_can_prove_it() {
    let Some(python) = python().await else { return };
    for encoding in ["json", "msgpack"] {
        let Some(fleet) = Fleet::with_worker(4, &[("EVENTS__ENCODING", encoding)]).await else { return };
        let mut client = tokio::process::Command::new(&python);
        client.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/orchestrator.py"));
        client.args([&fleet.server.url(), &fleet.prefix]).stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(PATIENCE, client.output()).await.expect("the client ends").unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{encoding}: {text}");
        assert!(text.contains("verified 8 tasks"), "{encoding}: {text}");
        fleet.finish().await;
    }
}
