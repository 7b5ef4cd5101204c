//! Secrets as files: in memory, readable by the task alone, gone with the attempt.
//!
//! ```text
//! <secrets_dir>/            /run/windlass, or what is configured
//!   <instance>/      0711   locked by the worker that lives; the next one removes it when the lock is free
//!     <attempt>/     0711   gone with the attempt; the task cannot write here
//!       DB_PASSWORD  0400   the task's user's; 0440 where its group may write to the work directory
//! ```
//! On a file system in memory nothing is left on a disk (swap excepted), and a crash of the machine clears it.

use std::fs::{DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{Access, AtFlags};
use secrecy::ExposeSecret as _;

use super::PrepareError;
use super::secrets::Value;
use crate::task::secret::SecretAs;
use crate::telemetry::causes;

/// `f_type` of tmpfs and ramfs.
const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];

/// Traversed by tasks' users, listed by nobody but the worker.
const DIRECTORY: u32 = 0o711;

/// Where one worker keeps them. Made with the first.
#[derive(Debug)]
pub struct SecretStore {
    /// As configured.
    configured: String,
    instance: String,
    /// This worker's directory and its lock.
    own: Mutex<Option<(PathBuf, File)>>,
}

/// The files of one attempt; removed when dropped.
#[derive(Debug)]
pub struct SecretFiles {
    /// Where they are; none when there are none.
    pub dir: Option<PathBuf>,
    /// Variables with their paths.
    pub variables: Vec<(String, String)>,
}

impl SecretStore {
    /// Of the instance of that name; `configured` is empty or a directory.
    #[must_use]
    pub fn new(configured: &str, instance: &str) -> Self {
        Self { configured: configured.to_owned(), instance: instance.to_owned(), own: Mutex::new(None) }
    }

    /// Writes those that are to be files, for those who may read `workdir`.
    ///
    /// # Errors
    /// When there is no place in memory, or it is full.
    pub fn write(&self, attempt: &str, values: &[Value], workdir: &Path) -> Result<SecretFiles, PrepareError> {
        let mut files = SecretFiles { dir: None, variables: Vec::new() };
        let values: Vec<&Value> = values.iter().filter(|value| value.secret.delivery == SecretAs::File).collect();
        if values.is_empty() {
            return Ok(files);
        }
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error| PrepareError { path, error }
        };
        let owner = std::fs::metadata(workdir).map_err(failed(workdir))?;
        let dir = self.own_dir()?.join(attempt);
        DirBuilder::new().mode(DIRECTORY).create(&dir).map_err(failed(&dir))?;
        files.dir = Some(dir.clone());
        for value in values {
            let path = dir.join(&value.secret.name);
            write_one(&path, value.value.expose_secret(), &owner).map_err(failed(&path))?;
            files.variables.push((value.secret.variable(), path.to_string_lossy().into_owned()));
        }
        Ok(files)
    }

    fn own_dir(&self) -> Result<PathBuf, PrepareError> {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((dir, _)) = &*own {
            return Ok(dir.clone());
        }
        let dir = place(&self.configured)?.join(&self.instance);
        let lock = loop {
            match make_locked(&dir) {
                Ok(lock) => break lock,
                // Between its making and its lock another worker took it for dead, and removed it.
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotFound) => {}
                Err(error) => return Err(PrepareError { path: dir, error }),
            }
        };
        *own = Some((dir.clone(), lock));
        Ok(dir)
    }

    /// Directories that workers may have left their own in.
    #[must_use]
    pub fn places(&self) -> Vec<PathBuf> {
        candidates(&self.configured)
    }
}

/// The directory of all workers of this machine, made if it is not there; `configured` is empty or a directory.
///
/// # Errors
/// When there is no place in memory that is ours.
pub fn place(configured: &str) -> Result<PathBuf, PrepareError> {
    let mut last = None;
    for dir in candidates(configured) {
        let made = DirBuilder::new().recursive(true).mode(DIRECTORY).create(&dir).and_then(|()| fit(&dir));
        match made {
            Ok(()) => return Ok(dir),
            Err(error) => last = Some(PrepareError { path: dir, error }),
        }
    }
    Err(last.unwrap_or_else(|| PrepareError { path: configured.into(), error: io::ErrorKind::NotFound.into() }))
}

/// The directory that [`place`] would give, which may not be there yet; nothing is made.
///
/// # Errors
/// As [`place`].
pub fn look(configured: &str) -> Result<PathBuf, PrepareError> {
    let mut last = None;
    for dir in candidates(configured) {
        match if dir.exists() { fit(&dir) } else { could_hold(&dir) } {
            Ok(()) => return Ok(dir),
            Err(error) => last = Some(PrepareError { path: dir, error }),
        }
    }
    Err(last.unwrap_or_else(|| PrepareError { path: configured.into(), error: io::ErrorKind::NotFound.into() }))
}

