//! The command line, as clap reads it. The first line of each comment is the help that people see.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::output::Format;
use super::services::ServicesAction;
use super::{bench::BenchArgs, cancel::CancelArgs, config::ConfigAction, dead::DeadAction, doctor::DoctorArgs, drain::DrainArgs};
use super::{events::EventsArgs, init::InitArgs, list::ListArgs, logs::LogsArgs, plan::PlanArgs, run::RunArgs, schema::SchemaArgs};
use super::{shell::CompletionsArgs, shell::ManArgs, status::StatusArgs, submit::SubmitArgs, top::TopArgs, workers::WorkersArgs};
use crate::task::log_chunk::LogStream;
use crate::task::{ClassName, Priority, TaskId, Tenant};
use crate::wire::Encoding;

/// Workers that pull tasks from NATS JetStream, run them under real limits, and acknowledge only what is durably published.
#[derive(Debug, Parser)]
#[command(name = "windlass", version, long_version = crate::version::LONG, max_term_width = 120, propagate_version = true)]
pub struct Cli {
    /// Options of every verb.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Options of every verb.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of every verb")]
pub struct Global {
    /// NATS servers, comma separated [default: nats://127.0.0.1:4222]
    #[arg(long, env = "NATS_URL", hide_env_values = true, global = true, value_name = "URL")]
    pub server: Option<String>,
    /// NATS credentials file
    #[arg(long, env = "NATS_CREDS", hide_env_values = true, global = true, value_name = "FILE")]
    pub creds: Option<String>,
    /// First token of every subject [default: windlass]
    #[arg(long, env = "WINDLASS_PREFIX", hide_env_values = true, global = true)]
    pub prefix: Option<Tenant>,
    /// Configuration file; any key can also be set by WINDLASS__SECTION__KEY
    #[arg(long, env = "WINDLASS_CONFIG", hide_env_values = true, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Tables for people, or JSON for programs
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub output: Format,
    /// Which of these options a variable gave.
    #[arg(skip)]
    pub by_environment: Vec<&'static str>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Try it: a nats-server, the streams and one worker on this machine, until Ctrl-C
    Dev(DevArgs),
    /// Pull tasks and run them, until SIGTERM
    Worker(WorkerArgs),
    /// The verbs of an operator.
    #[command(flatten)]
    Operate(Operation),
    /// The process that starts, limits and kills a worker's tasks
    #[command(hide = true)]
    Supervisor {
        /// What it has to know, as JSON.
        arguments: String,
    },
    /// Removes the containers of a worker that is gone
    #[command(hide = true)]
    ReapContainers {
        /// What it has to know, as JSON.
        arguments: String,
    },
    /// Becomes a program that dies with its parent
    #[command(hide = true)]
    Guard(GuardArgs),
}

/// What an operator asks of the fleet.
#[derive(Debug, Subcommand)]
pub enum Operation {
    /// Create or update streams and consumers; prints the plan first, destroys nothing
    Init(InitArgs),
    /// Queue assignments from a file: one JSON object, an array, or one object a line
    Submit(Box<SubmitArgs>),
    /// Say what would run, and who decided it, or why it would be refused; runs and queues nothing
    Plan(Box<PlanArgs>),
    /// Run a command on the fleet, show its output live, and exit with its code
    Run(Box<RunArgs>),
    /// Show where a task stands
    Status(StatusArgs),
    /// List tasks, newest first
    List(ListArgs),
    /// Show a task's output, checked against its manifest
    Logs(LogsArgs),
    /// Show events of one task or of all
    Events(EventsArgs),
    /// Stop a task, queued or running
    Cancel(CancelArgs),
    /// Show the workers of the fleet
    Workers(WorkersArgs),
    /// Ask a worker to take no more work and to end when it has none
    Drain(DrainArgs),
    /// Look at what could not become a task, and queue it again
    Dead {
        /// What to do with them.
        #[command(subcommand)]
        action: DeadAction,
    },
    /// Look at the configuration
    Config {
        /// What to look at.
        #[command(subcommand)]
        action: ConfigAction,
    },
    /// Long-lived services of an environment: databases and the like that many tasks use
    Services {
        /// What to do with them.
        #[command(subcommand)]
        action: ServicesAction,
    },
    /// Examine machine, NATS and rights for a worker, and say what mends what is wrong; changes nothing
    Doctor(DoctorArgs),
    /// Watch the fleet live: rates, queues, workers, what runs
    Top(TopArgs),
    /// Submit tasks that do nothing, and print rates and latencies
    Bench(BenchArgs),
    /// Show the JSON Schema of assignments, events, log chunks or the configuration
    Schema(SchemaArgs),
    /// Write completions for a shell
    Completions(CompletionsArgs),
    /// Write manual pages
    Man(ManArgs),
}

/// `windlass worker`
#[derive(Debug, Clone, Args)]
pub struct WorkerArgs {
    /// Name of this worker [default: worker.id of the configuration, else the host name]
    #[arg(long)]
    pub id: Option<crate::task::WorkerId>,
    /// Run although limits cannot be enforced; every event then says so
    #[arg(long)]
    pub allow_unlimited: bool,
}

/// `windlass dev`
#[derive(Debug, Clone, Args)]
pub struct DevArgs {
    /// Port of the nats-server on 127.0.0.1; 0 takes 4222 when it is free, else another
    #[arg(long, default_value_t = 0)]
    pub port: u16,
    /// The nats-server to run [default: the newest in .windlass/tools, else the one on PATH]
    #[arg(long, value_name = "PATH")]
    pub nats_server: Option<PathBuf>,
    /// Where streams, spool and work directories are kept
    #[arg(long, value_name = "DIR", default_value = ".windlass/dev")]
    pub data: PathBuf,
    /// Run although limits cannot be enforced; every event then says so
    #[arg(long)]
    pub allow_unlimited: bool,
}

/// `windlass guard`
#[derive(Debug, Clone, Args)]
pub struct GuardArgs {
    /// The process that starts this one.
    #[arg(long)]
    pub parent: i32,
    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<std::ffi::OsString>,
}

/// Where a new task goes.
#[derive(Debug, Clone, Args)]
pub struct Target {
    /// Whose task it is [default: what the assignment says, else "default"]
    #[arg(long)]
    pub tenant: Option<Tenant>,
    /// Its class [default: what the assignment says, else "gpu" with GPUs, "cpu_long" for containers, "cpu_short"]
    #[arg(long)]
    pub class: Option<ClassName>,
    /// Its queue: high, normal or low
    #[arg(long, default_value = "normal")]
    pub priority: Priority,
    /// Its id [default: what the assignment says, else a new UUIDv7]
    #[arg(long)]
    pub id: Option<TaskId>,
}

/// Names a task.
#[derive(Debug, Clone, Args)]
pub struct Named {
    /// The task's id
    pub id: TaskId,
    /// Its tenant [default: whoever has a task with that id]
    #[arg(long)]
    pub tenant: Option<Tenant>,
}

pub(super) fn positive(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if number > 0.0 && number < 1e9 { Ok(number) } else { Err("must be more than 0".to_owned()) }
}

pub(super) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        Some(_) | None => Err("write NAME=VALUE".to_owned()),
    }
}

