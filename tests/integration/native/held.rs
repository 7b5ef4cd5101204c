//! Cgroups that are held for an engine: the test plays the engine, with processes in directories of its own below.

use super::*;

use windlass::execute::native::{Held, Holding};

/// A directory below the held one in every hierarchy, as engines make it.
struct Engine {
    dirs: Vec<PathBuf>,
}

impl Engine {
    /// Below `parent`, also in hierarchies that are of no use to us.
    fn start(parent: &str) -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let mounts = mounts.lines().filter(|line| line.contains(" - cgroup"));
        let points: Vec<&Path> = mounts.filter_map(|line| line.split(' ').nth(4)).map(Path::new).collect();
        let ours = points.iter().filter(|point| point.starts_with("/sys/fs/cgroup"));
        let dirs: Vec<PathBuf> = ours.map(|point| point.join(parent.trim_start_matches('/')).join("container")).collect();
        for dir in &dirs {
            fs::create_dir_all(dir).expect("made like an engine does");
        }
        Self { dirs }
    }

    /// A shell that runs `script` once it is in there; what it writes.
    fn run(&self, script: &str) -> (std::process::Child, fs::File) {
        let mut child = Command::new("sh");
        child.args(["-c", &format!("read go; {script}")]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = child.spawn().expect("starts");
        for dir in &self.dirs {
            // A cpuset must be given something first; that is the engine's business, and nothing to us.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let mut todo: Vec<&Path> = dir.ancestors().take_while(|above| above.join(file).exists()).collect();
                while let Some(at) = todo.pop() {
                    let above = fs::read_to_string(at.parent().expect("above").join(file)).unwrap_or_default();
                    let own = fs::read_to_string(at.join(file)).unwrap_or_default();
                    if own.trim().is_empty() && !above.trim().is_empty() {
                        fs::write(at.join(file), above).expect("given");
                    }
                }
            }
            fs::write(dir.join("cgroup.procs"), child.id().to_string()).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        }
        std::io::Write::write_all(&mut child.stdin.take().expect("piped"), b"go\n").expect("goes");
        let out = fs::File::from(OwnedFd::from(child.stdout.take().expect("piped")));
        (child, out)
    }

    /// The container is over: the engine removes its own directories.
    async fn end(self) {
        for dir in self.dirs {
            eventually("a container's cgroup is empty", || match fs::remove_dir(&dir) {
                Ok(()) => true,
                Err(e) => e.kind() == std::io::ErrorKind::NotFound,
            })
            .await;
        }
    }
}

/// Waits for its end where nobody else has to wait with us.
async fn ended(mut child: std::process::Child) -> std::process::ExitStatus {
    let end = tokio::task::spawn_blocking(move || child.wait());
    tokio::time::timeout(PATIENCE * slowness(), end).await.expect("ends in time").expect("joins").expect("reaped")
}

fn holding(limits: Limits) -> Holding {
    Holding { cgroup: unique("held"), limits, directory: "/".into(), lease: None, elsewhere: false }
}

/// Holds one, with the engine's directory below; `None` where containers have to do without.
async fn held(supervisor: &Supervisor, holding: Holding) -> Option<(Held, Engine)> {
    let name = holding.cgroup.clone();
    let held = supervisor.hold(holding).await.expect("held");
    let Some(parent) = held.parent().map(str::to_owned) else {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must have one place in all hierarchies");
        println!("SKIPPED: the cgroups of this user have no one name in all hierarchies");
        return None;
    };
    assert!(parent.ends_with(&format!("/{name}")), "{parent}");
    assert!(!held.contains("container"));
    let engine = Engine::start(&parent);
    assert!(held.contains("container"));
    Some((held, engine))
}

macro_rules! held {
    ($supervisor:ident, $holding:expr) => {
        match held(&$supervisor, $holding).await {
            Some(held) => held,
            None => return $supervisor.shutdown().await,
        }
    };
}