/// Whether a directory that is not there could be made, in memory.
fn could_hold(dir: &Path) -> io::Result<()> {
    let above = dir.ancestors().find(|above| above.exists()).unwrap_or(Path::new("/"));
    in_memory(above)?;
    Ok(rustix::fs::accessat(rustix::fs::CWD, above, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)?)
}

fn candidates(configured: &str) -> Vec<PathBuf> {
    if configured.is_empty() {
        let user = rustix::process::geteuid().as_raw();
        vec!["/run/windlass".into(), format!("/dev/shm/windlass-{user}").into()]
    } else {
        vec![configured.into()]
    }
}

impl Drop for SecretStore {
    fn drop(&mut self) {
        let own = self.own.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((dir, _lock)) = own {
            remove(&dir);
        }
    }
}

fn make_locked(dir: &Path) -> io::Result<File> {
    DirBuilder::new().mode(DIRECTORY).create(dir)?;
    let lock = File::open(dir)?;
    lock.try_lock()?;
    Ok(lock)
}

/// Ours, in memory, and nobody else's to write.
fn fit(dir: &Path) -> io::Result<()> {
    in_memory(dir)?;
    let metadata = std::fs::symlink_metadata(dir)?;
    if !metadata.is_dir() || metadata.uid() != rustix::process::geteuid().as_raw() || metadata.mode() & 0o022 != 0 {
        return Err(io::Error::other("belongs to another user, or others may write there"));
    }
    Ok(())
}

fn in_memory(dir: &Path) -> io::Result<()> {
    let kind = rustix::fs::statfs(dir)?.f_type;
    if IN_MEMORY.contains(&(kind as i64)) {
        return Ok(());
    }
    Err(io::Error::other("is not in memory (tmpfs); name one that is with [worker] secrets_dir"))
}

fn write_one(path: &Path, value: &[u8], owner: &std::fs::Metadata) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o400).open(path)?;
    file.write_all(value)?;
    std::os::unix::fs::fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
    // After the change of owner: until then it would be another group's to read.
    let shared = owner.mode() & 0o020 != 0;
    file.set_permissions(std::fs::Permissions::from_mode(if shared { 0o440 } else { 0o400 }))
}

impl Drop for SecretFiles {
    fn drop(&mut self) {
        if let Some(dir) = &self.dir {
            remove(dir);
        }
    }
}

fn remove(dir: &Path) {
    if let Err(error) = super::remove_tree(dir)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(error = %causes(&error), path = %dir.display(), "cannot remove secrets");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Secret;

    fn value(name: &str, delivery: SecretAs) -> Value {
        let grant = String::from("env:ACME").try_into().unwrap();
        let secret = Secret { name: name.to_owned(), reference: "env:ACME".parse().unwrap(), grant, delivery };
        Value { secret, value: b"hunter2".to_vec().into() }
    }

    #[test]
    fn files_are_the_tasks_alone_and_go_with_the_attempt() {
        let memory = tempfile::tempdir_in("/dev/shm").unwrap();
        let store = SecretStore::new(memory.path().join("secrets").to_str().unwrap(), "0123");
        let none = store.write("acme.t.1", &[value("A", SecretAs::Env)], memory.path()).unwrap();
        assert!(none.variables.is_empty() && !memory.path().join("secrets").exists(), "nothing is made for nothing");
        let files = store.write("acme.t.1", &[value("A", SecretAs::Env), value("B", SecretAs::File)], memory.path()).unwrap();
        let path = memory.path().join("secrets/0123/acme.t.1/B");
        assert_eq!(files.variables, [("B_FILE".to_owned(), path.to_str().unwrap().to_owned())]);
        assert_eq!(std::fs::read(&path).unwrap(), b"hunter2");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o400);
        std::fs::set_permissions(memory.path(), std::fs::Permissions::from_mode(0o770)).unwrap();
        let shared = store.write("acme.t.2", &[value("B", SecretAs::File)], memory.path()).unwrap();
        let readable = std::fs::metadata(shared.dir.as_ref().unwrap().join("B")).unwrap().mode() & 0o7777;
        assert_eq!(readable, 0o440, "a container's user that is known by its group alone");
        drop((files, shared));
        assert!(!path.parent().unwrap().exists());
        drop(store);
        assert!(!memory.path().join("secrets/0123").exists());
    }

    #[test]
    fn a_disk_is_no_place_for_secrets() {
        let store = SecretStore::new("/proc", "0123");
        let error = store.write("acme.t.1", &[value("B", SecretAs::File)], Path::new("/")).unwrap_err();
        assert!(error.to_string().contains("is not in memory"), "{error}");
    }
}
