//! nats-server processes: one for the run, private ones for tests that kill it.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::disk::{Disk, Under};
use super::watchdog::{MARK, watchdog};

/// A running nats-server with JetStream.
pub struct Server {
    binary: PathBuf,
    port: u16,
    config: PathBuf,
    under: Under,
    child: Mutex<Option<Child>>,
}

/// How a server is set up.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// `sync_interval: always`
    pub sync_always: bool,
    /// `max_payload`, bytes.
    pub max_payload: Option<u32>,
    /// More of its configuration, as it is.
    pub more: &'static str,
}

impl Server {
    /// The server of the run; `None` (with a word why) where there is no nats-server.
    pub fn shared() -> Option<Arc<Self>> {
        static SHARED: OnceLock<Option<Arc<Server>>> = OnceLock::new();
        SHARED.get_or_init(|| Self::private(Options::default())).clone()
    }

    /// A server of the test's own.
    pub fn private(options: Options) -> Option<Arc<Self>> {
        Self::with_config(|port, dir| options.render(port, &dir.join("data")))
    }

    /// A server of the test's own that stores on that disk.
    pub fn on_disk(options: Options, disk: &Disk) -> Option<Arc<Self>> {
        let store = disk.path().join("data");
        Self::launch(|port, _| options.render(port, &store), disk.under())
    }

    /// A server of the test's own with a configuration of the test's own, for a port and a directory.
    pub fn with_config(render: impl Fn(u16, &Path) -> String) -> Option<Arc<Self>> {
        Self::launch(render, Under::default())
    }

