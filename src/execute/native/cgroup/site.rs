//! Finding and taking the place where an instance's cgroups live.
//!
//! ```text
//! <mount>/<hierarchy>/<parent>/<instance>/<task>.<attempt>
//!                     │        └ ours: locked for life, removed at the end
//!                     └ shared by all instances; its lock orders creation and sweeping
//! ```
//! Nothing outside `<parent>` is touched, with one exception on cgroup2: controllers are enabled on the way to it
//! (added, never taken away), and in our own delegated cgroup we move into a leaf, because the kernel allows
//! no processes beside child cgroups that have controllers.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::Access;

use super::layout::{Controller, Mount, Place, mounts, own_directory, parent_directory};
use super::{files, sweep};

/// Where cgroups may be made, and what for.
#[derive(Debug, Clone)]
pub struct Wish<'a> {
    /// `[cgroup] mount`.
    pub mount: &'a Path,
    /// `[cgroup] parent`.
    pub parent: &'a str,
    /// Name of the instance's directory.
    pub instance: &'a str,
}

/// Why limits cannot be had here. The text is for the operator and says what to grant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// The machine has no usable hierarchy for a controller.
    #[error("no cgroup controller {missing} under {mount}: {GRANT}")]
    Missing {
        /// Controllers, comma separated.
        missing: String,
        /// Where we looked.
        mount: PathBuf,
    },
    /// A directory could not be made or opened.
    #[error("cannot use {path}: {error}; {GRANT}")]
    Directory {
        /// Which one.
        path: PathBuf,
        /// The kernel's answer.
        error: String,
    },
    /// Swap would escape the memory limit.
    #[error(
        "this machine has swap and does not account for it, so memory limits would not hold: boot with swapaccount=1, or turn swap off"
    )]
    Swap,
}

const GRANT: &str = "grant it with systemd (Delegate=cpu memory pids io, and DelegateSubgroup=worker), \
                     or run as root, or run without limits with --allow-unlimited";

/// One hierarchy of our instance.
#[derive(Debug)]
pub(super) struct Hierarchy {
    pub carries: Vec<Controller>,
    pub v2: bool,
    pub path: PathBuf,
    pub dir: OwnedFd,
    /// Where it is mounted.
    pub point: PathBuf,
    /// The instance's cgroup as the hierarchy itself names it.
    pub inside: PathBuf,
    /// Without use to us; only containers have directories in it.
    pub bystander: bool,
    /// It has the devices controller.
    pub devices: bool,
}

/// The place of this instance: its directory in every hierarchy, locked while this value lives.
#[derive(Debug)]
pub struct Site {
    pub(super) hierarchies: Vec<Hierarchy>,
    /// The directory of all instances has the name that we give it: it is ours to remove.
    pub(super) own_parent: bool,
    /// Read once, early: later the process is not dumpable and, unless root, may not read its own auxiliary vector.
    pub(super) page_bytes: u64,
    /// True when CPU, memory and processes can be limited.
    pub enforced: bool,
    /// One line for the log.
    pub description: String,
    /// Instances of dead workers that were found and removed (or not).
    pub swept: Vec<(String, bool)>,
    /// Where else an engine makes its cgroups, taken with the first container.
    pub(super) bystanders: Vec<Bystander>,
}

/// A hierarchy that is taken only for containers.
#[derive(Debug)]
pub(super) struct Bystander {
    pub mount: Mount,
    pub parent: PathBuf,
}

