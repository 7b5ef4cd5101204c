//! The floor (spawn and wait in a fresh limited cgroup, nothing else), and killing.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use windlass::execute::native::sandbox::Confinement;
use windlass::execute::native::{Program, Supervisor};
use windlass::task::Limits;

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
