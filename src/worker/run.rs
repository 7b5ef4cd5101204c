//! One attempt from its claim to its end: prepare, execute, report. What follows from the end is not decided here.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Shared;
use super::account::{Account, Exit, Stopped, judge};
use super::progress::ProgressFile;
use super::signals::{Interrupt, Signals, interrupted, lost};
use super::story::Story;
use crate::bus::chain::{Appended, ChainWriter};
use crate::crash::{self, Point};
use crate::execute::gpu::{self, Held};
use crate::execute::native::sandbox::{Confinement, User};
use crate::execute::native::{self, Keeping, Process, Program, SpawnFailure};
use crate::intake::Task;
use crate::mask::Masker;
use crate::plan::Plan;
use crate::prepare::secret_files::SecretFiles;
use crate::prepare::secrets::{self, SecretError};
use crate::prepare::{self, Facts, Launch, PrepareError, Workspace};
use crate::report::{Fault, LocalLogs, Recorder, RecorderConfig};
use crate::supervisor::protocol::{ExitReport, ExitStatus};
use crate::task::event::{Event, EventKind, Progress, RunInfo};
use crate::task::stage::{Stage, StageEntry};
use crate::task::{Profile, Reason, Time};
use crate::telemetry::{causes, metrics, spawn_blocking};

/// Longest wait for output that a process outside the task's tree still holds open.
const DRAIN: Duration = Duration::from_secs(5);
/// How often the progress file is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// How an attempt ended.
#[derive(Debug)]
pub enum Ended {
    /// With something to say.
    Said(Box<Account>),
    /// Unfinished: to be given back.
    Unfinished(String),
    /// Lost: nothing may be said.
    Lost,
}

/// One attempt that was claimed.
pub struct Run<'a> {
    /// The worker's parts.
    pub shared: &'a Arc<Shared>,
    /// The task.
    pub task: &'a Task,
    /// What is to run.
    pub plan: &'a Plan,
    /// How events tell of it.
    pub story: &'a Story,
    /// Stream sequence of its `task_started`.
    pub fence: u64,
    /// Publisher's trace context.
    pub traceparent: Option<&'a str>,
    /// Its devices.
    pub gpus: &'a [Held],
    /// As `task_started` has it.
    pub run: RunInfo,
    /// When it was claimed.
    pub claimed: Instant,
    /// So far.
    pub stages: Vec<StageEntry>,
    /// From outside.
    pub signals: Signals,
    /// What must not leave; known once the secrets are read.
    pub mask: Masker,
}

/// Why there are no secrets.
enum Unread {
    Refused(SecretError),
    Interrupted(Interrupt),
}

/// A process with the recorder of its output.
struct Running {
    process: Process,
    recorder: Recorder,
    progress: ProgressFile,
    started: Instant,
}

