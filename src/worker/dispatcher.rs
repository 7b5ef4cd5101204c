//! The loop that takes work in: permits first, then requests, then one task per delivery.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::capacity::{Need, Permit};
use super::precedence::Precedence;
use super::schedule::{Ask, Others, Schedule};
use super::{Shared, Stop, WorkerError, attempt};
use crate::bus::delivery::Delivery;
use crate::bus::provision::{self, Restored};
use crate::bus::pull::{Pulled, Puller, Trouble};
use crate::bus::{BusError, Subjects};
use crate::retry::Delays;
use crate::task::{ClassName, Priority};
use crate::telemetry::causes;
use crate::telemetry::metrics;

/// Which queue of which class.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct QueueId {
    class: ClassName,
    queue: usize,
}

/// One request to a queue's task. The channel holds one: there is one request per queue at a time.
type Asks = mpsc::Sender<(u32, Option<Duration>)>;

#[derive(Debug)]
struct Lane {
    schedule: Schedule,
    default_need: Need,
    asks: Vec<Asks>,
    /// Requests of a turn that takes several.
    looks: usize,
    /// Permits promised to the open request of each queue.
    promised: Vec<Vec<Permit>>,
}

/// Owns what is asked, promised and under way.
pub struct Dispatcher {
    shared: Arc<Shared>,
    lanes: BTreeMap<ClassName, Lane>,
    /// The classes: first who asked longest ago.
    turns: VecDeque<ClassName>,
    precedence: Precedence,
    attempts: JoinSet<()>,
    queues: JoinSet<Result<(), BusError>>,
    pulled: mpsc::Receiver<(QueueId, Pulled)>,
    pulled_sender: mpsc::Sender<(QueueId, Pulled)>,
}

impl Dispatcher {
    /// Of the worker `shared`.
    #[must_use]
    pub fn new(shared: Arc<Shared>) -> Self {
        // A queue's task waits with what it pulled while this loop is behind; each has at most one batch under way.
        let (pulled_sender, pulled) = mpsc::channel(64);
        let (lanes, turns, precedence) = (BTreeMap::new(), VecDeque::new(), Precedence::new(Arc::clone(&shared)));
        Self { shared, lanes, turns, precedence, attempts: JoinSet::new(), queues: JoinSet::new(), pulled, pulled_sender }
    }

    /// Takes work in until the worker has to stop, and waits for what runs.
    ///
    /// # Errors
    /// When the supervisor or the connection is gone for good.
    pub async fn run(mut self) -> Result<(), WorkerError> {
        let mut engine = self.shared.containers.follow();
        self.open_queues().await?;
        self.queues.spawn(self.precedence.looks());
        self.shared.pulls.begin();
        let mut stop = self.shared.stop.clone();
        let mut fit = self.shared.ground.follow();
        let shared = Arc::clone(&self.shared);
        loop {
            if *fit.borrow_and_update() {
                self.ask();
            }
            tokio::select! {
                biased;
                _ = stop.wait_for(|s| *s >= Stop::Drain) => break,
                () = shared.supervisor.supervisor_lost() => return self.supervisor_lost().await,
                Some((id, pulled)) = self.pulled.recv() => self.on_pulled(id, pulled),
                Some(ended) = self.attempts.join_next(), if !self.attempts.is_empty() => note_panic(ended),
                Some(queue) = self.queues.join_next() => match queue {
                    Ok(ended) => ended?,
                    // A worker that is deaf at one of its queues is worse than none.
                    Err(defect) => if let Ok(panic) = defect.try_into_panic() { std::panic::resume_unwind(panic) },
                },
                () = shared.capacity.freed() => {}
                () = self.precedence.changed() => {}
                Ok(()) = fit.changed() => {}
                Ok(()) = engine.changed() => {
                    shared.look_at_classes();
                    self.open_queues().await?;
                }
            }
        }
        self.drain().await
    }

