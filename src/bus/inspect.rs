//! What a server says of itself, of this account and of this user: for whoever examines a fleet, not for its work.
//!
//! By requests of our own, and read leniently: what a server of another version leaves out is unknown, not an error.

use std::time::Duration;

use async_nats::Request;
use futures_util::StreamExt as _;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::rights::{Act, Ear};
use super::store::{Refusal, request_error};
use super::{Bus, BusError};

/// The connected server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFacts {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its cluster, if it is in one.
    pub cluster: Option<String>,
    /// Largest message, bytes.
    pub max_payload: usize,
}

/// What JetStream allows this account; a limit that is none is absent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AccountFacts {
    /// Bytes of file storage in use.
    pub storage: u64,
    /// Most bytes of file storage.
    pub max_storage: Option<u64>,
    /// Streams there are.
    pub streams: u64,
    /// Most streams.
    pub max_streams: Option<u64>,
    /// Most consumers of one stream.
    pub max_consumers: Option<u64>,
    /// Most unacknowledged deliveries of a consumer.
    pub max_ack_pending: Option<u64>,
    /// Largest stream, bytes.
    pub max_stream_bytes: Option<u64>,
    /// A stream without a size limit is refused.
    pub max_bytes_required: bool,
}

/// Who the server takes us for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct UserFacts {
    /// User.
    #[serde(default)]
    pub user: String,
    /// Account.
    #[serde(default)]
    pub account: String,
    /// Nanoseconds until its credentials expire; absent when they do not.
    #[serde(default, rename = "expires")]
    pub expires_ns: Option<u64>,
}

/// When a server with JetStream writes to its disk what it has confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncFacts {
    /// Its name.
    pub server: String,
    /// Before it confirms.
    pub always: bool,
    /// Otherwise this much later.
    pub interval: Duration,
}

#[derive(Debug, Deserialize)]
struct AccountAnswer {
    #[serde(default)]
    storage: u64,
    #[serde(default)]
    streams: u64,
    #[serde(default)]
    limits: Limits,
    error: Option<Refusal>,
}

/// -1 stands for no limit, as 0 does for the size of a stream.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Limits {
    max_storage: i64,
    max_streams: i64,
    max_consumers: i64,
    max_ack_pending: i64,
    storage_max_stream_bytes: i64,
    max_bytes_required: bool,
}

#[derive(Debug, Deserialize)]
struct Enveloped<T> {
    data: Option<T>,
}

#[derive(Debug, Deserialize)]
struct Varz {
    #[serde(default)]
    server_name: String,
    jetstream: Option<JetStreamVarz>,
}

#[derive(Debug, Deserialize)]
struct JetStreamVarz {
    config: Option<JetStreamConfig>,
}

#[derive(Debug, Deserialize)]
struct JetStreamConfig {
    #[serde(default)]
    sync_interval: u64,
    #[serde(default)]
    sync_always: bool,
}

impl Bus {
    /// The connected server, by its greeting.
    #[must_use]
    pub fn server_facts(&self) -> ServerFacts {
        let info = self.inner.client.server_info();
        ServerFacts { name: info.server_name, version: info.version, cluster: info.cluster, max_payload: info.max_payload }
    }

    /// What JetStream allows this account.
    ///
    /// # Errors
    /// When JetStream is not enabled for it, or does not answer.
    pub async fn account_facts(&self) -> Result<AccountFacts, BusError> {
        let what = "the account's limits";
        let answer: AccountAnswer = self.read("$JS.API.INFO", what).await?;
        if let Some(Refusal { code, err_code, description }) = answer.error {
            let code = if err_code == 0 { code } else { err_code };
            return Err(BusError::Refused { what: what.to_owned(), code, text: description });
        }
        let positive = |limit: i64| u64::try_from(limit).ok().filter(|limit| *limit > 0);
        let limit = |limit: i64| u64::try_from(limit).ok();
        Ok(AccountFacts {
            storage: answer.storage,
            max_storage: limit(answer.limits.max_storage),
            streams: answer.streams,
            max_streams: positive(answer.limits.max_streams),
            max_consumers: positive(answer.limits.max_consumers),
            max_ack_pending: positive(answer.limits.max_ack_pending),
            max_stream_bytes: positive(answer.limits.storage_max_stream_bytes),
            max_bytes_required: answer.limits.max_bytes_required,
        })
    }

    /// Who the server takes us for.
    ///
    /// # Errors
    /// When it does not say, or we may not ask.
    pub async fn user_facts(&self) -> Result<UserFacts, BusError> {
        let what = "this user's account";
        let answer: Enveloped<UserFacts> = self.read("$SYS.REQ.USER.INFO", what).await?;
        answer.data.ok_or_else(|| BusError::Unreadable { what: what.to_owned(), text: "nothing in it".to_owned() })
    }

    async fn read<T: DeserializeOwned>(&self, subject: &'static str, what: &str) -> Result<T, BusError> {
        let mut ear = Ear::open(self);
        let request = Request::new().timeout(Some(self.inner.timeout));
        // Cancel safe, both.
        let reply = tokio::select! {
            // Of what is not permitted there is no answer.
            () = ear.refused(Act::Publish, subject) => {
                return Err(BusError::Refused { what: what.to_owned(), code: 0, text: "not permitted".to_owned() });
            }
            reply = self.inner.client.send_request(subject, request) => reply.map_err(|e| request_error(&e, what))?,
        };
        serde_json::from_slice(&reply.payload).map_err(|e| BusError::Unreadable { what: what.to_owned(), text: e.to_string() })
    }

    /// When each server with JetStream writes to its disk. Only a user of the system account is told.
    ///
    /// # Errors
    /// When nobody answers, or none of those who answer has JetStream.
    pub async fn sync_facts(&self) -> Result<Vec<SyncFacts>, BusError> {
        /// Nobody knows how many servers there are; those of one cluster answer within milliseconds of each other.
        const SILENCE: Duration = Duration::from_millis(500);
        let what = || "what servers say of themselves (this takes a user of the system account)".to_owned();
        let client = &self.inner.client;
        let inbox = client.new_inbox();
        let closed = |_| BusError::Closed { what: what() };
        let mut answers = client.subscribe(inbox.clone()).await.map_err(closed)?;
        let sent = client.publish_with_reply("$SYS.REQ.SERVER.PING.VARZ", inbox, bytes::Bytes::new()).await;
        sent.map_err(|_| BusError::Closed { what: what() })?;
        let mut found = Vec::new();
        let mut patience = self.inner.timeout;
        while let Ok(Some(answer)) = tokio::time::timeout(patience, answers.next()).await {
            if answer.status == Some(async_nats::StatusCode::NO_RESPONDERS) {
                break;
            }
            patience = SILENCE;
            let Ok(Enveloped { data: Some(varz) }) = serde_json::from_slice::<Enveloped<Varz>>(&answer.payload) else { continue };
            let Some(config) = varz.jetstream.and_then(|js| js.config) else { continue };
            let interval = Duration::from_nanos(config.sync_interval);
            found.push(SyncFacts { server: varz.server_name, always: config.sync_always, interval });
        }
        if found.is_empty() { Err(BusError::NoResponders { what: what() }) } else { Ok(found) }
    }
}
