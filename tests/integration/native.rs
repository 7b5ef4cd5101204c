//! Native tasks with the real kernel, the real supervisor and programs that misbehave.

use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use windlass::config;
use windlass::execute::native::sandbox::Confinement;
use windlass::execute::native::{Process, Program, SpawnFailure, StartError, Supervisor};
use windlass::supervisor::protocol::{ExitReport, ExitStatus, SpawnError};
use windlass::task::limits::Limits;

use crate::harness::{PATIENCE, leftovers, slowness};

mod cgroup2;
mod delegation;

const EXE: &str = env!("CARGO_BIN_EXE_windlass");
const PARENT: &str = "windlass-test";
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// A name that no other test and no other run has.
fn unique(what: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{what}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

fn cgroup_config(parent: &str) -> config::Cgroup {
    config::Cgroup { mount: "/sys/fs/cgroup".into(), parent: leftovers::cgroup_place(parent), allow_unlimited: false }
}

/// A supervisor, or `None` where this machine has no cgroups to give. In CI that is a failure.
async fn supervisor_at(parent: &str, instance: &str) -> Option<Supervisor> {
    match Supervisor::start(Path::new(EXE), &cgroup_config(parent), instance).await {
        Ok(supervisor) => Some(supervisor),
        Err(StartError::Unfit(why)) => {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must be able to limit: {why}");
            println!("SKIPPED: {why}");
            None
        }
        Err(error) => panic!("{error}: {:?}", std::error::Error::source(&error).map(ToString::to_string)),
    }
}

macro_rules! supervisor {
    ($name:literal) => {
        match supervisor_at(PARENT, &unique($name)).await {
            Some(supervisor) => supervisor,
            None => return,
        }
    };
}

// Below the macro, which it uses.
#[path = "native/foreign.rs"]
mod foreign;
#[path = "native/held.rs"]
mod held;

fn limits() -> Limits {
    Limits { cpus: 1.0, memory_bytes: 256 << 20, pids: 512, timeout_ms: 60_000, io: None, enforced: true }
}

fn program(argv: &[&str]) -> Program {
    Program {
        cgroup: unique("t"),
        limits: limits(),
        argv: argv.iter().map(ToString::to_string).collect(),
        env: vec![("PATH".into(), PATH.into())],
        cwd: "/".into(),
        sandbox: Confinement::none(),
        lease: None,
    }
}

fn script(name: &str, args: &[&str]) -> Program {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(name);
    let path = path.to_str().expect("path is text").to_owned();
    program(&[&[path.as_str()], args].concat())
}

fn null() -> OwnedFd {
    fs::OpenOptions::new().read(true).write(true).open("/dev/null").expect("/dev/null").into()
}

fn pipe() -> (fs::File, OwnedFd) {
    let (read, write) = std::io::pipe().expect("pipe");
    (fs::File::from(OwnedFd::from(read)), write.into())
}

async fn spawn(supervisor: &Supervisor, program: Program) -> (Process, fs::File) {
    let (read, write) = pipe();
    let process = supervisor.spawn(program, null(), write, null()).await.expect("spawns");
    (process, read)
}

/// Runs to the end; what it wrote to standard output comes with the report.
async fn run(supervisor: &Supervisor, program: Program) -> (ExitReport, String) {
    let (mut process, mut out) = spawn(supervisor, program).await;
    let text = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        out.read_to_string(&mut text).expect("text");
        text
    });
    let report =
        tokio::time::timeout(Duration::from_secs(30) * slowness(), process.wait()).await.expect("ends in time").expect("supervisor lives");
    (report, text.await.expect("reader"))
}

async fn first_line(mut out: fs::File) -> (String, fs::File) {
    let read = tokio::task::spawn_blocking(move || {
        let (mut line, mut byte) = (String::new(), [0u8]);
        while out.read(&mut byte).expect("reads") == 1 && byte[0] != b'\n' {
            line.push(char::from(byte[0]));
        }
        (line, out)
    });
    tokio::time::timeout(PATIENCE * slowness(), read).await.expect("a line in time").expect("reader")
}

