//! A broker that is away, slow or forgetful.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_flows_to_the_disk_while_the_broker_is_away() {
    let attempt = Setup::default().start(FakeSink::instant());
    attempt.sink.set_there(false);
    let Attempt { stdout, .. } = attempt;
    // The write returns: the task is not blocked.
    let data = numbers(120 << 20);
    let stdout = write(stdout, data.clone()).await;
    assert!(attempt.sink.stored().is_empty());
    let on_disk: u64 = files(&attempt.spool).iter().map(std::fs::Metadata::len).sum();
    assert!(on_disk > 110 << 20, "{on_disk}");
    // A window of 8, 7 ahead of it, 10 before the disk.
    let peak = attempt.recorder.peak_buffered_bytes();
    assert!(peak <= 25 * (64 << 10), "{peak}");
    attempt.sink.set_there(true);
    let (_, output) = Attempt { stdout, ..attempt }.finish().await;
    assert!(output.stdout() == data);
}

#[tokio::test(start_paused = true)]
async fn the_same_bytes_go_out_until_they_are_confirmed() {
    // The sink asserts that a message id never comes with other bytes.
    let sink = FakeSink::with(|_, nth| match nth {
        0..4 => Answer::Retry,
        4 => Answer::StoredUnheard,
        _ => Answer::Stored,
    });
    let attempt = Setup { chunk: 4096, ..Setup::default() }.start(sink);
    let Attempt { stdout, .. } = attempt;
    let stdout = write(stdout, numbers(40_000)).await;
    let sink = Arc::clone(&attempt.sink);
    let (_, output) = Attempt { stdout, ..attempt }.finish().await;
    assert_eq!(output.stdout(), numbers(40_000));
    assert!(sink.tries().values().all(|tries| *tries == 6));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_proven_before_the_last_confirmation() {
    let mut attempt = Setup::default().start(FakeSink::instant());
    attempt.sink.set_there(false);
    attempt.stdout.write_all(b"hello").expect("write");
    let Attempt { recorder, sink, stdout, stderr, .. } = attempt;
    drop((stdout, stderr));
    let mut finishing = std::pin::pin!(recorder.finish(DRAIN));
    assert!(tokio::time::timeout(Duration::from_secs(3600), &mut finishing).await.is_err());
    sink.set_there(true);
    assert_eq!(finishing.await.expect("recorded").manifest.chunks, 1);
}
