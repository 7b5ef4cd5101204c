//! The sandbox of tasks: what is prepared once, tried once, and put together for each child.
//!
//! [`Jail::open`] moves the supervisor to the mounts that tasks shall see, opens the paths they may use, compiles the filters,
//! and then starts a child for each profile that goes through everything up to `exec`: what it cannot do is what this machine
//! cannot give. [`Jail::cell`] is the rest for one task. What must not happen here: a task that runs with less than its
//! profile says and nobody told.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::rc::Rc;

use seccompiler::BpfProgram;

use super::protocol::SpawnError;
use crate::execute::native::sandbox::{Confinement, Finding, Missing, Part, Report, User, Wish};
use crate::task::{Limits, Profile};

pub(super) mod child;
mod filter;
mod mounts;
mod probe;
mod rules;

use mounts::{Host, Places, Tmp};
use rules::Rules;

/// What the supervisor has prepared.
#[derive(Debug)]
pub(super) struct Jail {
    wish: Option<Wish>,
    host: Option<Host>,
    places: Places,
    rules: Rules,
    filter: Option<Rc<BpfProgram>>,
    last_capability: u32,
    is_root: bool,
    findings: Vec<(Finding, Vec<Part>)>,
}

/// What a child has to do, everything allocated.
#[derive(Debug)]
pub(in crate::supervisor) struct Cell {
    /// New namespaces, for clone.
    pub flags: u64,
    /// Mount namespace to go back to first, and the root there if it is not the namespace's: tasks without a sandbox see the
    /// machine as it is.
    pub host: Option<(RawFd, Option<RawFd>)>,
    /// Confinement proper; without it only `no_new_privs` is set.
    pub confined: bool,
    /// Processes and network of its own: its first process is a small init, the program the second.
    pub isolated: bool,
    /// Maps of a user namespace, where the supervisor is not root.
    pub user_map: Option<UserMap>,
    /// Its own `/tmp`.
    tmp: Option<Tmp>,
    /// Landlock.
    pub ruleset: Option<OwnedFd>,
    /// Rights of a rule for what may be written.
    pub write_bits: u64,
    /// And for what may be read.
    pub read_bits: u64,
    /// Who it becomes.
    pub user: Option<User>,
    /// The bounding set can be emptied.
    pub drop_bounding: bool,
    /// Highest number of a capability that this kernel knows.
    pub last_capability: u32,
    /// Resource limits besides those of every task.
    pub limits: Vec<(libc::__rlimit_resource_t, libc::rlimit)>,
    /// Seccomp.
    pub filter: Option<Rc<BpfProgram>>,
}

/// One user and group, as themselves.
#[derive(Debug)]
pub(super) struct UserMap {
    pub uid: std::ffi::CString,
    pub gid: std::ffi::CString,
}

impl Jail {
    /// Prepares and tries what `wish` asks for; without one only tasks without a sandbox can run. To be called before the
    /// first task: it changes the mounts that this process sees.
    pub(super) fn open(wish: Option<&Wish>, hide_processes: bool) -> (Self, Report) {
        let is_root = rustix::process::geteuid().is_root();
        let mut jail = Self {
            wish: wish.cloned(),
            host: None,
            places: Places::default(),
            rules: Rules::none(),
            filter: None,
            last_capability: last_capability(),
            is_root,
            findings: Vec::new(),
        };
        let Some(wish) = wish else { return (jail, Report::default()) };
        let mut missing = Vec::new();
        if is_root {
            match mounts::separate(wish, hide_processes) {
                Ok(host) => jail.host = Some(host),
                Err(error) => missing.push(Missing { part: Part::Mounts, error: error.to_string() }),
            }
        }
        jail.places = Places::new(wish);
        jail.rules = Rules::open(wish);
        let abi = rules::version();
        if abi == 0 {
            missing.push(Missing { part: Part::Landlock, error: "the kernel does not offer it".to_owned() });
        } else if !is_root && !jail.rules.scoped() {
            missing.push(Missing { part: Part::Scopes, error: format!("Landlock here is version {abi}, version 6 has it") });
        }
        match filter::program() {
            Ok(program) => jail.filter = Some(Rc::new(program)),
            Err(error) => missing.push(Missing { part: Part::Seccomp, error }),
        }
        for profile in [Profile::Standard, Profile::Strict] {
            let finding = jail.examine(profile, missing.clone(), wish.required);
            jail.findings.push(finding);
        }
        let profiles: Vec<Finding> = jail.findings.iter().map(|(finding, _)| finding.clone()).collect();
        let separate_users = jail.findings.iter().any(|(_, parts)| parts.contains(&Part::Users));
        (jail, Report { landlock_abi: abi, separate_users, profiles })
    }

    /// Back to the machine's own mounts, where this process came from.
    pub(super) fn leave(&self) -> io::Result<()> {
        self.host.as_ref().map_or(Ok(()), Host::enter)
    }

    /// Tries a profile, without what is known to be missing, until a child comes through.
    fn examine(&self, profile: Profile, mut missing: Vec<Missing>, required: bool) -> (Finding, Vec<Part>) {
        let mut parts = self.wanted(profile);
        parts.retain(|part| missing.iter().all(|m| m.part != *part));
        let mut broken = false;
        while let Err(found) = probe::run(self, profile, &parts) {
            if parts.contains(&found.part) {
                parts.retain(|part| *part != found.part);
                missing.push(found);
            } else {
                missing.push(found);
                broken = true;
                break;
            }
        }
        let available = !broken && (missing.is_empty() || !required);
        (Finding { profile, available, missing, private_tmp: self.has_private_tmp(&parts) }, parts)
    }