impl Site {
    /// Finds the hierarchies, sweeps what dead instances left, makes and locks our own directories.
    ///
    /// With `best_effort` a hierarchy that cannot be used is left out; the site may then enforce nothing.
    ///
    /// # Errors
    /// When CPU, memory and processes cannot all be limited, and not `best_effort`.
    pub fn open(wish: &Wish<'_>, best_effort: bool) -> Result<Self, Unfit> {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let (info, own) = (read("/proc/self/mountinfo"), read("/proc/self/cgroup"));
        let found = mounts(&info, wish.mount, |point| read(&point.join("cgroup.controllers").to_string_lossy()));
        let place = Place { parent: wish.parent, root: rustix::process::geteuid().is_root(), own: &own };
        let page_bytes = rustix::param::page_size() as u64;
        let own_parent = wish.parent.is_empty();
        let mut site = Self {
            hierarchies: Vec::new(),
            own_parent,
            page_bytes,
            enforced: false,
            description: String::new(),
            swept: Vec::new(),
            bystanders: Vec::new(),
        };
        let tracked = found.iter().any(|m| m.v2);
        // cgroup2 counts CPU time on its own: a hierarchy that only does that would cost a migration per task for nothing.
        for mount in found.iter().filter(|m| !(tracked && m.carries == [Controller::Cpuacct])) {
            match site.take(wish, &place, mount) {
                Ok(()) => {}
                Err(_) if best_effort || (mount.v2 && mount.carries.is_empty()) => {}
                Err(error) => return Err(site.abandon(error)),
            }
        }
        match site.judge(wish, best_effort) {
            Ok(()) => {
                site.find_bystanders(&info, wish.mount);
                Ok(site)
            }
            Err(error) => Err(site.abandon(error)),
        }
    }

    fn abandon(self, error: Unfit) -> Unfit {
        let directories = self.directories();
        if sweep::remove_instances(&directories).is_ok() && self.own_parent {
            sweep::remove_parents(&directories);
        }
        error
    }

    fn take(&mut self, wish: &Wish<'_>, place: &Place<'_>, mount: &Mount) -> Result<(), Unfit> {
        let (parent_path, carries) = if mount.v2 && !mount.carries.is_empty() {
            delegated_parent(place, mount)?
        } else {
            let parent = parent_directory(place, mount).unwrap_or_else(|| own_directory(place.own, mount).join("windlass"));
            (parent, mount.carries.clone())
        };
        if mount.v2 {
            may_enter(&own_directory(place.own, mount), &parent_path)?;
        }
        self.settle(wish.instance, mount, &parent_path, carries, false)
    }

    /// Sweeps the dead below `parent_path`, makes our own directory there and locks it.
    pub(super) fn settle(
        &mut self,
        instance: &str,
        mount: &Mount,
        parent_path: &Path,
        carries: Vec<Controller>,
        bystander: bool,
    ) -> Result<(), Unfit> {
        let at = |path: &Path| {
            let path = path.to_path_buf();
            move |e: io::Error| Unfit::Directory { path, error: e.to_string() }
        };
        // The others were swept at the start; from then on tasks are waiting.
        let patience = if bystander { sweep::BRIEFLY } else { sweep::PARENT };
        let parent = sweep::locked_parent(parent_path, patience).map_err(at(parent_path))?;
        let swept = if bystander { Vec::new() } else { sweep::sweep_siblings(parent.as_fd(), parent_path, instance) };
        for (name, removed) in swept {
            self.note_swept(name, removed);
        }
        if mount.v2 {
            enable(parent_path, &carries).map_err(at(parent_path))?;
        }
        let path = parent_path.join(instance);
        sweep::make_dir(&path).map_err(at(&path))?;
        let dir = files::open_dir(&path).map_err(at(&path))?;
        sweep::lock(dir.as_fd()).map_err(at(&path))?;
        // A dead namesake's tasks: the lock says that nobody owns them.
        let left: Vec<PathBuf> = files::children(dir.as_fd()).map_err(at(&path))?.iter().map(|name| path.join(name)).collect();
        sweep::remove_instances(&left).map_err(|(path, e)| at(&path)(e))?;
        if mount.v2 {
            enable(&path, &carries).map_err(at(&path))?;
        }
        sweep::unlock(&parent);
        let inside = path.strip_prefix(&mount.point).map_or_else(|_| path.clone(), |below| mount.root.join(below));
        self.hierarchies.push(Hierarchy {
            carries,
            v2: mount.v2,
            path,
            dir,
            point: mount.point.clone(),
            inside,
            bystander,
            devices: mount.devices,
        });
        Ok(())
    }

    /// One instance is in several hierarchies.
    pub(super) fn note_swept(&mut self, name: String, removed: bool) {
        match self.swept.iter_mut().find(|(known, _)| *known == name) {
            Some((_, all)) => *all &= removed,
            None => self.swept.push((name, removed)),
        }
    }

