//! What a container uses, for those whose cgroup is not below one of the worker's own: read from its own cgroup where that is to be
//! seen, else asked of the engine.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bollard::models::ContainerStatsResponse;
use bollard::query_parameters::StatsOptions;
use futures_util::StreamExt as _;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::super::Engine;
use super::keeper::Abort;
use super::own::{self, Own};
use crate::execute::native::cgroup::{Foreign, Habit, mounted};
use crate::task::limits::Usage;

/// Time between two looks. What a container uses after the last one is not seen; at its cgroup the last one is at its end.
const LOOK: Duration = Duration::from_millis(500);

/// Time between two looks at a container that has just begun, and between two searches for its cgroup.
const EARLY_LOOK: Duration = Duration::from_millis(2);
const SEARCH: Duration = Duration::from_millis(10);

/// Looks at a container for as long as it is held.
pub(super) struct Meter {
    seen: Arc<Mutex<Usage>>,
    looking: Looking,
}

enum Looking {
    /// A thread of its own, which ends with the pipe: so its last look is in time however busy the others are.
    AtCgroup(OwnedFd, oneshot::Receiver<()>),
    Asking(Abort),
}

impl Meter {
    /// Of a container that runs.
    pub(super) fn of(engine: &Engine, id: &str, own: Option<Own>, early: Usage) -> Self {
        let seen = Arc::new(Mutex::new(early));
        if let Some(looking) = own.and_then(|own| look_at_cgroup(own, &seen)) {
            return Self { seen, looking };
        }
        let asking = tokio::spawn(ask(engine.clone(), id.to_owned(), Arc::clone(&seen)));
        Self { seen, looking: Looking::Asking(Abort(asking)) }
    }

    /// It is over: what was seen.
    pub(super) async fn read(self) -> Usage {
        match self.looking {
            Looking::AtCgroup(until, done) => {
                drop(until);
                // It ends at once, and tells by going.
                let _ = done.await;
            }
            Looking::Asking(asking) => drop(asking),
        }
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// None when there can be no thread for it.
fn look_at_cgroup(own: Own, seen: &Arc<Mutex<Usage>>) -> Option<Looking> {
    let (given_up, until) = pipe_with(PipeFlags::CLOEXEC).ok()?;
    let (tell, done) = oneshot::channel();
    let to = Arc::clone(seen);
    let note = move |now| {
        let mut seen = to.lock().unwrap_or_else(PoisonError::into_inner);
        *seen = highest(*seen, now);
    };
    let looks = move || {
        let _tell = tell;
        own.watch(&given_up, LOOK, note);
    };
    std::thread::Builder::new().name("meter".to_owned()).spawn(looks).ok()?;
    Some(Looking::AtCgroup(until, done))
}

async fn ask(engine: Engine, id: String, to: Arc<Mutex<Usage>>) {
    loop {
        if let Some(stats) = engine.stats(&id).await {
            let mut seen = to.lock().unwrap_or_else(PoisonError::into_inner);
            *seen = risen(*seen, &stats);
        }
        sleep(LOOK).await;
    }
}

/// Looks at a container from before its start: one that is over at once has no first process any more when that can be asked for.
pub(super) struct Early {
    until: Option<OwnedFd>,
    seen: oneshot::Receiver<Usage>,
}

impl Early {
    /// Of a container that was made, in the hierarchies below `cgroups`.
    pub(super) fn of(id: &str, cgroups: &Path, habit: Option<Habit>) -> Option<Self> {
        let (given_up, until) = pipe_with(PipeFlags::CLOEXEC).ok()?;
        let (tell, seen) = oneshot::channel();
        let (id, cgroups) = (id.to_owned(), cgroups.to_path_buf());
        let looks = move || {
            // Nobody asks for what an attempt that was given up has used.
            let _ = tell.send(look_early(&id, &cgroups, habit.as_ref(), &given_up));
        };
        std::thread::Builder::new().name("meter".to_owned()).spawn(looks).ok()?;
        Some(Self { until: Some(until), seen })
    }

    /// From here on somebody else looks, or it is over.
    pub(super) async fn read(mut self) -> Usage {
        drop(self.until.take());
        self.seen.await.unwrap_or_default()
    }
}

fn look_early(id: &str, cgroups: &Path, habit: Option<&Habit>, given_up: &OwnedFd) -> Usage {
    let mounts = mounted(cgroups);
    let mut found: Option<Foreign> = None;
    let mut seen = Usage::default();
    loop {
        if !found.as_ref().is_some_and(|found| found.is_whole(&mounts)) {
            // Never what it was before: those directories may be gone by now.
            found = Foreign::find(id, &mounts, habit).or(found);
        }
        if let Some(found) = &found {
            seen = highest(seen, found.usage());
        }
        let pause = if found.is_some() || habit.is_some() { EARLY_LOOK } else { SEARCH };
        if own::hung_up(given_up, pause) {
            return found.map_or(seen, |found| highest(seen, found.usage()));
        }
    }
}

/// Of each the higher: a directory that is gone says 0.
pub(super) fn highest(before: Usage, now: Usage) -> Usage {
    Usage {
        cpu_user_us: before.cpu_user_us.max(now.cpu_user_us),
        cpu_system_us: before.cpu_system_us.max(now.cpu_system_us),
        memory_peak_bytes: before.memory_peak_bytes.max(now.memory_peak_bytes),
        oom_kills: before.oom_kills.max(now.oom_kills),
        throttled_us: before.throttled_us.max(now.throttled_us),
        pids_peak: before.pids_peak.max(now.pids_peak),
        leaked_processes: before.leaked_processes.max(now.leaked_processes),
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
    let now = Usage {
        cpu_user_us: micros(used.and_then(|used| used.usage_in_usermode)),
        cpu_system_us: micros(used.and_then(|used| used.usage_in_kernelmode)),
        throttled_us: micros(throttled),
        memory_peak_bytes: memory.unwrap_or(0),
        pids_peak: pids.unwrap_or(0),
        ..Usage::default()
    };
    highest(before, now)
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
