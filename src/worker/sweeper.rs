//! Repair of what crashes leave: chains without an end and without a queued message are queued again, and queued messages
//! whose chain has ended are removed. One worker of the fleet does it at a time; two would do no harm.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use tokio::time::Instant;

use super::Shared;
use super::story::Story;
use crate::bus::BusError;
use crate::bus::chain::{Appended, ChainWriter, Head};
use crate::bus::submit::{SubmitError, Submitted};
use crate::claim::owed_letter;
use crate::crash::{self, Point};
use crate::task::event::RawAssignment;
use crate::task::{EventKind, Reason, TaskId, Tenant, Time};
use crate::telemetry::causes;
use crate::telemetry::metrics;

/// Time that one sweep may take; the next goes on where it stopped.
const BUDGET: Duration = Duration::from_secs(5);

/// Where the sweeps are.
#[derive(Debug, Default)]
pub struct Sweeper {
    lock: Option<u64>,
    /// The last claim that was looked at, with the time that the server gave it.
    events: Option<(u64, Time)>,
    tasks: u64,
    open: BTreeSet<(Tenant, TaskId)>,
}

/// What one sweep did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Tasks queued again.
    pub requeued: u32,
    /// Queued messages removed.
    pub removed: u32,
    /// Tasks ended, because what they were is not known any more.
    pub ended: u32,
}

impl Sweeper {
    /// Sweeps for ever, every `sweeper.interval_s`.
    pub async fn run(mut self, shared: Arc<Shared>) {
        let interval = Duration::from_secs_f64(shared.config.sweeper.interval_s);
        loop {
            tokio::time::sleep(interval).await;
            match self.sweep(&shared).await {
                Ok(Some(swept)) if swept != Swept::default() => tracing::warn!(?swept, "repaired what a crash had left"),
                Ok(_) => {}
                Err(error) => tracing::warn!(error = %causes(&error), "sweep not finished"),
            }
        }
    }

    /// One sweep; none when another worker does it.
    ///
    /// # Errors
    /// When the server does not answer; the next sweep goes on.
    pub async fn sweep(&mut self, shared: &Shared) -> Result<Option<Swept>, BusError> {
        let instance = &shared.instance.info.instance;
        self.lock = match (shared.bus.sweeper_lock(instance, self.lock).await?, self.lock) {
            (None, Some(_)) => shared.bus.sweeper_lock(instance, None).await?,
            (lock, _) => lock,
        };
        if self.lock.is_none() {
            return Ok(None);
        }
        crash::point(Point::SweepLocked);
        let mut swept = Swept::default();
        self.look_at_chains(shared, &mut swept).await?;
        self.look_at_queue(shared, &mut swept).await?;
        Ok(Some(swept))
    }

    /// What is younger than this may still be on its way.
    fn old_enough(shared: &Shared, time: Time) -> bool {
        shared.clock.now().after(time) > shared.ack_wait() * 2
    }

    async fn look_at_chains(&mut self, shared: &Shared, swept: &mut Swept) -> Result<(), BusError> {
        let subjects = shared.bus.subjects();
        for (tenant, task_id) in self.open.clone() {
            if self.mend(shared, &tenant, &task_id, swept).await? {
                self.open.remove(&(tenant, task_id));
            }
        }
        let filter = format!("{}.events.*.*.{}", subjects.prefix(), EventKind::TaskStarted);
        let mut from = 1;
        if let Some((sequence, stored)) = self.events {
            // A server that lost its newest messages gives their sequences out again: then all is looked at anew.
            let there = shared.bus.tail(&subjects.events_stream(), &filter, sequence, false).await?.next().await?;
            let there = there.map(|message| (message.sequence, Time::from_nanos(message.time.unix_timestamp_nanos())));
            if there == Some((sequence, stored)) {
                from = sequence + 1;
            }
        }
        let mut tail = shared.bus.tail(&subjects.events_stream(), &filter, from, false).await?;
        let until = Instant::now() + BUDGET;
        while Instant::now() < until
            && let Some(message) = tail.next().await?
        {
            let stored = Time::from_nanos(message.time.unix_timestamp_nanos());
            if !Self::old_enough(shared, stored) {
                break;
            }
            self.events = Some((message.sequence, stored));
            let mut tokens = message.subject.rsplit('.').skip(1);
            let (Some(task_id), Some(tenant)) = (tokens.next(), tokens.next()) else { continue };
            let (Ok(tenant), Ok(task_id)) = (Tenant::new(tenant), TaskId::new(task_id)) else { continue };
            // Kept in mind before it is looked at: a look that fails must not be the last one.
            self.open.insert((tenant.clone(), task_id.clone()));
            if self.mend(shared, &tenant, &task_id, swept).await? {
                self.open.remove(&(tenant, task_id));
            }
        }
        Ok(())
    }

