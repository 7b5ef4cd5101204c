//! The connection to the engine, what it can do, and how its answers are told apart.

use std::time::{Duration, Instant};

use bollard::{API_DEFAULT_VERSION, Docker};

use crate::config;
use crate::task::Tenant;
use crate::telemetry::metrics;

/// Oldest API that has what is used here: Engine 20.10.
const OLDEST_API: (u64, u64) = (1, 41);

/// Why the engine did not do something.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// It cannot be reached, or broke the connection.
    #[error("the container engine at {host} does not answer: {what}: {error}")]
    Unavailable {
        /// Where it should be.
        host: String,
        /// What was asked for.
        what: &'static str,
        /// The answer, or the lack of one.
        error: String,
    },
    /// It said no.
    #[error("the container engine refused: {what}: {message}")]
    Refused {
        /// What was asked for.
        what: &'static str,
        /// HTTP status.
        status: u16,
        /// Its words.
        message: String,
    },
    /// It is not one that can be worked with.
    #[error("{0}")]
    Unfit(String),
}

impl EngineError {
    /// What was asked about does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }

    /// It is already so, or somebody else is at it.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused { status: 304 | 409, .. })
    }

    /// The same request may succeed later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Refused { status: 500..=599, .. })
    }
}

/// What is known of an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// `Docker` or `Podman`.
    pub product: &'static str,
    /// Its version.
    pub version: String,
    /// API version that is spoken.
    pub api: String,
    /// `cgroupfs`, `systemd` or `none`.
    pub cgroup_driver: String,
    /// Its own directory, with the images.
    pub root_dir: String,
    /// Limits that its kernel does not let it set: `memory`, `swap`, `cpu`, `pids`.
    pub missing_limits: Vec<&'static str>,
    /// It has an init that can be put into containers.
    pub has_init: bool,
}

/// A handle of the engine; cheap to clone.
#[derive(Debug, Clone)]
pub struct Engine {
    api: Docker,
    host: String,
    deadline: Duration,
    facts: Facts,
    /// Whose tasks it is asked for, for the metrics.
    tenant: Option<Tenant>,
}

impl Engine {
    /// Connects, agrees on a version of the API and asks what the engine is.
    ///
    /// # Errors
    /// When it does not answer, or is too old.
    pub async fn connect(config: &config::Docker) -> Result<Self, EngineError> {
        Self::connect_to(&config.host, Duration::from_secs_f64(config.request_timeout_s)).await
    }

    /// Likewise, with the socket and the time that a request may take.
    ///
    /// # Errors
    /// As [`Engine::connect`].
    pub async fn connect_to(host: &str, deadline: Duration) -> Result<Self, EngineError> {
        let host = host.to_owned();
        let unavailable = |error: String| EngineError::Unavailable { host: host.clone(), what: "connect", error };
        let api =
            Docker::connect_with_unix(&host, deadline.as_secs().max(1), API_DEFAULT_VERSION).map_err(|e| unavailable(e.to_string()))?;
        let agreed = tokio::time::timeout(deadline, api.negotiate_version()).await;
        let api = agreed.map_err(|_| unavailable("no answer in time".to_owned()))?.map_err(|e| unavailable(e.to_string()))?;
        let mut engine = Self { api, host, deadline, facts: Facts::unknown(), tenant: None };
        engine.facts = engine.find_facts().await?;
        Ok(engine)
    }

    /// The same, whose requests count as made for a task of `tenant`.
    #[must_use]
    pub fn on_behalf_of(&self, tenant: &Tenant) -> Self {
        Self { tenant: Some(tenant.clone()), ..self.clone() }
    }

    /// What is known of it.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Where it is.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The client, for requests through [`Engine::ask`] and for streams.
    pub(super) fn api(&self) -> &Docker {
        &self.api
    }

    /// One request with its deadline. Dropped, the engine may carry it out all the same.
    ///
    /// # Errors
    /// Told apart by whether the engine answered.
    pub(super) async fn ask<T>(
        &self,
        what: &'static str,
        request: impl Future<Output = Result<T, bollard::errors::Error>>,
    ) -> Result<T, EngineError> {
        let sent = Instant::now();
        let answer = tokio::time::timeout(self.deadline, request).await;
        metrics::note(|m| m.engine_asked(what, self.tenant.as_ref(), sent.elapsed()));
        match answer {
            Ok(answer) => answer.map_err(|error| self.told(what, error)),
            Err(_) => Err(self.unavailable(what, format!("no answer within {} s", self.deadline.as_secs_f64()))),
        }
    }

    /// The engine's error in our terms.
    #[expect(clippy::wildcard_enum_match_arm, reason = "whatever else the client says, there was no answer")]
    pub(super) fn told(&self, what: &'static str, error: bollard::errors::Error) -> EngineError {
        match error {
            bollard::errors::Error::DockerResponseServerError { status_code, message } => {
                EngineError::Refused { what, status: status_code, message }
            }
            // An error inside of a stream that began well.
            bollard::errors::Error::DockerStreamError { error } => EngineError::Refused { what, status: 500, message: error },
            other => self.unavailable(what, other.to_string()),
        }
    }

    pub(super) fn unavailable(&self, what: &'static str, error: String) -> EngineError {
        EngineError::Unavailable { host: self.host.clone(), what, error }
    }

    /// Whether it answers at this moment.
    ///
    /// # Errors
    /// When it does not.
    pub async fn ping(&self) -> Result<(), EngineError> {
        self.ask("ping", self.api.ping()).await.map(drop)
    }

    async fn find_facts(&self) -> Result<Facts, EngineError> {
        let version = self.ask("version", self.api.version()).await?;
        let info = self.ask("info", self.api.info()).await?;
        let product = if version.components.iter().flatten().any(|c| c.name.contains("Podman")) { "Podman" } else { "Docker" };
        let api = version.api_version.unwrap_or_default();
        if parsed(&api).is_none_or(|api| api < OLDEST_API) {
            let (major, minor) = OLDEST_API;
            return Err(EngineError::Unfit(format!(
                "the container engine at {} speaks API {api:?}; Windlass needs {major}.{minor} or newer (Docker 20.10, Podman 4)",
                self.host
            )));
        }
        let lacks = |has: Option<bool>, limit: &'static str| (has == Some(false)).then_some(limit);
        let missing = [
            lacks(info.memory_limit, "memory"),
            lacks(info.swap_limit, "swap"),
            lacks(info.cpu_cfs_quota, "cpu"),
            lacks(info.pids_limit, "pids"),
        ];
        Ok(Facts {
            product,
            version: version.version.unwrap_or_default(),
            api,
            cgroup_driver: info.cgroup_driver.map(|driver| driver.to_string()).unwrap_or_default(),
            root_dir: info.docker_root_dir.unwrap_or_default(),
            missing_limits: missing.into_iter().flatten().collect(),
            has_init: info.init_binary.is_some_and(|binary| !binary.is_empty()),
        })
    }
}

impl Facts {
    fn unknown() -> Self {
        Self {
            product: "",
            version: String::new(),
            api: String::new(),
            cgroup_driver: String::new(),
            root_dir: String::new(),
            missing_limits: vec![],
            has_init: false,
        }
    }
}

fn parsed(version: &str) -> Option<(u64, u64)> {
    let (major, minor) = version.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
