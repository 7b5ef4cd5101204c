//! Directories: whether they can be used, what there is room for, and what they lie on.

use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD};

use super::{Area, Check, Finding};
use crate::config::Config;
use crate::prepare;
use crate::prepare::secret_files;
use crate::task::ByteSize;
use crate::worker::capacity::{Capacity, Machine};

/// A directory that a worker writes to.
#[derive(Debug, Clone)]
struct Place {
    /// Its key.
    name: &'static str,
    path: PathBuf,
    /// It can be written, or made.
    usable: Result<Usable, String>,
}

#[derive(Debug, Clone)]
struct Usable {
    /// It is there; otherwise the rest is about the directory that it would be made in.
    exists: bool,
    free: u64,
    /// None where the file system does not count them.
    inodes: Option<u64>,
    kind: Kind,
}

/// A kind of file system, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Disk(&'static str),
    Memory,
    Network(&'static str),
    Unknown(i64),
}

impl Kind {
    /// By `f_type`, statfs(2).
    fn of(magic: i64) -> Self {
        match magic {
            0xef53 => Self::Disk("ext4"),
            0x5846_5342 => Self::Disk("xfs"),
            0x9123_683e => Self::Disk("btrfs"),
            0x2fc1_2fc1 => Self::Disk("zfs"),
            0xf2f5_2010 => Self::Disk("f2fs"),
            0x794c_7630 => Self::Disk("overlay"),
            0xca45_1a4e => Self::Disk("bcachefs"),
            0x0102_1994 | 0x8584_58f6 => Self::Memory,
            0x6969 => Self::Network("nfs"),
            0xff53_4d42 | 0xfe53_4d42 | 0x517b => Self::Network("smb"),
            0x6573_5546 => Self::Network("fuse"),
            0x0102_1997 => Self::Network("9p"),
            0x00c3_6400 => Self::Network("ceph"),
            other => Self::Unknown(other),
        }
    }
}

/// What was found.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    places: Vec<Place>,
    /// Where secrets would be files.
    secrets: Result<PathBuf, String>,
}

impl Facts {
    /// Looks. Where a directory is there a file is made in it, and removed.
    pub(super) fn gather(config: &Config) -> Self {
        let logs = Some(PathBuf::from(&config.logs.dir)).filter(|dir| !dir.as_os_str().is_empty()).map(|dir| ("logs.dir", dir));
        let dirs = [("worker.state_dir", config.worker.state_dir.clone())].into_iter().chain(logs);
        let places = dirs.map(|(name, path)| Place { name, usable: look(&path).map_err(|e| e.to_string()), path }).collect();
        Self { places, secrets: secret_files::look(&config.worker.secrets_dir).map_err(|e| format!("{}: {}", e.path.display(), e.error)) }
    }
}

fn look(path: &Path) -> std::io::Result<Usable> {
    let exists = path.exists();
    let above = path.ancestors().find(|above| above.exists()).unwrap_or(Path::new("/"));
    if exists {
        prepare::probe(path)?;
    } else {
        rustix::fs::accessat(CWD, above, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)?;
    }
    let fs = rustix::fs::statvfs(above)?;
    let kind = Kind::of(rustix::fs::statfs(above)?.f_type as i64);
    Ok(Usable { exists, free: fs.f_bavail.saturating_mul(fs.f_frsize), inodes: (fs.f_files > 0).then_some(fs.f_favail), kind })
}

/// Files of a running task, with room for those that it makes itself.
const INODES_PER_SLOT: u64 = 1000;

/// What to make of it.
pub(super) fn judge(facts: &Facts, config: &Config) -> Vec<Finding> {
    let slots = u64::from(Capacity::new(config, Machine::here()).slots());
    let mut findings: Vec<Finding> = facts.places.iter().flat_map(|place| of_place(place, config, slots)).collect();
    findings.push(secrets(facts, config));
    findings
}

fn of_place(place: &Place, config: &Config, slots: u64) -> Vec<Finding> {
    let Place { name, path, usable } = place;
    let shown = path.display();
    let check = Check::new(Area::Disk, *name, "a directory that the worker can write to, or make");
    let usable = match usable {
        Err(error) => return vec![check.fail(format!("{shown}: {error}"), mend_of_use(name, path))],
        Ok(usable) => usable,
    };
    let found = if usable.exists { format!("{shown} can be written") } else { format!("{shown} is not there; the worker makes it") };
    let mut findings = vec![check.ok(found), room(name, usable, config, slots)];
    if *name == "worker.state_dir" {
        findings.push(kind(name, usable));
        findings.extend(inodes(name, usable, slots));
    }
    findings
}

fn mend_of_use(name: &str, path: &Path) -> String {
    let user = rustix::process::geteuid().as_raw();
    let key = name.replace('.', "__").to_uppercase();
    format!("install -d -o {user} {}   # as root; or another one with WINDLASS__{key}", path.display())
}

