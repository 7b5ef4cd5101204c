//! The programs of `examples/`: clients that nobody here trusts. Each publishes, follows and verifies against real workers, says
//! so when something was changed or is missing, and takes every end once with a durable consumer.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use async_nats::jetstream;

use crate::harness::feed::{Stored, read_all};
use crate::harness::server::{Options, skip};
use crate::harness::{Fleet, Job, PATIENCE, Server, Task, slowness};

/// How one language's programs are started.
struct Client {
    follow: Vec<OsString>,
    audit: Vec<OsString>,
    env: Vec<(&'static str, OsString)>,
    msgpack: bool,
}

/// What a program said.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")
}

async fn works(program: &Path, args: &[&str], dir: &Path) -> bool {
    let mut probe = tokio::process::Command::new(program);
    probe.args(args).current_dir(dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    probe.status().await.is_ok_and(|status| status.success())
}

/// A node for which `import(module)` works in that directory: its packages are installed.
pub async fn node(dir: &Path, module: &str) -> Option<PathBuf> {
    let asked = std::env::var_os("WINDLASS_TEST_NODE").map(PathBuf::from);
    let local = Path::new(env!("CARGO_MANIFEST_DIR")).join(".windlass/venv/bin/node");
    for node in asked.into_iter().chain(["node".into(), local]) {
        if works(&node, &["--input-type=module", "--eval", &format!("await import({module:?})")], dir).await {
            return Some(node);
        }
    }
    skip(&format!("no node with {module} in {}: `make node` gets both, WINDLASS_TEST_NODE names one", dir.display()));
    None
}

async fn python_client() -> Option<Client> {
    let python = crate::python::python().await?;
    let program = |name: &str| vec![python.clone().into(), examples().join("python").join(name).into()];
    Some(Client { follow: program("follow.py"), audit: program("audit.py"), env: vec![], msgpack: true })
}

async fn node_client() -> Option<Client> {
    let dir = examples().join("node");
    let node = node(&dir, "@nats-io/jetstream").await?;
    let program = |name: &str| vec![node.clone().into(), dir.join(name).into()];
    Some(Client { follow: program("follow.mjs"), audit: program("audit.mjs"), env: vec![], msgpack: true })
}

/// The examples are no part of the test's own build: made here, beside the worker that is tested.
async fn rust_client() -> Option<Client> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    if !works(Path::new(&cargo), &["--version"], Path::new("/")).await {
        skip("no cargo to build the examples in Rust with");
        return None;
    }
    let profile = Path::new(env!("CARGO_BIN_EXE_windlass")).parent().expect("a directory");
    static BUILT: tokio::sync::OnceCell<()> = tokio::sync::OnceCell::const_new();
    let build = async {
        let mut build = tokio::process::Command::new(cargo);
        build.args(["build", "--locked", "--examples", "--target-dir"]).arg(profile.parent().expect("a target directory"));
        if cfg!(feature = "crash-points") {
            build.args(["--features", "crash-points"]);
        }
        if profile.ends_with("release") {
            build.arg("--release");
        }
        let output = build.current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null()).output().await.expect("cargo starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    BUILT.get_or_init(|| build).await;
    let program = |name: &str| vec![profile.join("examples").join(name).into()];
    Some(Client { follow: program("follow"), audit: program("audit"), env: vec![], msgpack: true })
}

async fn shell_client() -> Option<Client> {
    if !works(Path::new("jq"), &["--version"], Path::new("/")).await {
        skip("no jq: apt-get install jq");
        return None;
    }
    let follow = vec![examples().join("shell/follow.sh").into()];
    if works(Path::new("nats"), &["--version"], Path::new("/")).await {
        return Some(Client { follow, audit: vec![], env: vec![], msgpack: false });
    }
    // The tool comes from no package index that a bare machine has: its one verb, by another client.
    println!("no nats command line; its requests are made by tests/python/nats_request.py");
    let python = crate::python::python().await?;
    let stand_in = crate::harness::watchdog::watchdog().dir().join("nats");
    let script = format!("#!/bin/sh\nexec {} {}/tests/python/nats_request.py \"$@\"\n", python.display(), env!("CARGO_MANIFEST_DIR"));
    std::fs::write(&stand_in, script).expect("the stand-in");
    std::fs::set_permissions(&stand_in, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("executable");
    Some(Client { follow, audit: vec![], env: vec![("NATS_CLI", stand_in.into())], msgpack: false })
}

/// Runs a program to its end against a fleet's streams, on the fleet's server or another one.
async fn run(program: &[OsString], args: &[&str], client: &Client, fleet: &Fleet, url: &str) -> Said {
    let mut command = tokio::process::Command::new(&program[0]);
    command.args(&program[1..]).args(args).envs(client.env.iter().map(|(name, value)| (name, value)));
    command.env("NATS_URL", url).env("WINDLASS_PREFIX", &fleet.prefix).env("WINDLASS_TENANT", "acme");
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE * 2 * slowness(), command.output()).await;
    let output = output.unwrap_or_else(|_| panic!("{program:?} {args:?} does not end\n{}", fleet.logs())).expect("it starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Said { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

impl Said {
    /// The fleet must prove the promises for what somebody else published, too.
    fn count(&self, fleet: &Fleet) {
        let both = format!("{}{}", self.stdout, self.stderr);
        let id = both.lines().find_map(|line| line.strip_prefix("queued ")).unwrap_or_else(|| panic!("nothing was queued: {self:?}"));
        fleet.count(&Task { tenant: "acme".into(), id: id.to_owned() });
    }

    fn has(&self, text: &str) -> bool {
        self.stdout.lines().any(|line| line == text)
    }
}

async fn publishes_follows_and_verifies(client: Option<Client>) {
    let Some(client) = client else { return };
    let encodings: &[&str] = if client.msgpack { &["json", "msgpack"] } else { &["json"] };
    for encoding in encodings {
        let Some(fleet) = Fleet::with_worker(2, &[("EVENTS__ENCODING", encoding)]).await else { return };
        let binary = "head -c 150000 /dev/zero | tr '\\0' '\\377'; echo text >&2";
        for (script, code, line) in [
            ("echo out; echo err >&2", 0, "verified: stdout 4 bytes, stderr 4 bytes"),
            ("echo '{\"answer\": 42}' > \"$WINDLASS_RESULT\"", 0, "result: {\"answer\":42}"),
            ("echo before; exit 3", 1, "verified: stdout 7 bytes, stderr 0 bytes"),
            (binary, 0, "verified: stdout 150000 bytes, stderr 5 bytes"),
        ] {
            let said = run(&client.follow, &[script], &client, &fleet, &fleet.server.url()).await;
            assert_eq!(said.code, Some(code), "{encoding}: {script}: {said:?}\n{}", fleet.logs());
            let as_printed = |text: &str| said.has(text) || said.has(&text.replace("\":", "\": "));
            assert!(as_printed(line), "{encoding}: {script}: no {line:?} in {said:?}");
            said.count(&fleet);
        }
        fleet.finish().await;
    }
}

/// What is done to a task's messages while they are copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Harm {
    /// Only what the contract allows: a chunk twice, and one of an attempt that lost its task.
    None,
    ChunkChanged,
    ChunkMissing,
    AllChunksMissing,
    EventChanged,
}

const HARMS: [Harm; 5] = [Harm::None, Harm::ChunkChanged, Harm::ChunkMissing, Harm::AllChunksMissing, Harm::EventChanged];

fn replaced(body: &[u8], from: &str, to: &str) -> Vec<u8> {
    let text = std::str::from_utf8(body).expect("JSON");
    assert!(text.contains(from), "no {from} in {text}");
    text.replacen(from, to, 1).into_bytes()
}

/// What of a message is stored in the copy: nothing, itself, or more than one.
fn harmed(message: &Stored, harm: Harm) -> Vec<Vec<u8>> {
    let body = message.body.to_vec();
    let first_chunk = message.subject.contains(".logs.") && holds(&body, "first");
    match harm {
        Harm::None if first_chunk => {
            let strange = replaced(&replaced(&body, "\"fence\":", "\"fence\":9"), "first", "other");
            vec![strange, body.clone(), body]
        }
        Harm::ChunkChanged if first_chunk => vec![replaced(&body, "first", "worst")],
        Harm::ChunkMissing if first_chunk => vec![],
        Harm::AllChunksMissing if message.subject.contains(".logs.") => vec![],
        Harm::EventChanged if message.subject.ends_with(".task_started") => vec![replaced(&body, "\"deliveries\":1", "\"deliveries\":2")],
        Harm::None | Harm::ChunkChanged | Harm::ChunkMissing | Harm::AllChunksMissing | Harm::EventChanged => vec![body],
    }
}

fn holds(body: &[u8], text: &str) -> bool {
    std::str::from_utf8(body).is_ok_and(|body| body.contains(text))
}

/// Copies events and output to another server, under the same sequences where they are fences.
async fn copy_with_harm(fleet: &Fleet, to: &Server, harms: &[(Task, Harm)]) {
    let init = fleet.cli(["init"]).env("NATS_URL", to.url()).output().await.expect("windlass starts");
    assert!(init.status.success(), "{}", String::from_utf8_lossy(&init.stderr));
    let js = jetstream::new(async_nats::connect(to.url()).await.expect("the other server"));
    for (kind, filter) in [("EVENTS", "events"), ("LOGS", "logs")] {
        for message in read_all(&fleet.js, &fleet.stream(kind), &format!("{}.{filter}.>", fleet.prefix)).await {
            let harm = harms.iter().find(|(task, _)| message.subject.contains(&format!(".{}.", task.id))).expect("a task of ours").1;
            for body in harmed(&message, harm) {
                let mut headers = async_nats::HeaderMap::new();
                headers.insert("Content-Type", message.header("Content-Type").expect("a Content-Type"));
                let sent = js.publish_with_headers(message.subject.clone(), headers, body.into()).await.expect("sent");
                let sequence = sent.await.expect("stored").sequence;
                assert!(kind != "EVENTS" || sequence == message.sequence, "{sequence} is not {}", message.sequence);
            }
        }
    }
}

async fn notices_what_was_changed_or_is_missing(client: Option<Client>) {
    let Some(client) = client else { return };
    let Some(fleet) = Fleet::with_worker(4, &[]).await else { return };
    let Some(other) = Server::private(Options::default()) else { return };
    let mut harms = Vec::new();
    for harm in HARMS {
        // Two chunks: what goes to stderr is in one of its own.
        harms.push((fleet.submit(&Job::bash("echo first; echo second >&2")).await, harm));
    }
    for (task, _) in &harms {
        fleet.end(task).await;
    }
    copy_with_harm(&fleet, &other, &harms).await;
    for (task, harm) in &harms {
        let said = run(&client.follow, &["--verify", &task.id], &client, &fleet, &other.url()).await;
        let expected = if *harm == Harm::None { 0 } else { 7 };
        assert_eq!(said.code, Some(expected), "{harm:?}: {said:?}");
        assert_eq!(said.stderr.contains("verification failed"), expected == 7, "{harm:?}: {said:?}");
    }
    fleet.finish().await;
}

async fn takes_every_end_once(client: Option<Client>) {
    let Some(client) = client else { return };
    let Some(fleet) = Fleet::with_worker(2, &[("EVENTS__ENCODING", "msgpack")]).await else { return };
    let ended = async |script: &str| {
        let task = fleet.submit(&Job::bash(script)).await;
        fleet.end(&task).await.id
    };
    let mut expected = vec![ended("true").await, ended("exit 3").await];
    for _ in 0..3 {
        let said = run(&client.audit, &["test-audit", "--once"], &client, &fleet, &fleet.server.url()).await;
        assert_eq!(said.code, Some(0), "{said:?}");
        let lines: Vec<serde_json::Value> = said.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let ids: Vec<_> = lines.iter().map(|line| line["id"].as_str().expect("an id").to_owned()).collect();
        assert_eq!(ids, expected, "{said:?}");
        let stream = fleet.js.get_stream(fleet.stream("EVENTS")).await.expect("the stream");
        let info = stream.consumer_info("test-audit").await.expect("the consumer");
        assert_eq!((info.num_pending, info.num_ack_pending), (0, 0), "taken, and not acknowledged");
        // The next run has nothing to say, and the one after it one line.
        expected = if expected.is_empty() { vec![ended("echo later").await] } else { vec![] };
    }
    fleet.finish().await;
}

macro_rules! clients {
    ($test:ident: $($language:ident $client:ident),*) => {
        mod $test {
            $(#[tokio::test]
            async fn $language() {
                super::$test(super::$client().await).await;
            })*
        }
    };
}

clients!(publishes_follows_and_verifies: in_python python_client, in_node node_client, in_rust rust_client, in_shell shell_client);
clients!(notices_what_was_changed_or_is_missing: in_python python_client, in_node node_client, in_rust rust_client, in_shell shell_client);
clients!(takes_every_end_once: in_python python_client, in_node node_client, in_rust rust_client);

#[tokio::test]
async fn the_readme_shows_a_client_in_node_that_works() {
    let text = std::fs::read_to_string(examples().join("node/hello.mjs")).unwrap();
    assert!(
        include_str!("../../README.md").contains(&format!("```js\n{text}```")),
        "README.md does not show examples/node/hello.mjs as it is"
    );
    let Some(client) = node_client().await else { return };
    let Some(fleet) = Fleet::with_worker(2, &[]).await else { return };
    let hello = [client.follow[0].clone(), examples().join("node/hello.mjs").into()];
    let said = run(&hello, &[], &client, &fleet, &fleet.server.url()).await;
    assert_eq!((said.code, said.stdout.as_str()), (Some(0), "task_started \ntask_completed ok\n"), "{}", said.stderr);
    fleet.finish_unchecked().await;
}
