//! `/metrics`: a known mix of tasks is counted exactly, by names that `docs/metrics.md` explains and `promtool` likes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt as _;
use windlass::task::{EventKind, Reason};

use crate::harness::http::Scrape;
use crate::harness::job::Gate;
use crate::harness::server::skip;
use crate::harness::worker::Worker;
use crate::harness::{Fleet, Job, PATIENCE};

/// Waits until the worker tells exactly these values; series that are not there count as 0.
async fn tells(worker: &Worker, expected: &[(&str, f64)]) -> Scrape {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let scrape = worker.metrics().await;
        let series = scrape.series();
        let wrong: Vec<_> = expected.iter().filter(|(name, value)| series.get(*name).copied().unwrap_or(0.0) != *value).collect();
        if wrong.is_empty() {
            return scrape;
        }
        assert!(Instant::now() < deadline, "not told: {wrong:?}\n{}\n{}", scrape.0, worker.log());
        // A number that grows is no message that could be waited for.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn finished(outcome: &str, reason: &str) -> String {
    format!("windlass_tasks_finished_total{{class=\"cpu_short\",outcome=\"{outcome}\",reason=\"{reason}\"}}")
}

#[tokio::test]
async fn a_known_mix_of_tasks_is_counted_exactly() {
    let Some(fleet) = Fleet::start(&[("LOGS__CAP", "64KiB"), ("LOGS__CHUNK", "4KiB")]).await else { return };
    let worker = fleet.worker(&[("CAPACITY__SLOTS", "4"), ("CLASSES__CPU_SHORT__MAX_MEMORY", "1GiB")]);
    let gate = Gate::new(&fleet.dir, "cancel");
    let jobs = [
        Job::argv(["true"]),
        Job::bash("echo four; echo more >&2"),
        Job::bash("exit 3"),
        Job::bash("kill -SEGV $$"),
        Job::argv(["sleep", "1000"]).timeout(0.5).grace(0.1),
        Job::program("eat_memory.sh", [""; 0]).memory("32MiB"),
        // Two attempts: the first fails, and a failure is to be tried again.
        Job::bash("[ $WINDLASS_ATTEMPT -gt 1 ]").set("/retry/on", serde_json::json!(["failure"])).set("/retry/backoff/initial_ms", 1),
        // Refused, with a dead letter.
        Job::argv(["true"]).memory("2GiB"),
        // More output than is kept.
        Job::bash("head -c 1000000 /dev/zero | tr '\\0' x"),
        Job::bash("exit 0").set("/workflow_id", "nightly-7"),
    ];
    let mut tasks = Vec::new();
    for job in &jobs {
        tasks.push(fleet.submit(job).await);
    }
    let canceled = fleet.submit(&Job::bash(gate.wait()).grace(0.1)).await;
    fleet.running(&canceled).await;
    fleet.cancel(&canceled).await;
    tasks.push(canceled);
    tasks.push(fleet.submit_raw("poison", Some("application/json"), "{\"task_id\": 7").await);
    let mut ends = BTreeMap::new();
    for task in &tasks {
        let end = fleet.end(task).await;
        fleet.left_the_queue(task).await;
        ends.insert(task.id.clone(), end);
    }
    let flood = ends[&tasks[8].id].logs.clone().unwrap();
    assert!(flood.stdout.dropped_bytes > 900_000, "{flood:?}");
    let manifests: Vec<_> = ends.values().filter_map(|end| end.logs.clone()).collect();
    let chunks: u64 = manifests.iter().map(|m| m.chunks).sum();
    let bytes: u64 = manifests.iter().map(|m| m.stdout.bytes + m.stderr.bytes + m.system.as_ref().map_or(0, |s| s.bytes)).sum();
    let oom_kills = ends[&tasks[5].id].usage.unwrap().oom_kills;
    assert_eq!((ends[&tasks[5].id].reason, oom_kills > 0), (Some(Reason::OomKilled), true));
    // Events: eleven claims, one retry, twelve ends.
    let (ok, nonzero) = (finished("success", "ok"), finished("failure", "exit_nonzero"));
    let (signaled, oom) = (finished("failure", "signaled"), finished("failure", "oom_killed"));
    let (timeout, canceled) = (finished("timeout", "timeout"), finished("cancellation", "canceled"));
    let (refused, invalid) = (finished("failure", "policy_refused"), finished("failure", "invalid_assignment"));
    let scrape = tells(
        &worker,
        &[
            (&ok, 5.0),
            (&nonzero, 1.0),
            (&signaled, 1.0),
            (&oom, 1.0),
            (&timeout, 1.0),
            (&canceled, 1.0),
            (&refused, 1.0),
            (&invalid, 1.0),
            ("windlass_tasks_started_total{class=\"cpu_short\"}", 11.0),
            ("windlass_tasks_retried_total{class=\"cpu_short\",outcome=\"failure\",reason=\"exit_nonzero\"}", 1.0),
            ("windlass_tasks_released_total{class=\"cpu_short\"}", 0.0),
            ("windlass_tasks_lost_total{cause=\"fenced\",class=\"cpu_short\"}", 0.0),
            ("windlass_dead_letters_total{class=\"cpu_short\",reason=\"policy_refused\"}", 1.0),
            ("windlass_dead_letters_total{class=\"cpu_short\",reason=\"invalid_assignment\"}", 1.0),
            #[expect(clippy::cast_precision_loss, reason = "a handful")]
            ("windlass_oom_kills_total{class=\"cpu_short\"}", oom_kills as f64),
            ("windlass_log_dropped_bytes_total{class=\"cpu_short\"}", flood.stdout.dropped_bytes as f64),
            ("windlass_log_published_bytes_total", bytes as f64),
            ("windlass_log_chunks_total", chunks as f64),
            ("windlass_task_queue_wait_seconds_count{class=\"cpu_short\"}", 10.0),
            ("windlass_task_prepare_seconds_count{class=\"cpu_short\"}", 11.0),
            ("windlass_task_memory_peak_bytes_count{class=\"cpu_short\"}", 11.0),
            ("windlass_task_run_seconds_count{class=\"cpu_short\",outcome=\"success\"}", 5.0),
            ("windlass_task_run_seconds_count{class=\"cpu_short\",outcome=\"failure\"}", 4.0),
            ("windlass_task_run_seconds_count{class=\"cpu_short\",outcome=\"timeout\"}", 1.0),
            ("windlass_publish_confirmation_seconds_count{kind=\"event\"}", 24.0),
            ("windlass_publish_confirmation_seconds_count{kind=\"chunk\"}", chunks as f64),
            ("windlass_publish_confirmation_seconds_count{kind=\"dead_letter\"}", 2.0),
            ("windlass_publish_failures_total{kind=\"event\"}", 0.0),
            ("windlass_ack_seconds_count", 12.0),
            ("windlass_tasks_running{class=\"cpu_short\"}", 0.0),
            ("windlass_slots", 4.0),
            ("windlass_spool_bytes", 0.0),
            ("windlass_worker_state{state=\"running\"}", 1.0),
            ("windlass_worker_condition{condition=\"pulling\"}", 1.0),
            ("windlass_nats_reconnects_total", 0.0),
        ],
    )
    .await;
    let redeliveries = scrape.value("windlass_redeliveries_total{class=\"cpu_short\"}");
    assert_eq!(scrape.value("windlass_deliveries_total{class=\"cpu_short\"}") - redeliveries, 12.0);
    assert!(redeliveries >= 1.0, "the second attempt came by another delivery");
    assert!(scrape.value("windlass_task_cpu_seconds_total{class=\"cpu_short\"}") > 0.0);
    assert!(scrape.value("process_resident_memory_bytes") > 1e6 && scrape.value("windlass_supervisor_resident_memory_bytes") > 1e5);
    for id in tasks.iter().map(|task| task.id.as_str()).chain(["nightly-7", "acme"]) {
        assert!(!scrape.0.contains(&format!("\"{id}\"")), "{id} is in\n{}", scrape.0);
    }
    documented(&scrape);
    liked_by_promtool(&scrape).await;
    fleet.finish().await;
}

