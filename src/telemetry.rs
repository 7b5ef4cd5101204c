//! The worker's own log: tracing to standard error, for people or as JSON.

use std::io::Write;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

use crate::config::{Log, LogFormat};
use crate::mask;

/// Why the log cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("log.level: {level:?} is not a filter: {error}; use error, warn, info, debug, trace, or module=level pairs")]
pub struct TelemetryError {
    level: String,
    error: String,
}

/// At level trace the library writes every message to the log as it comes from the server, and the credentials it connects
/// with.
const NEVER: &str = "async_nats::connection=off";

/// Sets up the log of this process.
///
/// # Errors
/// When the filter cannot be read.
pub fn init(config: &Log) -> Result<(), TelemetryError> {
    let unfit = |error: String| TelemetryError { level: config.level.clone(), error };
    let filter = EnvFilter::try_new(&config.level).map_err(|error| unfit(error.to_string()))?;
    let filter = filter.add_directive(NEVER.parse().map_err(|error: ParseError| unfit(error.to_string()))?);
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| Masked(std::io::stderr()));
    // A second call in one process, as tests make it, changes nothing.
    let _ = match config.format {
        LogFormat::Text => {
            let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr()) && std::env::var_os("NO_COLOR").is_none();
            builder.with_ansi(ansi).try_init()
        }
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
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
