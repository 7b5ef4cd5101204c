//! The `windlass` command: what can be said to it, and the verbs of an operator.
//!
//! Data goes to stdout, everything else to stderr; tables are for people and may change, `--output json` and the exit
//! codes ([`Exit`]) are a contract (`docs/cli.md`). `worker`, `dev` and the hidden process roles are `main`'s to start;
//! [`operate`] does the rest. Each verb is a file with one `run`, which returns an [`Exit`] or says why not with [`Failed`].

use clap::parser::ValueSource;
use clap::{CommandFactory as _, FromArgMatches as _};

use crate::bus::submit::SubmitError;
use crate::bus::{Bus, BusError, ConnectError, Patience};
use crate::config::{self as configuration, Config, ConfigError, Origin};

mod args;
mod assembly;
mod bench;
mod cancel;
mod config;
mod dead;
mod doctor;
mod drain;
mod events;
mod exit;
mod file;
mod filter;
mod follow;
mod init;
mod list;
mod logs;
mod output;
mod plan;
mod render;
mod run;
mod schema;
mod services;
mod shell;
mod status;
mod submit;
mod terminal;
mod top;
mod verdict;
mod workers;

pub use args::{Cli, DevArgs, Global, GuardArgs, Operation, Verb, WorkerArgs};
pub use exit::Exit;
pub use output::{Format, Output};
pub(crate) use render::event_line;

/// Why a verb did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// How the process ends.
    pub exit: Exit,
    /// What went wrong; empty when there is nobody left to tell (a closed pipe).
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Failed {
    /// A failure without a hint.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: None }
    }

    /// With what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl From<ConfigError> for Failed {
    fn from(error: ConfigError) -> Self {
        Self::new(Exit::Usage, error.to_string())
    }
}

impl From<ConnectError> for Failed {
    fn from(error: ConnectError) -> Self {
        let message = error.to_string();
        match error {
            ConnectError::Unreachable { .. } => {
                Self::new(Exit::Unreachable, message).hint("start one with `windlass dev`, or name yours with --server or NATS_URL")
            }
            ConnectError::NotPermitted { .. } => Self::new(Exit::NotPermitted, message),
            ConnectError::Credentials { .. } => Self::new(Exit::Usage, message),
            ConnectError::TooOld { .. } => Self::new(Exit::Error, message),
        }
    }
}

impl From<BusError> for Failed {
    fn from(error: BusError) -> Self {
        let message = error.to_string();
        match error {
            // "stream not found"
            BusError::Refused { code: 10_059, .. } => Self::new(Exit::Error, message).hint("make the streams with `windlass init`"),
            BusError::TimedOut { .. } | BusError::Closed { .. } => Self::new(Exit::Unreachable, message)
                .hint("the server went away, has no JetStream, or these credentials may not use the subject"),
            BusError::NoResponders { .. } | BusError::Refused { .. } | BusError::TooLarge { .. } | BusError::Unreadable { .. } => {
                Self::new(Exit::Error, message)
            }
        }
    }
}

impl From<SubmitError> for Failed {
    fn from(error: SubmitError) -> Self {
        let message = error.to_string();
        match error {
            SubmitError::AlreadyQueued => {
                Self::new(Exit::Conflict, message).hint("a task's id can be used once; leave it out to get a new one")
            }
            SubmitError::TooLarge(_) => Self::new(Exit::Usage, message).hint("put large inputs elsewhere and name them in env or args"),
            SubmitError::NoStream(_) => Self::new(Exit::Error, message),
            SubmitError::Bus(error) => error.into(),
        }
    }
}

impl From<std::io::Error> for Failed {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return Self::new(Exit::Task(141), "");
        }
        Self::new(Exit::Error, format!("cannot write output: {error}"))
    }
}

/// What the process was asked to do; ends the process after `--help`, `--version` and wrong usage.
#[must_use]
pub fn parse() -> Cli {
    let matches = Cli::command().get_matches();
    let mut cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let by_environment = |option: &&str| matches.value_source(option) == Some(ValueSource::EnvVariable);
    cli.global.by_environment = ["server", "creds", "prefix"].into_iter().filter(by_environment).collect();
    cli
}

