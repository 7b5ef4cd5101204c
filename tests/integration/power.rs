//! The server's disk loses power: an ext4 image is cut off without its journal being flushed, the server killed, the image
//! mounted again. What the server has not synced by then is gone, as in a machine that falls off the grid.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use async_nats::jetstream::{self, Context};
use windlass::task::{EventKind, Reason};

use crate::harness::disk::{Disk, Shape};
use crate::harness::feed::{Stored, read_all};
use crate::harness::job::Gate;
use crate::harness::server::{Options, Server};
use crate::harness::{Fleet, Job, Orchestrator, PATIENCE, Task, checker};

/// Short leases, and no long wait for answers that died with the server.
const SETTINGS: &[(&str, &str)] = &[
    ("LEASE__ACK_WAIT_S", "2"),
    ("CLASSES__CPU_SHORT__MAX_ATTEMPTS", "20"),
    ("SWEEPER__INTERVAL_S", "1"),
    ("BUS__REQUEST_TIMEOUT_S", "1"),
];

const SHAPE: Shape = Shape { mebibytes: 192, inodes: None, options: "loop,nosuid,nodev" };

/// A publisher of numbered messages that keeps the list of what the server confirmed.
struct Witness {
    acked: Arc<Mutex<BTreeMap<u64, u64>>>,
    publishing: tokio::task::JoinHandle<()>,
}

