//! No-op tasks with all guarantees on, against the floor of the same run.

use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use serde_json::json;
use windlass::bus::read::{EventFilter, From};
use windlass::task::EventKind;

use super::bed::Bed;
use super::{native, report};

const TASKS: usize = 3000;
const SLOTS: usize = 4;

pub async fn rates() {
    let before = native::floor(TASKS, SLOTS).await;
    let default = rate("").await;
    let always = rate("sync_interval: always").await;
    let after = native::floor(TASKS, SLOTS).await;
    let floor = f64::midpoint(before, after);
    report("floor: /bin/true in a fresh limited cgroup, tasks/s", &format!("{floor:.0} ({before:.0}, {after:.0})"), "-");
    report("no-op tasks/s, default sync, of the floor", &format!("{default:.0} = {:.0} %", default / floor * 100.0), ">= 45 %");
    report("no-op tasks/s, sync_interval: always, of the floor", &format!("{always:.0} = {:.0} %", always / floor * 100.0), "reported");
}

/// Completed tasks per second over the middle four fifths of a full queue.
async fn rate(sync: &'static str) -> f64 {
    let slots = SLOTS.to_string();
    let mut bed = Bed::new(sync, &[("CAPACITY__SLOTS", &slots)]).await;
    let execution = json!({"runtime": "native", "command": ["/bin/true"], "resources": {"cpus": 1.0, "memory": "256MiB", "pids": 512}});
    let one = |n: usize| {
        let (bed, execution) = (&bed, execution.clone());
        async move { bed.submit(&format!("noop-{n}"), execution).await }
    };
    stream::iter(0..TASKS).map(one).buffer_unordered(64).collect::<Vec<()>>().await;
    bed.start_worker();
    let queue = bed.bus.subjects().tasks_stream();
    let mut left = 1;
    while left > 0 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        left = bed.bus.message_count(&queue).await.unwrap();
    }
    let mut events = bed.bus.events(EventFilter::default(), From::Start, false).await.unwrap();
    let mut times = Vec::new();
    while let Some(event) = events.next().await {
        let event = event.unwrap().head.event;
        if event.event == EventKind::TaskCompleted {
            times.push(event.time.as_micros());
        }
    }
    times.sort_unstable();
    let tenth = times.len() / 10;
    let (first, last) = (times[tenth], times[times.len() - 1 - tenth]);
    #[expect(clippy::cast_precision_loss, reason = "counts and microseconds of seconds")]
    let rate = (times.len() - 2 * tenth - 1) as f64 / ((last - first) as f64 / 1e6);
    rate
}
