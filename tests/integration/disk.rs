//! Disks that are full, broken or read-only below a worker: whatever happens has a name, and passes.

use rustix::process::Signal;
use windlass::task::log_chunk::LogStream;
use windlass::task::{EventKind, Reason};

use crate::harness::disk::{Disk, Shape, Slow};
use crate::harness::job::Gate;
use crate::harness::server::{Options, Server};
use crate::harness::worker::windlass_under;
use crate::harness::{Fleet, Job, PATIENCE};

const ONE: &str = "/retry/max_attempts";

#[tokio::test]
async fn a_task_that_fills_its_work_directory_is_told_so_and_harms_only_itself() {
    let Some(disk) = Disk::make(Shape::default()) else { return };
    let Some(fleet) = Fleet::start(&[]).await else { return };
    fleet.worker_under("full", &disk.under(), &[]);
    let fill = "head -c 1G /dev/zero > big";
    let once = fleet.submit(&Job::bash(fill).set(ONE, 1)).await;
    let end = fleet.end(&once).await;
    assert_eq!((end.reason, end.exit_code), (Some(Reason::DiskFull), Some(1)), "{:?}", end.error);
    assert!(end.stderr_tail.unwrap().contains("No space left on device"));
    // A platform's fault: another attempt comes by itself, in an empty directory.
    let silent = fleet.submit(&Job::bash(format!("{fill} 2> /dev/null")).set(ONE, 1)).await;
    let error = fleet.end(&silent).await.error.unwrap();
    assert!(error.contains("exit status 1, and its work directory cannot be written: No space left"), "{error}");
    let again = fleet.submit(&Job::bash(format!("[ $WINDLASS_ATTEMPT -gt 1 ] || {fill}"))).await;
    let end = fleet.end(&again).await;
    assert_eq!((end.reason, end.task.attempt), (Some(Reason::Ok), 2), "{:?}", end.error);
    let result = fleet.submit(&Job::bash("head -c 1G /dev/zero > big; echo '{\"a\":1}' > $WINDLASS_RESULT; exit 0").set(ONE, 1)).await;
    let end = fleet.end(&result).await;
    assert!(matches!(end.reason, Some(Reason::DiskFull | Reason::Ok)), "{:?} {:?}", end.reason, end.error);
    assert_eq!(end.result, None, "half a result is none");
    let failed = fleet.submit(&Job::bash("exit 3")).await;
    assert_eq!(fleet.end(&failed).await.reason, Some(Reason::ExitNonzero), "with space again, failures are the task's own");
    fleet.finish().await;
}

#[tokio::test]
async fn a_flood_onto_a_full_spool_fails_by_name_and_keeps_what_was_written() {
    let Some(disk) = Disk::make(Shape::default()) else { return };
    let Some(fleet) = Fleet::start(&[]).await else { return };
    let worker = fleet.worker_under("full", &disk.under(), &[("CAPACITY__SLOTS", "2")]);
    let gate = Gate::new(&fleet.dir, "flood");
    let script = format!("echo before; {}; seq 1 10000000", gate.wait());
    let flood = fleet.submit(&Job::bash(script).set(ONE, 1).grace(1.0)).await;
    fleet.output_has(&flood, "before").await;
    disk.fill(512 << 10);
    gate.open();
    let end = fleet.end(&flood).await;
    assert_eq!(end.reason, Some(Reason::DiskFull), "{:?}", end.error);
    assert!(end.error.as_ref().unwrap().contains("no space left for the output spool"), "{:?}", end.error);
    let manifest = end.logs.clone().expect("what was written before is published and accounted for");
    assert!(manifest.stdout.bytes > 1000 && manifest.stdout.dropped_bytes > 0, "{manifest:?}");
    let text = fleet.output(&flood, &end, LogStream::Stdout).await;
    assert!(text.starts_with(b"before\n1\n2\n"));
    // With less than anything can be done with, the worker leaves the queue to others.
    disk.fill(0);
    worker.says(&["no new work until it can"]).await;
    let next = fleet.submit(&Job::bash("echo room again")).await;
    disk.free();
    let end = fleet.end(&next).await;
    assert_eq!((end.reason, end.task.attempt), (Some(Reason::Ok), 1), "waiting for space costs no attempt: {:?}", end.error);
    fleet.finish().await;
}