    fn launch(render: impl Fn(u16, &Path) -> String, under: Under) -> Option<Arc<Self>> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let binary = Self::binary()?;
        let dir = watchdog().dir().join(format!("nats-{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir_all(&dir).expect("the server's directory");
        let config = dir.join("nats.conf");
        let deadline = Instant::now() + super::PATIENCE * super::slowness();
        // Between the look for a free port and its use somebody else may take it: then the next one.
        while Instant::now() < deadline {
            let port = free_port();
            std::fs::write(&config, render(port, &dir)).expect("the server's configuration");
            let server = Self { binary: binary.clone(), port, config: config.clone(), under: under.clone(), child: Mutex::new(None) };
            if server.start() {
                return Some(Arc::new(server));
            }
        }
        panic!("no nats-server came up; see {}", dir.display());
    }

    /// `WINDLASS_TEST_NATS_SERVER`, else `.windlass/tools/nats-server*` (of `NATS_VERSION`, else the newest), else PATH.
    pub fn binary() -> Option<PathBuf> {
        let version = std::env::var("NATS_VERSION").unwrap_or_default();
        let mut candidates: Vec<PathBuf> = std::env::var_os("WINDLASS_TEST_NATS_SERVER").map(PathBuf::from).into_iter().collect();
        let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join(".windlass/tools");
        let mut fetched: Vec<PathBuf> = std::fs::read_dir(tools).into_iter().flatten().flatten().map(|e| e.path()).collect();
        fetched.retain(|p| {
            p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("nats-server")) && p.to_string_lossy().contains(&version)
        });
        fetched.sort();
        candidates.extend(fetched.into_iter().rev());
        if version.is_empty() {
            let path = std::env::var_os("PATH").unwrap_or_default();
            candidates.extend(std::env::split_paths(&path).map(|dir| dir.join("nats-server")));
        }
        let found = candidates.into_iter().find(|path| path.is_file());
        if found.is_none() {
            skip("no nats-server: set WINDLASS_TEST_NATS_SERVER, or run deploy/fetch-nats.sh");
        }
        found
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its configuration file, whatever is in it now.
    pub fn config(&self) -> String {
        std::fs::read_to_string(&self.config).expect("the server's configuration")
    }

    /// Changes the configuration file; it counts from the next [`Server::reload`] or [`Server::restart`] on.
    pub fn configure(&self, text: &str) {
        std::fs::write(&self.config, text).expect("the server's configuration");
    }

    /// Lets the running server read its configuration again, and waits until it has.
    pub fn reload(&self) {
        let log = self.config.with_extension("log");
        let count = || std::fs::read_to_string(&log).unwrap_or_default().matches("Reloaded server configuration").count();
        let before = count();
        self.signal(Signal::HUP);
        let deadline = Instant::now() + super::PATIENCE;
        while count() == before {
            assert!(Instant::now() < deadline, "nats-server does not take its configuration; see {}", log.display());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Tells it to end soon, and its clients to go elsewhere.
    pub fn lame_duck(&self) {
        self.signal(Signal::USR2);
    }

    /// Where clients connect.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    #[expect(clippy::zombie_processes, reason = "waited for in kill9, and by the watchdog's end of the run")]
    fn start(&self) -> bool {
        let log = std::fs::File::options().create(true).append(true).open(self.config.with_extension("log")).expect("a log file");
        let mut argv = self.under.argv.iter().map(OsStr::new).chain([self.binary.as_os_str()]);
        let mut child = Command::new(argv.next().expect("at least the binary"))
            .args(argv)
            .arg("-c")
            .arg(&self.config)
            .env(MARK, watchdog().mark())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("nats-server starts");
        watchdog().adopt(child.id());
        let deadline = Instant::now() + super::PATIENCE * super::slowness();
        while Instant::now() < deadline {
            if child.try_wait().expect("wait").is_some() {
                watchdog().release(child.id());
                return false;
            }
            // The server greets when its streams are recovered.
            if greets(self.port) {
                *self.child.lock().expect("not poisoned") = Some(child);
                return true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("nats-server did not come up; see {}", self.config.display());
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill9(&self) {
        if let Some(mut child) = self.child.lock().expect("not poisoned").take() {
            child.kill().expect("kill");
            child.wait().expect("wait");
            watchdog().release(child.id());
        }
    }

    /// Starts it again on the same port and data.
    pub fn restart(&self) {
        self.kill9();
        assert!(self.start(), "nats-server did not start again; see {}", self.config.display());
    }

    /// Takes `from` for `to` in its configuration, and has it read that again.
    pub fn reconfigure(&self, from: &str, to: &str) {
        let text = std::fs::read_to_string(&self.config).expect("its configuration");
        assert!(text.contains(from), "{from:?} is not in its configuration");
        std::fs::write(&self.config, text.replace(from, to)).expect("its configuration");
        self.signal(Signal::HUP);
    }

    /// Freezes it: connections stay open, nothing answers.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.lock().expect("not poisoned").as_ref().expect("a living server").id()
    }

    fn signal(&self, signal: Signal) {
        if let Some(child) = self.child.lock().expect("not poisoned").as_ref() {
            kill_process(Pid::from_child(child), signal).expect("a living server");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill9();
    }
}

impl Options {
    fn render(self, port: u16, store: &Path) -> String {
        let more = self.more;
        let sync = if self.sync_always { "sync_interval: always" } else { "" };
        let payload = self.max_payload.map_or_else(String::new, |n| format!("max_payload: {n}"));
        format!(
            "listen: 127.0.0.1:{port}\n{payload}\n{more}\njetstream {{ store_dir: \"{}\"\n max_mem: 256MB\n max_file: 2TB\n {sync} }}\n",
            store.display()
        )
    }
}

/// A free port below the range that the kernel gives to outgoing connections, so that a client that tries to reconnect
/// to a dead server cannot take it.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let n = std::process::id().wrapping_mul(37).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(20_000 + n % 12_000).expect("in range");
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn greets(port: u16) -> bool {
    let Ok(stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    stream.set_read_timeout(Some(Duration::from_secs(2))).expect("a time limit");
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).is_ok() && line.starts_with("INFO ")
}

/// Says that a test proves nothing here, and why; fails where that must not happen.
pub fn skip(why: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "SKIPPED is a failure in CI: {why}");
    println!("SKIPPED: {why}");
}
