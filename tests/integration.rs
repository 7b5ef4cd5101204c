//! The suite: real workers, a real nats-server, real limits. `tests/harness.rs` says how it is done.
//!
//! One test: `cargo test --test integration flow::` or any part of a name. `WINDLASS_TEST_LOG=debug` raises the workers'
//! log level, `WINDLASS_TEST_KEEP=1` keeps the run's directory, `NATS_VERSION=2.12.3` picks the server.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking and speaks on stdout"
)]

mod harness;

#[path = "integration/asyncapi.rs"]
mod asyncapi;
#[path = "integration/bad_input.rs"]
mod bad_input;
#[path = "integration/bench.rs"]
mod bench;
#[path = "integration/cancel.rs"]
mod cancel;
#[path = "integration/chaos.rs"]
mod chaos;
#[path = "integration/cli.rs"]
mod cli;
#[path = "integration/clock.rs"]
mod clock;
#[path = "integration/cluster.rs"]
mod cluster;
#[cfg(feature = "crash-points")]
#[path = "integration/crash_points.rs"]
mod crash_points;
#[path = "integration/credentials.rs"]
mod credentials;
#[path = "integration/disk.rs"]
mod disk;
#[path = "integration/docker_elsewhere.rs"]
mod docker_elsewhere;
#[path = "integration/docker_engine.rs"]
mod docker_engine;
#[path = "integration/docker_faults.rs"]
mod docker_faults;
#[path = "integration/docker_leftovers.rs"]
mod docker_leftovers;
#[path = "integration/docker_run.rs"]
mod docker_run;
#[path = "integration/docker_table.rs"]
mod docker_table;
#[path = "integration/docs.rs"]
mod docs;
#[path = "integration/doctor.rs"]
mod doctor;
#[path = "integration/drain.rs"]
mod drain;
#[path = "integration/durability.rs"]
mod durability;
#[path = "integration/escape.rs"]
mod escape;
#[path = "integration/examples.rs"]
mod examples;
#[path = "integration/flow.rs"]
mod flow;
#[path = "integration/golden.rs"]
mod golden;
#[path = "integration/gpu.rs"]
mod gpu;
#[path = "integration/health.rs"]
mod health;
#[path = "integration/image_tasks.rs"]
mod image_tasks;
#[path = "integration/images.rs"]
mod images;
#[path = "integration/invariants.rs"]
mod invariants;
#[path = "integration/leftovers.rs"]
mod leftovers;
#[path = "integration/limits.rs"]
mod limits;
#[path = "integration/list.rs"]
mod list;
#[path = "integration/many_workers.rs"]
mod many_workers;
#[path = "integration/metrics.rs"]
mod metrics;
#[path = "integration/native.rs"]
mod native;
#[path = "integration/network.rs"]
mod network;
#[path = "integration/output.rs"]
mod output;
#[path = "integration/plan.rs"]
mod plan;
#[path = "integration/power.rs"]
mod power;
#[path = "integration/python.rs"]
mod python;
#[path = "integration/reference.rs"]
mod reference;
#[path = "integration/results.rs"]
mod results;
#[path = "integration/retry.rs"]
mod retry;
#[path = "integration/sandbox.rs"]
mod sandbox;
#[path = "integration/secrets.rs"]
mod secrets;
#[path = "integration/server_faults.rs"]
mod server_faults;
#[path = "integration/services.rs"]
mod services;
#[path = "integration/serving.rs"]
mod serving;
#[path = "integration/shipping.rs"]
mod shipping;
#[path = "integration/soak.rs"]
mod soak;
#[path = "integration/sweeper.rs"]
mod sweeper;
#[path = "integration/top.rs"]
mod top;
#[path = "integration/worker_logs.rs"]
mod worker_logs;
#[path = "integration/workers.rs"]
mod workers;
