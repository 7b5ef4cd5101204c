//! The hidden role that a supervisor becomes when its worker is gone: it removes the worker's containers and networks.
//!
//! Their processes are dead by then, where they were in cgroups of ours; where they were not, this is what ends them. A create or
//! start that was under way when the worker died is carried out by the engine all the same, so one look is not enough: it ends
//! when nothing has come up for a while, or when an engine that does not answer has had its time. The next start of a worker
//! does the rest.

use std::collections::HashSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Reaped, Which, reap};
use crate::execute::docker::{Engine, EngineError};
use crate::execute::native::cgroup;
use crate::supervisor::protocol::ContainerGuard;

/// Nothing came up for so long: a create takes a tenth of a second, and on a slow disk one or two.
const QUIET: Duration = Duration::from_secs(2);
/// Likewise while fewer containers came up than cgroups were held for: an engine with much to do takes longer.
const QUIET_UNLESS_ALL: Duration = Duration::from_secs(15);
/// In all.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks, at first and at last.
const LOOK: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

/// What has to be known, as one JSON argument.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Args {
    /// The engine.
    pub guard: ContainerGuard,
    /// The instance whose worker is gone.
    pub instance: String,
    /// Its cgroups: the engine makes them again for what it starts late.
    pub directories: Vec<PathBuf>,
    /// The directories above these are Windlass's own.
    pub own_parent: bool,
    /// Cgroups that were held for containers: so many may be under way.
    pub held: usize,
}

/// Entry point of the hidden subcommand.
#[must_use]
pub fn main(arguments: &str) -> ExitCode {
    let Ok(args) = serde_json::from_str::<Args>(arguments) else { return ExitCode::from(2) };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return ExitCode::FAILURE };
    let done = runtime.block_on(bury(&args));
    let cgroups = cgroup::remove_instances(&args.directories).is_ok();
    if cgroups && args.own_parent {
        cgroup::remove_parents(&args.directories);
    }
    if done && cgroups { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Removes until nothing comes any more; false when the engine did not let it.
async fn bury(args: &Args) -> bool {
    let end = Instant::now() + PATIENCE;
    let mut engine = None;
    let mut quiet_since = None;
    let mut pause = LOOK.0;
    // One that is being removed is seen again.
    let mut seen = HashSet::new();
    while Instant::now() < end {
        match look(args, &mut engine).await {
            Ok(reaped) if reaped.is_nothing() => {
                let since = *quiet_since.get_or_insert_with(Instant::now);
                let enough = if seen.len() >= args.held { QUIET } else { QUIET_UNLESS_ALL };
                if since.elapsed() >= enough {
                    return true;
                }
            }
            Ok(reaped) => {
                seen.extend(reaped.containers);
                (quiet_since, pause) = (None, LOOK.0);
            }
            // What was found there is not known; what answers next may be another one.
            Err(_) => (quiet_since, engine) = (None, None),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LOOK.1);
    }
    false
}

/// One look; what there was.
async fn look(args: &Args, engine: &mut Option<Engine>) -> Result<Reaped, EngineError> {
    let connected = match engine.take() {
        Some(connected) => connected,
        None => Engine::connect_to(&args.guard.host, Duration::from_millis(args.guard.request_timeout_ms)).await?,
    };
    let reaped = reap(&connected, Which::Instance(&args.instance)).await;
    *engine = Some(connected);
    reaped
}
