//! A cgroup that somebody else made: found by its id, read, its limits compared. A supervisor stands for the engine.

use std::path::Path;

use windlass::execute::native::cgroup::{Foreign, Unseen, mounted};
use windlass::task::limits::Limits;

use crate::harness::leftovers;

use super::{PARENT, first_line, limits, program, spawn, supervisor_at, unique};

#[tokio::test]
async fn a_cgroup_of_an_engines_is_found_read_and_compared() {
    let supervisor = supervisor!("foreign");
    // As long as the ids of containers are, and with what systemd's driver puts around them.
    let id = uuid::Uuid::now_v7().simple().to_string().repeat(2);
    let mut program = program(&["sh", "-c", "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done; echo $$; exec sleep 1000"]);
    program.cgroup = format!("docker-{id}.scope");
    program.limits = Limits { cpus: 0.1, pids: 77, ..limits() };
    let asked = program.limits.clone();
    let under = Path::new("/sys/fs/cgroup");
    let mounts = mounted(under);
    assert!(Foreign::find(&id, &mounts, None).is_none(), "there is none yet");
    let (mut process, out) = spawn(&supervisor, program).await;
    let (pid, out) = first_line(out).await;
    let pid: u32 = pid.trim().parse().expect("a process id");

    let (seen, habit) = Foreign::of(pid, &id, under).expect("its process is in it");
    assert_eq!(seen.has(&asked), Ok(()));
    for (limit, other) in [
        ("pids", Limits { pids: 78, ..asked.clone() }),
        ("memory", Limits { memory_bytes: asked.memory_bytes + (1 << 20), ..asked.clone() }),
        ("cpu", Limits { cpus: 0.2, ..asked.clone() }),
    ] {
        let lacking = seen.has(&other).expect_err(limit);
        assert!(lacking.limit.starts_with(limit), "{lacking}");
    }
    let usage = seen.usage();
    assert!(usage.cpu_user_us > 1000 && usage.memory_peak_bytes > 0 && usage.throttled_us > 0, "{usage:?}");
    // Not by a process of somebody else's, nor by an id of another container's.
    assert_eq!(Foreign::of(std::process::id(), &id, under).map(drop), Err(Unseen::Elsewhere(std::process::id())));
    assert_eq!(Foreign::of(pid, &"0".repeat(64), under).map(drop), Err(Unseen::Elsewhere(pid)));
    // Without a process: by searching, and where the one before was.
    for habit in [None, Some(&habit)] {
        let found = Foreign::find(&id, &mounts, habit).expect("found by its id");
        assert!(found.usage().cpu_user_us >= usage.cpu_user_us, "{habit:?}");
    }
    process.stop(std::time::Duration::ZERO);
    process.wait().await.expect("the supervisor lives");
    drop(out);
    // Gone: it says nothing, and nothing wrong.
    assert_eq!((seen.usage(), seen.has(&Limits { pids: 78, ..asked })), (windlass::task::limits::Usage::default(), Ok(())));
    let left = leftovers::gone(super::PATIENCE, || Foreign::find(&id, &mounts, None).into_iter().collect()).await;
    assert!(left.is_empty(), "{left:?}");
}
