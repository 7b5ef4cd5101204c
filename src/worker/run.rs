//! One attempt from its claim to its end: prepare, execute, report. What follows from the end is not decided here.
//!
//! What a native task and a container do not share is in `native` and `contain`; they meet in a [`Process`], which `attend`
//! takes to its end.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

mod attend;
mod contain;
mod native;
mod provide;

use super::Shared;
use super::account::{Account, Stopped};
use super::progress::ProgressFile;
use super::signals::{Interrupt, Signals, interrupted};
use super::story::Story;
use crate::bus::chain::ChainWriter;
use crate::crash::{self, Point};
use crate::execute::docker::{Identity, Refusal};
use crate::execute::gpu::{self, Held};
use crate::execute::native::Keeping;
use crate::execute::native::sandbox::User;
use crate::execute::{Process, SupervisorLost};
use crate::intake::Task;
use crate::mask::Masker;
use crate::plan::Plan;
use crate::prepare::secrets::{self, SecretError};
use crate::prepare::{self, Facts, PrepareError, Workspace};
use crate::report::{LocalLogs, Recorder, RecorderConfig};
use crate::task::event::RunInfo;
use crate::task::stage::{Stage, StageEntry};
use crate::task::{Profile, Reason, Time};
use crate::telemetry::{metrics, spawn_blocking};
use provide::Provided;

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

/// The recorder of a task's output, and where that is to go.
struct Streams {
    recorder: Recorder,
    stdout: OwnedFd,
    stderr: OwnedFd,
}

/// A process with the recorder of its output.
struct Running {
    process: Process,
    recorder: Recorder,
    progress: ProgressFile,
    started: Instant,
    /// What its container needs as long as it runs.
    provided: Option<Provided>,
}

impl Running {
    /// A service that it needs has ended. Cancel safe.
    async fn deserted(provided: &mut Option<Provided>) -> Refusal {
        match provided.as_mut().and_then(|provided| provided.services.as_mut()) {
            Some(services) => services.failed().await,
            None => std::future::pending().await,
        }
    }
}

