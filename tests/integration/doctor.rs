//! `windlass doctor` on machines and servers that are right, and on such that are not: what is wrong is named, with what
//! mends it, and nothing is changed or left behind.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::process::Command;
use windlass::bus::Subjects;
use windlass::bus::rights::{self, Act, Role};
use windlass::config;
use windlass::task::{Reason, Tenant};

use crate::harness::cluster::Cluster;
use crate::harness::disk::{Disk, Shape};
use crate::harness::job::Gate;
use crate::harness::server::{Server, skip};
use crate::harness::worker::{windlass, windlass_under};
use crate::harness::{Fleet, Job, PATIENCE, leftovers};
use crate::server_faults::configured;

#[path = "doctor/machine.rs"]
mod machine;
#[path = "doctor/users.rs"]
mod users;

/// What an examination said.
struct Said {
    code: Option<i32>,
    findings: Vec<Value>,
    text: String,
}

impl Said {
    fn of(output: &Output) -> Self {
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let findings = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {text}"));
        Self { code: output.status.code(), findings, text }
    }

    /// Names of the checks of that level.
    fn named(&self, level: &str) -> Vec<&str> {
        self.findings.iter().filter(|f| f["level"] == level).map(|f| f["check"].as_str().unwrap()).collect()
    }

    fn find(&self, check: &str) -> &Value {
        self.findings.iter().find(|f| f["check"] == check).unwrap_or_else(|| panic!("no check {check:?}: {}", self.text))
    }

    fn areas(&self) -> BTreeSet<&str> {
        self.findings.iter().map(|f| f["area"].as_str().unwrap()).collect()
    }
}

async fn ended(mut command: Command) -> Output {
    tokio::time::timeout(PATIENCE, command.output()).await.expect("the examination ends").expect("windlass starts")
}

/// Examines what the fleet's settings say, with its state in `state`.
fn doctor_at(fleet: &Fleet, state: &Path, args: &[&str]) -> Command {
    let mut command = fleet.cli(["doctor", "-o", "json"].iter().chain(args));
    command.env("WINDLASS__WORKER__STATE_DIR", state);
    command
}

fn doctor(fleet: &Fleet, args: &[&str]) -> Command {
    let state = fleet.root().join("examined");
    std::fs::create_dir_all(&state).unwrap();
    doctor_at(fleet, &state, args)
}

/// Every stream and consumer with all that counts what happened to it.
async fn server_state(fleet: &Fleet) -> Vec<String> {
    let mut state = Vec::new();
    let names = ["TASKS", "EVENTS", "LOGS", "CONTROL", "DEAD"].map(|kind| fleet.stream(kind));
    for name in names.into_iter().chain([format!("KV_{}", fleet.stream("WORKERS"))]) {
        let stream = fleet.js.get_stream(&name).await.unwrap();
        let info = stream.cached_info();
        let config = serde_json::to_value(&info.config).unwrap();
        state.push(format!("{name} {config} {} {}", info.state.last_sequence, info.state.messages));
    }
    let tasks = fleet.js.get_stream(fleet.stream("TASKS")).await.unwrap();
    for priority in ["high", "normal", "low"] {
        let consumer: consumer::PullConsumer = tasks.get_consumer(&format!("cpu_short-{priority}")).await.unwrap();
        let info = consumer.cached_info();
        let (delivered, acked) = (info.delivered.consumer_sequence, info.ack_floor.consumer_sequence);
        state.push(format!("{priority} {delivered} {acked} {} {} {}", info.num_ack_pending, info.num_pending, info.num_waiting));
    }
    state
}

/// What tells a good machine from a better one, or from a larger one.
const MAY_WARN: [&str; 10] = [
    "version",
    "io",
    "clone3",
    "cgroup.kill",
    "Landlock",
    "open files",
    "worker.state_dir: file system",
    "worker.state_dir: room",
    "worker.state_dir: inodes",
    "fsync",
];

#[tokio::test]
async fn on_a_good_machine_nothing_fails_and_nothing_is_changed_or_left() {
    let Some(fleet) = Fleet::start(&[]).await else { return };
    fleet.submit(&Job::argv(["true"])).await;
    let secrets = ["/run/windlass", "/dev/shm/windlass-0"].map(|dir| Path::new(dir).exists());
    let before = server_state(&fleet).await;
    let mut command = doctor(&fleet, &[]);
    command.env("WINDLASS__TENANTS__ACME__SECRETS", "[\"env:A*\"]");
    let said = Said::of(&ended(command).await);
    assert_eq!(said.named("fail"), Vec::<&str>::new(), "{}", said.text);
    assert_eq!(said.code, Some(0), "{}", said.text);
    for check in said.named("warn") {
        assert!(MAY_WARN.contains(&check), "{check} warns: {}", said.text);
    }
    let areas = ["capacity", "cgroups", "disk", "docker", "jetstream", "kernel", "nats", "rights", "sandbox", "streams", "supervisor"];
    assert_eq!(said.areas(), BTreeSet::from(areas), "{}", said.text);
    let fsync = said.find("fsync");
    assert!(fsync["level"] == "warn" && fsync["found"].as_str().unwrap().contains("cannot be seen from here"), "{fsync}");
    for finding in &said.findings {
        let keys: BTreeSet<&str> = finding.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, BTreeSet::from(["area", "check", "found", "level", "mend", "wanted"]));
        assert_eq!(finding["mend"].is_null(), finding["level"] == "ok", "{finding}");
    }
    assert_eq!(server_state(&fleet).await, before, "nothing stored, nothing taken, nobody waiting");
    assert_eq!(leftovers::entries(&fleet.root().join("examined")), Vec::<std::path::PathBuf>::new());
    assert_eq!(["/run/windlass", "/dev/shm/windlass-0"].map(|dir| Path::new(dir).exists()), secrets);
    assert_eq!(leftovers::cgroup_parents(&fleet.cgroup_parent()), Vec::<std::path::PathBuf>::new(), "also the one that was named");
    assert_eq!(fleet.processes(), Vec::new());
    fleet.finish_unchecked().await;
}

