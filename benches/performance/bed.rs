//! A nats-server and a worker of their own for one measurement.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use futures_util::StreamExt as _;
use windlass::bus::read::{EventFilter, From};
use windlass::bus::{Bus, Patience, provision};
use windlass::config::{self, Config};
use windlass::task::{ClassName, Event, EventKind, Priority, TaskId, Tenant};
use windlass::wire::Encoding;

/// The program under test.
pub const WINDLASS: &str = env!("CARGO_BIN_EXE_windlass");

pub struct Bed {
    pub dir: tempfile::TempDir,
    pub config: Config,
    pub bus: Bus,
    pub server: Child,
    pub port: u16,
    sync: &'static str,
    pub worker: Option<Child>,
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Some(mut worker) = self.worker.take() {
            let _ = worker.kill();
            let _ = worker.wait();
        }
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn nats_server(dir: &std::path::Path, port: u16, sync: &str) -> Child {
    let binary = std::env::var("WINDLASS_TEST_NATS_SERVER").unwrap_or_else(|_| "nats-server".to_owned());
    let file = dir.join("nats.conf");
    let store = dir.join("js");
    let text = format!("host: 127.0.0.1\nport: {port}\njetstream {{\n  store_dir: \"{}\"\n  {sync}\n}}\n", store.display());
    std::fs::write(&file, text).unwrap();
    Command::new(binary).arg("-c").arg(file).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("nats-server starts")
}

impl Bed {
    /// `sync` is empty or `sync_interval: always`.
    pub async fn new(sync: &'static str, settings: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = nats_server(dir.path(), port, sync);
        let url = format!("nats://127.0.0.1:{port}");
        let state = dir.path().join("state").display().to_string();
        let fixed = [("BUS__SERVER", url.as_str()), ("WORKER__STATE_DIR", &state), ("CAPACITY__CPUS", "64"), ("LOG__LEVEL", "error")];
        let env: Vec<_> = fixed.iter().chain(settings).map(|(k, v)| (format!("WINDLASS__{k}"), (*v).to_owned())).collect();
        let mut config = config::load(None, env).expect("valid settings");
        let given = dir.path().join("given");
        std::fs::create_dir(&given).unwrap();
        std::fs::set_permissions(&given, std::fs::Permissions::from_mode(0o777)).unwrap();
        config.sandbox.write_paths.push(given);
        let bus = Bus::connect(&config.bus, "bench", Patience::Wait).await.unwrap();
        while provision::apply(&bus, &config).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Self { dir, config, bus, server, port, sync, worker: None }
    }

    pub fn start_worker(&mut self) {
        let file = self.dir.path().join("worker.toml");
        std::fs::write(&file, toml::to_string(&self.config).unwrap()).unwrap();
        let worker = Command::new(WINDLASS).arg("worker").arg("--config").arg(file).env_remove("NATS_URL").spawn().unwrap();
        self.worker = Some(worker);
    }

    pub fn restart_server(&mut self) {
        self.server = nats_server(self.dir.path(), self.port, self.sync);
    }

    pub fn worker_pid(&self) -> u32 {
        self.worker.as_ref().expect("a worker runs").id()
    }

    /// Queues a task.
    pub async fn submit(&self, id: &str, execution: serde_json::Value) {
        self.submit_with(id, serde_json::json!({"task_id": id, "execution": execution})).await;
    }

    /// Queues a whole assignment.
    pub async fn submit_with(&self, id: &str, body: serde_json::Value) {
        let (class, tenant) = (ClassName::new("cpu_short").unwrap(), Tenant::new("bench").unwrap());
        let body = Encoding::Json.encode(&body).unwrap();
        self.bus.publish_assignment(&class, Priority::Normal, &tenant, &TaskId::new(id).unwrap(), Encoding::Json, body).await.unwrap();
    }

    /// The last event of a task, once it is of `kind` or the task has ended.
    pub async fn wait_for(&self, id: &str, kind: EventKind) -> Event {
        let filter = EventFilter { tenant: None, task_id: Some(TaskId::new(id).unwrap()), kind: None };
        let mut events = self.bus.events(filter, From::Start, true).await.unwrap();
        loop {
            let event = events.next().await.unwrap().unwrap().head.event;
            if event.event == kind || event.event.is_terminal() {
                return event;
            }
        }
    }

    /// A file that tasks may read and write.
    pub fn given(&self, name: &str) -> PathBuf {
        self.path("given").join(name)
    }

    /// A directory for a task's own files.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// A field of `/proc/<pid>/status`, in MiB.
pub fn status_mib(pid: u32, field: &str) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find(|l| l.starts_with(field)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

/// Children of a process.
pub fn children(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|n| n.parse().ok()).collect()
}
