//! Log chunks: a task's output in numbered pieces.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{TaskId, Tenant, Time};

/// Where output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// The worker's own notices about the output.
    System,
}

impl LogStream {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Stdout, Self::Stderr, Self::System];

    /// The subject token.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::System => "system",
        }
    }
}

/// How `data` is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ChunkEncoding {
    /// JSON text.
    Utf8,
    /// Base64 of the whole chunk, which is not valid UTF-8.
    Base64,
    /// MessagePack `bin`.
    Bin,
}

/// One piece of one stream's output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LogChunk {
    /// Version of the contract, 1.
    pub v: u32,
    /// The task.
    pub task_id: TaskId,
    /// Whose.
    pub tenant: Tenant,
    /// The attempt.
    pub attempt: u32,
    /// Stream sequence of the attempt's `task_started`.
    pub fence: u64,
    /// From 0 over all streams of the attempt, in the order of observation.
    pub seq: u64,
    /// Which stream.
    pub stream: LogStream,
    /// Published bytes of this stream before this chunk.
    pub offset: u64,
    /// Bytes in this chunk, before encoding.
    pub len: u64,
    /// When its first byte was read.
    pub time: Time,
    /// How `data` is written.
    pub encoding: ChunkEncoding,
    /// The bytes.
    pub data: ChunkData,
    /// Bytes of this stream that the log cap left out right before this chunk.
    pub dropped_bytes: u64,
    /// True on the attempt's last chunk.
    pub eof: bool,
}

/// A chunk's bytes as they are written: text in JSON, `bin` in MessagePack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChunkData {
    /// UTF-8 or base64, as `encoding` says.
    Text(String),
    /// As they are.
    Bytes(Vec<u8>),
}

impl Serialize for ChunkData {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Text(text) => serializer.serialize_str(text),
            Self::Bytes(bytes) => serializer.serialize_bytes(bytes),
        }
    }
}

impl<'de> Deserialize<'de> for ChunkData {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = ChunkData;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("text or bytes")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<ChunkData, E> {
                Ok(ChunkData::Text(text.to_owned()))
            }
            fn visit_string<E: de::Error>(self, text: String) -> Result<ChunkData, E> {
                Ok(ChunkData::Text(text))
            }
            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<ChunkData, E> {
                Ok(ChunkData::Bytes(bytes.to_owned()))
            }
            fn visit_byte_buf<E: de::Error>(self, bytes: Vec<u8>) -> Result<ChunkData, E> {
                Ok(ChunkData::Bytes(bytes))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for ChunkData {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ChunkData".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "description": "The bytes: text, or base64 as `encoding` says; `bin` in MessagePack."})
    }
}