    fn has_private_tmp(&self, parts: &[Part]) -> bool {
        parts.contains(&Part::Mounts) || (!self.is_root && parts.contains(&Part::Namespaces))
    }

    fn wanted(&self, profile: Profile) -> Vec<Part> {
        let all = [Part::Users, Part::Mounts, Part::Landlock, Part::Scopes, Part::Seccomp, Part::Namespaces];
        let wanted = |part: &Part| match part {
            Part::Landlock | Part::Seccomp => true,
            Part::Users | Part::Mounts => self.is_root,
            // Where tenants are users of their own, the kernel keeps their signals apart anyway.
            Part::Scopes => !self.is_root,
            Part::Namespaces => profile == Profile::Strict,
        };
        all.into_iter().filter(|part| profile != Profile::None && wanted(part)).collect()
    }

    /// What the child of one task has to do.
    pub(super) fn cell(&self, confinement: &Confinement, limits: &Limits) -> Result<Cell, SpawnError> {
        let profile = confinement.profile;
        if profile == Profile::None {
            return Ok(self.bare());
        }
        let refuse = |missing: String| SpawnError::Sandbox { profile, missing };
        let found = self.findings.iter().find(|(finding, _)| finding.profile == profile);
        let (finding, parts) = found.ok_or_else(|| refuse("no sandbox was prepared".to_owned()))?;
        if !finding.available {
            let missing: Vec<String> = finding.missing.iter().map(ToString::to_string).collect();
            return Err(refuse(missing.join("; ")));
        }
        let root = Path::new(&confinement.root);
        let other = |step: &str, error: String| SpawnError::Other { program: String::new(), step: step.to_owned(), error };
        let mut cell = self
            .build(parts, Some(root), confinement.secrets.as_deref().map(Path::new), &confinement.devices, limits.memory_bytes)
            .map_err(|e| other("prepare sandbox", e.to_string()))?;
        cell.user = confinement.user.filter(|_| parts.contains(&Part::Users));
        Ok(cell)
    }

    /// For tasks without a sandbox.
    fn bare(&self) -> Cell {
        Cell {
            flags: 0,
            host: self.host.as_ref().map(|host| (host.namespace.as_raw_fd(), host.root.as_ref().map(AsRawFd::as_raw_fd))),
            confined: false,
            isolated: false,
            user_map: None,
            tmp: None,
            ruleset: None,
            write_bits: 0,
            read_bits: 0,
            user: None,
            drop_bounding: false,
            last_capability: 0,
            limits: Vec::new(),
            filter: None,
        }
    }

    fn build(
        &self,
        parts: &[Part],
        root: Option<&Path>,
        secrets: Option<&Path>,
        devices: &[String],
        memory_bytes: u64,
    ) -> io::Result<Cell> {
        let Some(wish) = &self.wish else { return Ok(self.bare()) };
        let has = |part| parts.contains(&part);
        let isolated = has(Part::Namespaces);
        let private_tmp = self.has_private_tmp(parts);
        let mut flags = if private_tmp { libc::CLONE_NEWNS } else { 0 };
        if self.is_root && private_tmp {
            // Shared memory segments and message queues have no other owner who would remove them at the end; 0.04 ms.
            flags |= libc::CLONE_NEWIPC;
        }
        if isolated {
            flags |= libc::CLONE_NEWPID | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
        }
        let in_user_namespace = isolated && !self.is_root;
        if in_user_namespace {
            flags |= libc::CLONE_NEWUSER;
        }
        let tmp = private_tmp.then(|| Tmp::new(&self.places, root.unwrap_or(&wish.state_dir), secrets, memory_bytes));
        if tmp.as_ref().is_some_and(|tmp| tmp.kept.len() > child::MAX_KEPT) {
            return Err(io::Error::other("too many granted paths lie below /tmp, /var/tmp and /dev/shm"));
        }
        Ok(Cell {
            flags: u64::from(flags.unsigned_abs()),
            confined: true,
            isolated,
            user_map: in_user_namespace.then(UserMap::own),
            tmp,
            ruleset: if has(Part::Landlock) { self.rules.ruleset(root, secrets, devices)? } else { None },
            write_bits: self.rules.write_bits(),
            read_bits: self.rules.read_bits(),
            drop_bounding: self.is_root,
            last_capability: self.last_capability,
            limits: resource_limits(),
            filter: self.filter.clone().filter(|_| has(Part::Seccomp)),
            host: None,
            user: None,
        })
    }
}

impl UserMap {
    fn own() -> Self {
        let line = |id: u32| std::ffi::CString::new(format!("{id} {id} 1")).unwrap_or_default();
        Self { uid: line(rustix::process::geteuid().as_raw()), gid: line(rustix::process::getegid().as_raw()) }
    }
}

fn last_capability() -> u32 {
    let text = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap_or_default();
    text.trim().parse().unwrap_or(63)
}

/// Limits that a task may not have higher: locked memory, message queues, priorities. Never raised.
fn resource_limits() -> Vec<(libc::__rlimit_resource_t, libc::rlimit)> {
    use rustix::process::{Resource, getrlimit};
    let wanted = [
        (libc::RLIMIT_MEMLOCK, Resource::Memlock, 8 << 20),
        (libc::RLIMIT_MSGQUEUE, Resource::Msgqueue, 819_200),
        (libc::RLIMIT_RTPRIO, Resource::Rtprio, 0),
        (libc::RLIMIT_NICE, Resource::Nice, 0),
    ];
    let lower = |(number, resource, most): (_, _, u64)| {
        let now = getrlimit(resource);
        let least = |limit: Option<u64>| limit.map_or(most, |limit| limit.min(most));
        (number, libc::rlimit { rlim_cur: least(now.current), rlim_max: least(now.maximum) })
    };
    wanted.map(lower).to_vec()
}
