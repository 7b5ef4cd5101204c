//! Numbers and digests output: pieces of the spool become chunks.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::fault::Fault;
use super::spool::{Piece, index};
use super::utf8::whole_chars;
use crate::task::event::{Manifest, StreamManifest};
use crate::task::log_chunk::{ChunkData, ChunkEncoding, LogChunk, LogStream};
use crate::task::{TaskId, Tenant};
use crate::wire::{Encoding, hex};

/// What a message carries besides the data: the other members of the body (ids of 64 bytes at most) and the headers,
/// which count towards the server's `max_payload`.
const ALLOWANCE: usize = 2048;

/// Bytes of output that fit into one chunk whatever they are (as base64), where the server takes messages of `max_payload`.
#[must_use]
pub fn chunk_room(max_payload: usize) -> usize {
    max_payload.saturating_sub(ALLOWANCE) / 4 * 3
}

/// Whose output it is and how it is written.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub(super) task_id: TaskId,
    pub(super) tenant: Tenant,
    pub(super) attempt: u32,
    pub(super) fence: u64,
    /// `<prefix>.logs.<tenant>.<task_id>.<attempt>`.
    pub(super) subject: String,
    pub(super) encoding: Encoding,
    pub(super) max_payload: usize,
}

/// A numbered chunk.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) subject: String,
    pub(super) msg_id: String,
    pub(super) encoding: Encoding,
    chunk: LogChunk,
    data: Vec<u8>,
}

impl Prepared {
    /// Bytes of output in it.
    pub(super) fn len(&self) -> usize {
        self.data.len()
    }

    /// Its body, which is published any number of times with the same bytes. Escaping 64 KiB takes a tenth of a
    /// millisecond, twice as long as all that has to happen in the order of the chunks.
    pub(super) fn body(self) -> Result<Bytes, Fault> {
        let Self { encoding, mut chunk, data, .. } = self;
        // Room for the other members, and for a line break to escape in every line.
        let room = data.len() + data.len() / 2 + 512;
        (chunk.encoding, chunk.data) = write(encoding, data);
        encoding.encode_into(Vec::with_capacity(room), &chunk).map_err(|e| Fault::Internal(e.to_string()))
    }
}

#[derive(Debug, Default)]
struct Total {
    bytes: u64,
    chunks: u64,
    dropped: u64,
    digest: Sha256,
}

/// Holds the counters of an attempt's output.
#[derive(Debug)]
pub(super) struct Chunker {
    identity: Identity,
    /// Most bytes that the encoded data may have.
    room: usize,
    seq: u64,
    totals: [Total; 3],
}

impl Chunker {
    pub(super) fn new(identity: Identity) -> Self {
        let room = identity.max_payload.saturating_sub(ALLOWANCE).max(64);
        Self { identity, room, seq: 0, totals: Default::default() }
    }

    /// Turns a piece into one chunk, or into several when it would not fit the server.
    pub(super) fn cut(&mut self, piece: Piece, out: &mut Vec<Prepared>) {
        let Piece { stream, time, mut data, mut dropped, last } = piece;
        loop {
            let fit = self.fit(&data);
            let rest = data.split_off(fit);
            let eof = last && rest.is_empty();
            let part = Piece { stream, time, data, dropped, last: eof };
            out.push(self.chunk(part));
            if rest.is_empty() {
                return;
            }
            (data, dropped) = (rest, 0);
        }
    }

    /// How many bytes of `data` go into one chunk.
    fn fit(&self, data: &[u8]) -> usize {
        let all = data.len();
        // The usual case is decided without a look: even 64 KiB of control characters, or of base64, fit into a megabyte.
        if all.saturating_mul(6) <= self.room {
            return all;
        }
        match (self.identity.encoding, std::str::from_utf8(data)) {
            (Encoding::Msgpack, _) => all.min(self.room),
            (Encoding::Json, Ok(text)) => prefix_that_fits(text, self.room),
            // Its beginning may be valid alone and grow by escapes: six times is the bound for both.
            (Encoding::Json, Err(_)) if all.div_ceil(3).saturating_mul(4) <= self.room => all,
            (Encoding::Json, Err(_)) => whole_chars(&data[..all.min(self.room / 6)]).max(1),
        }
    }

    fn chunk(&mut self, part: Piece) -> Prepared {
        let Identity { task_id, tenant, attempt, fence, subject, encoding, .. } = &self.identity;
        let total = &mut self.totals[index(part.stream)];
        let len = part.data.len() as u64;
        let (offset, seq) = (total.bytes, self.seq);
        total.digest.update(&part.data);
        total.bytes += len;
        total.chunks += 1;
        total.dropped += part.dropped;
        self.seq += 1;
        let chunk = LogChunk {
            v: 1,
            task_id: task_id.clone(),
            tenant: tenant.clone(),
            attempt: *attempt,
            fence: *fence,
            seq,
            stream: part.stream,
            offset,
            len,
            time: part.time,
            // Both are written with the body.
            encoding: ChunkEncoding::Bin,
            data: ChunkData::Bytes(Vec::new()),
            dropped_bytes: part.dropped,
            eof: part.last,
        };
        Prepared {
            subject: format!("{subject}.{}", part.stream.as_str()),
            msg_id: format!("{task_id}.{attempt}.{fence}.log.{seq}"),
            encoding: *encoding,
            chunk,
            data: part.data,
        }
    }

