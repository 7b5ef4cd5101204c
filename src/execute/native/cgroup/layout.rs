//! Which cgroup file systems this machine has, and the directories of one worker instance in them.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::{Controller, Group, read, write};
use crate::config;

/// Longest wait for killed processes of a dead instance to be gone.
const PATIENCE: Duration = Duration::from_secs(5);

/// One hierarchy below which groups are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchy {
    /// `<mount>/[<controller>/]<parent>`
    pub(super) parent: PathBuf,
    /// Controllers that limit there.
    pub(super) controllers: Vec<Controller>,
    /// Whether it is cgroup2.
    pub(super) v2: bool,
}

/// The hierarchies of this machine, the tracking one first where there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    pub(super) hierarchies: Vec<Hierarchy>,
}

/// Why tasks cannot be limited here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot limit tasks: {why}; {mend}, or run with --allow-unlimited, which every event then says")]
pub struct LayoutError {
    why: String,
    mend: &'static str,
}

const GRANT: &str = "run as root, or under systemd with Delegate=cpu memory pids io";

fn unfit(why: impl Into<String>) -> LayoutError {
    LayoutError { why: why.into(), mend: GRANT }
}

/// A cgroup mount of `/proc/self/mountinfo`.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    point: PathBuf,
    v2: bool,
    options: Vec<String>,
}

fn mounts(mountinfo: &str, below: &Path) -> Vec<Mount> {
    mountinfo
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let point = PathBuf::from(left.split(' ').nth(4)?.replace("\\040", " "));
            let mut right = right.split(' ');
            let (kind, options) = (right.next()?, right.nth(1)?);
            let v2 = match kind {
                "cgroup2" => true,
                "cgroup" => false,
                _ => return None,
            };
            point.starts_with(below).then(|| Mount { point, v2, options: options.split(',').map(str::to_owned).collect() })
        })
        .collect()
}

/// The path of this process in the cgroup2 hierarchy.
fn own_v2(proc_cgroup: &str) -> Option<&str> {
    proc_cgroup.lines().find_map(|line| line.strip_prefix("0::/"))
}

impl Layout {
    /// Looks at the machine.
    ///
    /// # Errors
    /// When one of the required controllers cannot be had; says what to grant.
    pub fn detect(config: &config::Cgroup) -> Result<Self, LayoutError> {
        let mountinfo = read(Path::new("/proc/self/mountinfo")).map_err(|e| unfit(format!("/proc/self/mountinfo: {e}")))?;
        let own = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
        let mounts = mounts(&mountinfo, &config.mount);
        if mounts.is_empty() {
            return Err(unfit(format!("no cgroup file system is mounted below {}", config.mount.display())));
        }
        let mut hierarchies = Vec::new();
        for mount in &mounts {
            let parent = parent(config, mount, own_v2(&own).unwrap_or_default());
            let controllers = if mount.v2 { controllers_v2(mount) } else { controllers_v1(mount) };
            let hierarchy = Hierarchy { parent: mount.point.join(parent), controllers, v2: mount.v2 };
            match (mount.v2, hierarchy.controllers.is_empty()) {
                (true, _) => hierarchies.insert(0, hierarchy),
                (false, false) => hierarchies.push(hierarchy),
                (false, true) => {}
            }
        }
        let layout = Self { hierarchies };
        for required in Controller::REQUIRED {
            if !layout.has(required) {
                return Err(unfit(format!("the {} controller is not available below {}", required.name_v2(), config.mount.display())));
            }
        }
        Ok(layout)
    }

    pub(super) fn has(&self, controller: Controller) -> bool {
        self.hierarchies.iter().any(|h| h.controllers.contains(&controller))
    }

    /// One line for people.
    #[must_use]
    pub fn description(&self) -> String {
        let v2 = self.hierarchies.iter().find(|h| h.v2);
        match v2 {
            Some(h) if !h.controllers.is_empty() && self.hierarchies.len() == 1 => format!("cgroup v2 below {}", h.parent.display()),
            Some(h) => format!("cgroup v1 controllers, tracked by cgroup2 below {}", h.parent.display()),
            None => "cgroup v1".to_owned(),
        }
    }

