//! Any output in any pieces through mask and chunker: what comes out is what a reader of the contract can rely on.
#![expect(clippy::expect_used, clippy::panic, reason = "a broken promise is told by a panic")]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::chunker::{Chunker, Identity};
use super::spool::Piece;
use super::utf8::whole_chars;
use crate::mask::Masker;
use crate::task::log_chunk::{ChunkData, ChunkEncoding, LogChunk, LogStream};
use crate::task::{TaskId, Tenant, Time};
use crate::wire::{Encoding, sha256_hex};

/// The first bytes say: encoding, `max_payload`, chunk size, length of a secret, which follows; then pieces, each after its length.
pub fn fuzz_log_chunker(bytes: &[u8]) {
    let Some((&[flags, payload, chunk, secret], rest)) = bytes.split_first_chunk::<4>() else { return };
    let encoding = if flags & 1 == 0 { Encoding::Json } else { Encoding::Msgpack };
    let max_payload = 2200 + usize::from(payload) * 16;
    let chunk_size = 16 + usize::from(chunk);
    let (secret, mut rest) = rest.split_at(usize::from(secret).min(rest.len()));
    let masker = Masker::new([secret]).expect("a masker");
    let mut mask = masker.stream();
    let (mut raw, mut pending, mut masked) = (Vec::new(), Vec::new(), Vec::new());
    let mut chunker = Chunker::new(identity(encoding, max_payload));
    let mut chunks = Vec::new();
    while let Some((&len, after)) = rest.split_first() {
        let (piece, after) = after.split_at(usize::from(len).min(after.len()));
        rest = after;
        raw.extend_from_slice(piece);
        let before = pending.len();
        match &mut mask {
            Some(mask) => mask.push(piece, &mut |part| pending.extend_from_slice(part)),
            None => pending.extend_from_slice(piece),
        }
        masked.extend_from_slice(&pending[before..]);
        while pending.len() >= chunk_size {
            let whole = whole_chars(&pending[..chunk_size]);
            let data = pending.drain(..if whole == 0 { chunk_size } else { whole }).collect();
            chunker.cut(Piece { stream: LogStream::Stdout, time: Time::now(), data, dropped: 0, last: false }, &mut chunks);
        }
    }
    let before = pending.len();
    if let Some(mask) = &mut mask {
        mask.finish(&mut |part| pending.extend_from_slice(part));
    }
    masked.extend_from_slice(&pending[before..]);
    chunker.cut(Piece { stream: LogStream::Stdout, time: Time::now(), data: pending, dropped: 0, last: true }, &mut chunks);
    assert!(masked == *masker.bytes(&raw), "where the output is cut makes a difference");
    let manifest = chunker.manifest();
    let mut read = Vec::new();
    let count = chunks.len();
    for (seq, chunk) in chunks.into_iter().enumerate() {
        let body = chunk.body().expect("a body");
        assert!(body.len() <= max_payload, "a body of {} bytes, {max_payload} are allowed", body.len());
        let chunk: LogChunk = encoding.decode(&body).expect("its own words");
        let data = plain(&chunk);
        assert_eq!((chunk.seq, chunk.offset, chunk.len), (seq as u64, read.len() as u64, data.len() as u64));
        assert_eq!(chunk.eof, seq + 1 == count, "exactly the last has eof");
        read.extend(data);
    }
    assert!(read == masked, "the chunks put together are something else");
    assert_eq!((manifest.chunks, manifest.stdout.bytes, manifest.stdout.sha256), (count as u64, read.len() as u64, sha256_hex(&read)));
    // What stands for a secret can itself make one, of stars.
    assert!(secret.len() < 6 || secret.contains(&b'*') || !read.windows(secret.len()).any(|w| w == secret), "the secret is in it");
}

fn identity(encoding: Encoding, max_payload: usize) -> Identity {
    let (task_id, tenant) = (TaskId::new("t1").expect("a token"), Tenant::new("acme").expect("a token"));
    Identity { task_id, tenant, attempt: 1, fence: 9, subject: "windlass.logs.acme.t1.1".to_owned(), encoding, max_payload }
}

fn plain(chunk: &LogChunk) -> Vec<u8> {
    match (&chunk.encoding, &chunk.data) {
        (ChunkEncoding::Utf8, ChunkData::Text(text)) => text.clone().into_bytes(),
        (ChunkEncoding::Base64, ChunkData::Text(text)) => BASE64.decode(text).expect("base64"),
        (ChunkEncoding::Bin, ChunkData::Bytes(bytes)) => bytes.clone(),
        other => panic!("data does not fit encoding: {other:?}"),
    }
}
