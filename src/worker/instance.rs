//! This process among the worker's processes: its names, its directory, and what dead ones left behind.
//!
//! `<state_dir>/<instance>/` holds `work`, `spool` and `commit`, and is itself locked for life: so there is no moment, at
//! birth or burial, at which a crash leaves a directory that nobody can tell for dead. An instance whose lock is free is
//! dead: its terminal events are sent if the chain still wants them, then everything of it is removed.

use std::fs::{File, Permissions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::bus::Bus;
use crate::bus::chain::{Appended, SpooledEvent};
use crate::config;
use crate::crash::{self, Point};
use crate::prepare::secret_files::SecretStore;
use crate::prepare::{Leavings, remove_tree};
use crate::task::WorkerId;
use crate::task::event::WorkerInfo;
use crate::telemetry::causes;

/// This process.
#[derive(Debug)]
pub struct Instance {
    /// How events name it.
    pub info: WorkerInfo,
    /// Where secrets that are files are kept.
    pub secrets: SecretStore,
    state_dir: PathBuf,
    dir: PathBuf,
    _lock: File,
    /// What attempts left and could not be removed yet.
    pub leavings: Arc<Leavings>,
}

/// Why a worker cannot be set up on this machine.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    /// `worker.id`, or the host name in its place, is no token.
    #[error("worker.id: {0}; set one in [worker] id or WINDLASS__WORKER__ID")]
    Id(crate::task::id::InvalidToken),
    /// A directory or lock file.
    #[error("worker.state_dir: cannot use {path}: {error}; {}", remedy(error))]
    Dir {
        /// Path.
        path: PathBuf,
        /// The system's answer.
        error: std::io::Error,
    },
}

/// What to do about a state directory that cannot be used.
fn remedy(error: &std::io::Error) -> &'static str {
    if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
        "free space or files there, or give another one with [worker] state_dir"
    } else if error.kind() == ErrorKind::ReadOnlyFilesystem {
        "it is mounted read-only: look at that disk, or give another one with [worker] state_dir"
    } else {
        "give a directory that this user may write, with [worker] state_dir"
    }
}

/// The host's name.
fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The configured id, or one made of the host's name.
fn worker_id(configured: &str, host: &str) -> Result<WorkerId, InstanceError> {
    if configured.is_empty() {
        let name: String = host.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '-' }).take(64).collect();
        return WorkerId::new(name.trim_matches('-')).map_err(InstanceError::Id);
    }
    WorkerId::new(configured).map_err(InstanceError::Id)
}