    /// Opens the queues of the classes that are served and were not before. Those that are not any more stay open, and are not
    /// asked.
    async fn open_queues(&mut self) -> Result<(), BusError> {
        let shared = Arc::clone(&self.shared);
        let new = |lanes: &BTreeMap<ClassName, Lane>, class: &ClassName| shared.serving.serves(class) && !lanes.contains_key(class);
        for (class, settings) in &shared.config.classes {
            if !new(&self.lanes, class) {
                continue;
            }
            let mut asks = Vec::new();
            for (queue, priority) in Priority::ALL.into_iter().enumerate() {
                let name = Subjects::consumer(class, priority);
                let puller = shared.bus.puller(&name).await?;
                let (sender, receiver) = mpsc::channel(1);
                let id = QueueId { class: class.clone(), queue };
                let queue = Queue { shared: Arc::clone(&shared), id, priority, name, troubled: false, said: None };
                self.queues.spawn(queue.run(puller, receiver, self.pulled_sender.clone()));
                asks.push(sender);
            }
            let lane = Lane {
                schedule: Schedule::new(asks.len()),
                default_need: Need::of_class(settings),
                promised: asks.iter().map(|_| Vec::new()).collect(),
                asks,
                looks: 0,
            };
            self.turns.push_back(class.clone());
            self.lanes.insert(class.clone(), lane);
        }
        Ok(())
    }

    /// Spends free permits on requests, one a turn. The classes take turns: where there are fewer permits than queues, none waits
    /// for ever behind the others. Who cannot ask keeps its place.
    fn ask(&mut self) {
        let now = Instant::now();
        let mut place = 0;
        while let Some(class) = self.turns.get(place).cloned() {
            if self.ask_one(&class, now) {
                self.had_request(&class);
                place = 0;
            } else {
                place += 1;
            }
        }
        let first = self.first_without_room(None).map(|(class, _)| class.clone());
        self.precedence.has_no_room(first);
    }

    /// A turn is one request. That of a class which room was kept for ends only with a message, or when all of its queues were
    /// looked at: they do not all have what waits, and room was dear.
    fn had_request(&mut self, class: &ClassName) {
        let waited_for = self.precedence.is_waited_for(class);
        let Some(lane) = self.lanes.get_mut(class) else { return };
        lane.looks += 1;
        if !waited_for || lane.looks >= lane.asks.len() {
            self.end_turn(class);
        }
    }

    fn end_turn(&mut self, class: &ClassName) {
        if let Some(lane) = self.lanes.get_mut(class) {
            lane.looks = 0;
        }
        self.turns.retain(|other| other != class);
        self.turns.push_back(class.clone());
    }

    /// The class that has to wait for room for its next request longest, before the turn of `until`, and that would not have to if
    /// others with less need left it some.
    fn first_without_room(&self, until: Option<&ClassName>) -> Option<(&ClassName, Need)> {
        let (capacity, serving) = (&self.shared.capacity, &self.shared.serving);
        let served = |class: &&ClassName| serving.serves(class);
        let before = self.turns.iter().take_while(|class| Some(*class) != until).filter(served);
        let mut wanting = before.filter_map(|class| {
            let lane = self.lanes.get(class).filter(|lane| lane.schedule.is_idle())?;
            Some((class, lane.default_need))
        });
        let less = |need: Need| self.lanes.iter().any(|(class, lane)| serving.serves(class) && lane.default_need.is_less_than(need));
        wanting.find(|(class, need)| less(*need) && capacity.lacks_room(class, *need))
    }

