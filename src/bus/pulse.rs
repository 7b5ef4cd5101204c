//! Whether a majority of the servers still hears this worker.
//!
//! A server that was cut off from its cluster goes on for some ten seconds as if it led: it confirms renewals and answers
//! reads. The others hand the task out meanwhile. What a server alone cannot do is store: so a lease on a replicated queue
//! counts as renewed only when something was stored after the renewal was sent. One write serves all tasks of a worker.

use async_nats::HeaderMap;
use tokio::sync::{Mutex, OnceCell};
use tokio::time::Instant;

use super::{Bus, BusError};

/// The key that all workers write; worker ids that begin with `_` are refused.
const KEY: &str = "_pulse";

/// What this worker knows of its majority.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    replicated: OnceCell<bool>,
    /// When the newest write was sent that was confirmed.
    last: Mutex<Option<Instant>>,
}

impl Bus {
    /// Returns when a majority has stored something that was sent after `since`; at once where streams have one replica.
    ///
    /// # Errors
    /// When that was not confirmed.
    pub(crate) async fn heard_by_majority(&self, since: Instant) -> Result<(), BusError> {
        let pulse = &self.inner.pulse;
        if !*pulse.replicated.get_or_try_init(|| self.is_replicated()).await? {
            return Ok(());
        }
        // Who waits here is served by the write of the one before, if that was sent late enough.
        let mut last = pulse.last.lock().await;
        if last.is_some_and(|sent| sent >= since) {
            return Ok(());
        }
        let sent = Instant::now();
        self.store(self.subjects().worker_key(KEY), HeaderMap::new(), bytes::Bytes::new()).await?;
        *last = Some(sent);
        Ok(())
    }

    async fn is_replicated(&self) -> Result<bool, BusError> {
        let name = self.subjects().workers_stream();
        let stream = self.stream(&name).await?;
        let info = stream.get_info().await.map_err(|e| super::chain::read_error(&e, format!("stream {name}")))?;
        Ok(info.config.num_replicas > 1)
    }
}