    /// Makes and locks the directories of `instance`, after removing those of dead instances.
    ///
    /// # Errors
    /// When they cannot be made; says what to grant.
    pub fn open(&self, instance: &str) -> Result<Instance, LayoutError> {
        for hierarchy in &self.hierarchies {
            prepare(hierarchy)?;
        }
        self.sweep(instance);
        let mut dirs = Vec::new();
        for hierarchy in &self.hierarchies {
            let dir = hierarchy.parent.join(instance);
            std::fs::create_dir_all(&dir).map_err(|e| unfit(format!("cannot make {}: {e}", dir.display())))?;
            enable(hierarchy, &dir)?;
            dirs.push((hierarchy.clone(), dir));
        }
        let Some((_, first)) = dirs.first() else { return Err(unfit("no hierarchy")) };
        let lock = lock(first).map_err(|e| unfit(format!("cannot lock {}: {e}", first.display())))?;
        Ok(Instance { dirs, _lock: lock })
    }

    /// Kills and removes what dead instances left: those whose lock is free.
    pub fn sweep(&self, but: &str) {
        let Some(first) = self.hierarchies.first() else { return };
        let mut names: Vec<String> =
            self.hierarchies.iter().flat_map(|h| children(&h.parent)).filter(|n| n != but && is_instance(n)).collect();
        names.sort();
        names.dedup();
        for name in names {
            // The first hierarchy's directory is made first and removed last: without it the others are remnants.
            let _lock = match lock(&first.parent.join(&name)) {
                Ok(lock) => Some(lock),
                Err(Errno::NOENT) => None,
                Err(_) => continue,
            };
            self.remove_instance(&name);
        }
    }

    /// Kills everything of `instance` and removes its directories.
    pub fn remove_instance(&self, instance: &str) {
        let dirs: Vec<_> = self.hierarchies.iter().map(|h| (h.clone(), h.parent.join(instance))).collect();
        let mut tasks: Vec<String> = dirs.iter().flat_map(|(_, dir)| children(dir)).collect();
        tasks.sort();
        tasks.dedup();
        let until = Instant::now() + PATIENCE;
        for task in &tasks {
            let mut group = Group::existing(&dirs, task);
            group.kill();
            while !group.remove() && Instant::now() < until {
                group.kill();
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        for (_, dir) in dirs.iter().rev() {
            match std::fs::remove_dir(dir) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => eprintln_once(&format!("cannot remove {}: {error}", dir.display())),
            }
        }
    }
}

/// The supervisor has no log but standard error.
fn eprintln_once(line: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "windlass supervisor: {line}");
}

fn is_instance(name: &str) -> bool {
    name.len() == 32 && name.bytes().all(|b| b.is_ascii_hexdigit())
}

fn children(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return vec![] };
    entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).filter_map(|e| e.file_name().into_string().ok()).collect()
}

fn lock(dir: &Path) -> Result<OwnedFd, Errno> {
    let open = || File::open(dir).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO));
    let fd = OwnedFd::from(open()?);
    flock(fd.as_fd(), FlockOperation::NonBlockingLockExclusive)?;
    Ok(fd)
}

fn controllers_v1(mount: &Mount) -> Vec<Controller> {
    let all = [Controller::Cpu, Controller::Memory, Controller::Pids, Controller::Io];
    all.into_iter().filter(|c| mount.options.iter().any(|o| o == c.name_v1())).collect()
}

fn controllers_v2(mount: &Mount) -> Vec<Controller> {
    let listed = read(&mount.point.join("cgroup.controllers")).unwrap_or_default();
    let all = [Controller::Cpu, Controller::Memory, Controller::Pids, Controller::Io];
    all.into_iter().filter(|c| listed.split_whitespace().any(|l| l == c.name_v2())).collect()
}

