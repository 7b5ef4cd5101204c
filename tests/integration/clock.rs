//! Wall clocks that are wrong, or jump: the worker's alone, by libfaketime; nobody else's.

use std::path::{Path, PathBuf};

use async_nats::jetstream::Context;
use windlass::task::{EventKind, Reason, Time};

use crate::harness::disk::{Under, propagation};
use crate::harness::job::Gate;
use crate::harness::server::skip;
use crate::harness::{Fleet, Job, PATIENCE};

/// The wall clock of one worker. The monotonic clock stays what it is.
struct WallClock {
    file: PathBuf,
    library: PathBuf,
}

impl WallClock {
    fn new(dir: &Path, name: &str) -> Option<Self> {
        let places = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|e| e.path().join("faketime/libfaketimeMT.so.1"));
        let library = places.chain([PathBuf::from("/usr/lib/faketime/libfaketimeMT.so.1")]).find(|path| path.is_file());
        let Some(library) = library.filter(|_| rustix::process::geteuid().is_root()) else {
            skip("a clock of its own for a worker needs libfaketime (Debian: apt-get install faketime) and root");
            return None;
        };
        let clock = Self { file: dir.join(name), library };
        clock.jump(0);
        Some(clock)
    }

    /// Sets it to so many seconds beside the real time.
    fn jump(&self, seconds: i64) {
        // At once: a reader of half a file would see another time.
        let partial = self.file.with_extension("partial");
        std::fs::write(&partial, format!("{seconds:+}")).expect("the clock's file");
        std::fs::rename(&partial, &self.file).expect("the clock's file");
    }

    /// Whoever is started under it. What the library leaves in `/dev/shm` goes with a mount of its own.
    fn under(&self) -> Under {
        let argv =
            ["unshare", "--mount", "--propagation", propagation(), "sh", "-c", "mount -t tmpfs none /dev/shm && exec \"$@\"", "sh", "env"];
        let settings = [
            format!("LD_PRELOAD={}", self.library.display()),
            format!("FAKETIME_TIMESTAMP_FILE={}", self.file.display()),
            "FAKETIME_NO_CACHE=1".to_owned(),
            "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
        ];
        Under { argv: argv.into_iter().map(str::to_owned).chain(settings).collect(), state: None }
    }
}

/// When the server stored an event, by its own clock.
async fn stored_at(js: &Context, stream: &str, sequence: u64) -> Time {
    let message = js.get_stream(stream).await.unwrap().get_raw_message(sequence).await.unwrap();
    Time::from_nanos(message.time.unix_timestamp_nanos())
}

#[tokio::test]
async fn a_clock_that_jumps_by_hours_changes_nothing_for_tasks() {
    let Some(fleet) = Fleet::start(&[("LEASE__ACK_WAIT_S", "2")]).await else { return };
    let Some(clock) = WallClock::new(&fleet.dir, "clock") else { return };
    let worker = fleet.worker_under("jumper", &clock.under(), &[("CAPACITY__SLOTS", "4")]);
    let gate = Gate::new(&fleet.dir, "jump");
    let ticks = format!("i=0; until [ -e '{}' ]; do echo tick $((++i)); sleep 0.1; done", gate.path().display());
    let long = fleet.submit(&Job::bash(ticks).timeout(600.0)).await;
    fleet.output_has(&long, "tick 1\n").await;
    clock.jump(6 * 3600);
    // Longer than two leases: they are renewed all the same.
    fleet.output_has(&long, "tick 45\n").await;
    let retried = Job::bash("[ $WINDLASS_ATTEMPT -gt 1 ]").set("/retry/max_attempts", 2);
    let retried = fleet.submit(&retried.set("/retry/on", vec!["exit_nonzero"]).set("/retry/backoff/initial_ms", 2000)).await;
    let timed = fleet.submit(&Job::bash("echo up; sleep 1000").timeout(4.0).grace(1.0)).await;
    fleet.output_has(&timed, "up").await;
    fleet.event(&retried, EventKind::TaskRetrying).await;
    clock.jump(-6 * 3600);
    let end = fleet.end(&retried).await;
    assert_eq!((end.reason, end.task.attempt), (Some(Reason::Ok), 2), "the delay is counted by a clock that does not jump");
    let end = fleet.end(&timed).await;
    let took = end.run.as_ref().unwrap().duration_ms.unwrap();
    assert_eq!(end.reason, Some(Reason::Timeout), "{:?}", end.error);
    assert!((4000..60_000).contains(&took), "{took} ms, neither hours more nor less");
    fleet.output_has(&long, "tick 90\n").await;
    gate.open();
    let end = fleet.end(&long).await;
    let took = end.run.as_ref().unwrap().duration_ms.unwrap();
    assert_eq!((end.reason, end.task.attempt), (Some(Reason::Ok), 1), "no lease and no limit of time was touched: {:?}", end.error);
    assert!((9000..600_000).contains(&took), "{took} ms");
    worker.says(&["differs from the server's"]).await;
    fleet.finish().await;
}

#[tokio::test]
async fn workers_with_wrong_clocks_agree_on_deadlines_and_delays() {
    let Some(fleet) = Fleet::start(&[]).await else { return };
    for skew in [600, -600] {
        let Some(clock) = WallClock::new(&fleet.dir, &format!("clock{skew}")) else { return };
        clock.jump(skew);
        let worker = fleet.worker_under(&format!("off{skew}"), &clock.under(), &[("CAPACITY__SLOTS", "4")]);
        worker.says(&["this machine's clock differs from the server's"]).await;
        let in_s = |seconds: i64| Time::from_micros(Time::now().as_micros() + seconds * 1_000_000);
        let early = in_s(3);
        let waits = fleet.submit(&Job::argv(["true"]).set("/not_before", early.to_string())).await;
        let ample = fleet.submit(&Job::argv(["true"]).set("/deadline", in_s(300).to_string())).await;
        let late = fleet.submit(&Job::argv(["true"]).set("/deadline", in_s(-3).to_string())).await;
        let cut = fleet.submit(&Job::bash("sleep 1000").grace(1.0).set("/deadline", in_s(5).to_string())).await;
        assert_eq!(fleet.end(&ample).await.reason, Some(Reason::Ok), "skew {skew}: there was plenty of time");
        assert_eq!(fleet.end(&late).await.reason, Some(Reason::DeadlinePassed), "skew {skew}: it was over");
        assert_eq!(fleet.end(&cut).await.reason, Some(Reason::DeadlinePassed), "skew {skew}: it must be stopped then");
        assert_eq!(fleet.end(&waits).await.reason, Some(Reason::Ok));
        let started = fleet.chain(&waits)[0].stored.sequence;
        let started = stored_at(&fleet.js, &fleet.stream("EVENTS"), started).await;
        assert!(started >= early, "skew {skew}: started at {started}, not before {early} was asked for");
        worker.signal(rustix::process::Signal::TERM);
        assert!(worker.exit(PATIENCE).await.success());
    }
    fleet.finish().await;
}
