//! `windlass run`: one command on the fleet as if it ran here: its output live, byte for byte, and its exit code.

use clap::Args;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::args::{Target, pair, positive};
use super::follow::{Interrupts, Seen, Watch};
use super::output::visible;
use super::submit::Ready;
use super::{Exit, Failed, Global, Output, render};
use crate::bus::Bus;
use crate::bus::read::ReadEvent;
use crate::task::assignment::RetryOn;
use crate::task::log_chunk::LogStream;
use crate::task::{ByteSize, Event, EventKind, Mount, Outcome, PullPolicy, Reason};
use crate::wire::Encoding;

/// How long a task may stay in the queue before we say so.
const UNCLAIMED: Duration = Duration::from_secs(5);

/// `windlass run`
#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// Where it goes.
    #[command(flatten)]
    pub target: Target,
    /// Time limit of the task in seconds [default: the class's]
    #[arg(long, value_name = "SECONDS", value_parser = positive)]
    pub timeout: Option<f64>,
    /// Seconds between SIGTERM and SIGKILL [default: the class's]
    #[arg(long, value_name = "SECONDS")]
    pub grace: Option<f64>,
    /// CPUs' worth of time, such as 0.5
    #[arg(long, value_parser = positive)]
    pub cpus: Option<f64>,
    /// Memory, such as 512MiB
    #[arg(long)]
    pub memory: Option<ByteSize>,
    /// Processes and threads
    #[arg(long)]
    pub pids: Option<u64>,
    /// Set a variable of its environment
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = pair)]
    pub env: Vec<(String, String)>,
    /// Run this bash script; what follows are its arguments $1 ...
    #[arg(long, value_name = "SCRIPT")]
    pub bash: Option<String>,
    /// Run it in a container of this image; without a program, what the image runs
    #[arg(long, conflicts_with = "bash")]
    pub image: Option<String>,
    /// When the image is pulled: always, missing or never [default: the class's]
    #[arg(long, value_name = "WHEN", requires = "image", value_parser = pull)]
    pub pull: Option<PullPolicy>,
    /// Network of the container [default: the class's]
    #[arg(long, requires = "image")]
    pub network: Option<String>,
    /// User in the container: uid, uid:gid, or image for the image's own [default: the tenant's]
    #[arg(long, requires = "image")]
    pub user: Option<String>,
    /// A directory of the worker's machine in the container, for reading unless :rw follows
    #[arg(long, value_name = "SOURCE:TARGET[:rw]", requires = "image", value_parser = mount)]
    pub mount: Vec<Mount>,
    /// Whole GPUs
    #[arg(long)]
    pub gpus: Option<u32>,
    /// Give it the text of this file on standard input; - for our own
    #[arg(long, value_name = "FILE")]
    pub stdin: Option<PathBuf>,
    /// Directory to run in [default: a fresh one]
    #[arg(short = 'C', long, value_name = "DIR")]
    pub working_dir: Option<String>,
    /// A name for people
    #[arg(long)]
    pub name: Option<String>,
    /// A label, repeated in every event
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub label: Vec<(String, String)>,
    /// Attempts in all
    #[arg(long, value_name = "ATTEMPTS", value_parser = clap::value_parser!(u32).range(1..))]
    pub retry: Option<u32>,
    /// Try again after this outcome or reason, such as failure or oom_killed
    #[arg(long, value_name = "OUTCOME|REASON")]
    pub retry_on: Vec<String>,
    /// Say nothing but the task's own output
    #[arg(short, long)]
    pub quiet: bool,
    /// The program and its arguments
    #[arg(required_unless_present_any = ["bash", "image"], trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// Runs the verb.
pub(super) async fn run(global: &Global, args: &RunArgs, output: &mut Output) -> Result<Exit, Failed> {
    let ready = Ready::new(assignment(args)?, &args.target, Encoding::Json).map_err(|e| Failed::new(Exit::Usage, e))?;
    let (bus, _) = global.connect().await?;
    // From here on Ctrl-C must not leave a task behind.
    let interrupts = Interrupts::listen()?;
    let sequence = ready.publish(&bus).await?;
    if output.is_json() {
        output.json(&json!({"kind": "queued", "task": ready.queued(sequence)}))?;
    }
    let watch = Watch::open(&bus, &ready.tenant, &ready.task_id).await?;
    let mut run = Run { bus, ready, output, quiet: args.quiet, canceled: false, last: None };
    run.notice(&format!("queued {} for {}", run.ready.task_id, run.ready.class));
    run.follow(watch, interrupts).await
}

