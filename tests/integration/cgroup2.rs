//! What only cgroup2 has: events that the kernel keeps, limits from above, the freezer, swap, I/O. Run by `make test-vm`.

use std::fs;
use std::os::linux::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use windlass::execute::native::{Program, Supervisor};
use windlass::supervisor::protocol::ExitStatus;
use windlass::task::limits::{IoLimits, Limits};

use crate::harness::PATIENCE;

use super::{PARENT, cgroups_named, eventually, first_line, limits, program, run, script, spawn, supervisor_at, unique};

/// True where cgroup2 is all there is. What is skipped elsewhere is run by `make test-vm`, where nothing may be.
pub(super) fn is_all_there_is() -> bool {
    let pure = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    if !pure {
        skip("this machine has cgroups of version 1, too");
    }
    pure
}

/// Says that a test is for the virtual machine.
pub(super) fn skip(why: &str) {
    assert!(std::env::var_os("WINDLASS_TEST_VM").is_none(), "the virtual machine must have it: {why}");
    println!("SKIPPED: {why}; `make test-vm` runs this");
}

/// A supervisor and the directory of its instance.
async fn instance(what: &str) -> Option<(Supervisor, PathBuf)> {
    if !is_all_there_is() {
        return None;
    }
    let name = unique(what);
    let supervisor = supervisor_at(PARENT, &name).await?;
    let directory = cgroups_named(PARENT, &name).pop().expect("the instance's directory");
    Some((supervisor, directory))
}

/// The number beside `key` in a file of keys and numbers.
fn counted(directory: &Path, file: &str, key: &str) -> u64 {
    let text = fs::read_to_string(directory.join(file)).expect("a cgroup file");
    let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' ')).unwrap_or_else(|| panic!("no {key} in {file}: {text}"));
    line.parse().expect("a number")
}

#[tokio::test]
async fn kills_for_memory_are_what_the_kernel_counted() {
    let Some((supervisor, directory)) = instance("events").await else { return };
    let small = Limits { memory_bytes: 32 << 20, ..limits() };
    // The child is the one that is too large; memory.oom.group takes its parent along.
    let (report, out) = run(&supervisor, Program { limits: small, ..script("eat_memory.sh", &["child", "0"]) }).await;
    assert_eq!((report.status, out.as_str()), (ExitStatus::Signal(9), ""));
    // The task's own directory is gone. What it counted was added to every directory above it.
    assert!(report.usage.oom_kills >= 2, "{report:?}");
    assert_eq!(report.usage.oom_kills, counted(&directory, "memory.events", "oom_kill"));
    // Since Linux 5.17.
    if fs::read_to_string(directory.join("memory.events")).expect("reads").contains("oom_group_kill") {
        assert_eq!(counted(&directory, "memory.events", "oom_group_kill"), 1);
    }
    let (report, _) = run(&supervisor, program(&["sh", "-c", "kill -9 $$"])).await;
    assert_eq!((report.status, report.usage.oom_kills), (ExitStatus::Signal(9), 0), "an earlier task's kills are not this one's");
    supervisor.shutdown().await;
}

#[tokio::test]
async fn a_limit_above_the_tasks_own_kills_and_is_told_as_one() {
    let Some((supervisor, directory)) = instance("above").await else { return };
    fs::write(directory.join("memory.max"), (24 << 20).to_string()).expect("a limit for the whole instance");
    let (report, _) = run(&supervisor, script("eat_memory.sh", &[])).await;
    assert_eq!(report.status, ExitStatus::Signal(9));
    assert!(report.usage.oom_kills >= 1 && report.usage.memory_peak_bytes < 32 << 20, "{report:?}");
    supervisor.shutdown().await;
}

#[tokio::test]
async fn swap_does_not_carry_a_task_over_its_limit() {
    let Some((supervisor, _)) = instance("swap").await else { return };
    let info = fs::read_to_string("/proc/meminfo").expect("meminfo");
    if info.lines().any(|l| l.split_whitespace().eq(["SwapTotal:", "0", "kB"])) {
        skip("no swap");
        return supervisor.shutdown().await;
    }
    // Twice the limit, and no more: with swap it would end well.
    let mut program = program(&["sh", "-c", "head -c 67108864 /dev/zero | tail -n 1 | wc -c"]);
    program.limits.memory_bytes = 32 << 20;
    let (report, out) = run(&supervisor, program).await;
    assert_eq!((report.status, out.as_str()), (ExitStatus::Signal(9), ""));
    assert!(report.usage.oom_kills >= 1, "{report:?}");
    supervisor.shutdown().await;
}

