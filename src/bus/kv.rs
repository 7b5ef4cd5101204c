//! Reading a key of a key-value bucket, from the leader of its stream.
//!
//! By a request of our own: the library's call writes every answer to the log at level debug, and here answers are secrets.

use async_nats::Request;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;

use super::store::{Refusal, request_error};
use super::{Bus, BusError};

/// "no message found" and "stream not found".
const ABSENT: [u64; 2] = [10037, 10059];

/// Headers of a message that says that a key is gone: deleted, purged, or its time was over.
const TOMBSTONES: [&str; 2] = ["KV-Operation:", "Nats-Marker-Reason:"];

#[derive(Deserialize)]
struct Answer {
    message: Option<Message>,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    data: String,
    #[serde(default)]
    hdrs: String,
}

impl Bus {
    /// The newest value of `key`; none when there is no such bucket or key.
    ///
    /// # Errors
    /// When the server does not answer, or refuses.
    pub async fn kv_get(&self, bucket: &str, key: &str) -> Result<Option<Vec<u8>>, BusError> {
        let what = || format!("key {key} of bucket {bucket}");
        // Never the parser's own words: they can quote what they read.
        let unreadable = || BusError::Unreadable { what: what(), text: "the answer is not that of JetStream".to_owned() };
        let body = serde_json::json!({"last_by_subj": format!("$KV.{bucket}.{key}")}).to_string();
        let request = Request::new().payload(body.into()).timeout(Some(self.inner.timeout));
        let reply = self.inner.client.send_request(format!("$JS.API.STREAM.MSG.GET.KV_{bucket}"), request).await;
        let reply = reply.map_err(|e| request_error(&e, &what()))?;
        let answer: Answer = serde_json::from_slice(&reply.payload).map_err(|_| unreadable())?;
        if let Some(Refusal { err_code, description, .. }) = answer.error {
            let absent = ABSENT.contains(&err_code);
            return if absent { Ok(None) } else { Err(BusError::Refused { what: what(), code: err_code, text: description }) };
        }
        let message = answer.message.ok_or_else(unreadable)?;
        let headers = BASE64.decode(message.hdrs).map_err(|_| unreadable())?;
        let headers = String::from_utf8_lossy(&headers);
        if headers.lines().any(|line| TOMBSTONES.iter().any(|name| line.starts_with(name))) {
            return Ok(None);
        }
        BASE64.decode(message.data).map(Some).map_err(|_| unreadable())
    }
}
