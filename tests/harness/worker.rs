//! Worker processes.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::sync::Mutex;

use super::disk::Under;
use super::watchdog::{MARK, watchdog};

const CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config/worker.toml");

/// One `windlass worker`.
pub struct Worker {
    /// Its stable name.
    pub id: String,
    /// Its process id.
    pub pid: u32,
    state_dir: PathBuf,
    log: PathBuf,
    /// Where in the log this life begins.
    born: usize,
    child: Mutex<Option<Child>>,
}

/// The binary under test, with a clean environment.
pub fn windlass() -> Command {
    windlass_under(&Under::default())
}

/// Likewise, below something else.
pub fn windlass_under(under: &Under) -> Command {
    let mut argv = under.argv.iter().map(String::as_str).chain([env!("CARGO_BIN_EXE_windlass")]);
    let mut command = Command::new(argv.next().expect("at least the binary"));
    command.args(argv);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env(MARK, watchdog().mark()).kill_on_drop(true);
    command
}

impl Worker {
    /// Starts one with `settings` (`SECTION__KEY` and value, or `env:NAME` and value), its state below `dir`.
    pub fn start(dir: &Path, id: &str, url: &str, prefix: &str, settings: &[(String, String)], under: &Under) -> Self {
        Self::start_with(windlass_under(under), dir, id, url, prefix, settings, under)
    }

    /// Likewise, as a user without privileges, whom only root can make it.
    pub fn start_as(user: u32, dir: &Path, id: &str, url: &str, prefix: &str, settings: &[(String, String)]) -> Self {
        use std::os::unix::fs::{PermissionsExt as _, chown};
        // The program and its configuration where that user can read them, wherever the repository is.
        let (program, config) = (dir.join("windlass"), dir.join("worker.toml"));
        std::fs::copy(env!("CARGO_BIN_EXE_windlass"), &program).expect("a copy of the program");
        std::fs::copy(CONFIG, &config).expect("a copy of the configuration");
        for (path, mode) in [(dir.parent().expect("a parent"), 0o711), (dir, 0o755), (&program, 0o755), (&config, 0o644)] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("open to all");
        }
        let state_dir = dir.join(format!("state-{id}"));
        std::fs::create_dir_all(&state_dir).expect("a state directory");
        chown(&state_dir, Some(user), Some(user)).expect("given to the user");
        let mut command = Command::new(&program);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env(MARK, watchdog().mark()).kill_on_drop(true);
        command.uid(user).gid(user);
        Self::start_with(command, dir, id, url, prefix, settings, &Under::default())
    }

    fn start_with(
        mut command: Command,
        dir: &Path,
        id: &str,
        url: &str,
        prefix: &str,
        settings: &[(String, String)],
        under: &Under,
    ) -> Self {
        let (own, state_dir) = under.state.clone().unwrap_or_else(|| {
            let state = dir.join(format!("state-{id}"));
            (state.clone(), state)
        });
        let log = dir.join(format!("{id}.log"));
        let file = std::fs::File::options().create(true).append(true).open(&log).expect("a log file");
        let born = usize::try_from(file.metadata().expect("its length").len()).expect("fits");
        let config = Some(dir.join("worker.toml")).filter(|p| p.exists()).unwrap_or_else(|| CONFIG.into());
        command.arg("worker").arg("--config").arg(config).args(["--server", url, "--prefix", prefix]);
        command.env("WINDLASS__WORKER__ID", id).env("WINDLASS__WORKER__STATE_DIR", own);
        for (key, value) in settings {
            // `env:NAME` is a variable as it is, `unset:KEY` takes a setting back, all others are settings.
            match (key.strip_prefix("env:"), key.strip_prefix("unset:")) {
                (Some(name), _) => command.env(name, value),
                (None, Some(key)) => command.env_remove(format!("WINDLASS__{key}")),
                (None, None) => command.env(format!("WINDLASS__{key}"), value),
            };
        }
        command.stdin(Stdio::null()).stdout(file.try_clone().expect("a second handle")).stderr(file);
        let child = loop {
            match command.spawn() {
                // A copy of the program: a process that another test forked a moment ago has it open for writing until its own exec.
                Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => std::thread::yield_now(),
                started => break started.expect("windlass starts"),
            }
        };
        let pid = child.id().expect("running");
        watchdog().adopt(pid);
        Self { id: id.to_owned(), pid, state_dir, log, born, child: Mutex::new(Some(child)) }
    }

    /// Sends a signal to the worker alone.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid.cast_signed()).expect("not zero");
        kill_process(pid, signal).unwrap_or_else(|e| panic!("worker {} is gone: {e}", self.id));
    }

    /// SIGKILL, and waits until it is gone.
    pub async fn kill9(&self) {
        self.signal(Signal::KILL);
        self.exit(Duration::from_secs(10)).await;
    }

    /// Waits for its end.
    pub async fn exit(&self, within: Duration) -> ExitStatus {
        let mut slot = self.child.lock().await;
        let child = slot.as_mut().unwrap_or_else(|| panic!("worker {} was already waited for", self.id));
        let status = tokio::time::timeout(within * super::slowness(), child.wait()).await;
        let status = status.unwrap_or_else(|_| panic!("worker {} still runs after {within:?}\n{}", self.id, self.log())).expect("wait");
        *slot = None;
        watchdog().release(self.pid);
        status
    }

    /// True until it was waited for.
    pub async fn is_held(&self) -> bool {
        self.child.lock().await.is_some()
    }

    /// Its supervisor and whatever else it started itself, by process id.
    pub fn children(&self) -> Vec<u32> {
        let path = format!("/proc/{0}/task/{0}/children", self.pid);
        let main = std::fs::read_to_string(path).unwrap_or_default();
        main.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
    }

    /// The most memory it ever had, bytes.
    pub fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).expect("a living worker");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
    }

    /// Where it keeps its state.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// What this life has written to its log.
    fn own_log(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        log.get(self.born..).map_or_else(String::new, |own| String::from_utf8_lossy(own).into_owned())
    }

    /// All that its lives have written to its log.
    pub fn whole_log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// How often this life has written that text to its log.
    pub fn times_said(&self, text: &str) -> usize {
        self.own_log().matches(text).count()
    }

    /// True when this life has written that text to its log.
    pub fn said(&self, text: &str) -> bool {
        self.own_log().contains(text)
    }

    /// Waits until it takes work.
    pub async fn ready(&self) {
        self.says(&["windlass::worker: ready"]).await;
    }

    /// Memory that it holds now, KiB.
    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0)
    }

    /// Waits until this life has logged a line that holds all `words` and returns that line.
    pub async fn says(&self, words: &[&str]) -> String {
        self.says_times(1, words).await
    }

    /// Waits for the line number `times` of that kind.
    pub async fn says_times(&self, times: usize, words: &[&str]) -> String {
        let deadline = Instant::now() + super::PATIENCE;
        loop {
            if let Some(line) = self.own_log().lines().filter(|line| words.iter().all(|word| line.contains(word))).nth(times - 1) {
                return line.to_owned();
            }
            assert!(Instant::now() < deadline, "worker {} said less than {times} times {words:?}\n{}", self.id, self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Whether it takes work.
    pub fn is_ready(&self) -> bool {
        self.said("windlass::worker: ready")
    }

    /// The end of what it logged.
    pub fn log(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(60)..];
        format!("--- log of {} ---\n{}\n", self.id, tail.join("\n"))
    }
}
