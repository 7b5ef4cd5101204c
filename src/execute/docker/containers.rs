//! The worker's way to its engine: it connects when it is needed, and knows whether the engine answers.

use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, Notify, watch};

use super::{Engine, EngineError, Images};
use crate::config;
use crate::execute::native::cgroup::Habit;
use crate::telemetry::causes;

/// Time between two looks at an engine.
const LOOK: Duration = Duration::from_secs(5);

/// What is known of the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// None is configured.
    Off,
    /// Nobody has asked it yet.
    Unknown,
    /// It answered last time.
    Answers,
    /// It did not, and why.
    Away(String),
}

/// The engine of a worker.
#[derive(Debug)]
pub struct Containers {
    config: config::Docker,
    engine: Mutex<Option<Engine>>,
    images: Images,
    standing: watch::Sender<Standing>,
    doubts: Notify,
    /// It answered at least once.
    known: AtomicBool,
    /// Its containers do not come below the cgroup that they are given.
    outside: AtomicBool,
    /// That they do was seen.
    inside: AtomicBool,
    /// Where it puts them instead, as far as that was seen.
    habit: std::sync::Mutex<Option<Habit>>,
}

impl Containers {
    /// Of this configuration; nothing is connected yet.
    #[must_use]
    pub fn new(config: &config::Docker, state_dir: &std::path::Path) -> Self {
        let standing = if config.host.is_empty() { Standing::Off } else { Standing::Unknown };
        Self {
            config: config.clone(),
            engine: Mutex::new(None),
            images: Images::new(config, state_dir),
            standing: watch::Sender::new(standing),
            doubts: Notify::new(),
            known: AtomicBool::new(false),
            outside: AtomicBool::new(false),
            inside: AtomicBool::new(false),
            habit: std::sync::Mutex::default(),
        }
    }

    /// As configured.
    #[must_use]
    pub fn config(&self) -> &config::Docker {
        &self.config
    }

    /// Its images.
    #[must_use]
    pub fn images(&self) -> &Images {
        &self.images
    }

    /// What is known of it.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.standing.borrow().clone()
    }

    /// Follows that.
    #[must_use]
    pub fn follow(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// Why a worker that had an engine has none; none while it answers, and where there never was one.
    #[must_use]
    pub fn lost(&self) -> Option<String> {
        match &*self.standing.borrow() {
            Standing::Away(why) if self.known.load(Ordering::Relaxed) => Some(why.clone()),
            Standing::Away(_) | Standing::Off | Standing::Unknown | Standing::Answers => None,
        }
    }

    /// The engine, which answers at this moment.
    ///
    /// # Errors
    /// When it does not, or cannot be worked with.
    pub async fn engine(&self) -> Result<Engine, EngineError> {
        if self.config.host.is_empty() {
            return Err(EngineError::Unfit("docker.host is empty: this worker has no container engine".to_owned()));
        }
        let mut held = self.engine.lock().await;
        let asked = match &*held {
            Some(engine) => engine.ping().await.map(|()| engine.clone()),
            None => Engine::connect(&self.config).await,
        };
        match &asked {
            Ok(engine) => *held = Some(engine.clone()),
            // What answers next may be another one.
            Err(_) => *held = None,
        }
        drop(held);
        self.found(&asked);
        asked
    }

    fn found(&self, asked: &Result<Engine, EngineError>) {
        let now = match asked {
            Ok(_) => Standing::Answers,
            Err(error) => Standing::Away(error.to_string()),
        };
        let known = self.known.fetch_or(asked.is_ok(), Ordering::Relaxed);
        let before = self.standing.send_replace(now.clone());
        match (&before, &now, asked) {
            (Standing::Answers, Standing::Away(error), _) => tracing::error!(error, "the container engine is gone: its tasks wait"),
            (Standing::Unknown, Standing::Away(error), _) => tracing::warn!(error, "no container engine: tasks of the runtime docker wait"),
            (Standing::Unknown | Standing::Away(_), Standing::Answers, Ok(engine)) => {
                let facts = engine.facts();
                tracing::info!(
                    host = engine.host(),
                    product = facts.product,
                    version = facts.version,
                    api = facts.api,
                    cgroup_driver = facts.cgroup_driver,
                    again = known,
                    "container engine answers"
                );
            }
            (Standing::Off | Standing::Unknown | Standing::Answers | Standing::Away(_), _, _) => {}
        }
    }

    /// Somebody could not use it: it is looked at again at once.
    pub fn doubt(&self) {
        self.doubts.notify_one();
    }

    /// Looks for ever.
    pub async fn watch(&self) {
        if self.config.host.is_empty() {
            return std::future::pending().await;
        }
        loop {
            if let Err(error) = self.engine().await {
                tracing::debug!(error = %causes(&error), "the container engine does not answer");
            }
            tokio::select! {
                // Both arms are cancel safe.
                () = tokio::time::sleep(LOOK) => {}
                () = self.doubts.notified() => {}
            }
        }
    }

    /// Whether containers of `engine` can be made below a cgroup of the worker's own. Podman would put its own monitor there, too,
    /// which must outlive what the supervisor kills.
    #[must_use]
    pub fn can_hold(&self, engine: &Engine) -> bool {
        engine.facts().product == "Docker" && engine.facts().cgroup_driver == "cgroupfs" && !self.outside.load(Ordering::Relaxed)
    }

    /// Whether it is known that they really are there.
    #[must_use]
    pub fn seen_inside(&self) -> bool {
        self.inside.load(Ordering::Relaxed)
    }

    /// Where the cgroups of its containers are, when one was seen before.
    #[must_use]
    pub fn habit(&self) -> Option<Habit> {
        self.habit.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// One was seen.
    pub fn learn(&self, habit: Habit) {
        *self.habit.lock().unwrap_or_else(PoisonError::into_inner) = Some(habit);
    }

    /// A container was looked for below its cgroup, and was there or not.
    pub fn saw(&self, inside: bool) {
        self.inside.store(inside, Ordering::Relaxed);
        if !inside && !self.outside.swap(true, Ordering::Relaxed) {
            tracing::warn!("the engine does not put containers below the worker's cgroup: from now on its own limits hold");
        }
    }
}
