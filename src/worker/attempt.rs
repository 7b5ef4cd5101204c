//! One delivery through all stages: decode, plan, claim, run, commit, acknowledge.
//!
//! ```text
//! Delivery ─ decode ─ plan ─ decide ─ claim ─▶ drive ─────────────────────────────▶ LeaseEnd
//!                                              │  run ─ dispose ─ commit            ack | give back | forsake
//!              renewer, cancel, drain ─signals─┘
//! ```

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::time::Instant;
use tracing::Instrument as _;

use super::Shared;
use super::capacity::{Need, Permit};
use super::drive::Claimed;
use super::story::Story;
use super::taken::{Running, span};
use crate::bus::BusError;
use crate::bus::chain::{ChainEnd, ChainWriter, Head};
use crate::bus::control::{CancelRequest, CancelWatch};
use crate::bus::delivery::Delivery;
use crate::claim::{Attempt, Decision, Ending, Letter, Situation, decide, is_stale, letter};
use crate::crash::{self, Point};
use crate::intake::lease::lease_end;
use crate::intake::{self, Lease, Poison, Task};
use crate::plan::{self, Plan, Policy, Rejection};
use crate::report::{AllChunksConfirmed, Receipt};
use crate::retry::Delays;
use crate::task::{ClassName, Reason, TaskId, Tenant};
use crate::telemetry::metrics::{self, Lost, Publication};
use crate::telemetry::{causes, record_attempt};
use crate::wire::event::Encoded;

/// Longest wait for the container engine before a claim.
const ENGINE_ANSWERS: Duration = Duration::from_secs(5);

/// What becomes of the message.
#[derive(Debug)]
pub(super) enum LeaseEnd {
    Ack(Receipt),
    GiveBack(Duration),
    Forsake,
}

impl From<Result<Receipt, Lost>> for LeaseEnd {
    fn from(told: Result<Receipt, Lost>) -> Self {
        told.map_or(Self::Forsake, Self::Ack)
    }
}

impl LeaseEnd {
    async fn end(self, lease: Lease) {
        match self {
            Self::Ack(receipt) => {
                crash::point(Point::Committed);
                lease.ack(receipt).await;
            }
            Self::GiveBack(delay) => lease.give_back(delay).await,
            Self::Forsake => lease.forsake(),
        }
    }
}

/// Takes one delivery to its end. `permit` is held throughout.
pub async fn attempt(shared: Arc<Shared>, delivery: Delivery, mut permit: Permit) {
    let lease = Lease::new(delivery);
    crash::point(Point::Pulled);
    let class = permit.class().clone();
    let _running = Running::begin(&shared, &class);
    let decoded = intake::decode(shared.bus.subjects(), lease.delivery());
    let span = span(&decoded);
    let take = async {
        let end = match decoded {
            Err(poison) => bury_poison(&shared, lease.delivery(), &class, poison).await,
            Ok(task) => handle(&shared, &lease, &task, &mut permit).await,
        };
        end.end(lease).await;
    };
    Box::pin(take).instrument(span).await;
}

/// Gives back a delivery that nobody waits for any more, unless its task runs on a later one by now: handed out again, it
/// would end a healthy attempt.
pub async fn hand_back(shared: Arc<Shared>, delivery: Delivery, delay: Duration) {
    let lease = Lease::new(delivery);
    let decoded = intake::decode(shared.bus.subjects(), lease.delivery());
    let span = span(&decoded);
    let hand = async {
        let end = match decoded {
            Err(_) => LeaseEnd::GiveBack(delay),
            Ok(task) => match patiently(&shared, &lease, || shared.bus.head(&task.tenant, &task.task_id)).await {
                Some(Some(head)) if is_stale(&head, lease.delivery().deliveries, lease.delivery().submitted_at) => LeaseEnd::Forsake,
                Some(_) => LeaseEnd::GiveBack(delay),
                None => LeaseEnd::Forsake,
            },
        };
        end.end(lease).await;
    };
    Box::pin(hand).instrument(span).await;
}

fn situation<'a>(
    shared: &Shared,
    lease: &Lease,
    task: &'a Task,
    plan: &'a Result<Plan, Rejection>,
    head: Option<&'a Head>,
    cancel: Option<&'a CancelRequest>,
) -> Situation<'a> {
    let delivery = lease.delivery();
    Situation { task, plan, head, cancel, deliveries: delivery.deliveries, submitted_at: delivery.submitted_at, now: shared.clock.now() }
}

