//! Which cgroup hierarchies this machine has and where in each we may work. Pure: text in, plan out.
//!
//! A hierarchy is one mount: the cgroup2 one (on a hybrid machine it carries no controller and still can
//! start into, track and kill), and every version 1 mount that carries a controller which we need.

use std::path::{Component, Path, PathBuf};

/// What a hierarchy can do for a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Controller {
    /// CPU bandwidth.
    Cpu,
    /// CPU time, on version 1 only.
    Cpuacct,
    /// Memory and swap.
    Memory,
    /// Number of processes.
    Pids,
    /// Block I/O (`blkio` on version 1).
    Io,
}

impl Controller {
    const ALL: [Self; 5] = [Self::Cpu, Self::Cpuacct, Self::Memory, Self::Pids, Self::Io];
    /// Without these three there are no limits.
    pub const REQUIRED: [Self; 3] = [Self::Cpu, Self::Memory, Self::Pids];

    /// Its name in mount options (version 1) or `cgroup.controllers` (version 2).
    #[must_use]
    pub fn name(self, v2: bool) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cpuacct => "cpuacct",
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Io if v2 => "io",
            Self::Io => "blkio",
        }
    }
}

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where it is mounted.
    pub point: PathBuf,
    /// Which of its cgroups is mounted there.
    pub root: PathBuf,
    /// cgroup2.
    pub v2: bool,
    /// Controllers, of those we need.
    pub carries: Vec<Controller>,
    /// It has version 1's devices controller.
    pub devices: bool,
}

/// Who we are, as far as it decides where cgroups may be made.
#[derive(Debug, Clone)]
pub struct Place<'a> {
    /// `[cgroup] parent`; empty: decided here.
    pub parent: &'a str,
    /// Effective user is root.
    pub root: bool,
    /// Text of `/proc/self/cgroup`.
    pub own: &'a str,
}

/// Mounts of `/proc/self/mountinfo` below `under`, the cgroup2 one first.
///
/// `controllers_of_v2` is the text of `cgroup.controllers` in a cgroup2 mount's root.
#[must_use]
pub fn mounts(mountinfo: &str, under: &Path, controllers_of_v2: impl Fn(&Path) -> String) -> Vec<Mount> {
    let mut found: Vec<Mount> = Vec::new();
    for line in mountinfo.lines() {
        let Some(mut mount) = parse_line(line) else { continue };
        if !mount.point.starts_with(under) || found.iter().any(|m| m.point == mount.point) {
            continue;
        }
        if mount.v2 {
            let listed = controllers_of_v2(&mount.point);
            mount.carries = named(listed.split_whitespace(), true);
        }
        // A named hierarchy (systemd) or one for devices is of no use here; a second cgroup2 mount is the same hierarchy.
        let useful = if mount.v2 { !found.iter().any(|m| m.v2) } else { !mount.carries.is_empty() };
        if useful {
            found.push(mount);
        }
    }
    found.sort_by_key(|m| !m.v2);
    found
}

/// Version 1 mounts below `under` that are not among those `taken`: no use to us, but an engine makes its cgroups there too.
#[must_use]
pub fn bystanders(mountinfo: &str, under: &Path, taken: &[PathBuf]) -> Vec<Mount> {
    let mut found: Vec<Mount> = Vec::new();
    for mount in mountinfo.lines().filter_map(parse_line) {
        let known = taken.contains(&mount.point) || found.iter().any(|m| m.point == mount.point);
        if !mount.v2 && mount.point.starts_with(under) && !known {
            found.push(mount);
        }
    }
    found
}

fn parse_line(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let (root, point) = (unescape(left.next()?), unescape(left.next()?));
    let mut right = right.split(' ');
    let kind = right.next()?;
    let options = right.nth(1)?;
    let v2 = match kind {
        "cgroup2" => true,
        "cgroup" => false,
        _ => return None,
    };
    let carries = if v2 { Vec::new() } else { named(options.split(','), false) };
    let devices = !v2 && options.split(',').any(|option| option == "devices");
    Some(Mount { point: point.into(), root: root.into(), v2, carries, devices })
}

fn named<'a>(names: impl Iterator<Item = &'a str>, v2: bool) -> Vec<Controller> {
    let names: Vec<&str> = names.collect();
    Controller::ALL.into_iter().filter(|c| !(v2 && *c == Controller::Cpuacct) && names.contains(&c.name(v2))).collect()
}

/// The kernel writes space, tab, newline and backslash as octal.
fn unescape(field: &str) -> String {
    field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// The cgroup of a process in the hierarchy, as its `/proc/<pid>/cgroup` names it.
#[must_use]
pub fn path_of<'a>(cgroups: &'a str, mount: &Mount) -> Option<&'a Path> {
    cgroups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let here = if mount.v2 {
            number == "0" && controllers.is_empty()
        } else {
            controllers.split(',').any(|c| mount.carries.iter().any(|m| m.name(false) == c))
        };
        here.then_some(Path::new(path))
    })
}

/// Our own cgroup in the hierarchy, as a directory below its mount point.
#[must_use]
pub fn own_directory(own: &str, mount: &Mount) -> PathBuf {
    let path = path_of(own, mount).unwrap_or_else(|| Path::new("/"));
    let below = path.strip_prefix(&mount.root).or_else(|_| path.strip_prefix("/")).unwrap_or(path);
    mount.point.join(below)
}