/// After its end: completes when nothing is left of it that its directory must be kept for.
async fn gone(process: &mut Process, provided: Option<Provided>) {
    process.gone().await;
    let Some(Provided { image: _image, services }) = provided else { return };
    if let Some(services) = services {
        services.stop().await;
    }
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

    /// Who its container runs as; none without one.
    fn identity(&self) -> Option<Identity> {
        let container = self.plan.container.as_ref()?;
        Some(self.identity_of(&container.user.value))
    }

    /// Stopped before it ran.
    fn stopped_early(&mut self, why: Interrupt) -> Box<Ended> {
        match why {
            Interrupt::Canceled(reason) => {
                let why = reason.map_or_else(String::new, |reason| format!(": {reason}"));
                self.refused(Reason::Canceled, format!("canceled before it ran{why}"), None)
            }
            Interrupt::Leave { .. } => Box::new(Ended::Unfinished("the worker is stopping".to_owned())),
            Interrupt::Lost => Box::new(Ended::Lost),
        }
    }

    /// Runs it to its end. Not to be dropped before: the process would be killed, and its output lost.
    /// Its work directory is left in `used`.
    pub async fn go(mut self, writer: &mut ChainWriter, used: &mut Option<Workspace>) -> Ended {
        self.stages.push(Stage::Loading.entered());
        let values = match self.read_secrets().await {
            Ok(values) => values,
            Err(Unread::Refused(error)) => return self.failed(error.reason, error.to_string(), Some(error.hint.to_owned()), "prepare"),
            Err(Unread::Interrupted(why)) => return *self.stopped_early(why),
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
        let (parent, name, leavings) = (instance.work(), self.name(), Arc::clone(&instance.leavings));
        let identity = self.identity();
        let (user, group) = identity.map_or((self.user(), None), |identity| (identity.owner, identity.group));
        let create = move || {
            let workspace = Workspace::create(&parent, &name, user, private_tmp, &leavings)?;
            group.map_or(Ok(()), |group| workspace.open_to(group))?;
            Ok(workspace)
        };
        // A slow disk must not keep this task's lease from being renewed.
        let workspace = match spawn_blocking(create).await {
            Ok(Ok(workspace)) => workspace,
            Ok(Err(error)) => return self.unprepared(&error),
            Err(error) => return self.failed(Reason::Internal, error.to_string(), None, "prepare"),
        };
        Box::pin(self.go_in(used.insert(workspace), values, writer)).await
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
        let visible = self.visible_gpus();
        let facts = Facts {
            task: self.task,
            attempt: self.story.attempt(),
            fence: self.fence,
            path: &self.shared.config.worker.path,
            private_tmp: self.private_tmp(),
            traceparent: self.traceparent,
            gpus: visible.as_deref(),
            secrets: values,
            secret_files: &files,
        };
        let _keeping = match self.hold_gpus() {
            Ok(keeping) => keeping,
            Err(error) => {
                let hint = "look at the devices of that host, and at gpu.lock_dir of that worker".to_owned();
                return self.failed(Reason::GpuUnavailable, error, Some(hint), "prepare");
            }
        };
        let prepared = match &self.plan.container {
            None => match prepare::launch(self.plan, workspace, &facts) {
                Ok(launch) => {
                    crash::point(Point::WorkspaceMade);
                    self.start(launch, workspace, &files).await
                }
                Err(error) => return self.unprepared(&error),
            },
            Some(container) => {
                crash::point(Point::WorkspaceMade);
                Box::pin(self.contain(container, workspace, &facts, writer)).await
            }
        };
        let mut running = match prepared {
            Ok(running) => running,
            Err(ended) => return *ended,
        };
        let (report, stopped) = match self.attend(&mut running, writer).await {
            Ok(ended) => ended,
            Err(SupervisorLost) => {
                gone(&mut running.process, running.provided).await;
                return Ended::Unfinished("the worker lost its supervisor".to_owned());
            }
        };
        metrics::note(|m| m.exited(&self.task.class, &report));
        if stopped == Some(Stopped::Lost) || report.lease_expired {
            tokio::join!(running.recorder.abandon(), gone(&mut running.process, running.provided));
            return Ended::Lost;
        }
        self.finish(running, workspace, report, stopped).await
    }

    fn failed(self, reason: Reason, error: String, hint: Option<String>, phase: &'static str) -> Ended {
        Ended::Said(Box::new(Account { hint, ..Account::failed(reason, error, phase, self.run, self.stages) }))
    }

    /// It has a `/tmp` of its own.
    fn private_tmp(&self) -> bool {
        if self.plan.container.is_some() {
            return true;
        }
        self.shared.supervisor.capabilities().sandbox.of(self.plan.sandbox.value).is_some_and(|f| f.private_tmp)
    }

    /// What its variables say of GPUs: nothing where there are none. In a container always: an image may ask for all.
    fn visible_gpus(&self) -> Option<Vec<String>> {
        (self.plan.container.is_some() || self.shared.capacity.gpus().total() > 0).then(|| self.run.gpus.clone())
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

    /// What the recorder reads, and the other ends of its pipes.
    fn streams(&mut self) -> Result<Streams, Box<Ended>> {
        let pipes = || -> std::io::Result<_> { Ok((std::io::pipe()?, std::io::pipe()?)) };
        let unprepared = |this: &mut Self, error: String| this.refused(Reason::WorkspaceFailed, error, None);
        let ((out_read, stdout), (err_read, stderr)) = pipes().map_err(|e| unprepared(self, format!("cannot make pipes: {e}")))?;
        let recorder = Recorder::start(self.recorder_config(), Arc::clone(&self.shared.sink), out_read.into(), err_read.into())
            .map_err(|e| unprepared(self, format!("cannot record output: {e}")))?;
        Ok(Streams { recorder, stdout: stdout.into(), stderr: stderr.into() })
    }

    /// It does not run. What was known of the run goes into what is said.
    fn refused(&mut self, reason: Reason, error: String, hint: Option<String>) -> Box<Ended> {
        let account = Account::failed(reason, error, "prepare", self.run.clone(), std::mem::take(&mut self.stages));
        Box::new(Ended::Said(Box::new(Account { hint, ..account })))
    }

    /// It runs.
    fn running(&mut self, process: Process, recorder: Recorder, workspace: &Workspace) -> Running {
        metrics::note(|m| m.prepared(&self.task.class, self.claimed.elapsed()));
        self.run.prepare_ms = Some(millis(self.claimed.elapsed()));
        self.run.started_at = Some(Time::now());
        self.stages.push(Stage::Executing.entered());
        let progress = ProgressFile::new(Arc::clone(&workspace.inside), self.mask.clone());
        Running { process, recorder, progress, started: Instant::now(), provided: None }
    }

    /// How long it may run before it has to be renewed; none without a lease.
    fn lease(&self) -> Option<Duration> {
        let left = self.signals.lease.borrow().saturating_duration_since(Instant::now());
        self.shared.leased().then_some(left)
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
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
