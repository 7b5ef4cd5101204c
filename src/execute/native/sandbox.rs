//! What a task's sandbox is made of, and what of it this machine can give. Data only: the supervisor builds it.
//!
//! ```text
//! config ─▶ Wish ─▶ supervisor tries every profile ─▶ Report ─▶ worker's log, refusals
//!                                    Confinement (per task) ─▶ supervisor ─▶ the child's last steps before exec
//! ```

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::config::{self, TenantPolicy};
use crate::prepare::secret_files;
use crate::task::{Profile, Tenant};

/// What the supervisor is to prepare.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wish {
    /// Refuse tasks whose profile cannot be had in full.
    pub required: bool,
    /// Readable and executable by tasks, besides their own directory.
    pub read_paths: Vec<PathBuf>,
    /// Writable by tasks, besides their own directory.
    pub write_paths: Vec<PathBuf>,
    /// Never readable, also below a path that is: credentials, configuration, the worker's state.
    pub protected: Vec<PathBuf>,
    /// Where the directories of tasks are.
    pub state_dir: PathBuf,
    /// Where secrets are files; none when no tenant has any.
    pub secrets_dir: Option<PathBuf>,
    /// First of the tenants' user ids.
    pub uid_base: u32,
}

impl Wish {
    /// What the configuration asks for. Makes the directory for secrets, where a tenant has any.
    #[must_use]
    pub fn new(config: &config::Config) -> Self {
        Self::with_secrets(config, |configured| secret_files::place(configured).ok())
    }

    /// Likewise, for whoever only looks: nothing is made.
    #[must_use]
    pub fn looking(config: &config::Config) -> Self {
        Self::with_secrets(config, |configured| secret_files::look(configured).ok().filter(|dir| dir.exists()))
    }

    fn with_secrets(config: &config::Config, secrets_dir: impl FnOnce(&str) -> Option<PathBuf>) -> Self {
        let sandbox = &config.sandbox;
        let state_dir = config.worker.state_dir.canonicalize().unwrap_or_else(|_| config.worker.state_dir.clone());
        let mut protected = vec![state_dir.clone()];
        protected.extend(Some(PathBuf::from(&config.bus.creds)).filter(|p| !p.as_os_str().is_empty()));
        protected.extend(config.source.clone());
        protected.extend(Some(PathBuf::from(&config.docker.credentials)).filter(|p| !p.as_os_str().is_empty()));
        // Made now: what the supervisor hides is decided when it starts.
        let has_secrets = config.tenants.values().any(|tenant| !tenant.secrets.is_empty());
        let secrets_dir = has_secrets.then(|| secrets_dir(&config.worker.secrets_dir)).flatten();
        Self {
            required: sandbox.required,
            read_paths: sandbox.read_paths.clone(),
            write_paths: sandbox.write_paths.clone(),
            protected,
            state_dir,
            secrets_dir,
            uid_base: sandbox.uid_base,
        }
    }
}

/// A user and group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id; it is in no other.
    pub gid: u32,
}

/// User ids that tenants are spread over.
pub const UID_RANGE: u32 = 1 << 28;

impl User {
    /// The one of a tenant: pinned, else `uid_base` and a hash of its name that never changes.
    ///
    /// Two of 1,000 tenants share an id with a probability of 0.2 %. Landlock keeps even those apart; who wants certainty
    /// pins ids.
    #[must_use]
    pub fn of_tenant(tenant: &Tenant, policy: Option<&TenantPolicy>, uid_base: u32) -> Self {
        let hash = Sha256::digest(tenant.as_str().as_bytes());
        let spread = u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]) % UID_RANGE;
        let own = uid_base.saturating_add(spread);
        let uid = policy.and_then(|p| p.uid).unwrap_or(own);
        Self { uid, gid: policy.and_then(|p| p.gid).unwrap_or(uid) }
    }
}

/// How one task is confined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// Profile of its class.
    pub profile: Profile,
    /// Who it runs as; absent: the supervisor's own user.
    pub user: Option<User>,
    /// The attempt's own directory, absolute: all of it is the task's to write.
    pub root: String,
    /// Directory with its secrets, absolute: the task may read there.
    pub secrets: Option<String>,
    /// Device nodes that are the task's to use, absolute.
    pub devices: Vec<String>,
    /// Device nodes that it must not open, absolute: other tasks' devices.
    pub hidden: Vec<String>,
}

