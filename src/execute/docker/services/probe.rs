//! Is a service ready? Its own command, run inside of its container, says so with status 0.
//!
//! Not the engine's health checks: Podman needs systemd for them, and the engine begins with them only after an interval.
//!
//! A command that hangs goes on in the container when nobody waits for it any more, and the engine has no way to end it. So a look
//! first sees whether the command of one before still runs; by what the engine says, since that may have been another program's look.

use std::time::Duration;

use bollard::exec::StartExecResults;
use bollard::models::{ExecConfig, ExecInspectResponse};
use bollard::query_parameters::InspectContainerOptions;
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
    if still_runs(engine, container, command).await? {
        return Ok(Look::NotReady("the check of a look before has not ended yet".to_owned()));
    }
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

/// Whether the command runs in the container already.
async fn still_runs(engine: &Engine, container: &str, command: &[String]) -> Result<bool, EngineError> {
    let found = engine.ask("inspect", engine.api().inspect_container(container, None::<InspectContainerOptions>)).await?;
    for id in found.exec_ids.unwrap_or_default() {
        match engine.ask("inspect exec", engine.api().inspect_exec(&id)).await {
            Ok(exec) if runs(&exec, command) => return Ok(true),
            Ok(_) => {}
            // It ended since the container was looked at.
            Err(EngineError::Refused { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

fn runs(exec: &ExecInspectResponse, command: &[String]) -> bool {
    let Some(process) = &exec.process_config else { return false };
    let words = process.entrypoint.iter().chain(process.arguments.iter().flatten());
    exec.running == Some(true) && words.eq(command)
}