fn room(name: &str, usable: &Usable, config: &Config, slots: u64) -> Finding {
    let found = format!("{} free", rounded(usable.free));
    if name != "worker.state_dir" {
        let check = Check::new(Area::Disk, format!("{name}: room"), format!("logs.dir_max = {}", config.logs.dir_max));
        let mend = format!("export WINDLASS__LOGS__DIR_MAX={}MiB", (usable.free >> 21).max(1));
        return if usable.free >= config.logs.dir_max.bytes() { check.ok(found) } else { check.warn(found, mend) };
    }
    let need = slots.saturating_mul(config.logs.cap.bytes());
    let wanted = format!("{}: the output of {slots} tasks, logs.cap = {} each", ByteSize(need), config.logs.cap);
    let check = Check::new(Area::Disk, format!("{name}: room"), wanted);
    if usable.free >= need {
        return check.ok(found);
    }
    let cap = (usable.free / 2 / slots.max(1)) >> 20;
    check.warn(found, format!("free some, or: export WINDLASS__LOGS__CAP={}MiB", cap.max(1)))
}

/// A size for people, who would not read the last bytes.
fn rounded(bytes: u64) -> String {
    let step = [1 << 30, 1 << 20, 1 << 10].into_iter().find(|step| bytes >= 10 * *step).unwrap_or(1);
    ByteSize(bytes / step * step).to_string()
}

fn inodes(name: &str, usable: &Usable, slots: u64) -> Option<Finding> {
    let free = usable.inodes?;
    let need = slots * INODES_PER_SLOT;
    let check = Check::new(Area::Disk, format!("{name}: inodes"), format!("{need}, for files of {slots} tasks"));
    let found = format!("{free} free");
    Some(if free >= need { check.ok(found) } else { check.warn(found, "df -i   # free some, or give another disk") })
}

fn kind(name: &str, usable: &Usable) -> Finding {
    let check = Check::new(Area::Disk, format!("{name}: file system"), "a disk of this machine");
    let mend = "export WINDLASS__WORKER__STATE_DIR=/var/lib/windlass   # on a disk of this machine";
    match usable.kind {
        Kind::Disk(kind) => check.ok(kind),
        Kind::Memory => check.warn("in memory: the output of tasks takes the machine's, and is gone with a restart", mend),
        Kind::Network(kind) => check.warn(format!("{kind}: slow, and tasks stand still when it is away"), mend),
        Kind::Unknown(magic) => check.ok(format!("of kind {magic:#x}")),
    }
}

fn secrets(facts: &Facts, config: &Config) -> Finding {
    let check = Check::new(Area::Disk, "worker.secrets_dir", "a directory in memory for secrets that are files");
    let wanted = config.tenants.values().any(|tenant| !tenant.secrets.is_empty());
    match &facts.secrets {
        Ok(path) => check.ok(path.display().to_string()),
        Err(why) if wanted => check.fail(why, "mount -t tmpfs -o mode=711,size=64m tmpfs /run/windlass   # as root"),
        Err(why) => check.ok(format!("{why}; no tenant may use secrets")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::doctor::Level;

    fn facts(change: impl FnOnce(&mut Usable)) -> Facts {
        let mut usable = Usable { exists: true, free: 1 << 40, inodes: Some(1 << 20), kind: Kind::Disk("ext4") };
        change(&mut usable);
        let place = Place { name: "worker.state_dir", path: "/var/lib/windlass".into(), usable: Ok(usable) };
        Facts { places: vec![place], secrets: Ok("/run/windlass".into()) }
    }

    fn bad(facts: &Facts, config: &Config) -> Vec<(String, Level)> {
        judge(facts, config).into_iter().filter(|f| f.level != Level::Ok).map(|f| (f.check, f.level)).collect()
    }

    #[test]
    fn each_lack_has_its_level() {
        let plain = config::load(None, []).unwrap();
        let secretive = config::load_text("[tenants.acme]\nsecrets = [\"env:A*\"]").unwrap();
        let broken = |error: &str| {
            let mut facts = facts(|_| ());
            facts.places[0].usable = Err(error.to_owned());
            facts
        };
        let no_secrets = || Facts { secrets: Err("not in memory".to_owned()), ..facts(|_| ()) };
        for (facts, config, expected) in [
            (facts(|_| ()), &plain, None),
            (facts(|u| u.exists = false), &plain, None),
            (facts(|u| u.free = 200 << 20), &plain, Some(("worker.state_dir: room", Level::Warn))),
            (facts(|u| u.inodes = Some(12)), &plain, Some(("worker.state_dir: inodes", Level::Warn))),
            (facts(|u| u.inodes = None), &plain, None),
            (facts(|u| u.kind = Kind::of(0x6969)), &plain, Some(("worker.state_dir: file system", Level::Warn))),
            (facts(|u| u.kind = Kind::of(0x0102_1994)), &plain, Some(("worker.state_dir: file system", Level::Warn))),
            (broken("Permission denied"), &plain, Some(("worker.state_dir", Level::Fail))),
            (no_secrets(), &plain, None),
            (no_secrets(), &secretive, Some(("worker.secrets_dir", Level::Fail))),
        ] {
            let expected: Vec<_> = expected.into_iter().map(|(check, level)| (check.to_owned(), level)).collect();
            assert_eq!(bad(&facts, config), expected, "{facts:?}");
        }
    }

    #[test]
    fn what_is_not_there_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let usable = look(&dir.path().join("a/b")).unwrap();
        assert!(!usable.exists && std::fs::read_dir(dir.path()).unwrap().next().is_none());
        assert!(look(dir.path()).unwrap().exists);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the trial is removed");
    }
}
