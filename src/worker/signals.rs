//! What an attempt hears from outside while it runs.

use tokio::sync::watch;
use tokio::time::Instant;

/// Why an attempt is stopped from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Interrupt {
    /// Somebody asked for it; with his reason.
    Canceled(Option<String>),
    /// The worker has to go: the task is given back. With grace, or at once.
    Leave {
        /// Whether the task gets its grace.
        gently: bool,
    },
    /// The lease or the chain is lost: nothing more may be said about the task.
    Lost,
}

/// What the attempt hears from outside.
#[derive(Debug, Clone)]
pub struct Signals {
    /// The strongest interrupt so far.
    pub interrupt: watch::Receiver<Option<Interrupt>>,
    /// Until when the lease holds.
    pub lease: watch::Receiver<Instant>,
}

/// Resolves when the task is lost. Cancel safe.
pub(super) async fn lost(interrupt: &mut watch::Receiver<Option<Interrupt>>) {
    if interrupt.wait_for(|i| *i == Some(Interrupt::Lost)).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Resolves when the attempt is to be stopped. Cancel safe.
pub(super) async fn interrupted(interrupt: &mut watch::Receiver<Option<Interrupt>>) -> Interrupt {
    let why = interrupt.wait_for(Option::is_some).await.ok().and_then(|why| why.clone());
    match why {
        Some(why) => why,
        None => std::future::pending().await,
    }
}
