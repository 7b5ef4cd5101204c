//! Presence of workers, for people: a key that is written anew every few seconds and goes away by itself.
//! Also the lock of the sweeper, which lives in the same bucket and expires in the same way.

use std::collections::BTreeMap;

use async_nats::HeaderMap;
use serde::{Deserialize, Serialize};

use super::{Bus, BusError};
use crate::task::{Time, WorkerId};

/// The key of the sweeper's lock; worker ids that begin with `_` are refused.
const SWEEPER: &str = "_sweeper";

/// What a worker says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Presence {
    /// Stable name.
    pub worker_id: WorkerId,
    /// This process.
    pub instance: String,
    /// Host.
    pub host: String,
    /// Windlass version.
    pub version: String,
    /// Classes it serves.
    pub classes: Vec<String>,
    /// Tasks it may run at one time.
    pub slots: u32,
    /// Tasks it runs now.
    pub running: u32,
    /// It takes no new work.
    pub draining: bool,
    /// When it said so.
    pub time: Time,
}

impl Bus {
    /// Writes a worker's presence.
    ///
    /// # Errors
    /// When it could not be stored; presence is not needed for anything.
    pub async fn announce(&self, presence: &Presence) -> Result<(), BusError> {
        let subject = self.subjects().worker_key(presence.worker_id.as_str());
        let body = serde_json::to_vec(presence).map_err(|e| BusError::Unreadable { what: subject.clone(), text: e.to_string() })?;
        self.store(subject, HeaderMap::new(), body.into()).await.map(|_| ())
    }

    /// What the workers of the fleet said of themselves last, by name. Those that are gone stay for some 20 seconds.
    ///
    /// # Errors
    /// When the server does not answer, or the bucket is not there.
    pub async fn workers(&self) -> Result<Vec<Presence>, BusError> {
        let mut told = BTreeMap::new();
        let mut tail = self.tail(&self.subjects().workers_stream(), &self.subjects().worker_key(">"), 1, false).await?;
        while let Some(message) = tail.next().await? {
            // The bucket also holds what is no worker, under keys that begin with `_`.
            if let Ok(presence) = serde_json::from_slice::<Presence>(&message.payload) {
                told.insert(presence.worker_id.clone(), presence);
            }
        }
        Ok(told.into_values().collect())
    }

    /// Tries to become, or stay, the one that sweeps: `held` is the sequence of the lock that the caller wrote last.
    /// None when somebody else has it. The lock goes away with the bucket's age; it only saves work, nothing depends on it.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn sweeper_lock(&self, instance: &str, held: Option<u64>) -> Result<Option<u64>, BusError> {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Last-Subject-Sequence", held.unwrap_or(0).to_string());
        let answer = self.store(self.subjects().worker_key(SWEEPER), headers, instance.to_owned().into()).await;
        match answer {
            Ok(stored) => Ok(Some(stored.sequence)),
            Err(BusError::Refused { code: 10071 | 10164, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
