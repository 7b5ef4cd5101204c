//! The network between worker and server fails, in each way that a network can: nothing is lost, nothing is said twice, and
//! never do two attempts of a task run at one time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use windlass::task::log_chunk::LogStream;
use windlass::task::{EventKind, Reason};

use crate::harness::job::Gate;
use crate::harness::proxy::{Cut, Direction, Flow, Proxy, Spring, Trap};
use crate::harness::records::{one_after_the_other, records, until_recorded};
use crate::harness::worker::Worker;
use crate::harness::{Fleet, Job, PATIENCE, Task, leftovers};

/// A lost answer is asked for again soon, and a dead link is noticed soon.
const QUICK: &[(&str, &str)] = &[("BUS__REQUEST_TIMEOUT_S", "1"), ("BUS__PING_INTERVAL_S", "0.5")];

/// The connection by which the worker "far" does everything but send output.
const WORK: &str = "client=\"windlass worker far\"";

/// A fleet with one worker behind a faulty link.
async fn behind_proxy(settings: &[(&str, &str)]) -> Option<(Fleet, Proxy, Arc<Worker>)> {
    let fleet = Fleet::start(&[QUICK, settings].concat()).await?;
    let proxy = Proxy::before(&fleet.server);
    let worker = fleet.worker_at("far", &proxy.url(), &[("CAPACITY__SLOTS", "2")]);
    Some((fleet, proxy, worker))
}

#[tokio::test]
async fn a_link_that_is_cut_and_mended_costs_no_attempt() {
    let Some((fleet, proxy, worker)) = behind_proxy(&[]).await else { return };
    for (times, how) in [(1, Cut::Reset), (2, Cut::Close)] {
        let gate = Gate::new(&fleet.dir, &format!("{how:?}"));
        let task = fleet.submit(&Job::bash(format!("echo before; {}; seq 1 20000; echo after", gate.wait()))).await;
        fleet.output_has(&task, "before").await;
        proxy.cut(how);
        worker.says_times(times, &["disconnected from NATS", WORK]).await;
        // The task goes on and ends while there is no link at all.
        gate.open();
        let gone = leftovers::gone(PATIENCE, || fleet.processes_of(&task.id)).await;
        assert!(gone.is_empty());
        proxy.mend();
        let end = fleet.end(&task).await;
        assert_eq!((end.reason, end.task.attempt), (Some(Reason::Ok), 1), "{how:?}: a lost connection is no lost task");
        assert!(fleet.output(&task, &end, LogStream::Stdout).await.ends_with(b"20000\nafter\n"));
    }
    fleet.finish().await;
}

#[tokio::test]
async fn a_half_open_link_is_noticed_by_pings() {
    let Some((fleet, proxy, worker)) = behind_proxy(&[]).await else { return };
    let gate = Gate::new(&fleet.dir, "half");
    let task = fleet.submit(&Job::bash(format!("echo up; {}; echo down", gate.wait()))).await;
    fleet.output_has(&task, "up").await;
    for (times, direction) in [(1, Direction::ToServer), (2, Direction::ToClient)] {
        // The connection stays open, and nothing that goes this way arrives.
        proxy.set(direction, Flow::Drop);
        worker.says_times(times, &["disconnected from NATS", WORK]).await;
        proxy.mend();
        worker.says_times(times + 1, &["connected to NATS", WORK]).await;
    }
    gate.open();
    let end = fleet.end(&task).await;
    assert_eq!((end.reason, end.task.attempt), (Some(Reason::Ok), 1));
    fleet.finish().await;
}

#[tokio::test]
async fn a_server_that_accepts_and_says_nothing_is_waited_for() {
    let Some((fleet, proxy, worker)) = behind_proxy(&[]).await else { return };
    let first = fleet.submit(&Job::argv(["true"])).await;
    fleet.end(&first).await;
    proxy.swallow();
    let known = proxy.connections();
    worker.says(&["disconnected from NATS"]).await;
    // It tries, and is accepted, and hears nothing: not for ever.
    proxy.until_connected(known).await;
    proxy.mend();
    let second = fleet.submit(&Job::argv(["true"])).await;
    assert_eq!(fleet.end(&second).await.reason, Some(Reason::Ok));
    fleet.finish().await;
}