#[tokio::test]
async fn the_end_of_a_task_is_told_even_if_nothing_can_be_written() {
    let Some(disk) = Disk::make(Shape::default()) else { return };
    let Some(fleet) = Fleet::start(&[]).await else { return };
    let worker = fleet.worker_under("full", &disk.under(), &[]);
    let gate = Gate::new(&fleet.dir, "end");
    let task = fleet.submit(&Job::bash(gate.wait())).await;
    fleet.event(&task, EventKind::TaskStarted).await;
    fleet.running(&task).await;
    disk.fill(0);
    gate.open();
    let end = fleet.end(&task).await;
    assert_eq!((end.reason, end.task.attempt), (Some(Reason::Ok), 1), "{:?}", end.error);
    let gate = Gate::new(&fleet.dir, "again");
    disk.free();
    let task = fleet.submit(&Job::bash(gate.wait())).await;
    fleet.running(&task).await;
    disk.remount("abort");
    gate.open();
    let end = fleet.end(&task).await;
    assert_eq!((end.reason, end.task.attempt), (Some(Reason::Ok), 1), "{:?}", end.error);
    worker.says(&["a terminal event is not kept on disk"]).await;
    worker.signal(Signal::TERM);
    assert!(worker.exit(PATIENCE).await.success(), "{}", worker.log());
    fleet.finish().await;
}

#[tokio::test]
async fn without_inodes_nothing_starts_and_with_them_all_goes_on() {
    let Some(disk) = Disk::make(Shape { inodes: Some(128), ..Shape::default() }) else { return };
    let Some(fleet) = Fleet::start(&[]).await else { return };
    let worker = fleet.worker_under("full", &disk.under(), &[("CAPACITY__SLOTS", "2")]);
    let gate = Gate::new(&fleet.dir, "talk");
    let talker = fleet.submit(&Job::bash(format!("{}; seq 1 100000", gate.wait())).set(ONE, 1)).await;
    // Without a word: output that cannot be kept would stop it before its own end.
    let maker = fleet.submit(&Job::bash("exec 2> /dev/null; i=0; while echo x > f$((i++)); do :; done; exit 7").set(ONE, 1)).await;
    let end = fleet.end(&maker).await;
    assert_eq!((end.reason, end.exit_code), (Some(Reason::DiskFull), Some(7)), "{:?}", end.error);
    fleet.event(&talker, EventKind::TaskStarted).await;
    fleet.running(&talker).await;
    // What it made is removed while its end is told, and before its message goes.
    fleet.left_the_queue(&maker).await;
    disk.fill_inodes();
    gate.open();
    let end = fleet.end(&talker).await;
    assert_eq!(end.reason, Some(Reason::DiskFull), "no file for its output: {:?}", end.error);
    fleet.left_the_queue(&talker).await;
    disk.fill_inodes();
    // No directory can be made for it: it waits for its next attempt, here or elsewhere.
    let next = fleet.submit(&Job::bash("seq 1 1000")).await;
    worker.says(&["no new work until it can"]).await;
    disk.free();
    assert_eq!(fleet.end(&next).await.reason, Some(Reason::Ok));
    fleet.finish().await;
}

#[tokio::test]
async fn a_full_disk_below_the_local_copies_harms_nobody() {
    let Some(disk) = Disk::make(Shape::default()) else { return };
    let Some(fleet) = Fleet::start(&[]).await else { return };
    let mut under = disk.under();
    under.state = None;
    let copies = disk.path().join("logs");
    let worker = fleet.worker_under("copies", &under, &[("LOGS__DIR", copies.to_str().unwrap())]);
    disk.fill(64 << 10);
    let task = fleet.submit(&Job::bash("seq 1 200000")).await;
    let end = fleet.end(&task).await;
    let expected: Vec<u8> = (1..=200_000).flat_map(|n: u32| format!("{n}\n").into_bytes()).collect();
    assert_eq!(end.reason, Some(Reason::Ok), "{:?}", end.error);
    assert!(fleet.output(&task, &end, LogStream::Stdout).await == expected, "the published output is whole");
    worker.says(&["local copy of output ends here"]).await;
    disk.free();
    let next = fleet.submit(&Job::bash("echo copied again")).await;
    fleet.end(&next).await;
    let copy = disk.seen().join(format!("logs/acme/{}.1.log", next.id));
    assert_eq!(std::fs::read_to_string(copy).unwrap(), "copied again\n");
    fleet.finish().await;
}

/// Starts a worker that cannot come up; what it says.
async fn refused(disk: &Disk, dir: &str) -> String {
    let mut command = windlass_under(&disk.under());
    command.args(["worker", "--server", "nats://127.0.0.1:1"]).env("WINDLASS__WORKER__STATE_DIR", disk.path().join(dir));
    let ended = tokio::time::timeout(PATIENCE, command.output()).await.expect("it ends by itself").unwrap();
    assert!(!ended.status.success());
    String::from_utf8_lossy(&ended.stderr).into_owned()
}

