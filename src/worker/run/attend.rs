//! From a task that runs to what there is to say about it, the same for every kind of process.

use std::time::Duration;

use tokio::time::Instant;

use super::super::account::{Account, Exit, Stopped, judge};
use super::super::progress::ProgressFile;
use super::super::signals::{Interrupt, lost};
use super::super::story::Story;
use super::{DRAIN, Ended, LOOK, Run, Running, gone, millis};
use crate::bus::chain::{Appended, ChainWriter};
use crate::crash::{self, Point};
use crate::execute::SupervisorLost;
use crate::prepare::Workspace;
use crate::report::Fault;
use crate::supervisor::protocol::{ExitReport, ExitStatus};
use crate::task::event::{Event, EventKind, Progress};
use crate::task::stage::Stage;
use crate::task::{Reason, Time};
use crate::telemetry::causes;

impl Run<'_> {
    /// Until the process tree is gone, whatever it takes.
    pub(super) async fn attend(
        &mut self,
        running: &mut Running,
        writer: &mut ChainWriter,
    ) -> Result<(ExitReport, Option<Stopped>), SupervisorLost> {
        let mut stopped: Option<Stopped> = None;
        let timeout = running.started + Duration::from_millis(self.plan.bounds.timeout_ms.value);
        let deadline = self.task.assignment.deadline.map(|d| running.started + d.after(self.shared.clock.now()));
        let mut watch_progress = true;
        crash::point(Point::Running);
        loop {
            let stop_at = deadline.map_or(timeout, |d| d.min(timeout));
            // All arms are cancel safe: a progress append that is dropped is settled by the writer's next one.
            let (why, grace) = tokio::select! {
                exit = running.process.wait() => {
                    let exit = exit?;
                    return Ok((exit.report, stopped.or_else(|| exit.broken.map(Stopped::Broken))));
                }
                changed = self.signals.interrupt.changed() => {
                    if changed.is_err() { return Err(SupervisorLost); }
                    let interrupt = self.signals.interrupt.borrow_and_update().clone();
                    match interrupt {
                        None => continue,
                        Some(Interrupt::Canceled(reason)) => (Stopped::Canceled(reason), self.plan.grace.value),
                        Some(Interrupt::Leave { gently }) => (Stopped::Leaving, if gently { self.plan.grace.value } else { Duration::ZERO }),
                        Some(Interrupt::Lost) => (Stopped::Lost, Duration::ZERO),
                    }
                }
                Ok(()) = self.signals.lease.changed() => {
                    let until = *self.signals.lease.borrow_and_update();
                    running.process.renew(until.saturating_duration_since(Instant::now()));
                    continue;
                }
                () = tokio::time::sleep_until(stop_at), if stopped.is_none() => {
                    (if stop_at < timeout { Stopped::Deadline } else { Stopped::Timeout }, self.plan.grace.value)
                }
                _ = running.recorder.failed(), if stopped.is_none() => (Stopped::Output, self.plan.grace.value),
                error = Running::deserted(&mut running.provided), if stopped.is_none() => (Stopped::Deserted(error), self.plan.grace.value),
                fenced = follow_progress(&mut running.progress, self.shared.config.events.progress_interval_ms, self.story, writer), if watch_progress => {
                    // Being fenced is for the renewer to say; here it only means that there is nothing more to append.
                    watch_progress = !fenced;
                    continue;
                }
            };
            // The first reason is the one that counts, but a lost task stays lost whatever came before.
            if stopped.is_none() || why == Stopped::Lost {
                stopped = Some(why);
            }
            running.process.stop(grace);
            crash::point(Point::StopAsked);
        }
    }

    pub(super) async fn finish(
        mut self,
        mut running: Running,
        workspace: &Workspace,
        report: ExitReport,
        stopped: Option<Stopped>,
    ) -> Ended {
        crash::point(Point::ProgramEnded);
        let duration = running.started.elapsed();
        // Before the end of the spool frees what the task ran out of.
        let disk = if report.status == ExitStatus::Code(0) { Ok(()) } else { workspace.probe() };
        self.run.finished_at = Some(Time::now());
        self.run.duration_ms = Some(millis(duration));
        // The last lines may have been written just before the end.
        let result = running.progress.end().await;
        self.stages.append(&mut running.progress.take_stages());
        self.stages.push(Stage::Finalizing.entered());
        let mut interrupt = self.signals.interrupt.clone();
        let (process, provided, recorder) = (&mut running.process, running.provided, running.recorder);
        let recorded = tokio::select! {
            (recorded, ()) = async { tokio::join!(recorder.finish(DRAIN), gone(process, provided)) } => recorded,
            () = lost(&mut interrupt) => return Ended::Lost,
        };
        crash::point(Point::ChunksConfirmed);
        let spool_failed = recorded.as_ref().is_err_and(|e| matches!(e.fault, Fault::DiskFull { .. } | Fault::Spool { .. }));
        if disk.is_err() || spool_failed {
            self.shared.ground.doubt();
        }
        let stderr_tail = recorded.as_ref().map_or_else(|e| e.stderr_tail.clone(), |r| r.stderr_tail.clone());
        let account = Account {
            reason: Reason::Ok,
            error: None,
            hint: None,
            phase: "execute",
            run: self.run,
            status: Some(report.status),
            usage: Some(report.usage),
            stderr_tail: Some(stderr_tail),
            manifest: None,
            chunks: None,
            result: None,
            stages: self.stages,
        };
        match stopped {
            Some(Stopped::Leaving) => Ended::Unfinished("the worker is stopping".to_owned()),
            stopped => {
                let exit = Exit { stopped, report: &report, disk, duration };
                Ended::Said(Box::new(judge(account, recorded, result, &exit, self.plan)))
            }
        }
    }
}

/// Waits for the next report of the task and appends it; true when the chain is somebody else's.
async fn follow_progress(file: &mut ProgressFile, interval_ms: u64, story: &Story, writer: &mut ChainWriter) -> bool {
    let progress: Progress = loop {
        tokio::time::sleep(LOOK).await;
        if let Some(progress) = file.look().await {
            break progress;
        }
    };
    let appended = writer.append(|link| Event { progress: Some(progress), ..story.event(EventKind::TaskProgress, link) }).await;
    let fenced = match appended {
        Ok(Appended::Fenced) => true,
        Ok(Appended::Stored(_)) => false,
        Err(error) => {
            tracing::warn!(error = %causes(&error), "progress is not published");
            false
        }
    };
    tokio::time::sleep(Duration::from_millis(interval_ms).saturating_sub(LOOK)).await;
    fenced
}