impl Confinement {
    /// None at all.
    #[must_use]
    pub fn none() -> Self {
        Self { profile: Profile::None, user: None, root: String::new(), secrets: None, devices: vec![], hidden: vec![] }
    }
}

/// A part of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// A user id per tenant.
    Users,
    /// `/tmp` of its own, sockets of the system hidden.
    Mounts,
    /// Access to named paths only.
    Landlock,
    /// No signals to processes outside, no abstract sockets of theirs.
    Scopes,
    /// Dangerous system calls refused.
    Seccomp,
    /// Network, processes and IPC of its own.
    Namespaces,
}

impl Part {
    /// The word in events and reports.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Users => "users",
            Self::Mounts => "mounts",
            Self::Landlock => "landlock",
            Self::Scopes => "scopes",
            Self::Seccomp => "seccomp",
            Self::Namespaces => "namespaces",
        }
    }

    /// What an operator can do to have it.
    #[must_use]
    pub fn advice(self) -> &'static str {
        match self {
            Self::Users => "give the worker CAP_SETUID and CAP_SETGID, and user ids that exist here (sandbox.uid_base, tenants.<name>.uid)",
            Self::Mounts => "run the worker as root with CAP_SYS_ADMIN, Linux 5.2 or newer",
            Self::Landlock => "Linux 5.13 or newer with landlock among its security modules (lsm=landlock,...)",
            Self::Scopes => "Linux 6.12 or newer, or run the worker as root, where tenants are users of their own",
            Self::Seccomp => "a kernel with CONFIG_SECCOMP_FILTER on x86_64, aarch64 or riscv64",
            Self::Namespaces => "run the worker as root with CAP_SYS_ADMIN, or allow unprivileged user namespaces",
        }
    }
}

/// A part that cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// Which.
    pub part: Part,
    /// Where it failed and the kernel's answer.
    pub error: String,
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({}; {})", self.part.as_str(), self.error, self.part.advice())
    }
}

/// What this machine can give of one profile, as a child that went through all of it found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Which.
    pub profile: Profile,
    /// Tasks of it run here: nothing is missing, or what is missing is not required.
    pub available: bool,
    /// What is missing.
    pub missing: Vec<Missing>,
    /// `/tmp`, `/var/tmp` and `/dev/shm` are the task's own; otherwise it has a directory in `TMPDIR`.
    pub private_tmp: bool,
}

impl Finding {
    /// The words of what is missing.
    #[must_use]
    pub fn without(&self) -> Vec<String> {
        self.missing.iter().map(|m| m.part.as_str().to_owned()).collect()
    }
}

/// What this machine can give, for the log and for whoever examines it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Landlock's version here, 0 for none.
    pub landlock_abi: u32,
    /// Tenants are users of their own.
    pub separate_users: bool,
    /// Each profile.
    pub profiles: Vec<Finding>,
}

impl Report {
    /// Of one profile.
    #[must_use]
    pub fn of(&self, profile: Profile) -> Option<&Finding> {
        self.profiles.iter().find(|f| f.profile == profile)
    }

    /// One line a profile, for the log.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let line = |f: &Finding| {
            let missing: Vec<String> = f.missing.iter().map(ToString::to_string).collect();
            let state = if f.available { "available" } else { "not available" };
            let without = if missing.is_empty() { String::new() } else { format!(", missing {}", missing.join("; ")) };
            format!("{}: {state}{without}", f.profile)
        };
        self.profiles.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_has_one_user_for_ever() {
        let tenant = Tenant::new("acme").unwrap();
        let user = User::of_tenant(&tenant, None, 1_879_048_192);
        // Written down: a change would give a tenant's files to nobody.
        assert_eq!((user.uid, user.gid), (1_915_433_901, 1_915_433_901));
        let other = User::of_tenant(&Tenant::new("acme2").unwrap(), None, 1_879_048_192);
        assert_ne!(user, other);
        let pinned = TenantPolicy { uid: Some(5000), ..TenantPolicy::default() };
        assert_eq!(User::of_tenant(&tenant, Some(&pinned), 1), User { uid: 5000, gid: 5000 });
    }
}
