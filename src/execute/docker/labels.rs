//! The labels of all that is made at an engine, by which it is found again when its owner is gone.
//!
//! An engine may have several workers, of one machine or, with a forwarded socket, of more; some may sit in containers of their
//! own and see other directories. So the labels say not only whose a thing is, but how others tell whether its owner lives: the
//! owner holds a lock on its directory for life, which means something to whoever sees that very directory.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::task::event::WorkerInfo;

/// One per worker process.
pub const INSTANCE: &str = "windlass.instance";
/// The instance's directory, locked for the worker's life.
pub const INSTANCE_DIR: &str = "windlass.instance_dir";
/// Device and inode of the directory that [`INSTANCE_DIR`] is in: who finds the same there sees the same directories.
pub const STATE_DIR_ID: &str = "windlass.state_dir_id";
/// The worker's stable name.
pub const WORKER_ID: &str = "windlass.worker_id";
/// Of the machine's kernel, another one after each boot.
pub const BOOT_ID: &str = "windlass.boot_id";
/// What it is for, see [`Role`].
pub const ROLE: &str = "windlass.role";
/// The task's tenant.
pub const TENANT: &str = "windlass.tenant";
/// The task.
pub const TASK: &str = "windlass.task";
/// Its attempt, from 1.
pub const ATTEMPT: &str = "windlass.attempt";

/// What something is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Container of a task.
    Task,
    /// Container of a service that a task asked for.
    Service,
    /// Network that a task shares with its services.
    Network,
}

impl Role {
    /// As the label has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Task => "task",
            Self::Service => "service",
            Self::Network => "network",
        }
    }
}

/// Whose attempt something is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work<'a> {
    /// Tenant.
    pub tenant: &'a str,
    /// Task.
    pub task: &'a str,
    /// From 1.
    pub attempt: u32,
}

/// A worker, as its labels tell of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    instance: String,
    worker_id: String,
    dir: PathBuf,
    state_dir_id: Option<String>,
    boot_id: Option<String>,
}

impl Owner {
    /// The worker whose locked directory is `dir`, absolute.
    #[must_use]
    pub fn new(info: &WorkerInfo, dir: &Path) -> Self {
        Self {
            instance: info.instance.clone(),
            worker_id: info.worker_id.to_string(),
            dir: dir.to_path_buf(),
            state_dir_id: dir.parent().and_then(directory_id),
            boot_id: boot_id(),
        }
    }

    /// Which instance it is.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// All labels of a thing that is made for an attempt.
    #[must_use]
    pub fn labels(&self, role: Role, work: Work<'_>) -> HashMap<String, String> {
        let known = [(STATE_DIR_ID, self.state_dir_id.clone()), (BOOT_ID, self.boot_id.clone())];
        let always = [
            (INSTANCE, self.instance.clone()),
            (INSTANCE_DIR, self.dir.display().to_string()),
            (WORKER_ID, self.worker_id.clone()),
            (ROLE, role.name().to_owned()),
            (TENANT, work.tenant.to_owned()),
            (TASK, work.task.to_owned()),
            (ATTEMPT, work.attempt.to_string()),
        ];
        let known = known.into_iter().filter_map(|(key, value)| Some((key, value?)));
        always.into_iter().chain(known).map(|(key, value)| (key.to_owned(), value)).collect()
    }

    /// A name that nothing else has. For people: programs use the id that the engine answers with.
    #[must_use]
    pub fn fresh_name(&self) -> String {
        let fresh = uuid::Uuid::now_v7().simple().to_string();
        // A version 7 id begins with the time and ends with what is random.
        let (instance, own) = (self.instance.get(..12).unwrap_or(&self.instance), &fresh[fresh.len() - 12..]);
        format!("windlass-{instance}-{own}")
    }
}

/// What tells this boot of this kernel from all others.
#[must_use]
pub fn boot_id() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned()).filter(|id| !id.is_empty())
}

/// What tells a directory from all others of this boot, under whatever name it is seen.
#[must_use]
pub fn directory_id(path: &Path) -> Option<String> {
    let meta = std::fs::metadata(path).ok()?;
    Some(format!("{}:{}", meta.dev(), meta.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::WorkerId;

    #[test]
    fn a_thing_says_whose_it_is() {
        let state = tempfile::tempdir().unwrap();
        let instance = "0199f0c2a4b07cc1a1b2c3d4e5f60718".to_owned();
        let info = WorkerInfo { worker_id: WorkerId::new("w1").unwrap(), instance, host: "h".into(), version: "1".into() };
        let owner = Owner::new(&info, &state.path().join(&info.instance));
        let labels = owner.labels(Role::Service, Work { tenant: "acme", task: "t-1", attempt: 2 });
        let of = |key: &str| labels.get(key).map(String::as_str);
        assert_eq!((of(INSTANCE), of(WORKER_ID), of(ROLE)), (Some(info.instance.as_str()), Some("w1"), Some("service")));
        assert_eq!((of(TENANT), of(TASK), of(ATTEMPT)), (Some("acme"), Some("t-1"), Some("2")));
        assert_eq!(of(STATE_DIR_ID), directory_id(state.path()).as_deref());
        assert_eq!(of(BOOT_ID), boot_id().as_deref());
        let (one, two) = (owner.fresh_name(), owner.fresh_name());
        assert_ne!(one, two);
        assert!(one.starts_with("windlass-0199f0c2a4b0-") && one.len() == 34, "{one}");
    }
}
