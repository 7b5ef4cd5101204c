//! Reading a key of a key-value bucket, from the leader of its stream.

use bytes::Bytes;

use super::{Bus, BusError};

/// "stream not found"
const NO_BUCKET: u64 = 10059;

/// Headers of a message that says that a key is gone: deleted, purged, or its time was over.
const TOMBSTONES: [&str; 2] = ["KV-Operation", "Nats-Marker-Reason"];

impl Bus {
    /// The newest value of `key`; none when there is no such bucket or key.
    ///
    /// # Errors
    /// When the server does not answer, or refuses.
    pub async fn kv_get(&self, bucket: &str, key: &str) -> Result<Option<Bytes>, BusError> {
        let message = match self.last_message(&format!("KV_{bucket}"), &format!("$KV.{bucket}.{key}")).await {
            Err(BusError::Refused { code: NO_BUCKET, .. }) => None,
            read => read?,
        };
        let alive = message.filter(|m| TOMBSTONES.into_iter().all(|name| m.headers.get(name).is_none()));
        Ok(alive.map(|message| message.payload))
    }
}
