//! What cannot be recorded has a name and never blocks the task.

use std::fs::File;

use super::*;

/// The second segment lies on a device that is always full.
fn second_segment_is_full(path: &Path) -> std::io::Result<File> {
    if path.ends_with("000001.segment") { File::options().write(true).open("/dev/full") } else { spool::create(path) }
}

#[tokio::test]
async fn a_full_disk_is_reported_and_what_was_written_before_is_published() {
    let attempt = Setup { create: second_segment_is_full, ..Setup::default() }.start(FakeSink::instant());
    let Attempt { stdout, .. } = attempt;
    // All of it is read although none of the last 8 MiB can be kept.
    let data = numbers(12 << 20);
    let stdout = write(stdout, data.clone()).await;
    assert!(matches!(attempt.recorder.failed().await, Fault::DiskFull { .. }));
    let (error, sink) = Attempt { stdout, ..attempt }.fail().await;
    assert!(matches!(error.fault, Fault::DiskFull { .. }));
    let (manifest, _proof) = *error.published.expect("an end was reached");
    let output = Output::of(&sink, Encoding::Json, &manifest);
    let kept = output.stdout().len();
    assert!(kept >= 4 << 20 && output.stdout() == &data[..kept]);
    assert_eq!(manifest.stdout.dropped_bytes, (data.len() - kept) as u64);
    assert_eq!(output.system(), "output from here on is missing: the worker could not write it to its disk");
}

#[tokio::test]
async fn a_disk_that_is_full_from_the_start_still_gives_the_end_of_stderr() {
    let mut attempt = Setup { create: |_| File::options().write(true).open("/dev/full"), ..Setup::default() }.start(FakeSink::instant());
    attempt.stderr.write_all(b"the reason").expect("write");
    let (error, _) = attempt.fail().await;
    assert!(matches!(error.fault, Fault::DiskFull { .. }));
    assert_eq!(error.stderr_tail, "the reason");
    let (manifest, _proof) = *error.published.expect("an end was reached");
    assert_eq!((manifest.stderr.bytes, manifest.stderr.dropped_bytes), (0, 10));
}

#[tokio::test]
async fn a_directory_that_cannot_be_made_is_a_typed_error() {
    let denied: spool::Create = |_| Err(std::io::ErrorKind::PermissionDenied.into());
    let mut attempt = Setup { create: denied, ..Setup::default() }.start(FakeSink::instant());
    attempt.stdout.write_all(b"x").expect("write");
    let (error, _) = attempt.fail().await;
    assert!(matches!(error.fault, Fault::Spool { .. }), "{:?}", error.fault);
}

#[tokio::test]
async fn a_refused_chunk_fails_the_recording_but_the_task_writes_on() {
    let attempt = Setup::default().start(FakeSink::with(|_, _| Answer::Refused));
    let Attempt { stdout, .. } = attempt;
    let stdout = write(stdout, numbers(100)).await;
    assert!(matches!(attempt.recorder.failed().await, Fault::Refused { .. }));
    let stdout = write(stdout, numbers(8 << 20)).await;
    assert_eq!(files(&attempt.spool).iter().map(std::fs::Metadata::len).max(), Some(116), "nothing more goes to the disk");
    let (error, sink) = Attempt { stdout, ..attempt }.fail().await;
    assert!(matches!(error.fault, Fault::Refused { .. }) && error.published.is_none());
    assert!(sink.stored().is_empty());
}
