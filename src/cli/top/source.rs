//! Where the live view's news come from: the feed of events, and queues and workers asked now and then.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::super::Failed;
use super::model::{MOST_TASKS, Model, Update};
use crate::bus::feed::EventFeed;
use crate::bus::{Bus, BusError};
use crate::worker::clock::Clock;

/// Events before the newest that are read at the start, for the rates: a minute of a busy fleet, some megabytes.
const HISTORY: u64 = 5000;
/// Updates on their way to the view: enough to read on while it draws.
const BUFFER: usize = 1024;
/// Time between two looks at queues and workers: workers speak every five seconds.
const LOOK: Duration = Duration::from_secs(2);
/// How long the history may take when only one look is taken.
const HISTORY_WAIT: Duration = Duration::from_secs(5);

/// The present state, with the feed that goes on from it, and the last sequence that was there.
pub(super) async fn begin(bus: &Bus, clock: &Clock) -> Result<(Model, EventFeed, u64), BusError> {
    clock.look(bus).await;
    // The end of the stream before what runs: an event between the two is then read twice rather than never.
    let last = bus.last_sequence(&bus.subjects().events_stream()).await?;
    let mut model = Model::default();
    model.apply(Update::Running(bus.running(MOST_TASKS).await?));
    for update in look(bus).await? {
        model.apply(update);
    }
    let first = (last + 1).saturating_sub(HISTORY).max(1);
    let mut feed = bus.event_feed(None, first);
    if first > 1
        && let Ok(Some(event)) = tokio::time::timeout(HISTORY_WAIT, feed.next()).await
    {
        let event = event?;
        model.apply(Update::Since(event.stored));
        model.apply(Update::Event(Box::new(event)));
    }
    Ok((model, feed, last))
}

/// Reads on up to `last`: of a last event that cannot be read nothing comes, therefore not for ever.
pub(super) async fn history(model: &mut Model, mut feed: EventFeed, last: u64) -> Result<(), BusError> {
    let deadline = tokio::time::Instant::now() + HISTORY_WAIT;
    while model.counted() < last {
        let Ok(Some(event)) = tokio::time::timeout_at(deadline, feed.next()).await else { break };
        model.apply(Update::Event(Box::new(event?)));
    }
    Ok(())
}

async fn look(bus: &Bus) -> Result<[Update; 2], BusError> {
    Ok([Update::Queues(bus.queues().await?), Update::Workers(bus.workers().await?)])
}

/// What is new, for as long as it lives.
pub(super) struct Source {
    updates: mpsc::Receiver<Update>,
    readers: JoinSet<BusError>,
}

impl Source {
    /// Starts to read.
    pub(super) fn start(bus: &Bus, feed: EventFeed, clock: &Arc<Clock>) -> Self {
        let (sender, updates) = mpsc::channel(BUFFER);
        let mut readers = JoinSet::new();
        readers.spawn(follow(feed, sender.clone()));
        readers.spawn(watch(bus.clone(), Arc::clone(clock), sender));
        Self { updates, readers }
    }

    /// The next update. Cancel safe.
    ///
    /// # Errors
    /// When a reader cannot go on.
    pub(super) async fn next(&mut self) -> Result<Update, Failed> {
        tokio::select! {
            Some(update) = self.updates.recv() => Ok(update),
            Some(end) = self.readers.join_next() => Err(match end {
                Ok(error) => error.into(),
                Err(panic) => Failed::new(super::super::Exit::Error, format!("a defect of windlass: {panic}")),
            }),
        }
    }

    /// An update that is there already.
    pub(super) fn ready(&mut self) -> Option<Update> {
        self.updates.try_recv().ok()
    }
}

async fn follow(mut feed: EventFeed, updates: mpsc::Sender<Update>) -> BusError {
    loop {
        match feed.next().await {
            // Nobody listens when the view is left.
            Some(Ok(event)) => drop(updates.send(Update::Event(Box::new(event))).await),
            Some(Err(error)) => return error,
            None => return BusError::Closed { what: "the feed of events".to_owned() },
        }
    }
}

async fn watch(bus: Bus, clock: Arc<Clock>, updates: mpsc::Sender<Update>) -> BusError {
    loop {
        tokio::time::sleep(LOOK).await;
        clock.look(&bus).await;
        match look(&bus).await {
            Ok(news) => {
                for update in news {
                    drop(updates.send(update).await);
                }
            }
            Err(error @ BusError::Closed { .. }) => return error,
            Err(error) => drop(updates.send(Update::Trouble(error.to_string())).await),
        }
    }
}
