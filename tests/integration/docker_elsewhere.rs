//! An engine whose containers are not below the worker's cgroups, while limits are promised: usage, out of memory and limits from the
//! containers' own cgroups. The rest of the contract is in the table ([`super::docker_table`]).

use std::sync::Arc;

use serde_json::json;
use windlass::task::Reason;

use crate::harness::docker::IMAGE;
use crate::harness::docker::relay::{Lie, Relay};
use crate::harness::leftovers::gone;
use crate::harness::proxy::Proxy;
use crate::harness::worker::Worker;
use crate::harness::{Engine, Fleet, Job, PATIENCE, Server};

/// A fleet with such an engine, which lies, and a worker that says which way it goes.
async fn lied_to(asked: Lie, answered: Lie) -> Option<(Fleet, Relay, Arc<Worker>)> {
    let engine = Engine::elsewhere()?;
    let fleet = Fleet::with_engine(Server::shared()?, Arc::clone(&engine), &[]).await;
    let relay = Relay::lying(&engine, asked, answered);
    let worker = fleet.worker(&[("DOCKER__HOST", &relay.host()), ("LOG__LEVEL", "windlass=debug"), ("CAPACITY__SLOTS", "4")]);
    Some((fleet, relay, worker))
}

#[tokio::test]
async fn out_of_memory_is_seen_at_the_containers_own_cgroup() {
    let silent = Lie { truth: "\"OOMKilled\":true", said: "\"OOMKilled\":null" };
    let Some((fleet, _relay, worker)) = lied_to(Lie::NONE, silent).await else { return };
    // At the very end, and with the first process itself: the engine removes the cgroup as soon as it has noticed. Where that is faster
    // than the look at the end, on a machine with much to do, nobody knows; so it is tried a few times.
    for (script, reason) in
        [("tail /dev/zero; exit 0", Reason::Ok), ("tail /dev/zero; exit 5", Reason::OomKilled), ("exec tail /dev/zero", Reason::OomKilled)]
    {
        let mut missed = Vec::new();
        loop {
            let task = fleet.submit(&Job::container_script(script).memory("32MiB")).await;
            let end = fleet.end(&task).await;
            let usage = end.usage.unwrap();
            assert!(usage.memory_peak_bytes <= 32 << 20 && usage.cpu_user_us + usage.cpu_system_us > 0, "{usage:?}");
            if usage.oom_kills >= 1 {
                assert_eq!(end.reason, Some(reason), "{script}: {usage:?} {:?}", end.error);
                assert!(usage.memory_peak_bytes > 16 << 20, "{usage:?}");
                break;
            }
            missed.push(usage);
            assert!(missed.len() < 5, "{script}: {missed:?}");
        }
    }
    worker.says(&["from now on its own limits hold"]).await;
    worker.says(&["read from the container's own cgroup"]).await;
    fleet.finish().await;
}

#[tokio::test]
async fn what_is_used_is_measured_to_the_end() {
    let Some((fleet, _relay, _worker)) = lied_to(Lie::NONE, Lie::NONE).await else { return };
    let script = "for i in 1 2 3 4 5 6; do sleep 0.1 & done; wait; i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done";
    let task = fleet.submit(&Job::container_script(script).set("/execution/resources/cpus", 0.2)).await;
    let end = fleet.end(&task).await;
    let usage = end.usage.unwrap();
    assert_eq!(end.reason, Some(Reason::Ok), "{:?}", end.error);
    assert!(usage.cpu_user_us > 10_000 && usage.throttled_us > 0, "{usage:?}");
    assert!((6..=10).contains(&usage.pids_peak), "{usage:?}");
    fleet.finish().await;
}

/// The engine is asked for another number than it then says it was: only the kernel knows better.
#[tokio::test]
async fn a_container_without_the_limits_that_were_promised_is_killed() {
    let asked = Lie { truth: "\"PidsLimit\":16,", said: "\"PidsLimit\":99," };
    let answered = Lie { truth: asked.said, said: asked.truth };
    let Some((fleet, _relay, _worker)) = lied_to(asked, answered).await else { return };
    let job = |pids: u64| Job::container_script("sleep 1000").set("/execution/resources/pids", pids).set("/retry/max_attempts", 1);
    let task = fleet.submit(&job(16)).await;
    let end = fleet.end(&task).await;
    assert_eq!(end.reason, Some(Reason::IsolationUnavailable), "{:?}", end.error);
    let error = end.error.unwrap();
    assert!(error.contains("pids.max") && error.contains("99"), "{error}");
    assert_eq!(fleet.processes_of(&task.id), []);
    // Others have theirs.
    let task = fleet.submit(&job(17).timeout(1.0).grace(0.0)).await;
    assert_eq!(fleet.end(&task).await.reason, Some(Reason::Timeout));
    fleet.finish().await;
}

