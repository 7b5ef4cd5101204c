//! From publish to `task_started` in a subscriber's hands, worker idle; and from a task's write to its chunk.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use serde_json::json;
use windlass::task::EventKind;

use super::bed::Bed;
use super::report;

const ROUNDS: u32 = 200;

pub async fn publish_to_started() {
    let mut bed = Bed::new("", &[]).await;
    bed.start_worker();
    bed.submit("warm", json!({"runtime": "native", "command": ["/bin/true"]})).await;
    bed.wait_for("warm", EventKind::TaskCompleted).await;
    let client = async_nats::connect(format!("127.0.0.1:{}", bed.port)).await.unwrap();
    let mut started = client.subscribe("windlass.events.*.*.task_started").await.unwrap();
    let mut ended = client.subscribe("windlass.events.*.*.task_completed").await.unwrap();
    client.flush().await.unwrap();
    let mut times = Vec::new();
    for n in 0..ROUNDS {
        // Uneven gaps, so that no round falls on the same moment of the worker's own timers.
        tokio::time::sleep(Duration::from_millis(u64::from(20 + n * 7 % 31))).await;
        let start = Instant::now();
        bed.submit(&format!("latency-{n}"), json!({"runtime": "native", "command": ["/bin/true"]})).await;
        started.next().await.unwrap();
        times.push(start.elapsed());
        ended.next().await.unwrap();
    }
    times.sort_unstable();
    let (p50, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    report("publish to task_started, idle worker", &format!("p50 {p50:.2?}, p99 {p99:.2?}"), "p50 < 5 ms, p99 < 25 ms");
    write_to_chunk(&bed, &client).await;
}

async fn write_to_chunk(bed: &Bed, client: &async_nats::Client) {
    let mut chunks = client.subscribe("windlass.logs.>").await.unwrap();
    client.flush().await.unwrap();
    let script = "for i in $(seq 50); do date +%s%N; sleep 0.13; done";
    bed.submit("live", json!({"runtime": "bash", "script": script})).await;
    let mut delays = Vec::new();
    while let Some(message) = chunks.next().await {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let chunk: serde_json::Value = serde_json::from_slice(&message.payload).unwrap();
        if let Some(written) = chunk["data"].as_str().and_then(|d| d.lines().next()).and_then(|l| l.parse::<u64>().ok()) {
            delays.push(now.saturating_sub(Duration::from_nanos(written)));
        }
        if chunk["eof"] == true {
            break;
        }
    }
    delays.sort_unstable();
    let (p50, last) = (delays[delays.len() / 2], delays[delays.len() - 1]);
    report("a line written to its chunk at a subscriber", &format!("p50 {p50:.1?}, worst {last:.1?}"), "< 250 ms");
}