#[tokio::test]
async fn a_worker_without_a_usable_state_directory_says_which_and_why() {
    let Some(disk) = Disk::make(Shape { inodes: Some(64), ..Shape::default() }) else { return };
    std::fs::create_dir(disk.seen().join("there")).unwrap();
    disk.fill_inodes();
    let said = refused(&disk, "there").await;
    assert!(said.contains("worker.state_dir: cannot use") && said.contains("No space left on device"), "{said}");
    assert!(said.contains("free space or files there"), "{said}");
    // Room for the directory, but not for all that belongs into it: no beginning is left.
    for name in ["0", "1"] {
        std::fs::remove_file(disk.seen().join("fillers").join(name)).unwrap();
    }
    assert!(refused(&disk, "there").await.contains("No space left on device"));
    assert_eq!(std::fs::read_dir(disk.seen().join("there")).unwrap().count(), 0);
    disk.free();
    disk.remount("ro");
    let said = refused(&disk, "there").await;
    assert!(said.contains("worker.state_dir: cannot use") && said.contains("Read-only file system"), "{said}");
    assert!(said.contains("it is mounted read-only"), "{said}");
    disk.remount("rw");
    disk.cut_power();
    let said = refused(&disk, "there").await;
    assert!(said.contains("worker.state_dir: cannot use") && said.contains("Input/output error"), "{said}");
}

#[tokio::test]
async fn a_disk_that_becomes_read_only_costs_its_tasks_and_no_others() {
    let Some(disk) = Disk::make(Shape::default()) else { return };
    let Some(fleet) = Fleet::start(&[]).await else { return };
    let worker = fleet.worker_under("sick", &disk.under(), &[]);
    let gate = Gate::new(&fleet.dir, "ro");
    let task = fleet.submit(&Job::bash(format!("echo up; {}; {{ echo x > file; }} 2> /dev/null", gate.wait())).set(ONE, 1)).await;
    fleet.output_has(&task, "up").await;
    // As the kernel does on an error: an orderly remount would wait for those who write.
    disk.remount("abort");
    worker.says(&["no new work until it can"]).await;
    gate.open();
    let end = fleet.end(&task).await;
    assert_eq!((end.reason, end.exit_code), (Some(Reason::WorkspaceFailed), Some(1)), "{:?}", end.error);
    assert!(end.error.as_ref().unwrap().ends_with("cannot be written: Read-only file system (os error 30)"), "{:?}", end.error);
    let next = fleet.submit(&Job::bash("echo elsewhere")).await;
    let healthy = fleet.worker_named("healthy", &[]);
    let end = fleet.end(&next).await;
    assert_eq!((end.reason, end.task.attempt, end.worker.worker_id.as_str()), (Some(Reason::Ok), 1, "healthy"), "{:?}", end.error);
    worker.signal(Signal::TERM);
    assert!(worker.exit(PATIENCE).await.success(), "it can still leave: {}", worker.log());
    drop(healthy);
    fleet.finish().await;
}

#[tokio::test]
async fn a_disk_that_fails_under_way_ends_by_name_and_other_workers_go_on() {
    let Some(disk) = Disk::make(Shape::default()) else { return };
    let Some(fleet) = Fleet::start(&[]).await else { return };
    let sick = fleet.worker_under("sick", &disk.under(), &[("CAPACITY__SLOTS", "2")]);
    let gate = Gate::new(&fleet.dir, "eio");
    let talker = fleet.submit(&Job::bash(format!("echo up; {}; seq 1 1000000", gate.wait())).set(ONE, 1).grace(1.0)).await;
    let again = fleet.submit(&Job::bash(format!("echo up; {}; seq 1 1000", gate.wait())).grace(1.0)).await;
    fleet.output_has(&talker, "up").await;
    fleet.output_has(&again, "up").await;
    disk.cut_power();
    sick.says(&["no new work until it can"]).await;
    gate.open();
    let end = fleet.end(&talker).await;
    assert_eq!(end.reason, Some(Reason::WorkspaceFailed), "{:?}", end.error);
    assert!(end.error.as_ref().unwrap().contains("output spool"), "{:?}", end.error);
    fleet.event(&again, EventKind::TaskRetrying).await;
    fleet.worker_named("healthy", &[]);
    let end = fleet.end(&again).await;
    assert_eq!((end.reason, end.task.attempt, end.worker.worker_id.as_str()), (Some(Reason::Ok), 2, "healthy"), "{:?}", end.error);
    sick.signal(Signal::TERM);
    assert!(sick.exit(PATIENCE).await.success(), "it can still leave: {}", sick.log());
    fleet.finish().await;
}

