//! Chunks of one attempt put back into its output, and compared with the manifest that ends it. Pure.
//!
//! Chunks carry a number over all streams. They are stored in that order but for those that had to be sent twice, so a
//! few may have to wait for one that comes later, and one may come twice.

use std::collections::BTreeMap;

use base64::Engine as _;
use sha2::{Digest as _, Sha256};

use crate::task::event::{Manifest, StreamManifest};
use crate::task::log_chunk::{ChunkData, ChunkEncoding, LogChunk, LogStream};
use crate::wire::hex;

/// A chunk in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    /// As it was read.
    pub(super) chunk: LogChunk,
    /// Its bytes.
    pub(super) bytes: Vec<u8>,
}

/// One attempt's output so far.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    next: u64,
    waiting: BTreeMap<u64, LogChunk>,
    stdout: Digested,
    stderr: Digested,
    system: Digested,
    broken: Vec<String>,
}

#[derive(Debug, Default)]
struct Digested {
    bytes: u64,
    chunks: u64,
    dropped: u64,
    sha256: Sha256,
}

impl Assembly {
    /// Takes a chunk, and gives back what follows without a gap.
    pub(super) fn push(&mut self, chunk: LogChunk) -> Vec<Piece> {
        if chunk.seq >= self.next {
            self.waiting.entry(chunk.seq).or_insert(chunk);
        }
        let mut pieces = Vec::new();
        while let Some(chunk) = self.waiting.remove(&self.next) {
            self.next += 1;
            pieces.extend(self.place(chunk));
        }
        pieces
    }

    /// Chunks that were put in their place.
    pub(super) fn placed(&self) -> u64 {
        self.next
    }

    fn place(&mut self, chunk: LogChunk) -> Option<Piece> {
        let digested = match chunk.stream {
            LogStream::Stdout => &mut self.stdout,
            LogStream::Stderr => &mut self.stderr,
            LogStream::System => &mut self.system,
        };
        let bytes = match bytes_of(&chunk) {
            Ok(bytes) => bytes,
            Err(error) => {
                self.broken.push(format!("chunk {}: {error}", chunk.seq));
                return None;
            }
        };
        if chunk.offset != digested.bytes {
            let name = chunk.stream.as_str();
            self.broken.push(format!("chunk {}: says offset {} where {name} is at {}", chunk.seq, chunk.offset, digested.bytes));
        }
        digested.bytes += bytes.len() as u64;
        digested.chunks += 1;
        digested.dropped += chunk.dropped_bytes;
        digested.sha256.update(&bytes);
        Some(Piece { chunk, bytes })
    }

    /// What the manifest promises and is not so; empty when everything is there.
    pub(super) fn differences(&self, manifest: &Manifest) -> Vec<String> {
        let mut found = self.broken.clone();
        if self.next != manifest.chunks {
            found.push(format!("{} of {} chunks are there", self.next, manifest.chunks));
        }
        let none = StreamManifest { bytes: 0, chunks: 0, sha256: hex(&Sha256::digest(b"")), dropped_bytes: 0 };
        self.stdout.compare("stdout", &manifest.stdout, &mut found);
        self.stderr.compare("stderr", &manifest.stderr, &mut found);
        self.system.compare("system", manifest.system.as_ref().unwrap_or(&none), &mut found);
        found
    }
}

impl Digested {
    fn compare(&self, name: &str, promised: &StreamManifest, found: &mut Vec<String>) {
        if self.bytes != promised.bytes {
            found.push(format!("{name} has {} bytes, the manifest says {}", self.bytes, promised.bytes));
        } else if hex(&self.sha256.clone().finalize()) != promised.sha256 {
            found.push(format!("{name} has not the SHA-256 of the manifest"));
        }
        if self.dropped != promised.dropped_bytes {
            found.push(format!("{name} says {} bytes were left out, the manifest {}", self.dropped, promised.dropped_bytes));
        }
    }
}

