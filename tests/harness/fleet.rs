//! One test's world: a prefix with its streams, workers, an orchestrator, and the inspection at the end.

use std::ops::Deref;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::Signal;

use super::disk::Under;
use super::leftovers::{entries, instances};
use super::watchdog::watchdog;
use super::worker::{Worker, windlass};
use super::{Engine, Orchestrator, PATIENCE, Server, checker, leftovers, slowness};

/// Everything of one test. Derefs to its [`Orchestrator`].
pub struct Fleet {
    bus: Orchestrator,
    /// The server.
    pub server: Arc<Server>,
    /// The engine that runs its containers, if any.
    pub engine: Option<Arc<Engine>>,
    /// The test's directory, which its tasks may write: gates, markers, counts.
    pub dir: PathBuf,
    /// The directory around it, with what tasks must not reach: states and logs of the workers.
    root: PathBuf,
    settings: Vec<(String, String)>,
    workers: Mutex<Vec<Arc<Worker>>>,
    /// State directories on disks of a test's own.
    places: Mutex<Vec<PathBuf>>,
    finished: bool,
}

impl Deref for Fleet {
    type Target = Orchestrator;
    fn deref(&self) -> &Orchestrator {
        &self.bus
    }
}

fn owned(settings: &[(&str, &str)]) -> Vec<(String, String)> {
    settings.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

/// Leases that a slow machine can renew in time.
fn stretched(mut settings: Vec<(String, String)>) -> Vec<(String, String)> {
    for (_, seconds) in settings.iter_mut().filter(|(key, _)| key == "LEASE__ACK_WAIT_S") {
        let asked: f64 = seconds.parse().expect("seconds");
        *seconds = (asked * f64::from(slowness())).to_string();
    }
    settings
}

impl Fleet {
    /// A fleet without workers on the run's server; `None` when there is no nats-server.
    pub async fn start(settings: &[(&str, &str)]) -> Option<Self> {
        Some(Self::on(Server::shared()?, settings).await)
    }

    /// A fleet with one worker of that many slots.
    pub async fn with_worker(slots: u32, settings: &[(&str, &str)]) -> Option<Self> {
        let fleet = Self::start(settings).await?;
        fleet.worker(&[("CAPACITY__SLOTS", &slots.to_string())]);
        Some(fleet)
    }

    /// A fleet without workers whose tasks may be containers of the run's engine; `None` when there is no server or no engine.
    pub async fn docker(settings: &[(&str, &str)]) -> Option<Self> {
        Some(Self::with_engine(Server::shared()?, Engine::shared()?, settings).await)
    }

    /// Likewise, on a server and an engine of the test's own.
    pub async fn with_engine(server: Arc<Server>, engine: Arc<Engine>, settings: &[(&str, &str)]) -> Self {
        Self::made(server, Some(engine), settings).await
    }

    /// A fleet on a server of the test's own.
    pub async fn on(server: Arc<Server>, settings: &[(&str, &str)]) -> Self {
        Self::made(server, None, settings).await
    }

    async fn made(server: Arc<Server>, engine: Option<Arc<Engine>>, settings: &[(&str, &str)]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("w{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let root = watchdog().dir().join(&prefix);
        let dir = root.join("open");
        std::fs::create_dir_all(&dir).expect("the test's directory");
        // Tasks are users of their own when the tests run as root.
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o777)).expect("open to all");
        let programs = super::programs();
        // Given first, so that a test can override them. Memory and CPUs are overcommitted: tests reserve more than they use.
        let level = std::env::var("WINDLASS_TEST_LOG").unwrap_or_else(|_| "info".into());
        let mut all = owned(&[
            ("CAPACITY__CPUS", "64"),
            ("CAPACITY__MEMORY", "64GiB"),
            ("LOG__LEVEL", &level),
            ("HTTP__LISTEN", "127.0.0.1:0"),
            ("SWEEPER__INTERVAL_S", "0"),
            ("STREAMS__LOGS_MAX", "2GiB"),
            ("STREAMS__MAX_WAITING", "512"),
            // Whose machine this is may have an engine of its own.
            ("DOCKER__HOST", ""),
            ("CGROUP__PARENT", &leftovers::cgroup_place(&format!("windlass-test-{prefix}"))),
            ("SANDBOX__WRITE_PATHS", &format!("[{:?}]", dir)),
            ("SANDBOX__READ_PATHS", &read_paths(&programs)),
            // The machine's engine is not the tests'.
            ("DOCKER__HOST", ""),
        ]);
        if let Some(engine) = &engine {
            all.extend(engine.settings());
            all.extend(owned(&[("TENANTS__ACME__MOUNTS", &format!("[{:?}]", dir))]));
        }
        // Kernels before 6.12 have not all of it for a worker that is not root.
        if std::env::var_os("WINDLASS_TEST_SANDBOX_OPTIONAL").is_some() {
            all.extend(owned(&[("SANDBOX__REQUIRED", "false")]));
        }
        all.extend(stretched(owned(settings)));
        let url = server.url();
        init(&url, &prefix, &all).await;
        let creds = all.iter().find(|(key, _)| key == "BUS__CREDS").map(|(_, path)| path.as_str());
        let bus = Orchestrator::connect_with(&url, &prefix, creds).await;
        Self { bus, server, engine, dir, root, settings: all, workers: Mutex::default(), places: Mutex::default(), finished: false }
    }

    /// Starts one more worker.
    pub fn worker(&self, settings: &[(&str, &str)]) -> Arc<Worker> {
        let id = format!("worker-{}", self.workers.lock().expect("not poisoned").len());
        self.worker_named(&id, settings)
    }

    /// Starts a worker with that name: with a name that was used before, it takes over that one's state directory.
    pub fn worker_named(&self, id: &str, settings: &[(&str, &str)]) -> Arc<Worker> {
        self.worker_at(id, &self.server.url(), settings)
    }

    /// Starts a worker that reaches the server by another way.
    pub fn worker_at(&self, id: &str, url: &str, settings: &[(&str, &str)]) -> Arc<Worker> {
        self.launch(id, url, &Under::default(), settings)
    }

    /// Starts a worker on a disk or below a command of the test's own.
    pub fn worker_under(&self, id: &str, under: &Under, settings: &[(&str, &str)]) -> Arc<Worker> {
        self.launch(id, &self.server.url(), under, settings)
    }

    fn launch(&self, id: &str, url: &str, under: &Under, settings: &[(&str, &str)]) -> Arc<Worker> {
        let mut all = self.settings.clone();
        all.extend(stretched(owned(settings)));
        self.places.lock().expect("not poisoned").extend(under.state.iter().map(|(own, _)| own.clone()));
        let worker = Arc::new(Worker::start(&self.root, id, url, &self.prefix, &all, under));
        self.workers.lock().expect("not poisoned").push(Arc::clone(&worker));
        worker
    }

    /// Starts a worker as a user without privileges; only root can do that.
    pub fn worker_as(&self, user: u32, settings: &[(&str, &str)]) -> Arc<Worker> {
        let mut all = self.settings.clone();
        all.extend(owned(settings));
        let mut workers = self.workers.lock().expect("not poisoned");
        let id = format!("worker-{}", workers.len());
        let worker = Arc::new(Worker::start_as(user, &self.root, &id, &self.server.url(), &self.prefix, &all));
        workers.push(Arc::clone(&worker));
        worker
    }

    /// As [`Fleet::worker_named`], to die at a crash point.
    #[cfg(feature = "crash-points")]
    pub fn armed(&self, id: &str, point: &str, settings: &[(&str, &str)]) -> Arc<Worker> {
        self.worker_named(id, &[settings, &[("env:WINDLASS_CRASH_AT", point)]].concat())
    }

    /// Runs a verb of the command line against this fleet.
    pub fn cli<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> tokio::process::Command {
        let mut command = windlass();
        command.args(args).env("NATS_URL", self.server.url()).env("WINDLASS_PREFIX", &self.prefix).current_dir(&self.dir);
        for (key, value) in &self.settings {
            command.env(format!("WINDLASS__{key}"), value);
        }
        command.stdin(std::process::Stdio::null());
        command
    }

    /// A directory in the test's own that its tasks may write to.
    pub fn open_dir(&self, name: &str) -> PathBuf {
        let dir = self.dir.join(name);
        std::fs::create_dir(&dir).expect("a directory for tasks");
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o777)).expect("open to all");
        dir
    }

    /// Everything of the test: its directory, and states and logs of the workers.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The cgroup directory that holds all of this fleet's, below each hierarchy.
    pub fn cgroup_parent(&self) -> String {
        leftovers::cgroup_place(&format!("windlass-test-{}", self.prefix))
    }

    /// Processes of this fleet's tasks and workers that are alive, and its supervisors.
    pub fn processes(&self) -> Vec<(u32, String)> {
        // With the slash: another fleet's name may begin with this one's.
        let places = self.places.lock().expect("not poisoned").clone();
        let dirs = std::iter::once(self.root.clone()).chain(places);
        let mut found: Vec<_> = dirs.flat_map(|dir| leftovers::processes(&format!("{}/", dir.display()))).collect();
        found.extend(leftovers::named(&format!("\"{}\"", self.cgroup_parent())));
        // What runs in containers names none of these directories.
        found.extend(leftovers::in_cgroups(&self.cgroup_parent()));
        found.sort();
        found.dedup();
        found
    }

    /// Containers and networks of this fleet's workers that its engine has.
    pub fn containers_left(&self) -> Vec<String> {
        self.engine.as_ref().map(|engine| engine.left_of(Some(&self.root))).unwrap_or_default()
    }

    /// Mounts, and files in places for temporary ones, that carry a name of this fleet or of one of its instances.
    pub fn strays(&self) -> Vec<String> {
        let instances = self.all_events().into_iter().map(|event| event.worker.instance);
        let mut names: Vec<String> = instances.collect();
        names.sort();
        names.dedup();
        let mut found = leftovers::mounts(&format!("{}/", self.root.display()));
        found.extend(leftovers::temporary(&names).iter().map(|path| path.display().to_string()));
        found
    }

    /// Processes that belong to one task.
    pub fn processes_of(&self, task_id: &str) -> Vec<(u32, String)> {
        let mut own = self.processes();
        // An engine that puts containers elsewhere shares its cgroups with other fleets.
        own.extend(self.engine.as_ref().map(|engine| engine.contained()).unwrap_or_default());
        own.sort();
        own.dedup();
        let marked: Vec<_> = leftovers::processes(&format!("WINDLASS_TASK_ID={task_id}\0"));
        own.into_iter().filter(|p| marked.contains(p)).collect()
    }

    /// Waits until a task's process runs, and with it everything is made that it runs in.
    pub async fn running(&self, task: &super::Task) {
        let deadline = std::time::Instant::now() + PATIENCE;
        while self.processes_of(&task.id).is_empty() {
            assert!(std::time::Instant::now() < deadline, "task {} has no process\n{}", task.id, self.logs());
            // A process is no message that could be waited for.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The end of every test that has workers: drains them, proves every promise, and looks for what was left behind.
    pub async fn finish(self) {
        checker::check(&self.bus).await;
        self.finish_unchecked().await;
    }

    /// As [`Fleet::finish`] without the proof, for tests whose tasks do not all end.
    pub async fn finish_unchecked(mut self) {
        let workers: Vec<_> = self.workers.lock().expect("not poisoned").clone();
        let mut graceful = Vec::new();
        for worker in &workers {
            if worker.is_held().await {
                // One that has only just been started has no directory of its own yet, and has buried nobody.
                leftovers::gone(Duration::from_secs(10), || Some(()).filter(|()| !worker.is_ready()).into_iter().collect()).await;
                // A life that was killed before left a directory; a worker removes it once it is connected.
                let state = worker.state_dir().to_owned();
                let old = leftovers::gone(Duration::from_secs(10), || instances(&state).into_iter().skip(1).collect()).await;
                let inside: Vec<_> = instances(&state).iter().map(|dir| (dir.clone(), entries(dir))).collect();
                assert!(old.is_empty(), "worker {} does not bury its dead: {inside:?}\n{}", worker.id, worker.log());
                worker.signal(Signal::TERM);
                graceful.push(worker);
            }
        }
        for worker in graceful {
            let status = worker.exit(PATIENCE).await;
            assert!(status.success(), "worker {} ended with {status} when it was drained\n{}", worker.id, worker.log());
            let left = instances(worker.state_dir());
            assert!(left.is_empty(), "worker {} left {left:?}\n{}", worker.id, worker.log());
        }
        let left = leftovers::gone(Duration::from_secs(5), || self.processes()).await;
        assert!(left.is_empty(), "processes left: {left:?}");
        let left = leftovers::gone(Duration::from_secs(20), || self.containers_left()).await;
        assert!(left.is_empty(), "containers left: {left:?}");
        let parent = self.cgroup_parent();
        let left = leftovers::gone(Duration::from_secs(5), || leftovers::cgroups(&parent)).await;
        assert!(left.is_empty(), "cgroups left: {left:?}");
        for path in leftovers::cgroup_parents(&parent) {
            std::fs::remove_dir(&path).unwrap_or_else(|e| panic!("{} is not empty: {e}", path.display()));
        }
        self.finished = true;
        self.remove_streams().await;
    }

    /// Gives the server its memory and disk back; what fails here fails nothing.
    async fn remove_streams(&self) {
        for kind in ["TASKS", "EVENTS", "LOGS", "CONTROL", "DEAD"] {
            let _ = self.bus.js.delete_stream(self.bus.stream(kind)).await;
        }
        let _ = self.bus.js.delete_stream(format!("KV_{}", self.bus.stream("WORKERS"))).await;
        if std::env::var_os("WINDLASS_TEST_KEEP").is_none() {
            // Not through a mount that a task left.
            let _ = windlass::prepare::remove_tree(&self.root);
        }
    }

    /// All workers that were ever started.
    pub fn workers(&self) -> Vec<Arc<Worker>> {
        self.workers.lock().expect("not poisoned").clone()
    }

    /// What all workers logged last.
    pub fn logs(&self) -> String {
        // Also when a worker did not start, which is when this is asked for.
        self.workers.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|w| w.log()).collect()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", self.logs());
        } else if !self.finished {
            println!("a fleet was dropped without finish()");
        }
        if !self.finished {
            let parent = self.cgroup_parent();
            self.workers.lock().expect("not poisoned").clear();
            clean_up_after_failure(&parent);
        }
    }
}

/// The supervisors need a moment to empty their cgroups; the next test must not find the parents.
fn clean_up_after_failure(parent: &str) {
    let deadline = std::time::Instant::now() + Duration::from_secs(3);
    while !leftovers::cgroups(parent).is_empty() && std::time::Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    for path in leftovers::cgroup_parents(parent) {
        let _ = std::fs::remove_dir(path);
    }
}

/// Those of the defaults, and what the tests' programs need.
fn read_paths(programs: &Path) -> String {
    let defaults: toml::Table = windlass::config::DEFAULTS.parse().expect("the defaults");
    let mut paths: Vec<String> = defaults["sandbox"]["read_paths"].clone().try_into().expect("a list of paths");
    paths.push(programs.display().to_string());
    format!("{paths:?}")
}

async fn init(url: &str, prefix: &str, settings: &[(String, String)]) {
    let mut command = windlass();
    command.args(["init", "--server", url, "--prefix", prefix]);
    for (key, value) in settings {
        command.env(format!("WINDLASS__{key}"), value);
    }
    let output = command.output().await.expect("windlass starts");
    let text = || format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "windlass init: {}\n{}", output.status, text());
}