impl Instance {
    /// Names this process and makes its directory.
    ///
    /// # Errors
    /// When the id is not valid or the directory cannot be used.
    pub fn create(config: &config::Worker) -> Result<Self, InstanceError> {
        let host = host_name();
        let worker_id = worker_id(&config.id, &host)?;
        let state_dir = config.state_dir.clone();
        std::fs::create_dir_all(&state_dir)
            .and_then(|()| make_passable(&state_dir))
            .map_err(|error| InstanceError::Dir { path: state_dir.clone(), error })?;
        // Tasks see it under this name only, whatever links lead here.
        let state_dir = state_dir.canonicalize().map_err(|error| InstanceError::Dir { path: state_dir.clone(), error })?;
        loop {
            let instance = uuid::Uuid::now_v7().simple().to_string();
            let dir = state_dir.join(&instance);
            match make_locked(&dir) {
                Ok(lock) => {
                    let secrets = SecretStore::new(&config.secrets_dir, &instance);
                    let info = WorkerInfo { worker_id, instance, host, version: env!("CARGO_PKG_VERSION").to_owned() };
                    return Ok(Self { info, secrets, state_dir, dir, _lock: lock, leavings: Arc::default() });
                }
                // Between its making and its lock another worker took it for dead, and buried it.
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotFound) => {}
                Err(error) => {
                    // A disk that is full at every start must not fill with beginnings.
                    let _ = std::fs::remove_dir_all(&dir);
                    return Err(InstanceError::Dir { path: dir, error });
                }
            }
        }
    }

    /// This instance's directory.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.dir.clone()
    }

    /// Parent of work directories.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.dir.join("work")
    }

    /// Parent of spools.
    #[must_use]
    pub fn spool(&self) -> PathBuf {
        self.dir.join("spool")
    }

    /// Keeps a terminal event until it is stored.
    ///
    /// # Errors
    /// When it cannot be written: the append is then made without this safety.
    pub fn keep(&self, name: &str, event: &SpooledEvent) -> std::io::Result<Kept> {
        let path = self.dir.join("commit").join(name);
        let partial = path.with_extension("partial");
        let written = std::fs::write(&partial, serde_json::to_vec(event)?).and_then(|()| std::fs::rename(&partial, &path));
        if let Err(error) = written {
            // What a full disk cut short is no event, and must not be taken for one that waits.
            let _ = std::fs::remove_file(&partial);
            return Err(error);
        }
        Ok(Kept { path })
    }

    /// Finishes and removes what dead instances of this state directory left, and the secrets of all dead instances.
    pub async fn bury_the_dead(&self, bus: &Bus) {
        for dir in self.secrets.places().iter().filter_map(|place| std::fs::read_dir(place).ok()).flatten().flatten() {
            if let Some(_lock) = dead(&dir.path())
                && let Err(error) = remove_tree(&dir.path())
            {
                tracing::warn!(error = %causes(&error), path = %dir.path().display(), "cannot remove the secrets of a dead instance");
            }
        }
        let Ok(entries) = std::fs::read_dir(&self.state_dir) else { return };
        for dir in entries.flatten().map(|entry| entry.path()).filter(|path| *path != self.dir && path.is_dir()) {
            // Held until the directory is gone, so that two workers do not bury at one time.
            let Some(_lock) = dead(&dir) else { continue };
            replay(bus, &dir.join("commit")).await;
            let tree = dir.clone();
            let removal = tokio::task::spawn_blocking(move || remove_tree(&tree));
            match removal.await.unwrap_or_else(|error| Err(error.into())) {
                Ok(()) => tracing::info!(path = %dir.display(), "removed what a dead instance left"),
                Err(error) => tracing::warn!(error = %causes(&error), path = %dir.display(), "cannot remove what a dead instance left"),
            }
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let unsettled = std::fs::read_dir(self.dir.join("commit")).is_ok_and(|mut entries| entries.next().is_some());
        if unsettled {
            tracing::warn!(path = %self.dir.display(), "terminal events are left for the next instance to send");
            return;
        }
        crash::point(Point::InstanceRemoval);
        if let Err(error) = remove_tree(&self.dir) {
            tracing::warn!(error = %causes(&error), path = %self.dir.display(), "cannot remove the instance's directory");
        }
    }
}

/// Root's tasks are users of their own: they must get through to their directories. Nobody need read its names.
fn make_passable(state_dir: &Path) -> std::io::Result<()> {
    let mode = std::fs::metadata(state_dir)?.permissions().mode();
    if mode & 0o011 == 0o011 || !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    std::fs::set_permissions(state_dir, Permissions::from_mode(mode | 0o011))
}

/// Makes an instance's directory and locks it.
fn make_locked(dir: &Path) -> std::io::Result<File> {
    std::fs::create_dir(dir)?;
    let lock = File::open(dir)?;
    lock.try_lock()?;
    // Tasks run as users of their own and must get through to their directories, and see nothing else on the way.
    for (part, mode) in [("work", 0o711), ("spool", 0o700), ("commit", 0o700)] {
        std::fs::create_dir(dir.join(part))?;
        std::fs::set_permissions(dir.join(part), Permissions::from_mode(mode))?;
    }
    std::fs::set_permissions(dir, Permissions::from_mode(0o711))?;
    Ok(lock)
}