#[tokio::test]
async fn a_container_is_limited_stopped_and_counted_like_a_task() {
    let supervisor = supervisor!("held");
    let holding = holding(Limits { cpus: 0.5, memory_bytes: 64 << 20, pids: 33, ..limits() });
    let name = holding.cgroup.clone();
    let (held, engine) = held!(supervisor, holding);
    let found = cgroups_named(PARENT, &name);
    let read = |file: &str| found.iter().find_map(|dir| fs::read_to_string(dir.join(file)).ok()).map(|text| text.trim().to_owned());
    assert_eq!(read("pids.max").as_deref(), Some("33"));
    assert_eq!(read("memory.limit_in_bytes").or_else(|| read("memory.max")).as_deref(), Some("67108864"));
    let (child, out) =
        engine.run("trap 'exit 7' TERM; i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo ready; while :; do sleep 0.05; done");
    let (line, _out) = first_line(out).await;
    assert_eq!(line, "ready");
    held.stop(Duration::from_secs(300));
    assert_eq!(ended(child).await.code(), Some(7), "it was asked, and had its grace");
    engine.end().await;
    let report = held.release(ExitStatus::Code(7)).await.expect("supervisor lives");
    assert_eq!((report.status, report.lease_expired, report.kill_us), (ExitStatus::Code(7), false, 0));
    assert_eq!(report.usage.leaked_processes, 0, "{report:?}");
    assert!(report.usage.cpu_user_us + report.usage.cpu_system_us > 0 && report.usage.memory_peak_bytes > 0, "{report:?}");
    assert_eq!(cgroups_named(PARENT, &name), Vec::<PathBuf>::new(), "nothing is left in any hierarchy");
    supervisor.shutdown().await;
}

#[tokio::test]
async fn a_container_that_does_not_end_is_killed_after_its_grace_and_when_its_lease_is_over() {
    let supervisor = supervisor!("heldkill");
    let (deaf, script) = (holding(limits()), "trap '' TERM; echo ready; while :; do sleep 0.05; done");
    let (held, engine) = held!(supervisor, deaf);
    let (child, out) = engine.run(script);
    let (_, _out) = first_line(out).await;
    let asked = Instant::now();
    held.stop(Duration::from_millis(200));
    assert!(!ended(child).await.success());
    assert!(asked.elapsed() >= Duration::from_millis(200), "the grace is the container's");
    let report = held.release(ExitStatus::Code(137)).await.expect("supervisor lives");
    assert!(report.kill_us > 0 && !report.lease_expired, "{report:?}");
    engine.end().await;

    let lease = Duration::from_millis(400) * slowness();
    let leased = Holding { lease: Some(lease), ..holding(limits()) };
    let name = leased.cgroup.clone();
    let (held, engine) = held!(supervisor, leased);
    let (mut child, out) = engine.run(script);
    let (_, _out) = first_line(out).await;
    for _ in 0..8 {
        tokio::time::sleep(lease / 4).await;
        held.renew(lease);
    }
    assert!(child.try_wait().expect("asked").is_none(), "renewals carry it");
    assert!(!ended(child).await.success());
    engine.end().await;
    let report = held.release(ExitStatus::Code(137)).await.expect("supervisor lives");
    assert!(report.lease_expired, "{report:?}");
    assert_eq!(cgroups_named(PARENT, &name), Vec::<PathBuf>::new());
    supervisor.shutdown().await;
}

#[tokio::test]
async fn kills_for_memory_are_counted_although_the_containers_cgroup_goes() {
    let supervisor = supervisor!("heldoom");
    let (held, engine) = held!(supervisor, holding(Limits { memory_bytes: 32 << 20, ..limits() }));
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/eat_memory.sh");
    let (child, _out) = engine.run(&format!("exec {}", program.display()));
    assert!(!ended(child).await.success());
    // Any word to the supervisor makes it look. Without one in time the engine's own word is all there is.
    held.stop(Duration::from_secs(60));
    let supervisor_looked = supervisor.hold(holding(limits())).await.expect("an answer comes after the look");
    drop(supervisor_looked);
    engine.end().await;
    let report = held.release(ExitStatus::Code(137)).await.expect("supervisor lives");
    assert!(report.usage.oom_kills >= 1 && report.usage.memory_peak_bytes >= 31 << 20, "{report:?}");
    supervisor.shutdown().await;
}

