//! Is a service ready? Its own command, run inside of its container, says so with status 0.
//!
//! Not the engine's health checks: Podman needs systemd for them, and the engine begins with them only after an interval.

use std::time::Duration;

use bollard::exec::StartExecResults;
use bollard::models::ExecConfig;
use futures_util::StreamExt as _;

use crate::execute::docker::engine::{Engine, EngineError};
use crate::task::HealthCheck;

/// Bytes of a look's output that are told.
const TOLD: usize = 512;

/// What one look found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::execute::docker) enum Look {
    /// The command ended with 0.
    Ready,
    /// It did not; why.
    NotReady(String),
}

/// One look.
///
/// # Errors
/// When the engine does not answer.
pub(in crate::execute::docker) async fn look(engine: &Engine, container: &str, check: &HealthCheck) -> Result<Look, EngineError> {
    let timeout = Duration::from_secs_f64(check.timeout_s);
    match tokio::time::timeout(timeout, run(engine, container, &check.command)).await {
        // A container that is not running, or a command that is not in it.
        Ok(Err(EngineError::Refused { message, .. })) => Ok(Look::NotReady(message)),
        Ok(looked) => looked,
        Err(_) => Ok(Look::NotReady(format!("the check did not end within {} s", check.timeout_s))),
    }
}

async fn run(engine: &Engine, container: &str, command: &[String]) -> Result<Look, EngineError> {
    let config = ExecConfig { attach_stdout: Some(true), attach_stderr: Some(true), cmd: Some(command.to_vec()), ..ExecConfig::default() };
    let made = engine.ask("create exec", engine.api().create_exec(container, config)).await?;
    let mut said = Vec::new();
    if let StartExecResults::Attached { mut output, .. } = engine.ask("start exec", engine.api().start_exec(&made.id, None)).await? {
        while let Some(part) = output.next().await {
            let part = part.map_err(|error| engine.told("start exec", error))?.into_bytes();
            let room = TOLD.saturating_sub(said.len()).min(part.len());
            said.extend_from_slice(&part[..room]);
        }
    }
    let exec = engine.ask("inspect exec", engine.api().inspect_exec(&made.id)).await?;
    let said = String::from_utf8_lossy(&said);
    Ok(match exec.exit_code {
        Some(0) => Look::Ready,
        Some(code) => Look::NotReady(format!("the check ended with {code}: {}", said.trim())),
        None => Look::NotReady(format!("the check did not say how it ended: {}", said.trim())),
    })
}
