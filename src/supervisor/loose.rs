//! Tasks without a cgroup (`--allow-unlimited` where none can be made): their processes are told by the work directory in
//! their environment. A process that changed its own environment in memory, or cannot be looked at, escapes; that is what
//! "unlimited" means, and why it has to be asked for.

use rustix::process::{Pid, Signal, kill_process};

use super::protocol::SpawnRequest;

/// Processes of the task of `leader`, the leader first while it lives.
#[must_use]
pub fn processes(leader: i32, request: &SpawnRequest) -> Vec<i32> {
    let Some(mark) = request.env.iter().find(|(name, _)| name == "WINDLASS_WORKDIR").map(|(name, value)| format!("{name}={value}")) else {
        return vec![];
    };
    let Ok(entries) = std::fs::read_dir("/proc") else { return vec![] };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let own = std::process::id().cast_signed();
    let mut found: Vec<i32> = pids
        .filter(|pid| *pid != own)
        .filter(|pid| std::fs::read(format!("/proc/{pid}/environ")).is_ok_and(|env| env.split(|b| *b == 0).any(|v| v == mark.as_bytes())))
        .collect();
    found.sort_by_key(|pid| *pid != leader);
    found
}

/// SIGKILL to all of them that can be found now; to be called until none is left.
pub fn kill(leader: i32, request: &SpawnRequest) {
    for pid in processes(leader, request).into_iter().filter_map(Pid::from_raw) {
        let _ = kill_process(pid, Signal::KILL);
    }
}