#[tokio::test]
async fn a_frozen_task_dies_all_the_same() {
    let Some((supervisor, directory)) = instance("frozen").await else { return };
    for grace in [Duration::ZERO, Duration::from_millis(200)] {
        // What a frozen process handles by itself waits; what ends it does not.
        let program = script("ignore_term.sh", &["300"]);
        let own = directory.join(&program.cgroup);
        let (mut process, out) = spawn(&supervisor, program).await;
        let (_, _out) = first_line(out).await;
        fs::write(own.join("cgroup.freeze"), "1").expect("freezes");
        eventually("it is frozen", || counted(&own, "cgroup.events", "frozen") == 1).await;
        process.stop(grace);
        let report = tokio::time::timeout(PATIENCE, process.wait()).await.expect("dies").expect("supervisor lives");
        assert_eq!(report.status, ExitStatus::Signal(9));
        assert!(report.kill_us > 0 && !own.exists(), "{report:?}");
    }
    supervisor.shutdown().await;
}

#[tokio::test]
async fn a_fork_too_many_is_counted_by_the_kernel() {
    let Some((supervisor, directory)) = instance("forks").await else { return };
    // bash tries a refused fork again for some seconds: time enough to look.
    let mut program = program(&["bash", "-c", "for i in {1..50}; do sleep 300 & done; wait"]);
    program.limits.pids = 10;
    let own = directory.join(&program.cgroup);
    let (mut process, _out) = spawn(&supervisor, program).await;
    eventually("a fork is refused", || counted(&own, "pids.events", "max") >= 1).await;
    assert_eq!(fs::read_to_string(own.join("pids.current")).expect("reads").trim(), "10");
    process.stop(Duration::ZERO);
    let report = process.wait().await.expect("supervisor lives");
    assert_eq!(report.status, ExitStatus::Signal(9));
    supervisor.shutdown().await;
}

#[tokio::test]
async fn a_share_of_a_cpu_below_the_kernels_shortest_quota_is_kept_by_a_longer_period() {
    let Some((supervisor, directory)) = instance("share").await else { return };
    for (cpus, expected) in [(0.005, "5000 1000000"), (0.25, "25000 100000"), (1.5, "150000 100000")] {
        let mut program = program(&["sh", "-c", "while :; do :; done"]);
        program.limits.cpus = cpus;
        let own = directory.join(&program.cgroup);
        let (mut process, _out) = spawn(&supervisor, program).await;
        assert_eq!(fs::read_to_string(own.join("cpu.max")).expect("reads").trim(), expected);
        assert_eq!(fs::read_to_string(own.join("memory.oom.group")).expect("reads").trim(), "1");
        if cpus < 1.0 {
            eventually("it has to wait", || counted(&own, "cpu.stat", "nr_throttled") >= 1).await;
        }
        process.stop(Duration::ZERO);
        let report = process.wait().await.expect("supervisor lives");
        assert_eq!(report.usage.throttled_us > 0, cpus < 1.0, "{report:?}");
    }
    supervisor.shutdown().await;
}

#[tokio::test]
async fn reading_and_writing_are_limited_on_the_disk_of_the_work_directory() {
    let Some((supervisor, _)) = instance("io").await else { return };
    let Some(disk) = std::env::var_os("WINDLASS_TEST_DISK").map(PathBuf::from) else {
        skip("WINDLASS_TEST_DISK names no directory on a disk");
        return supervisor.shutdown().await;
    };
    let file = disk.join(unique("io"));
    // The page cache would take the bytes at once and be written later: O_DIRECT is what the limit is about.
    let command = "own=/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup); cat \"$own/io.max\"; \
                   dd if=/dev/zero of=\"$0\" bs=256k count=32 oflag=direct 2>/dev/null; cat \"$own/io.stat\"";
    let io = IoLimits {
        read_bytes_per_s: Some(64 << 20),
        write_bytes_per_s: Some(4 << 20),
        read_ops_per_s: Some(1000),
        write_ops_per_s: Some(500),
    };
    let limited = Limits { io: Some(io), ..limits() };
    let program = Program {
        cwd: disk.to_str().expect("text").into(),
        limits: limited,
        ..program(&["sh", "-c", command, file.to_str().expect("text")])
    };
    let started = Instant::now();
    let (report, out) = run(&supervisor, program).await;
    let took = started.elapsed();
    assert_eq!(report.status, ExitStatus::Code(0), "{out}");
    let device = fs::metadata(&disk).expect("the disk").st_dev();
    let device = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    assert!(out.contains(&format!("{device} rbps=67108864 wbps=4194304 riops=1000 wiops=500\n")), "{out}");
    let written = out.lines().filter(|l| l.starts_with(&device)).find_map(|l| l.split(' ').find_map(|f| f.strip_prefix("wbytes=")));
    assert!(written.is_some_and(|n| n.parse::<u64>().is_ok_and(|n| n >= 8 << 20)), "{out}");
    // 8 MiB at 4 MiB per second; the first slice is free. Faster is impossible, slower is the machine's.
    assert!(took >= Duration::from_secs(1), "8 MiB in {took:?}");
    println!("8 MiB at 4 MiB/s: {took:?}");
    fs::remove_file(file).expect("was written");
    supervisor.shutdown().await;
}
