//! The server's clock.

use async_nats::Request;
use serde::Deserialize;

use super::store::request_error;
use super::{Bus, BusError};
use crate::task::Time;

/// What is read of a stream's description.
#[derive(Debug, Deserialize)]
struct Described {
    /// When the server described it.
    ts: Time,
}

impl Bus {
    /// What time it is at the leader of the stream of events. It was read between request and answer.
    ///
    /// # Errors
    /// When the server does not answer, or without its time.
    pub async fn server_time(&self) -> Result<Time, BusError> {
        let what = "the server's time".to_owned();
        let subject = format!("$JS.API.STREAM.INFO.{}", self.subjects().events_stream());
        let request = Request::new().timeout(Some(self.inner.timeout));
        let reply = self.inner.client.send_request(subject, request).await.map_err(|e| request_error(&e, &what))?;
        match serde_json::from_slice::<Described>(&reply.payload) {
            Ok(described) => Ok(described.ts),
            Err(error) => Err(BusError::Unreadable { what, text: error.to_string() }),
        }
    }
}
