//! The worker's end as an escalation: drain, leave when the time for that is over, abort on the second signal.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::worker::Stop;

/// Listens for SIGTERM and SIGINT from now on; the receiver says how far the end has come.
///
/// # Errors
/// When the signals cannot be listened for.
pub fn on_signals(drain_timeout: Duration) -> std::io::Result<watch::Receiver<Stop>> {
    let signals = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (sender, receiver) = watch::channel(Stop::Run);
    tokio::spawn(escalate(signals, sender, drain_timeout));
    Ok(receiver)
}

async fn escalate((mut term, mut int): (Signal, Signal), stop: watch::Sender<Stop>, drain_timeout: Duration) {
    next(&mut term, &mut int).await;
    tracing::info!(timeout_s = drain_timeout.as_secs_f64(), "asked to stop: draining; a second signal aborts");
    stop.send_replace(Stop::Drain);
    tokio::select! {
        () = next(&mut term, &mut int) => {}
        () = tokio::time::sleep(drain_timeout) => {
            tracing::warn!("the time to drain is over: stopping what runs and giving it back");
            stop.send_replace(Stop::Leave);
            next(&mut term, &mut int).await;
        }
    }
    tracing::warn!("asked again: killing what runs and giving it back");
    stop.send_replace(Stop::Abort);
}

async fn next(term: &mut Signal, int: &mut Signal) {
    // Cancel safe, both.
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}
