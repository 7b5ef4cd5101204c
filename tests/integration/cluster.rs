//! Three replicas: leaders change, nodes die, one is cut off, and every task ends once with all its output.

use std::sync::Arc;

use windlass::task::Reason;
use windlass::task::log_chunk::LogStream;

use crate::harness::cluster::Cluster;
use crate::harness::job::Gate;
use crate::harness::proxy::{Cut, Direction, Proxy, Spring};
use crate::harness::records::{one_after_the_other, records, until_recorded};
use crate::harness::{Fleet, Job};

const SETTINGS: &[(&str, &str)] = &[
    ("STREAMS__REPLICAS", "3"),
    ("STREAMS__LOGS_MAX", "64MiB"),
    ("LEASE__ACK_WAIT_S", "8"),
    ("BUS__REQUEST_TIMEOUT_S", "1"),
    ("BUS__PING_INTERVAL_S", "0.5"),
    ("CLASSES__CPU_SHORT__MAX_ATTEMPTS", "20"),
    ("CAPACITY__SLOTS", "3"),
];

/// A cluster, and a fleet whose orchestrator talks to the first node.
async fn cluster() -> Option<(Cluster, Fleet)> {
    let cluster = Cluster::start().await?;
    let fleet = Fleet::on(Arc::clone(&cluster.nodes[0]), SETTINGS).await;
    for kind in ["TASKS", "EVENTS", "LOGS"] {
        let stream = fleet.js.get_stream(fleet.stream(kind)).await.unwrap();
        assert_eq!(stream.cached_info().config.num_replicas, 3);
    }
    Some((cluster, fleet))
}

fn job() -> Job {
    Job::bash("seq 1 8000; sleep 0.2; seq 8001 16000")
}

#[tokio::test]
async fn leaders_that_change_under_way_lose_nothing_and_double_nothing() {
    let Some((cluster, fleet)) = cluster().await else { return };
    let all = cluster.nodes.iter().map(|n| n.url()).collect::<Vec<_>>().join(",");
    fleet.worker_at("a", &all, &[]);
    fleet.worker_at("b", &cluster.nodes[2].url(), &[]);
    let mut tasks = Vec::new();
    for _ in 0..12 {
        tasks.push(fleet.submit(&job()).await);
    }
    for (n, kind) in ["EVENTS", "LOGS", "TASKS", "EVENTS", "LOGS", "TASKS"].into_iter().enumerate() {
        fleet.attempt(&tasks[n * 2], 1).await;
        cluster.step_down(&fleet, &fleet.stream(kind)).await;
    }
    for task in &tasks {
        let end = fleet.end(task).await;
        assert_eq!((end.reason, end.task.attempt), (Some(Reason::Ok), 1), "{:?}", end.error);
        assert!(fleet.output(task, &end, LogStream::Stdout).await.ends_with(b"15999\n16000\n"));
    }
    fleet.finish().await;
}

#[tokio::test]
async fn a_leader_that_is_killed_and_comes_back_loses_nothing() {
    let Some((cluster, fleet)) = cluster().await else { return };
    // The orchestrator talks to the first node: another one must lead what is going to die.
    let events = fleet.stream("EVENTS");
    let mut leader = cluster.leader(&fleet, &events, None).await;
    while leader == "n1" {
        cluster.step_down(&fleet, &events).await;
        leader = cluster.leader(&fleet, &events, None).await;
    }
    // One worker at the node that dies, and nowhere else to go; one that may go anywhere.
    let all = cluster.nodes.iter().map(|n| n.url()).collect::<Vec<_>>().join(",");
    let there = fleet.worker_at("there", &cluster.node(&leader).url(), &[]);
    fleet.worker_at("anywhere", &all, &[]);
    let mut tasks = Vec::new();
    for _ in 0..10 {
        tasks.push(fleet.submit(&job()).await);
    }
    fleet.attempt(&tasks[2], 1).await;
    cluster.node(&leader).kill9();
    there.says(&["disconnected from NATS"]).await;
    cluster.leader(&fleet, &events, Some(&leader)).await;
    fleet.attempt(&tasks[6], 1).await;
    cluster.node(&leader).restart();
    for task in &tasks {
        let end = fleet.end(task).await;
        assert_eq!(end.reason, Some(Reason::Ok), "{:?}", end.error);
        assert!(fleet.output(task, &end, LogStream::Stdout).await.ends_with(b"15999\n16000\n"));
    }
    fleet.finish().await;
}

/// A worker at a node that is alone hears from nobody who counts; the majority goes on, and hands its task to another.
#[tokio::test]
async fn a_worker_at_a_node_that_is_cut_off_stops_before_another_starts_its_task() {
    let Some((cluster, fleet)) = cluster().await else { return };
    let one = [("LEASE__ACK_WAIT_S", "8"), ("CAPACITY__SLOTS", "1")];
    let alone = fleet.worker_at("alone", &cluster.nodes[2].url(), &one);
    let gate = Gate::new(&fleet.dir, "alone");
    let task = fleet.submit(&Job::bash(records(&fleet.dir, &gate)).grace(60.0)).await;
    fleet.output_has(&task, "up").await;
    cluster.third.partition();
    fleet.worker_at("majority", &cluster.nodes[1].url(), &one);
    alone.says(&["task lost", &task.id]).await;
    fleet.attempt(&task, 2).await;
    until_recorded(&fleet.dir, 2).await;
    cluster.third.cut(Cut::Reset);
    cluster.third.mend();
    let probe = fleet.submit(&Job::argv(["true"])).await;
    assert_eq!(fleet.end(&probe).await.reason, Some(Reason::Ok));
    gate.open();
    let end = fleet.end(&task).await;
    // A node that comes back may make the others elect their leader anew, which takes longer than this short lease: then
    // there is one attempt more, and it has to wait for its turn like any other.
    assert_eq!(end.reason, Some(Reason::Ok), "{:?}", end.error);
    assert!(end.task.attempt >= 2);
    one_after_the_other(&fleet.dir);
    let of_first = fleet.chain(&task).iter().filter(|l| l.event.task.attempt == 1).count();
    assert_eq!(of_first, 1, "the worker that was cut off wrote a word about the attempt that it lost");
    fleet.finish().await;
}

/// A follower that lags answers a direct get with what was true once; the chain's head is asked of the leader.
#[tokio::test]
async fn the_head_of_a_chain_is_read_from_the_leader() {
    let Some((cluster, fleet)) = cluster().await else { return };
    let proxy = Proxy::before(&cluster.nodes[1]);
    fleet.worker_at("reader", &proxy.url(), &[]);
    let direct = proxy.trap(Direction::ToServer, &["$JS.API.DIRECT.GET"], Spring::Tell);
    let head = proxy.trap(Direction::ToServer, &["$JS.API.STREAM.MSG.GET"], Spring::Tell);
    // The streams allow it, for lists.
    let mut tasks = Vec::new();
    for _ in 0..6 {
        tasks.push(fleet.submit(&Job::bash("echo one; sleep 2; echo two")).await);
    }
    for task in &tasks {
        assert_eq!(fleet.end(task).await.reason, Some(Reason::Ok));
    }
    assert!(head.is_sprung(), "nothing was read");
    assert!(!direct.is_sprung(), "a direct get may be answered by a follower");
    fleet.finish().await;
}
