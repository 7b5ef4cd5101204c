//! `windlass services`: the long-lived services of an environment.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use super::output::{Style, Table};
use super::{Exit, Failed, Global, Output};
use crate::config::services::{self, Services};
use crate::execute::docker::stack::{Stack, StackError, Standing, State};
use crate::execute::docker::{Engine, EngineError, Images};

/// `windlass services`
#[derive(Debug, Clone, Subcommand)]
pub enum ServicesAction {
    /// Start what does not run, make anew what changed, wait until all are ready
    Up(File),
    /// Remove them; volumes stay unless asked for
    Down(DownArgs),
    /// How each one is; exit code 1 when not all are ready
    Status(File),
}

/// Which services.
#[derive(Debug, Clone, Args)]
pub struct File {
    /// File with the services, as config/services.toml
    #[arg(long = "services", env = services::VARIABLE, hide_env_values = true, value_name = "FILE")]
    pub file: Option<PathBuf>,
}

/// `windlass services down`
#[derive(Debug, Clone, Args)]
pub struct DownArgs {
    /// Which.
    #[command(flatten)]
    pub file: File,
    /// Remove their named volumes as well, with all that is in them
    #[arg(long)]
    pub volumes: bool,
}

/// Runs the verb.
pub(super) async fn run(global: &Global, action: &ServicesAction, output: &Output) -> Result<Exit, Failed> {
    let (ServicesAction::Up(file) | ServicesAction::Status(file) | ServicesAction::Down(DownArgs { file, .. })) = action;
    let config = global.load_config()?;
    let wanted = services::load(file.file.as_deref())?;
    if config.docker.host.is_empty() {
        return Err(Failed::new(Exit::Usage, "no container engine is configured").hint("set docker.host or DOCKER_HOST"));
    }
    let engine = Engine::connect(&config.docker).await.map_err(|error| of_engine(&error, error.to_string()))?;
    let images = Images::new(&config.docker, &config.worker.state_dir);
    let stack = Stack::new(engine, images, &wanted.environment);
    match action {
        ServicesAction::Up(_) => up(&stack, &wanted, output).await,
        ServicesAction::Status(_) => status(&stack, &wanted, output).await,
        ServicesAction::Down(args) => down(&stack, &wanted, args, output).await,
    }
}

async fn up(stack: &Stack, wanted: &Services, output: &Output) -> Result<Exit, Failed> {
    if wanted.services.is_empty() {
        let hint = format!("give a file with --services or {}; config/services.toml shows its keys", services::VARIABLE);
        return Err(Failed::new(Exit::Usage, "no services are configured").hint(hint));
    }
    stack.up(wanted, &|step| output.notice(step)).await?;
    status(stack, wanted, output).await
}

async fn status(stack: &Stack, wanted: &Services, output: &Output) -> Result<Exit, Failed> {
    let all = stack.status(wanted).await?;
    if output.is_json() {
        for standing in &all {
            let mut line = json!(standing);
            line["environment"] = json!(wanted.environment);
            output.json(&line)?;
        }
    } else {
        output.table(&table(&all))?;
    }
    Ok(if all.iter().all(is_fine) { Exit::Done } else { Exit::Error })
}

/// One that the file does not name any more is nobody's trouble.
fn is_fine(standing: &Standing) -> bool {
    match standing.state {
        State::Ready | State::Unconfigured => true,
        State::NotReady | State::Stopped | State::Missing | State::Outdated => false,
    }
}

fn table(all: &[Standing]) -> Table {
    let mut table = Table::new(&["SERVICE", "STATE", "IMAGE", "PORTS", ""]);
    for standing in all {
        let (word, style) = shown(standing.state);
        let plain = |text: String| (text, Style::Plain);
        table.row(vec![
            plain(standing.service.clone()),
            (word.to_owned(), style),
            plain(standing.image.clone()),
            plain(standing.ports.join(" ")),
            (standing.detail.clone().unwrap_or_default(), Style::Dim),
        ]);
    }
    table
}

fn shown(state: State) -> (&'static str, Style) {
    match state {
        State::Ready => ("ready", Style::Green),
        State::NotReady => ("not_ready", Style::Red),
        State::Stopped => ("stopped", Style::Red),
        State::Missing => ("missing", Style::Red),
        State::Outdated => ("outdated", Style::Yellow),
        State::Unconfigured => ("unconfigured", Style::Yellow),
    }
}

async fn down(stack: &Stack, wanted: &Services, args: &DownArgs, output: &Output) -> Result<Exit, Failed> {
    let removed = stack.down(args.volumes, &|step| output.notice(step)).await?;
    if output.is_json() {
        output.json(&json!({"environment": wanted.environment, "services": removed.services, "volumes": removed.volumes}))?;
    } else {
        let (services, volumes) = (removed.services.len(), removed.volumes.len());
        output.line(&format!("removed {services} services and {volumes} volumes of environment {}", wanted.environment))?;
    }
    Ok(Exit::Done)
}

fn of_engine(error: &EngineError, message: String) -> Failed {
    match error {
        EngineError::Unavailable { .. } => Failed::new(Exit::Unreachable, message)
            .hint("start the engine, name its socket by docker.host or DOCKER_HOST, or get the right to use it"),
        EngineError::Refused { .. } | EngineError::Unfit(_) => Failed::new(Exit::Error, message),
    }
}

impl From<StackError> for Failed {
    fn from(error: StackError) -> Self {
        let message = error.to_string();
        match error {
            StackError::Engine { error, .. } => of_engine(&error, message),
            StackError::NotReady { .. } => Self::new(Exit::Error, message).hint("look at its image, command, env and health check"),
            StackError::Image { error, .. } => Self::new(Exit::Error, message).hint(error.hint),
            StackError::Secret { .. } => Self::new(Exit::Usage, message),
        }
    }
}
