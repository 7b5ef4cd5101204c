//! Health and metrics over HTTP: three pages to be read, nothing that can be changed.
//!
//! Whoever reaches the address is a stranger, a task on this machine for one. So a connection has one request and a short
//! life, there are few of them at one time, bodies are not read, and the page that costs something is not made anew for each
//! reader.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::health::Health;
use crate::config::Listen;
use crate::telemetry::causes;
use crate::telemetry::metrics::{CONTENT_TYPE, Meters};

/// Connections at one time; others wait in the kernel.
const CONNECTIONS: usize = 32;
/// Life of a connection: a scraper gives up after ten seconds.
const LIFE: Duration = Duration::from_secs(10);
/// Time for the head of a request.
const HEAD_WITHIN: Duration = Duration::from_secs(5);
/// Largest head of a request, bytes.
const HEAD_MAX: usize = 16 << 10;
/// Age up to which the text of the metrics is given out again.
const FRESH: Duration = Duration::from_millis(200);

/// Why there is no HTTP.
#[derive(Debug, thiserror::Error)]
#[error("http.listen = \"{address}\": cannot listen there; give another address, \"auto\", or \"\" for none")]
pub struct HttpError {
    address: SocketAddr,
    #[source]
    error: std::io::Error,
}

/// Where the worker is going to answer.
#[derive(Debug)]
pub struct Endpoint(Option<TcpListener>);

impl Endpoint {
    /// Listens as the configuration says. Without a free port for `auto` there is no HTTP, and the log says so.
    ///
    /// # Errors
    /// When the address that was asked for cannot be had.
    pub async fn bind(listen: Listen) -> Result<Self, HttpError> {
        match listen {
            Listen::Off => Ok(Self(None)),
            Listen::At(address) => {
                let listener = TcpListener::bind(address).await;
                listener.map(|listener| Self(Some(listener))).map_err(|error| HttpError { address, error })
            }
            Listen::Auto => {
                for port in Listen::PORTS {
                    if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
                        return Ok(Self(Some(listener)));
                    }
                }
                let (first, last) = (Listen::PORTS.start(), Listen::PORTS.end());
                tracing::warn!("no port from {first} to {last} is free: no health and no metrics over HTTP; name one in http.listen");
                Ok(Self(None))
            }
        }
    }

    /// The address, if there is one.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.0.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Answers for ever.
    pub(super) async fn serve(self, health: Arc<Health>, meters: &'static Meters) {
        let Some(listener) = self.0 else { return };
        let page = Arc::new(Page { meters, text: Mutex::new(None) });
        let pages = Router::new()
            .route("/healthz", get(|| async { "alive\n" }))
            .route("/readyz", get(ready).with_state(health))
            .route("/metrics", get(metrics).with_state(page))
            .fallback(|| async { (StatusCode::NOT_FOUND, "there are /healthz, /readyz and /metrics\n") });
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            if connections.len() >= CONNECTIONS {
                connections.join_next().await;
                continue;
            }
            match listener.accept().await {
                Ok((stream, _)) => drop(connections.spawn(answer(stream, pages.clone()))),
                Err(error) => {
                    tracing::debug!(error = %causes(&error), "cannot take a connection");
                    // Without descriptors it would fail again at once.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

/// One connection, one request.
async fn answer(stream: TcpStream, pages: Router) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_buf_size(HEAD_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(pages));
    // Also for who is slow to read.
    match tokio::time::timeout(LIFE, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(error = %causes(&error), "a connection over HTTP ended badly"),
        Err(_) => tracing::debug!("a connection over HTTP took too long"),
    }
}

async fn ready(State(health): State<Arc<Health>>) -> Response {
    let conditions = health.conditions();
    let status = if conditions.ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, [(header::CACHE_CONTROL, "no-store")], axum::Json(conditions.json())).into_response()
}

/// The text of the metrics, and when it was made.
struct Page {
    meters: &'static Meters,
    text: Mutex<Option<(Instant, axum::body::Bytes)>>,
}

async fn metrics(State(page): State<Arc<Page>>) -> Response {
    let mut kept = page.text.lock().await;
    let fresh = kept.as_ref().filter(|(made, _)| made.elapsed() < FRESH).map(|(_, text)| text.clone());
    let text = match fresh {
        Some(text) => text,
        None => {
            let meters = page.meters;
            let rendered = tokio::task::spawn_blocking(|| meters.render()).await;
            match rendered {
                Ok(Ok(text)) => kept.insert((Instant::now(), text.into())).1.clone(),
                Ok(Err(error)) => return failed(&error),
                Err(error) => return failed(&error),
            }
        }
    };
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response()
}

fn failed(error: &(dyn std::error::Error + 'static)) -> Response {
    tracing::error!(error = %causes(error), "cannot tell the metrics");
    (StatusCode::INTERNAL_SERVER_ERROR, "see the worker's log\n").into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_second_worker_takes_the_next_port_and_an_asked_one_must_be_free() {
        assert_eq!(Endpoint::bind(Listen::Off).await.unwrap().address(), None);
        let (first, second) = (Endpoint::bind(Listen::Auto).await.unwrap(), Endpoint::bind(Listen::Auto).await.unwrap());
        // Other workers of this machine may have taken all of them.
        if let (Some(first), Some(second)) = (first.address(), second.address()) {
            assert!(first.ip().is_loopback() && second.port() > first.port(), "{first} {second}");
        }
        let taken = Endpoint::bind(Listen::At((Ipv4Addr::LOCALHOST, 0).into())).await.unwrap().address().unwrap();
        let holder = TcpListener::bind(taken).await.unwrap();
        let error = Endpoint::bind(Listen::At(taken)).await.unwrap_err();
        assert!(causes(&error).to_string().contains(&taken.to_string()), "{error}");
        drop(holder);
    }
}
