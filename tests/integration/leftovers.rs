//! Nothing left lying around: many tasks that try to leave something, many kills of workers and supervisors, and then a look.

use std::time::{Duration, Instant};

use windlass::task::Reason;

use crate::harness::crew::{Crew, Fault};
use crate::harness::dice::{Dice, number};
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
