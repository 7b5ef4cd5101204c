//! `windlass dev`: everything on one machine, to try it: a nats-server child, the streams, one worker in this process,
//! and the events as they come.
//!
//! Nothing is left behind however it ends. Ctrl-C stops the worker's tasks, then the server. When this process is
//! killed, the supervisor kills the tasks, and the kernel kills the nats-server ([`guard`]). The data stays in
//! `--data`, flushed to disk before each acknowledgement (`sync_interval: always`), and is found again by the next `dev`.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt as _;

mod guard;
mod server;

pub use guard::guard;
pub use server::ServerError;

use crate::bus::provision::{self, Action};
use crate::bus::read::{EventFilter, From};
use crate::bus::{Bus, BusError, Patience};
use crate::cli::{DevArgs, Exit, Failed, Global, Output, event_line};
use crate::config::Config;
use crate::shutdown::{self, Shutdown};
use crate::task::ImagePattern;
use crate::telemetry::{self, causes};
use crate::worker::http::Endpoint;
use crate::worker::{self, Stop};
use server::Server;

/// Running tasks get at most this long after Ctrl-C: somebody waits at the keyboard.
const DRAIN: Duration = Duration::from_secs(3);
/// A worker that cannot start says so within this time; then it is taken as running.
const WORKER_FAILS_WITHIN: Duration = Duration::from_millis(400);

/// Runs the verb, and says on stderr why when it cannot. To be called on the process's first thread, see [`guard`].
pub async fn run(global: &Global, args: &DevArgs) -> Exit {
    let output = Output::new(global.output);
    match serve(global, args, &output).await {
        Ok(()) => Exit::Done,
        Err(failed) => {
            output.failed(&failed);
            failed.exit
        }
    }
}

async fn serve(global: &Global, args: &DevArgs, output: &Output) -> Result<(), Failed> {
    let mut config = global.load_config()?;
    quiet_unless_asked(&mut config);
    telemetry::init(&config.log).map_err(|e| Failed::new(Exit::Usage, e.to_string()))?;
    let shutdown = shutdown::on_signals(DRAIN.min(Duration::from_secs_f64(config.worker.drain_timeout_s)))?;
    let mut server = Server::start(args, shutdown.stop.clone()).await?;
    config.bus.server = server.url();
    config.bus.creds.clear();
    config.worker.state_dir = server.data().join("worker");
    config.cgroup.allow_unlimited |= args.allow_unlimited;
    // To try things, what sandbox this machine has will do, and events say what is missing; a configuration file decides itself.
    config.sandbox.required &= config.source.is_some();
    if config.source.is_none() && config.docker.images.is_empty() {
        config.docker.images.extend("*".parse::<ImagePattern>());
    }
    if config.worker.id.is_empty() {
        config.worker.id = "dev".to_owned();
    }
    let result = with_server(&config, args, &mut server, shutdown, output).await;
    server.stop().await;
    result
}

/// The banner and the events are for the person; the worker's own log would drown them.
fn quiet_unless_asked(config: &mut Config) {
    if config.log.level == "info" {
        config.log.level = "warn".to_owned();
    }
}

async fn with_server(config: &Config, args: &DevArgs, server: &mut Server, shutdown: Shutdown, output: &Output) -> Result<(), Failed> {
    let bus = Bus::connect(&config.bus, "windlass dev", Patience::FailFast).await?;
    let changes = provision::apply(&bus, config).await?;
    if let Some(conflict) = changes.iter().find(|c| c.action == Action::Conflict) {
        let text =
            format!("{} in {} cannot become what is configured: {}", conflict.what, args.data.display(), conflict.differences.join("; "));
        return Err(Failed::new(Exit::Conflict, text).hint(format!("remove {} to begin anew", args.data.display())));
    }
    let endpoint = Endpoint::bind(config.http.listen).await.map_err(|e| Failed::new(Exit::Conflict, causes(&e).to_string()))?;
    let http = endpoint.address();
    let mut stop = shutdown.stop.clone();
    let mut worker = Box::pin(worker::run(config.clone(), shutdown, endpoint));
    let refused = |error: worker::WorkerError| Failed::new(Exit::Error, format!("the worker does not start: {}", causes(&error)));
    tokio::select! {
        end = &mut worker => return end.map_err(refused),
        () = tokio::time::sleep(WORKER_FAILS_WITHIN) => {}
    }
    banner(config, &bus, (&server.url(), http), output)?;
    let mut events = Box::pin(show_events(bus, output));
    let stopped = async {
        let _ = stop.wait_for(|s| *s >= Stop::Drain).await;
        output.tell("stopping; Ctrl-C again kills what still runs");
        std::future::pending::<()>().await;
    };
    tokio::select! {
        end = worker => end.map_err(refused),
        error = server.failed() => Err(error.into()),
        failed = &mut events => failed.map_err(Failed::from),
        () = stopped => Ok(()),
    }
}