/// The assignment that the options describe.
fn assignment(args: &RunArgs) -> Result<Value, Failed> {
    let mut execution = Map::new();
    match (&args.bash, &args.image) {
        (Some(script), _) => {
            execution.insert("runtime".to_owned(), json!("bash"));
            execution.insert("script".to_owned(), json!(script));
            execution.insert("args".to_owned(), json!(args.command));
        }
        (None, Some(image)) => contained(&mut execution, image, args),
        (None, None) => {
            execution.insert("runtime".to_owned(), json!("native"));
            execution.insert("command".to_owned(), json!(args.command));
        }
    }
    if let Some(file) = &args.stdin {
        let text = super::file::read(file)?;
        let text = String::from_utf8(text)
            .map_err(|_| Failed::new(Exit::Usage, format!("{}: standard input of a task is text; this is not UTF-8", file.display())))?;
        execution.insert("stdin".to_owned(), json!(text));
    }
    execution.insert("env".to_owned(), args.env.iter().cloned().collect());
    for (key, value) in [
        ("working_dir", args.working_dir.clone().map(Value::from)),
        ("timeout_s", args.timeout.map(Value::from)),
        ("grace_s", args.grace.map(Value::from)),
    ] {
        execution.extend(value.map(|v| (key.to_owned(), v)));
    }
    let resources = [
        ("cpus", args.cpus.map(Value::from)),
        ("memory", args.memory.map(|m| Value::from(m.to_string()))),
        ("pids", args.pids.map(Value::from)),
        ("gpus", args.gpus.map(Value::from)),
    ];
    let resources: Map<_, _> = resources.into_iter().filter_map(|(k, v)| Some((k.to_owned(), v?))).collect();
    execution.insert("resources".to_owned(), resources.into());
    let labels: Map<_, _> = args.label.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
    let mut value = json!({"v": 1, "labels": labels, "execution": execution, "retry": retry(args)?});
    if let Some(name) = &args.name {
        value["name"] = json!(name);
    }
    Ok(value)
}

/// What only containers have.
fn contained(execution: &mut Map<String, Value>, image: &str, args: &RunArgs) {
    let command = Some(&args.command).filter(|command| !command.is_empty());
    let mounts = Some(&args.mount).filter(|mounts| !mounts.is_empty());
    let fields = [
        ("runtime", Some(json!("docker"))),
        ("image", Some(json!(image))),
        ("command", command.map(|command| json!(command))),
        ("pull", args.pull.map(|pull| json!(pull))),
        ("network", args.network.as_ref().map(|network| json!(network))),
        ("user", args.user.as_ref().map(|user| json!(user))),
        ("mounts", mounts.map(|mounts| json!(mounts))),
    ];
    execution.extend(fields.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
}

fn pull(text: &str) -> Result<PullPolicy, String> {
    serde_json::from_value(json!(text)).map_err(|_| "write always, missing or never".to_owned())
}

fn mount(text: &str) -> Result<Mount, String> {
    let (rest, read_only) = text.strip_suffix(":rw").map_or((text, true), |rest| (rest, false));
    let rest = rest.strip_suffix(":ro").unwrap_or(rest);
    match rest.split_once(':') {
        Some((source, target)) if source.starts_with('/') && target.starts_with('/') => {
            Ok(Mount { source: source.to_owned(), target: target.to_owned(), read_only })
        }
        Some(_) | None => Err("write SOURCE:TARGET, both absolute, with :rw for writing".to_owned()),
    }
}

fn retry(args: &RunArgs) -> Result<Value, Failed> {
    let mut retry = Map::new();
    for word in &args.retry_on {
        serde_json::from_value::<RetryOn>(json!(word)).map_err(|e| Failed::new(Exit::Usage, format!("--retry-on: {e}")))?;
    }
    // --retry alone means what it says: try again when it fails, not only when the platform does.
    let on = if args.retry_on.is_empty() && args.retry.is_some() { json!(["failure", "timeout"]) } else { json!(args.retry_on) };
    retry.insert("on".to_owned(), on);
    retry.extend(args.retry.map(|n| ("max_attempts".to_owned(), json!(n))));
    Ok(retry.into())
}

struct Run<'a> {
    bus: Bus,
    ready: Ready,
    output: &'a Output,
    quiet: bool,
    canceled: bool,
    last: Option<EventKind>,
}