/// Every metric stands in `docs/metrics.md` with its type, and none that is not told.
fn documented(scrape: &Scrape) {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md")).expect("docs/metrics.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let mut rows: BTreeMap<_, _> =
        rows.map(|(name, rest)| (name.to_owned(), rest.split_once(" |").expect("a type").0.to_owned())).collect();
    let types = scrape.types();
    rows.retain(|_, kind| matches!(kind.as_str(), "counter" | "gauge" | "histogram"));
    // No engine is asked here; the tests of services see it.
    if !types.contains_key("windlass_docker_api_duration_seconds") {
        rows.remove("windlass_docker_api_duration_seconds");
    }
    // Without NVIDIA's library nobody tells of devices.
    if !types.contains_key("windlass_gpu_utilization") {
        rows.retain(|name, _| !matches!(name.as_str(), "windlass_gpu_utilization" | "windlass_gpu_memory_used_bytes"));
    }
    // Another user's process does not show it.
    if !types.contains_key("windlass_supervisor_open_fds") {
        rows.remove("windlass_supervisor_open_fds");
    }
    assert_eq!(rows, types, "docs/metrics.md is not what a worker says");
}

/// `WINDLASS_TEST_PROMTOOL`, else the one that `make test` fetches, else PATH's.
fn promtool() -> Option<PathBuf> {
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join(".windlass/tools/promtool");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::split_paths(&path).map(|dir| dir.join("promtool"));
    let found =
        std::env::var_os("WINDLASS_TEST_PROMTOOL").map(PathBuf::from).into_iter().chain([fetched]).chain(path).find(|p| p.is_file());
    if found.is_none() {
        skip("no promtool: run deploy/fetch-promtool.sh, or install Debian's prometheus");
    }
    found
}

