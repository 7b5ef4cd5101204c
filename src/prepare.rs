//! Stage 4, prepare: the attempt's own directory, and the process that will run in it.

use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, SeekFrom, memfd_create, seek};

use crate::execute::native::sandbox::User;
use crate::intake::Task;
use crate::plan::Plan;

pub mod environment;
pub mod secret_files;
pub mod secrets;

mod inside;
mod leavings;
mod removal;
mod view;

pub use inside::{Inside, Unusable};
pub use leavings::Leavings;
pub use removal::remove_tree;
pub use view::{INSIDE, SECRETS_INSIDE, View};

/// Name of the result in an attempt's directory.
pub const RESULT: &str = "result.json";
/// Name of the file of progress reports.
pub const PROGRESS: &str = "progress.ndjson";
/// Name of a script that is too long for an argument.
pub const SCRIPT: &str = "script.sh";

/// An attempt's directory; removed when dropped, which blocks on the disk.
#[derive(Debug)]
pub struct Workspace {
    root: PathBuf,
    leavings: Arc<Leavings>,
    /// The directory itself, whatever the task does to its name.
    pub inside: Arc<Inside>,
    /// Where the task runs unless it asks otherwise.
    pub dir: PathBuf,
    /// `WINDLASS_RESULT`
    pub result: PathBuf,
    /// `WINDLASS_PROGRESS`
    pub progress: PathBuf,
    /// `WINDLASS_OUTPUTS`
    pub outputs: PathBuf,
    /// `TMPDIR`, where the task has no `/tmp` of its own.
    pub tmp: PathBuf,
    /// Whose it is, where that is not the worker itself.
    owner: Option<User>,
}

/// Why the directory could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make {path}: {error}")]
pub struct PrepareError {
    /// What.
    pub path: PathBuf,
    /// The system's answer.
    pub error: std::io::Error,
}

impl PrepareError {
    /// True when the disk is full.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        matches!(self.error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
    }
}

impl Workspace {
    /// Makes `<parent>/<name>` with what a task finds there, open to its owner only. What cannot be removed in the end goes
    /// to `leavings`.
    ///
    /// # Errors
    /// When the directories cannot be made, or there is something in their place.
    pub fn create(
        parent: &Path,
        name: &str,
        owner: Option<User>,
        private_tmp: bool,
        leavings: &Arc<Leavings>,
    ) -> Result<Self, PrepareError> {
        let root = parent.join(name);
        let failed = |path: &Path| {
            let path = path.to_owned();
            |error| PrepareError { path, error }
        };
        // Never one that is there already: somebody else's links would be followed, or the server lost the claim of an attempt
        // that still runs here, and this one has its number.
        private().create(&root).map_err(failed(&root))?;
        let inside = Arc::new(Inside::open(&root).map_err(failed(&root))?);
        let workspace = Self {
            dir: root.join("work"),
            result: root.join(RESULT),
            progress: root.join(PROGRESS),
            outputs: root.join("outputs"),
            tmp: root.join("tmp"),
            owner,
            root,
            leavings: Arc::clone(leavings),
            inside,
        };
        // The root's owner comes last: until then nobody else can put anything into it.
        let tmp = (!private_tmp).then_some(&workspace.tmp);
        for dir in [&workspace.dir, &workspace.outputs].into_iter().chain(tmp) {
            private().create(dir).map_err(failed(dir))?;
            workspace.give(dir)?;
        }
        workspace.give(&workspace.root)?;
        Ok(workspace)
    }

    /// The attempt's directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Opens it to its group, which is `gid`: for a container whose user is not known here and is in that group as well.
    ///
    /// # Errors
    /// The system's answer.
    pub fn open_to(&self, gid: u32) -> Result<(), PrepareError> {
        for path in [&self.dir, &self.outputs, &self.root] {
            std::os::unix::fs::lchown(path, None, Some(gid))
                .and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o770)))
                .map_err(|error| PrepareError { path: path.clone(), error })?;
        }
        Ok(())
    }

    fn give(&self, path: &Path) -> Result<(), PrepareError> {
        let Some(User { uid, gid }) = self.owner else { return Ok(()) };
        std::os::unix::fs::lchown(path, Some(uid), Some(gid)).map_err(|error| PrepareError { path: path.to_owned(), error })
    }

    /// Whether a file can be written on its disk; see [`probe`]. Beside it: what is in it is the task's, and may be a link.
    ///
    /// # Errors
    /// What a task that writes there is told.
    pub fn probe(&self) -> std::io::Result<()> {
        probe(self.root.parent().unwrap_or(&self.root))
    }

    /// Where the script of a task is kept when it is too long for an argument.
    fn script(&self) -> PathBuf {
        self.root.join(SCRIPT)
    }
}

/// Less free space than this is none: what a writer is refused may leave a few blocks.
const FULL_BELOW: u64 = 1 << 20;

