//! Worker processes.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::sync::Mutex;

use super::watchdog::{MARK, watchdog};

/// One `windlass worker`.
pub struct Worker {
    /// Its stable name.
    pub id: String,
    /// Its process id.
    pub pid: u32,
    state_dir: PathBuf,
    log: PathBuf,
    /// Length of the log when this life began: the name may have been used before.
    log_from: usize,
    child: Mutex<Option<Child>>,
}

/// The binary under test, with a clean environment.
pub fn windlass() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_windlass"));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env(MARK, watchdog().mark()).kill_on_drop(true);
    command
}

impl Worker {
    /// Starts one with `settings` (`SECTION__KEY` and value), its state below `dir`.
    pub fn start(dir: &Path, id: &str, url: &str, prefix: &str, settings: &[(String, String)]) -> Self {
        let state_dir = dir.join(format!("state-{id}"));
        let log = dir.join(format!("{id}.log"));
        let file = std::fs::File::options().create(true).append(true).open(&log).expect("a log file");
        let log_from = std::fs::metadata(&log).map_or(0, |meta| usize::try_from(meta.len()).expect("it fits"));
        let mut command = windlass();
        command.args([
            "worker",
            "--config",
            concat!(env!("CARGO_MANIFEST_DIR"), "/config/worker.toml"),
            "--server",
            url,
            "--prefix",
            prefix,
        ]);
        command.env("WINDLASS__WORKER__ID", id).env("WINDLASS__WORKER__STATE_DIR", &state_dir);
        for (key, value) in settings {
            command.env(format!("WINDLASS__{key}"), value);
        }
        command.stdin(Stdio::null()).stdout(file.try_clone().expect("a second handle")).stderr(file);
        let child = command.spawn().expect("windlass starts");
        let pid = child.id().expect("running");
        watchdog().adopt(pid);
        Self { id: id.to_owned(), pid, state_dir, log, log_from, child: Mutex::new(Some(child)) }
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
        let status = tokio::time::timeout(within, child.wait()).await;
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

    /// Where it keeps its state.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// Memory that it holds now, KiB.
    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0)
    }

    /// Waits until it has logged a line that holds all `words` and returns that line.
    pub async fn says(&self, words: &[&str]) -> String {
        self.says_times(1, words).await
    }

    /// Waits for the line number `times` of that kind.
    pub async fn says_times(&self, times: usize, words: &[&str]) -> String {
        let deadline = std::time::Instant::now() + super::PATIENCE;
        loop {
            let text = std::fs::read_to_string(&self.log).unwrap_or_default();
            if let Some(line) = text.lines().filter(|line| words.iter().all(|word| line.contains(word))).nth(times - 1) {
                return line.to_owned();
            }
            assert!(std::time::Instant::now() < deadline, "worker {} said less than {times} times {words:?}\n{}", self.id, self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whether it takes work.
    pub fn is_ready(&self) -> bool {
        let text = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(text.get(self.log_from..).unwrap_or_default()).contains(" ready worker_id=")
    }

    /// The end of what it logged.
    pub fn log(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(60)..];
        format!("--- log of {} ---\n{}\n", self.id, tail.join("\n"))
    }
}
