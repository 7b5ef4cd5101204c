//! `windlass plan`, `windlass submit --dry-run`: what would run, decided by whom, or why not. Nothing is run or queued.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};

use super::args::{Target, encoding};
use super::file::{self, Entry};
use super::output::{Style, Table};
use super::verdict::{Message, Refusal, Verdict, judge};
use super::{Exit, Failed, Global, Output};
use crate::bus::Subjects;
use crate::intake::Task;
use crate::plan::{AllowedMount, Container, ContainerUser, Decided, Plan, Service, Source};
use crate::prepare::{self, environment::variables};
use crate::task::{Profile, Time};
use crate::wire::Encoding;

/// Stands for the task's own directory, which is not there yet.
const WORKDIR: &str = "$WINDLASS_WORKDIR";

/// `windlass plan`
#[derive(Debug, Clone, Args)]
pub struct PlanArgs {
    /// The file; - for stdin
    pub file: PathBuf,
    /// Where it would go.
    #[command(flatten)]
    pub target: Target,
    /// How assignments would be written to the queue: json or msgpack
    #[arg(long, default_value = "json", value_parser = encoding)]
    pub encoding: Encoding,
}

/// What is said of one assignment with `--output json`.
#[derive(Debug, Serialize)]
struct Told {
    line: usize,
    task_id: Value,
    tenant: Value,
    class: Value,
    priority: crate::task::Priority,
    accepted: bool,
    fits: Option<bool>,
    not_before: Option<Time>,
    plan: Option<Value>,
    refusal: Option<Value>,
}

/// Runs the verb.
pub(super) fn run(global: &Global, args: &PlanArgs, output: &Output) -> Result<Exit, Failed> {
    dry_run(global, &args.file, &args.target, args.encoding, output)
}

/// Says for every assignment of the file what would become of it.
pub(super) fn dry_run(global: &Global, file: &Path, target: &Target, encoding: Encoding, output: &Output) -> Result<Exit, Failed> {
    let entries = file::entries(file, &file::read(file)?, target.id.is_some())?;
    let config = global.load_without_engine()?;
    if config.source.is_none() {
        output.notice("decided by the defaults; --config names the configuration of your workers");
    }
    let subjects = Subjects::new(&config.bus.prefix);
    let (all, mut refused) = (entries.len(), 0);
    for (at, Entry { line, mut value }) in entries.into_iter().enumerate() {
        let message = Message::of(&mut value, target, encoding, &subjects).map_err(|e| Failed::new(Exit::Error, e))?;
        let verdict = judge(&message, &config, &subjects, Time::now());
        refused += usize::from(matches!(verdict, Verdict::Refused(_)));
        if output.is_json() {
            output.json(&told(line, &value, target, &verdict))?;
        } else {
            if at > 0 {
                output.line("")?;
            }
            output.table(&table(&value, target, &verdict))?;
        }
    }
    if refused == 0 {
        return Ok(Exit::Done);
    }
    if all > 1 {
        output.warn(&format!("{refused} of {all} would be refused"));
    }
    Ok(Exit::Error)
}

fn told(line: usize, value: &Value, target: &Target, verdict: &Verdict) -> Told {
    let (fits, not_before, plan, refusal) = match verdict {
        Verdict::Run { task, plan, waits, fits } => {
            (Some(*fits), task.assignment.not_before.filter(|_| *waits), Some(in_json(task, plan)), None)
        }
        Verdict::Refused(Refusal { reason, error, hint }) => {
            let outcome = reason.map(crate::task::Reason::outcome);
            (None, None, None, Some(json!({"reason": reason, "outcome": outcome, "error": error, "hint": hint})))
        }
    };
    let of = |key: &str| value.get(key).cloned().unwrap_or_default();
    Told {
        line,
        task_id: of("task_id"),
        tenant: of("tenant"),
        class: of("class"),
        priority: target.priority,
        accepted: plan.is_some(),
        fits,
        not_before,
        plan,
        refusal,
    }
}

/// Stands for the working directory that an image names.
const IMAGES_WORKDIR: &str = "the image's, else /windlass/work";

/// Argument vector and working directory, as far as they are known before there is a directory.
fn start(task: &Task, plan: &Plan) -> (Vec<String>, String) {
    if plan.container.is_some() {
        let asked = task.assignment.execution.working_dir.as_deref();
        let inside = |dir| prepare::cwd(Path::new("/windlass/work"), Some(dir)).display().to_string();
        return (vec![], asked.map_or_else(|| IMAGES_WORKDIR.to_owned(), inside));
    }
    let script = format!("{WORKDIR}/../{}", prepare::SCRIPT);
    let cwd = prepare::cwd(Path::new(WORKDIR), task.assignment.execution.working_dir.as_deref());
    (plan.program.argv(&script), cwd.display().to_string())
}