    /// Says what this site is worth.
    fn judge(&mut self, wish: &Wish<'_>, best_effort: bool) -> Result<(), Unfit> {
        let has = |c: &Controller| self.hierarchies.iter().any(|h| h.carries.contains(c));
        let missing: Vec<&str> = Controller::REQUIRED.iter().filter(|c| !has(c)).map(|c| c.name(true)).collect();
        let swap_escapes = has(&Controller::Memory) && !self.accounts_swap() && swap_total() > 0;
        self.enforced = missing.is_empty() && !swap_escapes;
        if !best_effort && !missing.is_empty() {
            return Err(Unfit::Missing { missing: missing.join(", "), mount: wish.mount.to_path_buf() });
        }
        if !best_effort && swap_escapes {
            return Err(Unfit::Swap);
        }
        self.description = self.describe();
        Ok(())
    }

    fn describe(&self) -> String {
        let list = |v2: bool| {
            let names: Vec<&str> =
                self.hierarchies.iter().filter(|h| h.v2 == v2).flat_map(|h| h.carries.iter().map(move |c| c.name(v2))).collect();
            names.join(",")
        };
        let (v1, v2) = (list(false), list(true));
        match (self.hierarchies.iter().any(|h| h.v2), v1.is_empty(), v2.is_empty()) {
            (false, true, _) => "no cgroups: process groups only".to_owned(),
            (false, false, _) => format!("v1 {v1}"),
            (true, true, true) => "cgroup2 for tracking, no limits".to_owned(),
            (true, true, false) => format!("cgroup2 {v2}"),
            (true, false, true) => format!("hybrid: v1 {v1} + cgroup2 for tracking"),
            (true, false, false) => format!("hybrid: v1 {v1} + cgroup2 {v2}"),
        }
    }

    /// What can be limited, by the names of cgroup2.
    #[must_use]
    pub fn controllers(&self) -> Vec<String> {
        let has = |c: &Controller| self.hierarchies.iter().any(|h| h.carries.contains(c));
        let limiting = Controller::REQUIRED.into_iter().chain([Controller::Io]);
        limiting.filter(has).map(|c| c.name(true).to_owned()).collect()
    }

    fn accounts_swap(&self) -> bool {
        self.hierarchies.iter().filter(|h| h.carries.contains(&Controller::Memory)).all(|h| {
            // On cgroup2 the file exists in every cgroup but the root; in ours `memory` is enabled by its parent.
            let file = if h.v2 { "memory.swap.max" } else { "memory.memsw.limit_in_bytes" };
            h.path.join(file).exists()
        })
    }

    /// The instance's directories, for the sweep of whoever outlives us.
    #[must_use]
    pub fn directories(&self) -> Vec<PathBuf> {
        self.hierarchies.iter().filter(|h| !h.bystander).map(|h| h.path.clone()).collect()
    }

    /// Kills every process of every task of this instance, as far as the kernel does it in one stroke.
    pub fn kill_all(&self) {
        for hierarchy in self.hierarchies.iter().filter(|h| h.v2) {
            let _ = files::write(&hierarchy.dir, "cgroup.kill", "1");
        }
    }
}

fn swap_total() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    text.lines().find_map(|l| l.strip_prefix("SwapTotal:")?.trim().strip_suffix(" kB")?.trim().parse().ok()).unwrap_or(0)
}

/// `mkdir -p`, where somebody else may be doing the same.
/// On cgroup2 with controllers: the parent of all instances, and which of the wanted controllers it can have.
fn delegated_parent(place: &Place<'_>, mount: &Mount) -> Result<(PathBuf, Vec<Controller>), Unfit> {
    let own = own_directory(place.own, mount);
    let delegated = if place.parent.is_empty() { delegated_base(&own, mount) } else { None };
    let parent = delegated.as_ref().map(|base| base.join("windlass")).or_else(|| parent_directory(place, mount));
    let Some(parent) = parent else {
        return Err(Unfit::Directory { path: own, error: "this cgroup is not delegated to this user".to_owned() });
    };
    let base = parent.parent().unwrap_or(&mount.point);
    let at = |error: io::Error| Unfit::Directory { path: base.to_path_buf(), error: error.to_string() };
    std::fs::create_dir_all(base).map_err(at)?;
    leave(base, &own).map_err(at)?;
    if delegated.is_none() {
        // Controllers reach `base` only through every cgroup above it. What may not be enabled shows in the next read.
        for above in base.ancestors().skip(1).take_while(|dir| dir.starts_with(&mount.point)).collect::<Vec<_>>().into_iter().rev() {
            let _ = enable(above, &mount.carries);
        }
    }
    let available = std::fs::read_to_string(base.join("cgroup.controllers")).map_err(at)?;
    let wanted: Vec<Controller> =
        mount.carries.iter().copied().filter(|c| available.split_whitespace().any(|a| a == c.name(true))).collect();
    // EBUSY here: other processes of the unit sit in this cgroup itself; DelegateSubgroup= moves them away.
    enable(base, &wanted).map_err(at)?;
    Ok((parent, wanted))
}

