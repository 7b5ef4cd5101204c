//! A dockerd of the run's own: nothing of it meets the machine's, and nothing of it stays.
//!
//! It lives in a network and a mount namespace ([`ground`]), so that bridges, rules of iptables and mounts go with its last process,
//! and several runs do not meet; its cgroups are below one of the run's. Root alone can have one, where `dockerd`, `runc`,
//! `busybox` (static) and util-linux are there; elsewhere its tests say that they are skipped. There is no registry to pull from:
//! images are made here and imported ([`image`]).
//!
//! With `WINDLASS_TEST_ENGINE_ROOT=DIR` it is the engine of another system, whose root directory that is (debootstrap makes one): the
//! programs of its `/usr` are seen in that namespace in place of the machine's. `WINDLASS_TEST_ENGINE_CONFIG` is its `daemon.json`.
//!
//! What the engine calls 127.0.0.1 is not the machine's: [`Engine::reach`] and [`Engine::expose`] lead from one to the other.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::leftovers;
use super::server::skip;
use super::watchdog::{MARK, watchdog};
use ground::Ground;

#[path = "docker/api.rs"]
pub mod api;
#[path = "docker/ground.rs"]
mod ground;
#[path = "docker/image.rs"]
pub mod image;
#[path = "docker/relay.rs"]
pub mod relay;

pub use image::IMAGE;

/// Marks the processes of one engine: containerd and its shims inherit dockerd's environment.
const ENGINE: &str = "WINDLASS_TEST_ENGINE";

/// A running engine.
pub struct Engine {
    /// Its directory: socket, data, log.
    dir: PathBuf,
    ground: Ground,
    cgroup: String,
    more: Vec<String>,
    daemon: Mutex<Option<Child>>,
}

impl Engine {
    /// The engine of the run; `None` (with a word why) where there can be none.
    pub fn shared() -> Option<Arc<Self>> {
        static SHARED: OnceLock<Result<Arc<Engine>, String>> = OnceLock::new();
        // Each test that goes without says so.
        SHARED.get_or_init(|| Self::launch(&[], false)).clone().map_err(|why| skip(&why)).ok()
    }

    /// Another one of the run, whose containers come into other cgroups than a worker means: it sees those of the machine as an
    /// engine in a container does.
    pub fn elsewhere() -> Option<Arc<Self>> {
        static ELSEWHERE: OnceLock<Result<Arc<Engine>, String>> = OnceLock::new();
        ELSEWHERE.get_or_init(|| Self::launch(&[], true)).clone().map_err(|why| skip(&why)).ok()
    }

    /// An engine of the test's own, with more arguments: for who stops, kills or fills it.
    pub fn private(arguments: &[&str]) -> Option<Arc<Self>> {
        Self::launch(arguments, false).map_err(|why| skip(&why)).ok()
    }

    fn launch(arguments: &[&str], elsewhere: bool) -> Result<Arc<Self>, String> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if !rustix::process::geteuid().is_root() {
            return Err("an engine of the tests' own needs root".into());
        }
        for program in ["dockerd", "containerd", "runc", "busybox", "unshare", "nsenter", "iptables", "tar"] {
            if which(program).is_none() {
                return Err(format!("no {program}: Debian has it in docker.io, busybox-static, util-linux, iptables and tar"));
            }
        }
        let name = format!("engine{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let dir = watchdog().dir().join(&name);
        std::fs::create_dir(&dir).expect("the engine's directory");
        watchdog().expect_engines();
        let cgroup = leftovers::cgroup_place(&format!("windlass-test-w{}-{name}", std::process::id()));
        let ground = Ground::new(&dir, elsewhere.then_some(cgroup.as_str()))?;
        let more = arguments.iter().map(|a| (*a).to_owned()).collect();
        let engine = Self { dir, ground, cgroup, more, daemon: Mutex::default() };
        engine.start()?;
        engine.import(IMAGE, &[]);
        Ok(Arc::new(engine))
    }