/// Waits, level-triggered and bounded, until `true`.
async fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10) * slowness();
    while !check() {
        assert!(Instant::now() < end, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Directories of this name under any hierarchy.
fn cgroups_named(parent: &str, name: &str) -> Vec<PathBuf> {
    let parent = leftovers::cgroup_place(parent);
    let mut roots = vec![PathBuf::from("/sys/fs/cgroup")];
    roots.extend(fs::read_dir("/sys/fs/cgroup").expect("cgroup mount").flatten().map(|e| e.path()));
    let mut found = Vec::new();
    for root in roots {
        let instances = fs::read_dir(root.join(&parent)).into_iter().flatten().flatten().map(|e| e.path());
        for instance in instances {
            if instance.ends_with(name) {
                found.push(instance.clone());
            }
            found.extend(Some(instance.join(name)).filter(|p| p.exists()));
        }
    }
    found
}

#[tokio::test]
async fn limits_are_in_force_before_the_first_instruction() {
    let supervisor = supervisor!("limits");
    let mut program = program(&[
        "sh",
        "-c",
        "cat /proc/self/cgroup; while IFS=: read -r _ c p; do \
           for f in memory.limit_in_bytes memory.memsw.limit_in_bytes memory.max memory.swap.max pids.max cpu.cfs_quota_us cpu.max; do \
             for d in \"/sys/fs/cgroup/$c$p\" \"/sys/fs/cgroup$p\" \"/sys/fs/cgroup/unified$p\"; do \
               [ -f \"$d/$f\" ] && [ \"$p\" != / ] && echo \"$f=$(cat \"$d/$f\")\"; done; done; done </proc/self/cgroup; true",
    ]);
    program.limits = Limits { cpus: 0.5, memory_bytes: (64 << 20) + 100, pids: 33, ..limits() };
    let name = program.cgroup.clone();
    let (report, out) = run(&supervisor, program).await;
    assert_eq!(report.status, ExitStatus::Code(0), "{out}");
    let v2 = supervisor.capabilities().description.starts_with("cgroup2 ");
    let expected: &[&str] = if v2 {
        &["memory.max=67108864", "memory.swap.max=0", "pids.max=33", "cpu.max=50000 100000"]
    } else {
        &["memory.limit_in_bytes=67108864", "memory.memsw.limit_in_bytes=67108864", "pids.max=33", "cpu.cfs_quota_us=50000"]
    };
    for line in expected {
        assert!(out.lines().any(|l| l == *line), "no {line} in\n{out}");
    }
    assert!(out.contains(&name));
    assert_eq!(cgroups_named(PARENT, &name), Vec::<PathBuf>::new(), "the cgroup is removed when the end is reported");
    assert!(report.usage.memory_peak_bytes > 0 && report.usage.cpu_user_us + report.usage.cpu_system_us > 0, "{report:?}");
    assert_eq!((report.usage.leaked_processes, report.kill_us, report.lease_expired), (0, 0, false));
    supervisor.shutdown().await;
}

#[tokio::test]
async fn a_limit_that_cannot_be_set_is_a_refusal_and_leaves_nothing() {
    let supervisor = supervisor!("badlimit");
    for (change, limit) in [
        (Limits { pids: u64::MAX, ..limits() }, "pids.max"),
        (Limits { memory_bytes: 100, ..limits() }, "memory"),
        (Limits { cpus: f64::NAN, ..limits() }, "cpu"),
        (Limits { io: Some(windlass::task::limits::IoLimits { read_bytes_per_s: Some(1 << 20), ..Default::default() }), ..limits() }, "io"),
    ] {
        let mut program = program(&["true"]);
        // /proc is on no block device.
        program.cwd = "/proc".into();
        program.limits = change;
        let name = program.cgroup.clone();
        match supervisor.spawn(program, null(), null(), null()).await {
            Err(SpawnFailure::Refused(SpawnError::Limit { limit: named, .. })) => assert!(named.contains(limit), "{named} for {limit}"),
            other => panic!("{limit}: {other:?}"),
        }
        assert_eq!(cgroups_named(PARENT, &name), Vec::<PathBuf>::new(), "{limit}");
    }
    supervisor.shutdown().await;
}

#[tokio::test]
async fn memory_kills_are_counted_whoever_dies() {
    let supervisor = supervisor!("oom");
    let small = Limits { memory_bytes: 32 << 20, ..limits() };
    let (report, _) = run(&supervisor, Program { limits: small.clone(), ..script("eat_memory.sh", &[]) }).await;
    assert_eq!(report.status, ExitStatus::Signal(9));
    assert!(report.usage.oom_kills >= 1 && report.usage.memory_peak_bytes >= 31 << 20, "{report:?}");
    // memory.oom.group takes the whole tree on cgroup2; version 1 kills the child alone and the leader sees it.
    let (report, _) = run(&supervisor, Program { limits: small, ..script("eat_memory.sh", &["child", "3"]) }).await;
    assert!(report.usage.oom_kills >= 1, "{report:?}");
    assert!(matches!(report.status, ExitStatus::Code(3) | ExitStatus::Signal(9)), "{report:?}");
    supervisor.shutdown().await;
}

#[tokio::test]
async fn processes_are_limited() {
    let supervisor = supervisor!("pids");
    let mut program = program(&["sh", "-c", "for i in $(seq 50); do sleep 100 & done; echo never"]);
    program.limits.pids = 10;
    let (report, out) = run(&supervisor, program).await;
    assert_ne!(report.status, ExitStatus::Code(0), "{out}");
    assert!(!out.contains("never"));
    // The shell gives up at the first fork that fails; what it had started is killed with it.
    assert!(report.usage.leaked_processes >= 5, "{report:?}");
    assert!((5..=10).contains(&report.usage.pids_peak) || report.usage.pids_peak == 0, "{report:?}");
    supervisor.shutdown().await;
}

#[tokio::test]
async fn a_tree_of_sessions_dies_at_once() {
    let supervisor = supervisor!("tree");
    // An emulated machine takes a minute to start 200.
    let sessions = (200 / slowness()).to_string();
    let (mut process, out) = spawn(&supervisor, script("fork_bomb_setsid.sh", &[&sessions])).await;
    let (line, _out) = first_line(out).await;
    assert_eq!(line, "ready");
    let started = Instant::now();
    process.stop(Duration::ZERO);
    let report = process.wait().await.expect("supervisor lives");
    println!("{sessions} sessions: kill_us={} seen after {:?}", report.kill_us, started.elapsed());
    assert_eq!(report.status, ExitStatus::Signal(9));
    assert!(report.kill_us > 0, "{report:?}");
    // The target is 50 ms. An emulated machine takes half a second; a kill that chases takes for ever.
    assert!(report.kill_us < 5_000_000 * u64::from(slowness()), "{report:?}");
    supervisor.shutdown().await;
}

#[tokio::test]
async fn grace_is_given_and_ends() {
    let supervisor = supervisor!("grace");
    let (mut process, out) = spawn(&supervisor, script("ignore_term.sh", &[])).await;
    let (_, _out) = first_line(out).await;
    let asked = Instant::now();
    process.stop(Duration::from_millis(300));
    let report = process.wait().await.expect("supervisor lives");
    assert!(asked.elapsed() >= Duration::from_millis(300), "the grace is the task's");
    assert_eq!(report.status, ExitStatus::Signal(9));

    // A polite one ends by itself, although it had stopped itself.
    let (mut process, out) = spawn(&supervisor, script("stopped.sh", &[])).await;
    let (_, _out) = first_line(out).await;
    let pid = process.pid();
    eventually("it stops itself", || fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| s.contains(") T "))).await;
    process.stop(Duration::from_secs(300));
    let report = tokio::time::timeout(PATIENCE, process.wait()).await.expect("long before the grace").expect("supervisor lives");
    assert_eq!((report.status, report.kill_us), (ExitStatus::Code(7), 0));
    supervisor.shutdown().await;
}

#[tokio::test]
async fn leaked_processes_are_counted_and_killed() {
    let supervisor = supervisor!("leak");
    for name in ["leak_pipe.sh", "double_fork.sh"] {
        // run() reads to the end of the pipe, which the grandchild holds: it ends only because that is killed.
        let (report, out) = run(&supervisor, script(name, &[])).await;
        assert_eq!(report.status, ExitStatus::Code(0), "{name}");
        assert_eq!(report.usage.leaked_processes, 1, "{name}: {report:?}");
        if name == "double_fork.sh" {
            let pid: u32 = out.trim().parse().expect("a pid");
            assert!(!alive(pid), "the daemon is dead");
        }
    }
    supervisor.shutdown().await;
}

#[tokio::test]
async fn processes_in_cgroups_below_the_tasks_own_are_found_and_killed() {
    let supervisor = supervisor!("below");
    let command = "own=$(sed -n 's/^0:://p' /proc/self/cgroup); \
                   for d in /sys/fs/cgroup /sys/fs/cgroup/unified; do [ ! -f \"$d$own/cgroup.procs\" ] || dir=$d$own/a/b; done; \
                   [ -n \"$dir\" ] || { echo none; exit 0; }; mkdir -p \"$dir\"; \
                   setsid sleep 300 & echo $! >\"$dir/cgroup.procs\"; echo $!";
    let program = program(&["sh", "-c", command]);
    let name = program.cgroup.clone();
    let (report, out) = run(&supervisor, program).await;
    if out == "none\n" {
        println!("SKIPPED: no cgroup2 hierarchy that a task is tracked in");
        return supervisor.shutdown().await;
    }
    assert_eq!((report.status, report.usage.leaked_processes), (ExitStatus::Code(0), 1), "{out}");
    assert!(!alive(out.trim().parse().expect("a pid")), "it outlives its task");
    assert_eq!(cgroups_named(PARENT, &name), Vec::<PathBuf>::new());
    supervisor.shutdown().await;
}

#[tokio::test]
async fn a_lease_that_runs_out_kills_and_renewals_carry() {
    let supervisor = supervisor!("lease");
    let lease = Duration::from_millis(400) * slowness();
    let leased = |argv: &[&str]| Program { lease: Some(lease), ..program(argv) };
    let (mut process, _out) = spawn(&supervisor, leased(&["sleep", "60"])).await;
    let report = tokio::time::timeout(PATIENCE, process.wait()).await.expect("killed").expect("supervisor lives");
    assert!(report.lease_expired);
    assert_eq!(report.status, ExitStatus::Signal(9));

    let (mut process, _out) = spawn(&supervisor, leased(&["sleep", &slowness().to_string()])).await;
    for _ in 0..12 {
        tokio::time::sleep(Duration::from_millis(100) * slowness()).await;
        process.renew(lease);
    }
    let report = process.wait().await.expect("supervisor lives");
    assert_eq!((report.status, report.lease_expired), (ExitStatus::Code(0), false));
    supervisor.shutdown().await;
}

#[tokio::test]
async fn a_dropped_process_dies() {
    let supervisor = supervisor!("drop");
    let program = program(&["sleep", "60"]);
    let name = program.cgroup.clone();
    let (process, _out) = spawn(&supervisor, program).await;
    let pid = process.pid();
    assert!(alive(pid));
    drop(process);
    eventually("its cgroup is gone", || cgroups_named(PARENT, &name).is_empty()).await;
    assert!(!alive(pid));
    supervisor.shutdown().await;
}

#[tokio::test]
async fn refusals_have_names() {
    let supervisor = supervisor!("refusals");
    let plain_file = script("no_shebang", &[]);
    let with_cwd = |cwd: &str| Program { cwd: cwd.into(), ..program(&["true"]) };
    type Check = fn(&SpawnError) -> bool;
    let cases: [(Program, Check, &str); 10] = [
        (program(&["no-such-program"]), |e| matches!(e, SpawnError::ProgramNotFound { searched: Some(p), .. } if p == PATH), "not in PATH"),
        (program(&["/no/such"]), |e| matches!(e, SpawnError::ProgramNotFound { searched: None, .. }), "no such path"),
        (program(&["/etc/passwd"]), |e| matches!(e, SpawnError::NotExecutable { .. }), "no execute permission"),
        (program(&["/etc"]), |e| matches!(e, SpawnError::NotExecutable { .. }), "a directory"),
        (program(&["/etc/passwd/x"]), |e| matches!(e, SpawnError::ProgramNotFound { .. }), "below a file"),
        (plain_file, |e| matches!(e, SpawnError::NotExecutable { error, .. } if error.contains("#!")), "no #! line"),
        (
            script("bad_interpreter.sh", &[]),
            |e| matches!(e, SpawnError::NotExecutable { error, .. } if error.contains("interpreter")),
            "interpreter missing",
        ),
        (with_cwd("/no/such"), |e| matches!(e, SpawnError::WorkingDir { .. }), "no such directory"),
        (with_cwd("relative"), |e| matches!(e, SpawnError::WorkingDir { .. }), "not absolute"),
        (program(&["true", "a\0b"]), |e| matches!(e, SpawnError::Other { step, .. } if step == "argv"), "NUL"),
    ];
    for (program, check, why) in cases {
        let name = program.cgroup.clone();
        match supervisor.spawn(program, null(), null(), null()).await {
            Err(SpawnFailure::Refused(error)) => assert!(check(&error), "{why}: {error:?}"),
            other => panic!("{why}: {other:?}"),
        }
        assert_eq!(cgroups_named(PARENT, &name), Vec::<PathBuf>::new(), "{why}");
    }
    supervisor.shutdown().await;
}

#[tokio::test]
async fn the_last_of_two_path_entries_is_found() {
    let supervisor = supervisor!("path");
    let mut program = program(&["sh", "-c", "echo $0 $PATH"]);
    program.env = vec![("PATH".into(), "/no/such:/bin".into())];
    let (report, out) = run(&supervisor, program).await;
    assert_eq!((report.status, out.as_str()), (ExitStatus::Code(0), "sh /no/such:/bin\n"));
    supervisor.shutdown().await;
}

#[tokio::test]
async fn large_arguments_work_or_are_refused_by_name() {
    let supervisor = supervisor!("argv");
    // 100 KiB each: below the kernel's limit for one string, about 1 MiB in all, more than one packet holds.
    let big = "x".repeat(100 << 10);
    let mut argv = vec!["sh", "-c", "echo $# ${#1}", "sh"];
    argv.extend(std::iter::repeat_n(big.as_str(), 10));
    let (report, out) = run(&supervisor, program(&argv)).await;
    assert_eq!((report.status, out.as_str()), (ExitStatus::Code(0), "10 102400\n"));
    let huge = "x".repeat(900 << 10);
    match supervisor.spawn(program(&["true", &huge]), null(), null(), null()).await {
        Err(SpawnFailure::Refused(SpawnError::Other { step, .. })) => assert_eq!(step, "execve"),
        other => panic!("{other:?}"),
    }
    supervisor.shutdown().await;
}

#[tokio::test]
async fn a_task_inherits_nothing() {
    let supervisor = supervisor!("inherit");
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.expect("a limit");
    let command = "ls /proc/self/fd | sort -n | tr '\\n' ' '; grep -E '^(NoNewPrivs|SigBlk|SigIgn)' /proc/self/status; env | sort; ulimit -c; ulimit -n; \
                   [ \"$(cut -d' ' -f6 /proc/$$/stat)\" = $$ ] && echo own session";
    let (_, out) = run(&supervisor, program(&["sh", "-c", command])).await;
    // 3 is the directory that ls itself reads.
    assert!(out.starts_with("0 1 2 3 SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\nNoNewPrivs:\t1\n"), "{out}");
    assert!(!out.contains("CARGO") && out.ends_with(&format!("\n0\n{files}\nown session\n")), "{out}");
    supervisor.shutdown().await;
}

/// Started by [`when_the_worker_is_killed_its_tasks_are_gone`] as a process of its own, to be killed.
#[tokio::test]
async fn helper_worker() {
    let Ok(instance) = std::env::var("WINDLASS_TEST_WORKER") else { return };
    let supervisor = supervisor_at(PARENT, &instance).await.expect("the outer test has one, too");
    let (_process, out) = spawn(&supervisor, script("fork_bomb_setsid.sh", &["20"])).await;
    let (_, _out) = first_line(out).await;
    println!("WORKER READY");
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn when_the_worker_is_killed_its_tasks_are_gone() {
    let supervisor = supervisor!("witness");
    let instance = unique("victim");
    let exe = std::env::current_exe().expect("test binary");
    let mut worker = Command::new(exe)
        .args(["--exact", "native::helper_worker", "--nocapture"])
        .env("WINDLASS_TEST_WORKER", &instance)
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut out = fs::File::from(OwnedFd::from(worker.stdout.take().expect("piped")));
    loop {
        let (line, rest) = first_line(out).await;
        out = rest;
        if line.contains("WORKER READY") {
            break;
        }
    }
    let before = cgroups_named(PARENT, &instance);
    assert!(!before.is_empty());
    let pids: Vec<u32> = before
        .iter()
        .flat_map(|dir| fs::read_dir(dir).into_iter().flatten().flatten())
        .flat_map(|e| {
            fs::read_to_string(e.path().join("cgroup.procs"))
                .unwrap_or_default()
                .lines()
                .filter_map(|l| l.parse().ok())
                .collect::<Vec<u32>>()
        })
        .collect();
    assert!(pids.len() >= 20, "{pids:?}");
    let killed = Instant::now();
    worker.kill().expect("kills");
    eventually("its cgroups are gone", || cgroups_named(PARENT, &instance).is_empty()).await;
    println!("worker dead, cgroups gone after {:?}", killed.elapsed());
    assert!(pids.iter().all(|pid| !alive(*pid)));
    worker.wait().expect("reaped");
    supervisor.shutdown().await;
}

#[tokio::test]
async fn what_dead_instances_left_is_swept_and_the_living_are_left_alone() {
    let parent = unique("windlass-test-sweep");
    let Some(living) = supervisor_at(&parent, "living").await else { return };
    let (mut task, _out) = spawn(&living, program(&["sleep", "60"])).await;
    // What a supervisor and worker that died together leave behind: directories and processes.
    let mut orphan = Command::new("sleep").arg("60").spawn().expect("starts");
    let living_dirs = cgroups_named(&parent, "living");
    for dir in &living_dirs {
        // And a dead one of the name that the next will have.
        fs::create_dir_all(dir.with_file_name("next").join("task.7")).expect("makes");
        let dead = dir.with_file_name("dead").join("task.1");
        fs::create_dir_all(&dead).expect("makes");
        fs::write(dead.join("cgroup.procs"), orphan.id().to_string()).expect("moves");
    }
    let next = supervisor_at(&parent, "next").await.expect("as the first one");
    assert_eq!(next.capabilities().swept, [("dead".to_owned(), true)]);
    assert_eq!(cgroups_named(&parent, "dead"), Vec::<PathBuf>::new());
    assert_eq!(cgroups_named(&parent, "task.7"), Vec::<PathBuf>::new(), "a namesake's tasks are swept, too");
    assert!(!orphan.wait().expect("reaped").success(), "killed");
    assert!(alive(task.pid()), "the living keep what is theirs");
    task.stop(Duration::ZERO);
    task.wait().await.expect("supervisor lives");
    living.shutdown().await;
    next.shutdown().await;
    for dir in living_dirs {
        fs::remove_dir(dir.parent().expect("parent")).expect("nothing is left below the parent");
    }
}

#[tokio::test]
async fn when_the_supervisor_is_killed_the_worker_sweeps() {
    let supervisor = supervisor!("lost");
    let (mut process, out) = spawn(&supervisor, script("fork_bomb_setsid.sh", &["20"])).await;
    let (_, _out) = first_line(out).await;
    let leader = process.pid();
    let parent = fs::read_to_string(format!("/proc/{leader}/status")).expect("status");
    let parent: i32 = parent.lines().find_map(|l| l.strip_prefix("PPid:")).expect("parent").trim().parse().expect("number");
    let parent = rustix::process::Pid::from_raw(parent).expect("a process");
    rustix::process::kill_process(parent, rustix::process::Signal::KILL).expect("it lives");
    assert!(process.wait().await.is_err());
    supervisor.supervisor_lost().await;
    assert!(!alive(leader));
    let again = supervisor.spawn(program(&["true"]), null(), null(), null()).await;
    assert!(matches!(again, Err(SpawnFailure::SupervisorLost)), "{again:?}");
}

#[tokio::test]
async fn without_cgroups_limits_are_refused_and_trees_are_still_killed() {
    let dir = tempfile::tempdir().expect("directory");
    let config = config::Cgroup { mount: dir.path().to_path_buf(), parent: String::new(), allow_unlimited: false };
    match Supervisor::start(Path::new(EXE), &config, "x").await {
        Err(StartError::Unfit(why)) => assert!(why.contains("Delegate=cpu memory pids io") && why.contains("--allow-unlimited"), "{why}"),
        other => panic!("{other:?}"),
    }
    let supervisor = Supervisor::start(Path::new(EXE), &config::Cgroup { allow_unlimited: true, ..config }, "x").await.expect("starts");
    assert!(!supervisor.capabilities().enforced);
    let limited = supervisor.spawn(program(&["true"]), null(), null(), null()).await;
    assert!(matches!(limited, Err(SpawnFailure::Refused(SpawnError::Limit { .. }))), "{limited:?}");
    let free = |p: Program| Program { limits: Limits { enforced: false, ..limits() }, ..p };
    let (report, _) = run(&supervisor, free(program(&["sh", "-c", "exit 5"]))).await;
    assert_eq!(report.status, ExitStatus::Code(5));
    let (report, out) = run(&supervisor, free(script("double_fork.sh", &[]))).await;
    assert_eq!(report.usage.leaked_processes, 1, "{report:?}");
    assert!(!alive(out.trim().parse().expect("a pid")));
    let (mut process, out) = spawn(&supervisor, free(script("fork_bomb_setsid.sh", &["20"]))).await;
    let (_, _out) = first_line(out).await;
    process.stop(Duration::ZERO);
    assert_eq!(process.wait().await.expect("supervisor lives").status, ExitStatus::Signal(9));
    supervisor.shutdown().await;
}

#[tokio::test]
async fn version_1_alone_kills_a_tree_by_loop() {
    // A mount point that shows only one version 1 hierarchy: no clone into it, no cgroup.kill.
    let mount = Path::new("/sys/fs/cgroup/pids");
    if !mount.join("tasks").exists() || !rustix::process::geteuid().is_root() {
        println!("SKIPPED: no version 1 hierarchy of pids to work in");
        return;
    }
    let config = config::Cgroup { mount: mount.into(), parent: PARENT.into(), allow_unlimited: true };
    let supervisor = Supervisor::start(Path::new(EXE), &config, &unique("v1")).await.expect("starts");
    assert_eq!((supervisor.capabilities().enforced, supervisor.capabilities().description.as_str()), (false, "v1 pids"));
    let free = |p: Program| Program { limits: Limits { enforced: false, ..limits() }, ..p };
    let (mut process, out) = spawn(&supervisor, free(script("fork_bomb_setsid.sh", &["50"]))).await;
    let (_, mut out) = first_line(out).await;
    process.stop(Duration::ZERO);
    let report = tokio::time::timeout(PATIENCE, process.wait()).await.expect("dies").expect("supervisor lives");
    assert_eq!(report.status, ExitStatus::Signal(9));
    assert_eq!(out.read(&mut [0]).expect("reads"), 0, "nobody holds the pipe");
    let (report, _) = run(&supervisor, free(script("double_fork.sh", &[]))).await;
    assert_eq!(report.usage.leaked_processes, 1, "{report:?}");
    supervisor.shutdown().await;
}

/// No assertion on time: the figure is for the reader. That all succeed and nothing is left is asserted.
#[tokio::test]
async fn many_short_tasks() {
    let supervisor = supervisor!("many");
    const N: u32 = 300;
    let started = Instant::now();
    for _ in 0..N {
        let mut process = supervisor.spawn(program(&["/bin/true"]), null(), null(), null()).await.expect("spawns");
        assert_eq!(process.wait().await.expect("supervisor lives").status, ExitStatus::Code(0));
    }
    println!("{N} no-op tasks one after another: {:?} each", started.elapsed() / N);
    let started = Instant::now();
    let mut running = Vec::new();
    for _ in 0..N {
        let supervisor = supervisor.clone();
        running.push(tokio::spawn(async move {
            let mut process = supervisor.spawn(program(&["/bin/true"]), null(), null(), null()).await.expect("spawns");
            process.wait().await.expect("supervisor lives").status
        }));
    }
    for status in running {
        assert_eq!(status.await.expect("joins"), ExitStatus::Code(0));
    }
    println!("{N} no-op tasks at once: {:?} each", started.elapsed() / N);
    supervisor.shutdown().await;
}