/// A machine that gives a sandbox gives a `/tmp` with it.
fn environment(task: &Task, plan: &Plan) -> Vec<(String, &'static str)> {
    let private_tmp = plan.sandbox.value != Profile::None;
    variables(task, &plan.secrets, private_tmp, false, plan.gpus.value > 0 || plan.container.is_some())
        .into_iter()
        .map(|(name, giver)| (name, giver.as_str()))
        .collect()
}

fn in_json(task: &Task, plan: &Plan) -> Value {
    let (argv, cwd) = start(task, plan);
    let (assignment, bounds) = (&task.assignment, &plan.bounds);
    let environment: Vec<Value> = environment(task, plan).into_iter().map(|(name, from)| json!({"name": name, "from": from})).collect();
    let secret = |s: &crate::plan::Secret| json!({"name": s.name, "ref": s.reference.to_string(), "as": s.delivery, "variable": s.variable(), "grant": s.grant});
    let of_programs = plan.container.is_none();
    json!({
        "runtime": plan.runtime,
        "argv": of_programs.then_some(argv),
        "cwd": cwd,
        "container": plan.container.as_ref().map(container),
        "stdin_bytes": assignment.execution.stdin.as_deref().map_or(0, str::len),
        "environment": environment,
        "limits": {
            "cpus": bounds.cpus,
            "memory_bytes": {"value": bounds.memory.value.bytes(), "from": bounds.memory.from},
            "pids": bounds.pids,
            "timeout_ms": bounds.timeout_ms,
            "io": bounds.io,
        },
        "grace_ms": {"value": millis(plan), "from": plan.grace.from},
        "gpus": plan.gpus,
        "sandbox": of_programs.then_some(plan.sandbox),
        "user": plan.user,
        "max_attempts": plan.max_attempts,
        "backoff": plan.backoff,
        "retry_on": assignment.retry.on,
        "deadline": assignment.deadline,
        "secrets": plan.secrets.iter().map(secret).collect::<Vec<_>>(),
    })
}

/// The container and those beside it. Its user is the plan's where it says `tenant`.
fn container(container: &Container) -> Value {
    let mounts = |mounts: &[AllowedMount]| mounts.iter().map(mount).collect::<Vec<_>>();
    let service = |service: &Service| {
        let spec = &service.spec;
        json!({
            "name": service.name, "image": service.image.to_string(), "pull": service.pull, "user": service.user,
            "entrypoint": spec.entrypoint, "command": spec.command, "environment": spec.env.keys().collect::<Vec<_>>(),
            "mounts": mounts(&service.mounts), "tmpfs": spec.tmpfs,
            "cpus": service.cpus, "memory_bytes": service.memory.bytes(), "pids": service.pids,
            "health": service.health, "depends_on": spec.depends_on,
        })
    };
    json!({
        "image": container.image.to_string(), "pull": container.pull, "entrypoint": container.entrypoint, "command": container.command,
        "registry_secret": container.registry_secret, "user": container.user, "network": container.network, "mounts": mounts(&container.mounts),
        "services": container.services.iter().map(service).collect::<Vec<_>>(),
    })
}

fn mount(AllowedMount { mount, root }: &AllowedMount) -> Value {
    json!({"source": mount.source, "target": mount.target, "read_only": mount.read_only, "root": root})
}

fn millis(plan: &Plan) -> u64 {
    u64::try_from(plan.grace.value.as_millis()).unwrap_or(u64::MAX)
}

/// Rows of what, who decided it, and the value, which may be long.
struct Rows(Table);

impl Rows {
    fn row(&mut self, what: &str, value: impl ToString, from: &str) {
        self.styled(what, value, from, Style::Plain);
    }

    fn styled(&mut self, what: &str, value: impl ToString, from: &str, style: Style) {
        self.0.row(vec![(what.to_owned(), Style::Dim), (from.to_owned(), Style::Dim), (value.to_string(), style)]);
    }

    fn decided<T>(&mut self, what: &str, decided: &Decided<T>, text: impl ToString, class: &str) {
        let from = match decided.from {
            Source::Class => format!("class {class}"),
            from @ (Source::Assignment | Source::Tenant | Source::Default) => from.as_str().to_owned(),
        };
        self.row(what, text, &from);
    }
}

fn table(value: &Value, target: &Target, verdict: &Verdict) -> Table {
    let of = |key: &str| value.get(key).map_or_else(|| "?".to_owned(), |v| v.as_str().map_or_else(|| v.to_string(), str::to_owned));
    let mut rows = Rows(Table::pairs());
    let place = format!("{} of tenant {}, class {}, priority {}", of("task_id"), of("tenant"), of("class"), target.priority);
    rows.row("task", place, "");
    match verdict {
        Verdict::Refused(refusal) => rows.refused(refusal),
        Verdict::Run { task, plan, waits, fits } => {
            let not_before = task.assignment.not_before.filter(|_| *waits);
            let when = not_before.map_or_else(|| "yes".to_owned(), |time| format!("yes, not before {time}"));
            let (place, style) = if *fits { ("", Style::Green) } else { (", by a worker that gives out more: [capacity]", Style::Yellow) };
            rows.styled("would run", format!("{when}{place}"), "", style);
            rows.what(task, plan);
            rows.how_much(task, plan);
            rows.how_often(task, plan);
        }
    }
    rows.0
}

