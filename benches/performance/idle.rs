//! A worker with nothing to do.

use std::time::Duration;

use serde_json::json;
use windlass::task::EventKind;

use super::bed::{Bed, children, status_mib};
use super::report;

fn cpu_ticks(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = text.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

pub async fn worker_at_rest() {
    let mut bed = Bed::new("", &[]).await;
    bed.start_worker();
    bed.submit("first", json!({"runtime": "native", "command": ["echo", "hello"]})).await;
    bed.wait_for("first", EventKind::TaskCompleted).await;
    let worker = bed.worker_pid();
    let supervisor = children(worker)[0];
    let before = cpu_ticks(worker) + cpu_ticks(supervisor);
    tokio::time::sleep(Duration::from_secs(10)).await;
    let ticks = cpu_ticks(worker) + cpu_ticks(supervisor) - before;
    let (w, s) = (status_mib(worker, "VmRSS:"), status_mib(supervisor, "VmRSS:"));
    report("idle worker + supervisor, resident", &format!("{w:.1} + {s:.1} MiB"), "< 25 MB");
    report("idle worker + supervisor, CPU over 10 s", &format!("{} ms", ticks * 10), "not measurable");
}
