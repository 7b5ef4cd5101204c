//! Connecting, and what must be true of the server.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{ConnectErrorKind, ConnectOptions, Event, ServerError, jetstream};
use tokio::sync::watch;

use super::credentials::Credentials;
use super::pulse::Pulse;
use super::{Bus, Inner, Subjects};
use crate::config;
use crate::retry::Delays;
use crate::telemetry::causes;
use crate::telemetry::metrics;

/// Oldest server that keeps every promise of the contract, see `docs/protocol.md`.
pub const SERVER_FLOOR: (u64, u64, u64) = (2, 12, 3);

/// Whether to wait for a server that is not there yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// A verb for people: say at once that nobody answers.
    FailFast,
    /// A worker: NATS may start after it.
    Wait,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody answers, or not as a NATS server does.
    #[error("cannot reach NATS at {server}: {error}")]
    Unreachable {
        /// As configured, without password.
        server: String,
        /// The library's words.
        error: String,
    },
    /// The server does not let us in.
    #[error("NATS at {server} refuses these credentials: {error}; give others with --creds or NATS_CREDS")]
    NotPermitted {
        /// As configured, without password.
        server: String,
        /// The library's words.
        error: String,
    },
    /// The credentials file cannot be read.
    #[error("cannot read credentials {path}: {error}")]
    Credentials {
        /// As configured.
        path: String,
        /// The system's answer.
        error: std::io::Error,
    },
    /// The server cannot keep the promises.
    #[error("nats-server {version} is too old: {}.{}.{} or newer is needed (older ones cannot fence an event by its whole chain)", SERVER_FLOOR.0, SERVER_FLOOR.1, SERVER_FLOOR.2)]
    TooOld {
        /// What it says of itself.
        version: String,
    },
}

impl Bus {
    /// Connects to the servers of `config` under the client name `name`.
    ///
    /// # Errors
    /// When nobody answers (at once, or never with [`Patience::Wait`]), the credentials are refused, or the server is too old.
    pub async fn connect(config: &config::Bus, name: &str, patience: Patience) -> Result<Self, ConnectError> {
        let mut delays = Delays::new(Duration::from_millis(100), Duration::from_secs(2));
        let (connected, connections) = watch::channel(0);
        let connected = Arc::new(connected);
        let client = loop {
            match attempt(config, name, Arc::clone(&connected)).await {
                Ok(client) => break client,
                Err(error @ ConnectError::Unreachable { .. }) if patience == Patience::Wait => {
                    tracing::warn!(error = %causes(&error), "waiting for NATS");
                    delays.wait().await;
                }
                Err(error) => return Err(error),
            }
        };
        let version = client.server_info().version;
        if version_of(&version) < Some(SERVER_FLOOR) {
            return Err(ConnectError::TooOld { version });
        }
        let timeout = Duration::from_secs_f64(config.request_timeout_s);
        // Its own first event is no news: whoever asks from now on may take the next one for a new connection.
        let mut first = connections.clone();
        let _ = tokio::time::timeout(timeout, first.wait_for(|n| *n > 0)).await;
        let js = jetstream::context::ContextBuilder::new().timeout(timeout).build(client.clone());
        Ok(Self {
            inner: Arc::new(Inner { client, js, subjects: Subjects::new(&config.prefix), timeout, connections, pulse: Pulse::default() }),
        })
    }
}

/// `2.12.3-RC.1` → `(2, 12, 3)`.
pub(crate) fn version_of(text: &str) -> Option<(u64, u64, u64)> {
    let core = text.trim_start_matches('v').split(['-', '+']).next()?;
    let mut numbers = core.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?))
}