pub(super) fn encoding(text: &str) -> Result<Encoding, String> {
    match text {
        "json" => Ok(Encoding::Json),
        "msgpack" => Ok(Encoding::Msgpack),
        _ => Err("write json or msgpack".to_owned()),
    }
}

pub(super) fn log_stream(text: &str) -> Result<LogStream, String> {
    LogStream::ALL.into_iter().find(|s| s.as_str() == text).ok_or_else(|| "write stdout, stderr or system".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_follows_run_is_the_tasks_own() {
        let cli = Cli::try_parse_from(["windlass", "run", "--timeout", "5", "-e", "A=b=c", "--", "ls", "--output", "x"]).expect("parses");
        let Verb::Operate(Operation::Run(args)) = cli.verb else { panic!("not run") };
        assert_eq!(args.command, ["ls", "--output", "x"]);
        assert_eq!((args.timeout, args.env), (Some(5.0), vec![("A".to_owned(), "b=c".to_owned())]));
        assert_eq!(cli.global.output, Format::Table);
        assert!(Cli::try_parse_from(["windlass", "run"]).is_err());
        assert!(Cli::try_parse_from(["windlass", "run", "--bash", "echo $1", "x"]).is_ok());
        assert!(Cli::try_parse_from(["windlass", "run", "--image", "redis"]).is_ok(), "an image has a command of its own");
        assert!(Cli::try_parse_from(["windlass", "run", "--image", "redis", "--bash", "true"]).is_err());
        assert!(Cli::try_parse_from(["windlass", "run", "--pull", "always", "true"]).is_err(), "of images only");
    }

    #[test]
    fn options_of_every_verb_may_follow_it() {
        let cli = Cli::try_parse_from(["windlass", "status", "abc", "-o", "json", "--server", "nats://x"]).expect("parses");
        assert_eq!((cli.global.output, cli.global.server.as_deref()), (Format::Json, Some("nats://x")));
    }
}