    /// `unix://…`, as `docker.host` has it.
    pub fn host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("docker.sock")
    }

    /// What a worker's settings need for tasks of class `cpu_short` to run here.
    pub fn settings(&self) -> Vec<(String, String)> {
        let (host, patience) = (self.host(), (30 * super::slowness()).to_string());
        let known = [
            ("DOCKER__HOST", host.as_str()),
            ("DOCKER__IMAGES", "[\"*\"]"),
            ("DOCKER__REQUEST_TIMEOUT_S", patience.as_str()),
            ("CLASSES__CPU_SHORT__RUNTIMES", RUNTIMES),
        ];
        known.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec()
    }

    /// Starts dockerd, and waits until it answers.
    #[expect(clippy::zombie_processes, reason = "waited for in end, and by the watchdog's end of the run")]
    fn start(&self) -> Result<(), String> {
        let log = self.dir.join("dockerd.log");
        let file = std::fs::File::options().create(true).append(true).open(&log).expect("a log file");
        let path = |name: &str| self.dir.join(name).display().to_string();
        // Named, so that what the machine has in /etc does not count.
        std::fs::write(self.dir.join("daemon.json"), configuration()).expect("a configuration");
        let mut command = self.ground.command(&which("dockerd").ok_or("no dockerd")?);
        command.args(["--data-root", &path("data"), "--exec-root", &path("exec"), "--pidfile", &path("pid"), "-H", &self.host()]);
        command.args(["--config-file", &path("daemon.json"), "--cgroup-parent", &format!("/{}", self.cgroup)]);
        // Tests hold containers in cgroups of theirs, which systemd's driver does not allow.
        command.args(["--exec-opt", "native.cgroupdriver=cgroupfs", "--group", "0", "--shutdown-timeout", "2"]).args(&self.more);
        command.env_clear().env("PATH", SEARCHED).env(MARK, watchdog().mark()).env(ENGINE, self.mark());
        let mut child =
            command.stdin(Stdio::null()).stdout(file.try_clone().expect("a second handle")).stderr(file).spawn().expect("nsenter");
        watchdog().adopt(child.id());
        let deadline = Instant::now() + super::PATIENCE * super::slowness();
        while Instant::now() < deadline {
            if let Some(status) = child.try_wait().expect("wait") {
                watchdog().release(child.id());
                return Err(format!("dockerd does not run here ({status}): {}", last_words(&log)));
            }
            if self.answers() {
                *self.daemon.lock().expect("not poisoned") = Some(child);
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("dockerd did not come up; see {}", log.display());
    }

    fn mark(&self) -> String {
        self.dir.display().to_string()
    }

    /// Whether it answers.
    pub fn answers(&self) -> bool {
        self.ask("GET", "/_ping", &[]).is_ok_and(|answer| answer.status == 200)
    }

    /// dockerd's process id.
    pub fn pid(&self) -> u32 {
        self.daemon.lock().expect("not poisoned").as_ref().expect("a living dockerd").id()
    }

    /// SIGKILL to dockerd, and waits until it and its containerd are gone. Containers live on.
    pub fn kill9(&self) {
        let containerd = std::fs::read_to_string(self.dir.join("exec/containerd/containerd.pid")).unwrap_or_default();
        self.end(Signal::KILL);
        // It dies with dockerd. A dockerd that starts before its process id is free takes it for one that runs.
        wait_until("containerd goes with dockerd", || !Path::new("/proc").join(containerd.trim()).join("stat").exists());
    }

    /// SIGTERM, as a service manager does it: it stops its containers, and ends.
    pub fn stop(&self) {
        self.end(Signal::TERM);
    }

    /// Starts it again with what it had.
    pub fn restart(&self) {
        if self.daemon.lock().expect("not poisoned").is_some() {
            self.kill9();
        }
        // What a killed one leaves, as the machine's restart would find it.
        let _ = std::fs::remove_file(self.dir.join("pid"));
        self.start().unwrap_or_else(|why| panic!("{why}"));
    }

    /// Freezes dockerd: connections stay open, nothing answers.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        if let Some(child) = self.daemon.lock().expect("not poisoned").as_ref() {
            kill_process(Pid::from_child(child), signal).expect("a living dockerd");
        }
    }

    fn end(&self, signal: Signal) {
        if let Some(mut child) = self.daemon.lock().expect("not poisoned").take() {
            let _ = kill_process(Pid::from_child(&child), signal);
            child.wait().expect("wait");
            watchdog().release(child.id());
        }
    }

    /// Its processes: dockerd, containerd, shims, proxies of ports. Not those in containers.
    pub fn processes(&self) -> Vec<(u32, String)> {
        leftovers::processes(&format!("{ENGINE}={}\0", self.mark()))
    }

    /// Processes in its containers, but for those that are below other cgroups than its own.
    pub fn contained(&self) -> Vec<(u32, String)> {
        leftovers::in_cgroups(&self.cgroup)
    }

    /// Where its cgroups are, in each hierarchy.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        leftovers::cgroup_parents(&self.cgroup)
    }

    /// A command in the engine's network, where 127.0.0.1 is what the engine calls so. It dies with the run if it is adopted.
    pub fn beside(&self, program: &Path) -> Command {
        let mut command = self.ground.command(program);
        command.env(MARK, watchdog().mark());
        command
    }

    /// Lets the engine reach at its own 127.0.0.1 what listens at that port of the machine's.
    pub fn reach(&self, port: u16) {
        self.ground.reach(port);
    }

    /// A port of the machine's 127.0.0.1 that leads to that port of the engine's: to one that a container publishes.
    pub fn expose(&self, port: u16) -> u16 {
        self.ground.expose(port)
    }

    /// The end of what dockerd wrote to its log.
    pub fn log(&self) -> String {
        last_words(&self.dir.join("dockerd.log"))
    }
}