/// The bytes of a chunk, as long as it says.
fn bytes_of(chunk: &LogChunk) -> Result<Vec<u8>, String> {
    let bytes = match (&chunk.data, chunk.encoding) {
        (ChunkData::Bytes(bytes), _) => bytes.clone(),
        (ChunkData::Text(text), ChunkEncoding::Base64) => {
            base64::engine::general_purpose::STANDARD.decode(text).map_err(|e| format!("not base64: {e}"))?
        }
        (ChunkData::Text(text), ChunkEncoding::Utf8 | ChunkEncoding::Bin) => text.as_bytes().to_vec(),
    };
    if bytes.len() as u64 == chunk.len { Ok(bytes) } else { Err(format!("{} bytes where it says {}", bytes.len(), chunk.len)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{TaskId, Tenant, Time};
    use crate::wire::sha256_hex;

    fn chunk(seq: u64, stream: LogStream, offset: u64, text: &str) -> LogChunk {
        LogChunk {
            v: 1,
            task_id: TaskId::new("t").expect("token"),
            tenant: Tenant::new("x").expect("token"),
            attempt: 1,
            fence: 1,
            seq,
            stream,
            offset,
            len: text.len() as u64,
            time: Time::now(),
            encoding: ChunkEncoding::Utf8,
            data: ChunkData::Text(text.to_owned()),
            dropped_bytes: 0,
            eof: false,
        }
    }

    fn manifest(chunks: u64, stdout: &str, stderr: &str) -> Manifest {
        let of = |text: &str| StreamManifest { bytes: text.len() as u64, chunks: 1, sha256: sha256_hex(text.as_bytes()), dropped_bytes: 0 };
        Manifest { subject: String::new(), fence: 1, chunks, stdout: of(stdout), stderr: of(stderr), system: None }
    }

    #[test]
    fn chunks_that_come_late_or_twice_are_put_in_their_place() {
        let mut assembly = Assembly::default();
        let mut out = Vec::new();
        for c in [
            chunk(1, LogStream::Stderr, 0, "err"),
            chunk(0, LogStream::Stdout, 0, "one"),
            chunk(0, LogStream::Stdout, 0, "one"),
            chunk(3, LogStream::Stdout, 6, "three"),
            chunk(2, LogStream::Stdout, 3, "two"),
        ] {
            out.extend(assembly.push(c).into_iter().map(|p| String::from_utf8(p.bytes).expect("text")));
        }
        assert_eq!(out, ["one", "err", "two", "three"]);
        assert_eq!(assembly.differences(&manifest(4, "onetwothree", "err")), Vec::<String>::new());
    }

    #[test]
    fn what_is_missing_or_changed_is_said() {
        let mut assembly = Assembly::default();
        assembly.push(chunk(0, LogStream::Stdout, 0, "one"));
        assembly.push(chunk(2, LogStream::Stdout, 6, "three"));
        let found = assembly.differences(&manifest(3, "onetwothree", ""));
        assert_eq!(found, ["1 of 3 chunks are there", "stdout has 3 bytes, the manifest says 11"]);
        let mut changed = Assembly::default();
        changed.push(chunk(0, LogStream::Stdout, 0, "onX"));
        assert_eq!(changed.differences(&manifest(1, "one", "")), ["stdout has not the SHA-256 of the manifest"]);
    }

    #[test]
    fn bytes_that_are_no_text_come_back_exactly() {
        let mut binary = chunk(0, LogStream::Stdout, 0, "");
        binary.encoding = ChunkEncoding::Base64;
        binary.data = ChunkData::Text("AP8=".to_owned());
        binary.len = 2;
        assert_eq!(Assembly::default().push(binary.clone())[0].bytes, [0x00, 0xff]);
        binary.len = 3;
        let mut assembly = Assembly::default();
        assert!(assembly.push(binary).is_empty());
        assert!(assembly.differences(&manifest(1, "", ""))[0].contains("2 bytes where it says 3"));
    }
}
