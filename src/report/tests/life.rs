//! When things appear, are published, and go.

use super::*;

#[tokio::test(start_paused = true)]
async fn no_output_leaves_no_chunk_and_touches_no_disk() {
    let local = tempfile::tempdir().expect("temporary directory");
    let logs = LocalLogs { dir: local.path().join("logs"), file_max: ByteSize(1000), file_keep: 1 };
    let never: spool::Create = |path| panic!("{} is created", path.display());
    let attempt = Setup { local: Some(logs), create: never, ..Setup::default() }.start(FakeSink::instant());
    let parent = attempt.spool.parent().expect("has one").to_owned();
    let (recorded, output) = attempt.finish().await;
    assert!(output.chunks.is_empty() && !parent.exists() && files(local.path()).is_empty());
    assert_eq!(recorded.manifest.stdout.sha256, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    assert_eq!(recorded.manifest.system, None);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_prints_and_ends_is_one_chunk() {
    let mut attempt = Setup::default().start(FakeSink::instant());
    attempt.stdout.write_all(b"hello\n").expect("write");
    let (_, output) = attempt.finish().await;
    assert_eq!((output.stdout(), output.chunks.len()), (&b"hello\n"[..], 1));
    assert!(output.eof().eof);
}

#[tokio::test(start_paused = true)]
async fn an_empty_chunk_ends_what_was_already_published() {
    let mut attempt = Setup::default().start(FakeSink::instant());
    attempt.stderr.write_all(b"oops").expect("write");
    attempt.sink.until(|stored| stored.len() == 1).await;
    let (recorded, output) = attempt.finish().await;
    assert_eq!((output.eof().len, output.eof().stream, output.chunks.len()), (0, LogStream::Stderr, 2));
    assert_eq!(recorded.stderr_tail, "oops");
}

#[tokio::test(start_paused = true)]
async fn a_lone_line_is_published_at_once_and_a_trickle_every_flush_interval() {
    let mut attempt = Setup::default().start(FakeSink::instant());
    let start = tokio::time::Instant::now();
    attempt.stdout.write_all(b"first").expect("write");
    attempt.sink.until(|stored| stored.len() == 1).await;
    assert!(start.elapsed() <= Duration::from_millis(10), "after a silence: {:?}", start.elapsed());
    for _ in 0..30 {
        attempt.stdout.write_all(b".").expect("write");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let chunks = attempt.sink.stored().len();
    assert!((3..=5).contains(&chunks), "300 ms of trickle in {chunks} chunks");
    assert_eq!(attempt.finish().await.1.stdout().len(), 35);
}

#[tokio::test(start_paused = true)]
async fn a_pipe_that_somebody_keeps_open_is_read_for_the_drain_time_only() {
    let mut attempt = Setup::default().start(FakeSink::instant());
    let mut daemon = attempt.stdout.try_clone().expect("duplicate");
    attempt.stdout.write_all(b"task").expect("write");
    let start = tokio::time::Instant::now();
    let (_, output) = attempt.finish().await;
    assert!(start.elapsed() >= DRAIN && start.elapsed() < DRAIN + Duration::from_secs(1));
    assert_eq!(output.stdout(), b"task");
    assert_eq!(output.system(), "stdout still held open by another process 5000 ms after the task's end; read no further");
    assert!(daemon.write_all(b"late").is_err(), "the read end is closed");
}

#[tokio::test(start_paused = true)]
async fn without_drain_time_what_lies_in_the_pipes_still_counts() {
    let mut attempt = Setup::default().start(FakeSink::instant());
    let (_stdout, _stderr) = (attempt.stdout.try_clone().expect("duplicate"), attempt.stderr.try_clone().expect("duplicate"));
    attempt.stdout.write_all(&[b'o'; 60_000]).expect("write");
    attempt.stderr.write_all(b"err").expect("write");
    let Attempt { recorder, sink, encoding, .. } = attempt;
    let recorded = recorder.finish(Duration::ZERO).await.expect("recorded");
    let output = Output::of(&sink, encoding, &recorded.manifest);
    assert_eq!((output.stdout().len(), output.stderr()), (60_000, &b"err"[..]));
    assert_eq!(recorded.stderr_tail, "err");
}

#[tokio::test(start_paused = true)]
async fn abandoning_stops_everything_and_removes_the_spool() {
    let attempt = Setup::default().start(FakeSink::instant());
    attempt.sink.set_there(false);
    let Attempt { recorder, sink, stdout, spool, _dir, .. } = attempt;
    let stdout = write(stdout, numbers(8 << 20)).await;
    assert!(!files(&spool).is_empty());
    recorder.abandon().await;
    assert!(!spool.exists());
    assert!(sink.stored().is_empty());
    assert!((&stdout).write_all(b"x").is_err(), "nobody reads any more");
}

#[tokio::test(start_paused = true)]
async fn dropping_removes_the_spool_too() {
    let attempt = Setup::default().start(FakeSink::instant());
    attempt.sink.set_there(false);
    let Attempt { recorder, stdout, spool, _dir, .. } = attempt;
    let _stdout = write(stdout, numbers(8 << 20)).await;
    assert!(spool.exists());
    drop(recorder);
    // Paused time moves only when every task is idle, so this returns when they have ended.
    let gone = async {
        while spool.exists() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), gone).await.expect("removed");
}

#[test]
fn the_runtime_going_down_removes_the_spool() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let (spool, _dir) = runtime.block_on(async {
        let attempt = Setup::default().start(FakeSink::instant());
        attempt.sink.set_there(false);
        let Attempt { recorder, stdout, stderr, spool, _dir, .. } = attempt;
        let stdout = write(stdout, numbers(8 << 20)).await;
        assert!(spool.exists());
        tokio::spawn(async move {
            let _pipes = (stdout, stderr);
            recorder.finish(DRAIN).await.map(|_| ())
        });
        tokio::task::yield_now().await;
        (spool, _dir)
    });
    drop(runtime);
    assert!(!spool.exists());
}

#[tokio::test(start_paused = true)]
async fn the_local_copy_has_every_byte_of_both_streams() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let logs = LocalLogs { dir: dir.path().to_owned(), file_max: ByteSize(1 << 20), file_keep: 1 };
    let mut attempt = Setup { local: Some(logs), cap: 10, ..Setup::default() }.start(FakeSink::instant());
    attempt.stdout.write_all(b"one one one ").expect("write");
    attempt.sink.until(|stored| !stored.is_empty()).await;
    attempt.stderr.write_all(b"two").expect("write");
    attempt.finish().await;
    assert_eq!(std::fs::read(dir.path().join("acme/t1.2.log")).expect("copy"), b"one one one two");
}
