//! What the tests stand on.
//!
//! ```text
//! Server ── one nats-server for the run, or a private one to kill
//! Fleet  ── one test: its own prefix and streams, workers as processes, an orchestrator that publishes and watches
//! Checker ─ reads the streams and proves what the contract promises, for every task that the fleet was given
//! Engine ── one dockerd for the run, or a private one to kill
//! Acks ──── overhears every acknowledgement: none may pass before its task's end is stored
//! ```
//! Rules: a wait is for a condition, has a deadline and is woken by what it waits for; no port is fixed; whatever a test
//! starts dies with the test process, however that dies ([`watchdog`]).

#[path = "harness/acks.rs"]
pub mod acks;
#[path = "harness/checker.rs"]
pub mod checker;
#[path = "harness/cluster.rs"]
pub mod cluster;
#[path = "harness/crew.rs"]
pub mod crew;
#[path = "harness/dice.rs"]
pub mod dice;
#[path = "harness/disk.rs"]
pub mod disk;
#[path = "harness/docker.rs"]
pub mod docker;
#[path = "harness/feed.rs"]
pub mod feed;
#[path = "harness/fleet.rs"]
pub mod fleet;
#[path = "harness/http.rs"]
pub mod http;
#[path = "harness/job.rs"]
pub mod job;
#[path = "harness/leftovers.rs"]
pub mod leftovers;
#[path = "harness/litter.rs"]
pub mod litter;
#[path = "harness/operator.rs"]
pub mod operator;
#[path = "harness/orchestrator.rs"]
pub mod orchestrator;
#[path = "harness/proxy.rs"]
pub mod proxy;
#[path = "harness/pty.rs"]
pub mod pty;
#[path = "harness/records.rs"]
pub mod records;
#[path = "harness/registry.rs"]
pub mod registry;
#[path = "harness/server.rs"]
pub mod server;
#[path = "harness/watchdog.rs"]
pub mod watchdog;
#[path = "harness/worker.rs"]
pub mod worker;

pub use docker::Engine;
pub use fleet::Fleet;
pub use job::Job;
pub use orchestrator::{Orchestrator, Task};
pub use server::Server;

use std::time::Duration;

/// How long anything that must happen may take on a machine that does other things too.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// `tests/programs` where tasks can read it, whoever they run as and wherever the repository is.
pub fn programs() -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    static COPIED: std::sync::OnceLock<std::path::PathBuf> = std::sync::OnceLock::new();
    let copied = COPIED.get_or_init(|| {
        let to = watchdog::watchdog().dir().join("programs");
        std::fs::create_dir(&to).expect("a directory for the programs");
        let from = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs");
        for entry in std::fs::read_dir(from).expect("tests/programs").flatten() {
            let copy = to.join(entry.file_name());
            std::fs::copy(entry.path(), &copy).expect("copied");
            let mode = entry.metadata().expect("metadata").permissions().mode();
            std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(mode | ((mode & 0o500) >> 6) | ((mode & 0o500) >> 3)))
                .expect("open to all");
        }
        to
    });
    copied.clone()
}

/// `WINDLASS_TEST_SLOW`: how many times slower this machine is than tests with short leases and deadlines expect. Only an
/// emulated one says so; 1 elsewhere.
pub fn slowness() -> u32 {
    std::env::var("WINDLASS_TEST_SLOW").ok().and_then(|n| n.parse().ok()).unwrap_or(1)
}

/// Whether this runs in a chroot. The kernel gives no user namespaces there.
pub fn chrooted() -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    !mounts.lines().any(|line| line.split(' ').nth(4) == Some("/"))
}
