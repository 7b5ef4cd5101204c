//! Services of tasks, and long-lived ones: a real engine, a real Redis where the machine has one.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Instant;

use serde_json::{Value, json};
use windlass::task::log_chunk::LogStream;
use windlass::task::{Event, EventKind, Reason};

use crate::harness::docker::IMAGE;
use crate::harness::docker::image::with_libraries;
use crate::harness::job::Gate;
use crate::harness::server::skip;
use crate::harness::watchdog::watchdog;
use crate::harness::{Engine, Fleet, Job, PATIENCE, Server, Task};

#[path = "services/stack.rs"]
mod stack;

const REDIS: &str = "windlass-test/redis:1";

/// The run's engine with an image of Redis; none where the machine has no redis-server.
fn redis(engine: &Engine) -> Option<()> {
    static IMPORTED: OnceLock<Option<()>> = OnceLock::new();
    let find = |name: &str| ["/usr/bin", "/usr/local/bin"].iter().map(|dir| Path::new(dir).join(name)).find(|path| path.is_file());
    *IMPORTED.get_or_init(|| {
        let (Some(server), Some(client)) = (find("redis-server"), find("redis-cli")) else {
            skip("no redis-server: Debian has it in redis-server");
            return None;
        };
        let root = watchdog().dir().join("redis-image");
        for dir in ["data", "tmp", "etc"] {
            std::fs::create_dir_all(root.join(dir)).expect("a directory of the image");
        }
        with_libraries(&server, "bin/redis-server", &root);
        with_libraries(&client, "bin/redis-cli", &root);
        let tar = Command::new("tar").arg("-C").arg(&root).args(["--owner=0", "--group=0", "-c", "."]).output().expect("tar runs").stdout;
        engine.import_tar(
            REDIS,
            &tar,
            &["ENV PATH=/bin", "CMD [\"redis-server\", \"--save\", \"\", \"--bind\", \"0.0.0.0\", \"--protected-mode\", \"no\"]"],
        );
        Some(())
    })
}

/// A service of the tests' image that runs a script.
fn service(name: &str, script: &str) -> Value {
    json!({"name": name, "image": IMAGE, "command": ["bash", "-c", script]})
}

/// A server that says a word to everybody.
fn says(word: &str) -> String {
    format!("exec nc -ll -p 80 -e echo {word}")
}

/// A service that listens, and answers with its name.
fn answering(name: &str) -> Value {
    let mut service = service(name, &format!("echo {name} begins; {}", says(name)));
    service["health"] = json!({"command": ["bash", "-c", "netstat -ltn | grep -q :80"], "interval_s": 0.05, "retries": 600});
    service
}

/// What a task says to a service and reads from it.
fn asking(name: &str) -> String {
    format!("exec 3<>/dev/tcp/{name}/80 && head -n1 <&3")
}

fn with(job: Job, services: &[Value]) -> Job {
    job.set("/services", json!(services)).set("/retry/max_attempts", 1)
}

/// What the engine has of a task, of any role.
fn of(engine: &Engine, task: &Task) -> Vec<String> {
    let label = format!("windlass.task={}", task.id);
    engine.containers(&[&label]).into_iter().map(|c| c.labels.get("windlass.role").cloned().unwrap_or_default()).collect()
}