impl Run<'_> {
    async fn follow(&mut self, mut watch: Watch, mut interrupts: Interrupts) -> Result<Exit, Failed> {
        let mut unclaimed = std::pin::pin!(tokio::time::sleep(UNCLAIMED));
        loop {
            tokio::select! {
                seen = watch.next() => match seen? {
                    Some(Seen::Piece(piece)) => self.piece(&piece)?,
                    Some(Seen::Event(read)) => {
                        self.event(&read)?;
                        if read.head.event.event.is_terminal() {
                            return self.end(&read, &watch);
                        }
                    }
                    None => return Err(Failed::new(Exit::Unreachable, "the events ended before the task did")),
                },
                () = interrupts.next() => self.interrupted().await?,
                () = &mut unclaimed, if !unclaimed.is_elapsed() => {
                    if self.last.is_none() {
                        self.notice(&format!("no worker has taken it yet; does one serve class {}?", self.ready.class));
                    }
                }
            }
        }
    }

    /// The first interrupt cancels the task and waits for its end, the second leaves.
    async fn interrupted(&mut self) -> Result<(), Failed> {
        if self.canceled {
            return Err(Failed::new(Exit::Interrupted, format!("left {} to be canceled without us", self.ready.task_id)));
        }
        self.canceled = true;
        self.notice("canceling; interrupt again to leave it");
        self.bus.cancel(&self.ready.tenant, &self.ready.task_id, Some("interrupted `windlass run`")).await?;
        Ok(())
    }

    fn piece(&self, piece: &super::assembly::Piece) -> Result<(), Failed> {
        if self.output.is_json() {
            self.output.json(&json!({"kind": "chunk", "chunk": piece.chunk}))?;
            return Ok(());
        }
        if piece.chunk.dropped_bytes > 0 {
            self.warn(&format!("{} bytes of {} were left out here (logs.cap)", piece.chunk.dropped_bytes, piece.chunk.stream.as_str()));
        }
        match piece.chunk.stream {
            LogStream::Stdout => self.output.of_task(&piece.bytes, false)?,
            LogStream::Stderr => self.output.of_task(&piece.bytes, true)?,
            LogStream::System => self.notice(String::from_utf8_lossy(&piece.bytes).trim_end()),
        }
        Ok(())
    }

    fn event(&mut self, read: &ReadEvent) -> Result<(), Failed> {
        let event = &read.head.event;
        self.last = Some(event.event);
        if self.output.is_json() {
            self.output.json(&json!({"kind": "event", "sequence": read.head.sequence, "event": event}))?;
            return Ok(());
        }
        match event.event {
            EventKind::TaskStarted | EventKind::TaskProgress => self.notice(&render::detail(event)),
            EventKind::TaskRetrying | EventKind::TaskReleased => self.warn(&render::detail(event)),
            EventKind::TaskCompleted => self.notice(&format!("done: {}", render::detail(event))),
            EventKind::TaskFailed => self.failure(event),
        }
        Ok(())
    }

    /// An exit status speaks for itself, in the process's own; everything else needs words.
    fn failure(&self, event: &Event) {
        let text = format!("{}: {}", event.event, render::end(event));
        if event.reason == Some(Reason::ExitNonzero) || event.outcome == Some(Outcome::Success) {
            return self.notice(&text);
        }
        self.warn(&visible(&text));
        if let Some(hint) = &event.hint {
            self.warn(hint);
        }
    }

    fn end(&self, read: &ReadEvent, watch: &Watch) -> Result<Exit, Failed> {
        let event = &read.head.event;
        self.output.end_of_task()?;
        let differences = watch.differences(event.logs.as_ref());
        if differences.is_empty() {
            return Ok(Exit::of_task(event));
        }
        Err(Failed::new(Exit::Unverified, format!("the output shown is not what the task's manifest says: {}", differences.join("; ")))
            .hint(format!("the task itself ended: {}", render::end(event))))
    }

    fn notice(&self, text: &str) {
        if !self.quiet {
            self.output.notice(text);
        }
    }

    fn warn(&self, text: &str) {
        if !self.quiet {
            self.output.warn(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_for_reading_unless_said_otherwise() {
        let told = |text: &str| mount(text).map(|m| (m.source, m.target, m.read_only));
        assert_eq!(told("/a:/b"), Ok(("/a".to_owned(), "/b".to_owned(), true)));
        assert_eq!(told("/a:/b:ro"), Ok(("/a".to_owned(), "/b".to_owned(), true)));
        assert_eq!(told("/a:/b:rw"), Ok(("/a".to_owned(), "/b".to_owned(), false)));
        for wrong in ["/a", "a:/b", "/a:b", ""] {
            assert!(told(wrong).is_err(), "{wrong:?}");
        }
    }
}
