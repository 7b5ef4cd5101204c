//! Output: byte-exact, live, kept, bounded.

use windlass::task::log_chunk::LogStream;
use windlass::task::{EventKind, Reason};
use windlass::wire::sha256_hex;

use crate::harness::checker::check_manifest;
use crate::harness::feed::read_all;
use crate::harness::job::Gate;
use crate::harness::orchestrator::chunk_of;
use crate::harness::server::{Options, Server};
use crate::harness::{Fleet, Job, PATIENCE};

#[tokio::test]
async fn every_byte_arrives_as_it_was_written() {
    let Some(fleet) = Fleet::with_worker(2, &[]).await else { return };
    let all: Vec<u8> = (0..=255).collect();
    for (script, expected) in [
        ("printf 'no newline'", b"no newline".to_vec()),
        ("printf 'a\\0b\\0\\0'", b"a\0b\0\0".to_vec()),
        ("printf '\\377\\376\\200 invalid'", b"\xff\xfe\x80 invalid".to_vec()),
        ("printf '\\303'", b"\xc3".to_vec()),
        ("printf 'half \\303'; sleep 0.4; printf '\\274 whole'", "half ü whole".as_bytes().to_vec()),
        ("printf '\\n\\r\\n\\033[31m'", b"\n\r\n\x1b[31m".to_vec()),
        ("for i in $(seq 0 255); do printf \"\\\\$(printf %03o $i)\"; done", all),
        ("printf '\\\\u0000 \"quoted\" </script>'", b"\\u0000 \"quoted\" </script>".to_vec()),
    ] {
        let task = fleet.submit(&Job::bash(script)).await;
        let end = fleet.end(&task).await;
        assert_eq!(end.reason, Some(Reason::Ok), "{script}: {:?}", end.error);
        assert_eq!(fleet.output(&task, &end, LogStream::Stdout).await, expected, "{script}");
        assert_eq!(end.logs.unwrap().stdout.sha256, sha256_hex(&expected), "{script}");
    }
    fleet.finish().await;
}

#[tokio::test]
async fn a_flood_arrives_whole_and_in_order() {
    let Some(fleet) = Fleet::with_worker(1, &[]).await else { return };
    let task = fleet.submit(&Job::bash("yes 0123456789abcdef | head -c 100000000")).await;
    let end = fleet.end(&task).await;
    let manifest = end.logs.clone().unwrap();
    assert_eq!((end.reason, manifest.stdout.bytes, manifest.stdout.dropped_bytes), (Some(Reason::Ok), 100_000_000, 0));
    let line = b"0123456789abcdef\n";
    let expected: Vec<u8> = line.iter().copied().cycle().take(100_000_000).collect();
    assert_eq!(manifest.stdout.sha256, sha256_hex(&expected));
    fleet.finish().await;
}

#[tokio::test]
async fn one_line_of_fifty_megabytes_is_just_bytes() {
    let Some(fleet) = Fleet::with_worker(1, &[]).await else { return };
    let task = fleet.submit(&Job::bash("head -c 50000000 /dev/zero | tr '\\0' x")).await;
    let end = fleet.end(&task).await;
    assert_eq!((end.reason, end.logs.clone().unwrap().stdout.bytes), (Some(Reason::Ok), 50_000_000));
    assert_eq!(end.logs.unwrap().stdout.sha256, sha256_hex(&vec![b'x'; 50_000_000]));
    fleet.finish().await;
}

#[tokio::test]
async fn output_is_seen_while_the_task_still_runs() {
    let Some(fleet) = Fleet::with_worker(1, &[]).await else { return };
    let gate = Gate::new(&fleet.dir, "live");
    let task = fleet.submit(&Job::bash(format!("echo first; printf prompt >&2; {}; echo last", gate.wait()))).await;
    fleet.output_has(&task, "first").await;
    fleet.output_has(&task, "prompt").await;
    assert!(fleet.chain(&task).iter().all(|l| !l.event.event.is_terminal()), "it still runs");
    gate.open();
    let end = fleet.end(&task).await;
    assert_eq!(fleet.output(&task, &end, LogStream::Stdout).await, b"first\nlast\n");
    fleet.finish().await;
}

