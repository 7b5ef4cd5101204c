//! Containers: a no-op one through the worker against the same calls by hand, slots that are kept busy, and memory over a thousand.
//!
//! Both are read from the engine's own record of events, from `create` to `destroy`, with one clock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bollard::models::{ContainerCreateBody, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig};
use bollard::query_parameters::{
    AttachContainerOptions, CreateContainerOptions, InspectContainerOptions, RemoveContainerOptions, StartContainerOptions,
    WaitContainerOptions,
};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::{StreamExt as _, stream};
use serde_json::json;

use super::bed::{Bed, children, status_mib};
use super::harness::Engine;
use super::harness::docker::IMAGE;
use super::report;

/// Containers of one measurement; the engine remembers 256 events, some five for each.
const ROUND: usize = 20;
const ROUNDS: usize = 3;
const SLOTS: usize = 4;

pub async fn containers() {
    let Some(engine) = Engine::shared() else { return report("containers", "not measured: no engine", "") };
    no_op(&engine).await;
    four_slots(&engine).await;
}

/// A bed whose worker runs containers.
async fn bed(engine: &Engine, slots: usize) -> Bed {
    let (slots, settings) = (slots.to_string(), engine.settings());
    let mut all: Vec<(&str, &str)> = settings.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    all.push(("CAPACITY__SLOTS", &slots));
    let mut bed = Bed::new("", &all).await;
    bed.start_worker();
    // The first one finds out about engine and image.
    bed.submit("warm", no_op_task()).await;
    bed.wait_for("warm", windlass::task::EventKind::TaskCompleted).await;
    bed
}

fn no_op_task() -> serde_json::Value {
    json!({"runtime": "docker", "image": IMAGE, "pull": "missing", "command": ["true"], "resources": {"cpus": 1.0, "memory": "256MiB", "pids": 256}})
}

/// Queues tasks and waits until all have ended.
async fn through(bed: &Bed, name: &str, count: usize) -> Duration {
    let started = Instant::now();
    for n in 0..count {
        bed.submit(&format!("{name}-{n}"), no_op_task()).await;
    }
    let queue = bed.bus.subjects().tasks_stream();
    while bed.bus.message_count(&queue).await.unwrap() > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let took = started.elapsed();
    let last = bed.wait_for(&format!("{name}-{}", count - 1), windlass::task::EventKind::TaskCompleted).await;
    assert_eq!(last.reason, Some(windlass::task::Reason::Ok), "{last:?}");
    took
}

/// What the worker asks of the engine, and nothing else.
async fn by_hand(docker: &Docker) {
    let host = HostConfig {
        memory: Some(256 << 20),
        memory_swap: Some(256 << 20),
        cpu_quota: Some(100_000),
        cpu_period: Some(100_000),
        pids_limit: Some(256),
        cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
        ipc_mode: Some("private".to_owned()),
        cap_drop: Some(vec!["ALL".to_owned()]),
        security_opt: Some(vec!["no-new-privileges:true".to_owned()]),
        readonly_rootfs: Some(true),
        tmpfs: Some([("/tmp".to_owned(), "size=64m".to_owned())].into()),
        network_mode: Some("none".to_owned()),
        init: Some(true),
        log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
        ..HostConfig::default()
    };
    let body = ContainerCreateBody {
        image: Some(IMAGE.to_owned()),
        cmd: Some(vec!["true".to_owned()]),
        user: Some("1879048192:1879048192".to_owned()),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        host_config: Some(host),
        ..ContainerCreateBody::default()
    };
    let id = docker.create_container(None::<CreateContainerOptions>, body).await.unwrap().id;
    let options = AttachContainerOptions { stream: true, stdout: true, stderr: true, ..AttachContainerOptions::default() };
    let mut output = docker.attach_container(&id, Some(options)).await.unwrap().output;
    docker.start_container(&id, None::<StartContainerOptions>).await.unwrap();
    let mut end = docker.wait_container(&id, None::<WaitContainerOptions>);
    end.next().await.unwrap().unwrap();
    while output.next().await.is_some() {}
    docker.inspect_container(&id, None::<InspectContainerOptions>).await.unwrap();
    docker.remove_container(&id, Some(RemoveContainerOptions { force: true, v: true, link: false })).await.unwrap();
}

/// Nanoseconds of each container's `create` and `destroy` since `since`.
fn lives(engine: &Engine, since: u64) -> Vec<(u64, u64)> {
    let mut lives: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for (id, action, at) in engine.happened().into_iter().filter(|(_, _, at)| *at >= since) {
        let life = lives.entry(id).or_default();
        match action.as_str() {
            "create" => life.0 = at,
            "destroy" => life.1 = at,
            _ => {}
        }
    }
    lives.into_values().filter(|(made, gone)| *made > 0 && *gone > 0).collect()
}

fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(since.as_nanos()).unwrap()
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds")]
fn p50_and_p90(lives: &[(u64, u64)]) -> (f64, f64) {
    let mut times: Vec<f64> = lives.iter().map(|(made, gone)| (gone - made) as f64 / 1e6).collect();
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[times.len() * 9 / 10])
}

async fn no_op(engine: &Arc<Engine>) {
    let docker = Docker::connect_with_unix(&engine.host(), 60, API_DEFAULT_VERSION).unwrap();
    let bed = bed(engine, 1).await;
    let (mut hand, mut worker) = (Vec::new(), Vec::new());
    let (mut hand_cycle, mut worker_cycle) = (Duration::ZERO, Duration::ZERO);
    // In turn, so that what else goes on meets both alike.
    for round in 0..ROUNDS {
        let since = now();
        let started = Instant::now();
        for _ in 0..ROUND {
            by_hand(&docker).await;
        }
        hand_cycle += started.elapsed();
        hand.extend(lives(engine, since));
        let since = now();
        worker_cycle += through(&bed, &format!("noop-{round}"), ROUND).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        worker.extend(lives(engine, since));
    }
    let ((hand50, hand90), (worker50, worker90)) = (p50_and_p90(&hand), p50_and_p90(&worker));
    report("no-op container by hand, created to removed", &format!("p50 {hand50:.0} ms, p90 {hand90:.0} ms"), "-");
    let over = (worker50 / hand50 - 1.0) * 100.0;
    report("through the worker", &format!("p50 {worker50:.0} ms ({over:+.0} %), p90 {worker90:.0} ms"), "within 15 %");
    let each = |whole: Duration| whole.as_secs_f64() * 1e3 / f64::from(u32::try_from(ROUND * ROUNDS).unwrap());
    let (hand, worker) = (each(hand_cycle), each(worker_cycle));
    let over = (worker / hand - 1.0) * 100.0;
    report("one after the other, by hand", &format!("{hand:.0} ms each"), "-");
    report("one slot, publish to terminal event", &format!("{worker:.0} ms each ({over:+.0} %)"), "reported");
}

async fn four_slots(engine: &Arc<Engine>) {
    let docker = Docker::connect_with_unix(&engine.host(), 60, API_DEFAULT_VERSION).unwrap();
    let count = ROUND * 2;
    let rate = |whole: Duration| f64::from(u32::try_from(count).unwrap()) / whole.as_secs_f64();
    let (since, started) = (now(), Instant::now());
    let one = |_| by_hand(&docker);
    stream::iter(0..count).map(one).buffer_unordered(SLOTS).collect::<Vec<()>>().await;
    let hand = rate(started.elapsed());
    let hand_alive = mean_alive(&lives(engine, since));
    let bed = bed(engine, SLOTS).await;
    let since = now();
    let worker = rate(through(&bed, "four", count).await);
    tokio::time::sleep(Duration::from_millis(500)).await;
    report("no-op containers/s, four at a time, by hand", &format!("{hand:.1}"), "-");
    report("four slots", &format!("{worker:.1} = {:.0} % of by hand", worker / hand * 100.0), "reported");
    let alive = mean_alive(&lives(engine, since));
    report(
        "containers there at one time, of four slots",
        &format!("mean {alive:.2} over the middle, {hand_alive:.2} by hand"),
        "as by hand",
    );
}

/// How many were there at one time, on average over the middle four fifths.
#[expect(clippy::cast_precision_loss, reason = "nanoseconds")]
fn mean_alive(lives: &[(u64, u64)]) -> f64 {
    let (from, to) = (lives.iter().map(|l| l.0).min().unwrap_or(0), lives.iter().map(|l| l.1).max().unwrap_or(1));
    let tenth = (to - from) / 10;
    let (from, to) = (from + tenth, to - tenth);
    let alive: u64 = lives.iter().map(|(made, gone)| (*gone).min(to).saturating_sub((*made).max(from))).sum();
    alive as f64 / (to - from) as f64
}

/// Memory of worker and supervisor over a thousand containers.
pub async fn a_thousand() {
    let Some(engine) = Engine::shared() else { return report("a thousand containers", "not measured: no engine", "") };
    let bed = bed(&engine, SLOTS).await;
    let worker = bed.worker_pid();
    let supervisor = children(worker).first().copied().unwrap_or(0);
    let started = Instant::now();
    for hundred in 0..10 {
        through(&bed, &format!("many-{hundred}"), 100).await;
        let (worker, supervisor) = (status_mib(worker, "VmRSS"), status_mib(supervisor, "VmRSS"));
        let what = format!("after {} containers ({:.0} s)", (hundred + 1) * 100, started.elapsed().as_secs_f64());
        report(&what, &format!("worker {worker:.1} MiB, supervisor {supervisor:.1} MiB"), if hundred == 9 { "flat" } else { "" });
    }
}
