//! Whether the worker that made something still lives.

use std::collections::HashMap;
use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use crate::execute::docker::labels;

/// A worker of another machine that shares the engine removes its own long before that.
const LONG: Duration = Duration::from_secs(5 * 60);

/// What is known of an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It holds its lock.
    Living,
    /// Its lock is free, or its directory is gone from where it must be.
    Dead,
    /// Made before this boot, and then its owner is dead; or on another machine, of which nothing is known here.
    DeadIfIdle,
    /// It sees other directories than this process, or the labels say too little.
    Unknown,
}

/// What this process knows of where it is.
#[derive(Debug, Clone)]
pub(super) struct Here {
    boot_id: Option<String>,
}

impl Here {
    pub(super) fn look() -> Self {
        Self { boot_id: labels::boot_id() }
    }

    /// Of the owner of something with these labels.
    pub(super) fn fate_of(&self, labels: &HashMap<String, String>) -> Fate {
        let (Some(here), Some(there)) = (&self.boot_id, labels.get(labels::BOOT_ID)) else { return Fate::Unknown };
        if here != there {
            return Fate::DeadIfIdle;
        }
        let dir = labels.get(labels::INSTANCE_DIR).map(Path::new).filter(|dir| dir.is_absolute());
        // Only what is named after its instance can be its directory.
        let dir = dir.filter(|dir| dir.file_name().and_then(|name| name.to_str()) == labels.get(labels::INSTANCE).map(String::as_str));
        let Some(dir) = dir else { return Fate::Unknown };
        match File::open(dir) {
            Ok(found) => match found.try_lock() {
                Ok(()) => Fate::Dead,
                Err(TryLockError::WouldBlock) => Fate::Living,
                Err(TryLockError::Error(_)) => Fate::Unknown,
            },
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let seen = dir.parent().and_then(labels::directory_id);
                // A worker removes its directory at its end, others that of a dead one; a worker in a container has another one.
                if seen.is_some() && seen.as_ref() == labels.get(labels::STATE_DIR_ID) { Fate::Dead } else { Fate::Unknown }
            }
            Err(_) => Fate::Unknown,
        }
    }
}

/// Whether an engine's time stamp lies far back. What cannot be read does not.
pub(super) fn is_long_ago(stamp: Option<&str>) -> bool {
    let Some(then) = stamp.and_then(|stamp| stamp.parse::<jiff::Timestamp>().ok()) else { return false };
    let ago = jiff::Timestamp::now().duration_since(then);
    Duration::try_from(ago).is_ok_and(|ago| ago >= LONG)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here() -> Here {
        Here { boot_id: Some("this".to_owned()) }
    }

    fn labelled(boot: &str, dir: &Path, state_dir_id: Option<String>) -> HashMap<String, String> {
        let instance = dir.file_name().unwrap().to_str().unwrap().to_owned();
        let pairs = [
            (labels::BOOT_ID, Some(boot.to_owned())),
            (labels::INSTANCE, Some(instance)),
            (labels::INSTANCE_DIR, Some(dir.display().to_string())),
            (labels::STATE_DIR_ID, state_dir_id),
        ];
        pairs.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
    }

    #[test]
    fn the_lock_decides_and_doubt_spares() {
        let state = tempfile::tempdir().unwrap();
        let id = labels::directory_id(state.path());
        let living = state.path().join("living");
        let dead = state.path().join("dead");
        let gone = state.path().join("gone");
        for dir in [&living, &dead] {
            std::fs::create_dir(dir).unwrap();
        }
        let lock = File::open(&living).unwrap();
        lock.try_lock().unwrap();
        let elsewhere = Path::new("/no/such/state/gone");
        let mut misnamed = labelled("this", &dead, id.clone());
        misnamed.insert(labels::INSTANCE.to_owned(), "living".to_owned());
        let mut relative = labelled("this", &dead, id.clone());
        relative.insert(labels::INSTANCE_DIR.to_owned(), "dead".to_owned());
        for (labels, expected, why) in [
            (labelled("this", &living, id.clone()), Fate::Living, "it holds its lock"),
            (labelled("this", &dead, id.clone()), Fate::Dead, "its lock is free"),
            (labelled("this", &dead, None), Fate::Dead, "likewise"),
            (labelled("this", &gone, id.clone()), Fate::Dead, "buried: others are seen where it was"),
            (labelled("this", &gone, Some("1:2".into())), Fate::Unknown, "a directory of the same name, not the same one"),
            (labelled("this", &gone, None), Fate::Unknown, "nothing says that it would be seen here"),
            (labelled("this", elsewhere, id.clone()), Fate::Unknown, "a worker in a container of its own"),
            (labelled("before", &living, id.clone()), Fate::DeadIfIdle, "another boot, or another machine"),
            (misnamed, Fate::Unknown, "that directory is not its own"),
            (relative, Fate::Unknown, "no path"),
            (HashMap::new(), Fate::Unknown, "no labels"),
        ] {
            assert_eq!(here().fate_of(&labels), expected, "{why}: {labels:?}");
        }
        assert_eq!(Here { boot_id: None }.fate_of(&labelled("this", &dead, id)), Fate::Unknown, "who does not know where it is spares all");
        drop(lock);
    }

    #[test]
    fn only_what_lies_far_back_is_long_ago() {
        let before = |seconds: i64| (jiff::Timestamp::now() - jiff::SignedDuration::from_secs(seconds)).to_string();
        for (stamp, long) in [
            (Some("0001-01-01T00:00:00Z".to_owned()), true),
            (Some("2020-05-01T12:00:00.123456789Z".to_owned()), true),
            (Some(before(301)), true),
            (Some(before(200)), false),
            (Some(before(-200)), false),
            (Some("yesterday".to_owned()), false),
            (None, false),
        ] {
            assert_eq!(is_long_ago(stamp.as_deref()), long, "{stamp:?}");
        }
    }
}
