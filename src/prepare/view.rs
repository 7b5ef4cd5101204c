//! An attempt's directory by the names that its task knows.

use super::{PROGRESS, RESULT, Workspace};

/// Where a container has it.
pub const INSIDE: &str = "/windlass";
/// Where a container has its secrets that are files.
pub const SECRETS_INSIDE: &str = "/windlass-secrets";

/// The paths that a task is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Work directory.
    pub dir: String,
    /// `WINDLASS_RESULT`
    pub result: String,
    /// `WINDLASS_PROGRESS`
    pub progress: String,
    /// `WINDLASS_OUTPUTS`
    pub outputs: String,
    /// `TMPDIR`, where there is one.
    pub tmp: String,
}

impl View {
    /// Of a task on the machine itself.
    #[must_use]
    pub fn native(workspace: &Workspace) -> Self {
        let text = |path: &std::path::Path| path.to_string_lossy().into_owned();
        Self {
            dir: text(&workspace.dir),
            result: text(&workspace.result),
            progress: text(&workspace.progress),
            outputs: text(&workspace.outputs),
            tmp: text(&workspace.tmp),
        }
    }

    /// Of one in a container.
    #[must_use]
    pub fn contained() -> Self {
        Self {
            dir: format!("{INSIDE}/work"),
            result: format!("{INSIDE}/{RESULT}"),
            progress: format!("{INSIDE}/{PROGRESS}"),
            outputs: format!("{INSIDE}/outputs"),
            tmp: "/tmp".to_owned(),
        }
    }
}
