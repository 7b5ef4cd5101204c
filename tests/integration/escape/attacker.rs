//! A worker, its tenants, and one of them who tries something.

use std::path::PathBuf;
use std::sync::Arc;

use windlass::task::log_chunk::LogStream;
use windlass::task::{Event, Reason};

use crate::harness::job::Gate;
use crate::harness::server::skip;
use crate::harness::worker::Worker;
use crate::harness::{Fleet, Job, PATIENCE, Task};

/// Profiles that have to hold.
pub const CONFINED: [&str; 2] = ["standard", "strict"];
/// A worker without sandbox: what the others are held against.
pub const NONE: &[(&str, &str)] = &[("CLASSES__CPU_SHORT__SANDBOX", "none")];

/// A user that no system has.
pub const ORDINARY: u32 = 61_234;

/// A fleet with one worker whose tasks all have one profile.
pub struct World {
    pub fleet: Fleet,
    pub worker: Arc<Worker>,
}

/// What an attacker said.
#[derive(Debug)]
pub struct Seen {
    pub lines: Vec<String>,
    pub end: Event,
}

impl Seen {
    /// True when the attempt of that name succeeded; it must have been made.
    pub fn got(&self, what: &str) -> bool {
        let is =
            |line: &&String, word: &str| line.strip_prefix(word).is_some_and(|rest| rest == what || rest.starts_with(&format!("{what} ")));
        let got = self.lines.iter().any(|l| is(&l, "GOT "));
        assert!(got || self.lines.iter().any(|l| is(&l, "DENIED ")), "{what:?} was not tried: {self:?}");
        got
    }

    /// What succeeded, without its details.
    pub fn successes(&self) -> Vec<&str> {
        self.lines.iter().filter_map(|l| l.strip_prefix("GOT ")).collect()
    }
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

impl World {
    /// `None` where there is no server, or no root: users of tenants are root's to give.
    pub async fn new(profile: &'static str, settings: &[(&str, &str)]) -> Option<Self> {
        if !is_root() {
            skip("as an ordinary user; escape::unprivileged is for that");
            return None;
        }
        let mut all = vec![("CLASSES__CPU_SHORT__SANDBOX", profile)];
        all.extend_from_slice(settings);
        let fleet = Fleet::start(&all).await?;
        let worker = fleet.worker(&[("CAPACITY__SLOTS", "4")]);
        Some(Self { fleet, worker })
    }

    /// As [`World::new`], with a worker that is an ordinary user.
    pub async fn unprivileged(profile: &'static str, settings: &[(&str, &str)]) -> Option<Self> {
        if !is_root() {
            skip("needs root to start a worker as somebody else");
            return None;
        }
        // It may make no cgroups here: time limits are all that it can set.
        let mut all = vec![("CLASSES__CPU_SHORT__SANDBOX", profile), ("CGROUP__ALLOW_UNLIMITED", "true")];
        all.extend_from_slice(settings);
        let fleet = Fleet::start(&all).await?;
        let worker = fleet.worker_as(ORDINARY, &[("CAPACITY__SLOTS", "4")]);
        Some(Self { fleet, worker })
    }

    /// One attempt of a tenant.
    pub async fn attack<S: AsRef<str>>(&self, tenant: &str, args: impl IntoIterator<Item = S>) -> Seen {
        let mut job = Job::program("escape.py", args).memory("128MiB");
        tenant.clone_into(&mut job.tenant);
        self.run(&job).await
    }

    /// Runs any job to its end.
    pub async fn run(&self, job: &Job) -> Seen {
        let task = self.fleet.submit(job).await;
        let end = self.fleet.end(&task).await;
        assert_ne!(end.reason, Some(Reason::IsolationUnavailable), "{:?} {:?}", end.error, end.hint);
        let text = String::from_utf8_lossy(&self.fleet.output(&task, &end, LogStream::Stdout).await).into_owned();
        assert!(end.stderr_tail.as_ref().is_none_or(|t| !t.contains("Traceback")), "{:?}", end.stderr_tail);
        Seen { lines: text.lines().map(str::to_owned).collect(), end }
    }

    /// A task of `tenant` that runs until it is let go, and has a secret.
    pub async fn victim(&self, tenant: &str) -> Victim {
        let gate = Gate::new(&self.fleet.dir, &format!("victim-{tenant}"));
        let mut job = Job::bash(format!("echo canary-of-{tenant} > secret; echo up; {}; cat secret", gate.wait()));
        tenant.clone_into(&mut job.tenant);
        let job = job.set("/execution/env", serde_json::json!({"SECRET": format!("canary-of-{tenant}")}));
        let task = self.fleet.submit(&job).await;
        self.fleet.output_has(&task, "up").await;
        let all = self.fleet.processes_of(&task.id);
        let pid = all.iter().find(|(_, command)| command.starts_with("bash")).unwrap_or_else(|| panic!("no shell in {all:?}")).0;
        Victim {
            pid,
            root: self.work().into_iter().find(|p| p.to_string_lossy().contains(&format!("{tenant}.{}", task.id))).unwrap(),
            task,
            gate,
        }
    }

    /// Directories of attempts that are there now.
    pub fn work(&self) -> Vec<PathBuf> {
        instances(&self.worker).iter().flat_map(|instance| list(&instance.join("work"))).collect()
    }

    /// The supervisor's process id.
    pub async fn supervisor(&self) -> u32 {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            match children(self.worker.pid)[..] {
                [supervisor] => return supervisor,
                ref other => assert!(std::time::Instant::now() < deadline, "a worker has one child, not {other:?}"),
            }
            // It is there when the worker is ready, for which there is nothing to wait on.
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    /// The worker and its supervisor are as they were, and do their work.
    pub async fn is_well(&self, pids: [u32; 2]) {
        assert_eq!([self.worker.pid, self.supervisor().await], pids, "the same processes as before");
        let seen = self.run(&Job::bash("echo still here")).await;
        assert_eq!(seen.lines, ["still here"]);
    }
}

/// Somebody else's task.
pub struct Victim {
    pub task: Task,
    pub pid: u32,
    /// The attempt's directory.
    pub root: PathBuf,
    gate: Gate,
}

impl Victim {
    /// Lets it go, and looks that nobody has hurt it.
    pub async fn ends_unharmed(self, world: &World) {
        self.gate.open();
        let end = world.fleet.end(&self.task).await;
        assert_eq!((end.reason, end.task.attempt), (Some(Reason::Ok), 1), "{:?}", end.error);
        let out = world.fleet.output(&self.task, &end, LogStream::Stdout).await;
        assert_eq!(String::from_utf8_lossy(&out), format!("up\ncanary-of-{}\n", self.task.tenant));
        assert_eq!(world.fleet.processes_of(&self.task.id), []);
    }
}

/// The directories of a worker's instances.
pub fn instances(worker: &Worker) -> Vec<PathBuf> {
    list(worker.state_dir())
}

/// What is in a directory.
pub fn list(dir: &std::path::Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect()
}

/// Processes that a process has started, by whichever of its threads.
fn children(pid: u32) -> Vec<u32> {
    let parent = |pid: u32| -> Option<u32> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit(") ").next()?.split(' ').nth(1)?.parse().ok()
    };
    let pids = list(std::path::Path::new("/proc")).into_iter().filter_map(|p| p.file_name()?.to_str()?.parse().ok());
    pids.filter(|child| parent(*child) == Some(pid)).collect()
}