/// Makes a file in `dir`, which must be the worker's own, and removes it, and looks at the room that is left. Blocks on the disk.
///
/// # Errors
/// What anybody who writes there is told; [`StorageFull`](std::io::ErrorKind::StorageFull) when there is room for hardly
/// anything.
pub fn probe(dir: &Path) -> std::io::Result<()> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let path = dir.join(format!("probe-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)));
    let written = std::fs::File::create_new(&path).and_then(|mut file| file.write_all(&[0; 4096]));
    let removed = std::fs::remove_file(&path);
    written?;
    removed?;
    let fs = rustix::fs::statvfs(dir)?;
    // Some file systems count no inodes: then none are free, of none at all.
    let full = fs.f_bavail.saturating_mul(fs.f_frsize) < FULL_BELOW || (fs.f_files > 0 && fs.f_favail == 0);
    if full { Err(rustix::io::Errno::NOSPC.into()) } else { Ok(()) }
}

/// Makes directories for their owner alone, and none that is there already.
fn private() -> std::fs::DirBuilder {
    let mut builder = std::fs::DirBuilder::new();
    builder.mode(0o700);
    builder
}

impl Drop for Workspace {
    fn drop(&mut self) {
        self.leavings.remove(&self.root);
    }
}

/// A process to be started. Its environment is not printed: secrets are in it.
pub struct Launch {
    /// Argument vector.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Absolute working directory.
    pub cwd: String,
    /// Standard input.
    pub stdin: OwnedFd,
}

impl std::fmt::Debug for Launch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Launch").field("argv", &self.argv).field("cwd", &self.cwd).finish_non_exhaustive()
    }
}

/// What a task is told about itself.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The task.
    pub task: &'a Task,
    /// Attempt number.
    pub attempt: u32,
    /// Stream sequence of its `task_started`.
    pub fence: u64,
    /// `PATH`, unless the task sets one.
    pub path: &'a str,
    /// It has a `/tmp` of its own.
    pub private_tmp: bool,
    /// W3C trace context of the publisher.
    pub traceparent: Option<&'a str>,
    /// Ids of its GPUs; absent where there are none to be told of.
    pub gpus: Option<&'a [String]>,
    /// Secrets of the task.
    pub secrets: &'a [secrets::Value],
    /// Those of them that are files.
    pub secret_files: &'a secret_files::SecretFiles,
}

/// Puts together what the supervisor is to start.
///
/// # Errors
/// When standard input or the script cannot be written.
pub fn launch(plan: &Plan, workspace: &Workspace, facts: &Facts<'_>) -> Result<Launch, PrepareError> {
    let execution = &facts.task.assignment.execution;
    if let Some(script) = plan.program.script_file() {
        let path = workspace.script();
        write_new(&path, script).map_err(|error| PrepareError { path: path.clone(), error })?;
        workspace.give(&path)?;
    }
    let argv = plan.program.argv(&workspace.script().to_string_lossy());
    let cwd = cwd(&workspace.dir, execution.working_dir.as_deref());
    let stdin = stdin(execution.stdin.as_deref()).map_err(|error| PrepareError { path: "standard input".into(), error })?;
    let env = environment::environment(&View::native(workspace), plan, facts);
    Ok(Launch { argv, env, cwd: cwd.to_string_lossy().into_owned(), stdin })
}

/// What a container is given of its task. Its environment is not printed: secrets are in it.
pub struct Contained {
    /// The environment beyond the image's own.
    pub env: Vec<(String, String)>,
    /// Working directory; none for the image's own.
    pub working_dir: Option<String>,
}

impl std::fmt::Debug for Contained {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Contained").field("working_dir", &self.working_dir).finish_non_exhaustive()
    }
}

/// Puts together what a container is given; `has_own_dir` when its image names a working directory.
#[must_use]
pub fn contained(plan: &Plan, facts: &Facts<'_>, has_own_dir: bool) -> Contained {
    let view = View::contained();
    let asked = facts.task.assignment.execution.working_dir.as_deref();
    let working_dir = match asked {
        None if has_own_dir => None,
        asked => Some(cwd(Path::new(&view.dir), asked).to_string_lossy().into_owned()),
    };
    Contained { env: environment::environment(&view, plan, facts), working_dir }
}

/// Where a task runs, with `dir` as its own directory.
#[must_use]
pub fn cwd(dir: &Path, asked: Option<&str>) -> PathBuf {
    asked.map_or_else(|| dir.to_owned(), |asked| dir.join(asked))
}

/// Never through a link: the directory is the task's.
fn write_new(path: &Path, text: &str) -> std::io::Result<()> {
    std::fs::File::create_new(path)?.write_all(text.as_bytes())
}

fn stdin(text: Option<&str>) -> std::io::Result<OwnedFd> {
    let Some(text) = text else { return Ok(std::fs::File::open("/dev/null")?.into()) };
    let mut file = std::fs::File::from(memfd_create("stdin", MemfdFlags::CLOEXEC)?);
    file.write_all(text.as_bytes())?;
    seek(&file, SeekFrom::Start(0))?;
    Ok(file.into())
}
