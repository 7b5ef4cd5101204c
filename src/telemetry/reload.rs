//! SIGHUP: the level of the worker's log, read again and changed without a restart.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{causes, set_level};
use crate::config::{Config, ConfigError};

/// Listens for SIGHUP from now on: reads the configuration by `read`, as it was read at the start, and takes over
/// `log.level`. Everything else needs a restart, and a configuration with a mistake changes nothing.
///
/// # Errors
/// When the signal cannot be listened for.
pub fn on_hangup(current: Config, read: impl Fn() -> Result<Config, ConfigError> + Send + 'static) -> std::io::Result<()> {
    let hangups = signal(SignalKind::hangup())?;
    tokio::spawn(follow(hangups, current, read));
    Ok(())
}

async fn follow(mut hangups: Signal, mut current: Config, read: impl Fn() -> Result<Config, ConfigError>) {
    while hangups.recv().await.is_some() {
        match read() {
            Ok(new) => take_over(&mut current, new),
            Err(error) => {
                // One line each, as everything else in the log.
                let error = causes(&error).to_string().split_whitespace().collect::<Vec<_>>().join(" ");
                tracing::error!(
                    error,
                    level = current.log.level,
                    "asked to read the configuration again: it has mistakes, nothing changes"
                );
            }
        }
    }
}

fn take_over(current: &mut Config, new: Config) {
    let level = new.log.level.clone();
    if level == current.log.level {
        tracing::info!(level, "asked to read the configuration again: log.level is what it was");
    } else {
        match set_level(&level) {
            Ok(()) => {
                tracing::info!(from = current.log.level, to = level, "log.level changed");
                current.log.level = level;
            }
            Err(error) => tracing::error!(error = %causes(&error), level = current.log.level, "log.level stays as it was"),
        }
    }
    let log = current.log.clone();
    if (Config { log: log.clone(), ..new }) != (Config { log, ..current.clone() }) {
        tracing::warn!("other keys of the configuration have changed: they count from the next start");
    }
}
