//! The worker's own log: tracing to standard error, for people or as JSON.

use std::io::Write;
use std::sync::OnceLock;

use tracing::{Metadata, Subscriber};
use tracing_subscriber::filter::{ParseError, filter_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use crate::config::{Log, LogFormat};
use crate::mask;

/// Why the log cannot be set up, or its level not be changed.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter cannot be read.
    #[error("log.level: {level:?} is not a filter: {error}; use error, warn, info, debug, trace, or module=level pairs")]
    Filter {
        /// As given.
        level: String,
        /// What is wrong with it.
        error: ParseError,
    },
    /// The log of this process is somebody else's.
    #[error("the level of this process's log cannot be changed")]
    Fixed,
}

/// What no level can switch on. At level trace the one library writes every message to the log as it comes from the server, and
/// the credentials it connects with; the other one writes containers with the secrets in their environment.
const NEVER: [&str; 2] = ["async_nats::connection", "bollard"];

/// What every level has: the fields of a task on each line about it, and the answer to a hangup.
const ALWAYS: &str = "windlass::telemetry=info";

static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

fn filter(level: &str) -> Result<EnvFilter, TelemetryError> {
    let unfit = |error: ParseError| TelemetryError::Filter { level: level.to_owned(), error };
    Ok(EnvFilter::try_new(level).map_err(unfit)?.add_directive(ALWAYS.parse().map_err(unfit)?))
}

fn allowed(metadata: &Metadata<'_>) -> bool {
    !NEVER.iter().any(|never| metadata.target().starts_with(never))
}

/// Sets up the log of this process.
///
/// # Errors
/// When the filter cannot be read.
pub fn init(config: &Log) -> Result<(), TelemetryError> {
    let (filter, handle) = reload::Layer::new(filter(&config.level)?);
    let lines = lines(config.format);
    // A second call in one process, as tests make it, changes nothing.
    if Registry::default().with(filter).with(filter_fn(allowed)).with(lines).try_init().is_ok() {
        let _ = FILTER.set(handle);
    }
    Ok(())
}

fn lines<S: Subscriber + for<'a> LookupSpan<'a>>(format: LogFormat) -> Box<dyn Layer<S> + Send + Sync> {
    let lines = fmt::layer().with_writer(|| Masked(std::io::stderr()));
    match format {
        LogFormat::Text => {
            let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr()) && std::env::var_os("NO_COLOR").is_none();
            lines.with_ansi(ansi).boxed()
        }
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed(),
    }
}

/// Changes the level of this process's log. A level that is no filter changes nothing.
///
/// # Errors
/// When it is no filter, or this process's log was not set up by [`init`].
pub fn set_level(level: &str) -> Result<(), TelemetryError> {
    let filter = filter(level)?;
    FILTER.get().and_then(|handle| handle.reload(filter).ok()).ok_or(TelemetryError::Fixed)
}

/// Writes lines without the secrets of running attempts. A line comes in one write.
struct Masked<W>(W);

impl<W: Write> Write for Masked<W> {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.write_all(&mask::redact(line))?;
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(line);
            Ok(line.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// What is written at `first`, and then at `second`.
    fn written(first: &str, second: &str) -> String {
        let kept = Kept::default();
        let writer = kept.clone();
        let (filter_layer, handle) = reload::Layer::new(filter(first).unwrap());
        let lines = fmt::layer().with_writer(move || writer.clone()).with_ansi(false);
        let subscriber = Registry::default().with(filter_layer).with(filter_fn(allowed)).with(lines);
        tracing::subscriber::with_default(subscriber, || {
            for round in 1..=2 {
                tracing::debug!(target: "windlass::bus", round, "ours");
                tracing::trace!(target: "async_nats::connection", round, "a secret on the wire");
                if round == 1 {
                    handle.reload(filter(second).unwrap()).unwrap();
                }
            }
        });
        String::from_utf8(kept.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn no_level_shows_what_passes_on_the_wire() {
        for level in ["trace", "async_nats=trace", "async_nats::connection=trace", "info,async_nats::connection=trace", "[task]=trace"] {
            let text = written("trace", level);
            assert!(!text.contains("a secret"), "{level}: {text}");
            assert!(text.contains("ours round=1"), "{text}");
        }
    }

    #[test]
    fn a_level_can_be_changed_and_a_bad_one_is_refused() {
        let text = written("info", "debug");
        assert!(!text.contains("round=1") && text.contains("round=2"), "{text}");
        assert!(filter("a=b=c").unwrap_err().to_string().contains("a=b=c"));
    }
}
