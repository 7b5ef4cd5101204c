//! `make bench`: the figures of `docs/performance.md`, as ratios against floors measured in the same run. Asserts nothing.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a benchmark that cannot go on should stop, and its report is its output"
)]

#[path = "performance/bed.rs"]
mod bed;
#[path = "performance/docker.rs"]
mod docker;
#[path = "performance/flood.rs"]
mod flood;
#[expect(dead_code, reason = "of what tests stand on, only the engine is needed here")]
#[path = "../tests/harness.rs"]
mod harness;
#[path = "performance/idle.rs"]
mod idle;
#[path = "performance/latency.rs"]
mod latency;
#[path = "performance/native.rs"]
mod native;
#[path = "performance/noop.rs"]
mod noop;

/// One line of the report.
fn report(what: &str, measured: &str, target: &str) {
    println!("{what:<58} {measured:<34} {target}");
}

fn main() {
    let only: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let wanted = |name: &str| only.is_empty() || only.iter().any(|o| o == name);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    report("what", "measured", "target");
    runtime.block_on(async {
        if wanted("native") {
            native::kill_200().await;
        }
        if wanted("sandbox") {
            native::sandbox().await;
        }
        if wanted("docker") {
            docker::containers().await;
        }
        // Minutes: only when asked for.
        if only.iter().any(|o| o == "thousand") {
            docker::a_thousand().await;
        }
        if wanted("noop") {
            noop::rates().await;
        }
        if wanted("latency") {
            latency::publish_to_started().await;
        }
        if wanted("idle") {
            idle::worker_at_rest().await;
        }
        if wanted("logs") {
            flood::throughput("json", 0).await;
            flood::throughput("msgpack", 0).await;
        }
        if wanted("secrets") {
            flood::throughput("json", 1).await;
            flood::throughput("json", 20).await;
        }
        if wanted("away") {
            flood::broker_away().await;
        }
    });
}
