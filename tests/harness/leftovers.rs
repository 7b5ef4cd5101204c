//! What must not be there when a test is over.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Processes whose environment names `needle`, with their command lines.
pub fn processes(needle: &str) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("proc").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let environ = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        if contains(&environ, needle.as_bytes()) {
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            found.push((pid, String::from_utf8_lossy(&command).replace('\0', " ")));
        }
    }
    found
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|w| w == needle)
}

/// Processes whose command line names `needle`: supervisors, whose environment is empty.
pub fn named(needle: &str) -> Vec<(u32, String)> {
    let entries = std::fs::read_dir("/proc").expect("proc").flatten();
    let pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    let commands = pids.map(|pid| (pid, std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()));
    let found = commands.filter(|(_, command)| contains(command, needle.as_bytes()));
    found.map(|(pid, command)| (pid, String::from_utf8_lossy(&command).replace('\0', " "))).collect()
}

/// Mounts, of this process's namespace or of any other's that it can see, whose line names `needle`.
pub fn mounts(needle: &str) -> Vec<String> {
    let mut seen = std::collections::BTreeSet::new();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("proc").flatten() {
        let Ok(namespace) = std::fs::read_link(entry.path().join("ns/mnt")) else { continue };
        if !seen.insert(namespace) {
            continue;
        }
        let info = std::fs::read_to_string(entry.path().join("mountinfo")).unwrap_or_default();
        found.extend(info.lines().filter(|line| line.contains(needle)).map(str::to_owned));
    }
    found
}

/// Entries of the places for temporary files whose name contains one of `needles`.
pub fn temporary(needles: &[String]) -> Vec<PathBuf> {
    let places = ["/tmp", "/var/tmp", "/dev/shm", "/run"].map(Path::new);
    let entries = places.into_iter().filter_map(|dir| std::fs::read_dir(dir).ok()).flatten().flatten().map(|e| e.path());
    entries.filter(|path| path.file_name().is_some_and(|name| needles.iter().any(|n| name.to_string_lossy().contains(n)))).collect()
}

/// Where a cgroup of the tests' goes, below each hierarchy: at the top, or in the place that `WINDLASS_TEST_CGROUP` names
/// (for a user to whom only that was delegated).
pub fn cgroup_place(name: &str) -> String {
    match std::env::var("WINDLASS_TEST_CGROUP") {
        Ok(place) if !place.is_empty() => format!("{place}/{name}"),
        _ => name.to_owned(),
    }
}

/// Directories of that name right below each mounted cgroup hierarchy.
pub fn cgroup_parents(name: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = std::fs::read_dir(root).into_iter().flatten().flatten().map(|e| e.path());
    std::iter::once(root.to_owned()).chain(hierarchies).map(|h| h.join(name)).filter(|p| p.is_dir()).collect()
}

/// Cgroups below the parent directory `name`, of every hierarchy.
pub fn cgroups(name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = cgroup_parents(name);
    while let Some(dir) = todo.pop() {
        for path in std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).filter(|p| p.is_dir()) {
            found.push(path.clone());
            todo.push(path);
        }
    }
    found
}

/// Processes in cgroups below the parent directory `name`, of every hierarchy: those of containers name nothing of ours.
pub fn in_cgroups(name: &str) -> Vec<(u32, String)> {
    let dirs = cgroup_parents(name).into_iter().chain(cgroups(name));
    let members = dirs.map(|dir| std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default());
    let pids = members.flat_map(|text| text.lines().filter_map(|line| line.parse::<u32>().ok()).collect::<Vec<_>>());
    let mut found: Vec<_> = pids.map(|pid| (pid, std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default())).collect();
    found.sort();
    found.dedup();
    found.into_iter().map(|(pid, command)| (pid, String::from_utf8_lossy(&command).replace('\0', " "))).collect()
}

/// What is in a state directory, but for what a worker's machine knows of its engine's images, which outlives workers.
pub fn instances(state_dir: &Path) -> Vec<PathBuf> {
    entries(state_dir).into_iter().filter(|path| !path.ends_with("images")).collect()
}

/// What is in a directory; nothing, if there is none.
pub fn entries(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect()
}

/// Waits until `look` finds nothing; what it still found at the end otherwise.
pub async fn gone<T>(within: Duration, mut look: impl FnMut() -> Vec<T>) -> Vec<T> {
    let deadline = Instant::now() + within * super::slowness();
    loop {
        let left = look();
        if left.is_empty() || Instant::now() >= deadline {
            return left;
        }
        // The kernel has no event for "gone"; this is the period of a look, not a guess of how long it takes.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
