//! `windlass doctor`: whether this machine, this NATS and this user are right for a worker, and what mends what is not.
//!
//! ```text
//! gather (kernel, disk, a real supervisor, the engine, NATS) ─▶ facts ─▶ judge (pure) ─▶ findings: ok, warn, fail
//! ```
//! It needs no running worker, changes nothing, and leaves nothing behind: the supervisor that it starts for its trial is
//! gone with its cgroups before the findings are told, or within milliseconds of whatever ends the doctor. What cannot be
//! seen from here is said to be unseen, with whom to ask; it is never taken for good.

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::bus::ConnectError;
use crate::bus::rights::Role;
use crate::config::{self, Config};

mod account;
mod containers;
mod disk;
mod gpu;
mod isolation;
mod kernel;
mod nats;
mod rights;
mod streams;

/// How good it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, with less than one might think; or cannot be seen.
    Warn,
    /// A worker does not start, refuses tasks, or does not keep a promise.
    Fail,
}

/// What it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Area {
    /// The kernel and its limits.
    Kernel,
    /// What the worker gives out.
    Capacity,
    /// Cgroups.
    Cgroups,
    /// The process that starts and kills tasks.
    Supervisor,
    /// Sandboxes of the classes.
    Sandbox,
    /// The engine of containers.
    Docker,
    /// Directories.
    Disk,
    /// The server and the way to it.
    Nats,
    /// JetStream and this account's part of it.
    Jetstream,
    /// Streams and consumers.
    Streams,
    /// What this NATS user may do.
    Rights,
}

impl Area {
    /// The word in tables and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Capacity => "capacity",
            Self::Cgroups => "cgroups",
            Self::Supervisor => "supervisor",
            Self::Sandbox => "sandbox",
            Self::Docker => "docker",
            Self::Disk => "disk",
            Self::Nats => "nats",
            Self::Jetstream => "jetstream",
            Self::Streams => "streams",
            Self::Rights => "rights",
        }
    }
}

/// One line of the examination. A contract, `docs/cli.md`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: String,
    /// What it is about.
    pub area: Area,
    /// How good it is.
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What there should be.
    pub wanted: String,
    /// What to do, a command where there is one; none when there is nothing to do.
    pub mend: Option<String>,
}

/// Something to look at, before it was.
#[derive(Debug)]
struct Check {
    area: Area,
    name: String,
    wanted: String,
}

impl Check {
    fn new(area: Area, name: impl Into<String>, wanted: impl Into<String>) -> Self {
        Self { area, name: name.into(), wanted: wanted.into() }
    }

    fn ok(self, found: impl Into<String>) -> Finding {
        let Self { area, name, wanted } = self;
        Finding { check: name, area, level: Level::Ok, found: found.into(), wanted, mend: None }
    }

    fn warn(self, found: impl Into<String>, mend: impl Into<String>) -> Finding {
        self.bad(Level::Warn, found, mend)
    }

    fn fail(self, found: impl Into<String>, mend: impl Into<String>) -> Finding {
        self.bad(Level::Fail, found, mend)
    }

    fn bad(self, level: Level, found: impl Into<String>, mend: impl Into<String>) -> Finding {
        Finding { level, mend: Some(mend.into()), ..self.ok(found) }
    }
}

/// What to look at besides the configuration.
#[derive(Debug, Clone)]
pub struct Wishes {
    /// Whose rights this user has to have.
    pub role: Role,
    /// The way to NATS as a user of the system account, who is told what servers say of themselves.
    pub system: Option<config::Bus>,
}

/// How far it came with NATS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// It could be examined.
    Examined,
    /// It answers, and is too old; or the file with the credentials cannot be read.
    Refused,
    /// These credentials are not accepted.
    NotPermitted,
    /// Nobody answers.
    Unreachable,
}

impl Reach {
    fn of(error: &ConnectError) -> Self {
        match error {
            ConnectError::Unreachable { .. } => Self::Unreachable,
            ConnectError::NotPermitted { .. } => Self::NotPermitted,
            ConnectError::Credentials { .. } | ConnectError::TooOld { .. } => Self::Refused,
        }
    }
}

/// Everything that was found.
#[derive(Debug)]
pub struct Examination {
    /// In the order of the areas.
    pub findings: Vec<Finding>,
    /// How far it came with NATS.
    pub reach: Reach,
}

impl Examination {
    /// The worst of all.
    #[must_use]
    pub fn worst(&self) -> Level {
        self.findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok)
    }
}

/// Looks at everything. When `stop` is canceled, what it started is taken away and the rest left unseen.
pub async fn examine(config: &Config, wishes: &Wishes, stop: &CancellationToken) -> Examination {
    let far = async {
        tokio::select! {
            facts = Box::pin(nats::gather(config, wishes)) => Some(facts),
            () = stop.cancelled() => None,
        }
    };
    let near = async {
        tokio::select! {
            facts = Box::pin(containers::gather(config)) => Some(facts),
            () = stop.cancelled() => None,
        }
    };
    let (isolation, far, engine) = futures_util::future::join3(Box::pin(isolation::gather(config, stop)), far, near).await;
    let mut findings = kernel::judge(&kernel::Facts::gather(), config);
    findings.extend(gpu::Facts::gather(config).iter().flat_map(|facts| gpu::judge(facts, config)));
    findings.extend(isolation::judge(&isolation, config));
    findings.extend(engine.iter().flat_map(|engine| containers::judge(engine, config)));
    findings.extend(disk::judge(&disk::Facts::gather(config), config));
    let reach = match far {
        Some(Ok(facts)) => {
            findings.extend(nats::judge(&facts, config));
            findings.extend(account::judge(&facts, config));
            findings.extend(streams::judge(&facts.drift));
            findings.extend(rights::judge(&facts.rights, wishes.role, facts.user.as_ref().ok()));
            Reach::Examined
        }
        Some(Err(error)) => {
            findings.push(nats::not_connected(&error, config));
            Reach::of(&error)
        }
        None => Reach::Unreachable,
    };
    Examination { findings, reach }
}
