//! Not a test: how fast the stage is with a sink that costs nothing.

use std::time::Instant;

use super::*;
use crate::report::{ChunkSink, SinkError};

struct Nowhere;

impl ChunkSink for Nowhere {
    async fn publish(&self, _: String, _: String, _: &'static str, _: ::bytes::Bytes) -> Result<(), SinkError> {
        Ok(())
    }
}

/// `cargo test --release --lib report -- --ignored --nocapture throughput`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn throughput() {
    for encoding in [Encoding::Json, Encoding::Msgpack] {
        let dir = tempfile::tempdir().expect("temporary directory");
        let config = RecorderConfig {
            task_id: TaskId::new("t1").expect("token"),
            tenant: Tenant::new("acme").expect("token"),
            attempt: 1,
            fence: 1,
            subject: "windlass.logs.acme.t1.1".to_owned(),
            encoding,
            cap: ByteSize(8 << 30),
            chunk: ByteSize(64 << 10),
            flush: Duration::from_millis(100),
            window: 16,
            max_payload: 1 << 20,
            spool: dir.path().join("spool"),
            local: None,
            mask: crate::mask::Masker::default(),
        };
        let (stdout_read, stdout) = std::io::pipe().expect("pipe");
        let (stderr_read, _) = std::io::pipe().expect("pipe");
        let recorder = Recorder::start(config, Arc::new(Nowhere), stdout_read.into(), stderr_read.into()).expect("pipes");
        let total = 1_usize << 30;
        let start = Instant::now();
        let writer = std::thread::spawn(move || {
            let (mut stdout, block) = (stdout, numbers(1 << 20));
            for _ in 0..total >> 20 {
                stdout.write_all(&block).expect("the recorder reads");
            }
        });
        tokio::task::spawn_blocking(move || writer.join()).await.expect("no panic").expect("no panic");
        let read = start.elapsed();
        recorder.finish(DRAIN).await.expect("recorded");
        let mb = |elapsed: Duration| (total as f64 / 1e6 / elapsed.as_secs_f64()).round();
        println!("{encoding:?}: task wrote at {} MB/s, all confirmed at {} MB/s", mb(read), mb(start.elapsed()));
    }
}

/// `cargo test --release --lib report -- --ignored --nocapture no_op`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn no_op() {
    for output in [&b""[..], b"hello\n"] {
        let mut spent = Duration::ZERO;
        for _ in 0..2000 {
            let mut attempt = Setup::default().start(FakeSink::instant());
            attempt.stdout.write_all(output).expect("write");
            drop((attempt.stdout, attempt.stderr));
            let start = Instant::now();
            attempt.recorder.finish(DRAIN).await.expect("recorded");
            spent += start.elapsed();
        }
        println!("{} bytes: finish takes {:?}", output.len(), spent / 2000);
    }
}

#[test]
#[ignore = "a measurement"]
fn digest() {
    let block = numbers(64 << 10);
    let start = Instant::now();
    let mut digest = Sha256::new();
    for _ in 0..16 << 10 {
        digest.update(&block);
    }
    println!("SHA-256: {} MB/s ({})", ((1 << 30) as f64 / 1e6 / start.elapsed().as_secs_f64()).round(), hex(&digest.finalize()));
    let start = Instant::now();
    let text = String::from_utf8(block).unwrap();
    for _ in 0..16 << 10 {
        std::hint::black_box(Encoding::Json.encode(&text).unwrap());
    }
    println!("json: {} MB/s", ((1 << 30) as f64 / 1e6 / start.elapsed().as_secs_f64()).round());
}
