//! Records that a task makes of its own running: what the worker says of it is not asked.

use std::path::Path;
use std::time::{Duration, Instant};

use super::PATIENCE;
use super::job::Gate;

/// Shell text that writes the monotonic time into a file of the attempt's own, for as long as the attempt runs, and says
/// "up" once. It ends at the gate.
pub fn records(dir: &Path, gate: &Gate) -> String {
    let wait = gate.wait();
    let until = wait.split(';').next().expect("until, and a condition");
    let file = dir.join("attempt-");
    format!(
        "{until}; do read -r up _ < /proc/uptime; echo $up >> '{}'$WINDLASS_ATTEMPT; [ -e announced ] || {{ : > announced; echo up; }}; sleep 0.01; done",
        file.display()
    )
}

fn recorded(dir: &Path, attempt: u32) -> Vec<f64> {
    let text = std::fs::read_to_string(dir.join(format!("attempt-{attempt}"))).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Waits until that attempt has written something.
pub async fn until_recorded(dir: &Path, attempt: u32) {
    let deadline = Instant::now() + PATIENCE;
    while recorded(dir, attempt).is_empty() {
        assert!(Instant::now() < deadline, "attempt {attempt} was claimed and does not run");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Proves that the first attempt wrote its last record before the second wrote its first.
pub fn one_after_the_other(dir: &Path) {
    let (first, second) = (recorded(dir, 1), recorded(dir, 2));
    let (Some(last), Some(begun)) = (first.last(), second.first()) else { panic!("an attempt has no records") };
    println!("the first attempt wrote its last record {:.2} s before the second wrote its first", begun - last);
    assert!(last < begun, "both attempts ran between {begun} and {last}");
}
