//! One contract, two runtimes: the same cases as native processes and as containers, those that its engine makes below the worker's
//! cgroups and those that it makes elsewhere, with the same assertions of events, outcome,
//! reason, manifest, usage and what is left. What differs by nature is asked of [`Home`], and there is little of it.

use std::sync::Arc;

use windlass::task::log_chunk::LogStream;
use windlass::task::{Event, EventKind, Reason};

use crate::harness::worker::Worker;
use crate::harness::{Engine, Fleet, Job, Server, Task};

#[path = "docker_table/ends.rs"]
mod ends;
#[path = "docker_table/gives.rs"]
mod gives;
#[path = "docker_table/life.rs"]
mod life;

/// Where a case runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Home {
    Native,
    Docker,
    /// With an engine whose containers are not below the worker's cgroups: it alone limits, kills and removes them.
    Elsewhere,
}

/// A fleet whose tasks run there.
struct World {
    fleet: Fleet,
    home: Home,
}

impl std::ops::Deref for World {
    type Target = Fleet;
    fn deref(&self) -> &Fleet {
        &self.fleet
    }
}

macro_rules! table {
    ($($module:ident::$case:ident,)*; elsewhere: $($other:ident::$again:ident,)*) => {
        mod elsewhere {
            $(#[tokio::test]
            async fn $again() {
                super::$other::$again(super::Home::Elsewhere).await;
            })*
        }
        mod native {
            $(#[tokio::test]
            async fn $case() {
                super::$module::$case(super::Home::Native).await;
            })*
        }
        mod docker {
            $(#[tokio::test]
            async fn $case() {
                super::$module::$case(super::Home::Docker).await;
            })*
        }
    };
}

table! {
    ends::success,
    ends::exit_codes,
    ends::no_such_program,
    ends::timeout_with_grace,
    ends::timeout_without_grace,
    ends::out_of_memory,
    ends::child_out_of_memory,
    ends::too_many_processes,
    ends::refused_by_policy,
    gives::flood,
    gives::bytes_as_they_are,
    gives::output_while_it_runs,
    gives::result,
    gives::unusable_result,
    gives::progress,
    gives::standard_input,
    gives::environment,
    gives::secrets,
    life::canceled_while_queued,
    life::canceled_while_it_runs,
    life::retry,
    life::deadline,
    life::drained,
    life::released,
    life::aborted,
    life::worker_killed,
    ;
    elsewhere:
    ends::success,
    ends::exit_codes,
    ends::no_such_program,
    ends::timeout_with_grace,
    ends::timeout_without_grace,
    ends::out_of_memory,
    ends::child_out_of_memory,
    ends::too_many_processes,
    gives::flood,
    gives::result,
    gives::standard_input,
    life::canceled_while_it_runs,
    life::retry,
    life::deadline,
    life::drained,
    life::released,
    life::aborted,
    life::worker_killed,
}

impl World {
    /// Without a worker.
    async fn idle(home: Home, settings: &[(&str, &str)]) -> Option<Self> {
        let fleet = match home {
            Home::Native => Fleet::start(settings).await?,
            Home::Docker => Fleet::docker(settings).await?,
            Home::Elsewhere => Fleet::with_engine(Server::shared()?, Engine::elsewhere()?, settings).await,
        };
        Some(Self { fleet, home })
    }

    /// With one.
    async fn new(home: Home) -> Option<Self> {
        let world = Self::idle(home, &[]).await?;
        world.worker(&[("CAPACITY__SLOTS", "4")]);
        Some(world)
    }

    /// A script of bash, which sees the test's directory.
    fn script(&self, text: impl Into<String>) -> Job {
        match self.home {
            Home::Native => Job::bash(text),
            Home::Docker | Home::Elsewhere => Job::container_script(text.into()).sees(&self.dir),
        }
    }

    /// A program and its arguments.
    fn argv(&self, argv: &[&str]) -> Job {
        match self.home {
            Home::Native => Job::argv(argv),
            Home::Docker | Home::Elsewhere => Job::container(argv),
        }
    }

    /// Runs it to its end, and sees that the end tells all.
    async fn run(&self, job: &Job) -> (Task, Event) {
        let task = self.submit(job).await;
        let end = self.told(&task).await;
        (task, end)
    }

    /// The end of a task that ran, with what every such end says; nothing of the attempt is there any more.
    async fn told(&self, task: &Task) -> Event {
        let end = self.end(task).await;
        assert_eq!(self.processes_of(&task.id), [], "the event says it is over, so nothing of it may run");
        let run = end.run.as_ref().expect("how it ran");
        let limits = run.limits.as_ref().expect("limits");
        assert!(limits.enforced, "{limits:?}");
        assert!(run.started_at.unwrap() <= run.finished_at.unwrap() && run.duration_ms.is_some() && run.prepare_ms.is_some(), "{run:?}");
        let of_container = [run.image.is_some(), run.image_digest.is_some(), run.container_id.is_some(), run.sandbox.is_none()];
        assert_eq!(of_container, [self.home != Home::Native; 4], "{run:?}");
        let usage = end.usage.as_ref().expect("what it used");
        assert!(usage.memory_peak_bytes > 0 && usage.memory_peak_bytes <= limits.memory_bytes, "{usage:?} of {limits:?}");
        assert!(usage.cpu_user_us + usage.cpu_system_us > 0, "{usage:?}");
        assert!(end.logs.is_some(), "it ran, so there is a manifest");
        let kinds: Vec<_> = self.chain(task).iter().map(|link| link.event.event).collect();
        assert_eq!(kinds.first(), Some(&EventKind::TaskStarted));
        end
    }

    async fn stdout(&self, task: &Task, end: &Event) -> String {
        String::from_utf8(self.output(task, end, LogStream::Stdout).await).expect("text")
    }

    /// A worker that dies and comes back on the same host.
    fn host(&self) -> Arc<Worker> {
        self.worker_named("host", &[])
    }

    async fn finish(self) {
        self.fleet.finish().await;
    }
}

fn reason(end: &Event) -> Reason {
    end.reason.expect("an end has a reason")
}