/// The directory of a container: the highest cgroup on the way to that of its first process whose name holds the container's id.
/// Docker names it `<id>` or `docker-<id>.scope`, Podman `libpod-<id>`; a container may have moved its own processes further down.
/// `None` where the process is in no such cgroup, or in one that is not below what is mounted here.
#[must_use]
pub fn directory_of(cgroups: &str, mount: &Mount, id: &str) -> Option<PathBuf> {
    let path = path_of(cgroups, mount)?;
    let named = |part: &Component<'_>| part.as_os_str().to_str().is_some_and(|part| part.contains(id));
    let depth = path.components().position(|part| named(&part))?;
    let own: PathBuf = path.components().take(depth + 1).collect();
    let below = own.strip_prefix(&mount.root).ok()?;
    // Outside of this process's cgroup namespace: `/../<elsewhere>`.
    let inside = !below.as_os_str().is_empty() && below.components().all(|part| matches!(part, Component::Normal(_)));
    (inside && !id.is_empty()).then(|| mount.point.join(below))
}

/// Directory that holds the instances' directories, when it does not depend on who may write where.
///
/// `None` on cgroup2 for an unprivileged worker without a configured parent: its own delegated cgroup decides.
#[must_use]
pub fn parent_directory(place: &Place<'_>, mount: &Mount) -> Option<PathBuf> {
    let configured = place.parent.trim_matches('/');
    if !configured.is_empty() {
        return Some(mount.point.join(configured));
    }
    if place.root {
        return Some(mount.point.join("windlass"));
    }
    (!mount.v2).then(|| own_directory(place.own, mount).join("windlass"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 /docker/ab /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/devices rw,relatime - cgroup cgroup rw,devices
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
50 31 0:36 / /elsewhere/pids rw,relatime - cgroup cgroup rw,pids";

    fn hybrid() -> Vec<Mount> {
        mounts(HYBRID, Path::new("/sys/fs/cgroup"), |_| String::new())
    }

    #[test]
    fn a_hybrid_machine_tracks_in_cgroup2_and_limits_in_version_1() {
        let found = hybrid();
        let shape: Vec<_> = found.iter().map(|m| (m.point.to_str().expect("text"), m.v2, m.carries.clone())).collect();
        assert_eq!(
            shape,
            [
                ("/sys/fs/cgroup/unified", true, vec![]),
                ("/sys/fs/cgroup/cpu,cpuacct", false, vec![Controller::Cpu, Controller::Cpuacct]),
                ("/sys/fs/cgroup/memory", false, vec![Controller::Memory]),
                ("/sys/fs/cgroup/pids", false, vec![Controller::Pids]),
            ]
        );
    }

    #[test]
    fn what_is_of_no_use_to_us_is_still_a_place_for_an_engine() {
        let taken: Vec<PathBuf> = hybrid().into_iter().map(|mount| mount.point).collect();
        let found = bystanders(HYBRID, Path::new("/sys/fs/cgroup"), &taken);
        let points: Vec<_> = found.iter().map(|m| m.point.to_str().expect("text")).collect();
        assert_eq!(points, ["/sys/fs/cgroup/devices", "/sys/fs/cgroup/systemd"]);
        assert_eq!(found.iter().map(|m| m.devices).collect::<Vec<_>>(), [true, false]);
    }

    #[test]
    fn a_pure_cgroup2_machine_has_one_hierarchy() {
        let info = "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        let found = mounts(info, Path::new("/sys/fs/cgroup"), |_| "cpuset cpu io memory pids\n".to_owned());
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].carries, [Controller::Cpu, Controller::Memory, Controller::Pids, Controller::Io]);
    }

    #[test]
    fn the_parent_is_configured_or_follows_from_who_we_are() {
        let found = hybrid();
        let own = "3:memory:/docker/ab/x\n1:cpu,cpuacct:/user.slice\n0::/user.slice/u.service\n";
        for (parent, root, mount, expected, why) in [
            ("/jobs/a/", true, 2, Some("/sys/fs/cgroup/memory/jobs/a"), "configured, below every mount"),
            ("", true, 0, Some("/sys/fs/cgroup/unified/windlass"), "root works at the top"),
            ("", false, 2, Some("/sys/fs/cgroup/memory/x/windlass"), "below our own, seen from the mounted root"),
            ("", false, 0, None, "delegation decides on cgroup2"),
        ] {
            let place = Place { parent, root, own };
            assert_eq!(parent_directory(&place, &found[mount]), expected.map(PathBuf::from), "{why}");
        }
        assert_eq!(own_directory(own, &found[0]), Path::new("/sys/fs/cgroup/unified/user.slice/u.service"));
    }

    #[test]
    fn a_containers_directory_is_the_highest_that_bears_its_id() {
        let found = hybrid();
        let unified = &found[0];
        let memory = &found[2];
        for (cgroups, mount, expected, why) in [
            ("0::/docker/c0ffee\n", unified, Some("/sys/fs/cgroup/unified/docker/c0ffee"), "Docker, cgroupfs"),
            ("0::/s.slice/docker-c0ffee.scope\n", unified, Some("/sys/fs/cgroup/unified/s.slice/docker-c0ffee.scope"), "systemd"),
            ("0::/libpod-c0ffee.scope/container\n", unified, Some("/sys/fs/cgroup/unified/libpod-c0ffee.scope"), "Podman's own leaf"),
            ("4:memory:/docker/ab/docker/c0ffee\n", memory, Some("/sys/fs/cgroup/memory/docker/c0ffee"), "seen from the mounted root"),
            ("4:memory:/docker/c0ffee\n", memory, None, "not below the mounted root"),
            ("0::/../docker/c0ffee\n", unified, None, "outside of our namespace"),
            ("0::/\n", unified, None, "the root"),
            ("0::/system.slice/docker.service\n", unified, None, "the engine's"),
        ] {
            assert_eq!(directory_of(cgroups, mount, "c0ffee"), expected.map(PathBuf::from), "{why}");
        }
        assert_eq!(directory_of("0::/docker/x\n", unified, ""), None, "no id is in every name");
    }
}
