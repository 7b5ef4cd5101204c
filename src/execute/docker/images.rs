//! Images: from the name in a plan to one that the engine has, by the pull policy.
//!
//! ```text
//! ensure ─▶ inspect ─(there, unless pull = always)────────────────────────▶ Ready
//!              └▶ flight (one per image and credentials, shared by all who wait) ─▶ inspect ─▶ digest is what was asked ─▶ Ready
//!                   └ make room ─▶ note in the journal ─▶ pull ─(transient: again after a delay)
//! ```
//! A [`Ready`] names the image by its id, because tags move: who creates a container from the id runs what was looked at. While it
//! is held no worker of this state directory removes the image (`journal`).
//!
//! A tenant that may use an image by its allowlist may use it when another's credentials have pulled it: `pull = "missing"` asks the
//! engine, not the registry. Where the registry is to decide for each task, `pull = "always"` is the policy.

mod journal;
mod progress;
mod pull;
mod verdict;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bollard::models::ImageInspect;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use tokio::sync::watch;

use super::credentials::{self, Credentials};
use super::{Engine, EngineError, evict};
use crate::config;
use crate::retry::Delays;
use crate::task::{ImageRef, PullPolicy, Reason};
use crate::telemetry::spawn_blocking;
pub(super) use journal::{Entry, Hold, Journal};
use progress::Layers;
pub use progress::PullProgress;
use verdict::Fault;

/// How often an image that was removed right after it was pulled is pulled again.
const ROUNDS: usize = 3;

/// The images of one worker; cheap to clone.
#[derive(Debug, Clone)]
pub struct Images {
    parts: Arc<Parts>,
}

#[derive(Debug)]
struct Parts {
    config: config::Docker,
    journal: Journal,
    flights: Mutex<HashMap<Key, Flight>>,
}

/// Who asks with other credentials must not get in by those of somebody else.
type Key = (ImageRef, Option<[u8; 32]>);

/// What a pull comes to; its hold keeps the image until the one who waited holds it.
type Pulled = Result<Option<Arc<Hold>>, ImageError>;

/// One pull that goes on for as long as somebody waits for it.
#[derive(Debug, Clone)]
struct Flight {
    end: WeakShared<BoxFuture<'static, Pulled>>,
    progress: watch::Receiver<PullProgress>,
}

/// An image that the engine has. While it is held it is not removed to make room.
#[derive(Debug, Clone)]
pub struct Ready {
    /// `sha256:…` of the image itself: what containers are created from.
    pub id: String,
    /// `sha256:…` of its manifest, by which its registry knows it; none for one that was never in a registry.
    pub digest: Option<String>,
    /// The working directory that it names; empty: none.
    pub working_dir: String,
    _hold: Option<Arc<Hold>>,
}

/// Why there is no image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct ImageError {
    /// Typed.
    pub reason: Reason,
    /// What happened.
    pub error: String,
    /// What to do.
    pub hint: String,
}

impl Images {
    /// For a worker with this state directory, which workers may share.
    #[must_use]
    pub fn new(config: &config::Docker, state_dir: &Path) -> Self {
        let journal = Journal::new(state_dir, &config.host);
        Self { parts: Arc::new(Parts { config: config.clone(), journal, flights: Mutex::default() }) }
    }

    /// Makes sure that the engine has it. `credentials` are the task's own; without them those of the configuration count.
    /// Cancel safe: a pull that nobody waits for any more is stopped.
    ///
    /// # Errors
    /// When it does not exist, may not be had, or could not be pulled.
    pub async fn ensure(
        &self,
        engine: &Engine,
        image: &ImageRef,
        pull: PullPolicy,
        credentials: Option<&Credentials>,
        progress: &(dyn Fn(PullProgress) + Sync),
    ) -> Result<Ready, ImageError> {
        if pull != PullPolicy::Always
            && let Some(ready) = self.parts.find(engine, image).await?
        {
            return Ok(ready);
        }
        if pull == PullPolicy::Never {
            return Err(ImageError {
                reason: Reason::ImageNotFound,
                error: format!("the engine does not have {image}, and pull is never"),
                hint: "load it on every worker that serves the class, or ask for pull missing or always".to_owned(),
            });
        }
        for _ in 0..ROUNDS {
            let _hold = self.pulled(engine, image, credentials, progress).await?;
            if let Some(ready) = self.parts.find(engine, image).await? {
                return Ok(ready);
            }
        }
        Err(failed(image, "it was pulled and removed again by somebody else", "see who removes images on that machine"))
    }