#[tokio::test]
async fn in_a_cluster_nothing_fails_and_nothing_is_changed_either() {
    let Some(cluster) = Cluster::start().await else { return };
    let settings = [("STREAMS__REPLICAS", "3"), ("STREAMS__LOGS_MAX", "16MiB")];
    let fleet = Fleet::on(Arc::clone(&cluster.nodes[0]), &settings).await;
    fleet.submit(&Job::argv(["true"])).await;
    let before = server_state(&fleet).await;
    // From a node that need not lead what is asked for.
    let url = cluster.nodes[1].url();
    let said = Said::of(&ended(doctor(&fleet, &["--server", &url, "--role", "operator"])).await);
    assert_eq!((said.code, said.named("fail")), (Some(0), vec![]), "{}", said.text);
    assert_eq!(said.find("replicas")["found"], "3 in cluster c");
    assert_eq!(said.find("operator")["level"], "ok", "{}", said.text);
    assert_eq!(server_state(&fleet).await, before, "nothing stored, nothing taken, nobody waiting");
    fleet.finish_unchecked().await;
}

#[tokio::test]
async fn a_worker_and_its_task_beside_it_notice_nothing() {
    let Some(fleet) = Fleet::with_worker(2, &[]).await else { return };
    let gate = Gate::new(&fleet.dir, "examined");
    let task = crate::server_faults::running(&fleet, &gate).await;
    let worker = fleet.workers()[0].clone();
    let said = Said::of(&ended(doctor_at(&fleet, worker.state_dir(), &[])).await);
    assert_eq!(said.named("fail"), Vec::<&str>::new(), "{}", said.text);
    let queued = fleet.queued().await;
    assert!(queued.iter().any(|message| message.subject.ends_with(&format!(".{}", task.id))), "acknowledged by an examination");
    gate.open();
    let end = fleet.end(&task).await;
    assert_eq!((end.reason, end.task.attempt, end.task.deliveries), (Some(Reason::Ok), 1, 1), "{:?}", end.error);
    assert!(!worker.log().contains("ERROR"), "{}", worker.log());
    fleet.finish().await;
}

#[tokio::test]
async fn drift_of_streams_and_consumers_is_named_key_by_key_and_mended() {
    let Some(fleet) = Fleet::start(&[]).await else { return };
    let tasks = fleet.js.get_stream(fleet.stream("TASKS")).await.unwrap();
    let mut config = tasks.cached_info().config.clone();
    config.discard_new_per_subject = false;
    config.max_age = Duration::from_secs(3600);
    fleet.js.update_stream(config).await.unwrap();
    tasks.delete_consumer("cpu_short-high").await.unwrap();
    let name = fleet.stream("TASKS");
    let said = Said::of(&ended(doctor(&fleet, &[])).await);
    assert_eq!(said.code, Some(1), "{}", said.text);
    let expected = [format!("stream {name}: discard_new_per_subject"), "consumer cpu_short-high".to_owned()];
    assert_eq!(said.named("fail"), expected, "{}", said.text);
    let key = said.find(&expected[0]);
    assert_eq!((&key["found"], &key["wanted"], &key["mend"]), (&"false".into(), &"true".into(), &"windlass init".into()));
    assert_eq!(said.find(&format!("stream {name}: max_age"))["level"], "warn", "an operator's choice");
    let table = String::from_utf8_lossy(&ended(fleet.cli(["doctor"])).await.stdout).into_owned();
    let line = table.lines().find(|line| line.contains("discard_new_per_subject") && line.starts_with("fail")).expect("a line of it");
    assert!(line.ends_with("false") && table.contains("mend:   windlass init"), "{table}");
    assert!(ended(fleet.cli(["init"])).await.status.success());
    let said = Said::of(&ended(doctor(&fleet, &[])).await);
    assert_eq!((said.code, said.named("fail")), (Some(0), vec![]), "{}", said.text);
    fleet.finish_unchecked().await;
}