#[tokio::test]
async fn output_of_a_task_that_ended_before_it_was_read_is_kept() {
    let Some(fleet) = Fleet::with_worker(2, &[]).await else { return };
    let unread = fleet.submit(&Job::bash("head -c 3000000 /dev/zero | tr '\\0' y; exit 0")).await;
    let stdin = fleet.submit(&Job::program("exit_unread.sh", ["0"]).set("/execution/stdin", "z".repeat(500_000))).await;
    let closed = fleet.submit(&Job::bash("echo to stdout; exec 1>&-; echo to stderr >&2; sleep 0.2; echo late >&2")).await;
    let end = fleet.end(&unread).await;
    assert_eq!(end.reason, Some(Reason::Ok), "{:?}", end.error);
    assert_eq!(end.logs.unwrap().stdout.bytes, 3_000_000);
    assert_eq!(fleet.end(&stdin).await.reason, Some(Reason::Ok), "standard input that nobody reads harms nobody");
    let end = fleet.end(&closed).await;
    assert_eq!(fleet.output(&closed, &end, LogStream::Stdout).await, b"to stdout\n");
    assert_eq!(fleet.output(&closed, &end, LogStream::Stderr).await, b"to stderr\nlate\n");
    fleet.finish().await;
}

#[tokio::test]
async fn a_leaked_grandchild_that_holds_the_pipe_does_not_hold_the_end() {
    let Some(fleet) = Fleet::with_worker(1, &[]).await else { return };
    let task = fleet.submit(&Job::bash("echo mine; (sleep 1000; echo never) & exit 0")).await;
    let end = fleet.end(&task).await;
    assert_eq!((end.reason, end.usage.unwrap().leaked_processes > 0), (Some(Reason::Ok), true));
    assert_eq!(fleet.output(&task, &end, LogStream::Stdout).await, b"mine\n");
    assert!(end.run.unwrap().duration_ms.unwrap() < 30_000);
    fleet.finish().await;
}

#[tokio::test]
async fn a_misbehaving_program_loses_no_output() {
    let Some(fleet) = Fleet::with_worker(2, &[]).await else { return };
    let line = format!("{:063}\n", 0).into_bytes();
    for (program, args, expected) in [
        ("flood.sh", vec!["5000000"], line.iter().copied().cycle().take(5_000_000).collect()),
        ("close_stdout.sh", vec!["0.3"], b"before\n".to_vec()),
        ("half_utf8.sh", vec!["0.4"], b"\xe2\x82\xac ok \xe2\x82".to_vec()),
        ("leak_pipe.sh", vec![], b"done\n".to_vec()),
        ("no_shebang", vec![], Vec::new()),
    ] {
        let task = fleet.submit(&Job::program(program, args)).await;
        let end = fleet.end(&task).await;
        if program == "no_shebang" {
            assert_eq!(end.reason, Some(Reason::SpawnFailed), "{program}: {:?}", end.error);
            continue;
        }
        assert_eq!(end.reason, Some(Reason::Ok), "{program}: {:?} {:?}", end.error, end.stderr_tail);
        assert!(fleet.output(&task, &end, LogStream::Stdout).await == expected, "{program}: {:?}", end.logs);
        assert_eq!(fleet.processes_of(&task.id), [], "{program}");
    }
    fleet.finish().await;
}

#[tokio::test]
async fn chunks_are_numbered_over_both_streams_and_no_larger_than_configured() {
    let Some(fleet) = Fleet::with_worker(1, &[("LOGS__CHUNK", "4KiB")]).await else { return };
    let script = "for i in $(seq 300); do echo \"out ü $i xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\"; echo err $i >&2; done";
    let task = fleet.submit(&Job::bash(script)).await;
    let end = fleet.end(&task).await;
    let manifest = end.logs.unwrap();
    let chunks: Vec<_> = read_all(&fleet.js, &fleet.stream("LOGS"), &manifest.subject).await.iter().map(chunk_of).collect();
    check_manifest(&manifest, &chunks).unwrap();
    assert!(chunks.len() > 4 && chunks.iter().all(|(c, _)| c.len <= 4096), "{} chunks", chunks.len());
    assert!(chunks.iter().all(|(_, bytes)| std::str::from_utf8(bytes).is_ok()), "a character was cut");
    fleet.finish().await;
}

#[tokio::test]
async fn above_the_cap_head_and_newest_tail_are_kept_and_the_rest_is_counted() {
    let Some(fleet) = Fleet::with_worker(1, &[("LOGS__CAP", "256KiB")]).await else { return };
    let script = "seq 1 400000; echo the very end";
    let task = fleet.submit(&Job::bash(script)).await;
    let end = fleet.end(&task).await;
    let mut full: Vec<u8> = (1..=400_000).flat_map(|n: u32| format!("{n}\n").into_bytes()).collect();
    full.extend(b"the very end\n");
    let promised = end.logs.clone().unwrap().stdout;
    assert_eq!(promised.bytes + promised.dropped_bytes, full.len() as u64, "every byte is either published or counted");
    assert!(promised.bytes <= 256 << 10 && promised.bytes > 128 << 10, "{promised:?}");
    let kept = fleet.output(&task, &end, LogStream::Stdout).await;
    let head = kept.iter().zip(&full).take_while(|(a, b)| a == b).count();
    let tail = kept.iter().rev().zip(full.iter().rev()).take_while(|(a, b)| a == b).count();
    assert!(head + tail >= kept.len(), "{head} of the head and {tail} of the tail are not the {} kept", kept.len());
    assert!(head >= 64 << 10 && tail >= 64 << 10, "head {head}, tail {tail}");
    fleet.finish().await;
}