impl Witness {
    async fn start(js: &Context, prefix: &str) -> Self {
        let (name, subject) = (format!("{}_WITNESS", prefix.to_uppercase()), format!("{prefix}.witness"));
        let config = jetstream::stream::Config { name, subjects: vec![subject.clone()], ..Default::default() };
        js.create_stream(config).await.expect("a stream for the witness");
        let acked: Arc<Mutex<BTreeMap<u64, u64>>> = Arc::default();
        let (list, js) = (Arc::clone(&acked), js.clone());
        let publishing = tokio::spawn(async move {
            for number in 0_u64.. {
                let Ok(sent) = js.publish(subject.clone(), number.to_string().into()).await else { continue };
                if let Ok(ack) = sent.await {
                    list.lock().expect("not poisoned").insert(ack.sequence, number);
                }
                // Beside the workers' messages, not instead of them.
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        });
        Self { acked, publishing }
    }

    fn acked(&self) -> BTreeMap<u64, u64> {
        self.acked.lock().expect("not poisoned").clone()
    }

    /// How many of these confirmed messages are not there.
    async fn lost(acked: &BTreeMap<u64, u64>, js: &Context, prefix: &str) -> usize {
        let stored = read_all(js, &format!("{}_WITNESS", prefix.to_uppercase()), &format!("{prefix}.witness")).await;
        let there: BTreeMap<u64, String> = stored.iter().map(|s| (s.sequence, String::from_utf8_lossy(&s.body).into_owned())).collect();
        acked.iter().filter(|(sequence, number)| there.get(sequence) != Some(&number.to_string())).count()
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.publishing.abort();
    }
}

/// The server's machine goes dark and comes back.
fn power_cut(disk: &Disk, server: &Server) {
    disk.cut_power();
    server.kill9();
    disk.power_up();
    server.restart();
}

fn mixed(n: u32) -> Job {
    match n % 4 {
        0 => Job::bash(format!("seq 1 {}; sleep 0.2", n * 200)),
        1 => Job::bash("for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.1; done"),
        2 => Job::bash("echo no >&2; exit 3"),
        _ => Job::argv(["true"]),
    }
}

/// All events of these tasks that a reader has got by now.
fn seen(bus: &Orchestrator, tasks: &[Task]) -> Vec<Stored> {
    tasks.iter().flat_map(|task| bus.chain(task)).map(|link| link.stored).collect()
}

/// How many of these are not there any more as they were.
async fn missing(bus: &Orchestrator, events: &[Stored]) -> usize {
    let there = read_all(&bus.js, &bus.stream("EVENTS"), &format!("{}.events.>", bus.prefix)).await;
    let there: BTreeMap<u64, &Stored> = there.iter().map(|s| (s.sequence, s)).collect();
    let same = |s: &Stored| there.get(&s.sequence).is_some_and(|t| t.subject == s.subject && t.body == s.body);
    events.iter().filter(|s| !same(s)).count()
}

#[tokio::test]
async fn with_sync_always_nothing_confirmed_is_lost_in_a_power_cut() {
    let Some(disk) = Disk::make(SHAPE) else { return };
    let Some(server) = Server::on_disk(Options { sync_always: true, ..Options::default() }, &disk) else { return };
    let fleet = Fleet::on(server, SETTINGS).await;
    let witness = Witness::start(&fleet.js, &fleet.prefix).await;
    for _ in 0..2 {
        fleet.worker(&[("CAPACITY__SLOTS", "3")]);
    }
    let mut tasks = Vec::new();
    for cut in 0..2 {
        for n in 0..16 {
            tasks.push(fleet.submit(&mixed(n)).await);
        }
        // In the middle of the work: a third is done, the rest runs or waits.
        fleet.end(&tasks[cut * 16 + 5]).await;
        let (acked, events) = (witness.acked(), seen(&fleet, &tasks));
        power_cut(&disk, &fleet.server);
        let lost = (Witness::lost(&acked, &fleet.js, &fleet.prefix).await, missing(&fleet, &events).await);
        println!("power cut {cut}, sync_interval always: {lost:?} lost of {} publishes and {} events", acked.len(), events.len());
        assert!(acked.len() > 20 && events.len() > 5, "nothing to lose proves nothing");
        assert_eq!(lost, (0, 0), "confirmed, and lost");
    }
    for (n, task) in tasks.iter().enumerate() {
        let expected = if n % 4 == 2 { Reason::ExitNonzero } else { Reason::Ok };
        assert_eq!(fleet.end(task).await.reason, Some(expected));
    }
    drop(witness);
    // Every assignment that was confirmed has its one end, every manifest its chunks.
    fleet.finish().await;
}

#[tokio::test]
async fn with_the_default_sync_the_loss_is_counted_and_what_is_left_is_consistent() {
    let Some(disk) = Disk::make(SHAPE) else { return };
    let Some(server) = Server::on_disk(Options::default(), &disk) else { return };
    let fleet = Fleet::on(server, SETTINGS).await;
    let witness = Witness::start(&fleet.js, &fleet.prefix).await;
    for _ in 0..2 {
        fleet.worker(&[("CAPACITY__SLOTS", "3")]);
    }
    for n in 0..8 {
        let task = fleet.submit(&mixed(n)).await;
        fleet.end(&task).await;
    }
    disk.sync();
    let mut tasks = Vec::new();
    for n in 0..24 {
        tasks.push(fleet.submit(&mixed(n)).await);
    }
    fleet.end(&tasks[3]).await;
    // Some chains and acks are cut in their middle, some assignments come too late for the disk.
    disk.sync();
    for n in 24..28 {
        tasks.push(fleet.submit(&mixed(n)).await);
    }
    fleet.end(&tasks[12]).await;
    let (acked, events) = (witness.acked(), seen(&fleet, &tasks));
    power_cut(&disk, &fleet.server);
    drop(witness);
    // Sequences are given out again: a reader has to begin anew.
    let bus = Orchestrator::connect(&fleet.server.url(), &fleet.prefix).await;
    let lost = (Witness::lost(&acked, &bus.js, &bus.prefix).await, missing(&bus, &events).await);
    assert!(lost.0 > 0, "a power cut that loses nothing proves nothing");
    let gone = settled(&bus, &tasks).await;
    let verdicts = checker::examine(&bus, &tasks).await;
    let mut unverified = 0;
    for (task, verdict) in tasks.iter().zip(&verdicts) {
        assert!(gone.contains(task) || verdict.history.is_ok(), "task {}: {:?}", task.id, verdict.history);
        unverified += usize::from(!gone.contains(task) && verdict.output.is_err());
    }
    println!(
        "power cut, sync_interval default: {} of {} publishes, {} of {} events and {} of {} assignments lost, each confirmed; \
         {unverified} manifests do not verify",
        lost.0,
        acked.len(),
        lost.1,
        events.len(),
        gone.len(),
        tasks.len()
    );
    // Nobody is stuck with a task that the server does not know: all slots serve, and the workers can drain.
    for n in 0..12 {
        bus.end(&bus.submit(&mixed(n)).await).await;
    }
    checker::check(&bus).await;
    fleet.finish_unchecked().await;
}

/// Waits until each task has ended or is known to nobody; returns those that are lost.
async fn settled(bus: &Orchestrator, tasks: &[Task]) -> Vec<Task> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let queued = bus.queued().await;
        let verdicts = checker::examine(bus, tasks).await;
        let (mut open, mut lost) = (0, Vec::new());
        for (task, verdict) in tasks.iter().zip(&verdicts) {
            let waits = queued.iter().any(|s| s.subject.ends_with(&format!(".{}", task.id)));
            match verdict.chain.last() {
                Some(link) if link.event.event.is_terminal() => {}
                None if !waits => lost.push(task.clone()),
                Some(_) | None => open += 1,
            }
        }
        if open == 0 {
            return lost;
        }
        assert!(Instant::now() < deadline, "{open} tasks have neither ended nor vanished");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_claim_that_the_server_forgot_is_not_finished() {
    let Some(disk) = Disk::make(SHAPE) else { return };
    let Some(server) = Server::on_disk(Options::default(), &disk) else { return };
    let fleet = Fleet::on(server, SETTINGS).await;
    let gate = Gate::new(&fleet.dir, "dark");
    let runs = fleet.dir.join("runs");
    // The second run takes longer than a worker waits between two tries of an append.
    let script = format!("echo x >> '{0}'; [ $(wc -l < '{0}') = 1 ] || sleep 4; {1}", runs.display(), gate.wait());
    let task = fleet.submit(&Job::bash(script)).await;
    disk.sync();
    fleet.worker(&[("CAPACITY__SLOTS", "2")]);
    fleet.running(&task).await;
    let forgotten = fleet.event(&task, EventKind::TaskStarted).await;
    let sequence = fleet.chain(&task)[0].stored.sequence;
    disk.cut_power();
    fleet.server.kill9();
    // The task ends while the server is away: its end waits to be appended after a claim that will not be there.
    gate.open();
    disk.power_up();
    fleet.server.restart();
    let bus = Orchestrator::connect(&fleet.server.url(), &fleet.prefix).await;
    bus.count(&task);
    let end = bus.end(&task).await;
    let chain = bus.chain(&task);
    assert_eq!(chain[0].stored.sequence, sequence, "the sequence was given out again: else this proves nothing");
    assert_ne!(chain[0].event.nonce, forgotten.nonce, "the claim was not lost: this proves nothing");
    assert_ne!(end.nonce, forgotten.nonce, "the forgotten attempt has finished another one's");
    assert_eq!((end.reason, std::fs::read_to_string(&runs).unwrap().as_str()), (Some(Reason::Ok), "x\nx\n"));
    checker::check(&bus).await;
    fleet.finish_unchecked().await;
}

#[tokio::test]
async fn a_worker_whose_host_loses_power_leaves_nothing_that_misleads() {
    let Some(disk) = Disk::make(Shape::default()) else { return };
    let Some(fleet) = Fleet::start(&[("LEASE__ACK_WAIT_S", "2")]).await else { return };
    let worker = fleet.worker_under("host", &disk.under(), &[("CAPACITY__SLOTS", "2")]);
    let gate = Gate::new(&fleet.dir, "host");
    let task = fleet.submit(&Job::bash(format!("echo attempt $WINDLASS_ATTEMPT; {}; seq 1 5000", gate.wait()))).await;
    fleet.output_has(&task, "attempt 1\n").await;
    // The directories of the attempt reach the disk, an end that was written right before the cut only by name.
    let instance = std::fs::read_dir(disk.seen().join("state")).unwrap().flatten().next().unwrap().path();
    std::fs::write(instance.join("commit/acme.gone.1.json"), "").unwrap();
    disk.sync();
    disk.cut_power();
    worker.kill9().await;
    let left = crate::harness::leftovers::gone(PATIENCE, || fleet.processes()).await;
    assert!(left.is_empty(), "{left:?}");
    disk.power_up();
    assert!(disk.seen().join("state").read_dir().unwrap().next().is_some(), "the dead one left its directory");
    fleet.worker_under("host", &disk.under(), &[("CAPACITY__SLOTS", "2")]);
    gate.open();
    let end = fleet.end(&task).await;
    assert_eq!((end.reason, end.task.attempt), (Some(Reason::Ok), 2), "{:?}", end.error);
    // finish() finds the state directory empty only if the second life removed what the first one left.
    fleet.finish().await;
}
