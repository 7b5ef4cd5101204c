//! Bytes on the bus: JSON or MessagePack, chosen by `Content-Type`. The only place that names `rmp_serde`.
//!
//! Decoding says where it failed, by path, because the text goes to whoever published the message.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

pub mod event;
pub mod frame;
pub mod schema;

/// How a body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// `application/json`.
    #[default]
    Json,
    /// `application/vnd.msgpack`, maps with named keys.
    Msgpack,
}

/// Deepest nesting that is decoded; deeper bodies are refused instead of exhausting the stack.
const MAX_DEPTH: usize = 64;

/// Why a body cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A `Content-Type` that is neither JSON nor MessagePack.
    #[error("Content-Type {0:?} is not known: use application/json or application/vnd.msgpack")]
    ContentType(String),
    /// The body does not fit its type.
    #[error("{}{message}", path_prefix(.path))]
    Body {
        /// Path of the value, empty for the body itself.
        path: String,
        /// What is wrong with it.
        message: String,
    },
}

fn path_prefix(path: &str) -> String {
    if matches!(path, "" | "." | "?") { String::new() } else { format!("{path}: ") }
}

/// Why a value cannot be written: a defect, as every type here can be.
#[derive(Debug, thiserror::Error)]
#[error("cannot encode: {0}")]
pub struct EncodeError(String);

impl Encoding {
    /// The registered media type.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Msgpack => "application/vnd.msgpack",
        }
    }

    /// The encoding of a message: by its header, else JSON when the first byte is `{`.
    ///
    /// # Errors
    /// When the header names something else.
    pub fn detect(content_type: Option<&str>, body: &[u8]) -> Result<Self, DecodeError> {
        let Some(content_type) = content_type else {
            let json = body.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{');
            return Ok(if json { Self::Json } else { Self::Msgpack });
        };
        let media_type = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match media_type.as_str() {
            "application/json" | "text/json" => Ok(Self::Json),
            "application/vnd.msgpack" | "application/msgpack" | "application/x-msgpack" => Ok(Self::Msgpack),
            _ => Err(DecodeError::ContentType(content_type.to_owned())),
        }
    }

    /// Writes `value`.
    ///
    /// # Errors
    /// Only by a defect: a map key that is not text, or a value that refuses to serialize.
    pub fn encode<T: Serialize>(self, value: &T) -> Result<Bytes, EncodeError> {
        self.encode_into(Vec::with_capacity(1024), value)
    }

    /// Writes `value` after what is in `buffer`: for large values, whose buffer would grow many times.
    ///
    /// # Errors
    /// As [`Encoding::encode`].
    pub fn encode_into<T: Serialize>(self, mut buffer: Vec<u8>, value: &T) -> Result<Bytes, EncodeError> {
        match self {
            Self::Json => serde_json::to_writer(&mut buffer, value).map_err(|e| EncodeError(e.to_string()))?,
            Self::Msgpack => rmp_serde::encode::write_named(&mut buffer, value).map_err(|e| EncodeError(e.to_string()))?,
        }
        Ok(buffer.into())
    }

    /// Whether the body is an object, to look at its beginning. Structs could also be read from lists, key by key in the
    /// order of this version, which nobody promises.
    #[must_use]
    pub fn holds_an_object(self, body: &[u8]) -> bool {
        match self {
            Self::Json => body.trim_ascii_start().first() == Some(&b'{'),
            // The markers of maps.
            Self::Msgpack => matches!(body.first(), Some(0x80..=0x8f | 0xde | 0xdf)),
        }
    }

    /// Reads a value, which must be the whole body.
    ///
    /// # Errors
    /// Names the path of the value that does not fit.
    pub fn decode<T: DeserializeOwned>(self, body: &[u8]) -> Result<T, DecodeError> {
        fn named(error: &serde_path_to_error::Error<impl std::error::Error>) -> DecodeError {
            DecodeError::Body { path: error.path().to_string(), message: in_words(&error.inner().to_string()) }
        }
        match self {
            Self::Json => {
                let mut reader = serde_json::Deserializer::from_slice(body);
                let value = serde_path_to_error::deserialize(&mut reader).map_err(|e| named(&e))?;
                reader.end().map_err(|e| DecodeError::Body { path: String::new(), message: e.to_string() })?;
                Ok(value)
            }
            Self::Msgpack => {
                let mut rest = body;
                let mut reader = rmp_serde::Deserializer::new(&mut rest);
                reader.set_max_depth(MAX_DEPTH);
                let value = serde_path_to_error::deserialize(&mut reader).map_err(|e| named(&e))?;
                drop(reader);
                if rest.is_empty() {
                    Ok(value)
                } else {
                    let message = format!("{} bytes after the end of the value", rest.len());
                    Err(DecodeError::Body { path: String::new(), message })
                }
            }
        }
    }
}