    /// True when nothing is left to be done about this chain.
    async fn mend(&self, shared: &Shared, tenant: &Tenant, task_id: &TaskId, swept: &mut Swept) -> Result<bool, BusError> {
        let bus = &shared.bus;
        match look(bus.head(tenant, task_id).await?.as_ref(), |time| Self::old_enough(shared, time)) {
            Look::Done => return Ok(true),
            Look::Later => return Ok(false),
            Look::Search => {}
        }
        if bus.find_queued(Some(tenant), task_id).await?.is_some() {
            return Ok(false);
        }
        // The message goes only after the end was stored: read in this order, a chain without both is a lost task.
        let Some(head) = lost(bus.head(tenant, task_id).await?) else { return Ok(true) };
        let started = bus.last_started(tenant, task_id).await?;
        match started.and_then(|head| head.event.assignment).as_ref().and_then(payload) {
            Some((subject, content_type, body)) => match after_queue(bus.queue(subject, &content_type, body).await)? {
                Requeued::Queued => {
                    crash::point(Point::SweepQueued);
                    swept.requeued += 1;
                    tracing::warn!(%task_id, "its message was gone: queued again");
                    Ok(false)
                }
                Requeued::There => Ok(false),
                Requeued::Never => self.end(shared, head, swept).await,
            },
            None => self.end(shared, head, swept).await,
        }
    }

    /// A task whose message is gone and was too large to be carried by its chain.
    async fn end(&self, shared: &Shared, head: Head, swept: &mut Swept) -> Result<bool, BusError> {
        let task = head.event.task.clone();
        let (class, tenant) = (task.class.clone(), task.tenant.clone());
        let story = Story::of(task.clone(), &shared.instance.info);
        let mut writer = ChainWriter::after(shared.bus.clone(), task.tenant, task.task_id, shared.config.events.encoding, Some(&head));
        let error = "its worker was lost and its message is gone from the queue";
        let appended =
            writer.append(|link| story.not_run(Reason::WorkerLost, error, Some("publish it again under a new task_id"), link)).await?;
        metrics::note(|m| {
            if matches!(appended, Appended::Stored(_)) {
                m.finished(&class, &tenant, Reason::WorkerLost)
            }
        });
        crash::point(Point::SweepEnded);
        swept.ended += 1;
        Ok(true)
    }

    async fn look_at_queue(&mut self, shared: &Shared, swept: &mut Swept) -> Result<(), BusError> {
        let bus = &shared.bus;
        let mut tail = bus.tail(&bus.subjects().tasks_stream(), &bus.subjects().all_tasks(), self.tasks + 1, false).await?;
        let until = Instant::now() + BUDGET;
        while Instant::now() < until {
            let Some(message) = tail.next().await? else {
                // The end: begin anew next time.
                self.tasks = 0;
                return Ok(());
            };
            self.tasks = message.sequence;
            let Some(subject) = bus.subjects().parse_task(&message.subject) else { continue };
            let (Ok(tenant), Ok(task_id)) = (Tenant::new(subject.tenant), TaskId::new(subject.task_id)) else { continue };
            let Some(head) = bus.head(&tenant, &task_id).await? else { continue };
            if is_over(&head, &crate::wire::sha256_hex(&message.payload)) && Self::old_enough(shared, head.event.time) {
                bus.remove_queued(message.sequence).await?;
                crash::point(Point::SweepRemoved);
                swept.removed += 1;
                tracing::warn!(%task_id, "it has ended: its message is removed from the queue");
            }
        }
        Ok(())
    }
}

/// What the end of a chain says at first sight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// Nothing is to be done about it, ever.
    Done,
    /// It is too young to tell.
    Later,
    /// If its message is not in the queue, and this is still so afterwards, it is lost.
    Search,
}

pub(crate) fn look(head: Option<&Head>, old_enough: impl FnOnce(Time) -> bool) -> Look {
    match head {
        None => Look::Done,
        Some(head) if head.event.event.is_terminal() => Look::Done,
        Some(head) if !old_enough(head.event.time) => Look::Later,
        Some(_) => Look::Search,
    }
}

/// The end of the chain of a lost task, read after its message was not found.
pub(crate) fn lost(head: Option<Head>) -> Option<Head> {
    head.filter(|head| !head.event.event.is_terminal())
}

/// What became of a message that was queued again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Requeued {
    Queued,
    /// Somebody did it before.
    There,
    /// It cannot be.
    Never,
}

pub(crate) fn after_queue(answer: Result<Submitted, SubmitError>) -> Result<Requeued, BusError> {
    match answer {
        Ok(_) => Ok(Requeued::Queued),
        Err(SubmitError::AlreadyQueued) => Ok(Requeued::There),
        Err(SubmitError::Bus(error)) => Err(error),
        // The stream is there, for it was just searched: it has no leader at this moment.
        Err(SubmitError::NoStream(what)) => Err(BusError::NoResponders { what }),
        Err(SubmitError::TooLarge(_)) => Ok(Requeued::Never),
    }
}

/// Whether a queued message with this digest belongs to the chain that ends with `head`, and owes nothing.
pub(crate) fn is_over(head: &Head, sha256: &str) -> bool {
    head.event.task.assignment_sha256 == sha256 && head.event.event.is_terminal() && owed_letter(head).is_none()
}

/// What is published again: subject, content type, bytes.
fn payload(raw: &RawAssignment) -> Option<(String, String, Bytes)> {
    let body = match raw.encoding.as_str() {
        "base64" => base64::engine::general_purpose::STANDARD.decode(&raw.data).ok()?,
        _ => raw.data.clone().into_bytes(),
    };
    Some((raw.subject.clone(), raw.content_type.clone(), body.into()))
}