async fn handle(shared: &Arc<Shared>, lease: &Lease, task: &Task, permit: &mut Permit) -> LeaseEnd {
    crash::point(Point::Decoded);
    let Some(policy) = Policy::of(&shared.config, task, shared.enforced) else { return LeaseEnd::GiveBack(shared.shed_delay()) };
    let plan = plan::plan(task, &policy);
    // Listen first, then read what is stored: so no request is missed.
    let mut cancel = shared.cancels.watch(&task.tenant, &task.task_id);
    if let Some(end) = first_delivery(shared, lease, task, &plan, permit, &mut cancel).await {
        return end;
    }
    let Some((head, stored)) = history(shared, lease, &task.tenant, &task.task_id).await else { return LeaseEnd::Forsake };
    let stored = stored.or_else(|| cancel.heard());
    let decision = decide(&situation(shared, lease, task, &plan, head.as_ref(), stored.as_ref()));
    if matches!(decision, Decision::Start(_) | Decision::End(_)) {
        match queued_twice(shared, lease, task, head.as_ref()).await {
            Some(false) => {}
            Some(true) => {
                tracing::warn!(subject = lease.delivery().subject, "queued twice: this message waits for the end of the first");
                return LeaseEnd::GiveBack(shared.ack_wait());
            }
            None => return LeaseEnd::Forsake,
        }
    }
    match (decision, plan) {
        (Decision::AlreadyOver(over, None), _) => LeaseEnd::Ack(Receipt::of_end(over)),
        (Decision::AlreadyOver(_, Some(reason)), _) => {
            let error = head.and_then(|head| head.event.error).unwrap_or_default();
            bury(shared, lease.delivery(), &task.class, reason, &error).await.map_or(LeaseEnd::Forsake, LeaseEnd::Ack)
        }
        (Decision::IdReused, _) => {
            let error = format!(
                "task_id: {:?} was used before by a task with other content; a task's id is its own for ever",
                task.task_id.as_str()
            );
            bury(shared, lease.delivery(), &task.class, Reason::InvalidAssignment, &error).await.map_or(LeaseEnd::Forsake, LeaseEnd::Ack)
        }
        (Decision::Stale, _) => {
            tracing::info!("delivered too late: another worker has it");
            LeaseEnd::Forsake
        }
        (Decision::NotYet(wait), _) => LeaseEnd::GiveBack(wait),
        (Decision::End(ending), plan) => {
            let max_attempts = plan.map_or(0, |p| p.max_attempts.value);
            let story = Story::new(&shared.instance.info, task, lease.delivery(), ending.attempts, max_attempts);
            end_unrun(shared, lease.delivery(), writer(shared, task, head.as_ref()), task, &story, &ending).await
        }
        // A plan that was rejected never leads to a start.
        (Decision::Start(_), Err(_)) => LeaseEnd::Forsake,
        (Decision::Start(number), Ok(plan)) => {
            if number.number > 1 {
                crash::point(Point::TakeoverDecided);
            }
            let started = start(shared, lease, task, &plan, number, head.as_ref(), permit, &mut cancel).await;
            // Somebody else was faster.
            started.unwrap_or(LeaseEnd::Forsake)
        }
    }
}

/// Whether the chain is that of an older message of this task, still queued: it was published again, under another class or
/// priority, where the queue cannot refuse it. None when that was not answered in time.
async fn queued_twice(shared: &Shared, lease: &Lease, task: &Task, head: Option<&Head>) -> Option<bool> {
    let delivery = lease.delivery();
    if head.is_none_or(|head| head.event.task.submitted_at == delivery.submitted_at) {
        return Some(false);
    }
    let first = patiently(shared, lease, || shared.bus.first_queued(&task.tenant, &task.task_id)).await?;
    Some(first.is_some_and(|sequence| sequence < delivery.sequence))
}

/// A message that comes for the first time has no chain, almost always: the claim itself finds out if it has. None when its
/// history has to be read after all.
async fn first_delivery(
    shared: &Arc<Shared>,
    lease: &Lease,
    task: &Task,
    plan: &Result<Plan, Rejection>,
    permit: &mut Permit,
    cancel: &mut CancelWatch,
) -> Option<LeaseEnd> {
    let Ok(accepted) = plan else { return None };
    if lease.delivery().deliveries != 1 {
        return None;
    }
    let Some(stored) = patiently(shared, lease, || shared.bus.stored_cancel(&task.tenant, &task.task_id)).await else {
        return Some(LeaseEnd::Forsake);
    };
    let stored = stored.or_else(|| cancel.heard());
    match decide(&situation(shared, lease, task, plan, None, stored.as_ref())) {
        // What does not fit is looked at more closely before it is given back: a late delivery may be another worker's by now.
        Decision::Start(number) if permit.resize(Need::of(accepted)) => {
            start(shared, lease, task, accepted, number, None, permit, cancel).await
        }
        Decision::Start(_) | Decision::AlreadyOver(..) | Decision::IdReused | Decision::Stale | Decision::NotYet(_) | Decision::End(_) => {
            None
        }
    }
}