async fn liked_by_promtool(scrape: &Scrape) {
    let Some(promtool) = promtool() else { return };
    let mut command = tokio::process::Command::new(promtool);
    let mut child =
        command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("promtool");
    child.stdin.take().expect("its input").write_all(scrape.0.as_bytes()).await.expect("written");
    let output = child.wait_with_output().await.expect("its end");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "promtool: {said}");
}

#[tokio::test]
async fn what_is_given_back_lost_or_handed_out_again_is_counted() {
    let Some(fleet) = Fleet::start(&[("LEASE__ACK_WAIT_S", "2"), ("WORKER__DRAIN_TIMEOUT_S", "0.2")]).await else { return };
    let first = fleet.worker_named("first", &[]);
    let gate = Gate::new(&fleet.dir, "lost");
    // The first worker stands still until another one has the task, and finds that it is no longer its own.
    let job = Job::bash(format!("[ $WINDLASS_ATTEMPT -gt 1 ] || sleep 1000; {}", gate.wait())).grace(0.1);
    let task = fleet.submit(&job).await;
    fleet.running(&task).await;
    first.signal(rustix::process::Signal::STOP);
    let second = fleet.worker_named("second", &[]);
    fleet.attempt(&task, 2).await;
    first.signal(rustix::process::Signal::CONT);
    let first_lost = async {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let series = first.metrics().await.series();
            let lost: f64 = series.iter().filter(|(name, _)| name.starts_with("windlass_tasks_lost_total")).map(|(_, value)| value).sum();
            if lost == 1.0 {
                break;
            }
            assert!(lost < 1.0 && Instant::now() < deadline, "{lost} lost\n{}", first.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    first_lost.await;
    tells(&second, &[("windlass_redeliveries_total{class=\"cpu_short\"}", 1.0), ("windlass_tasks_running{class=\"cpu_short\"}", 1.0)])
        .await;
    let renewals = second.metrics().await.value("windlass_lease_renewals_total{result=\"confirmed\"}");
    let deadline = Instant::now() + PATIENCE;
    while second.metrics().await.value("windlass_lease_renewals_total{result=\"confirmed\"}") <= renewals {
        assert!(Instant::now() < deadline, "no renewal is counted\n{}", second.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    gate.open();
    assert_eq!(fleet.end(&task).await.reason, Some(Reason::Ok));
    first.kill9().await;
    fleet.finish().await;
}

#[tokio::test]
async fn attempts_that_are_given_back_and_connections_made_anew_are_counted() {
    let Some(server) = crate::harness::Server::private(crate::harness::server::Options::default()) else { return };
    let fleet = Fleet::on(server, &[]).await;
    let worker = fleet.worker(&[("WORKER__DRAIN_TIMEOUT_S", "0"), ("CAPACITY__SLOTS", "2")]);
    let slow = "trap '' TERM; [ $WINDLASS_ATTEMPT -gt 1 ] || while :; do sleep 0.1; done";
    let task = fleet.submit(&Job::bash(slow).grace(60.0)).await;
    let other = fleet.submit(&Job::bash("[ $WINDLASS_ATTEMPT -gt 1 ] || sleep 1000").grace(0.1)).await;
    fleet.running(&task).await;
    fleet.running(&other).await;
    fleet.server.kill9();
    fleet.server.restart();
    tells(&worker, &[("windlass_nats_reconnects_total", 2.0)]).await;
    // One of the two holds the worker up, so that it can still be asked about the other one.
    worker.signal(rustix::process::Signal::TERM);
    fleet.event(&other, EventKind::TaskReleased).await;
    tells(&worker, &[("windlass_tasks_released_total{class=\"cpu_short\"}", 1.0), ("windlass_worker_state{state=\"leaving\"}", 1.0)]).await;
    worker.signal(rustix::process::Signal::TERM);
    assert!(worker.exit(PATIENCE).await.success());
    fleet.worker(&[]);
    for task in [task, other] {
        assert_eq!(fleet.end(&task).await.reason, Some(Reason::Ok));
    }
    fleet.finish().await;
}

#[tokio::test]
async fn output_that_waits_is_on_the_disk_and_tenants_are_told_apart_where_asked() {
    let Some(server) = crate::harness::Server::private(crate::harness::server::Options::default()) else { return };
    let fleet = Fleet::on(server, &[("HTTP__METRICS_TENANTS", "[\"acme\"]")]).await;
    let worker = fleet.worker(&[]);
    let gate = Gate::new(&fleet.dir, "spool");
    let mut stranger = Job::argv(["true"]);
    "stranger".clone_into(&mut stranger.tenant);
    let stranger = fleet.submit(&stranger).await;
    let task = fleet.submit(&Job::bash(format!("{}; seq 1 1000000; touch {}", gate.wait(), fleet.dir.join("said").display()))).await;
    fleet.end(&stranger).await;
    fleet.left_the_queue(&stranger).await;
    fleet.running(&task).await;
    fleet.server.kill9();
    gate.open();
    let deadline = Instant::now() + PATIENCE;
    // Of 6,888,896 bytes of output some two are read ahead and in the window; the rest stays where it is.
    while worker.metrics().await.value("windlass_spool_bytes") < 3_000_000.0 {
        assert!(Instant::now() < deadline, "{}", worker.metrics().await.0);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    fleet.server.restart();
    assert_eq!(fleet.end(&task).await.reason, Some(Reason::Ok));
    let of = |tenant: &str| {
        format!("windlass_tasks_finished_total{{class=\"cpu_short\",outcome=\"success\",reason=\"ok\",tenant=\"{tenant}\"}}")
    };
    let scrape = tells(&worker, &[(&of("acme"), 1.0), (&of("other"), 1.0), ("windlass_spool_bytes", 0.0)]).await;
    assert!(!scrape.0.contains("stranger"));
    fleet.finish().await;
}