async fn attempt(config: &config::Bus, name: &str, connected: Arc<watch::Sender<u64>>) -> Result<async_nats::Client, ConnectError> {
    let client = name.to_owned();
    let credentials = Credentials::of(config);
    // At once, with the reason: later, a file that cannot be read is only a connection that cannot be made yet.
    if let Credentials::File(path) = &credentials {
        std::fs::File::open(path).map_err(|error| ConnectError::Credentials { path: config.creds.clone(), error })?;
    }
    let options = match &credentials {
        Credentials::None => ConnectOptions::new(),
        Credentials::File(_) | Credentials::Url { .. } => ConnectOptions::with_auth_callback(move |nonce| {
            let answer = credentials.answer(&nonce);
            async { answer }
        }),
    };
    let options = options
        .name(name)
        .ping_interval(Duration::from_secs_f64(config.ping_interval_s))
        .request_timeout(Some(Duration::from_secs_f64(config.request_timeout_s)))
        .connection_timeout(Duration::from_secs_f64(config.request_timeout_s))
        .reconnect_delay_callback(reconnect_delay)
        .event_callback(move |event| {
            // The library waits for this callback: it must not.
            on_event(&client, &event, &connected);
            async {}
        });
    let servers: Vec<&str> = config.server.split(',').map(str::trim).filter(|s| !s.is_empty()).collect();
    let server = config.shown_server();
    options.connect(servers.as_slice()).await.map_err(|e| {
        let error = std::error::Error::source(&e).map_or_else(|| e.to_string(), |source| format!("{e}: {source}"));
        match e.kind() {
            ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => ConnectError::NotPermitted { server, error },
            ConnectErrorKind::ServerParse
            | ConnectErrorKind::Dns
            | ConnectErrorKind::TimedOut
            | ConnectErrorKind::Tls
            | ConnectErrorKind::Io
            | ConnectErrorKind::MaxReconnects => ConnectError::Unreachable { server, error },
        }
    })
}

/// At once first, then up to two seconds, jittered: a fleet must not come back in step.
fn reconnect_delay(attempts: usize) -> Duration {
    if attempts <= 1 {
        return Duration::from_millis(u64::from(jitter()) % 50);
    }
    let nominal = 50_u64.saturating_mul(1 << attempts.min(6)).min(2000);
    Duration::from_millis(nominal / 2 + u64::from(jitter()) % nominal)
}

fn jitter() -> u32 {
    uuid::Uuid::now_v7().as_u128() as u32
}

fn on_event(client: &str, event: &Event, connected: &watch::Sender<u64>) {
    match event {
        Event::Connected => {
            connected.send_modify(|n| *n += 1);
            if *connected.borrow() > 1 {
                metrics::note(metrics::Meters::reconnected);
            }
            tracing::info!(client, "connected to NATS");
        }
        Event::Disconnected => tracing::warn!(client, "disconnected from NATS, reconnecting"),
        Event::LameDuckMode => tracing::warn!(client, "the NATS server is about to stop; going on with another as soon as it does"),
        Event::Draining | Event::Closed => tracing::debug!(client, %event, "connection to NATS"),
        Event::ServerError(error) => said_by_server(client, error),
        Event::SlowConsumer(_) | Event::ClientError(_) => tracing::warn!(client, %event, "connection to NATS"),
    }
}

/// What a server says without being asked, with what an operator can do about it.
fn said_by_server(client: &str, error: &ServerError) {
    let text = error.to_string();
    let lower = text.to_lowercase();
    let advice = if lower.contains("permissions violation") {
        "the credentials lack a right that this role needs: grant it (see the permission lists of docs/protocol.md); nothing needs to be restarted"
    } else if lower.contains("authorization violation") || lower.contains("authentication") {
        "the credentials are not, or no longer, accepted: renew them; nothing needs to be restarted if the file keeps its place"
    } else if lower.contains("maximum connections") || lower.contains("maximum account active connections") {
        "the server takes no more connections: raise max_connections; trying again"
    } else if lower.contains("maximum payload") {
        "something larger than max_payload was sent: it is sent again, shortened where that can be done"
    } else {
        "see the server's log"
    };
    tracing::error!(client, error = text, advice, "NATS refuses");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        assert!(version_of("2.12.3") >= Some(SERVER_FLOOR));
        assert!(version_of("2.15.1-RC.1") >= Some(SERVER_FLOOR));
        assert!(version_of("2.9.10") < Some(SERVER_FLOOR));
        assert!(version_of("2.12.2") < Some(SERVER_FLOOR));
        assert!(version_of("nonsense") < Some(SERVER_FLOOR));
    }
}
