//! Frames between the worker and its supervisor: MessagePack with named fields, one value each.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why a frame cannot be written or read: the two processes are of one binary, so it is a defect.
#[derive(Debug, thiserror::Error)]
#[error("broken supervisor frame: {0}")]
pub struct FrameError(String);

/// Writes one frame.
///
/// # Errors
/// When the value cannot be serialized.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, FrameError> {
    rmp_serde::to_vec_named(value).map_err(|e| FrameError(e.to_string()))
}

/// Reads one frame.
///
/// # Errors
/// When the bytes are not a `T`.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FrameError> {
    rmp_serde::from_slice(bytes).map_err(|e| FrameError(e.to_string()))
}