/// The lock of a dead instance's directory; none for a living one, and for what is no instance.
fn dead(dir: &Path) -> Option<File> {
    let name = dir.file_name()?.to_str()?;
    if name.len() != 32 || !name.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let lock = File::open(dir).ok()?;
    match lock.try_lock() {
        Ok(()) => Some(lock),
        Err(TryLockError::WouldBlock) => None,
        Err(TryLockError::Error(error)) => {
            tracing::warn!(error = %causes(&error), path = %dir.display(), "cannot look at an instance's lock");
            None
        }
    }
}

/// Sends the terminal events that a dead instance had finished: the append decides whether they still count.
async fn replay(bus: &Bus, dir: &Path) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for path in entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "json")) {
        let Some(event) = std::fs::read(&path).ok().and_then(|text| serde_json::from_slice::<SpooledEvent>(&text).ok()) else {
            tracing::warn!(path = %path.display(), "a spooled event cannot be read");
            continue;
        };
        crash::point(Point::ReplayRead);
        match event.replay(bus).await {
            Ok(Appended::Stored(_)) => {
                crash::point(Point::ReplayStored);
                tracing::info!(event = event.event.id, "finished what a dead instance had done");
            }
            Ok(Appended::Fenced) => tracing::info!(event = event.event.id, "another worker has gone on with it"),
            Err(error) => tracing::warn!(error = %causes(&error), event = event.event.id, "cannot send a spooled event"),
        }
    }
}

/// A terminal event on disk. It stays there until [`Kept::settled`]: a worker that has to go before it knows leaves it to
/// the next instance.
#[derive(Debug)]
pub struct Kept {
    path: PathBuf,
}

impl Kept {
    /// The event's fate is known.
    pub fn settled(self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(error = %causes(&error), path = %self.path.display(), "cannot remove a spooled event");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_name_becomes_a_worker_id() {
        assert_eq!(worker_id("", "node-7.example.org").unwrap().as_str(), "node-7-example-org");
        assert_eq!(worker_id("w_1", "x").unwrap().as_str(), "w_1");
        assert!(worker_id("a b", "x").unwrap_err().to_string().contains("worker.id"));
    }

    #[test]
    fn an_event_that_cannot_be_kept_leaves_no_half_of_it() {
        let state = tempfile::tempdir().unwrap();
        let mut config = config::load(None, []).unwrap().worker;
        config.state_dir = state.path().to_owned();
        let instance = Instance::create(&config).unwrap();
        let encoded = serde_json::json!({
            "subject": "s", "kind": "task_completed", "id": "i", "nonce": "n", "headers": [], "body": "", "sha256": "" });
        let event = serde_json::json!({"tenant": "acme", "task_id": "t", "expected": 1, "event": encoded});
        let event: SpooledEvent = serde_json::from_value(event).unwrap();
        instance.keep("t.json", &event).unwrap().settled();
        let commit = instance.dir.join("commit");
        std::fs::create_dir(commit.join("t.json")).unwrap();
        instance.keep("t.json", &event).unwrap_err();
        assert_eq!(std::fs::read_dir(&commit).unwrap().count(), 1, "only what was in the way");
        std::fs::remove_dir(commit.join("t.json")).unwrap();
        drop(instance);
        assert_eq!(std::fs::read_dir(state.path()).unwrap().count(), 0, "nothing waits for a next life");
    }

    #[test]
    fn only_the_dead_are_found() {
        let state = tempfile::tempdir().unwrap();
        let mut config = config::load(None, []).unwrap().worker;
        config.state_dir = state.path().to_owned();
        let living = Instance::create(&config).unwrap();
        assert!(dead(&living.dir).is_none());
        let orphan = state.path().join(uuid::Uuid::now_v7().simple().to_string());
        std::fs::create_dir(&orphan).unwrap();
        assert!(dead(&orphan).is_some(), "it died before it had anything, and can be told for dead");
        let stranger = state.path().join("lost+found");
        std::fs::create_dir(&stranger).unwrap();
        assert!(dead(&stranger).is_none(), "what is no instance is not ours to remove");
        std::fs::remove_dir(&stranger).unwrap();
        drop(living);
        assert_eq!(std::fs::read_dir(state.path()).unwrap().count(), 1, "a living one removes its own directory at its end");
    }
}
