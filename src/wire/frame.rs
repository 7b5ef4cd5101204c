//! Frames between the worker and its supervisor: MessagePack, one value each, with named fields: by position a field
//! that is left out (`Limits::io`) would shift those after it.

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Limits;

    #[test]
    fn fields_that_are_left_out_do_not_shift_the_others() {
        let limits = Limits { cpus: 1.0, memory_bytes: 1 << 20, pids: 1, timeout_ms: 1, io: None, enforced: true };
        let frame = encode(&limits).expect("encodes");
        assert_eq!(decode::<Limits>(&frame).expect("decodes"), limits);
    }
}