fn writer(shared: &Shared, task: &Task, head: Option<&Head>) -> ChainWriter {
    ChainWriter::after(shared.bus.clone(), task.tenant.clone(), task.task_id.clone(), shared.config.events.encoding, head)
}

/// Takes the task from its claim to its end; none when its chain does not end with `head`.
#[expect(clippy::too_many_arguments, reason = "each is a thing of its own, and they meet only here")]
async fn start(
    shared: &Arc<Shared>,
    lease: &Lease,
    task: &Task,
    plan: &Plan,
    number: Attempt,
    head: Option<&Head>,
    permit: &mut Permit,
    cancel: &mut CancelWatch,
) -> Option<LeaseEnd> {
    let need = Need::of(plan);
    if !permit.resize(need) {
        let delay = if shared.capacity.could_hold(need) { shared.shed_delay() } else { shared.shed_delay() * 5 };
        tracing::debug!(?need, "does not fit here now, given back");
        return Some(LeaseEnd::GiveBack(delay));
    }
    if plan.container.is_some() && !engine_answers(shared).await {
        return Some(LeaseEnd::GiveBack(shared.shed_delay()));
    }
    record_attempt(number.number);
    let story = Story::new(&shared.instance.info, task, lease.delivery(), number, plan.max_attempts.value);
    let traceparent = lease.delivery().header("traceparent");
    let (gpus, lost) = (permit.gpus(), AtomicBool::new(false));
    let claimed = Claimed { shared, lease, task, plan, story: &story, attempt: number, traceparent, gpus, lost };
    claimed.claim_and_drive(writer(shared, task, head), cancel).await
}

/// Before a container is claimed: no attempt is spent on an engine that is away.
async fn engine_answers(shared: &Shared) -> bool {
    match tokio::time::timeout(ENGINE_ANSWERS, shared.containers.engine()).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => {
            tracing::info!(error = %causes(&error), "given back: the container engine does not answer");
            false
        }
        Err(_) => {
            tracing::info!("given back: the container engine takes too long to answer");
            shared.containers.doubt();
            false
        }
    }
}

/// The last event of the chain and the stored cancel request; none when the server did not answer in time.
async fn history(shared: &Shared, lease: &Lease, tenant: &Tenant, task_id: &TaskId) -> Option<(Option<Head>, Option<CancelRequest>)> {
    patiently(shared, lease, || futures_util::future::try_join(shared.bus.head(tenant, task_id), shared.bus.stored_cancel(tenant, task_id)))
        .await
}

/// Asks until there is an answer; none when that takes longer than the message is surely ours.
async fn patiently<T, F: Future<Output = Result<T, BusError>>>(shared: &Shared, lease: &Lease, ask: impl Fn() -> F) -> Option<T> {
    let deadline = claim_deadline(shared, lease.delivery());
    let mut delays = Delays::new(Duration::from_millis(50), Duration::from_secs(1));
    loop {
        match tokio::time::timeout_at(deadline, ask()).await {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(error)) => {
                tracing::warn!(error = %causes(&error), subject = lease.delivery().subject, "cannot read the task's history yet")
            }
            Err(_) => return None,
        }
        if tokio::time::timeout_at(deadline, delays.wait()).await.is_err() {
            return None;
        }
    }
}

/// Until when a claim may be tried: afterwards the message may be another worker's.
pub(super) fn claim_deadline(shared: &Shared, delivery: &Delivery) -> Instant {
    lease_end(delivery.received, shared.ack_wait())
}