impl Global {
    /// The configuration that these options ask for: file and environment, then `--server`, `--creds` and `--prefix`.
    ///
    /// # Errors
    /// When the configuration has mistakes.
    pub fn load_config(&self) -> Result<Config, ConfigError> {
        Ok(self.with_options(configuration::load(self.config.as_deref(), configuration::environment())?))
    }

    /// Likewise for verbs that need no container engine: that `DOCKER_HOST` names one over the network, as on many a
    /// desk, is no mistake to them.
    ///
    /// # Errors
    /// As [`Global::load_config`].
    fn load_without_engine(&self) -> Result<Config, ConfigError> {
        let environment = configuration::environment().into_iter().filter(|(name, _)| name != configuration::DOCKER_HOST);
        Ok(self.with_options(configuration::load(self.config.as_deref(), environment)?))
    }

    fn with_options(&self, mut config: Config) -> Config {
        let bus = &mut config.bus;
        if let Some(server) = &self.server {
            bus.server.clone_from(server);
            config.origins.set("bus.server", self.origin("server", "NATS_URL"));
        }
        if let Some(creds) = &self.creds {
            bus.creds.clone_from(creds);
            config.origins.set("bus.creds", self.origin("creds", "NATS_CREDS"));
        }
        if let Some(prefix) = &self.prefix {
            bus.prefix.clone_from(prefix);
            config.origins.set("bus.prefix", self.origin("prefix", "WINDLASS_PREFIX"));
        }
        config
    }

    fn origin(&self, option: &str, variable: &str) -> Origin {
        let by_environment = self.by_environment.contains(&option);
        if by_environment { Origin::Environment(variable.to_owned()) } else { Origin::Option(format!("--{option}")) }
    }

    /// Connects as an operator's verb does: at once, or not at all.
    async fn connect(&self) -> Result<(Bus, Config), Failed> {
        let config = self.load_without_engine()?;
        let bus = Bus::connect(&config.bus, "windlass-cli", Patience::FailFast).await?;
        Ok((bus, config))
    }
}

/// Does an operator's verb, and says on stderr why when it does not.
pub async fn operate(global: Global, operation: Operation) -> Exit {
    let mut output = Output::new(global.output);
    match perform(&global, operation, &mut output).await {
        Ok(exit) => exit,
        Err(failed) => {
            output.failed(&failed);
            failed.exit
        }
    }
}

async fn perform(global: &Global, operation: Operation, output: &mut Output) -> Result<Exit, Failed> {
    match operation {
        Operation::Init(args) => init::run(global, &args, output).await,
        Operation::Submit(args) => Box::pin(submit::run(global, &args, output)).await,
        Operation::Plan(args) => plan::run(global, &args, output),
        Operation::Run(args) => Box::pin(run::run(global, &args, output)).await,
        Operation::Status(args) => status::run(global, &args, output).await,
        Operation::List(args) => Box::pin(list::run(global, &args, output)).await,
        Operation::Workers(args) => Box::pin(workers::run(global, &args, output)).await,
        Operation::Drain(args) => Box::pin(drain::run(global, &args, output)).await,
        Operation::Logs(args) => Box::pin(logs::run(global, &args, output)).await,
        Operation::Events(args) => Box::pin(events::run(global, &args, output)).await,
        Operation::Cancel(args) => Box::pin(cancel::run(global, &args, output)).await,
        Operation::Dead { action } => dead::run(global, action, output).await,
        Operation::Config { action } => config::run(global, &action, output),
        Operation::Services { action } => Box::pin(services::run(global, &action, output)).await,
        Operation::Top(args) => Box::pin(top::run(global, &args, output)).await,
        Operation::Bench(args) => Box::pin(bench::run(global, &args, output)).await,
        Operation::Doctor(args) => Box::pin(doctor::run(global, &args, output)).await,
        Operation::Schema(args) => schema::run(&args, output),
        Operation::Completions(args) => shell::completions(&args, output),
        Operation::Man(args) => shell::man(&args, output),
    }
}
