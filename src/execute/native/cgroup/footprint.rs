//! What was there before a supervisor that only tries came, so that it leaves no more behind than it found.
//!
//! A worker's supervisor removes its own cgroups. What stays is what the next one needs too: the directory that an operator
//! named, and in a delegated cgroup the leaf that its processes were moved into. Whoever only looked takes that back.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::layout::{mounts, own_directory};
use super::site::LEAF;
use super::{files, remove_parents};
use crate::config;

/// What was there.
#[derive(Debug)]
pub struct Footprint {
    mount: PathBuf,
    named: BTreeSet<PathBuf>,
    /// Our own cgroup2 directory, and its controllers for children, when it had no leaf.
    leafless: Option<(PathBuf, String)>,
}

impl Footprint {
    /// Looks, before the supervisor is started.
    #[must_use]
    pub fn before(config: &config::Cgroup) -> Self {
        let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
        let found = mounts(&read(Path::new("/proc/self/mountinfo")), &config.mount, |point| read(&point.join("cgroup.controllers")));
        let own = read(Path::new("/proc/self/cgroup"));
        let parents = found.iter().map(|mount| mount.point.join(config.parent.trim_matches('/')));
        let named = parents.flat_map(|parent| parent.ancestors().map(Path::to_path_buf).collect::<Vec<_>>()).filter(|dir| dir.exists());
        let own = found.iter().find(|mount| mount.v2).map(|mount| own_directory(&own, mount));
        let leafless = own.filter(|own| own.exists() && !own.join(LEAF).exists());
        let leafless = leafless.map(|own| (own.clone(), read(&own.join("cgroup.subtree_control"))));
        Self { mount: config.mount.clone(), named: named.collect(), leafless }
    }

    /// Takes away what came with the supervisor whose `directories` these were; it must be gone. What others use by now stays.
    pub fn restore(&self, directories: &[PathBuf]) {
        for parent in directories.iter().filter_map(|dir| dir.parent()).filter(|parent| !self.named.contains(*parent)) {
            remove_parents(&[parent.join("gone")]);
            for above in parent.ancestors().skip(1).take_while(|dir| dir.starts_with(&self.mount) && !self.named.contains(*dir)) {
                if std::fs::remove_dir(above).is_err() {
                    break;
                }
            }
        }
        if let Some((own, controllers)) = &self.leafless {
            let _ = return_from_leaf(own, controllers);
        }
    }
}

/// Moves the processes of `own`'s leaf back, as they were before they had to make room for children with controllers.
fn return_from_leaf(own: &Path, controllers: &str) -> std::io::Result<()> {
    let Ok(leaf) = files::open_dir(&own.join(LEAF)) else { return Ok(()) };
    let dir = files::open_dir(own)?;
    let now = files::read(&dir, "cgroup.subtree_control")?;
    let added = now.split_whitespace().filter(|c| !controllers.split_whitespace().any(|had| had == *c));
    let added: Vec<String> = added.map(|c| format!("-{c}")).collect();
    if !added.is_empty() {
        // Refused where another worker has come to use them: then everything stays as that one needs it.
        files::write(&dir, "cgroup.subtree_control", &added.join(" "))?;
    }
    for pid in files::pids(&leaf, "cgroup.procs")? {
        let _ = files::write(&dir, "cgroup.procs", &pid.to_string());
    }
    drop(leaf);
    std::fs::remove_dir(own.join(LEAF))
}
