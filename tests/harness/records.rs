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

/// Proves that each attempt wrote its last record before the next wrote its first.
pub fn one_after_the_other(dir: &Path) {
    let attempts: Vec<_> = (1..).map(|attempt| recorded(dir, attempt)).take_while(|records| !records.is_empty()).collect();
    assert!(attempts.len() > 1, "a second attempt has no records");
    for (n, pair) in attempts.windows(2).enumerate() {
        let (Some(last), Some(begun)) = (pair[0].last(), pair[1].first()) else { panic!("an attempt without records") };
        println!("attempt {} wrote its last record {:.2} s before the next wrote its first", n + 1, begun - last);
        assert!(last < begun, "two attempts ran at {begun}: the earlier one until {last}");
    }
}
