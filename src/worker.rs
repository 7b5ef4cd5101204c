//! The worker: composition of the role, and the one loop that takes work in.
//!
//! ```text
//! capacity ─permits─▶ schedule ─asks─▶ queues ─deliveries─▶ attempts (one task each) ─permits─▶ capacity
//! ```
//! [`run`] connects the parts and ends when the worker has drained. What one task goes through is in `attempt`.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

mod account;
mod attempt;
pub mod capacity;
pub(crate) mod clock;
mod desk;
mod dispatcher;
mod drive;
mod ground;
mod health;
pub mod http;
mod instance;
mod orphans;
mod precedence;
mod progress;
mod result;
mod run;
mod schedule;
mod serving;
mod signals;
pub(crate) mod story;
pub(crate) mod sweeper;
mod taken;
pub(crate) mod unserved;

pub use instance::{Instance, InstanceError};

use crate::bus::control::Cancels;
use crate::bus::provision::{self, UnfitStreams};
use crate::bus::{Bus, BusError, ConnectError, Patience};
use crate::config::{Config, OnLeaseLoss};
use crate::execute::docker::Containers;
use crate::execute::gpu::{GpuError, Gpus};
use crate::execute::native::sandbox::Wish;
use crate::execute::native::{Capabilities, StartError, Supervisor};
use crate::shutdown::Shutdown;
use crate::telemetry::causes;
use crate::telemetry::metrics::{Meters, MetricsError};
use crate::{execute, report};
use capacity::{Capacity, Machine};
use clock::Clock;
use desk::Desk;
use dispatcher::Dispatcher;
use ground::Ground;
use health::{Health, Pulls, Standing, Streams};
use http::Endpoint;
use serving::Serving;
use unserved::{Means, NoEngine};

/// How far the worker's end has come. The order counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// Not at all.
    Run,
    /// No new work; what runs may end.
    Drain,
    /// What still runs is stopped with its grace, and given back.
    Leave,
    /// What still runs is killed, and given back.
    Abort,
}

/// What every attempt of this worker needs.
#[derive(Debug)]
pub struct Shared {
    pub(crate) config: Config,
    pub(crate) bus: Bus,
    pub(crate) sink: Arc<Bus>,
    pub(crate) instance: Instance,
    pub(crate) supervisor: Supervisor,
    pub(crate) containers: Arc<Containers>,
    serving: Serving,
    pub(crate) cancels: Cancels,
    pub(crate) capacity: Arc<Capacity>,
    pub(crate) ground: Ground,
    streams: Streams,
    pulls: Pulls,
    pub(crate) clock: Clock,
    pub(crate) enforced: bool,
    pub(crate) stop: watch::Receiver<Stop>,
    /// Deliveries that are being taken to their end; permits that are only promised to a pull do not count.
    pub(crate) running: AtomicU32,
}

impl Shared {
    fn ack_wait(&self) -> Duration {
        Duration::from_secs_f64(self.config.lease.ack_wait_s)
    }

    /// The lesser of what its two connections know; a server tells only new ones.
    fn max_payload(&self) -> usize {
        self.bus.max_payload().min(self.sink.max_payload())
    }

    fn shed_delay(&self) -> Duration {
        Duration::from_secs_f64(self.config.worker.shed_delay_s)
    }

    fn means<'a>(capacity: &'a Capacity, engine: &'a execute::docker::Standing) -> Means<'a> {
        Means { capacity, gpus: capacity.gpus().total(), engine: NoEngine::of(engine) }
    }

    /// The engine came or went: some classes may with it.
    fn look_at_classes(&self) {
        self.serving.look(&self.config, Self::means(&self.capacity, &self.containers.standing()));
    }

    /// Whether a task is killed when its lease is over, even by a supervisor whose worker does not answer.
    fn leased(&self) -> bool {
        self.config.lease.on_lease_loss == OnLeaseLoss::Stop
    }
}