/// The answer to one step is lost after the server has stored what it answers.
async fn answer_lost(what: &str, needles: impl Fn(&Fleet, &Task) -> Vec<String>) {
    let Some((fleet, proxy, _worker)) = behind_proxy(&[]).await else { return };
    let warm = fleet.submit(&Job::argv(["true"])).await;
    fleet.end(&warm).await;
    let job = Job::bash("echo one; echo x >> runs; echo two >&2");
    let needles = needles(&fleet, &Task { tenant: job.tenant.clone(), id: job.task_id() });
    let needles: Vec<&str> = needles.iter().map(String::as_str).collect();
    let mut trap = proxy.trap(Direction::ToServer, &needles, Spring::LoseAnswers);
    let task = fleet.submit(&job).await;
    trap.sprung().await;
    match what {
        "claim" => drop(fleet.event(&task, EventKind::TaskStarted).await),
        "chunk" => fleet.output_has(&task, "one").await,
        "terminal event" => drop(fleet.end(&task).await),
        "ack" => {
            let queued = async || fleet.queued().await.iter().map(|m| m.subject.clone()).collect::<Vec<_>>();
            let deadline = Instant::now() + PATIENCE;
            while !queued().await.is_empty() {
                assert!(Instant::now() < deadline, "the ack passed, and the message is still there");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        other => panic!("{other}"),
    }
    // Stored, and the worker does not know. Its connection breaks; what it does not know it has to find out.
    proxy.cut(Cut::Reset);
    proxy.mend();
    let end = fleet.end(&task).await;
    assert_eq!((end.reason, end.task.attempt), (Some(Reason::Ok), 1), "{what}");
    assert_eq!(fleet.output(&task, &end, LogStream::Stdout).await, b"one\n");
    // Another task through the same worker: what it had to find out, it has found out.
    let next = fleet.submit(&Job::argv(["true"])).await;
    fleet.end(&next).await;
    let kinds: Vec<_> = fleet.chain(&task).iter().map(|l| l.event.event).collect();
    assert_eq!(kinds, [EventKind::TaskStarted, EventKind::TaskCompleted], "{what}: one of each");
    // The checker: as many chunks as the manifest says, none twice, and no message left.
    fleet.finish().await;
}

#[tokio::test]
async fn the_answer_to_a_stored_claim_is_lost() {
    answer_lost("claim", |fleet, task| vec![format!("{}.events.{}.{}.task_started", fleet.prefix, task.tenant, task.id)]).await;
}

#[tokio::test]
async fn the_answer_to_a_stored_chunk_is_lost() {
    answer_lost("chunk", |fleet, task| vec![format!("{}.logs.{}.{}.1.stdout", fleet.prefix, task.tenant, task.id)]).await;
}

#[tokio::test]
async fn the_answer_to_a_stored_end_is_lost() {
    answer_lost("terminal event", |fleet, task| vec![format!("{}.events.{}.{}.task_completed", fleet.prefix, task.tenant, task.id)]).await;
}

#[tokio::test]
async fn the_answer_to_an_ack_is_lost() {
    // The second message of the queue; the first one warmed up.
    answer_lost("ack", |fleet, _| vec![format!("$JS.ACK.{}.cpu_short-normal.1.2.", fleet.stream("TASKS")), "+ACK".into()]).await;
}

#[tokio::test]
async fn a_connection_that_breaks_in_the_middle_of_a_line_or_a_payload_breaks_nothing_else() {
    let Some((fleet, proxy, _worker)) = behind_proxy(&[]).await else { return };
    let warm = fleet.submit(&Job::argv(["true"])).await;
    fleet.end(&warm).await;
    let (tasks, inbox) = (fleet.stream("TASKS"), "_INBOX.");
    for (direction, subject, bytes) in [
        (Direction::ToServer, ".task_started", 9),
        (Direction::ToServer, ".task_started", 600),
        (Direction::ToServer, ".1.stdout", 30),
        (Direction::ToServer, ".1.stdout", 20_000),
        (Direction::ToServer, ".task_completed", 1500),
        (Direction::ToServer, "+ACK", 40),
        (Direction::ToClient, tasks.as_str(), 25),
        (Direction::ToClient, inbox, 12),
    ] {
        let mut trap = proxy.trap(direction, &[subject], Spring::CutAfter(bytes));
        let task = fleet.submit(&Job::bash("seq 1 9000")).await;
        trap.sprung().await;
        let end = fleet.end(&task).await;
        assert_eq!((end.reason, end.task.attempt), (Some(Reason::Ok), 1), "cut {bytes} bytes into {subject}");
    }
    fleet.finish().await;
}

#[tokio::test]
async fn a_slow_link_costs_time_and_neither_memory_nor_the_lease() {
    // The window alone takes twice as long as an answer may: what is sent must be what the link carries, and output must not
    // stand in the way of renewals.
    let settings = [("LEASE__ACK_WAIT_S", "4"), ("BUS__REQUEST_TIMEOUT_S", "0.5")];
    let Some((fleet, proxy, worker)) = behind_proxy(&settings).await else { return };
    let gate = Gate::new(&fleet.dir, "slow");
    let script = format!("echo up; {}; yes 0123456789abcdef | head -c 2000000", gate.wait());
    let task = fleet.submit(&Job::bash(script)).await;
    fleet.output_has(&task, "up").await;
    let before = worker.resident_kib();
    proxy.delay(Duration::from_millis(20));
    proxy.throttle(Some(260_000));
    let sent = proxy.passed(Direction::ToServer);
    gate.open();
    let watched = async {
        let mut peak = 0;
        loop {
            peak = peak.max(worker.resident_kib());
            if fleet.chain(&task).iter().any(|l| l.event.event.is_terminal()) {
                return peak;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let peak = tokio::time::timeout(PATIENCE, watched).await.expect("the task ends");
    let end = fleet.end(&task).await;
    let sent = proxy.passed(Direction::ToServer) - sent;
    println!("slow link: {before} KiB before, {peak} KiB at most; {sent} bytes sent for 2000000 of output");
    assert_eq!((end.reason, end.task.attempt), (Some(Reason::Ok), 1), "the lease was lost behind its own output");
    assert_eq!(end.logs.unwrap().stdout.bytes, 2_000_003);
    // Window and what is ready beside it: (16 + 4 + 10) chunks of 64 KiB, each once as output and once as JSON, and what the
    // allocator keeps: 8 MiB. The output itself, held in memory, would take more than its 2 MB twice, and grow with it.
    assert!(peak < before + (8 << 10), "2 MB of output on a slow link grew the worker from {before} KiB to {peak} KiB");
    assert!(sent < 2_000_000 * 3 / 2, "{sent} bytes were sent for 2000000 of output: chunks were sent again while they were on their way");
    proxy.mend();
    fleet.finish().await;
}

/// The worker's side of a partition that lasts longer than its lease.
struct Partition {
    fleet: Fleet,
    proxy: Proxy,
    first: Arc<Worker>,
    task: Task,
    gate: Gate,
    said: Vec<Trap>,
}

impl Partition {
    /// A task runs at a worker that is about to be lost; `preamble` is shell text that its script begins with.
    async fn prepare(preamble: &str) -> Option<Self> {
        let (fleet, proxy, first) = behind_proxy(&[("LEASE__ACK_WAIT_S", "2"), ("CLASSES__CPU_SHORT__MAX_ATTEMPTS", "20")]).await?;
        let gate = Gate::new(&fleet.dir, "partition");
        let job = Job::bash(format!("{preamble} {}", records(&fleet.dir, &gate))).grace(60.0);
        let task = fleet.submit(&job).await;
        fleet.output_has(&task, "up").await;
        Some(Self { fleet, proxy, first, task, gate, said: Vec::new() })
    }

    /// From now on every word of the first worker about the task, as it comes by the link: an event, an ack, a nak.
    fn listen(&mut self) {
        let ack = format!("$JS.ACK.{}.cpu_short-normal.1.1.", self.fleet.stream("TASKS"));
        let event = format!("{}.events.{}.{}.", self.fleet.prefix, self.task.tenant, self.task.id);
        for needles in [vec![ack.as_str(), "+ACK"], vec![&ack, "-NAK"], vec![&ack, "+TERM"], vec!["PUB ", &event]] {
            self.said.push(self.proxy.trap(Direction::ToServer, &needles, Spring::Tell));
        }
    }

    /// Waits until a second worker runs the task, lets `heal` bring the first one back, and proves what must be so.
    async fn taken_over(self, heal: impl FnOnce(&Self)) {
        let Self { fleet, task, .. } = &self;
        fleet.worker_at("near", &fleet.server.url(), &[("CAPACITY__SLOTS", "1")]);
        fleet.attempt(task, 2).await;
        until_recorded(&fleet.dir, 2).await;
        heal(&self);
        // The second worker's only slot is taken: the first one is back, well, and takes new work.
        let probe = fleet.submit(&Job::argv(["true"])).await;
        assert_eq!(fleet.end(&probe).await.worker.worker_id.as_str(), "far");
        self.gate.open();
        let end = fleet.end(task).await;
        assert_eq!((end.reason, end.task.attempt, end.worker.worker_id.as_str()), (Some(Reason::Ok), 2, "near"));
        one_after_the_other(&fleet.dir);
        let kinds: Vec<_> = fleet.chain(task).iter().map(|l| (l.event.event, l.event.task.attempt)).collect();
        let (started, completed) = (EventKind::TaskStarted, EventKind::TaskCompleted);
        assert_eq!(kinds, [(started, 1), (started, 2), (completed, 2)], "the worker that was cut off wrote a word");
        assert!(!self.said.iter().any(Trap::is_sprung), "the worker that was cut off sent an event, an ack or a nak");
        self.fleet.finish().await;
    }
}

#[tokio::test]
async fn a_partition_longer_than_the_lease_stops_the_first_attempt_before_the_second_starts() {
    let Some(mut partition) = Partition::prepare("").await else { return };
    partition.proxy.partition();
    partition.listen();
    partition.taken_over(|p| p.proxy.mend()).await;
}

#[tokio::test]
async fn so_does_a_task_that_ignores_term() {
    let Some(mut partition) = Partition::prepare("trap '' TERM;").await else { return };
    partition.proxy.partition();
    partition.listen();
    partition.taken_over(|p| p.proxy.mend()).await;
}

#[tokio::test]
async fn so_does_a_worker_that_stands_still() {
    let Some(mut partition) = Partition::prepare("trap '' TERM;").await else { return };
    partition.first.signal(Signal::STOP);
    partition.listen();
    partition.taken_over(|p| p.first.signal(Signal::CONT)).await;
}

#[tokio::test]
async fn an_end_that_comes_too_late_is_refused() {
    let Some((fleet, proxy, first)) = behind_proxy(&[("LEASE__ACK_WAIT_S", "2")]).await else { return };
    let (early, late) = (Gate::new(&fleet.dir, "early"), Gate::new(&fleet.dir, "late"));
    // Without output: the end is the first thing that it has to say.
    let script = format!("if [ $WINDLASS_ATTEMPT = 1 ]; then {}; else {}; fi", early.wait(), late.wait());
    let task = fleet.submit(&Job::bash(script)).await;
    // It knows that it has it.
    first.says(&["started", &format!("task_id={}", task.id)]).await;
    let end = format!("{}.events.{}.{}.task_completed", fleet.prefix, task.tenant, task.id);
    let ack = format!("$JS.ACK.{}.cpu_short-normal.1.1.", fleet.stream("TASKS"));
    proxy.partition();
    early.open();
    first.says(&["ended", "reason=ok", &format!("task_id={}", task.id)]).await;
    let mut said = proxy.trap(Direction::ToServer, &[&end], Spring::Tell);
    let acked = proxy.trap(Direction::ToServer, &[&ack, "+ACK"], Spring::Tell);
    fleet.worker_at("near", &fleet.server.url(), &[]);
    fleet.attempt(&task, 2).await;
    proxy.mend();
    // It is said, too late; the server refuses it.
    said.sprung().await;
    let probe = fleet.submit(&Job::argv(["true"])).await;
    fleet.end(&probe).await;
    late.open();
    let end = fleet.end(&task).await;
    assert_eq!((end.reason, end.task.attempt, end.worker.worker_id.as_str()), (Some(Reason::Ok), 2, "near"));
    assert_eq!(fleet.chain(&task).len(), 3, "two claims and one end");
    assert!(!acked.is_sprung(), "acked by the worker whose end was refused");
    fleet.finish().await;
}