impl Run<'_> {
    /// Of its directory, spool and cgroup: ids are a tenant's own, so two tenants may run the same one here.
    fn name(&self) -> String {
        format!("{}.{}.{}", self.task.tenant, self.task.task_id, self.story.attempt())
    }

    /// Who it runs as: a user of its tenant, where there are such.
    fn user(&self) -> Option<User> {
        let separate = self.plan.sandbox.value != Profile::None && self.shared.supervisor.capabilities().sandbox.separate_users;
        separate.then_some(self.plan.user.value)
    }

    /// Runs it to its end. Not to be dropped before: the process would be killed, and its output lost.
    /// Its work directory is left in `used`.
    pub async fn go(mut self, writer: &mut ChainWriter, used: &mut Option<Workspace>) -> Ended {
        self.stages.push(Stage::Loading.entered());
        let values = match self.read_secrets().await {
            Ok(values) => values,
            Err(Unread::Refused(error)) => return self.failed(error.reason, error.to_string(), Some(error.hint.to_owned()), "prepare"),
            Err(Unread::Interrupted(Interrupt::Canceled(reason))) => {
                let why = reason.map_or_else(String::new, |reason| format!(": {reason}"));
                return self.failed(Reason::Canceled, format!("canceled before it ran{why}"), None, "prepare");
            }
            Err(Unread::Interrupted(Interrupt::Leave { .. })) => return Ended::Unfinished("the worker is stopping".to_owned()),
            Err(Unread::Interrupted(Interrupt::Lost)) => return Ended::Lost,
        };
        if !values.is_empty() {
            // A tenth of a second for the largest secrets.
            match tokio::task::block_in_place(|| secrets::masker(&values)) {
                Ok(mask) => self.mask = mask,
                Err(error) => return self.failed(Reason::Internal, error.to_string(), None, "prepare"),
            }
        }
        let mask = self.mask.clone();
        let _live = mask.enlist();
        match self.go_with(&values, writer, used).await {
            Ended::Said(account) => Ended::Said(Box::new(account.masked(&mask))),
            ended @ (Ended::Unfinished(_) | Ended::Lost) => ended,
        }
    }

    /// The task's secrets, or what came in between.
    async fn read_secrets(&self) -> Result<Vec<secrets::Value>, Unread> {
        if self.plan.secrets.is_empty() {
            return Ok(Vec::new());
        }
        let mut interrupt = self.signals.interrupt.clone();
        tokio::select! {
            // Cancel safe: reading changes nothing.
            values = secrets::read(&self.plan.secrets, &self.shared.bus) => values.map_err(Unread::Refused),
            // Cancel safe.
            why = interrupted(&mut interrupt) => Err(Unread::Interrupted(why)),
        }
    }

    async fn go_with(self, values: &[secrets::Value], writer: &mut ChainWriter, used: &mut Option<Workspace>) -> Ended {
        let private_tmp = self.private_tmp();
        let instance = &self.shared.instance;
        let (parent, name, user, leavings) = (instance.work(), self.name(), self.user(), Arc::clone(&instance.leavings));
        // A slow disk must not keep this task's lease from being renewed.
        let workspace = match spawn_blocking(move || Workspace::create(&parent, &name, user, private_tmp, &leavings)).await {
            Ok(Ok(workspace)) => workspace,
            Ok(Err(error)) => return self.unprepared(&error),
            Err(error) => return self.failed(Reason::Internal, error.to_string(), None, "prepare"),
        };
        self.go_in(used.insert(workspace), values, writer).await
    }

    /// No attempt is possible on this worker's disk.
    fn unprepared(self, error: &PrepareError) -> Ended {
        self.shared.ground.doubt();
        let reason = if error.is_disk_full() { Reason::DiskFull } else { Reason::WorkspaceFailed };
        self.failed(reason, error.to_string(), None, "prepare")
    }

    async fn go_in(mut self, workspace: &Workspace, values: &[secrets::Value], writer: &mut ChainWriter) -> Ended {
        let files = match self.shared.instance.secrets.write(&self.name(), values, &workspace.dir) {
            Ok(files) => files,
            Err(error) => {
                let hint = "look at worker.secrets_dir of the worker and the memory it has".to_owned();
                return self.failed(Reason::SecretUnavailable, error.to_string(), Some(hint), "prepare");
            }
        };
        let facts = Facts {
            task: self.task,
            attempt: self.story.attempt(),
            fence: self.fence,
            path: &self.shared.config.worker.path,
            private_tmp: self.private_tmp(),
            traceparent: self.traceparent,
            gpus: self.visible_gpus(),
            secrets: values,
            secret_files: &files.variables,
        };
        let launch = match prepare::launch(self.plan, workspace, &facts) {
            Ok(launch) => launch,
            Err(error) => return self.unprepared(&error),
        };
        let _keeping = match self.hold_gpus() {
            Ok(keeping) => keeping,
            Err(error) => {
                let hint = "look at the devices of that host, and at gpu.lock_dir of that worker".to_owned();
                return self.failed(Reason::GpuUnavailable, error, Some(hint), "prepare");
            }
        };
        crash::point(Point::WorkspaceMade);
        let mut running = match self.start(launch, workspace, &files).await {
            Ok(running) => running,
            Err(ended) => return *ended,
        };
        let (report, stopped) = match self.attend(&mut running, writer).await {
            Ok(ended) => ended,
            Err(native::SupervisorLost) => return Ended::Unfinished("the worker lost its supervisor".to_owned()),
        };
        metrics::note(|m| m.exited(&self.task.class, &report));
        if stopped == Some(Stopped::Lost) || report.lease_expired {
            running.recorder.abandon().await;
            return Ended::Lost;
        }
        self.finish(running, workspace, report, stopped).await
    }

    fn failed(self, reason: Reason, error: String, hint: Option<String>, phase: &'static str) -> Ended {
        Ended::Said(Box::new(Account { hint, ..Account::failed(reason, error, phase, self.run, self.stages) }))
    }

    /// It has a `/tmp` of its own.
    fn private_tmp(&self) -> bool {
        self.shared.supervisor.capabilities().sandbox.of(self.plan.sandbox.value).is_some_and(|f| f.private_tmp)
    }

    /// What its variables say of GPUs: nothing where there are none.
    fn visible_gpus(&self) -> Option<&[String]> {
        (self.shared.capacity.gpus().total() > 0).then_some(self.run.gpus.as_slice())
    }

    /// Its devices are there, their locks tell where its processes will be, and the supervisor holds them, too.
    fn hold_gpus(&self) -> Result<Option<Keeping>, String> {
        if self.gpus.is_empty() {
            return Ok(None);
        }
        let cgroups = gpu::cgroups_of(&self.shared.supervisor.capabilities().directories, &self.name());
        let hold = |held: &Held| {
            held.check()?;
            held.note(&cgroups).and_then(|()| held.share()).map_err(|error| format!("the lock of {}: {error}", held.device.id))
        };
        let locks = self.gpus.iter().map(hold).collect::<Result<_, String>>()?;
        let keeping = self.shared.supervisor.keep(&self.name(), locks).map_err(|error| format!("cannot hand on the locks: {error}"))?;
        Ok(Some(keeping))
    }

    fn confinement(&self, workspace: &Workspace, files: &SecretFiles) -> Confinement {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let secrets = files.dir.as_deref().map(text);
        let gpus = self.shared.capacity.gpus();
        let nodes = |nodes: Vec<PathBuf>| nodes.iter().map(|node| text(node)).collect();
        let (devices, hidden) = (nodes(gpus.nodes(self.gpus)), nodes(gpus.hidden(self.gpus)));
        Confinement { profile: self.plan.sandbox.value, user: self.user(), root: text(workspace.root()), secrets, devices, hidden }
    }

    async fn start(&mut self, launch: Launch, workspace: &Workspace, files: &SecretFiles) -> Result<Running, Box<Ended>> {
        let unprepared = |this: &mut Self, error: String| {
            let account = Account::failed(Reason::WorkspaceFailed, error, "prepare", this.run.clone(), std::mem::take(&mut this.stages));
            Box::new(Ended::Said(Box::new(account)))
        };
        let pipes = || -> std::io::Result<_> { Ok((std::io::pipe()?, std::io::pipe()?)) };
        let ((out_read, out_write), (err_read, err_write)) = pipes().map_err(|e| unprepared(self, format!("cannot make pipes: {e}")))?;
        let recorder = Recorder::start(self.recorder_config(), Arc::clone(&self.shared.sink), out_read.into(), err_read.into())
            .map_err(|e| unprepared(self, format!("cannot record output: {e}")))?;
        let lease = self.signals.lease.borrow().saturating_duration_since(Instant::now());
        let program = Program {
            cgroup: self.name(),
            limits: self.plan.limits(),
            argv: launch.argv,
            env: launch.env,
            cwd: launch.cwd,
            sandbox: self.confinement(workspace, files),
            lease: self.shared.leased().then_some(lease),
        };
        let stdio: [OwnedFd; 3] = [launch.stdin, out_write.into(), err_write.into()];
        let [stdin, stdout, stderr] = stdio;
        match self.shared.supervisor.spawn(program, stdin, stdout, stderr).await {
            Ok(process) => {
                metrics::note(|m| m.prepared(&self.task.class, self.claimed.elapsed()));
                self.run.prepare_ms = Some(millis(self.claimed.elapsed()));
                self.run.started_at = Some(Time::now());
                self.run.pid = Some(process.pid());
                self.stages.push(Stage::Executing.entered());
                Ok(Running {
                    process,
                    recorder,
                    progress: ProgressFile::new(Arc::clone(&workspace.inside), self.mask.clone()),
                    started: Instant::now(),
                })
            }
            Err(SpawnFailure::Refused(error)) => {
                recorder.abandon().await;
                let (reason, hint) = native::explain_refusal(&error);
                let account = Account::failed(reason, error.to_string(), "prepare", self.run.clone(), std::mem::take(&mut self.stages));
                Err(Box::new(Ended::Said(Box::new(Account { hint: Some(hint), ..account }))))
            }
            Err(SpawnFailure::SupervisorLost) => {
                recorder.abandon().await;
                Err(Box::new(Ended::Unfinished("the worker lost its supervisor".to_owned())))
            }
        }
    }

    fn recorder_config(&self) -> RecorderConfig {
        let logs = &self.shared.config.logs;
        RecorderConfig {
            task_id: self.task.task_id.clone(),
            tenant: self.task.tenant.clone(),
            attempt: self.story.attempt(),
            fence: self.fence,
            subject: self.shared.bus.subjects().log_base(&self.task.tenant, &self.task.task_id, self.story.attempt()),
            encoding: self.shared.config.events.encoding,
            cap: logs.cap,
            chunk: logs.chunk,
            flush: Duration::from_millis(logs.flush_ms),
            window: logs.window,
            max_payload: self.shared.max_payload(),
            spool: self.shared.instance.spool().join(self.name()),
            local: (!logs.dir.is_empty()).then(|| LocalLogs {
                dir: logs.dir.clone().into(),
                file_max: logs.file_max,
                file_keep: logs.file_keep,
            }),
            mask: self.mask.clone(),
        }
    }

    /// Until the process tree is gone, whatever it takes.
    async fn attend(
        &mut self,
        running: &mut Running,
        writer: &mut ChainWriter,
    ) -> Result<(ExitReport, Option<Stopped>), native::SupervisorLost> {
        let mut stopped: Option<Stopped> = None;
        let timeout = running.started + Duration::from_millis(self.plan.bounds.timeout_ms.value);
        let deadline = self.task.assignment.deadline.map(|d| running.started + d.after(self.shared.clock.now()));
        let mut watch_progress = true;
        crash::point(Point::Running);
        loop {
            let stop_at = deadline.map_or(timeout, |d| d.min(timeout));
            // All arms are cancel safe: a progress append that is dropped is settled by the writer's next one.
            let (why, grace) = tokio::select! {
                report = running.process.wait() => return Ok((report?, stopped)),
                changed = self.signals.interrupt.changed() => {
                    if changed.is_err() { return Err(native::SupervisorLost); }
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

    async fn finish(mut self, mut running: Running, workspace: &Workspace, report: ExitReport, stopped: Option<Stopped>) -> Ended {
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
        let recorded = tokio::select! {
            recorded = running.recorder.finish(DRAIN) => recorded,
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

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