/// Stores a dead letter; none when that could not be confirmed while the message is held.
async fn bury(shared: &Shared, delivery: &Delivery, class: &ClassName, reason: Reason, error: &str) -> Option<Receipt> {
    let deadline = claim_deadline(shared, delivery);
    let mut delays = Delays::new(Duration::from_millis(50), Duration::from_secs(1));
    loop {
        let sent = Instant::now();
        match tokio::time::timeout_at(deadline, shared.bus.bury(delivery, &shared.instance.info.worker_id, reason, error)).await {
            Ok(Ok(letter)) => {
                metrics::note(|m| {
                    m.confirmed(Publication::DeadLetter, sent.elapsed());
                    m.buried(class, reason);
                });
                crash::point(Point::LetterStored);
                return Some(Receipt::of_dead_letter(letter));
            }
            Ok(Err(BusError::TooLarge { what, text })) => {
                // Only the headers that a dead letter adds can have made it too large: rather keep it queued than lose it.
                metrics::note(|m| m.refused(Publication::DeadLetter));
                tracing::error!(what, text, "a dead letter does not fit into max_payload");
                return None;
            }
            Ok(Err(error)) => tracing::warn!(error = %causes(&error), "dead letter not confirmed yet"),
            Err(_) => return None,
        }
        if tokio::time::timeout_at(deadline, delays.wait()).await.is_err() {
            return None;
        }
        metrics::note(|m| m.published_again(Publication::DeadLetter));
    }
}

async fn bury_poison(shared: &Arc<Shared>, delivery: &Delivery, class: &ClassName, poison: Poison) -> LeaseEnd {
    tracing::warn!(subject = delivery.subject, error = poison.error, "not a task");
    let Some(buried) = bury(shared, delivery, class, Reason::InvalidAssignment, &poison.error).await else { return LeaseEnd::Forsake };
    let Some((tenant, task_id, _)) = poison.names else { return LeaseEnd::Ack(buried) };
    let cancel_lease = Lease::new(delivery.clone());
    let Some((head, _)) = history(shared, &cancel_lease, &tenant, &task_id).await else { return LeaseEnd::Forsake };
    cancel_lease.forsake();
    let attempts = match &head {
        // A real task of that id has a chain of its own: this message is no part of it.
        Some(head) if head.event.task.assignment_sha256 != crate::wire::sha256_hex(&delivery.payload) => return LeaseEnd::Ack(buried),
        Some(head) if head.event.event.is_terminal() => return LeaseEnd::Ack(buried),
        Some(head) => Attempt { number: head.event.task.attempt, released: head.event.task.released_attempts },
        None => Attempt { number: 0, released: 0 },
    };
    let story = Story::of_poison(&shared.instance.info, (&tenant, &task_id, class), delivery, attempts);
    let mut writer = ChainWriter::after(shared.bus.clone(), tenant.clone(), task_id, shared.config.events.encoding, head.as_ref());
    let encoded = writer.encode(|link| story.not_run(Reason::InvalidAssignment, &poison.error, Some(Poison::HINT), link));
    let told = append_end(&mut writer, encoded, None).await;
    metrics::note(|m| {
        if told.is_ok() {
            m.finished(class, &tenant, Reason::InvalidAssignment)
        }
    });
    told.into()
}

/// Ends a task that is not run.
async fn end_unrun(
    shared: &Arc<Shared>,
    delivery: &Delivery,
    mut writer: ChainWriter,
    task: &Task,
    story: &Story,
    ending: &Ending,
) -> LeaseEnd {
    let bury = || bury(shared, delivery, &task.class, ending.reason, &ending.error);
    if letter(ending.reason) == Letter::First && bury().await.is_none() {
        return LeaseEnd::Forsake;
    }
    let encoded = writer.encode(|link| story.not_run(ending.reason, &ending.error, ending.hint.as_deref(), link));
    let told = append_end(&mut writer, encoded, None).await;
    metrics::note(|m| {
        if told.is_ok() {
            m.finished(&task.class, &task.tenant, ending.reason)
        }
    });
    let end = told.into();
    match (letter(ending.reason), end) {
        (Letter::After, LeaseEnd::Ack(_)) => {
            crash::point(Point::LetterOwed);
            bury().await.map_or(LeaseEnd::Forsake, LeaseEnd::Ack)
        }
        (Letter::First, end) => {
            crash::point(Point::LetterTold);
            end
        }
        (Letter::After | Letter::None, end) => end,
    }
}

/// Appends a terminal event and makes the receipt. `chunks` belongs to the manifest that the event carries, if it has one.
pub(super) async fn append_end(
    writer: &mut ChainWriter,
    encoded: Result<Encoded, BusError>,
    chunks: Option<AllChunksConfirmed>,
) -> Result<Receipt, Lost> {
    let appended = match encoded {
        Ok(encoded) => writer.append_encoded(encoded.clone()).await.map(|fate| ChainEnd::of_append(&encoded, fate)),
        Err(error) => Err(error),
    };
    match appended {
        Ok(Some(end)) => Ok(Receipt::of_commit(end, chunks)),
        Ok(None) => Err(Lost::Fenced),
        Err(error) => {
            tracing::error!(error = %causes(&error), "a terminal event cannot be stored");
            Err(Lost::Unstored)
        }
    }
}
