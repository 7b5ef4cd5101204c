//! The log cap: head, tail and what is missing between.

use super::*;

/// Writes `total` bytes to stdout of an attempt with a cap.
async fn capped(cap: u64, chunk: u64, total: usize) -> (Vec<u8>, Recorded, Output) {
    let attempt = Setup { cap, chunk, ..Setup::default() }.start(FakeSink::instant());
    let Attempt { stdout, .. } = attempt;
    let data = numbers(total);
    let stdout = write(stdout, data.clone()).await;
    let (recorded, output) = Attempt { stdout, ..attempt }.finish().await;
    (data, recorded, output)
}

#[tokio::test]
async fn up_to_the_cap_nothing_is_missing() {
    for total in [499_999, 500_000, 500_001, 999_999, 1_000_000] {
        let (data, recorded, output) = capped(1_000_000, 4096, total).await;
        assert!(output.stdout() == data, "{total}");
        assert_eq!((recorded.manifest.stdout.dropped_bytes, recorded.manifest.system), (0, None), "{total}");
    }
}

#[tokio::test]
async fn above_the_cap_head_and_newest_tail_are_kept_to_the_byte() {
    for total in [1_000_001, 1_234_567, 5_000_000, 20_000_000] {
        let (data, recorded, output) = capped(1_000_000, 4096, total).await;
        let kept = [&data[..500_000], &data[total - 500_000..]].concat();
        assert!(output.stdout() == kept, "{total}");
        assert_eq!(recorded.manifest.stdout.dropped_bytes, total as u64 - 1_000_000);
        let marked: Vec<_> = output.chunks.iter().filter(|chunk| chunk.dropped_bytes > 0).map(|chunk| chunk.offset).collect();
        assert_eq!(marked, [500_000], "the first chunk of the tail says it");
        assert_eq!(output.system(), "output exceeds 1000000; the newest 500000 follow at the end");
    }
}

#[tokio::test]
async fn head_and_tail_never_share_a_segment() {
    // The head ends 1000 bytes into its second segment.
    let half = (4 << 20) + 1000;
    let (data, recorded, output) = capped(2 * half as u64, 64 << 10, 12 << 20).await;
    assert!(output.stdout() == [&data[..half], &data[data.len() - half..]].concat());
    assert_eq!(recorded.manifest.stdout.dropped_bytes, (data.len() - 2 * half) as u64);
}

#[tokio::test]
async fn a_stream_of_which_all_is_missing_says_so_in_an_empty_chunk() {
    let attempt = Setup { cap: 200_000, ..Setup::default() }.start(FakeSink::instant());
    let Attempt { stdout, stderr, .. } = attempt;
    let stdout = write(stdout, numbers(150_000)).await;
    attempt.sink.until(|stored| stored.len() >= 2).await;
    let stderr = write(stderr, b"lost in the middle".to_vec()).await;
    // Its record is cut before the rest comes.
    until_local_has(&attempt.recorder, "lost in the middle").await;
    tokio::time::sleep(Duration::from_millis(150)).await;
    let stdout = write(stdout, numbers(900_000)).await;
    let (recorded, output) = Attempt { stdout, stderr, ..attempt }.finish().await;
    assert_eq!(output.stderr(), b"");
    assert_eq!(recorded.manifest.stderr.dropped_bytes, 18);
    assert_eq!(recorded.manifest.stdout.dropped_bytes, 1_050_000 - 200_000);
    let marker = output.chunks.iter().find(|chunk| chunk.stream == LogStream::Stderr).expect("a marker");
    assert_eq!((marker.len, marker.dropped_bytes), (0, 18));
}

async fn until_local_has(recorder: &Recorder, text: &str) {
    while recorder.stderr_tail() != text {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn the_tail_takes_no_more_disk_than_its_share() {
    let attempt = Setup { cap: 8 << 20, ..Setup::default() }.start(FakeSink::instant());
    let Attempt { stdout, spool, .. } = attempt;
    let stdout = write(stdout, numbers(64 << 20)).await;
    let on_disk: u64 = files(&spool).iter().map(std::fs::Metadata::len).sum();
    // A head that is being consumed, the tail, an eighth of it, and headers.
    assert!(on_disk <= (4 << 20) + (4 << 20) + (1 << 20), "{on_disk}");
    let (recorded, _) = Attempt { stdout, spool, ..attempt }.finish().await;
    assert_eq!(recorded.manifest.stdout.bytes, 8 << 20);
}
