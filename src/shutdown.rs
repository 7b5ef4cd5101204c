//! The worker's end as an escalation: drain, leave when the time for that is over, abort on the second signal. An operator
//! can ask for the same over NATS.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::worker::Stop;

/// How far the end has come, and how to ask for it.
#[derive(Debug, Clone)]
pub struct Shutdown {
    /// How far it has come.
    pub stop: watch::Receiver<Stop>,
    asked: watch::Sender<Stop>,
}

impl Shutdown {
    /// Asks for the end, as a signal does: [`Stop::Drain`], or [`Stop::Abort`] whatever was asked for before. What was
    /// asked for is never taken back.
    pub fn ask(&self, stop: Stop) {
        self.asked.send_if_modified(|asked| {
            let more = stop > *asked;
            *asked = (*asked).max(stop);
            more
        });
    }

    /// How far it has come, or is about to.
    #[must_use]
    pub fn asked(&self) -> Stop {
        (*self.stop.borrow()).max(*self.asked.borrow())
    }
}

/// Listens for SIGTERM and SIGINT from now on.
///
/// # Errors
/// When the signals cannot be listened for.
pub fn on_signals(drain_timeout: Duration) -> std::io::Result<Shutdown> {
    let signals = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (sender, stop) = watch::channel(Stop::Run);
    let (asked, asks) = watch::channel(Stop::Run);
    tokio::spawn(escalate(Calls { signals, asks }, sender, drain_timeout));
    Ok(Shutdown { stop, asked })
}

async fn escalate(mut calls: Calls, stop: watch::Sender<Stop>, drain_timeout: Duration) {
    calls.next(Stop::Drain).await;
    tracing::info!(timeout_s = drain_timeout.as_secs_f64(), "asked to stop: draining; a second signal aborts");
    stop.send_replace(Stop::Drain);
    tokio::select! {
        () = calls.next(Stop::Abort) => {}
        () = tokio::time::sleep(drain_timeout) => {
            tracing::warn!("the time to drain is over: stopping what runs and giving it back");
            stop.send_replace(Stop::Leave);
            calls.next(Stop::Abort).await;
        }
    }
    tracing::warn!("asked again: killing what runs and giving it back");
    stop.send_replace(Stop::Abort);
}

/// Whoever can ask for the end.
struct Calls {
    signals: (Signal, Signal),
    asks: watch::Receiver<Stop>,
}

impl Calls {
    /// The next signal, or a request that goes as far as `stop`: to ask for a drain twice is to ask once. Cancel safe.
    async fn next(&mut self, stop: Stop) {
        let asked = async {
            if self.asks.wait_for(|asked| *asked >= stop).await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            _ = self.signals.0.recv() => {}
            _ = self.signals.1.recv() => {}
            () = asked => {}
        }
    }
}
