//! Whether this worker lives, and whether it takes work: what `/readyz` and the gauges tell.
//!
//! Each condition is known by whoever meets it: the connection, the supervisor's socket, the look at the disk, the queues.
//! Only the streams have to be looked at for this, now and then, and at once when a queue cannot be pulled from.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{Notify, watch};

use super::capacity::Capacity;
use super::{Shared, Stop};
use crate::bus::provision;
use crate::execute::gpu::Reading;
use crate::telemetry::causes;
use crate::telemetry::metrics::Gauges;

/// Time between two looks at the streams.
const LOOK: Duration = Duration::from_secs(30);

/// Shortest time between two looks, while several queues are in trouble.
const QUIET: Duration = Duration::from_secs(1);

/// A condition holds, or why it does not.
type Holds = Result<(), String>;

/// The conditions of readiness.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Conditions {
    all: [(&'static str, Holds); 7],
    /// Classes that are not served, and why. That is no condition: what others lack, this worker may have.
    unserved: BTreeMap<String, String>,
}

impl Conditions {
    /// Whether all of them hold.
    pub(super) fn ready(&self) -> bool {
        self.all.iter().all(|(_, holds)| holds.is_ok())
    }

    /// As `/readyz` tells them.
    pub(super) fn json(&self) -> Value {
        let condition = |holds: &Holds| match holds {
            Ok(()) => json!({"ok": true}),
            Err(why) => json!({"ok": false, "why": why}),
        };
        let conditions: serde_json::Map<_, _> = self.all.iter().map(|(name, holds)| ((*name).to_owned(), condition(holds))).collect();
        json!({"ready": self.ready(), "conditions": conditions, "unserved": self.unserved})
    }
}

/// What is known of the worker's health. It is there before the worker has its parts.
#[derive(Debug)]
pub(super) struct Health {
    stop: watch::Receiver<Stop>,
    /// Not owned: the instance's directory goes with the last owner.
    shared: OnceLock<Weak<Shared>>,
}

impl Health {
    /// Of a worker that has only just begun.
    pub(super) fn new(stop: watch::Receiver<Stop>) -> Arc<Self> {
        Arc::new(Self { stop, shared: OnceLock::new() })
    }

    /// From now on the worker's parts are asked.
    pub(super) fn begin(&self, shared: &Arc<Shared>) {
        let _ = self.shared.set(Arc::downgrade(shared));
    }

    fn shared(&self) -> Option<Arc<Shared>> {
        self.shared.get().and_then(Weak::upgrade)
    }

    /// This moment's.
    pub(super) fn conditions(&self) -> Conditions {
        let stop = *self.stop.borrow();
        let not_draining = holds(stop == Stop::Run, || "asked to stop".to_owned());
        let Some(shared) = self.shared() else {
            let starting = ["nats", "streams", "supervisor", "disk", "engine", "pulling"].map(|name| (name, "the worker is starting"));
            let [nats, streams, supervisor, disk, engine, pulling] = starting.map(|(name, why)| (name, Err(why.to_owned())));
            let all = [nats, streams, supervisor, disk, engine, pulling, ("not_draining", not_draining)];
            return Conditions { all, unserved: BTreeMap::new() };
        };
        let connected = shared.bus.is_connected() && shared.sink.is_connected();
        let all = [
            ("nats", holds(connected, || "not connected".to_owned())),
            ("streams", shared.streams.fit()),
            ("supervisor", holds(!shared.supervisor.is_lost(), || "gone".to_owned())),
            ("disk", holds(shared.ground.is_fit(), || "worker.state_dir cannot be used".to_owned())),
            // Of a worker that had one. Where there never was one, classes are not served, and that is all.
            ("engine", shared.containers.lost().map_or(Ok(()), Err)),
            ("pulling", shared.pulls.all_well()),
            ("not_draining", not_draining),
        ];
        Conditions { all, unserved: shared.serving.reasons() }
    }
}

fn holds(good: bool, why: impl FnOnce() -> String) -> Holds {
    if good { Ok(()) } else { Err(why()) }
}

/// The gauges' view of it.
pub(super) struct Standing(pub(super) Arc<Health>, pub(super) Arc<Capacity>);

impl Gauges for Standing {
    fn slots(&self) -> u64 {
        self.1.slots().into()
    }

    fn gpus(&self) -> (u64, u64) {
        (self.1.gpus().total().into(), self.1.gpus_in_use().into())
    }

    fn gpu_readings(&self) -> Vec<Reading> {
        self.1.gpus().readings()
    }

    fn spool_bytes(&self) -> u64 {
        // The worker's parts are not held while files are looked at: its end must not wait for a reader.
        let spool = self.0.shared().map(|shared| shared.instance.spool());
        spool.map_or(0, |spool| files(&spool))
    }

    fn states(&self) -> Vec<(&'static str, bool)> {
        let starting = self.0.shared.get().is_none();
        let stop = *self.0.stop.borrow();
        let is = |state: Stop| !starting && stop == state;
        vec![
            ("starting", starting),
            ("running", is(Stop::Run)),
            ("draining", is(Stop::Drain)),
            ("leaving", is(Stop::Leave)),
            ("aborting", is(Stop::Abort)),
        ]
    }

    fn conditions(&self) -> Vec<(&'static str, bool)> {
        self.0.conditions().all.iter().map(|(name, holds)| (*name, holds.is_ok())).collect()
    }

    fn supervisor(&self) -> Option<u32> {
        self.0.shared().filter(|shared| !shared.supervisor.is_lost()).map(|shared| shared.supervisor.pid())
    }
}

/// Bytes of the files in the directories of `dir`: spools come and go meanwhile.
fn files(dir: &Path) -> u64 {
    let entries = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries(dir).flat_map(|spool| entries(&spool.path())).filter_map(|file| file.metadata().ok()).map(|meta| meta.len()).sum()
}

/// Which queues can be pulled from.
#[derive(Debug, Default)]
pub(super) struct Pulls(Mutex<Option<BTreeMap<String, String>>>);

impl Pulls {
    /// The queues are open.
    pub(super) fn begin(&self) {
        self.with(|troubles| *troubles = Some(BTreeMap::new()));
    }

    /// What the last request of a queue came to.
    pub(super) fn ended(&self, queue: &str, trouble: Option<String>) {
        self.with(|troubles| {
            let Some(troubles) = troubles else { return };
            match trouble {
                Some(trouble) => drop(troubles.insert(queue.to_owned(), trouble)),
                None => drop(troubles.remove(queue)),
            }
        });
    }

    fn with<R>(&self, f: impl FnOnce(&mut Option<BTreeMap<String, String>>) -> R) -> R {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn all_well(&self) -> Holds {
        self.with(|troubles| match troubles {
            None => Err("the queues are not open yet".to_owned()),
            Some(troubles) => match troubles.iter().next() {
                None => Ok(()),
                Some((queue, trouble)) => Err(format!("queue {queue}: {trouble}")),
            },
        })
    }
}

/// Whether the streams still keep the contract. They did when the worker started.
#[derive(Debug, Default)]
pub(super) struct Streams {
    broken: Mutex<Vec<String>>,
    doubts: Notify,
}

impl Streams {
    fn fit(&self) -> Holds {
        let broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        holds(broken.is_empty(), || format!("{}; run `windlass init`", broken.join("; ")))
    }

    /// Somebody could not use them: they are looked at again.
    pub(super) fn doubt(&self) {
        self.doubts.notify_one();
    }

    /// Looks for ever.
    pub(super) async fn watch(&self, shared: &Shared) {
        loop {
            // Both arms are cancel safe.
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = self.doubts.notified() => {}
            }
            match provision::broken(&shared.bus, &shared.serving.served_of(&shared.config)).await {
                Ok(found) => self.found(found),
                // The last look counts: whether NATS answers is another condition.
                Err(error) => tracing::debug!(error = %causes(&error), "cannot look at the streams"),
            }
            tokio::time::sleep(QUIET).await;
        }
    }

    fn found(&self, found: Vec<String>) {
        let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        if *broken == found {
            return;
        }
        if found.is_empty() {
            tracing::info!("the streams keep the contract again");
        } else {
            tracing::error!(broken = found.join("; "), "the streams do not keep the contract any more; run `windlass init`");
        }
        *broken = found;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_condition_that_does_not_hold_is_enough() {
        let names = ["nats", "streams", "supervisor", "disk", "engine", "pulling", "not_draining"];
        let mut all = Conditions { all: names.map(|name| (name, Ok(()))), unserved: BTreeMap::new() };
        assert!(all.ready());
        assert_eq!(all.json()["conditions"]["disk"], json!({"ok": true}));
        all.all[3].1 = Err("full".to_owned());
        assert!(!all.ready());
        assert_eq!((&all.json()["ready"], &all.json()["conditions"]["disk"]), (&json!(false), &json!({"ok": false, "why": "full"})));
    }

    #[test]
    fn a_worker_that_starts_or_stops_is_not_ready() {
        let (stop, stopping) = watch::channel(Stop::Run);
        let health = Health::new(stopping);
        assert!(!health.conditions().ready());
        stop.send_replace(Stop::Drain);
        assert_eq!(health.conditions().json()["conditions"]["not_draining"], json!({"ok": false, "why": "asked to stop"}));
    }

    #[test]
    fn queues_in_trouble_are_named_until_they_are_well() {
        let pulls = Pulls::default();
        pulls.ended("cpu_short-high", None);
        assert!(pulls.all_well().is_err(), "not open");
        pulls.begin();
        pulls.all_well().unwrap();
        pulls.ended("cpu_short-high", Some("no answer".to_owned()));
        pulls.ended("cpu_short-low", None);
        assert_eq!(pulls.all_well(), Err("queue cpu_short-high: no answer".to_owned()));
        pulls.ended("cpu_short-high", None);
        pulls.all_well().unwrap();
    }

    #[test]
    fn broken_streams_are_told_until_they_are_mended() {
        let streams = Streams::default();
        streams.fit().unwrap();
        streams.found(vec!["stream X: does not exist".to_owned()]);
        assert_eq!(streams.fit(), Err("stream X: does not exist; run `windlass init`".to_owned()));
        streams.found(vec![]);
        streams.fit().unwrap();
    }
}