impl Rows {
    fn refused(&mut self, Refusal { reason, error, hint }: &Refusal) {
        let why = reason.map_or_else(|| "no, nobody takes it".to_owned(), |reason| format!("no, {reason} ({})", reason.outcome()));
        self.styled("would run", why, "", Style::Red);
        self.row("error", error, "");
        if let Some(hint) = hint {
            self.row("hint", hint, "");
        }
    }

    fn what(&mut self, task: &Task, plan: &Plan) {
        let (argv, cwd) = start(task, plan);
        self.row("runtime", plan.runtime.as_str(), "assignment");
        match &plan.container {
            Some(container) => self.container(container, plan, task.class.as_str()),
            // The one way of writing a vector that leaves no question of quoting.
            None => self.row("argv", json!(argv), ""),
        }
        self.row("cwd", cwd, "");
        if let Some(stdin) = &task.assignment.execution.stdin {
            self.row("stdin", format!("{} bytes", stdin.len()), "assignment");
        }
        let variables = environment(task, plan);
        for giver in ["worker", "assignment", "secret"] {
            let names: Vec<&str> = variables.iter().filter(|(_, from)| *from == giver).map(|(name, _)| name.as_str()).collect();
            if !names.is_empty() {
                self.row("environment", names.join(" "), giver);
            }
        }
        for secret in &plan.secrets {
            let how = match secret.delivery {
                crate::task::secret::SecretAs::Env => "in",
                crate::task::secret::SecretAs::File => "as a file in",
            };
            let grant = String::from(secret.grant.clone());
            self.row("secret", format!("{} {how} {}", secret.reference, secret.variable()), &format!("tenant, by {grant}"));
        }
    }

    fn container(&mut self, container: &Container, plan: &Plan, class: &str) {
        self.row("image", &container.image, "assignment");
        self.decided("pull", &container.pull, container.pull.value, class);
        for (what, argv) in [("entrypoint", &container.entrypoint), ("command", &container.command)] {
            match argv {
                Some(argv) => self.row(what, json!(argv), "assignment"),
                None => self.row(what, "the image's", "default"),
            }
        }
        match &container.user.value {
            ContainerUser::Tenant => {
                let user = plan.user.value;
                self.decided("user", &plan.user, format!("{}:{}, where the worker is root", user.uid, user.gid), class);
            }
            ContainerUser::Image => self.decided("user", &container.user, "the image's", class),
            ContainerUser::Id(id) => self.decided("user", &container.user, id, class),
        }
        self.decided("network", &container.network, &container.network.value, class);
        for AllowedMount { mount, root } in &container.mounts {
            let how = if mount.read_only { "" } else { ", for writing" };
            self.row("mount", format!("{} at {}{how}", mount.source, mount.target), &format!("tenant, by {}", String::from(root.clone())));
        }
        for service in &container.services {
            self.row("service", format!("{}: {}", service.name, service.image), "assignment");
        }
    }

    fn how_much(&mut self, task: &Task, plan: &Plan) {
        let (class, bounds) = (task.class.as_str(), &plan.bounds);
        self.decided("cpus", &bounds.cpus, bounds.cpus.value, class);
        self.decided("memory", &bounds.memory, bounds.memory.value, class);
        self.decided("pids", &bounds.pids, bounds.pids.value, class);
        if bounds.io.value.is_some() {
            self.decided("io", &bounds.io, json!(bounds.io.value), class);
        }
        self.decided("timeout", &bounds.timeout_ms, format!("{} ms", bounds.timeout_ms.value), class);
        self.decided("grace", &plan.grace, format!("{} ms", millis(plan)), class);
        if plan.gpus.value > 0 {
            self.decided("gpus", &plan.gpus, plan.gpus.value, class);
        }
        if plan.container.is_some() {
            return;
        }
        self.decided("sandbox", &plan.sandbox, plan.sandbox.value, class);
        if plan.sandbox.value != Profile::None {
            let user = plan.user.value;
            self.decided("user", &plan.user, format!("{}:{}, where the worker is root", user.uid, user.gid), class);
        }
    }

    fn how_often(&mut self, task: &Task, plan: &Plan) {
        let (class, backoff) = (task.class.as_str(), plan.backoff.value);
        self.decided("attempts", &plan.max_attempts, plan.max_attempts.value, class);
        let on = &task.assignment.retry.on;
        if !on.is_empty() {
            self.row("retried on", format!("{}, besides faults of the platform", json!(on)), "assignment");
        }
        let delays = format!("{} ms, times {}, at most {} ms", backoff.initial_ms, backoff.factor, backoff.max_ms);
        self.decided("backoff", &plan.backoff, delays, class);
        if let Some(deadline) = task.assignment.deadline {
            self.row("deadline", deadline, "assignment");
        }
    }
}
