//! The nats-server child of `dev`: found, checked, configured, started, and stopped.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::bus::connect::{SERVER_FLOOR, version_of};
use crate::cli::DevArgs;
use crate::worker::Stop;

/// How long a server may take to listen; recovery of a large store included.
const STARTS_WITHIN: Duration = Duration::from_secs(30);
/// How long it may take to end by itself.
const ENDS_WITHIN: Duration = Duration::from_secs(5);
/// Where every NATS client looks unless told otherwise.
pub(super) const DEFAULT_PORT: u16 = 4222;

/// Why there is no nats-server.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// None was found.
    #[error("no nats-server in .windlass/tools or on PATH; {}.{}.{} or newer is needed", SERVER_FLOOR.0, SERVER_FLOOR.1, SERVER_FLOOR.2)]
    Missing,
    /// It does not say its version.
    #[error("{path} --version does not answer as a nats-server does: {error}")]
    NoVersion {
        /// The program.
        path: String,
        /// What it said.
        error: String,
    },
    /// It cannot keep the promises.
    #[error("{path} is version {version}; {}.{}.{} or newer is needed", SERVER_FLOOR.0, SERVER_FLOOR.1, SERVER_FLOOR.2)]
    TooOld {
        /// The program.
        path: String,
        /// Its version.
        version: String,
    },
    /// Another `dev` has the directory.
    #[error("another `windlass dev` uses {data}; end it, or give another --data")]
    InUse {
        /// The directory.
        data: String,
    },
    /// Somebody listens on the port.
    #[error("port {port} on 127.0.0.1 cannot be had: {error}; give another --port, or 0 for a free one")]
    Port {
        /// The port.
        port: u16,
        /// The system's answer.
        error: std::io::Error,
    },
    /// The directory cannot be used.
    #[error("cannot use {path}: {error}")]
    Data {
        /// File or directory.
        path: String,
        /// The system's answer.
        error: std::io::Error,
    },
    /// It could not be started.
    #[error("cannot start {path}: {error}")]
    Start {
        /// The program.
        path: String,
        /// Why.
        error: String,
    },
    /// It ended, or never listened.
    #[error("nats-server {what}; its log says:\n{log}")]
    Ended {
        /// What it did.
        what: String,
        /// The end of its log.
        log: String,
    },
}

/// A running nats-server.
#[derive(Debug)]
pub(super) struct Server {
    child: Child,
    port: u16,
    data: PathBuf,
    /// Held for as long as the data is ours.
    _lock: File,
}

impl Server {
    /// Starts one on the arguments' port and data, and waits until it listens.
    pub(super) async fn start(args: &DevArgs, mut stop: watch::Receiver<Stop>) -> Result<Self, ServerError> {
        let program = find(args).await?;
        let (data, lock) = claim(&args.data)?;
        let port = choose_port(args.port)?;
        let log = data.join("nats.log");
        // Only this run's words: they are shown when it fails.
        let _ = std::fs::remove_file(&log);
        let config = data.join("nats.conf");
        write(&config, &configuration(port, &data))?;
        let own = std::env::current_exe().map_err(|error| ServerError::Data { path: "/proc/self/exe".to_owned(), error })?;
        let child = Command::new(own)
            .args(["guard", "--parent", &std::process::id().to_string(), "--"])
            .arg(&program)
            .arg("-c")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A group of its own: Ctrl-C is for us, and the worker needs the server until it has drained.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| ServerError::Start { path: program.display().to_string(), error: error.to_string() })?;
        let mut server = Self { child, port, data, _lock: lock };
        tokio::select! {
            listening = server.listens() => listening?,
            _ = stop.wait_for(|s| *s >= Stop::Drain) => return Err(server.ended("was stopped before it listened")),
        }
        Ok(server)
    }

    /// Where clients connect.
    pub(super) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// The directory of everything.
    pub(super) fn data(&self) -> &Path {
        &self.data
    }

    async fn listens(&mut self) -> Result<(), ServerError> {
        let deadline = Instant::now() + STARTS_WITHIN;
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(self.ended(&format!("ended at once ({status})")));
            }
            if TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await.is_ok() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(self.ended("does not listen"));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Resolves when the server ended by itself. Cancel safe.
    pub(super) async fn failed(&mut self) -> ServerError {
        let status = self.child.wait().await.map_or_else(|e| e.to_string(), |s| s.to_string());
        self.ended(&format!("ended ({status})"))
    }

    fn ended(&self, what: &str) -> ServerError {
        let log = std::fs::read_to_string(self.data.join("nats.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        ServerError::Ended { what: what.to_owned(), log: lines[lines.len().saturating_sub(5)..].join("\n") }
    }

    /// Stops it: SIGTERM, then SIGKILL.
    pub(super) async fn stop(mut self) {
        if let Some(pid) = self.child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)) {
            let _ = kill_process(pid, Signal::TERM);
        }
        if tokio::time::timeout(ENDS_WITHIN, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }
}