    /// One request of that class; false when there is nothing to ask, or nothing to ask with.
    fn ask_one(&mut self, class: &ClassName, now: Instant) -> bool {
        if !self.shared.serving.serves(class) {
            return false;
        }
        let waited_for = self.precedence.is_waited_for(class);
        let first = self.first_without_room(Some(class));
        let kept = first.filter(|(class, _)| self.precedence.is_waited_for(class)).map(|(_, need)| need);
        let (capacity, serving) = (&self.shared.capacity, &self.shared.serving);
        let mut others = Others::default();
        for (other, lane) in self.lanes.iter().filter(|(other, _)| *other != class && serving.serves(other)) {
            others.flowing |= !waited_for && lane.schedule.is_flowing() && capacity.available(other, lane.default_need, None) > 0;
            others.unwaited += lane.schedule.unwaited();
        }
        let Some(lane) = self.lanes.get_mut(class) else { return false };
        let free = capacity.available(class, lane.default_need, kept);
        if waited_for && lane.looks == 0 && free > 0 {
            lane.schedule.look_again();
        }
        let Some(Ask { queue, batch, wait }) = lane.schedule.next(free, now, others) else { return false };
        let promised: Vec<Permit> = std::iter::from_fn(|| capacity.take(class, lane.default_need)).take(batch as usize).collect();
        let Some(batch) = u32::try_from(promised.len()).ok().filter(|promised| *promised > 0) else {
            // Another worker has the device by now.
            lane.schedule.ended(queue, batch, now);
            return false;
        };
        lane.promised[queue] = promised;
        if lane.asks[queue].try_send((batch, wait)).is_err() {
            tracing::error!(%class, queue, "a queue was asked while it was still answering");
        }
        true
    }

    fn on_pulled(&mut self, id: QueueId, pulled: Pulled) {
        let Some(lane) = self.lanes.get_mut(&id.class) else { return };
        match pulled {
            Pulled::Delivery(delivery) => {
                metrics::note(|m| m.delivered(&id.class, delivery.deliveries));
                let permit = lane.promised[id.queue].pop().or_else(|| self.shared.capacity.take(&id.class, lane.default_need));
                match permit {
                    // Asked for before the disk failed: for another worker.
                    _ if !self.shared.ground.is_fit() => self.give_back(*delivery, self.shared.shed_delay()),
                    Some(permit) => {
                        self.attempts.spawn(attempt::attempt(Arc::clone(&self.shared), *delivery, permit));
                        if lane.looks > 0 {
                            self.end_turn(&id.class);
                        }
                    }
                    // It came after its request had been given up for lost.
                    None => self.give_back(*delivery, Duration::ZERO),
                }
            }
            Pulled::Ended { unused, trouble } => {
                lane.promised[id.queue].clear();
                lane.schedule.ended(id.queue, unused, Instant::now());
                if let Some(trouble) = trouble {
                    tracing::debug!(class = %id.class, queue = id.queue, %trouble, "pull ended");
                }
            }
        }
    }

    fn give_back(&mut self, delivery: Delivery, delay: Duration) {
        self.attempts.spawn(attempt::hand_back(Arc::clone(&self.shared), delivery, delay));
    }

    /// No new work: what comes in is given back, what runs gets its time.
    async fn drain(mut self) -> Result<(), WorkerError> {
        tracing::info!(running = self.attempts.len(), "draining");
        for lane in self.lanes.values_mut() {
            lane.promised.iter_mut().for_each(Vec::clear);
            // A queue without this end stops when its open request has ended.
            lane.asks.clear();
        }
        drop(self.pulled_sender);
        let shared = Arc::clone(&self.shared);
        let mut attempts = self.attempts;
        let mut queues_open = true;
        while queues_open || !attempts.is_empty() {
            tokio::select! {
                pulled = self.pulled.recv(), if queues_open => match pulled {
                    Some((id, Pulled::Delivery(delivery))) => {
                        metrics::note(|m| m.delivered(&id.class, delivery.deliveries));
                        attempts.spawn(attempt::hand_back(Arc::clone(&shared), *delivery, Duration::ZERO));
                    }
                    Some((_, Pulled::Ended { .. })) => {}
                    None => queues_open = false,
                },
                Some(ended) = attempts.join_next(), if !attempts.is_empty() => note_panic(ended),
                () = shared.supervisor.supervisor_lost() => break,
                () = overdue(shared.stop.clone()) => {
                    tracing::warn!(left = attempts.len(), "not everything could be given back in time");
                    break;
                }
            }
        }
        attempts.shutdown().await;
        tracing::info!("drained");
        Ok(())
    }

    /// Its tasks are dead: each attempt gives its own back. The worker cannot go on.
    async fn supervisor_lost(mut self) -> Result<(), WorkerError> {
        tracing::error!("the supervisor is gone");
        let until = Instant::now() + Duration::from_secs(10);
        while !self.attempts.is_empty() {
            match tokio::time::timeout_at(until, self.attempts.join_next()).await {
                Ok(Some(ended)) => note_panic(ended),
                Ok(None) | Err(_) => break,
            }
        }
        Err(WorkerError::SupervisorLost)
    }
}