#[tokio::test]
async fn the_broker_may_be_away_while_a_task_talks() {
    let Some(server) = Server::private(Options::default()) else { return };
    let fleet = Fleet::on(server, &[("LEASE__ACK_WAIT_S", "60")]).await;
    fleet.worker(&[]);
    let count = fleet.dir.join("count");
    let gate = Gate::new(&fleet.dir, "talk");
    let script = format!(
        "i=0; until [ -e '{0}' ]; do i=$((i+1)); echo line $i; echo $i > '{1}'; sleep 0.002; done",
        gate_path(&gate),
        count.display()
    );
    let task = fleet.submit(&Job::bash(script)).await;
    fleet.output_has(&task, "line 1\n").await;
    // It is written anew again and again: what is read in between may be nothing.
    let mut newest = 0;
    let mut written = || {
        newest = newest.max(std::fs::read_to_string(&count).ok().and_then(|n| n.trim().parse::<u64>().ok()).unwrap_or(0));
        newest
    };
    for kill in [false, true] {
        if kill {
            fleet.server.kill9()
        } else {
            fleet.server.freeze()
        }
        let before = written();
        // The task must go on by itself: nothing else makes the number grow.
        let deadline = std::time::Instant::now() + PATIENCE;
        while written() < before + 800 {
            assert!(std::time::Instant::now() < deadline, "the task stands still while the broker is away");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        if kill { fleet.server.restart() } else { fleet.server.thaw() }
    }
    gate.open();
    let end = fleet.end(&task).await;
    assert_eq!((end.reason, end.task.attempt), (Some(Reason::Ok), 1), "the absence cost an attempt");
    let text = String::from_utf8(fleet.output(&task, &end, LogStream::Stdout).await).unwrap();
    let lines = text.lines().count();
    assert!(lines as u64 >= 1600);
    assert!(text.lines().enumerate().all(|(i, line)| line == format!("line {}", i + 1)), "a line is missing or twice");
    fleet.finish().await;
}

fn gate_path(gate: &Gate) -> String {
    gate.wait().split('\'').nth(1).unwrap().to_owned()
}

#[tokio::test]
async fn the_local_log_file_has_what_the_task_wrote() {
    let Some(fleet) = Fleet::start(&[]).await else { return };
    let dir = fleet.dir.join("local");
    fleet.worker(&[("LOGS__DIR", dir.to_str().unwrap()), ("LOGS__FILE_MAX", "64KiB"), ("LOGS__FILE_KEEP", "1")]);
    let task = fleet.submit(&Job::bash("echo out; echo err >&2")).await;
    fleet.end(&task).await;
    let file = dir.join("acme").join(format!("{}.1.log", task.id));
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains("out") && text.contains("err"), "{text}");
    let long = fleet.submit(&Job::bash("seq 1 50000")).await;
    fleet.end(&long).await;
    let own = |e: &std::fs::DirEntry| e.file_name().to_string_lossy().starts_with(&format!("{}.", long.id));
    let files: Vec<_> = std::fs::read_dir(dir.join("acme")).unwrap().flatten().filter(own).collect();
    let sizes: Vec<_> = files.iter().map(|f| f.metadata().unwrap().len()).collect();
    assert!(files.len() == 2 && sizes.iter().all(|n| *n <= 80 << 10), "{sizes:?}: one file and one rotated one");
    fleet.finish().await;
}

#[tokio::test]
async fn the_spool_of_an_ended_task_is_gone() {
    let Some(fleet) = Fleet::start(&[]).await else { return };
    let worker = fleet.worker(&[]);
    let gate = Gate::new(&fleet.dir, "spool");
    let task = fleet.submit(&Job::bash(format!("seq 1 10000; {}", gate.wait()))).await;
    fleet.event(&task, EventKind::TaskStarted).await;
    gate.open();
    fleet.end(&task).await;
    let files = || {
        let mut files = Vec::new();
        let mut todo = vec![worker.state_dir().to_owned()];
        while let Some(dir) = todo.pop() {
            for path in std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()) {
                if path.is_dir() { todo.push(path) } else { files.push(path) }
            }
        }
        files
    };
    let left = crate::harness::leftovers::gone(PATIENCE, files).await;
    assert!(left.is_empty(), "{left:?}");
    fleet.finish().await;
}
