//! Which paths a task may use, as Landlock rules: kept open once, put into a ruleset for each task.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, BitFlags, CompatLevel, Compatible as _, PathBeneath, Ruleset, RulesetAttr as _, RulesetCreated,
    RulesetCreatedAttr as _, RulesetError, Scope,
};
use rustix::fs::{Mode, OFlags};

use crate::execute::native::sandbox::Wish;

/// Newest version whose rights are known here; the library leaves out what this kernel does not know.
const KNOWN: ABI = ABI::V6;

/// Devices that are safe and expected.
const DEVICES: [&str; 8] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/ptmx", "/dev/pts"];

/// Paths that every task of this supervisor may use.
#[derive(Debug)]
pub(super) struct Rules {
    granted: Vec<(OwnedFd, BitFlags<AccessFs>)>,
    abi: ABI,
}

impl Rules {
    /// For a supervisor without a sandbox.
    pub(super) fn none() -> Self {
        Self { granted: Vec::new(), abi: ABI::Unsupported }
    }

    /// Opens what there is of the wanted paths. A path that does not exist is no rule.
    pub(super) fn open(wish: &Wish) -> Self {
        let abi = match version() {
            0 => ABI::Unsupported,
            1 => ABI::V1,
            2 => ABI::V2,
            3 => ABI::V3,
            4 => ABI::V4,
            5 => ABI::V5,
            _ => KNOWN,
        };
        let mut rules = Self { granted: Vec::new(), abi };
        let protected: BTreeSet<PathBuf> = wish.protected.iter().filter_map(|p| p.canonicalize().ok()).collect();
        for path in wish.read_paths.iter().filter_map(|p| p.canonicalize().ok()) {
            rules.grant(&path, AccessFs::from_read(abi), &protected);
        }
        for path in wish.write_paths.iter().filter_map(|p| p.canonicalize().ok()) {
            rules.grant(&path, AccessFs::from_all(abi), &protected);
        }
        for device in DEVICES.iter().map(Path::new).filter(|p| p.exists()) {
            rules.grant(device, device_access(abi), &protected);
        }
        rules
    }

    /// Grants a path, and where something protected lies in it, everything in it but that.
    ///
    /// A rule holds for all that is below, and none takes away: so around a protected file each neighbour gets its own. What
    /// is made there later has none; the names in these directories can be read.
    fn grant(&mut self, path: &Path, access: BitFlags<AccessFs>, protected: &BTreeSet<PathBuf>) {
        if protected.iter().any(|p| path.starts_with(p)) {
            return;
        }
        if protected.iter().any(|p| p.starts_with(path)) {
            self.push(path, AccessFs::ReadDir.into());
            for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
                // A link is followed to what it names, which has a rule of its own or none.
                if entry.file_type().is_ok_and(|kind| !kind.is_symlink()) {
                    self.grant(&entry.path(), access, protected);
                }
            }
            return;
        }
        self.push(path, access);
    }

    fn push(&mut self, path: &Path, access: BitFlags<AccessFs>) {
        let Ok(metadata) = std::fs::metadata(path) else { return };
        let access = if metadata.is_dir() { access } else { access & AccessFs::from_file(self.abi) };
        if let Ok(fd) = open(path) {
            self.granted.push((fd, access));
        }
    }

    /// A ruleset with the common rules, the task's own directory, that of its secrets, and its devices. `None`: this kernel has no
    /// Landlock.
    pub(super) fn ruleset(&self, root: Option<&Path>, secrets: Option<&Path>, devices: &[String]) -> io::Result<Option<OwnedFd>> {
        if self.abi == ABI::Unsupported {
            return Ok(None);
        }
        let root = root.map(open).transpose()?;
        let secrets = secrets.map(open).transpose()?;
        let mut own = vec![(root, AccessFs::from_all(self.abi)), (secrets, AccessFs::from_read(self.abi))];
        for device in devices {
            let node = open(Path::new(device)).map_err(|error| io::Error::new(error.kind(), format!("{device}: {error}")))?;
            own.push((Some(node), device_access(self.abi) & AccessFs::from_file(self.abi)));
        }
        let built = self.build(&own).map_err(io::Error::other)?;
        Ok(built.into())
    }

    fn build(&self, own: &[(Option<OwnedFd>, BitFlags<AccessFs>)]) -> Result<RulesetCreated, RulesetError> {
        let mut ruleset = Ruleset::default().set_compatibility(CompatLevel::BestEffort).handle_access(AccessFs::from_all(self.abi))?;
        if self.abi == KNOWN {
            ruleset = ruleset.scope(Scope::from_all(self.abi))?;
        }
        let mut ruleset = ruleset.create()?;
        let own = own.iter().filter_map(|(fd, access)| Some((fd.as_ref()?, access)));
        for (fd, access) in self.granted.iter().map(|(fd, access)| (fd, access)).chain(own) {
            ruleset = ruleset.add_rule(PathBeneath::new(fd.as_fd(), *access))?;
        }
        Ok(ruleset)
    }

    fn all(&self) -> BitFlags<AccessFs> {
        AccessFs::from_all(self.abi)
    }

    /// Everything, as the kernel numbers it.
    pub(super) fn write_bits(&self) -> u64 {
        self.all().bits()
    }

    /// Reading and executing, likewise.
    pub(super) fn read_bits(&self) -> u64 {
        AccessFs::from_read(self.abi).bits()
    }

    /// Signals and abstract sockets are kept inside.
    pub(super) fn scoped(&self) -> bool {
        self.abi == KNOWN
    }
}

fn device_access(abi: ABI) -> BitFlags<AccessFs> {
    let wanted = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::ReadDir | AccessFs::Truncate | AccessFs::IoctlDev;
    wanted & AccessFs::from_all(abi)
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

/// Version of the kernel's Landlock, 0 for none.
#[expect(unsafe_code, reason = "the library keeps what it finds to itself")]
pub(super) fn version() -> u32 {
    const VERSION: libc::c_uint = 1;
    // SAFETY: with this flag the call takes no memory and only answers.
    let abi = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<libc::c_void>(), 0usize, VERSION) };
    u32::try_from(abi).unwrap_or(0)
}
