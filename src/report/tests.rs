//! The whole stage over real pipes and real files, with a sink in memory.

use std::io::{PipeWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::fake::{Answer, FakeSink};
use super::recorder::{Recorded, Recorder, RecorderConfig, ReportError};
use super::{Fault, LocalLogs, spool};
use crate::mask::Masker;
use crate::task::event::{Manifest, StreamManifest};
use crate::task::log_chunk::{ChunkData, ChunkEncoding, LogChunk, LogStream};
use crate::task::{ByteSize, TaskId, Tenant};
use crate::wire::{Encoding, hex};

mod away;
mod bytes;
mod cap;
mod faults;
mod life;
mod masked;
mod speed;

const DRAIN: Duration = Duration::from_secs(5);

/// A recorder, its sink, and the task's ends of the pipes.
struct Attempt {
    recorder: Recorder,
    sink: Arc<FakeSink>,
    stdout: PipeWriter,
    stderr: PipeWriter,
    encoding: Encoding,
    spool: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

struct Setup {
    cap: u64,
    chunk: u64,
    encoding: Encoding,
    window: u32,
    local: Option<LocalLogs>,
    create: spool::Create,
    mask: Masker,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            cap: 256 << 20,
            chunk: 64 << 10,
            encoding: Encoding::Json,
            window: 8,
            local: None,
            create: spool::create,
            mask: Masker::default(),
        }
    }
}

impl Setup {
    fn start(self, sink: FakeSink) -> Attempt {
        let dir = tempfile::tempdir().expect("temporary directory");
        let spool = dir.path().join("attempts").join("t1.2");
        let config = RecorderConfig {
            task_id: TaskId::new("t1").expect("token"),
            tenant: Tenant::new("acme").expect("token"),
            attempt: 2,
            fence: 9,
            subject: "windlass.logs.acme.t1.2".to_owned(),
            encoding: self.encoding,
            cap: ByteSize(self.cap),
            chunk: ByteSize(self.chunk),
            flush: Duration::from_millis(100),
            window: self.window,
            max_payload: 1 << 20,
            spool: spool.clone(),
            local: self.local,
            mask: self.mask,
        };
        let sink = Arc::new(sink);
        let (stdout_read, stdout) = std::io::pipe().expect("pipe");
        let (stderr_read, stderr) = std::io::pipe().expect("pipe");
        let recorder = Recorder::start_on(config, Arc::clone(&sink), stdout_read.into(), stderr_read.into(), self.create).expect("pipes");
        Attempt { recorder, sink, stdout, stderr, encoding: self.encoding, spool, _dir: dir }
    }
}

/// What the sink has of each stream, after everything that a reader may rely on was checked.
struct Output {
    streams: [Vec<u8>; 3],
    chunks: Vec<LogChunk>,
}

impl Output {
    fn of(sink: &FakeSink, encoding: Encoding, manifest: &Manifest) -> Self {
        let mut chunks: Vec<LogChunk> = Vec::new();
        for (msg_id, (subject, body)) in sink.stored() {
            let chunk: LogChunk = encoding.decode(&body).expect("own body");
            assert_eq!(subject, format!("windlass.logs.acme.t1.2.{}", chunk.stream.as_str()));
            assert_eq!(msg_id, format!("t1.2.9.log.{}", chunk.seq));
            assert_eq!((chunk.fence, chunk.attempt), (9, 2));
            chunks.push(chunk);
        }
        chunks.sort_by_key(|chunk| chunk.seq);
        let mut streams: [Vec<u8>; 3] = Default::default();
        let mut dropped = [0; 3];
        for (seq, chunk) in chunks.iter().enumerate() {
            let stream = &mut streams[spool::index(chunk.stream)];
            let data = plain(chunk);
            assert_eq!((chunk.seq, chunk.offset, chunk.len), (seq as u64, stream.len() as u64, data.len() as u64));
            assert_eq!(chunk.eof, seq + 1 == chunks.len(), "exactly the last chunk has eof");
            stream.extend(data);
            dropped[spool::index(chunk.stream)] += chunk.dropped_bytes;
        }
        let count = |stream| chunks.iter().filter(|chunk| chunk.stream == stream).count() as u64;
        let proof = |stream| StreamManifest {
            bytes: streams[spool::index(stream)].len() as u64,
            chunks: count(stream),
            sha256: hex(&Sha256::digest(&streams[spool::index(stream)])),
            dropped_bytes: dropped[spool::index(stream)],
        };
        let expected = Manifest {
            subject: "windlass.logs.acme.t1.2.>".to_owned(),
            fence: 9,
            chunks: chunks.len() as u64,
            stdout: proof(LogStream::Stdout),
            stderr: proof(LogStream::Stderr),
            system: (count(LogStream::System) > 0).then(|| proof(LogStream::System)),
        };
        assert_eq!(*manifest, expected);
        Self { streams, chunks }
    }

