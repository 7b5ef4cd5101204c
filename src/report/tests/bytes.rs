//! Byte exactness.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
struct Case {
    writes: Vec<(bool, Vec<u8>)>,
    chunk: u64,
    msgpack: bool,
    window: u32,
    unruly: u64,
}

fn data() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        3 => "[a-zé€😀\n]{0,60}".prop_map(String::into_bytes),
        2 => prop::collection::vec(any::<u8>(), 0..60),
        1 => Just(vec![0; 40]),
        // A cut character.
        1 => Just(vec![0xF0, 0x9F]),
        1 => Just(vec![0x98, 0x80]),
    ]
}

fn case() -> impl Strategy<Value = Case> {
    (prop::collection::vec((any::<bool>(), data()), 0..40), 16_u64..200, any::<bool>(), 1_u32..6, any::<u64>())
        .prop_map(|(writes, chunk, msgpack, window, unruly)| Case { writes, chunk, msgpack, window, unruly })
}

/// Answers out of order, late, lost and twice, as `seed` says.
fn unruly(seed: u64) -> FakeSink {
    FakeSink::with(move |msg_id, nth| {
        let seq: u64 = msg_id.rsplit('.').next().and_then(|seq| seq.parse().ok()).expect("a number");
        match (seed >> (seq % 60)) & 7 {
            0 if nth < 2 => Answer::Retry,
            1 if nth < 1 => Answer::StoredUnheard,
            2 | 3 => Answer::Slow(Duration::from_millis(seq * 37 % 11)),
            _ => Answer::Stored,
        }
    })
}

fn run(case: Case) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("runtime");
    runtime.block_on(async {
        let encoding = if case.msgpack { Encoding::Msgpack } else { Encoding::Json };
        let mut attempt = Setup { encoding, chunk: case.chunk, window: case.window, ..Setup::default() }.start(unruly(case.unruly));
        let mut expected = [Vec::new(), Vec::new()];
        for (stderr, data) in case.writes {
            expected[usize::from(stderr)].extend_from_slice(&data);
            let pipe = if stderr { &mut attempt.stderr } else { &mut attempt.stdout };
            pipe.write_all(&data).expect("fits the pipe");
            tokio::task::yield_now().await;
        }
        let silent = expected.concat().is_empty();
        let window = case.window as usize;
        let sink = Arc::clone(&attempt.sink);
        let (_, output) = attempt.finish().await;
        assert_eq!((output.stdout(), output.stderr()), (&expected[0][..], &expected[1][..]));
        assert_eq!(output.chunks.is_empty(), silent);
        assert!(output.chunks.iter().all(|chunk| chunk.len <= case.chunk));
        assert!(sink.in_flight_peak.load(std::sync::atomic::Ordering::SeqCst) <= window);
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_come_back_whatever_the_sink_does(case in case()) {
        run(case);
    }
}

#[tokio::test(start_paused = true)]
async fn a_character_is_not_cut_between_chunks() {
    let attempt = Setup { chunk: 17, ..Setup::default() }.start(FakeSink::instant());
    let Attempt { stdout, .. } = attempt;
    let text = "a€😀é".repeat(40);
    let stdout = write(stdout, text.clone()).await;
    let (_, output) = Attempt { stdout, ..attempt }.finish().await;
    assert_eq!(output.stdout(), text.as_bytes());
    assert!(output.chunks.iter().all(|chunk| chunk.encoding == ChunkEncoding::Utf8));
}

#[tokio::test(start_paused = true)]
async fn half_a_character_is_held_back_for_the_other_half_but_not_for_ever() {
    let mut attempt = Setup::default().start(FakeSink::instant());
    attempt.stdout.write_all(b"a\xE2\x82").expect("write");
    attempt.sink.until(|stored| stored.len() == 1).await;
    attempt.stdout.write_all(b"\xACb\xE2").expect("write");
    // `b`, then the lone byte, which nothing completes.
    attempt.sink.until(|stored| stored.len() >= 3).await;
    let (_, output) = attempt.finish().await;
    assert_eq!(output.stdout(), b"a\xE2\x82\xACb\xE2");
    let encodings: Vec<_> = output.chunks.iter().map(|chunk| (chunk.len, chunk.encoding)).collect();
    use ChunkEncoding::{Base64, Utf8};
    assert_eq!(encodings, [(1, Utf8), (4, Utf8), (1, Base64), (0, Utf8)]);
}

#[tokio::test]
async fn nul_bytes_and_invalid_utf8_come_back() {
    for encoding in [Encoding::Json, Encoding::Msgpack] {
        let attempt = Setup { encoding, ..Setup::default() }.start(FakeSink::instant());
        let Attempt { stdout, stderr, .. } = attempt;
        let stdout = write(stdout, vec![0; 300_000]).await;
        let stderr = write(stderr, vec![0xFF; 300_000]).await;
        let (recorded, output) = Attempt { stdout, stderr, ..attempt }.finish().await;
        assert!(output.stdout() == vec![0; 300_000] && output.stderr() == vec![0xFF; 300_000]);
        assert!(recorded.stderr_tail.len() <= 4096);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_of_50_megabytes_has_no_newline_to_wait_for() {
    let attempt = Setup::default().start(FakeSink::instant());
    let Attempt { stdout, .. } = attempt;
    let stdout = write(stdout, vec![b'x'; 50 << 20]).await;
    let (_, output) = Attempt { stdout, ..attempt }.finish().await;
    assert_eq!(output.stdout().len(), 50 << 20);
    assert!(output.stdout().iter().all(|byte| *byte == b'x'));
}
