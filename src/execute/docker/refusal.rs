//! Why a container does not run, in the words of an event. Pure.

use super::EngineError;
use crate::task::Reason;

/// Why something of a container could not be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct Refusal {
    /// Typed.
    pub reason: Reason,
    /// For people.
    pub error: String,
    /// What to do.
    pub hint: String,
}

impl Refusal {
    /// The engine does not answer.
    #[must_use]
    pub fn away(error: &EngineError) -> Self {
        let hint = "look at the container engine of that worker: `windlass doctor` says what is wrong; the task is tried again";
        Self { reason: Reason::DockerUnavailable, error: error.to_string(), hint: hint.to_owned() }
    }

    /// The isolation that was promised cannot be had.
    #[must_use]
    pub fn isolation(error: String) -> Self {
        let hint = "no task runs without its limits: `windlass doctor` on that machine says what is missing";
        Self { reason: Reason::IsolationUnavailable, error, hint: hint.to_owned() }
    }
}

/// What the engine says when the program, its user or its directory is to blame.
const OF_THE_TASK: [(&str, &str); 7] = [
    ("executable file not found", "the image has no such program: look at execution.command and execution.entrypoint"),
    ("permission denied", "the program, or execution.working_dir, is not open to the container's user: check its permissions in the image"),
    ("exec format error", "the program was built for another machine, or has no #! line"),
    ("no such file or directory", "the program, its interpreter or execution.working_dir is not in the image"),
    ("not a directory", "execution.working_dir, or a part of the program's path, is a file"),
    ("unable to find user", "execution.user names a user that the image does not have; give a number"),
    ("no command specified", "the image names no program: give execution.command"),
];

/// What it says when the machine cannot give what isolates the container.
const OF_ISOLATION: [&str; 5] = ["cgroup", "seccomp", "apparmor", "capabilit", "no new privileges"];

/// The engine refused to create or start a container.
#[must_use]
pub fn of_start(error: &EngineError) -> Refusal {
    let EngineError::Refused { status, message, .. } = error else { return Refusal::away(error) };
    let said = message.to_lowercase();
    let text = error.to_string();
    if *status == 404 && said.contains("no such image") {
        let hint = "it was removed while the task began; the next attempt looks for it again";
        return Refusal { reason: Reason::ImagePullFailed, error: text, hint: hint.to_owned() };
    }
    if said.contains("bind source path does not exist") {
        let hint = "the engine does not see that directory of the worker's: both must have the same file system";
        return Refusal { reason: Reason::IsolationUnavailable, error: text, hint: hint.to_owned() };
    }
    // The engine's own trouble with cgroups can end with "permission denied" as well.
    if OF_ISOLATION.iter().any(|word| said.contains(word)) && !said.contains("exec:") && !said.contains("chdir") {
        return Refusal::isolation(text);
    }
    if let Some((_, hint)) = OF_THE_TASK.iter().find(|(words, _)| said.contains(words)) {
        return Refusal { reason: Reason::SpawnFailed, error: text, hint: (*hint).to_owned() };
    }
    if error.is_transient() {
        return Refusal::away(error);
    }
    let hint = "see what the engine says; it takes no such container";
    Refusal { reason: Reason::SpawnFailed, error: text, hint: hint.to_owned() }
}

/// Whether an init in front of the program could not start it: its exit status is one that a program may have as well, so its
/// own words count.
#[must_use]
pub fn of_init(code: i32, stderr_tail: &str) -> Option<Refusal> {
    if !matches!(code, 126 | 127) {
        return None;
    }
    let line = stderr_tail.lines().rfind(|line| {
        let of_tini = line.contains("tini") && line.contains("exec ") && line.contains(" failed: ");
        of_tini || (line.contains("catatonit") && line.contains("failed to exec "))
    })?;
    let said = line.to_lowercase();
    let hint = OF_THE_TASK.iter().find(|(words, _)| said.contains(words)).map_or("look at execution.command", |(_, hint)| hint);
    let words = line.split_once("exec ").map_or(line, |(_, words)| words);
    Some(Refusal { reason: Reason::SpawnFailed, error: format!("cannot start {words}"), hint: hint.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, message: &str) -> EngineError {
        EngineError::Refused { what: "start a container", status, message: message.to_owned() }
    }

    #[test]
    fn refusals_blame_the_right_side() {
        for (status, message, reason) in [
            (
                400,
                "OCI runtime create failed: container_linux.go:380: starting container process caused: exec: \"nope\": executable file not found in $PATH: unknown",
                Reason::SpawnFailed,
            ),
            (
                400,
                "OCI runtime create failed: runc create failed: unable to start container process: exec: \"/etc\": permission denied: unknown",
                Reason::SpawnFailed,
            ),
            (
                500,
                "OCI runtime create failed: … chdir to cwd (\"/root\") set in config.json failed: permission denied: unknown",
                Reason::SpawnFailed,
            ),
            (400, "unable to find user nobodyhere: no matching entries in passwd file", Reason::SpawnFailed),
            (400, "No command specified", Reason::SpawnFailed),
            (404, "No such image: sha256:12", Reason::ImagePullFailed),
            (400, "invalid mount config for type \"bind\": bind source path does not exist: /x", Reason::IsolationUnavailable),
            (
                500,
                "OCI runtime create failed: … applying cgroup configuration for process caused: mkdir /sys/fs/cgroup/cpu/x: permission denied",
                Reason::IsolationUnavailable,
            ),
            (500, "something broke", Reason::DockerUnavailable),
            (400, "bad parameter", Reason::SpawnFailed),
        ] {
            let refusal = of_start(&refused(status, message));
            assert_eq!(refusal.reason, reason, "{message}");
            assert!(refusal.error.contains(message) && !refusal.hint.is_empty());
        }
        let away = EngineError::Unavailable { host: "x".to_owned(), what: "y", error: "z".to_owned() };
        assert_eq!(of_start(&away).reason, Reason::DockerUnavailable);
    }

    #[test]
    fn an_init_that_could_not_start_the_program_is_heard() {
        let line = "[FATAL tini (7)] exec nope failed: No such file or directory\n";
        let refusal = of_init(127, line).unwrap();
        assert_eq!(refusal.reason, Reason::SpawnFailed);
        assert_eq!(refusal.error, "cannot start nope failed: No such file or directory");
        assert_eq!(of_init(1, line), None, "another status");
        assert_eq!(of_init(127, "sh: nope: not found\n"), None, "the program's own words");
    }
}
