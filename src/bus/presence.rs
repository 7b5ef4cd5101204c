//! Presence of workers, for people: a key that is written anew every few seconds and goes away by itself.
//! Also the lock of the sweeper, which lives in the same bucket and expires in the same way.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::bulk::Start;
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
    /// Classes of its configuration that it does not serve now, and why.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub unserved: BTreeMap<String, String>,
    /// Tasks it may run at one time.
    pub slots: u32,
    /// Tasks it runs now.
    pub running: u32,
    /// It takes no new work.
    pub draining: bool,
    /// When it said so.
    pub time: Time,
}

/// How often a worker says that it is there.
pub const ANNOUNCED_EVERY: Duration = Duration::from_secs(5);
/// Silence after which a worker is taken for lost: two announcements did not come.
const LOST_AFTER: Duration = Duration::from_secs(11);

/// A worker as it was last heard.
#[derive(Debug, Clone, PartialEq)]
pub struct Heard {
    /// What it said.
    pub presence: Presence,
    /// When that was stored, by the server's clock.
    pub at: Time,
}

/// How a worker is doing, as far as can be told from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// It takes work.
    Ready,
    /// It takes no more, and ends what it has.
    Draining,
    /// It says nothing any more: killed, frozen, or cut off from NATS.
    Lost,
}

impl Heard {
    /// How it is doing at `now`, by the server's clock.
    #[must_use]
    pub fn standing(&self, now: Time) -> Standing {
        match now.after(self.at) {
            silent if silent > LOST_AFTER => Standing::Lost,
            _ if self.presence.draining => Standing::Draining,
            _ => Standing::Ready,
        }
    }
}

impl Bus {
    /// Writes a worker's presence, and returns its sequence.
    ///
    /// # Errors
    /// When it could not be stored; presence is not needed for anything.
    pub async fn announce(&self, presence: &Presence) -> Result<u64, BusError> {
        let subject = self.subjects().worker_key(presence.worker_id.as_str());
        let body = serde_json::to_vec(presence).map_err(|e| BusError::Unreadable { what: subject.clone(), text: e.to_string() })?;
        self.store(subject, HeaderMap::new(), body.into()).await.map(|stored| stored.sequence)
    }

    /// Takes a worker's presence back, unless another of its name has spoken after `announced`.
    ///
    /// # Errors
    /// When another has, or the server does not answer.
    pub async fn farewell(&self, worker_id: &WorkerId, announced: u64) -> Result<(), BusError> {
        let mut headers = HeaderMap::new();
        headers.insert("KV-Operation", "DEL");
        headers.insert("Nats-Expected-Last-Subject-Sequence", announced.to_string());
        self.store(self.subjects().worker_key(worker_id.as_str()), headers, Bytes::new()).await.map(|_| ())
    }

    /// What the workers of the fleet said of themselves last, by name. Those that are gone without a word stay for some 20 seconds.
    ///
    /// # Errors
    /// When the server does not answer, or the bucket is not there.
    pub async fn workers(&self) -> Result<Vec<Presence>, BusError> {
        Ok(self.workers_heard().await?.into_iter().map(|heard| heard.presence).collect())
    }

    /// As [`Bus::workers`], with when each was heard.
    ///
    /// # Errors
    /// As [`Bus::workers`].
    pub async fn workers_heard(&self) -> Result<Vec<Heard>, BusError> {
        let (stream, filter) = (self.subjects().workers_stream(), self.subjects().worker_key(">"));
        let mut told = BTreeMap::new();
        let mut next = 1;
        loop {
            let batch = self.batch(&stream, &filter, Start::Sequence(next), u64::MAX).await?;
            for message in &batch.messages {
                next = message.sequence + 1;
                // The bucket also holds what is no worker, under keys that begin with `_`, and workers that have said farewell.
                if let Ok(presence) = serde_json::from_slice::<Presence>(&message.payload) {
                    let at = Time::from_nanos(message.time.unix_timestamp_nanos());
                    told.insert(presence.worker_id.clone(), Heard { presence, at });
                }
            }
            if !batch.more {
                return Ok(told.into_values().collect());
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_says_nothing_for_two_announcements_is_lost() {
        let presence = |draining| Presence {
            worker_id: WorkerId::new("w").unwrap(),
            instance: String::new(),
            host: String::new(),
            version: String::new(),
            classes: vec![],
            unserved: BTreeMap::new(),
            slots: 1,
            running: 0,
            draining,
            time: Time::from_micros(0),
        };
        let at = Time::from_micros(1_000_000);
        for (draining, seconds, standing) in [
            (false, 0, Standing::Ready),
            (false, 11, Standing::Ready),
            (true, 6, Standing::Draining),
            (false, 12, Standing::Lost),
            (true, 12, Standing::Lost),
        ] {
            let heard = Heard { presence: presence(draining), at };
            assert_eq!(heard.standing(at.plus(Duration::from_secs(seconds))), standing, "{draining} {seconds}");
        }
        let heard = Heard { presence: presence(false), at };
        assert_eq!(heard.standing(Time::from_micros(0)), Standing::Ready, "clocks differ");
    }
}
