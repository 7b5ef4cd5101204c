//! What a container uses, by the engine's word: for those whose cgroup is not below one of the worker's own.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bollard::models::ContainerStatsResponse;
use bollard::query_parameters::StatsOptions;
use futures_util::StreamExt as _;

use super::super::Engine;
use crate::task::limits::Usage;

/// Time between two looks. What a container uses after the last one is not seen.
const LOOK: Duration = Duration::from_millis(500);

/// Looks at a container for as long as it is held.
pub(super) struct Meter {
    seen: Arc<Mutex<Usage>>,
    looking: tokio::task::JoinHandle<()>,
}

impl Meter {
    /// Of a container that runs.
    pub(super) fn of(engine: &Engine, id: &str) -> Self {
        let (engine, id, seen) = (engine.clone(), id.to_owned(), Arc::new(Mutex::new(Usage::default())));
        let to = Arc::clone(&seen);
        let looking = tokio::spawn(async move {
            loop {
                if let Some(stats) = engine.stats(&id).await {
                    let mut seen = to.lock().unwrap_or_else(PoisonError::into_inner);
                    *seen = risen(*seen, &stats);
                }
                tokio::time::sleep(LOOK).await;
            }
        });
        Self { seen, looking }
    }

    /// What was seen.
    pub(super) fn read(&self) -> Usage {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.looking.abort();
    }
}

impl Engine {
    /// One look at what a container uses; none when the engine does not say.
    async fn stats(&self, id: &str) -> Option<ContainerStatsResponse> {
        let options = StatsOptions { stream: false, one_shot: true };
        let mut answers = Box::pin(self.api().stats(id, Some(options)));
        let first = self.ask("look at a container", async { answers.next().await.transpose() });
        first.await.ok().flatten()
    }
}

/// Counts that only rise, and the highest of what rises and falls.
fn risen(before: Usage, stats: &ContainerStatsResponse) -> Usage {
    let cpu = stats.cpu_stats.as_ref();
    let used = cpu.and_then(|cpu| cpu.cpu_usage.as_ref());
    let throttled = cpu.and_then(|cpu| cpu.throttling_data.as_ref()).and_then(|data| data.throttled_time);
    let memory = stats.memory_stats.as_ref();
    let memory = memory.and_then(|memory| memory.max_usage.or(memory.usage));
    let pids = stats.pids_stats.as_ref().and_then(|pids| pids.current);
    let micros = |nanos: Option<u64>| nanos.unwrap_or(0) / 1000;
    Usage {
        cpu_user_us: before.cpu_user_us.max(micros(used.and_then(|used| used.usage_in_usermode))),
        cpu_system_us: before.cpu_system_us.max(micros(used.and_then(|used| used.usage_in_kernelmode))),
        throttled_us: before.throttled_us.max(micros(throttled)),
        memory_peak_bytes: before.memory_peak_bytes.max(memory.unwrap_or(0)),
        pids_peak: before.pids_peak.max(pids.unwrap_or(0)),
        ..before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_was_seen_is_lost() {
        let first = serde_json::json!({
            "cpu_stats": {"cpu_usage": {"usage_in_usermode": 5_000, "usage_in_kernelmode": 3_000}, "throttling_data": {"throttled_time": 9_000}},
            "memory_stats": {"usage": 100}, "pids_stats": {"current": 4},
        });
        let last = serde_json::json!({"memory_stats": {"usage": 10}, "pids_stats": {"current": 1}});
        let seen = [first, last].into_iter().fold(Usage::default(), |seen, stats| risen(seen, &serde_json::from_value(stats).unwrap()));
        assert_eq!((seen.cpu_user_us, seen.cpu_system_us, seen.throttled_us), (5, 3, 9));
        assert_eq!((seen.memory_peak_bytes, seen.pids_peak), (100, 4));
    }
}