/// Whether a child of ours may be started in `path`: that takes the right to write `cgroup.procs` of the cgroup above both.
/// Where directories may be made and children may not be started, every task would fail.
fn may_enter(own: &Path, path: &Path) -> Result<(), Unfit> {
    let Some(common) = path.ancestors().find(|above| own.starts_with(above)) else { return Ok(()) };
    let procs = common.join("cgroup.procs");
    match rustix::fs::access(&procs, Access::WRITE_OK) {
        // The top of what is mounted may have none that we know of.
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(e) => Err(Unfit::Directory { path: procs, error: io::Error::from(e).to_string() }),
    }
}

/// The cgroup that was handed to us: our own, or the one above it (systemd's `DelegateSubgroup=`).
fn delegated_base(own: &Path, mount: &Mount) -> Option<PathBuf> {
    let marked = |dir: &Path| {
        let mut value = [0u8; 8];
        let mut reads = |name: &str| rustix::fs::getxattr(dir, name, &mut value).is_ok_and(|n| value[..n] == *b"1");
        reads("trusted.delegate") || reads("user.delegate")
    };
    let above = own.parent().filter(|dir| dir.starts_with(&mount.point));
    // An earlier start of ours moved our ancestors into the leaf.
    let own = above.filter(|_| own.ends_with(LEAF)).unwrap_or(own);
    if let Some(dir) = [Some(own), above].into_iter().flatten().find(|dir| marked(dir)) {
        return Some(dir.to_path_buf());
    }
    if rustix::process::geteuid().is_root() {
        return None;
    }
    // Delegation to a user is ownership of these two. What is above may be writable, too, and belongs to the user's own systemd.
    let ours = ["cgroup.procs", "cgroup.subtree_control"].iter().all(|f| rustix::fs::access(own.join(f), Access::WRITE_OK).is_ok());
    ours.then(|| own.to_path_buf())
}

/// Where the processes of a delegated cgroup go, so that it can have children with controllers.
pub(super) const LEAF: &str = "windlass-leaf";

/// Moves the processes of `base`, ours and those of the same unit, into a leaf, when we sit in `base` itself.
fn leave(base: &Path, own: &Path) -> io::Result<()> {
    if own != base || !base.join("cgroup.type").exists() {
        // Elsewhere, or the root of all cgroups, which alone may have both processes and children.
        return Ok(());
    }
    let leaf = base.join(LEAF);
    sweep::make_dir(&leaf)?;
    let (from, to) = (files::open_dir(base)?, files::open_dir(&leaf)?);
    for pid in files::pids(&from, "cgroup.procs")? {
        // Gone meanwhile, or not ours to move: then enabling controllers says so.
        let _ = files::write(&to, "cgroup.procs", &pid.to_string());
    }
    Ok(())
}

/// Enables controllers for the children of `path`, all in one write so that it never becomes a threaded domain.
fn enable(path: &Path, controllers: &[Controller]) -> io::Result<()> {
    let dir = files::open_dir(path)?;
    let enabled = files::read(&dir, "cgroup.subtree_control")?;
    let missing: Vec<String> = controllers
        .iter()
        .map(|c| c.name(true))
        .filter(|name| !enabled.split_whitespace().any(|e| e == *name))
        .map(|name| format!("+{name}"))
        .collect();
    if missing.is_empty() { Ok(()) } else { files::write(&dir, "cgroup.subtree_control", &missing.join(" ")) }
}