/// Time that giving back may take once the worker was told to abort.
const ABORT_TIME: Duration = Duration::from_secs(10);

async fn overdue(mut stop: watch::Receiver<Stop>) {
    if stop.wait_for(|s| *s >= Stop::Abort).await.is_ok() {
        tokio::time::sleep(ABORT_TIME).await;
    } else {
        std::future::pending::<()>().await;
    }
}

fn note_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        // Its message is handed out again; its process was killed with its handle.
        tracing::error!(error = %causes(&error), "an attempt ended by a defect of windlass");
    }
}

/// Serves one queue: one request at a time, everything that arrives is passed on.
struct Queue {
    shared: Arc<Shared>,
    id: QueueId,
    priority: Priority,
    /// Of its consumer.
    name: String,
    /// Whether its last request ended badly.
    troubled: bool,
    /// When its trouble was last said.
    said: Option<Instant>,
}

/// Shortest time between two words to the operator about a queue that cannot be asked.
const QUIET: Duration = Duration::from_secs(30);

impl Queue {
    async fn run(
        mut self,
        mut puller: Puller,
        mut asks: mpsc::Receiver<(u32, Option<Duration>)>,
        pulled: mpsc::Sender<(QueueId, Pulled)>,
    ) -> Result<(), BusError> {
        let mut delays = Delays::new(Duration::from_millis(50), Duration::from_secs(2));
        let mut closing = false;
        while !closing || puller.is_open() {
            // Both arms are cancel safe.
            tokio::select! {
                ask = asks.recv(), if !closing => match ask {
                    Some((batch, wait)) => puller.ask(batch, wait).await?,
                    None => closing = true,
                },
                event = puller.next() => {
                    let event = event?;
                    self.note(&event);
                    if let Pulled::Ended { trouble: Some(trouble), .. } = &event {
                        if !closing {
                            self.mend(trouble).await;
                        }
                        // Nobody there, a leader change, too many waiting: not as fast as the loop can turn.
                        delays.wait().await;
                    } else {
                        delays = Delays::new(Duration::from_millis(50), Duration::from_secs(2));
                    }
                    if pulled.send((self.id.clone(), event)).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    /// Tells the worker's health when the queue comes into trouble, or out of it. A new connection alone is none.
    fn note(&mut self, event: &Pulled) {
        let trouble = match event {
            Pulled::Ended { trouble: Some(Trouble::Reconnected), .. } => return,
            Pulled::Ended { trouble: Some(trouble @ (Trouble::Silent | Trouble::Status(_))), .. } => Some(trouble.to_string()),
            Pulled::Ended { trouble: None, .. } | Pulled::Delivery(_) => None,
        };
        if trouble.is_some() || self.troubled {
            self.troubled = trouble.is_some();
            self.shared.pulls.ended(&self.name, trouble);
            self.shared.streams.doubt();
        }
    }

    /// A request ended badly: says so, and makes the consumer anew when it is gone.
    async fn mend(&mut self, trouble: &Trouble) {
        // The connection's own words are enough.
        if *trouble == Trouble::Reconnected {
            return;
        }
        let class = &self.id.class;
        let restored = match trouble {
            Trouble::Status(_) => provision::restore_consumer(&self.shared.bus, &self.shared.config, class, self.priority).await,
            Trouble::Silent | Trouble::Reconnected => Ok(Restored::Present),
        };
        let quiet = self.said.is_some_and(|said| said.elapsed() < QUIET);
        match restored {
            Ok(Restored::Made) => tracing::warn!(%class, priority = %self.priority, %trouble, "its consumer was gone: made anew"),
            Ok(Restored::Present) | Err(_) if quiet => return,
            Ok(Restored::Present) => tracing::warn!(%class, priority = %self.priority, %trouble, "cannot pull, trying again"),
            Err(error) => tracing::error!(%class, priority = %self.priority, error = %causes(&error), "cannot pull, trying again"),
        }
        self.said = Some(Instant::now());
    }
}