/// The program, when it is one that keeps the promises.
async fn find(args: &DevArgs) -> Result<PathBuf, ServerError> {
    let path = match &args.nats_server {
        Some(path) => path.clone(),
        None => super::fetched(Path::new(".windlass/tools")).or_else(on_path).ok_or(ServerError::Missing)?,
    };
    let shown = path.display().to_string();
    let no_version = |error: String| ServerError::NoVersion { path: shown.clone(), error };
    let output = Command::new(&path).arg("--version").stdin(Stdio::null()).output().await.map_err(|e| no_version(e.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let version = text.strip_prefix("nats-server: v").ok_or_else(|| no_version(text.clone()))?;
    if version_of(version) < Some(SERVER_FLOOR) {
        return Err(ServerError::TooOld { path: shown, version: version.to_owned() });
    }
    Ok(path)
}

fn on_path() -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join("nats-server")).find(|path| path.is_file())
}

/// Makes the directory ours, or says whose it is.
fn claim(data: &Path) -> Result<(PathBuf, File), ServerError> {
    let failed = |error| ServerError::Data { path: data.display().to_string(), error };
    std::fs::create_dir_all(data).map_err(failed)?;
    let data = data.canonicalize().map_err(failed)?;
    let lock = File::create(data.join("lock")).map_err(failed)?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| ServerError::InUse { data: data.display().to_string() })?;
    Ok((data, lock))
}

/// NATS's own port where it is free, so that nobody has to name it; else any.
fn choose_port(wanted: u16) -> Result<u16, ServerError> {
    // Bound and let go: nats-server takes it in a moment, and says so in its log when somebody was faster.
    let free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).and_then(|l| l.local_addr()).map(|a| a.port());
    let failed = |error| ServerError::Port { port: wanted, error };
    if wanted != 0 { free(wanted).map_err(failed) } else { free(DEFAULT_PORT).or_else(|_| free(0)).map_err(failed) }
}

fn configuration(port: u16, data: &Path) -> String {
    let quoted = |path: PathBuf| format!("{:?}", path.display().to_string());
    format!(
        "# Written by `windlass dev` at each start.\n\
         listen: \"127.0.0.1:{port}\"\n\
         server_name: windlass-dev\n\
         log_file: {log}\n\
         jetstream {{\n\
         \x20 store_dir: {store}\n\
         \x20 # Written to disk before it is acknowledged: the default (two minutes) loses acknowledged messages in a power cut.\n\
         \x20 sync_interval: always\n\
         \x20 # Streams may grow to more than this disk has free: without a word the server takes three quarters of that, and refuses them.\n\
         \x20 max_file: 1TB\n\
         }}\n",
        log = quoted(data.join("nats.log")),
        store = quoted(data.join("jetstream")),
    )
}

fn write(path: &Path, text: &str) -> Result<(), ServerError> {
    std::fs::write(path, text).map_err(|error| ServerError::Data { path: path.display().to_string(), error })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_owner() {
        let dir = tempfile::tempdir().expect("directory");
        let first = claim(&dir.path().join("data")).expect("free");
        assert!(matches!(claim(&dir.path().join("data")), Err(ServerError::InUse { .. })));
        drop(first);
        assert!(claim(&dir.path().join("data")).is_ok());
    }

    #[test]
    fn a_taken_port_is_not_chosen() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("port");
        let port = taken.local_addr().expect("address").port();
        assert!(matches!(choose_port(port), Err(ServerError::Port { .. })));
        assert_ne!(choose_port(0).expect("some port is free"), port);
    }
}