/// Why a worker does not start, or ended otherwise than asked.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// This machine.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// This program's own file, which the supervisor is started from.
    #[error("cannot find this program's own file: {0}")]
    Executable(std::io::Error),
    /// The supervisor, and with it the limits.
    #[error(transparent)]
    Supervisor(#[from] StartError),
    /// NATS.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// NATS, later.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// Streams.
    #[error(transparent)]
    Streams(#[from] UnfitStreams),
    /// Devices that the configuration names.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// It could never run a task of any of its classes.
    #[error("no class can be served here: {0}; give this worker a class that fits, or what the classes need")]
    NothingToServe(String),
    /// Metrics.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The supervisor died: its tasks are dead too, and were given back.
    #[error("the supervisor is gone; its tasks were stopped and given back")]
    SupervisorLost,
}

/// Runs a worker until `shutdown` says otherwise and its tasks have ended. It tells of itself at `endpoint` meanwhile.
///
/// # Errors
/// When it cannot start, or lost its supervisor.
pub async fn run(mut config: Config, shutdown: Shutdown, endpoint: Endpoint) -> Result<(), WorkerError> {
    let stop = shutdown.stop.clone();
    let instance = Instance::create(&config.worker)?;
    let gpus = Arc::new(Gpus::find(&config)?);
    let capacity = Capacity::with_gpus(&config, Machine::here(), Arc::clone(&gpus));
    let containers = Arc::new(Containers::new(&config.docker, &config.worker.state_dir));
    let serving = Serving::begin(&mut config, Shared::means(&capacity, &containers.standing()))?;
    let mut background = JoinSet::new();
    let health = Health::new(stop.clone());
    if let Some(address) = endpoint.address() {
        let meters = Meters::new(
            config.classes.keys(),
            &config.http.metrics_tenants,
            &config.worker.environment,
            Standing(Arc::clone(&health), Arc::clone(&capacity)),
        )?;
        background.spawn(endpoint.serve(Arc::clone(&health), meters.install()));
        tracing::info!(%address, "health and metrics over HTTP");
    }
    let supervisor = start_supervisor(&config, &instance.info.instance).await?;
    let enforced = supervisor.capabilities().enforced;
    let mut stopping = stop.clone();
    let name = format!("windlass worker {}", instance.info.worker_id);
    // Output has a connection of its own: on a slow link a renewal must not wait behind a window of chunks.
    let output = format!("{name} (output)");
    let both = Box::pin(futures_util::future::try_join(
        Bus::connect(&config.bus, &name, Patience::Wait),
        Bus::connect(&config.bus, &output, Patience::Wait),
    ));
    let (bus, sink) = tokio::select! {
        buses = both => buses?,
        _ = stopping.wait_for(|s| *s >= Stop::Drain) => return Ok(()),
    };
    checked(&bus, &serving.served_of(&config), &mut stopping).await?;
    let (cancels, listening) = Cancels::listen(&bus).await?;
    background.spawn(listening);
    let sink = Arc::new(sink);
    let ground = Ground::new(instance.dir());
    let (streams, pulls) = (Streams::default(), Pulls::default());
    let running = AtomicU32::new(0);
    let clock = Clock::default();
    // Before the first task: the first decision counts too.
    clock.look(&bus).await;
    let shared = Arc::new(Shared {
        config,
        bus,
        sink,
        instance,
        supervisor,
        containers,
        serving,
        cancels,
        capacity,
        ground,
        streams,
        pulls,
        clock,
        enforced,
        stop,
        running,
    });
    health.begin(&shared);
    start_background(&shared, &mut background);
    let desk = Desk::open(&shared, shutdown);
    tracing::info!(worker_id = %shared.instance.info.worker_id, instance = shared.instance.info.instance, slots = shared.capacity.slots(), "ready");
    let end = Dispatcher::new(Arc::clone(&shared)).run().await;
    background.shutdown().await;
    orphans::leave_nothing(&shared).await;
    shared.supervisor.shutdown().await;
    desk.close().await;
    futures_util::future::join(shared.bus.close(), shared.sink.close()).await;
    end
}

async fn start_supervisor(config: &Config, instance: &str) -> Result<Supervisor, WorkerError> {
    let exe = std::env::current_exe().map_err(WorkerError::Executable)?;
    let wish = Wish::new(config);
    let supervisor = Supervisor::start_with(&exe, &config.cgroup, instance, Some(wish)).await?;
    let capabilities = supervisor.capabilities();
    tracing::info!(limits = capabilities.description, enforced = capabilities.enforced, "supervisor ready");
    for line in capabilities.sandbox.lines() {
        tracing::info!(
            landlock_abi = capabilities.sandbox.landlock_abi,
            separate_users = capabilities.sandbox.separate_users,
            "sandbox {line}"
        );
    }
    warn_of_missing(config, capabilities);
    for (instance, gone) in &capabilities.swept {
        tracing::warn!(instance, gone, "found cgroups of a dead instance");
    }
    Ok(supervisor)
}

/// Says which classes get less than their profile, or nothing.
fn warn_of_missing(config: &Config, capabilities: &Capabilities) {
    for (name, class) in config.native_classes() {
        let Some(finding) = capabilities.sandbox.of(class.sandbox).filter(|f| !f.missing.is_empty()) else { continue };
        let missing: Vec<_> = finding.missing.iter().map(ToString::to_string).collect();
        let missing = missing.join("; ");
        if finding.available {
            tracing::warn!(class = %name, profile = %class.sandbox, missing, "tasks run with less than their sandbox");
        } else {
            tracing::warn!(class = %name, profile = %class.sandbox, missing, "tasks are refused: their sandbox cannot be had here");
        }
    }
}

/// Checks the streams; waits where the server only needs time.
async fn checked(bus: &Bus, config: &Config, stopping: &mut watch::Receiver<Stop>) -> Result<(), WorkerError> {
    loop {
        match provision::check(bus, config).await {
            Err(UnfitStreams::Bus(error)) if error.is_transient() => {
                tracing::warn!(error = %causes(&error), "cannot look at the streams yet");
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_secs(1)) => {}
                    _ = stopping.wait_for(|s| *s >= Stop::Drain) => return Ok(()),
                }
            }
            other => return Ok(other?),
        }
    }
}

