//! The worker's desk: it says that the worker is there, and answers who asks something of it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

use super::{Shared, Stop};
use crate::bus::command::{WorkerAnswer, WorkerRequest, WorkerState};
use crate::bus::presence::{ANNOUNCED_EVERY, Presence};
use crate::shutdown::Shutdown;
use crate::task::Time;

/// Time for the last word.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Announces and answers until it is closed.
#[derive(Debug)]
pub(super) struct Desk {
    announcing: AbortOnDropHandle<()>,
    answering: AbortOnDropHandle<()>,
    over: oneshot::Sender<()>,
}

impl Desk {
    /// Opens it; presence is for people, so nothing waits for it.
    pub(super) fn open(shared: &Arc<Shared>, shutdown: Shutdown) -> Self {
        let (over, is_over) = oneshot::channel();
        let announcing = AbortOnDropHandle::new(tokio::spawn(announce(Arc::clone(shared), is_over)));
        let answering = AbortOnDropHandle::new(tokio::spawn(answer(Arc::clone(shared), shutdown)));
        Self { announcing, answering, over }
    }

    /// The worker has ended: nobody is answered any more, and its presence is taken back.
    pub(super) async fn close(self) {
        drop(self.answering);
        let _ = self.over.send(());
        if tokio::time::timeout(LAST_WORD, self.announcing).await.is_err() {
            tracing::debug!("no time to take the presence back");
        }
    }
}

/// Says every few seconds, and when the worker begins to drain, that it is there; takes that back when it is `over`.
async fn announce(shared: Arc<Shared>, mut over: oneshot::Receiver<()>) {
    let mut stop = shared.stop.clone();
    let mut told = None;
    loop {
        match shared.bus.announce(&presence(&shared)).await {
            Ok(sequence) => told = Some(sequence),
            Err(error) => tracing::debug!(%error, "presence not written"),
        }
        // All arms are cancel safe.
        tokio::select! {
            () = tokio::time::sleep(ANNOUNCED_EVERY) => {}
            Ok(()) = stop.changed() => {}
            _ = &mut over => break,
        }
    }
    if let Some(told) = told
        && let Err(error) = shared.bus.farewell(&shared.instance.info.worker_id, told).await
    {
        tracing::debug!(%error, "presence not taken back");
    }
}

fn presence(shared: &Shared) -> Presence {
    let info = &shared.instance.info;
    Presence {
        worker_id: info.worker_id.clone(),
        instance: info.instance.clone(),
        host: info.host.clone(),
        version: info.version.clone(),
        classes: shared.config.classes.keys().filter(|class| shared.serving.serves(class)).map(ToString::to_string).collect(),
        unserved: shared.serving.reasons(),
        slots: shared.capacity.slots(),
        running: shared.running.load(Ordering::Relaxed),
        draining: *shared.stop.borrow() >= Stop::Drain,
        time: Time::now(),
    }
}

async fn answer(shared: Arc<Shared>, shutdown: Shutdown) {
    let info = &shared.instance.info;
    let mut requests = match shared.bus.worker_requests(&info.worker_id).await {
        Ok(requests) => requests,
        Err(error) => {
            tracing::warn!(%error, "requests to this worker are not heard");
            return;
        }
    };
    while let Some(asked) = requests.next().await {
        let error = match decide(&asked.request, &info.instance) {
            Decision::Silence => continue,
            Decision::Refuse(why) => Some(why),
            Decision::Tell => None,
            Decision::Ask(stop) => {
                tracing::info!(?stop, "asked over NATS");
                shutdown.ask(stop);
                None
            }
        };
        let answer = WorkerAnswer {
            v: 1,
            ok: error.is_none(),
            error,
            worker_id: info.worker_id.clone(),
            instance: info.instance.clone(),
            host: info.host.clone(),
            state: state_of(shutdown.asked()),
            running: shared.running.load(Ordering::Relaxed),
            drain_timeout_s: shared.config.worker.drain_timeout_s,
        };
        requests.answer(asked, &answer).await;
    }
}

fn state_of(stop: Stop) -> WorkerState {
    match stop {
        Stop::Run => WorkerState::Ready,
        Stop::Drain => WorkerState::Draining,
        Stop::Leave => WorkerState::Leaving,
        Stop::Abort => WorkerState::Aborting,
    }
}

/// What to do about a request.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    /// Another process of this name is meant.
    Silence,
    Refuse(String),
    Tell,
    Ask(Stop),
}

fn decide(request: &Result<WorkerRequest, String>, instance: &str) -> Decision {
    let request = match request {
        Ok(request) => request,
        Err(error) => return Decision::Refuse(error.clone()),
    };
    if request.instance.as_ref().is_some_and(|wanted| wanted != instance) {
        return Decision::Silence;
    }
    match (request.v, request.action.as_str()) {
        (1, "drain") => Decision::Ask(if request.now { Stop::Abort } else { Stop::Drain }),
        (1, "status") => Decision::Tell,
        (1, other) => Decision::Refuse(format!("{other:?} is not known: drain or status")),
        (v, _) => Decision::Refuse(format!("version {v} of the contract is not known here: 1")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(v: u32, action: &str, now: bool, instance: Option<&str>) -> Result<WorkerRequest, String> {
        Ok(WorkerRequest { v, action: action.to_owned(), now, instance: instance.map(str::to_owned) })
    }

    #[test]
    fn only_what_is_understood_and_meant_for_this_process_is_done() {
        assert_eq!(decide(&request(1, "drain", false, None), "i"), Decision::Ask(Stop::Drain));
        assert_eq!(decide(&request(1, "drain", true, Some("i")), "i"), Decision::Ask(Stop::Abort));
        assert_eq!(decide(&request(1, "drain", true, Some("other")), "i"), Decision::Silence);
        assert_eq!(decide(&request(1, "status", true, None), "i"), Decision::Tell);
        assert!(matches!(decide(&request(1, "shout", false, None), "i"), Decision::Refuse(why) if why.contains("shout")));
        assert!(matches!(decide(&request(2, "drain", false, None), "i"), Decision::Refuse(_)), "it may mean something else there");
        assert!(matches!(decide(&Err("no JSON".to_owned()), "i"), Decision::Refuse(_)));
    }
}