#[tokio::test]
async fn a_slow_disk_below_the_spool_slows_its_task_down_and_loses_nothing() {
    // Each write waits for the disk: else the kernel's cache would hide how slow it is.
    let Some(disk) = Disk::make(Shape { mebibytes: 96, options: "loop,nosuid,nodev,sync", ..Shape::default() }) else { return };
    let Some(fleet) = Fleet::start(&[("LEASE__ACK_WAIT_S", "2")]).await else { return };
    let Some(slow) = Slow::new(&disk, 40) else { return };
    let worker = fleet.worker_under("slow", &disk.under(), &[("CAPACITY__SLOTS", "4")]);
    let warm = fleet.submit(&Job::bash("echo up")).await;
    fleet.end(&warm).await;
    slow.hold(worker.pid);
    let flood = fleet.submit(&Job::bash("yes 0123456789abcdef | head -c 4000000")).await;
    // Removing many files takes far longer than a lease on this disk.
    let files = fleet.submit(&Job::bash("mkdir d; for i in $(seq 200); do echo > d/$i; done; echo made")).await;
    let short = fleet.submit(&Job::bash("echo short")).await;
    for task in [&flood, &files, &short] {
        let end = fleet.end(task).await;
        assert_eq!((end.reason, end.task.attempt), (Some(Reason::Ok), 1), "slow, not lost: {:?}", end.error);
    }
    let end = fleet.end(&flood).await;
    let expected: Vec<u8> = b"0123456789abcdef\n".iter().copied().cycle().take(4_000_000).collect();
    assert!(fleet.output(&flood, &end, LogStream::Stdout).await == expected, "output is whole");
    let peak = worker.peak_memory();
    assert!(peak < 200 << 20, "the worker grew to {peak} bytes");
    println!("slow spool: 40 writes/s; flood of 4 MB took {} ms", end.run.unwrap().duration_ms.unwrap());
    drop(slow);
    fleet.finish().await;
}

#[tokio::test]
async fn a_slow_store_of_the_server_delays_output_and_costs_no_lease() {
    let Some(disk) = Disk::make(Shape { mebibytes: 192, ..Shape::default() }) else { return };
    let Some(server) = Server::on_disk(Options { sync_always: true, ..Options::default() }, &disk) else { return };
    let fleet = Fleet::on(server, &[("LEASE__ACK_WAIT_S", "4")]).await;
    let Some(slow) = Slow::new(&disk, 60) else { return };
    let worker = fleet.worker(&[("CAPACITY__SLOTS", "4")]);
    let warm = fleet.submit(&Job::bash("echo up")).await;
    fleet.end(&warm).await;
    slow.hold(fleet.server.pid());
    let gate = Gate::new(&fleet.dir, "slow");
    let count = fleet.dir.join("count");
    let script =
        format!("i=0; until [ -e '{}' ]; do echo line $((++i)); echo $i > '{}'; sleep 0.005; done", gate.path().display(), count.display());
    let talker = fleet.submit(&Job::bash(script)).await;
    let flood = fleet.submit(&Job::bash("yes 0123456789abcdef | head -c 2000000")).await;
    let short = fleet.submit(&Job::bash("sleep 5; echo short")).await;
    for task in [&flood, &short] {
        let end = fleet.end(task).await;
        assert_eq!((end.reason, end.task.attempt), (Some(Reason::Ok), 1), "slow, not lost: {:?}", end.error);
    }
    // Nobody waits for the store: the task talked on meanwhile.
    let lines = std::fs::read_to_string(&count).unwrap_or_default().trim().parse::<u32>().unwrap_or(200);
    assert!(lines > 100, "{lines} lines in more than five seconds");
    gate.open();
    let end = fleet.end(&talker).await;
    assert_eq!((end.reason, end.task.attempt), (Some(Reason::Ok), 1), "{:?}", end.error);
    let text = String::from_utf8(fleet.output(&talker, &end, LogStream::Stdout).await).unwrap();
    assert!(text.lines().enumerate().all(|(i, line)| line == format!("line {}", i + 1)), "a line is missing or twice");
    let peak = worker.peak_memory();
    assert!(peak < 200 << 20, "the worker grew to {peak} bytes");
    drop(slow);
    fleet.finish().await;
}
