//! What is there beside idle workers: nothing, if all that was ever begun was also cleaned up.

use std::collections::BTreeSet;
use std::path::Path;

use super::{Fleet, leftovers};

impl Fleet {
    /// Everything of this fleet on the machine that is not a living worker, its supervisor, or an empty directory of theirs.
    pub fn litter(&self) -> Vec<String> {
        let living: Vec<_> = self.workers().into_iter().filter(|w| Path::new(&format!("/proc/{}/exe", w.pid)).exists()).collect();
        let supervisors: Vec<(u32, String)> = living.iter().flat_map(|w| w.children()).map(|pid| (pid, command(pid))).collect();
        let known: BTreeSet<u32> = living.iter().map(|w| w.pid).chain(supervisors.iter().map(|(pid, _)| *pid)).collect();
        let instances: BTreeSet<String> = supervisors.iter().filter_map(|(_, command)| instance(command)).collect();
        let mut found: Vec<String> = self
            .processes()
            .into_iter()
            .filter(|(pid, _)| !known.contains(pid))
            .map(|(pid, command)| format!("{pid}: {command}"))
            .collect();
        // Of a living instance there is one directory in each hierarchy, and in it one for each task: none.
        let cgroups = leftovers::cgroups(&self.cgroup_parent()).into_iter();
        found.extend(cgroups.filter(|path| !named(path, &instances)).map(|path| path.display().to_string()));
        for worker in self.workers() {
            for dir in leftovers::instances(worker.state_dir()) {
                if named(&dir, &instances) {
                    let parts = leftovers::entries(&dir).into_iter();
                    found.extend(parts.flat_map(|part| leftovers::entries(&part)).map(|path| path.display().to_string()));
                } else {
                    found.push(dir.display().to_string());
                }
            }
        }
        found.extend(self.strays());
        found.extend(self.containers_left());
        found
    }
}

fn named(path: &Path, names: &BTreeSet<String>) -> bool {
    path.file_name().is_some_and(|name| names.contains(&*name.to_string_lossy()))
}

fn command(pid: u32) -> String {
    String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()).into_owned()
}

/// The instance that a supervisor's command line names.
fn instance(command: &str) -> Option<String> {
    let json = command.split('\0').nth(2)?;
    serde_json::from_str::<serde_json::Value>(json).ok()?["instance"].as_str().map(str::to_owned)
}
