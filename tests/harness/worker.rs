//! Worker processes.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::sync::Mutex;

use super::disk::Under;
use super::watchdog::{MARK, watchdog};

/// One `windlass worker`.
pub struct Worker {
    /// Its stable name.
    pub id: String,
    /// Its process id.
    pub pid: u32,
    state_dir: PathBuf,
    log: PathBuf,
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
    /// Starts one with `settings` (`SECTION__KEY` and value), its state below `dir`.
    pub fn start(dir: &Path, id: &str, url: &str, prefix: &str, settings: &[(String, String)], under: &Under) -> Self {
        let (own, state_dir) = under.state.clone().unwrap_or_else(|| {
            let state = dir.join(format!("state-{id}"));
            (state.clone(), state)
        });
        let log = dir.join(format!("{id}.log"));
        let file = std::fs::File::options().create(true).append(true).open(&log).expect("a log file");
        let mut command = windlass_under(under);
        command.args([
            "worker",
            "--config",
            concat!(env!("CARGO_MANIFEST_DIR"), "/config/worker.toml"),
            "--server",
            url,
            "--prefix",
            prefix,
        ]);
        command.env("WINDLASS__WORKER__ID", id).env("WINDLASS__WORKER__STATE_DIR", own);
        for (key, value) in settings {
            command.env(format!("WINDLASS__{key}"), value);
        }
        command.stdin(Stdio::null()).stdout(file.try_clone().expect("a second handle")).stderr(file);
        let child = command.spawn().expect("windlass starts");
        let pid = child.id().expect("running");
        watchdog().adopt(pid);
        Self { id: id.to_owned(), pid, state_dir, log, child: Mutex::new(Some(child)) }
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

    /// Waits until that text is in the end of its log.
    pub async fn logged(&self, text: &str) {
        let deadline = std::time::Instant::now() + super::PATIENCE;
        while !self.log().contains(text) {
            assert!(std::time::Instant::now() < deadline, "{text:?} was not logged\n{}", self.log());
            // A file has no event that could be waited for here.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The end of what it logged.
    pub fn log(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(60)..];
        format!("--- log of {} ---\n{}\n", self.id, tail.join("\n"))
    }
}