#[tokio::test]
async fn a_paused_container_dies_too() {
    let supervisor = supervisor!("heldpause");
    let (held, engine) = held!(supervisor, holding(limits()));
    let (child, out) = engine.run("echo ready; while :; do sleep 0.05; done");
    let (_, _out) = first_line(out).await;
    let frozen = engine.dirs.iter().any(|dir| {
        fs::write(dir.join("freezer.state"), "FROZEN").is_ok()
            || (dir.join("cgroup.freeze").exists() && fs::write(dir.join("cgroup.freeze"), "1").is_ok())
    });
    assert!(frozen, "this machine can freeze");
    held.stop(Duration::ZERO);
    ended(child).await;
    engine.end().await;
    held.release(ExitStatus::Code(137)).await.expect("supervisor lives");
    supervisor.shutdown().await;
}

#[tokio::test]
async fn a_held_cgroup_that_nobody_releases_goes_with_its_handle_and_with_the_worker() {
    let supervisor = supervisor!("helddrop");
    let dropped = holding(limits());
    let name = dropped.cgroup.clone();
    let (held, engine) = held!(supervisor, dropped);
    let (child, out) = engine.run("trap '' TERM; echo ready; while :; do sleep 0.05; done");
    let (_, _out) = first_line(out).await;
    drop(held);
    assert!(!ended(child).await.success());
    eventually("its cgroups are gone", || cgroups_named(PARENT, &name).is_empty()).await;
    engine.end().await;

    let kept = holding(limits());
    let name = kept.cgroup.clone();
    let (held, engine) = held!(supervisor, kept);
    let (child, out) = engine.run("trap '' TERM; echo ready; while :; do sleep 0.05; done");
    let (_, _out) = first_line(out).await;
    supervisor.shutdown().await;
    assert!(!ended(child).await.success());
    assert_eq!(cgroups_named(PARENT, &name), Vec::<PathBuf>::new(), "also what the engine had made");
    held.supervisor_lost().await;
    assert!(held.release(ExitStatus::Code(0)).await.is_err(), "the supervisor is gone");
    drop(engine);
}

#[tokio::test]
async fn an_engine_that_removes_its_directories_meanwhile_disturbs_nobody() {
    let supervisor = supervisor!("heldrace");
    for round in 0..30 {
        let racing = holding(limits());
        let name = racing.cgroup.clone();
        let (held, engine) = held!(supervisor, racing);
        let (mut child, _out) = engine.run("exec sleep 300");
        let removing = tokio::task::spawn_blocking(move || {
            child.wait().expect("reaped");
            for dir in &engine.dirs {
                let _ = fs::remove_dir(dir);
            }
        });
        held.stop(Duration::ZERO);
        let report = held.release(ExitStatus::Code(137)).await.expect("supervisor lives");
        assert_eq!(report.status, ExitStatus::Code(137), "round {round}");
        removing.await.expect("joins");
        assert_eq!(cgroups_named(PARENT, &name), Vec::<PathBuf>::new(), "round {round}");
    }
    supervisor.shutdown().await;
}

#[tokio::test]
async fn what_cannot_be_held_is_refused_and_leaves_nothing() {
    let supervisor = supervisor!("heldbad");
    for (holding, word) in [
        (holding(Limits { pids: u64::MAX, ..limits() }), "pids.max"),
        (Holding { cgroup: "a/b".into(), ..holding(limits()) }, "not a directory name"),
    ] {
        let name = holding.cgroup.clone();
        let refused = supervisor.hold(holding).await.expect_err("refused");
        assert!(matches!(&refused, SpawnFailure::Refused(error) if error.to_string().contains(word)), "{refused:?}");
        assert_eq!(cgroups_named(PARENT, &name), Vec::<PathBuf>::new(), "{word}");
    }
    supervisor.shutdown().await;
}

#[tokio::test]
async fn without_cgroups_there_is_nothing_to_hold() {
    let dir = tempfile::tempdir().expect("directory");
    let config = config::Cgroup { mount: dir.path().to_path_buf(), parent: String::new(), allow_unlimited: true };
    let supervisor = Supervisor::start(Path::new(EXE), &config, "x").await.expect("starts");
    let lease = Duration::from_millis(50);
    let held = supervisor.hold(Holding { lease: Some(lease), ..holding(Limits { enforced: false, ..limits() }) }).await.expect("held");
    assert_eq!(held.parent(), None);
    let report = held.release(ExitStatus::Code(3)).await.expect("supervisor lives");
    assert_eq!((report.status, report.usage), (ExitStatus::Code(3), windlass::task::limits::Usage::default()));
    supervisor.shutdown().await;
}