    /// Removes images that Windlass pulled and nobody uses, the longest unused first, until the disk that holds images is used less
    /// than configured. What was removed.
    pub async fn make_room(&self, engine: &Engine) -> Vec<String> {
        evict::make_room(engine, &self.parts.journal, self.parts.config.disk_high_percent).await
    }

    /// Joins the pull that is on its way, or begins one.
    async fn pulled(
        &self,
        engine: &Engine,
        image: &ImageRef,
        credentials: Option<&Credentials>,
        progress: &(dyn Fn(PullProgress) + Sync),
    ) -> Pulled {
        let (end, mut seen) = self.flight(engine, image, credentials);
        let mut end = std::pin::pin!(end);
        loop {
            // Both arms are cancel safe: a flight belongs to all who wait.
            tokio::select! {
                biased;
                pulled = &mut end => return pulled,
                Ok(()) = seen.changed() => {
                    let now = seen.borrow_and_update().clone();
                    progress(now);
                }
            }
        }
    }

    fn flight(
        &self,
        engine: &Engine,
        image: &ImageRef,
        credentials: Option<&Credentials>,
    ) -> (Shared<BoxFuture<'static, Pulled>>, watch::Receiver<PullProgress>) {
        let key: Key = (image.clone(), credentials.map(Credentials::fingerprint));
        let mut flights = self.parts.flights.lock().unwrap_or_else(PoisonError::into_inner);
        let under_way = |flight: &Flight| flight.end.upgrade().filter(|end| end.peek().is_none());
        if let Some(flight) = flights.get(&key)
            && let Some(end) = under_way(flight)
        {
            return (end, flight.progress.clone());
        }
        flights.retain(|_, flight| under_way(flight).is_some());
        let (teller, seen) = watch::channel(PullProgress::default());
        let (parts, engine, image, credentials) = (Arc::clone(&self.parts), engine.clone(), image.clone(), credentials.cloned());
        let end = async move { parts.fly(&engine, &image, credentials, &teller).await }.boxed().shared();
        if let Some(weak) = end.downgrade() {
            flights.insert(key, Flight { end: weak, progress: seen.clone() });
        }
        (end, seen)
    }
}

impl Parts {
    /// The image, if the engine has it, held.
    async fn find(&self, engine: &Engine, image: &ImageRef) -> Result<Option<Ready>, ImageError> {
        let Some(found) = inspect(engine, &address(image)).await? else { return Ok(None) };
        let hold = match self.journal.hold(found.id.as_deref().unwrap_or_default()).await {
            Ok(hold) => hold,
            // Between the look and the lock Windlass took its names away: who still has it got it elsewhere.
            Err(journal::Gone) => match inspect(engine, &address(image)).await? {
                Some(_) => None,
                None => return Ok(None),
            },
        };
        ready(image, found, hold.map(Arc::new)).map(Some)
    }

    /// Pulls it, as often as configured.
    async fn fly(
        &self,
        engine: &Engine,
        image: &ImageRef,
        credentials: Option<Credentials>,
        teller: &watch::Sender<PullProgress>,
    ) -> Pulled {
        let credentials = match credentials {
            Some(own) => Some(own),
            None => self.configured(image).await?,
        };
        let before = inspect(engine, &address(image)).await?;
        let pending = self.journal.begin(image, before.as_ref().and_then(|found| found.id.as_deref())).await;
        let mut delays = Delays::of(&self.config.pull_retry);
        let mut tries = 1;
        loop {
            evict::make_room(engine, &self.journal, self.config.disk_high_percent).await;
            let fault = match self.pull_once(engine, image, credentials.as_ref(), teller).await {
                Ok(()) => break,
                Err(fault) => fault,
            };
            let last = tries >= self.config.pull_retry.max_attempts.max(1);
            if last || !fault.is_transient() || !self.has_room_again(engine, &fault).await {
                pending.fail().await;
                return Err(fault.told(image, tries, credentials.is_some()));
            }
            let delay = delays.next_delay();
            tracing::warn!(%image, error = fault.message, tries, delay_ms = delay.as_millis(), "a pull failed and is tried again");
            teller.send_modify(|progress| progress.message = format!("{image}: try {tries} failed, again soon"));
            tokio::time::sleep(delay).await;
            tries += 1;
        }
        let hold = match inspect(engine, &address(image)).await? {
            Some(found) => pending.done(&self.journal, image, &found).await.map(Arc::new),
            None => None,
        };
        let removed = evict::make_room(engine, &self.journal, self.config.disk_high_percent).await;
        tracing::info!(%image, tries, removed = removed.len(), "pulled an image");
        Ok(hold)
    }

