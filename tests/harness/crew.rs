//! Workers that are made to fail, and come back.

use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::worker::Worker;
use super::{Fleet, PATIENCE};

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// SIGKILL to a worker; its supervisor cleans up.
    KillWorker,
    /// SIGKILL to a supervisor; its worker cleans up and ends.
    KillSupervisor,
    /// SIGKILL to both: what they leave stays until the next worker starts on the host.
    KillBoth,
    /// A worker stands still for longer than its lease.
    Freeze,
    /// A worker is drained and started again.
    Drain,
    /// SIGKILL to nats-server, and a start on the same store.
    KillServer,
}

/// Named workers of a fleet, each with its own host directory.
pub struct Crew<'a> {
    fleet: &'a Fleet,
    settings: &'static [(&'static str, &'static str)],
    workers: Vec<Arc<Worker>>,
    /// Longer than the fleet's lease.
    frozen: Duration,
}

impl<'a> Crew<'a> {
    /// Starts `size` workers.
    pub fn start(fleet: &'a Fleet, size: usize, settings: &'static [(&'static str, &'static str)], frozen: Duration) -> Self {
        let workers = (0..size).map(|n| fleet.worker_named(&format!("crew-{n}"), settings)).collect();
        Self { fleet, settings, workers, frozen }
    }

    /// Does it to one of them, who is at work again, or about to be, when this returns.
    pub async fn suffer(&mut self, fault: Fault, victim: usize) {
        let worker = Arc::clone(&self.workers[victim]);
        match fault {
            Fault::KillWorker => worker.kill9().await,
            Fault::KillSupervisor => {
                // Without one it is just starting, and there is nothing to kill but itself.
                if kill_supervisor(&worker) {
                    worker.exit(PATIENCE).await;
                } else {
                    worker.kill9().await;
                }
            }
            Fault::KillBoth => {
                kill_supervisor(&worker);
                worker.kill9().await;
            }
            Fault::Freeze => {
                worker.signal(Signal::STOP);
                // For a frozen process nothing else can tell when its lease is over.
                tokio::time::sleep(self.frozen).await;
                worker.signal(Signal::CONT);
                return;
            }
            Fault::Drain => {
                // A signal that comes before it is listened for is a death, not a drain.
                worker.ready().await;
                worker.signal(Signal::TERM);
                let status = worker.exit(PATIENCE).await;
                assert!(status.success(), "worker {} ended with {status} when it was drained\n{}", worker.id, worker.log());
            }
            Fault::KillServer => {
                self.fleet.server.kill9();
                self.fleet.server.restart();
                return;
            }
        }
        self.workers[victim] = self.fleet.worker_named(&worker.id, self.settings);
    }

    /// Waits until all of them take work: what dead ones left has been swept, or is being.
    pub async fn ready(&self) {
        for worker in &self.workers {
            worker.ready().await;
        }
    }
}

/// SIGKILL to the worker's supervisor; false when it has none.
fn kill_supervisor(worker: &Worker) -> bool {
    let supervisors = worker.children();
    for pid in &supervisors {
        let pid = Pid::from_raw(pid.cast_signed()).expect("not zero");
        // It may be gone by now.
        let _ = kill_process(pid, Signal::KILL);
    }
    !supervisors.is_empty()
}