fn start_background(shared: &Arc<Shared>, background: &mut JoinSet<()>) {
    let of = |shared: &Arc<Shared>| Arc::clone(shared);
    background.spawn(clear_away(of(shared)));
    let ground = of(shared);
    background.spawn(async move { ground.ground.watch().await });
    let containers = Arc::clone(&shared.containers);
    background.spawn(async move { containers.watch().await });
    let streams = of(shared);
    background.spawn(async move { streams.streams.watch(&streams).await });
    let clock = of(shared);
    background.spawn(async move { clock.clock.follow(&clock.bus).await });
    if shared.config.sweeper.interval_s > 0.0 {
        background.spawn(sweeper::Sweeper::default().run(of(shared)));
    }
    if !shared.config.logs.dir.is_empty() {
        background.spawn(prune_logs(of(shared)));
    }
}

/// Removes what dead instances left, and what attempts of this one left that could not be removed at once; again and again,
/// for what holds a tree today may let go of it tomorrow.
async fn clear_away(shared: Arc<Shared>) {
    // Soon after the start more often: what the engine was asked by a worker that died may come up only now.
    let mut pause = Duration::from_secs(5);
    loop {
        // First: a container that still runs has the dead instance's directories mounted.
        orphans::reap_dead(&shared).await;
        shared.instance.bury_the_dead(&shared.bus).await;
        let leavings = Arc::clone(&shared.instance.leavings);
        if let Err(error) = tokio::task::spawn_blocking(move || leavings.sweep()).await {
            tracing::warn!(error = %causes(&error), "cannot sweep work directories");
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(60));
    }
}

/// Keeps the local copies of output within age and size.
async fn prune_logs(shared: Arc<Shared>) {
    loop {
        let logs = shared.config.logs.clone();
        let pruning = tokio::task::spawn_blocking(move || {
            report::prune(std::path::Path::new(&logs.dir), Duration::from_secs_f64(logs.dir_max_age_h * 3600.0), logs.dir_max)
        });
        match pruning.await {
            Ok(Err(error)) => tracing::warn!(error = %causes(&error), "cannot prune local logs"),
            Ok(Ok(_)) => {}
            Err(error) => tracing::warn!(error = %causes(&error), "pruning of local logs failed"),
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
}
