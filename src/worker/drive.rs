//! A task from its claim to what becomes of its message: run it, store what there is to say, watch over it meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::Shared;
use super::Stop;
use super::account::Account;
use super::attempt::{LeaseEnd, append_end, claim_deadline};
use super::instance::Kept;
use super::run::{Ended, Run};
use super::signals::{Interrupt, Signals};
use super::story::{self, Story};
use crate::bus::chain::{Appended, ChainWriter, SpooledEvent};
use crate::bus::control::CancelWatch;
use crate::claim::Attempt;
use crate::config::OnLeaseLoss;
use crate::crash::{self, Point};
use crate::execute::gpu::{self, Held};
use crate::intake::{Lease, Loss, Renewer, Task};
use crate::mask::Masker;
use crate::plan::Plan;
use crate::prepare::Workspace;
use crate::settle::{Disposition, dispose};
use crate::task::Reason;
use crate::task::event::{Event, EventKind, Manifest, RetryInfo, RunInfo, Status};
use crate::task::stage::Stage;
use crate::telemetry::causes;
use crate::telemetry::metrics::{self, Lost};
use crate::telemetry::spawn_blocking;

/// Longest wait for the removal of what an attempt left.
const REMOVAL: Duration = Duration::from_secs(5);

/// A task that is about to be ours.
pub(super) struct Claimed<'a> {
    pub(super) shared: &'a Arc<Shared>,
    pub(super) lease: &'a Lease,
    pub(super) task: &'a Task,
    pub(super) plan: &'a Plan,
    pub(super) story: &'a Story,
    pub(super) attempt: Attempt,
    pub(super) traceparent: Option<&'a str>,
    /// Its devices.
    pub(super) gpus: &'a [Held],
    /// It was counted as lost.
    pub(super) lost: AtomicBool,
}