impl Encoding {
    /// All values of MessagePack that follow one another.
    ///
    /// # Errors
    /// When one is broken or has no equal in JSON.
    pub fn msgpack_values(mut body: &[u8]) -> Result<Vec<serde_json::Value>, DecodeError> {
        let mut values = Vec::new();
        while !body.is_empty() {
            let mut reader = rmp_serde::Deserializer::new(&mut body);
            reader.set_max_depth(MAX_DEPTH);
            let value = serde::Deserialize::deserialize(&mut reader);
            values.push(value.map_err(|e| DecodeError::Body { path: String::new(), message: e.to_string() })?);
        }
        Ok(values)
    }
}

/// A type's name in this program means nothing to whoever wrote the body.
fn in_words(message: &str) -> String {
    let Some((before, after)) = message.split_once("expected struct ") else { return message.to_owned() };
    let rest = after.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_');
    format!("{before}expected an object{rest}")
}

/// SHA-256 in hex.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Lower-case hex.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Assignment;

    #[test]
    fn the_path_of_a_mistake_is_named() {
        for (body, path) in [
            (r#"{"task_id":"a","execution":{"runtime":"native","timout_s":1}}"#, "execution.timout_s"),
            (r#"{"task_id":"a","execution":{"runtime":"natve"}}"#, "execution.runtime"),
            (r#"{"task_id":"a.b","execution":{"runtime":"native"}}"#, "task_id"),
            (r#"{"task_id":"a","execution":{"runtime":"native","resources":{"memory":"lots"}}}"#, "execution.resources.memory"),
        ] {
            let error = Encoding::Json.decode::<Assignment>(body.as_bytes()).expect_err(body);
            assert!(error.to_string().starts_with(path), "{body}: {error}");
        }
    }

    #[test]
    fn what_is_expected_is_said_without_names_of_types() {
        let error = Encoding::Json.decode::<Assignment>(br#"{"task_id":"a","execution": 7}"#).expect_err("no object").to_string();
        assert!(error.starts_with("execution: invalid type: integer `7`, expected an object at line 1"), "{error}");
    }

    #[test]
    fn truncated_bodies_and_trailing_bytes_are_refused() {
        let value: serde_json::Value = serde_json::json!({"task_id": "a", "execution": {"runtime": "native", "command": ["true"]}});
        for encoding in [Encoding::Json, Encoding::Msgpack] {
            let body = encoding.encode(&value).expect("encodes");
            assert!(encoding.decode::<Assignment>(&body).is_ok());
            for cut in 0..body.len() {
                assert!(encoding.decode::<Assignment>(&body[..cut]).is_err(), "{encoding:?} cut at {cut}");
            }
            let mut longer = body.to_vec();
            longer.push(b'}');
            assert!(encoding.decode::<Assignment>(&longer).is_err());
        }
    }

    #[test]
    fn the_header_decides_and_a_brace_stands_in_for_it() {
        assert_eq!(Encoding::detect(None, b" {}"), Ok(Encoding::Json));
        assert_eq!(Encoding::detect(None, &[0x81]), Ok(Encoding::Msgpack));
        assert_eq!(Encoding::detect(Some("application/json; charset=utf-8"), b"x"), Ok(Encoding::Json));
        assert!(Encoding::detect(Some("text/plain"), b"{}").is_err());
    }
}
