//! Secrets on their way through the whole stage.

use std::io::Write as _;

use super::*;

const SECRET: &str = "correct-horse-battery-staple";

fn with_secret(setup: Setup) -> Setup {
    Setup { mask: Masker::new([SECRET.as_bytes()]).expect("a masker"), ..setup }
}

#[tokio::test]
async fn a_secret_is_masked_wherever_it_is_cut() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let local = LocalLogs { dir: dir.path().to_owned(), file_max: ByteSize(1 << 30), file_keep: 0 };
    // Chunks that are shorter than the secret, and writes of a byte each.
    let mut attempt = with_secret(Setup { chunk: 16, local: Some(local), ..Setup::default() }).start(FakeSink::instant());
    let text = format!("before {SECRET} between\n{SECRET}{SECRET} after, é, {}", &SECRET[..10]);
    for byte in text.bytes() {
        attempt.stdout.write_all(&[byte]).expect("write");
        attempt.stderr.write_all(&[byte]).expect("write");
    }
    let (recorded, output) = attempt.finish().await;
    let masked = "before *** between\n****** after, é, ***";
    assert_eq!((output.stdout(), output.stderr()), (masked.as_bytes(), masked.as_bytes()));
    assert_eq!(recorded.stderr_tail, masked);
    let copy = std::fs::read_to_string(dir.path().join("acme").join("t1.2.log")).expect("the local copy");
    // One file for both streams: what is cut in the middle of three stars goes on after the other's.
    assert!(!copy.contains("correct") && copy.matches('*').count() == 8 * 3, "{copy}");
    assert!(output.chunks.iter().all(|chunk| chunk.len <= 16), "what was held back makes no chunk too large");
}

#[tokio::test]
async fn lines_are_seen_while_a_beginning_is_held_back() {
    let mut attempt = with_secret(Setup::default()).start(FakeSink::instant());
    attempt.stdout.write_all(format!("a line\n{}", &SECRET[..12]).as_bytes()).expect("write");
    attempt.sink.until(|stored| stored.len() == 1).await;
    attempt.stdout.write_all(&SECRET.as_bytes()[12..]).expect("write");
    attempt.stdout.write_all(b"\n").expect("write");
    attempt.sink.until(|stored| stored.len() >= 2).await;
    let (_, output) = attempt.finish().await;
    assert_eq!(output.stdout(), b"a line\n***\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_with_secrets_in_it_loses_only_the_secrets() {
    let attempt = with_secret(Setup::default()).start(FakeSink::instant());
    let Attempt { stdout, .. } = attempt;
    let lines = 100_000;
    let stdout = write(stdout, format!("a line with {SECRET} in it\n").repeat(lines)).await;
    let (_, output) = Attempt { stdout, ..attempt }.finish().await;
    assert!(output.stdout() == "a line with *** in it\n".repeat(lines).as_bytes());
}