    fn stdout(&self) -> &[u8] {
        &self.streams[0]
    }

    fn stderr(&self) -> &[u8] {
        &self.streams[1]
    }

    fn system(&self) -> String {
        String::from_utf8(self.streams[2].clone()).expect("notices are text")
    }

    fn eof(&self) -> &LogChunk {
        self.chunks.last().expect("there is output")
    }
}

fn plain(chunk: &LogChunk) -> Vec<u8> {
    use base64::Engine as _;
    match (&chunk.encoding, &chunk.data) {
        (ChunkEncoding::Utf8, ChunkData::Text(text)) => text.clone().into_bytes(),
        (ChunkEncoding::Base64, ChunkData::Text(text)) => {
            let bytes = base64::engine::general_purpose::STANDARD.decode(text).expect("base64");
            assert!(std::str::from_utf8(&bytes).is_err(), "base64 only for what is not UTF-8");
            bytes
        }
        (ChunkEncoding::Bin, ChunkData::Bytes(bytes)) => bytes.clone(),
        other => panic!("data does not fit encoding: {other:?}"),
    }
}

impl Attempt {
    /// Closes the task's ends, finishes and checks everything.
    async fn finish(self) -> (Recorded, Output) {
        let Self { recorder, sink, stdout, stderr, encoding, spool, _dir } = self;
        drop((stdout, stderr));
        let recorded = recorder.finish(DRAIN).await.expect("recorded");
        let output = Output::of(&sink, encoding, &recorded.manifest);
        assert!(!spool.exists(), "the spool is gone");
        (recorded, output)
    }

    /// Closes the task's ends and finishes after a fault.
    async fn fail(self) -> (ReportError, Arc<FakeSink>) {
        let Self { recorder, sink, stdout, stderr, spool, _dir, .. } = self;
        drop((stdout, stderr));
        let error = recorder.finish(DRAIN).await.expect_err("a fault");
        assert!(!spool.exists(), "the spool is gone");
        (error, sink)
    }
}

/// Writes off the runtime, as a task would: a full pipe blocks it, not us.
async fn write(mut pipe: PipeWriter, data: impl AsRef<[u8]> + Send + 'static) -> PipeWriter {
    let write = move || {
        pipe.write_all(data.as_ref()).expect("the recorder reads");
        pipe
    };
    tokio::task::spawn_blocking(write).await.expect("no panic")
}

/// Text that differs everywhere.
fn numbers(bytes: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(bytes + 16);
    let mut line = 0;
    while text.len() < bytes {
        writeln!(text, "{line:x}").expect("memory");
        line += 1;
    }
    text.truncate(bytes);
    text
}

fn files(dir: &Path) -> Vec<std::fs::Metadata> {
    std::fs::read_dir(dir).map(|list| list.map(|file| file.expect("entry").metadata().expect("metadata")).collect()).unwrap_or_default()
}
