//! Names, labels and numbers as Prometheus gets them.

use super::*;
use crate::execute::gpu::Reading;
use crate::supervisor::protocol::ExitStatus;
use crate::task::limits::Usage;

struct Still;

impl Gauges for Still {
    fn slots(&self) -> u64 {
        4
    }

    fn spool_bytes(&self) -> u64 {
        1024
    }

    fn states(&self) -> Vec<(&'static str, bool)> {
        vec![("running", true), ("draining", false)]
    }

    fn conditions(&self) -> Vec<(&'static str, bool)> {
        vec![("nats", false)]
    }

    fn gpus(&self) -> (u64, u64) {
        (2, 1)
    }

    fn gpu_readings(&self) -> Vec<Reading> {
        let silent = Reading { id: "GPU-2".to_owned(), utilization: None, memory_used: None };
        vec![Reading { id: "GPU-1".to_owned(), utilization: Some(0.25), memory_used: Some(1 << 30) }, silent]
    }

    fn supervisor(&self) -> Option<u32> {
        None
    }
}

fn class() -> ClassName {
    ClassName::new("cpu_short").unwrap()
}

fn tenant(name: &str) -> Tenant {
    Tenant::new(name).unwrap()
}

#[track_caller]
fn has(text: &str, line: &str) {
    assert!(text.lines().any(|l| l == line), "no {line:?} in\n{text}");
}

#[test]
fn what_happened_is_told_under_its_name() {
    let meters = Meters::new([&class()], &[], "default", Still).unwrap();
    let text = meters.render().unwrap();
    for line in [
        "windlass_redeliveries_total{class=\"cpu_short\"} 0",
        "windlass_tasks_lost_total{cause=\"lease_expired\",class=\"cpu_short\"} 0",
        "windlass_log_published_bytes_total 0",
        "windlass_slots 4",
        "windlass_spool_bytes 1024",
        "windlass_gpus 2",
        "windlass_gpus_in_use 1",
        "windlass_gpu_utilization{device=\"GPU-1\"} 0.25",
        "windlass_gpu_memory_used_bytes{device=\"GPU-1\"} 1073741824",
        "windlass_worker_state{state=\"running\"} 1",
        "windlass_worker_condition{condition=\"nats\"} 0",
        concat!("windlass_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
    ] {
        has(&text, line);
    }
    assert!(!text.contains("GPU-2"), "what a device does not tell is not told");
    assert!(!text.contains("windlass_supervisor_"), "nothing is told of a process that is not there");
    assert!(!text.contains("otel"), "{text}");

    meters.delivered(&class(), 1);
    meters.delivered(&class(), 2);
    meters.started(&class(), &tenant("acme"), Some(Duration::from_millis(20)));
    meters.started(&class(), &tenant("acme"), None);
    let usage = Usage { cpu_user_us: 1_000_000, cpu_system_us: 500_000, memory_peak_bytes: 2 << 20, oom_kills: 1, ..Usage::default() };
    meters.exited(&class(), &ExitReport { status: ExitStatus::Code(0), usage, lease_expired: false, kill_us: 0 });
    meters.ran(&class(), Outcome::Failure, Some(Duration::from_secs(3)), 7);
    meters.finished(&class(), &tenant("acme"), Reason::OomKilled);
    meters.chunk_stored(100);
    meters.confirmed(Publication::Chunk, Duration::from_millis(3));
    let text = meters.render().unwrap();
    for line in [
        "windlass_deliveries_total{class=\"cpu_short\"} 2",
        "windlass_redeliveries_total{class=\"cpu_short\"} 1",
        "windlass_tasks_started_total{class=\"cpu_short\"} 2",
        "windlass_task_queue_wait_seconds_bucket{class=\"cpu_short\",le=\"0.01\"} 0",
        "windlass_task_queue_wait_seconds_bucket{class=\"cpu_short\",le=\"0.05\"} 1",
        "windlass_task_queue_wait_seconds_count{class=\"cpu_short\"} 1",
        "windlass_task_cpu_seconds_total{class=\"cpu_short\"} 1.5",
        "windlass_task_memory_peak_bytes_count{class=\"cpu_short\"} 1",
        "windlass_oom_kills_total{class=\"cpu_short\"} 1",
        "windlass_task_run_seconds_sum{class=\"cpu_short\",outcome=\"failure\"} 3",
        "windlass_log_dropped_bytes_total{class=\"cpu_short\"} 7",
        "windlass_tasks_finished_total{class=\"cpu_short\",outcome=\"failure\",reason=\"oom_killed\"} 1",
        "windlass_log_chunks_total 1",
        "windlass_log_published_bytes_total 100",
        "windlass_publish_confirmation_seconds_bucket{kind=\"chunk\",le=\"0.005\"} 1",
    ] {
        has(&text, line);
    }
}

#[test]
fn tenants_are_told_apart_only_where_that_is_wanted() {
    let meters = Meters::new([&class()], &[tenant("acme")], "default", Still).unwrap();
    for name in ["acme", "stranger-1", "stranger-2"] {
        meters.finished(&class(), &tenant(name), Reason::Ok);
        meters.service_started(&tenant(name));
        meters.engine_asked("ping", Some(&tenant(name)), Duration::from_millis(1));
    }
    meters.service_stopped(&tenant("stranger-1"));
    let text = meters.render().unwrap();
    for (metric, tenant, n) in [
        ("service_starts_total", "acme", 1),
        ("service_starts_total", "other", 2),
        ("service_stops_total", "other", 1),
        ("active_services", "acme", 1),
        ("active_services", "other", 1),
    ] {
        has(&text, &format!("windlass_{metric}{{environment=\"default\",tenant=\"{tenant}\"}} {n}"));
    }
    has(&text, "windlass_docker_api_duration_seconds_count{environment=\"default\",request=\"ping\",tenant=\"other\"} 2");
    let line = |tenant: &str, n| {
        format!("windlass_tasks_finished_total{{class=\"cpu_short\",outcome=\"success\",reason=\"ok\",tenant=\"{tenant}\"}} {n}")
    };
    has(&text, &line("acme", 1));
    has(&text, &line("other", 2));
    assert!(!text.contains("stranger"), "{text}");
}
