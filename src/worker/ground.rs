//! Whether this worker's disk can be used. It is looked at before work is asked for: a worker whose disk is full, broken or
//! read-only would otherwise take one task after the other and spend the attempts of all of them.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::prepare::probe;
use crate::telemetry::causes;

/// Time between two looks.
const LOOK: Duration = Duration::from_secs(2);

/// What an attempt stands on.
#[derive(Debug)]
pub struct Ground {
    dir: PathBuf,
    fit: watch::Sender<bool>,
    doubts: Notify,
}

impl Ground {
    /// The directory of this instance, taken for usable until it was looked at.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, fit: watch::Sender::new(true), doubts: Notify::new() }
    }

    /// True unless the last look, or an attempt after it, found that it cannot be used.
    #[must_use]
    pub fn is_fit(&self) -> bool {
        *self.fit.borrow()
    }

    /// Follows it.
    #[must_use]
    pub fn follow(&self) -> watch::Receiver<bool> {
        self.fit.subscribe()
    }

    /// An attempt could not use it: no new work before it was looked at.
    pub fn doubt(&self) {
        self.fit.send_replace(false);
        self.doubts.notify_one();
    }

    /// Looks for ever.
    pub async fn watch(&self) {
        let mut known = true;
        loop {
            let dir = self.dir.clone();
            let found = tokio::task::spawn_blocking(move || probe(&dir)).await.unwrap_or_else(|e| Err(io::Error::other(e)));
            match &found {
                Err(error) if known => {
                    tracing::error!(path = %self.dir.display(), error = %causes(error), "worker.state_dir cannot be used: no new work until it can");
                }
                Ok(()) if !known => tracing::info!(path = %self.dir.display(), "worker.state_dir can be used again"),
                Err(_) | Ok(()) => {}
            }
            known = found.is_ok();
            self.fit.send_if_modified(|fit| std::mem::replace(fit, known) != known);
            tokio::select! {
                // Both arms are cancel safe.
                () = tokio::time::sleep(LOOK) => {}
                () = self.doubts.notified(), if known => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_directory_that_goes_and_comes_is_noticed() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("instance");
        std::fs::create_dir(&dir).unwrap();
        let ground = std::sync::Arc::new(Ground::new(dir.clone()));
        let mut fit = ground.fit.subscribe();
        std::fs::remove_dir(&dir).unwrap();
        let watched = std::sync::Arc::clone(&ground);
        let watching = tokio::spawn(async move { watched.watch().await });
        fit.wait_for(|fit| !fit).await.unwrap();
        std::fs::create_dir(&dir).unwrap();
        fit.wait_for(|fit| *fit).await.unwrap();
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0, "the probe is removed");
        watching.abort();
    }
}
