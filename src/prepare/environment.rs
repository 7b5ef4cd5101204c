//! The environment of a task: which variables there are, and who gives each. The same list answers a dry run.

use std::collections::BTreeMap;

use secrecy::ExposeSecret as _;

use super::{Facts, SECRETS_INSIDE, View};
use crate::intake::Task;
use crate::plan::{Plan, Secret};
use crate::task::assignment::Runtime;
use crate::task::secret::SecretAs;

/// How a value that the worker gives is found.
type Told = fn(&View, &Facts<'_>) -> String;

/// What a task may set otherwise.
const HOME: (&str, Told) = ("HOME", |view, _| view.dir.clone());

/// Likewise, on the machine itself: an image has its own.
const DEFAULTS: [(&str, Told); 2] = [("PATH", |_, facts| facts.path.to_owned()), ("LANG", |_, _| "C.UTF-8".to_owned())];

/// Where it has no `/tmp` of its own.
const TMPDIR: (&str, Told) = ("TMPDIR", |view, _| view.tmp.clone());

/// What nobody may change.
const FIXED: [(&str, Told); 9] = [
    ("WINDLASS_TASK_ID", |_, facts| facts.task.task_id.to_string()),
    ("WINDLASS_ATTEMPT", |_, facts| facts.attempt.to_string()),
    ("WINDLASS_FENCE", |_, facts| facts.fence.to_string()),
    ("WINDLASS_TENANT", |_, facts| facts.task.tenant.to_string()),
    ("WINDLASS_CLASS", |_, facts| facts.task.class.to_string()),
    ("WINDLASS_WORKDIR", |view, _| view.dir.clone()),
    ("WINDLASS_RESULT", |view, _| view.result.clone()),
    ("WINDLASS_PROGRESS", |view, _| view.progress.clone()),
    ("WINDLASS_OUTPUTS", |view, _| view.outputs.clone()),
];

/// Where there are GPUs, and in containers: those that it may use, or that it has none. An image or a runtime that knows
/// nothing else gives all of them.
const GPUS: [(&str, Told); 2] =
    [("CUDA_VISIBLE_DEVICES", |_, facts| devices(facts, "-1")), ("NVIDIA_VISIBLE_DEVICES", |_, facts| devices(facts, "void"))];

fn devices(facts: &Facts<'_>, none: &str) -> String {
    facts.gpus.filter(|gpus| !gpus.is_empty()).map_or_else(|| none.to_owned(), |gpus| gpus.join(","))
}

/// Where its publisher's message has a trace context.
const TRACEPARENT: (&str, Told) = ("TRACEPARENT", |_, facts| facts.traceparent.unwrap_or_default().to_owned());

/// Who gives a variable.
#[derive(Debug, Clone, Copy)]
pub enum Giver<'a> {
    /// The worker.
    Worker(Told),
    /// The assignment, with this value.
    Assignment(&'a str),
    /// A secret: its value, or the path of its file.
    Secret(&'a Secret),
}

impl Giver<'_> {
    /// The word in tables and JSON.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Worker(_) => "worker",
            Self::Assignment(_) => "assignment",
            Self::Secret(_) => "secret",
        }
    }
}

/// Every variable of a task: the worker's defaults, then the task's own, then its secrets, then what nobody may change. The
/// last one counts. A map, for the publisher decides how many there are.
#[must_use]
pub fn variables<'a>(task: &'a Task, secrets: &'a [Secret], private_tmp: bool, traced: bool, gpus: bool) -> BTreeMap<String, Giver<'a>> {
    let worker = |(name, told): (&str, Told)| (name.to_owned(), Giver::Worker(told));
    let contained = task.assignment.execution.runtime == Runtime::Docker;
    let native = DEFAULTS.into_iter().chain((!private_tmp).then_some(TMPDIR)).filter(|_| !contained);
    let defaults = std::iter::once(HOME).chain(native).map(worker);
    let own = task.assignment.execution.env.iter().map(|(name, value)| (name.clone(), Giver::Assignment(value)));
    let secrets = secrets.iter().map(|secret| (secret.variable(), Giver::Secret(secret)));
    let fixed = FIXED.into_iter().chain(traced.then_some(TRACEPARENT)).chain(GPUS.into_iter().filter(|_| gpus)).map(worker);
    defaults.chain(own).chain(secrets).chain(fixed).collect()
}

/// The variables with their values.
pub(super) fn environment(view: &View, plan: &Plan, facts: &Facts<'_>) -> Vec<(String, String)> {
    let variables = variables(facts.task, &plan.secrets, facts.private_tmp, facts.traceparent.is_some(), facts.gpus.is_some());
    let valued = variables.into_iter().filter_map(|(name, giver)| {
        let value = match giver {
            Giver::Worker(told) => told(view, facts),
            Giver::Assignment(value) => value.to_owned(),
            Giver::Secret(secret) => secret_value(secret, facts, plan.container.is_some())?,
        };
        Some((name, value))
    });
    valued.collect()
}

fn secret_value(secret: &Secret, facts: &Facts<'_>, contained: bool) -> Option<String> {
    match secret.delivery {
        SecretAs::Env => {
            let value = facts.secrets.iter().find(|value| value.secret == *secret)?;
            // Only values that are text come so far as to be variables.
            Some(String::from_utf8_lossy(value.value.expose_secret()).into_owned())
        }
        SecretAs::File if contained => Some(format!("{SECRETS_INSIDE}/{}", secret.name)),
        SecretAs::File => {
            let variable = secret.variable();
            facts.secret_files.variables.iter().find(|(name, _)| *name == variable).map(|(_, path)| path.clone())
        }
    }
}