async fn nothing_is_left_of(engine: &Engine, task: &Task) {
    let deadline = Instant::now() + PATIENCE;
    while !of(engine, task).is_empty() || !networks(engine, task).is_empty() {
        assert!(Instant::now() < deadline, "{:?} {:?} are left of {}", of(engine, task), networks(engine, task), task.id);
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

fn networks(engine: &Engine, task: &Task) -> Vec<Value> {
    let all = engine.does("GET", "/networks", &[200]).json();
    let own = |network: &&Value| network["Labels"]["windlass.task"] == task.id.as_str();
    all.as_array().expect("a list").iter().filter(own).cloned().collect()
}

async fn docker() -> Option<(Fleet, std::sync::Arc<Engine>)> {
    let fleet = Fleet::docker(&[]).await?;
    let engine = Engine::shared()?;
    fleet.worker(&[("CAPACITY__SLOTS", "4")]);
    Some((fleet, engine))
}

fn said(end: &Event) -> String {
    format!("{:?}: {} {}", end.reason, end.error.clone().unwrap_or_default(), end.hint.clone().unwrap_or_default())
}

#[tokio::test]
async fn a_task_uses_a_redis_by_its_name() {
    let Some((fleet, engine)) = docker().await else { return };
    if redis(&engine).is_none() {
        return fleet.finish().await;
    }
    // Its directory in memory is its own to write.
    let redis = json!({
        "name": "redis", "image": REDIS, "tmpfs": ["/data"],
        "command": ["redis-server", "--dir", "/data", "--bind", "0.0.0.0", "--protected-mode", "no"],
        "health": {"command": ["redis-cli", "ping"], "interval_s": 0.1, "retries": 300},
    });
    let script = "exec 3<>/dev/tcp/redis/6379; printf 'SET a 42\\r\\nGET a\\r\\nSAVE\\r\\n' >&3; head -n4 <&3";
    let task = fleet.submit(&with(Job::container_script(script), &[redis])).await;
    let end = fleet.end(&task).await;
    assert_eq!(end.reason, Some(Reason::Ok), "{}\n{}", said(&end), fleet.logs());
    assert_eq!(fleet.output(&task, &end, LogStream::Stdout).await, b"+OK\r\n$2\r\n42\r\n+OK\r\n");
    nothing_is_left_of(&engine, &task).await;
    let worker = &fleet.workers()[0];
    let scrape = worker.metrics().await;
    for (series, value) in
        [("windlass_service_starts_total", 1.0), ("windlass_service_stops_total", 1.0), ("windlass_active_services", 0.0)]
    {
        let series = format!("{series}{{environment=\"default\"}}");
        assert_eq!(scrape.value(&series), value, "{series}\n{}", scrape.0);
    }
    assert_eq!(scrape.types().get("windlass_docker_api_duration_seconds").map(String::as_str), Some("histogram"));
    fleet.finish().await;
}

#[tokio::test]
async fn services_start_in_order_when_those_they_depend_on_are_ready() {
    let Some((fleet, engine)) = docker().await else { return };
    // Each asks the one before it once, and ends with it when that is not there.
    let then = |name: &str, before: &str| {
        let mut service = answering(name);
        service["command"][2] = json!(format!("{} || exit 9; {}", asking(before), service["command"][2].as_str().expect("text")));
        service["depends_on"] = json!([before]);
        service
    };
    let services = [then("third", "second"), then("second", "first"), answering("first")];
    let task = fleet.submit(&with(Job::container_script(asking("third")), &services)).await;
    let end = fleet.end(&task).await;
    assert_eq!(end.reason, Some(Reason::Ok), "{}\n{}", said(&end), fleet.logs());
    assert_eq!(fleet.output(&task, &end, LogStream::Stdout).await, b"third\n");
    nothing_is_left_of(&engine, &task).await;
    fleet.finish().await;
}

#[tokio::test]
async fn a_service_that_does_not_become_ready_is_told_with_its_last_words() {
    let Some((fleet, engine)) = docker().await else { return };
    let mut ill = service("ill", "echo I feel faint; echo really >&2; sleep 1000");
    ill["health"] = json!({"command": ["bash", "-c", "echo no pulse; exit 3"], "interval_s": 0.05, "retries": 3});
    let task = fleet.submit(&with(Job::container(["true"]), &[answering("well"), ill])).await;
    let end = fleet.end(&task).await;
    assert_eq!(end.reason, Some(Reason::ServiceUnhealthy), "{}\n{}", said(&end), fleet.logs());
    let error = end.error.clone().unwrap_or_default();
    for words in ["service ill", "3 looks", "no pulse", "I feel faint", "really"] {
        assert!(error.contains(words), "{words} is not in {error}");
    }
    nothing_is_left_of(&engine, &task).await;
    fleet.finish().await;
}

#[tokio::test]
async fn a_service_that_ends_under_its_task_ends_the_attempt() {
    let Some((fleet, engine)) = docker().await else { return };
    let gate = Gate::new(&fleet.dir, "end");
    let mut brief = service("brief", &format!("{}; echo farewell; exit 7", gate.wait()));
    brief["mounts"] = json!([{"source": fleet.dir, "target": fleet.dir}]);
    let job = with(Job::container_script("echo runs; sleep 1000"), &[brief.clone()]).grace(0.1);
    let job = job.set("/retry", json!({"max_attempts": 2, "backoff": {"initial_ms": 50, "factor": 1.0, "max_ms": 50}}));
    let task = fleet.submit(&job).await;
    fleet.output_has(&task, "runs").await;
    gate.open();
    let retrying = fleet.event(&task, EventKind::TaskRetrying).await;
    assert_eq!(retrying.reason, Some(Reason::ServiceUnhealthy), "{}", said(&retrying));
    let error = retrying.error.clone().unwrap_or_default();
    assert!(error.contains("brief ended with 7") && error.contains("farewell"), "{error}");
    // With the gate open it ends before the second attempt's task begins, or soon after.
    assert_eq!(fleet.end(&task).await.reason, Some(Reason::ServiceUnhealthy));
    nothing_is_left_of(&engine, &task).await;
    fleet.finish().await;
}

#[tokio::test]
async fn what_cannot_be_started_is_the_assignments_fault() {
    let Some((fleet, engine)) = docker().await else { return };
    let wrong = json!({"name": "wrong", "image": IMAGE, "entrypoint": ["/no/such/program"]});
    let task = fleet.submit(&with(Job::container_script("sleep 1000").grace(0.1), &[wrong])).await;
    let end = fleet.end(&task).await;
    assert_eq!(end.reason, Some(Reason::SpawnFailed), "{}", said(&end));
    assert!(
        end.error.as_deref().is_some_and(|error| error.contains("service wrong") && error.contains("/no/such/program")),
        "{}",
        said(&end)
    );
    let absent = json!({"name": "absent", "image": "windlass-test/no-such-image:1"});
    let absent = fleet.submit(&with(Job::container(["true"]), &[absent])).await;
    assert_eq!(fleet.end(&absent).await.reason, Some(Reason::ImageNotFound));
    nothing_is_left_of(&engine, &task).await;
    nothing_is_left_of(&engine, &absent).await;
    fleet.finish().await;
}

/// As closed as a task's container, with limits of its own, in a cgroup of the worker's.
fn hardened(fleet: &Fleet, inspected: &Value) {
    let (host, config) = (&inspected["HostConfig"], &inspected["Config"]);
    assert_eq!(host["CapDrop"], json!(["ALL"]));
    assert_eq!((&host["ReadonlyRootfs"], &host["Privileged"]), (&json!(true), &json!(false)));
    assert_eq!(host["SecurityOpt"], json!(["no-new-privileges=true"]));
    assert_eq!((&host["Memory"], &host["MemorySwap"], &host["PidsLimit"]), (&json!(512 << 20), &json!(512 << 20), &json!(256)));
    let parent = host["CgroupParent"].as_str().expect("text");
    assert!(parent.contains(&fleet.cgroup_parent()) && parent.ends_with(".db"), "{parent}");
    assert!(config["User"].as_str().is_some_and(|user| user.contains(':') && !user.starts_with('0')), "{}", config["User"]);
    let env = config["Env"].as_array().expect("a list");
    assert!(env.contains(&json!("NVIDIA_VISIBLE_DEVICES=void")), "{env:?}");
}

/// Two tasks with a service of the same name each reach their own, and none the other's, nor anything outside.
#[tokio::test]
async fn the_network_is_the_attempts_own() {
    let Some((fleet, engine)) = docker().await else { return };
    let gate = Gate::new(&fleet.dir, "meet");
    let mut one = answering("db");
    one["command"][2] = json!(says("of one"));
    let held = with(Job::container_script(format!("{}; echo up; {}", asking("db"), gate.wait())).sees(&fleet.dir), &[one]);
    let held = fleet.submit(&held).await;
    fleet.output_has(&held, "up").await;
    let label = format!("windlass.task={}", held.id);
    let container = engine.containers(&[&label, "windlass.role=service"]).pop().expect("the service's container").id;
    let inspected = engine.inspect(&container);
    hardened(&fleet, &inspected);
    let addresses = inspected["NetworkSettings"]["Networks"].clone();
    let address = addresses.as_object().expect("networks").values().next().expect("one")["IPAddress"].as_str().expect("text").to_owned();
    let bridge = engine.does("GET", "/networks/bridge", &[200]).json();
    // Where nothing listens: whoever gets there is refused.
    let subnet = bridge["IPAM"]["Config"][0]["Subnet"].as_str().expect("the engine's own bridge");
    let machine = format!("{}.1", subnet.rsplit_once('.').expect("a subnet").0);
    let script = format!(
        "{}; (exec 4<>/dev/tcp/{address}/80) 2>/dev/null && echo reaches the other; \
         (exec 4<>/dev/tcp/{machine}/9) 2>&1 | grep -q refused && echo reaches the machine; \
         echo done",
        asking("db")
    );
    let mut two = answering("db");
    two["command"][2] = json!(says("of two"));
    let other = fleet.submit(&with(Job::container_script(script), &[two])).await;
    let end = fleet.end(&other).await;
    assert_eq!(end.reason, Some(Reason::Ok), "{}\n{}", said(&end), fleet.logs());
    assert_eq!(String::from_utf8_lossy(&fleet.output(&other, &end, LogStream::Stdout).await), "of two\ndone\n");
    // The machine has no address in the network, so nothing of the machine can be reached by one.
    let addresses = engine.beside(Path::new("/bin/busybox")).args(["ip", "-4", "addr"]).output().expect("busybox runs").stdout;
    let addresses = String::from_utf8_lossy(&addresses).into_owned();
    let subnet = address.rsplit_once('.').expect("an address").0.to_owned();
    assert!(!addresses.contains(&format!("inet {subnet}.")), "{address} is in\n{addresses}");
    gate.open();
    assert_eq!(fleet.end(&held).await.reason, Some(Reason::Ok));
    fleet.finish().await;
}

#[tokio::test]
async fn services_go_with_their_task_however_it_ends() {
    let Some((fleet, engine)) = docker().await else { return };
    let db = || [answering("db")];
    let fails = fleet.submit(&with(Job::container_script("exit 3"), &db())).await;
    let late = fleet.submit(&with(Job::container_script("sleep 1000"), &db()).timeout(0.5).grace(0.1)).await;
    let canceled = fleet.submit(&with(Job::container_script("echo runs; sleep 1000"), &db()).grace(0.1)).await;
    fleet.output_has(&canceled, "runs").await;
    fleet.cancel(&canceled).await;
    for (task, reason) in [(&fails, Reason::ExitNonzero), (&late, Reason::Timeout), (&canceled, Reason::Canceled)] {
        let end = fleet.end(task).await;
        assert_eq!(end.reason, Some(reason), "{}\n{}", said(&end), fleet.logs());
        nothing_is_left_of(&engine, task).await;
    }
    // Canceled while its service is not ready yet.
    let mut never = service("never", "sleep 1000");
    never["health"] = json!({"command": ["false"], "interval_s": 0.1, "retries": 10000});
    let waiting = fleet.submit(&with(Job::container(["true"]), &[never])).await;
    let deadline = Instant::now() + PATIENCE;
    while of(&engine, &waiting).is_empty() {
        assert!(Instant::now() < deadline, "no service starts\n{}", fleet.logs());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    fleet.cancel(&waiting).await;
    assert_eq!(fleet.end(&waiting).await.reason, Some(Reason::Canceled));
    nothing_is_left_of(&engine, &waiting).await;
    fleet.finish().await;
}

#[tokio::test]
async fn services_of_a_worker_that_is_killed_are_removed() {
    let Some((fleet, engine)) = docker().await else { return };
    let job = with(Job::container_script("echo runs; [ $WINDLASS_ATTEMPT -gt 1 ] || sleep 1000"), &[answering("db")]);
    let task = fleet.submit(&job.set("/retry/max_attempts", 3)).await;
    fleet.output_has(&task, "runs").await;
    fleet.workers()[0].kill9().await;
    nothing_is_left_of(&engine, &task).await;
    fleet.worker(&[]);
    let end = fleet.end(&task).await;
    assert_eq!(end.reason, Some(Reason::Ok), "{}\n{}", said(&end), fleet.logs());
    nothing_is_left_of(&engine, &task).await;
    fleet.finish().await;
}

#[tokio::test]
async fn an_engine_that_stands_still_does_not_keep_a_task_with_services_from_ending() {
    let (Some(server), Some(engine)) = (Server::shared(), Engine::private(&[])) else { return };
    let settings = [("DOCKER__REQUEST_TIMEOUT_S", "2"), ("CLASSES__CPU_SHORT__NETWORKS", r#"["none"]"#)];
    let fleet = Fleet::with_engine(server, std::sync::Arc::clone(&engine), &settings).await;
    fleet.worker(&[]);
    let job = with(Job::container_script("echo runs; sleep 1000"), &[answering("db"), answering("cache")]);
    let task = fleet.submit(&job).await;
    fleet.output_has(&task, "runs").await;
    engine.freeze();
    fleet.cancel(&task).await;
    let end = tokio::time::timeout(PATIENCE, fleet.end(&task)).await;
    engine.thaw();
    assert_eq!(end.expect("an end, although the engine does not answer").reason, Some(Reason::Canceled));
    nothing_is_left_of(&engine, &task).await;
    fleet.finish().await;
}

/// A file of the test's with long-lived services.
fn file(fleet: &Fleet, name: &str, text: &str) -> PathBuf {
    let path = fleet.dir.join(name);
    std::fs::write(&path, text).expect("a file");
    path
}
