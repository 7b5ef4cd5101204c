//! Trees that are to go, and those that did not.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::removal::remove_tree;
use crate::telemetry::causes;

/// What attempts left that could not be removed: said once, and tried again by [`Leavings::sweep`].
#[derive(Debug, Default)]
pub struct Leavings(Mutex<BTreeSet<PathBuf>>);

impl Leavings {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<PathBuf>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes a tree, or notes it. Blocks on the disk.
    pub fn remove(&self, tree: &Path) {
        if let Err(error) = remove_tree(tree) {
            tracing::warn!(error = %causes(&error), path = %tree.display(), "cannot remove a work directory; it is tried again");
            self.lock().insert(tree.to_owned());
        }
    }

    /// Tries again what is left; says what is gone now. Blocks on the disk.
    pub fn sweep(&self) {
        let trees = self.lock().clone();
        for tree in trees {
            match remove_tree(&tree) {
                Ok(()) => {
                    tracing::info!(path = %tree.display(), "a work directory is gone at last");
                    self.lock().remove(&tree);
                }
                Err(error) => tracing::debug!(error = %causes(&error), path = %tree.display(), "a work directory still cannot be removed"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_go_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let leavings = Leavings::default();
        let path = dir.path().join("file/tree");
        // A file where its parent should be: an obstacle that holds for root too.
        std::fs::write(dir.path().join("file"), "").unwrap();
        leavings.remove(&path);
        leavings.sweep();
        assert_eq!(leavings.lock().len(), 1);
        std::fs::remove_file(dir.path().join("file")).unwrap();
        std::fs::create_dir_all(path.join("inner")).unwrap();
        leavings.sweep();
        assert_eq!(leavings.lock().len(), 0);
        assert!(!path.exists());
    }
}
