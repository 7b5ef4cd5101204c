//! From a request to a program image, and from an errno to the error that the worker can explain.

use std::ffi::CString;
use std::io;
use std::path::Path;

use super::protocol::{SpawnError, SpawnRequest};
use super::sys::{Image, Step};

/// What `execvp` searches when there is no `PATH`.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// The program of a request, kept to explain a failure.
#[derive(Debug, Clone)]
pub(super) struct Program {
    name: String,
    directory: String,
    /// `PATH` that is searched; `None` for a name with a slash.
    searched: Option<String>,
}

/// Prepares the image.
pub(super) fn prepare(request: &SpawnRequest) -> Result<(Program, Image), SpawnError> {
    let name = request.argv.first().cloned().unwrap_or_default();
    let path = request.env.iter().rev().find(|(key, _)| key == "PATH").map_or(DEFAULT_PATH, |(_, value)| value);
    let searched = (!name.contains('/')).then(|| path.to_owned());
    let program = Program { name, directory: request.cwd.clone(), searched };
    if program.name.is_empty() {
        return Err(program.other("argv", "the first argument is empty"));
    }
    if !request.cwd.starts_with('/') {
        return Err(SpawnError::WorkingDir { path: request.cwd.clone(), error: "not an absolute path".to_owned() });
    }
    let text = |what: &str, s: &str| CString::new(s).map_err(|_| program.other(what, "contains a NUL byte"));
    let argv = request.argv.iter().map(|s| text("argv", s)).collect::<Result<_, _>>()?;
    let env = request.env.iter().map(|(key, value)| text("env", &format!("{key}={value}"))).collect::<Result<_, _>>()?;
    let candidates = program.candidates().iter().map(|s| text("PATH", s)).collect::<Result<_, _>>()?;
    let directory = text("cwd", &request.cwd)?;
    Ok((program, Image::new(candidates, directory, argv, env)))
}

impl Program {
    fn candidates(&self) -> Vec<String> {
        match &self.searched {
            None => vec![self.name.clone()],
            // An empty element is the working directory, as POSIX has it.
            Some(path) => path
                .split(':')
                .map(|dir| if dir.is_empty() { format!("./{}", self.name) } else { format!("{dir}/{}", self.name) })
                .collect(),
        }
    }

    fn other(&self, step: &str, error: impl ToString) -> SpawnError {
        SpawnError::Other { program: self.name.clone(), step: step.to_owned(), error: error.to_string() }
    }

    /// A failure before the child could speak.
    pub(super) fn not_cloned(&self, error: &io::Error, cgroup: &str) -> SpawnError {
        match error.raw_os_error() {
            // The cgroup is the reason: not delegated, has controllers for children, is gone.
            Some(libc::EACCES | libc::EBUSY | libc::EOPNOTSUPP | libc::ENODEV | libc::EBADF) => {
                SpawnError::Cgroup { path: cgroup.to_owned(), error: error.to_string() }
            }
            _ => self.other("clone", error),
        }
    }

    /// A failure that the child reported.
    pub(super) fn failed(&self, step: Step, error: &io::Error, cgroup: &str) -> SpawnError {
        match (step, error.raw_os_error()) {
            (Step::Cgroup, _) => SpawnError::Cgroup { path: cgroup.to_owned(), error: error.to_string() },
            (Step::Directory, _) => SpawnError::WorkingDir { path: self.directory.clone(), error: error.to_string() },
            (Step::Exec, Some(libc::ENOENT | libc::ENOTDIR)) => self.missing(error),
            (Step::Exec, Some(libc::ENOEXEC)) => {
                self.not_executable("not a program: neither a binary of this machine nor a script that begins with #!")
            }
            (Step::Exec, Some(libc::EACCES)) => self.not_executable(error),
            (Step::Exec, Some(libc::ELOOP | libc::ETXTBSY | libc::EPERM | libc::EISDIR | libc::ELIBBAD | libc::EINVAL)) => {
                self.not_executable(error)
            }
            (
                Step::Exec
                | Step::Session
                | Step::Guard
                | Step::Stdio
                | Step::Privileges
                | Step::Namespaces
                | Step::Mounts
                | Step::User
                | Step::Landlock
                | Step::Seccomp,
                _,
            ) => self.other(step.name(), error),
        }
    }

    fn not_executable(&self, error: impl ToString) -> SpawnError {
        SpawnError::NotExecutable { program: self.name.clone(), error: error.to_string() }
    }

    /// The kernel says "no such file" also when the file is there and its interpreter is not.
    fn missing(&self, error: &io::Error) -> SpawnError {
        let there = self.candidates().iter().any(|c| Path::new(&self.directory).join(c).is_file());
        if there {
            return self.not_executable(format!("the interpreter or loader that it names does not exist ({error})"));
        }
        SpawnError::ProgramNotFound { program: self.name.clone(), searched: self.searched.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_name_is_searched_and_a_path_is_not() {
        let program =
            |name: &str, searched: Option<&str>| Program { name: name.into(), directory: "/".into(), searched: searched.map(Into::into) };
        assert_eq!(program("sh", Some("/a:/b")).candidates(), ["/a/sh", "/b/sh"]);
        assert_eq!(program("sh", Some("/a:")).candidates(), ["/a/sh", "./sh"]);
        assert_eq!(program("./sh", None).candidates(), ["./sh"]);
    }
}