impl Drop for Engine {
    /// Only a private one is dropped; the watchdog ends the run's.
    fn drop(&mut self) {
        self.end(Signal::KILL);
        let gone = || {
            let mut living = self.processes();
            living.extend(leftovers::in_cgroups(&self.cgroup));
            for (pid, _) in &living {
                let _ = Pid::from_raw(pid.cast_signed()).map(|pid| kill_process(pid, Signal::KILL));
            }
            living.is_empty()
        };
        wait_until("what an engine left ends", gone);
        self.ground.end();
        for parent in self.cgroups() {
            remove_cgroups(&parent);
        }
        // Its images and layers; the mounts in them went with the namespace.
        let _ = windlass::prepare::remove_tree(&self.dir);
    }
}

/// `daemon.json`
fn configuration() -> String {
    std::env::var("WINDLASS_TEST_ENGINE_CONFIG").unwrap_or_else(|_| "{}".into())
}

/// Whether the engine keeps images in containerd's store, where an image's id is its manifest's digest.
pub fn keeps_manifests() -> bool {
    configuration().contains("containerd-snapshotter")
}

/// Native ones and containers.
const RUNTIMES: &str = "[\"native\", \"bash\", \"docker\"]";

/// Where programs of administrators are, whatever PATH the tests have.
const SEARCHED: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program of the machine's.
fn which(name: &str) -> Option<PathBuf> {
    SEARCHED.split(':').map(|dir| Path::new(dir).join(name)).find(|path| path.is_file())
}

fn last_words(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(3)..].join(" | ")
}

/// Waits for what makes no message.
fn wait_until(what: &str, mut look: impl FnMut() -> bool) {
    let deadline = Instant::now() + super::PATIENCE;
    while !look() {
        if Instant::now() >= deadline {
            // Not a panic: this may run while another one unwinds.
            println!("not so: {what}");
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// From the leaves up; what is in use stays.
fn remove_cgroups(dir: &Path) {
    for below in leftovers::entries(dir).into_iter().filter(|path| path.is_dir()) {
        remove_cgroups(&below);
    }
    let _ = std::fs::remove_dir(dir);
}
