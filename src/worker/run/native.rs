//! A task on the machine itself: a process that the supervisor starts.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::{Ended, Run, Running, Streams};
use crate::execute::Process;
use crate::execute::native::sandbox::Confinement;
use crate::execute::native::{self, Program, SpawnFailure};
use crate::prepare::secret_files::SecretFiles;
use crate::prepare::{Launch, Workspace};

impl Run<'_> {
    fn confinement(&self, workspace: &Workspace, files: &SecretFiles) -> Confinement {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let secrets = files.dir.as_deref().map(text);
        let gpus = self.shared.capacity.gpus();
        let nodes = |nodes: Vec<PathBuf>| nodes.iter().map(|node| text(node)).collect();
        let (devices, hidden) = (nodes(gpus.nodes(self.gpus)), nodes(gpus.hidden(self.gpus)));
        Confinement { profile: self.plan.sandbox.value, user: self.user(), root: text(workspace.root()), secrets, devices, hidden }
    }

    /// Starts it.
    pub(super) async fn start(&mut self, launch: Launch, workspace: &Workspace, files: &SecretFiles) -> Result<Running, Box<Ended>> {
        let Streams { recorder, stdout, stderr } = self.streams()?;
        let program = Program {
            cgroup: self.name(),
            limits: self.plan.limits(),
            argv: launch.argv,
            env: launch.env,
            cwd: launch.cwd,
            sandbox: self.confinement(workspace, files),
            lease: self.lease(),
        };
        let stdio: [OwnedFd; 3] = [launch.stdin, stdout, stderr];
        let [stdin, stdout, stderr] = stdio;
        match self.shared.supervisor.spawn(program, stdin, stdout, stderr).await {
            Ok(process) => {
                self.run.pid = Some(process.pid());
                Ok(self.running(Process::Native(process), recorder, workspace))
            }
            Err(failure) => {
                recorder.abandon().await;
                Err(self.not_spawned(failure))
            }
        }
    }

    /// The supervisor did not start, or hold, what it was asked for.
    pub(super) fn not_spawned(&mut self, failure: SpawnFailure) -> Box<Ended> {
        match failure {
            SpawnFailure::Refused(error) => {
                let (reason, hint) = native::explain_refusal(&error);
                self.refused(reason, error.to_string(), Some(hint))
            }
            SpawnFailure::SupervisorLost => Box::new(Ended::Unfinished("the worker lost its supervisor".to_owned())),
        }
    }
}
