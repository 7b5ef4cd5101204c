//! Where the directories of the machine really are that a container asks for.
//!
//! The plan compared names; here every link is followed, and what leads out of the root that allows it is refused. Between this
//! look and the engine's own, whoever may write below that root can still put a link in the place of a directory: such a root
//! is for directories that the operator, or the tenant itself, writes.

use std::path::Path;

use super::create::Bind;
use super::refusal::Refusal;
use crate::plan::AllowedMount;
use crate::task::Reason;

/// Follows every link of their sources. Blocks on the disk.
///
/// # Errors
/// When one does not exist or leads out of its root.
pub fn resolve(mounts: &[AllowedMount]) -> Result<Vec<Bind>, Refusal> {
    mounts.iter().map(one).collect()
}

fn one(allowed: &AllowedMount) -> Result<Bind, Refusal> {
    let AllowedMount { mount, root } = allowed;
    let absent = |path: &Path, error: &std::io::Error| Refusal {
        reason: Reason::SpawnFailed,
        error: format!("cannot mount {}: {error}", path.display()),
        hint: "it has to be there on every worker that serves the class".to_owned(),
    };
    let source = Path::new(&mount.source);
    let top = root.path.canonicalize().map_err(|e| absent(&root.path, &e))?;
    let real = source.canonicalize().map_err(|e| absent(source, &e))?;
    if !real.starts_with(&top) {
        return Err(Refusal {
            reason: Reason::PolicyRefused,
            error: format!("cannot mount {:?}: a link in it leads out of {}", mount.source, root.path.display()),
            hint: "name the directory itself, or have an operator allow where it leads in tenants.<name>.mounts".to_owned(),
        });
    }
    let Some(text) = real.to_str() else {
        let error = format!("cannot mount {}: its name is no text", real.display());
        return Err(Refusal { reason: Reason::SpawnFailed, error, hint: "rename it".to_owned() });
    };
    Ok(Bind { source: text.to_owned(), target: mount.target.clone(), read_only: mount.read_only })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{Mount, MountRoot};

    fn allowed(root: &Path, source: &Path) -> AllowedMount {
        let mount = Mount { source: source.display().to_string(), target: "/data".to_owned(), read_only: true };
        AllowedMount { mount, root: MountRoot::try_from(root.display().to_string()).unwrap() }
    }

    #[test]
    fn links_are_followed_and_none_leads_out() {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        for made in [root.join("a/b"), outside.join("secret")] {
            std::fs::create_dir_all(made).unwrap();
        }
        let real = root.canonicalize().unwrap();
        std::os::unix::fs::symlink("a", root.join("inside")).unwrap();
        std::os::unix::fs::symlink(&outside, root.join("out")).unwrap();
        std::os::unix::fs::symlink("../outside", root.join("up")).unwrap();
        let found = |path: &str| one(&allowed(&root, &root.join(path)));
        assert_eq!(found("a/b").unwrap().source, real.join("a/b").to_str().unwrap());
        assert_eq!(found("inside/b").unwrap().source, real.join("a/b").to_str().unwrap());
        for path in ["out", "out/secret", "up/secret"] {
            assert_eq!(found(path).unwrap_err().reason, Reason::PolicyRefused, "{path}");
        }
        assert_eq!(found("absent").unwrap_err().reason, Reason::SpawnFailed);
    }

    #[test]
    fn a_root_may_be_a_link_itself() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("real/a")).unwrap();
        let root = dir.path().join("root");
        std::os::unix::fs::symlink("real", &root).unwrap();
        assert!(one(&allowed(&root, &root.join("a"))).unwrap().source.ends_with("/real/a"));
    }
}
