//! Removing what the engine was told to make, until it is gone.
//!
//! The engine may be away, slow, or busy with what has to go. And where its answer to a create never came, it may carry that out
//! later: that something is not there means little then, for a while.

use std::time::Duration;

use tokio::time::Instant;

use super::{Engine, EngineError, network};
use crate::retry::Delays;
use crate::telemetry::causes;

/// How long something must not be there that the engine may still make.
const UNSURE: Duration = Duration::from_secs(60);
/// Tries: the time between the first two, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// What it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Container,
    Network,
}

/// Something that has to go.
#[derive(Debug)]
pub(super) struct Removal {
    engine: Engine,
    kind: Kind,
    /// Its name, which is known before its id.
    name: String,
    /// The engine did not answer when it was told to make it.
    unanswered: bool,
}

impl Removal {
    pub(super) fn of(engine: &Engine, kind: Kind, name: &str, unanswered: bool) -> Self {
        Self { engine: engine.clone(), kind, name: name.to_owned(), unanswered }
    }

    /// One try; true when it is gone for good.
    pub(super) async fn try_once(&self) -> Result<bool, EngineError> {
        let was_there = match self.kind {
            Kind::Container => self.engine.remove_found(&self.name).await?,
            Kind::Network => network::remove_found(&self.engine, &self.name).await?,
        };
        Ok(was_there || !self.unanswered)
    }

    /// Until it is gone, however long that takes; says once that it takes long.
    pub(super) async fn insist(self) {
        let mut delays = Delays::new(PAUSE.0, PAUSE.1);
        let (mut missing_since, mut tries) = (None, 0);
        loop {
            match self.try_once().await {
                Ok(true) => return,
                Ok(false) => {
                    let since = *missing_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= UNSURE {
                        return;
                    }
                }
                Err(error) => {
                    tries += 1;
                    missing_since = None;
                    if tries == 10 {
                        tracing::warn!(name = self.name, kind = ?self.kind, error = %causes(&error), "the engine does not remove it; it is tried again and again");
                    }
                }
            }
            delays.wait().await;
        }
    }
}