    /// The proof of what was cut so far.
    pub(super) fn manifest(&self) -> Manifest {
        let stream = |stream: LogStream| {
            let total = &self.totals[index(stream)];
            StreamManifest {
                bytes: total.bytes,
                chunks: total.chunks,
                sha256: hex(&total.digest.clone().finalize()),
                dropped_bytes: total.dropped,
            }
        };
        let system = stream(LogStream::System);
        Manifest {
            subject: format!("{}.>", self.identity.subject),
            fence: self.identity.fence,
            chunks: self.seq,
            stdout: stream(LogStream::Stdout),
            stderr: stream(LogStream::Stderr),
            system: (system.chunks > 0).then_some(system),
        }
    }
}

fn write(encoding: Encoding, data: Vec<u8>) -> (ChunkEncoding, ChunkData) {
    match encoding {
        Encoding::Msgpack => (ChunkEncoding::Bin, ChunkData::Bytes(data)),
        Encoding::Json => match String::from_utf8(data) {
            Ok(text) => (ChunkEncoding::Utf8, ChunkData::Text(text)),
            Err(e) => (ChunkEncoding::Base64, ChunkData::Text(BASE64.encode(e.as_bytes()))),
        },
    }
}

/// Length of the longest prefix whose JSON text is `room` bytes at most; one character at least, so that there is an end.
fn prefix_that_fits(text: &str, room: usize) -> usize {
    let mut used = 0;
    for (at, character) in text.char_indices() {
        used += match character {
            '"' | '\\' | '\u{8}' | '\u{c}' | '\n' | '\r' | '\t' => 2,
            '\0'..='\u{1f}' => 6,
            other => other.len_utf8(),
        };
        if used > room && at > 0 {
            return at;
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Time;

    fn chunker(encoding: Encoding, max_payload: usize) -> Chunker {
        let (task_id, tenant) = (TaskId::new("t1").expect("token"), Tenant::new("acme").expect("token"));
        let subject = "windlass.logs.acme.t1.2".to_owned();
        Chunker::new(Identity { task_id, tenant, attempt: 2, fence: 9, subject, encoding, max_payload })
    }

    #[test]
    fn a_body_never_exceeds_max_payload_whatever_the_bytes() {
        let text = "ab\0\u{1}\"\\\n€😀".repeat(800);
        let samples: [&[u8]; 4] = [text.as_bytes(), &[0; 9000], &[0xFF; 9000], &[&[0; 8999][..], &[0xC3]].concat()];
        for encoding in [Encoding::Json, Encoding::Msgpack] {
            for sample in samples {
                let mut chunker = chunker(encoding, 4096);
                let mut out = Vec::new();
                let piece = Piece { stream: LogStream::Stderr, time: Time::now(), data: sample.to_vec(), dropped: 7, last: true };
                chunker.cut(piece, &mut out);
                let bodies: Vec<Bytes> = out.into_iter().map(|chunk| chunk.body().expect("encodes")).collect();
                assert!(bodies.iter().all(|body| body.len() + 400 <= 4096));
                let chunks: Vec<LogChunk> = bodies.iter().map(|body| encoding.decode(body).expect("own body")).collect();
                assert_eq!(chunks.iter().map(|c| c.len).sum::<u64>(), sample.len() as u64);
                assert_eq!(chunks.iter().map(|c| c.dropped_bytes).collect::<Vec<_>>()[..2], [7, 0]);
                assert_eq!(chunks.iter().filter(|c| c.eof).count(), 1);
                assert!(chunks.last().is_some_and(|c| c.eof));
                if encoding == Encoding::Json && std::str::from_utf8(sample).is_ok() {
                    assert!(chunks.iter().all(|c| c.encoding == ChunkEncoding::Utf8));
                }
            }
        }
    }

    #[test]
    fn names_and_numbers_follow_the_contract() {
        let mut chunker = chunker(Encoding::Json, 1 << 20);
        let mut out = Vec::new();
        for (stream, data) in [(LogStream::Stdout, &b"one"[..]), (LogStream::Stderr, b"\xFFtwo"), (LogStream::Stdout, b"three")] {
            let piece = Piece { stream, time: Time::now(), data: data.to_vec(), dropped: 0, last: false };
            chunker.cut(piece, &mut out);
        }
        let last = &out[2];
        assert_eq!((last.subject.as_str(), last.msg_id.as_str()), ("windlass.logs.acme.t1.2.stdout", "t1.2.9.log.2"));
        let mut decoded =
            out.into_iter().map(|chunk| Encoding::Json.decode::<LogChunk>(&chunk.body().expect("encodes")).expect("own body"));
        let (_, mixed, chunk) = (decoded.next(), decoded.next().expect("second"), decoded.next().expect("third"));
        assert_eq!((chunk.seq, chunk.offset, chunk.len), (2, 3, 5));
        assert_eq!((mixed.encoding, mixed.data), (ChunkEncoding::Base64, ChunkData::Text("/3R3bw==".into())));
        let manifest = chunker.manifest();
        assert_eq!((manifest.chunks, manifest.stdout.bytes, manifest.stderr.bytes), (3, 8, 4));
        assert_eq!(manifest.stdout.sha256, crate::wire::sha256_hex(b"onethree"));
        assert_eq!(manifest.system, None);
    }
}