    /// Whether the disk was not what was missing, or there is more of it now.
    async fn has_room_again(&self, engine: &Engine, fault: &Fault) -> bool {
        fault.kind != verdict::Kind::DiskFull
            || !evict::make_more_room(engine, &self.journal, self.config.disk_high_percent).await.is_empty()
    }

    /// What the worker's own file has for its registry.
    async fn configured(&self, image: &ImageRef) -> Result<Option<Credentials>, ImageError> {
        let (path, of) = (self.config.credentials.clone(), image.clone());
        let read = spawn_blocking(move || credentials::configured(&path, &of)).await;
        let told = |error: &dyn std::fmt::Display| {
            failed(image, &error.to_string(), "correct the file that docker.credentials of the worker names")
        };
        read.map_err(|error| told(&error))?.map_err(|error| told(&error))
    }

    async fn pull_once(
        &self,
        engine: &Engine,
        image: &ImageRef,
        credentials: Option<&Credentials>,
        teller: &watch::Sender<PullProgress>,
    ) -> Result<(), Fault> {
        let mut layers = Layers::new(image);
        let inactivity = Duration::from_secs_f64(self.config.pull_inactivity_s);
        let told = |line: &pull::Line| match layers.take(line) {
            progress::Step::Progress(progress) => {
                teller.send_replace(progress);
                true
            }
            progress::Step::Moved => true,
            progress::Step::Waiting => false,
        };
        let mut pulled = pull::pull(engine.host(), image, credentials, inactivity, told).await;
        if let (Err(fault), Some(credentials)) = (&mut pulled, credentials) {
            credentials.redact(&mut fault.message);
        }
        pulled
    }
}

/// How the engine is asked for it: with a digest the tag says nothing.
fn address(image: &ImageRef) -> String {
    match (&image.digest, &image.tag) {
        (Some(digest), _) => format!("{}@{digest}", image.name()),
        (None, tag) => format!("{}:{}", image.name(), tag.as_deref().unwrap_or("latest")),
    }
}

/// What the engine knows of it; none when it does not have it.
async fn inspect(engine: &Engine, address: &str) -> Result<Option<ImageInspect>, ImageError> {
    match engine.ask("inspect image", engine.api().inspect_image(address)).await {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(ImageError {
            reason: Reason::DockerUnavailable,
            error: error.to_string(),
            hint: "look at the container engine of the worker; the task is tried again".to_owned(),
        }),
    }
}

/// Digests under which the image's own repository is known to have it.
fn digests(image: &ImageRef, found: &ImageInspect) -> Vec<String> {
    let own = |text: &String| text.parse::<ImageRef>().ok().filter(|known| known.name() == image.name())?.digest;
    found.repo_digests.iter().flatten().filter_map(own).collect()
}

fn ready(image: &ImageRef, found: ImageInspect, hold: Option<Arc<Hold>>) -> Result<Ready, ImageError> {
    let digests = digests(image, &found);
    if let Some(asked) = image.digest.as_ref().filter(|asked| !digests.contains(asked)) {
        let error = format!("the engine has something else under that digest: asked for {asked}, found {}", digests.join(", "));
        return Err(failed(image, &error, "look at the images of the worker's engine"));
    }
    let digest = image.digest.clone().or_else(|| digests.into_iter().next());
    let working_dir = found.config.and_then(|config| config.working_dir).unwrap_or_default();
    Ok(Ready { id: found.id.unwrap_or_default(), digest, working_dir, _hold: hold })
}

fn failed(image: &ImageRef, error: &str, hint: &str) -> ImageError {
    ImageError { reason: Reason::ImagePullFailed, error: format!("cannot pull {image}: {error}"), hint: hint.to_owned() }
}

impl From<EngineError> for Fault {
    fn from(error: EngineError) -> Self {
        Self { kind: verdict::Kind::Engine, message: error.to_string() }
    }
}