/// Prints events as they come, until the connection is closed.
async fn show_events(bus: Bus, output: &Output) -> Result<(), BusError> {
    let mut events = bus.events(EventFilter::default(), From::New, true).await?;
    while let Some(read) = events.next().await {
        if !output.is_json() && output.line(&event_line(&read?.head, output.colour())).is_err() {
            break;
        }
    }
    // Nobody reads any more: that is no reason to stop the worker.
    std::future::pending().await
}

fn banner(config: &Config, bus: &Bus, (url, http): (&str, Option<SocketAddr>), output: &Output) -> Result<(), Failed> {
    if output.is_json() {
        let http = http.map(|address| format!("http://{address}"));
        output.json(&serde_json::json!({
            "nats_url": url, "http_url": http, "prefix": config.bus.prefix, "worker_id": config.worker.id, "pid": std::process::id()}))?;
        return Ok(());
    }
    let default = format!("nats://127.0.0.1:{}", server::DEFAULT_PORT);
    let (own, plain) = if url == default { (String::new(), String::new()) } else { (format!("NATS_URL={url} "), format!(" -s {url}")) };
    let subject = format!("{}.tasks.cpu_short.normal.default.hello-1", config.bus.prefix);
    let body = r#"{"task_id": "hello-1", "execution": {"runtime": "native", "command": ["echo", "hello"]}}"#;
    output.line(&format!(
        "windlass dev {version}: to try it, not for production (one server, no authentication)\n\
         \n\
         \x20 NATS    {url}, nats-server {server}\n\
         \x20 worker  {worker}, classes {classes}\n\
         \x20 HTTP    {http}\n\
         \n\
         Try in another terminal:\n\
         \x20 {own}windlass run -- echo hello\n\
         \x20 nats{plain} pub {subject} '{body}'\n\
         \n\
         Ctrl-C ends it and leaves no process behind. Events:",
        http = http.map_or_else(|| "none".to_owned(), |address| format!("http://{address}: /healthz, /readyz, /metrics")),
        version = env!("CARGO_PKG_VERSION"),
        server = bus.server_version(),
        worker = config.worker.id,
        classes = config.offered_classes().map(|(class, _)| class.as_str()).collect::<Vec<_>>().join(", "),
    ))?;
    Ok(())
}

impl core::convert::From<ServerError> for Failed {
    fn from(error: ServerError) -> Self {
        let exit = match &error {
            ServerError::Missing | ServerError::NoVersion { .. } | ServerError::TooOld { .. } => Exit::NotFound,
            ServerError::InUse { .. } | ServerError::Port { .. } => Exit::Conflict,
            ServerError::Data { .. } | ServerError::Start { .. } | ServerError::Ended { .. } => Exit::Error,
        };
        let failed = Self::new(exit, error.to_string());
        match error {
            ServerError::Missing | ServerError::TooOld { .. } => {
                failed.hint("deploy/fetch-nats.sh fetches one into .windlass/tools; or name yours with --nats-server PATH")
            }
            ServerError::NoVersion { .. }
            | ServerError::InUse { .. }
            | ServerError::Port { .. }
            | ServerError::Data { .. }
            | ServerError::Start { .. }
            | ServerError::Ended { .. } => failed,
        }
    }
}

/// The newest of `.windlass/tools/nats-server-<version>`, as `deploy/fetch-nats.sh` leaves them.
fn fetched(tools: &Path) -> Option<std::path::PathBuf> {
    let entries = std::fs::read_dir(tools).ok()?.filter_map(Result::ok);
    let versions = entries.filter_map(|e| {
        let version = crate::bus::connect::version_of(e.file_name().to_str()?.strip_prefix("nats-server-")?)?;
        Some((version, e.path()))
    });
    versions.max().map(|(_, path)| path)
}