impl Claimed<'_> {
    /// None when the chain is not what the writer expects.
    pub(super) async fn claim_and_drive(self, mut writer: ChainWriter, cancel: &mut CancelWatch) -> Option<LeaseEnd> {
        if *self.shared.stop.borrow() >= Stop::Drain {
            return Some(LeaseEnd::GiveBack(Duration::ZERO));
        }
        let delivery = self.lease.delivery();
        crash::point(Point::ClaimReady);
        let validating = Stage::Validating.entered();
        let sandbox = &self.shared.supervisor.capabilities().sandbox;
        let run = story::run_info(self.task, delivery, self.plan, sandbox, self.shared.clock.now());
        let run = RunInfo { gpus: gpu::ids(self.gpus), ..run };
        let append = writer.append(|link| Event {
            run: Some(run.clone()),
            assignment: story::carried(delivery),
            ..self.story.event(EventKind::TaskStarted, link)
        });
        let fence = match tokio::time::timeout_at(claim_deadline(self.shared, delivery), append).await {
            Ok(Ok(Appended::Stored(sequence))) => sequence,
            Ok(Ok(Appended::Fenced)) => return None,
            Ok(Err(error)) => {
                tracing::error!(error = %causes(&error), "cannot claim");
                return Some(LeaseEnd::Forsake);
            }
            Err(_) => {
                tracing::warn!("not claimed in time");
                return Some(LeaseEnd::Forsake);
            }
        };
        let queued = (self.attempt.number == 1).then(|| Duration::from_millis(run.queued_ms));
        metrics::note(|m| m.started(&self.task.class, &self.task.tenant, queued));
        tracing::info!("started");
        crash::point(if self.attempt.number > 1 { Point::TakenOver } else { Point::Claimed });
        let (interrupts, interrupt) = watch::channel(None);
        let nonce = self.story.nonce.clone();
        let bus = self.shared.bus.clone();
        let renewer = Renewer::new(bus, self.lease, self.task.tenant.clone(), self.task.task_id.clone(), nonce, self.shared.ack_wait());
        let (leases, lease) = watch::channel(renewer.deadline());
        let run = Run {
            shared: self.shared,
            task: self.task,
            plan: self.plan,
            story: self.story,
            fence,
            traceparent: self.traceparent,
            gpus: self.gpus,
            run,
            claimed: Instant::now(),
            stages: vec![validating],
            signals: Signals { interrupt, lease },
            mask: Masker::default(),
        };
        let drive = Box::pin(self.drive(run, writer));
        Some(self.guard(drive, renewer, cancel, &interrupts, &leases).await)
    }

    /// Runs the attempt and stores what there is to say about it.
    async fn drive(&self, run: Run<'_>, mut writer: ChainWriter) -> LeaseEnd {
        let mut rest = Rest::default();
        let ended = run.go(&mut writer, &mut rest.workspace).await;
        if let Ended::Said(account) = &ended {
            self.measure(account);
        }
        let end = self.tell(ended, writer, &mut rest.kept).await;
        rest.remove().await;
        end
    }

    /// Counts the attempt as lost, once.
    fn lost(&self, cause: Lost) {
        if !self.lost.swap(true, Ordering::Relaxed) {
            metrics::note(|m| m.lost(&self.task.class, cause));
        }
    }

    async fn tell(&self, ended: Ended, mut writer: ChainWriter, kept: &mut Option<Kept>) -> LeaseEnd {
        match ended {
            Ended::Lost => {
                // Unless the renewer knows better, it was the supervisor who stopped it.
                self.lost(Lost::LeaseExpired);
                tracing::warn!("task lost: stopped, nothing published");
                LeaseEnd::Forsake
            }
            Ended::Unfinished(why) => {
                let released = writer.append(|link| Event { error: Some(why), ..self.story.event(EventKind::TaskReleased, link) }).await;
                match released {
                    Ok(Appended::Stored(_)) => {
                        metrics::note(|m| m.released(&self.task.class));
                        crash::point(Point::Released);
                        LeaseEnd::GiveBack(Duration::ZERO)
                    }
                    Ok(Appended::Fenced) => self.forsake(Lost::Fenced),
                    Err(_) => self.forsake(Lost::Unstored),
                }
            }
            Ended::Said(account) => match dispose(account.reason, &self.task.assignment.retry, self.plan, self.attempt.counted()) {
                Disposition::Retry(delay) => self.retry(*account, delay, writer).await,
                Disposition::End => self.commit(*account, writer, kept).await,
            },
        }
    }

    async fn retry(&self, account: Account, delay: Duration, mut writer: ChainWriter) -> LeaseEnd {
        let retry = RetryInfo {
            will_retry: true,
            next_attempt: Some(self.attempt.number + 1),
            not_before: Some(self.shared.clock.now().plus(delay)),
        };
        tracing::info!(reason = %account.reason, ?delay, "another attempt follows");
        let reason = account.reason;
        let appended =
            writer.append(|link| Event { retry: Some(retry), ..account.tell(self.story.event(EventKind::TaskRetrying, link)) }).await;
        match appended {
            Ok(Appended::Stored(_)) => {
                metrics::note(|m| m.retried(&self.task.class, &self.task.tenant, reason));
                crash::point(Point::RetryDecided);
                LeaseEnd::GiveBack(delay)
            }
            Ok(Appended::Fenced) => self.forsake(Lost::Fenced),
            Err(error) => {
                tracing::error!(error = %causes(&error), "a retry cannot be stored");
                self.forsake(Lost::Unstored)
            }
        }
    }

    /// The terminal event: kept on disk first, then appended until it is stored or another worker's.
    async fn commit(&self, account: Account, mut writer: ChainWriter, kept: &mut Option<Kept>) -> LeaseEnd {
        let (kind, status) = if account.reason == Reason::Ok {
            (EventKind::TaskCompleted, Status::Completed)
        } else {
            (EventKind::TaskFailed, Status::Failed)
        };
        let reason = account.reason;
        tracing::info!(%reason, "ended");
        let retry = RetryInfo { will_retry: false, next_attempt: None, not_before: None };
        // A progress event whose answer was lost comes first.
        match writer.settle_unsettled().await {
            Ok(Some(Appended::Fenced)) => return self.forsake(Lost::Fenced),
            Err(_) => return self.forsake(Lost::Unstored),
            Ok(Some(Appended::Stored(_)) | None) => {}
        }
        let mut chunks = None;
        let encoded = writer.encode(|link| {
            let (event, proof) = account.tell_with(self.story.event(kind, link));
            chunks = proof;
            Event { status: Some(status), retry: Some(retry), ..event }
        });
        *kept = match &encoded {
            Ok(encoded) => self.keep(SpooledEvent::new(&writer, encoded.clone())).await,
            Err(_) => None,
        };
        crash::point(Point::EndKept);
        // The look that the ack needs takes as long as the append.
        let (told, ()) = tokio::join!(append_end(&mut writer, encoded, chunks), self.lease.delivery().look());
        match told {
            Ok(receipt) => {
                metrics::note(|m| m.finished(&self.task.class, &self.task.tenant, reason));
                LeaseEnd::Ack(receipt)
            }
            Err(cause) => self.forsake(cause),
        }
    }

    fn forsake(&self, cause: Lost) -> LeaseEnd {
        self.lost(cause);
        LeaseEnd::Forsake
    }

    /// Watches over a claimed task while `drive` takes it to its end: renews the lease, hears cancel requests and the worker's stop.
    async fn guard(
        &self,
        mut drive: std::pin::Pin<Box<impl Future<Output = LeaseEnd>>>,
        mut renewer: Renewer,
        cancel: &mut CancelWatch,
        interrupts: &watch::Sender<Option<Interrupt>>,
        leases: &watch::Sender<Instant>,
    ) -> LeaseEnd {
        let mut stop = self.shared.stop.clone();
        let mut canceled = false;
        let mut lost = false;
        loop {
            // All arms are cancel safe; the renewer counts from its last confirmed renewal, not from its start.
            tokio::select! {
                end = &mut drive => return match end {
                    // It may be another worker's message by now, and a nak would take it away again.
                    LeaseEnd::GiveBack(_) if Instant::now() >= *leases.borrow() => LeaseEnd::Forsake,
                    LeaseEnd::GiveBack(_) | LeaseEnd::Ack(_) | LeaseEnd::Forsake => end,
                },
                loss = renewer.run(|until| { leases.send_replace(until); }), if !lost => {
                    if loss == Loss::Fenced || self.shared.config.lease.on_lease_loss == OnLeaseLoss::Stop {
                        lost = true;
                        self.lost(match loss {
                            Loss::Fenced => Lost::Fenced,
                            Loss::Expired => Lost::LeaseExpired,
                        });
                        interrupts.send_replace(Some(Interrupt::Lost));
                    }
                }
                request = cancel.canceled(), if !canceled => {
                    canceled = true;
                    crash::point(Point::CancelHeard);
                    interrupts.send_if_modified(|now| if now.is_none() { *now = Some(Interrupt::Canceled(request.reason)); true } else { false });
                }
                changed = stop.changed() => {
                    let now = *stop.borrow_and_update();
                    if changed.is_ok() && now >= Stop::Leave && !lost {
                        interrupts.send_replace(Some(Interrupt::Leave { gently: now == Stop::Leave }));
                    }
                }
            }
        }
    }

    /// Measures what an attempt came to.
    fn measure(&self, account: &Account) {
        let ran = account.run.duration_ms.map(Duration::from_millis);
        let dropped = account.manifest.as_ref().map_or(0, Manifest::dropped_bytes);
        metrics::note(|m| m.ran(&self.task.class, account.reason.outcome(), ran, dropped));
    }

    /// Keeps a terminal event on disk; off the runtime's threads, since a slow disk must not keep leases from being renewed.
    /// None when that is not possible: the append is made all the same.
    async fn keep(&self, event: SpooledEvent) -> Option<Kept> {
        let name = format!("{}.{}.{}.json", self.task.tenant, self.task.task_id, self.attempt.number);
        let shared = Arc::clone(self.shared);
        let kept = spawn_blocking(move || shared.instance.keep(&name, &event)).await.unwrap_or_else(|e| Err(std::io::Error::other(e)));
        kept.inspect_err(|error| tracing::warn!(error = %causes(error), "a terminal event is not kept on disk")).ok()
    }
}

/// What an attempt leaves on the disk when its end is told.
#[derive(Default)]
struct Rest {
    workspace: Option<Workspace>,
    kept: Option<Kept>,
}

impl Rest {
    /// Removes it, on a thread that may block: one way to the disk for both. Waits for the end of that, but not for ever: a
    /// tree of a million files is no reason to hold the message of an ended task.
    async fn remove(self) {
        if self.workspace.is_none() && self.kept.is_none() {
            return;
        }
        let removal = spawn_blocking(move || {
            crash::point(Point::WorkspaceRemoval);
            if let Some(kept) = self.kept {
                kept.settled();
            }
            drop(self.workspace);
        });
        let _ = tokio::time::timeout(REMOVAL, removal).await;
    }
}