#[tokio::test]
async fn without_nats_everything_of_the_machine_is_told_and_the_code_is_6() {
    let mut command = windlass();
    command.args(["doctor", "-o", "json", "--server", "nats://me:hunter2@127.0.0.1:1"]);
    let said = Said::of(&ended(command).await);
    assert_eq!(said.code, Some(6), "{}", said.text);
    assert_eq!(said.areas(), BTreeSet::from(["capacity", "cgroups", "disk", "docker", "kernel", "nats", "sandbox", "supervisor"]));
    let connection = said.find("connection");
    assert!(connection["level"] == "fail" && connection["mend"].as_str().unwrap().contains("NATS_URL"), "{connection}");
    assert!(!said.text.contains("hunter2"), "a password is nobody's to read: {}", said.text);
    assert!(said.find("trial")["level"] != "fail", "{}", said.text);
}

/// Greets as a server of that version does.
async fn greeter(version: &'static str) -> String {
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let (read, mut write) = socket.into_split();
        let greeting = format!("INFO {{\"server_id\":\"x\",\"version\":\"{version}\",\"max_payload\":1048576,\"headers\":true}}\r\n");
        write.write_all(greeting.as_bytes()).await.unwrap();
        let mut lines = BufReader::new(read).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if line.starts_with("PING") && write.write_all(b"PONG\r\n").await.is_err() {
                return;
            }
        }
    });
    format!("nats://{address}")
}

#[tokio::test]
async fn a_server_that_is_too_old_is_named_with_the_floor() {
    let url = greeter("2.11.9").await;
    let mut command = windlass();
    command.args(["doctor", "-o", "json", "--server", &url]);
    let said = Said::of(&ended(command).await);
    assert_eq!(said.code, Some(1), "{}", said.text);
    let version = said.findings.iter().find(|f| f["check"] == "version" && f["area"] == "nats").unwrap();
    assert!(version["level"] == "fail" && version["found"].as_str().unwrap().contains("2.11.9"), "{version}");
    assert!(version["wanted"].as_str().unwrap().contains("2.12.3"), "{version}");
}

#[tokio::test]
async fn what_a_server_cannot_hold_or_take_is_named() {
    let limits = "accounts { A { jetstream { max_mem: 0, max_file: 1TB, max_streams: 6, max_consumers: 9 }, users: [ { user: boss, password: boss } ] } }\n\
        no_auth_user: boss\nmax_payload: 65536";
    let Some(fleet) = configured(limits, &[]).await else { return };
    let said = Said::of(&ended(doctor(&fleet, &[])).await);
    assert_eq!((said.code, said.find("streams")["found"].as_str()), (Some(0), Some("6 of 6")), "{}", said.text);
    let payload = said.find("max_payload");
    assert!(payload["level"] == "warn" && payload["found"].as_str().unwrap().contains("64KiB: chunks"), "{payload}");
    // Another fleet finds no room, and more copies than servers.
    let mut command = doctor(&fleet, &["--prefix", "another"]);
    command.env("WINDLASS__STREAMS__REPLICAS", "3").env("WINDLASS__CLASSES__ANOTHER__SLOTS", "1");
    let said = Said::of(&ended(command).await);
    assert_eq!(said.code, Some(1), "{}", said.text);
    for check in ["streams", "consumers", "replicas", "stream ANOTHER_TASKS"] {
        assert_eq!(said.find(check)["level"], "fail", "{check}: {}", said.text);
    }
    fleet.finish_unchecked().await;
}

#[tokio::test]
async fn the_system_account_tells_what_stored_is_worth() {
    for (sync, level, code) in [("sync_interval: always", "ok", 0), ("sync_interval: 2m", "fail", 1)] {
        let server = Server::with_config(|port, dir| {
            format!(
                "server_name: n1\nlisten: 127.0.0.1:{port}\njetstream {{ store_dir: \"{}\"\n {sync} }}\n\
                 accounts {{ SYS {{ users: [ {{ user: sys, password: sys }} ] }}, A {{ jetstream: enabled, users: [ {{ user: boss, password: boss }} ] }} }}\n\
                 system_account: SYS\nno_auth_user: boss\n",
                dir.join("data").display()
            )
        });
        let Some(server) = server else { return };
        let system = server.url().replace("nats://", "nats://sys:sys@");
        let fleet = Fleet::on(server, &[("STREAMS__LOGS_MAX", "16MiB")]).await;
        let said = Said::of(&ended(doctor(&fleet, &["--system-server", &system])).await);
        let fsync = said.find("fsync of n1");
        assert_eq!((fsync["level"].as_str(), said.code), (Some(level), Some(code)), "{}", said.text);
        // One who is not of that account is not told, and says so.
        let other = fleet.server.url();
        let said = Said::of(&ended(doctor(&fleet, &["--system-server", &other])).await);
        assert_eq!((said.find("fsync")["level"].as_str(), said.code), (Some("warn"), Some(0)), "{}", said.text);
        fleet.finish_unchecked().await;
    }
}