/// As an engine does that cannot set a limit and only warns of it.
#[tokio::test]
async fn a_container_whose_engine_drops_a_limit_does_not_start() {
    let dropped = Lie { truth: "\"PidsLimit\":16,", said: "\"PidsLimit\":-1," };
    let Some((fleet, _relay, worker)) = lied_to(dropped, Lie::NONE).await else { return };
    let job = |pids: u64| Job::container_script("sleep 1000").set("/execution/resources/pids", pids).set("/retry/max_attempts", 1);
    // Where its containers go shows with the first one.
    let first = fleet.submit(&job(17).timeout(1.0).grace(0.0)).await;
    assert_eq!(fleet.end(&first).await.reason, Some(Reason::Timeout));
    worker.says(&["from now on its own limits hold"]).await;
    let task = fleet.submit(&job(16)).await;
    let end = fleet.end(&task).await;
    assert_eq!(end.reason, Some(Reason::IsolationUnavailable), "{:?}", end.error);
    assert!(end.error.unwrap().contains("limit of pids"));
    fleet.finish().await;
}

/// Nobody else watches it: the worker has the engine kill it.
#[tokio::test]
async fn a_lease_that_cannot_be_renewed_ends_the_container() {
    let Some(engine) = Engine::elsewhere() else { return };
    let Some(server) = Server::shared() else { return };
    let fleet = Fleet::with_engine(Arc::clone(&server), engine, &[("LEASE__ACK_WAIT_S", "2")]).await;
    let proxy = Proxy::before(&server);
    let far = fleet.worker_at("far", &proxy.url(), &[("CAPACITY__SLOTS", "1")]);
    let job = Job::container_script("trap '' TERM; echo up; [ $WINDLASS_ATTEMPT -gt 1 ] || while :; do sleep 0.1; done");
    let task = fleet.submit(&job).await;
    fleet.output_has(&task, "up").await;
    far.says(&["from now on its own limits hold"]).await;
    assert_ne!(fleet.processes_of(&task.id), []);
    proxy.partition();
    let left = gone(PATIENCE, || fleet.processes_of(&task.id)).await;
    assert!(left.is_empty(), "{left:?}");
    fleet.worker_at("near", &server.url(), &[]);
    proxy.mend();
    let end = fleet.end(&task).await;
    // Where a busy machine loses the next one's lease as well, it is not the second.
    assert!(end.reason == Some(Reason::Ok) && end.task.attempt > 1, "{:?} {:?}", end.reason, end.error);
    fleet.finish().await;
}

/// A service's limits are the kernel's business as well.
#[tokio::test]
async fn a_service_without_the_limits_that_were_promised_does_not_stay() {
    // Those of its class.
    let asked = Lie { truth: "\"PidsLimit\":256,", said: "\"PidsLimit\":999," };
    let answered = Lie { truth: asked.said, said: asked.truth };
    let Some((fleet, _relay, worker)) = lied_to(asked, answered).await else { return };
    let service = json!([{"name": "back", "image": IMAGE, "command": ["sleep", "1000"]}]);
    let job = Job::container(["true"]).set("/execution/resources/pids", 17).set("/services", service).set("/retry/max_attempts", 1);
    let refused = async |job: &Job| {
        let end = fleet.end(&fleet.submit(job).await).await;
        let error = end.error.unwrap_or_default();
        assert_eq!(end.reason, Some(Reason::IsolationUnavailable), "{error}");
        assert!(error.contains("service back") && error.contains("pids.max") && error.contains("999"), "{error}");
    };
    // At first, when the engine is told to put it below the worker's cgroup and does not.
    refused(&job).await;
    let honest = fleet.submit(&Job::container_script("sleep 1").set("/execution/resources/pids", 17)).await;
    assert_eq!(fleet.end(&honest).await.reason, Some(Reason::Ok));
    worker.says(&["from now on its own limits hold"]).await;
    refused(&job).await;
    fleet.finish().await;
}