/// Directory below the mount that holds instances.
fn parent(config: &config::Cgroup, mount: &Mount, own: &str) -> String {
    if !config.parent.is_empty() {
        return config.parent.trim_matches('/').to_owned();
    }
    let delegated = mount.v2 && !own.is_empty() && is_delegated(&mount.point.join(own));
    if mount.v2 && (delegated || !rustix::process::geteuid().is_root()) { own.to_owned() } else { "windlass".to_owned() }
}

/// systemd marks what it delegates.
fn is_delegated(dir: &Path) -> bool {
    let mut value = [0_u8; 8];
    ["trusted.delegate", "user.delegate"]
        .iter()
        .any(|name| rustix::fs::getxattr(dir, *name, &mut value[..]).is_ok_and(|n| value[..n] == *b"1"))
}

/// Makes the parent and lets it pass its controllers on.
fn prepare(hierarchy: &Hierarchy) -> Result<(), LayoutError> {
    let dir = &hierarchy.parent;
    if hierarchy.v2
        && !hierarchy.controllers.is_empty()
        && let Some(above) = dir.parent()
        && !dir.exists()
    {
        // Our own new directory below one that we may write: the controllers must come down to it.
        enable(hierarchy, above)?;
    }
    std::fs::create_dir_all(dir).map_err(|e| unfit(format!("cannot make {}: {e}", dir.display())))?;
    if hierarchy.v2 && !hierarchy.controllers.is_empty() {
        leave(dir)?;
    }
    enable(hierarchy, dir)
}

/// A group that limits its children may hold no process itself: whoever is in it moves to a leaf.
fn leave(dir: &Path) -> Result<(), LayoutError> {
    let procs = read(&dir.join("cgroup.procs")).unwrap_or_default();
    if procs.trim().is_empty() {
        return Ok(());
    }
    let leaf = dir.join("windlass-self");
    std::fs::create_dir_all(&leaf).map_err(|e| unfit(format!("cannot make {}: {e}", leaf.display())))?;
    for pid in procs.lines() {
        if let Err(error) = write(&leaf.join("cgroup.procs"), pid) {
            // A process may have ended since.
            if error.raw_os_error() != Some(libc::ESRCH) {
                return Err(unfit(format!("cannot move process {pid} from {} to a leaf: {error}", dir.display())));
            }
        }
    }
    Ok(())
}

/// Passes the controllers of a v2 directory on to its children. All of them at once: cpu or pids alone would make it threaded.
fn enable(hierarchy: &Hierarchy, dir: &Path) -> Result<(), LayoutError> {
    if !hierarchy.v2 || hierarchy.controllers.is_empty() {
        return Ok(());
    }
    let file = dir.join("cgroup.subtree_control");
    let on = read(&file).unwrap_or_default();
    let missing: Vec<_> = hierarchy.controllers.iter().filter(|c| !on.split_whitespace().any(|o| o == c.name_v2())).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let line = missing.iter().map(|c| format!("+{}", c.name_v2())).collect::<Vec<_>>().join(" ");
    write(&file, &line).map_err(|e| unfit(format!("cannot write {line:?} to {}: {e}", file.display())))
}

/// The directories of one worker instance; its lock is held for as long as this lives.
#[derive(Debug)]
pub struct Instance {
    pub(super) dirs: Vec<(Hierarchy, PathBuf)>,
    _lock: OwnedFd,
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
50 31 0:39 / /elsewhere rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn mounts_are_read_with_their_controllers() {
        let mounts = mounts(HYBRID, Path::new("/sys/fs/cgroup"));
        assert_eq!(mounts.len(), 4);
        assert_eq!(controllers_v1(&mounts[0]), [Controller::Cpu]);
        assert_eq!(controllers_v1(&mounts[1]), [Controller::Memory]);
        assert!(controllers_v1(&mounts[2]).is_empty());
        assert!(mounts[3].v2);
    }

    #[test]
    fn the_own_group_is_that_of_the_unified_hierarchy() {
        assert_eq!(own_v2("12:cpu:/x\n0::/system.slice/windlass.service\n"), Some("system.slice/windlass.service"));
        assert_eq!(own_v2("0::/\n"), Some(""));
        assert_eq!(own_v2("4:memory:/a\n"), None);
    }
}
