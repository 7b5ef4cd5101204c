//! Nothing left lying around: many tasks that try to leave something, many kills of workers and supervisors, and then a look.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use windlass::config;
use windlass::execute::native::{StartError, Supervisor};
use windlass::task::Reason;

use crate::harness::crew::{Crew, Fault};
use crate::harness::dice::{Dice, number};
use crate::harness::server::skip;
use crate::harness::{Fleet, Job, checker, leftovers};

/// The form that is in the suite; `make chaos` has 2,000 tasks and 50 kills.
const SHORT_FORM: (u64, u64) = (300, 12);
/// Tasks submitted and not ended at one time.
const OPEN: usize = 40;

/// What each of them would leave if it could: processes that escape by `setsid` and double fork, files, sockets, cgroups.
const LITTER: &str = r#"
setsid sleep 600 >/dev/null 2>&1 &
(setsid sh -c 'trap "" TERM HUP; sleep 600' >/dev/null 2>&1 &)
mkdir -p deep/er/and/deeper; mkfifo deep/pipe; ln -s /etc/passwd deep/link; head -c 20000 /dev/urandom > deep/er/data; chmod 0 deep/er/and
[ $(($RANDOM % 8)) -gt 0 ] || seq 1 3000
sleep 0.0$(($RANDOM % 10))
"#;

#[tokio::test]
async fn after_many_tasks_and_kills_nothing_is_left() {
    let Some(fleet) = Fleet::start(&[("LEASE__ACK_WAIT_S", "2"), ("CLASSES__CPU_SHORT__MAX_ATTEMPTS", "20")]).await else { return };
    let (tasks, kills) = (number("WINDLASS_CHAOS_TASKS", SHORT_FORM.0), number("WINDLASS_CHAOS_KILLS", SHORT_FORM.1));
    let seed = number("WINDLASS_TEST_SEED", u64::from(std::process::id()));
    println!("WINDLASS_TEST_SEED={seed}: {tasks} tasks, {kills} kills");
    let mut dice = Dice::new(seed);
    let began = Instant::now();
    let mut crew = Crew::start(&fleet, 3, &[("CAPACITY__SLOTS", "6")], Duration::ZERO);
    let mut submitted = Vec::new();
    let mut killed = 0;
    for n in 0..tasks {
        if submitted.len() >= OPEN {
            fleet.end(&submitted[submitted.len() - OPEN]).await;
        }
        submitted.push(fleet.submit(&Job::bash(LITTER)).await);
        // Spread over the whole run, each when the tasks before it are under way.
        if killed < kills && n * kills >= killed * tasks + OPEN as u64 {
            let fault = [Fault::KillWorker, Fault::KillSupervisor, Fault::KillBoth][usize::try_from(dice.roll(3)).unwrap()];
            crew.suffer(fault, usize::try_from(dice.roll(3)).unwrap()).await;
            killed += 1;
        }
    }
    while killed < kills {
        crew.suffer(Fault::KillBoth, usize::try_from(dice.roll(3)).unwrap()).await;
        killed += 1;
    }
    for task in &submitted {
        assert_eq!(fleet.end(task).await.reason, Some(Reason::Ok), "{}", task.id);
    }
    // The last ones killed are back, and have swept.
    crew.ready().await;
    checker::check(&fleet).await;
    // The workers run on, idle: nothing but themselves, their supervisors and their own empty directories may be there.
    let idle = leftovers::gone(Duration::from_secs(20), || fleet.litter()).await;
    assert!(idle.is_empty(), "left behind while the workers run: {idle:?}");
    println!("{tasks} tasks, {killed} kills, nothing left: {:.0} s", began.elapsed().as_secs_f64());
    // And without them nothing at all.
    fleet.finish().await;
}

/// Directories of that name among all cgroups, wherever the supervisor found its place.
fn cgroups_named(name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(dir) = todo.pop() {
        for path in leftovers::entries(&dir).into_iter().filter(|path| path.is_dir() && !path.is_symlink()) {
            if path.ends_with(name) { found.push(path) } else { todo.push(path) }
        }
    }
    found
}

#[tokio::test]
async fn the_last_worker_takes_the_parent_of_its_cgroups_along() {
    let instance = format!("last-{}", std::process::id());
    let cgroup = config::Cgroup { mount: "/sys/fs/cgroup".into(), parent: String::new(), allow_unlimited: false };
    let supervisor = match Supervisor::start(Path::new(env!("CARGO_BIN_EXE_windlass")), &cgroup, &instance).await {
        Ok(supervisor) => supervisor,
        Err(StartError::Unfit(why)) => return skip(&why),
        Err(error) => panic!("{error}"),
    };
    let parents: Vec<_> = cgroups_named(&instance).iter().map(|path| path.parent().unwrap().to_path_buf()).collect();
    assert!(!parents.is_empty() && parents.iter().all(|path| path.ends_with("windlass")), "{parents:?}");
    supervisor.shutdown().await;
    // Another worker of this machine may be in it, or about to leave it.
    let empty = |path: &&PathBuf| path.is_dir() && !leftovers::entries(path).iter().any(|entry| entry.is_dir());
    let left = leftovers::gone(Duration::from_secs(10), || parents.iter().filter(empty).collect()).await;
    assert!(left.is_empty(), "empty parents stay: {left:?}");
}
