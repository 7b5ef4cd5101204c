//! Events in bytes: CloudEvents attributes as headers (binary mode), a body that stands on its own, and the
//! shortening of what would exceed the server's `max_payload`, so that no event is lost for its size.

use bytes::Bytes;
use serde_json::Value;

use super::{Encoding, schema, sha256_hex};
use crate::task::{Event, EventKind};

/// Room left for NATS's own headers and the fence.
const HEADER_ALLOWANCE: usize = 4096;
/// What is left of a text that had to be shortened.
const SHORT_TEXT: usize = 512;

/// How large a message may be.
#[derive(Debug, Clone, Copy)]
pub struct Fit {
    /// The server's `max_payload`, bytes.
    pub max_payload: usize,
}

/// An event as it is sent, again and again if need be: always the same bytes.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Encoded {
    /// Where to.
    pub subject: String,
    /// What kind.
    pub kind: EventKind,
    /// The event's id.
    pub id: String,
    /// The attempt's nonce.
    pub nonce: String,
    /// Headers, without the fence.
    #[serde(with = "header_pairs")]
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    #[serde(with = "body_base64")]
    pub body: Bytes,
    /// SHA-256 of the body, hex.
    pub sha256: String,
}

/// The headers that an event can have.
const NAMES: [&str; 9] =
    ["ce-specversion", "ce-id", "ce-source", "ce-type", "ce-subject", "ce-time", "ce-datacontenttype", "ce-dataschema", "Content-Type"];

impl Encoded {
    /// Encodes `event`, shortened where it does not fit.
    ///
    /// # Errors
    /// When it cannot be encoded, or is too large even without everything that can be left out.
    pub fn new(mut event: Event, subject: String, encoding: Encoding, fit: Fit) -> Result<Self, String> {
        let room = fit.max_payload.saturating_sub(HEADER_ALLOWANCE);
        let mut body = encoding.encode(&event).map_err(|e| e.to_string())?;
        for (name, shorten) in SHORTENERS {
            if body.len() <= room {
                break;
            }
            if shorten(&mut event) {
                event.shortened.push((*name).to_owned());
                body = encoding.encode(&event).map_err(|e| e.to_string())?;
            }
        }
        if body.len() > room {
            return Err(format!(
                "event {} of {} bytes does not fit into max_payload {} even when shortened",
                event.id,
                body.len(),
                fit.max_payload
            ));
        }
        let headers = headers(&event, encoding);
        Ok(Self { subject, kind: event.event, id: event.id, nonce: event.nonce, headers, sha256: sha256_hex(&body), body })
    }
}

/// Takes something out of an event; false when there was nothing to take.
type Shorten = fn(&mut Event) -> bool;

/// What is left out, in this order, until an event fits.
const SHORTENERS: &[(&str, Shorten)] = &[
    ("assignment", |e| e.assignment.take().is_some()),
    ("result.value", |e| e.result.as_mut().is_some_and(|r| std::mem::replace(&mut r.value, Value::Null) != Value::Null)),
    ("result.metrics", |e| e.result.as_mut().is_some_and(|r| std::mem::replace(&mut r.metrics, Value::Null) != Value::Null)),
    ("task.context", |e| std::mem::replace(&mut e.task.context, Value::Null) != Value::Null),
    ("task.labels", |e| !std::mem::take(&mut e.task.labels).is_empty()),
    ("stages", |e| !std::mem::take(&mut e.stages).is_empty()),
    ("stderr_tail", |e| cut(&mut e.stderr_tail)),
    ("error", |e| cut(&mut e.error)),
    ("hint", |e| cut(&mut e.hint)),
    ("task.name", |e| cut(&mut e.task.name)),
    ("task.workflow_id", |e| cut(&mut e.task.workflow_id)),
    ("progress", |e| e.progress.take().is_some()),
];

fn cut(text: &mut Option<String>) -> bool {
    match text {
        Some(text) if text.len() > SHORT_TEXT => {
            text.truncate(text.floor_char_boundary(SHORT_TEXT));
            text.push_str(" …(shortened)");
            true
        }
        Some(_) | None => false,
    }
}

fn headers(event: &Event, encoding: Encoding) -> Vec<(&'static str, String)> {
    let source = format!("/windlass/workers/{}/{}", event.worker.worker_id, event.worker.instance);
    vec![
        ("ce-specversion", "1.0".to_owned()),
        ("ce-id", event.id.clone()),
        ("ce-source", source),
        ("ce-type", format!("dev.windlass.{}.v1", event.event)),
        ("ce-subject", event.task.task_id.to_string()),
        ("ce-time", event.time.to_string()),
        ("ce-datacontenttype", encoding.content_type().to_owned()),
        ("ce-dataschema", schema::uri("event")),
        ("Content-Type", encoding.content_type().to_owned()),
    ]
}

/// Headers as pairs, with names that are known.
mod header_pairs {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(headers: &[(&'static str, String)], serializer: S) -> Result<S::Ok, S::Error> {
        headers.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(&'static str, String)>, D::Error> {
        let pairs = Vec::<(String, String)>::deserialize(deserializer)?;
        Ok(pairs.into_iter().filter_map(|(name, value)| super::NAMES.iter().find(|n| **n == name).map(|n| (*n, value))).collect())
    }
}

/// A body of any bytes inside JSON.
mod body_base64 {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use bytes::Bytes;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(body: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(body))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Bytes::from).map_err(de::Error::custom)
    }
}
