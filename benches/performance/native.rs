//! The floor (spawn and wait in a fresh limited cgroup, nothing else), and killing.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use windlass::execute::native::sandbox::{Confinement, User, Wish};
use windlass::execute::native::{Program, Supervisor};
use windlass::supervisor::protocol::ExitStatus;
use windlass::task::{Limits, Profile};

use super::bed::WINDLASS;
use super::report;

async fn supervisor() -> Supervisor {
    let config = windlass::config::load(None, []).unwrap().cgroup;
    let instance = uuid::Uuid::now_v7().simple().to_string();
    Supervisor::start(Path::new(WINDLASS), &config, &instance).await.expect("cgroups can be used")
}

fn program(name: String, cpus: f64, argv: &[&str]) -> Program {
    Program {
        cgroup: name,
        limits: Limits { cpus, memory_bytes: 256 << 20, pids: 512, timeout_ms: 0, io: None, enforced: true },
        argv: argv.iter().map(|a| (*a).to_owned()).collect(),
        env: vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned())],
        cwd: "/".to_owned(),
        sandbox: Confinement::none(),
        lease: None,
    }
}

fn null() -> std::os::fd::OwnedFd {
    File::options().read(true).write(true).open("/dev/null").unwrap().into()
}

/// Tasks per second that the supervisor alone does, `slots` at a time.
pub async fn floor(tasks: usize, slots: usize) -> f64 {
    let supervisor = supervisor().await;
    let start = Instant::now();
    let one = |n: usize| {
        let supervisor = supervisor.clone();
        async move {
            let mut process = supervisor.spawn(program(format!("floor.{n}"), 1.0, &["/bin/true"]), null(), null(), null()).await.unwrap();
            process.wait().await.unwrap();
        }
    };
    stream::iter(0..tasks).map(one).buffer_unordered(slots).collect::<Vec<()>>().await;
    #[expect(clippy::cast_precision_loss, reason = "a count of tasks")]
    let rate = tasks as f64 / start.elapsed().as_secs_f64();
    rate
}

/// Spawn and end of `/bin/true`, one at a time, in each profile in turn so that what else goes on meets all alike.
pub async fn sandbox() {
    const ROUNDS: usize = 400;
    // As a worker has it: not below /tmp, which every task covers with its own.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut config = windlass::config::load(None, windlass::config::environment()).unwrap();
    config.worker.state_dir = dir.path().to_path_buf();
    let instance = uuid::Uuid::now_v7().simple().to_string();
    let exe = Path::new(WINDLASS);
    let supervisor = Supervisor::start_with(exe, &config.cgroup, &instance, Some(Wish::new(&config))).await.expect("cgroups can be used");
    let tenant = windlass::task::Tenant::new("bench").unwrap();
    let user = supervisor.capabilities().sandbox.separate_users.then(|| User::of_tenant(&tenant, None, config.sandbox.uid_base));
    let profiles = [Profile::None, Profile::Standard, Profile::Strict];
    let mut times: [Vec<Duration>; 3] = Default::default();
    for n in 0..ROUNDS {
        for (profile, times) in profiles.into_iter().zip(&mut times) {
            let root = dir.path().display().to_string();
            let sandbox = Confinement {
                profile,
                user: user.filter(|_| profile != Profile::None),
                root,
                secrets: None,
                devices: vec![],
                hidden: vec![],
            };
            let mut program = Program { sandbox, ..program(format!("{profile}.{n}"), 1.0, &["/bin/true"]) };
            program.limits.enforced = supervisor.capabilities().enforced;
            let start = Instant::now();
            match supervisor.spawn(program, null(), null(), null()).await {
                Ok(mut process) => assert_eq!(process.wait().await.unwrap().status, ExitStatus::Code(0)),
                Err(error) => return report("sandbox", &format!("not measured: {error}"), ""),
            }
            times.push(start.elapsed());
        }
    }
    let at = |times: &mut Vec<Duration>, part: usize| {
        times.sort_unstable();
        times[times.len() * part / 100].as_secs_f64() * 1e3
    };
    let floor = at(&mut times[0], 50);
    for (profile, times) in profiles.into_iter().zip(&mut times) {
        let (p50, p99) = (at(times, 50), at(times, 99));
        let target = if profile == Profile::Standard { "under 1 ms added" } else { "" };
        let what = format!("spawn and end of /bin/true, sandbox {profile}");
        report(&what, &format!("p50 {p50:.2} ms ({:+.2}), p99 {p99:.2} ms", p50 - floor), target);
    }
}

/// Kill decision to empty cgroup for 200 processes, each in a session of its own.
pub async fn kill_200() {
    let supervisor = supervisor().await;
    let mut times = Vec::new();
    for n in 0..5 {
        let (read, write) = std::io::pipe().unwrap();
        let script = "for i in $(seq 200); do setsid sleep 1000 & done; echo ready; wait";
        let program = program(format!("kill.{n}"), 0.1, &["bash", "-c", script]);
        let mut process = supervisor.spawn(program, null(), write.into(), null()).await.unwrap();
        let ready = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            BufReader::new(read).read_line(&mut line).map(|_| line)
        });
        assert_eq!(ready.await.unwrap().unwrap(), "ready\n");
        process.stop(Duration::ZERO);
        times.push(process.wait().await.unwrap().kill_us);
    }
    times.sort_unstable();
    report("kill decision to empty cgroup, 200 processes", &format!("median {} us, worst {} us", times[2], times[4]), "< 50000 us");
}
