//! What a container is made of, and whether its tenant and class may have it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{Decided, Policy, Rejection, Source, invalid, reject, service};
use crate::config::MIN_CONTAINER_MEMORY;
use crate::intake::Task;
use crate::task::assignment::Execution;
use crate::task::{ByteSize, HealthCheck, ImageRef, Mount, MountRoot, PullPolicy, Reason, ServiceSpec, is_user};

#[cfg(test)]
mod tests;

/// Most services of one task.
const MOST_SERVICES: usize = 16;
/// Most mounts of one container.
const MOST_MOUNTS: usize = 64;

/// A container that would run.
#[derive(Debug, Clone, PartialEq)]
pub struct Container {
    /// Its image, as it was asked for.
    pub image: ImageRef,
    /// When it is pulled.
    pub pull: Decided<PullPolicy>,
    /// Which of the task's secrets opens its registry, and those of its services.
    pub registry_secret: Option<String>,
    /// Entry point; none for the image's.
    pub entrypoint: Option<Vec<String>>,
    /// Command; none for the image's.
    pub command: Option<Vec<String>>,
    /// Who it runs as.
    pub user: Decided<ContainerUser>,
    /// Name of its network: `none`, `bridge`, or an operator's.
    pub network: Decided<String>,
    /// Directories of the machine.
    pub mounts: Vec<AllowedMount>,
    /// Containers beside it, each after those that it depends on.
    pub services: Vec<Service>,
}

/// Who a container runs as.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ContainerUser {
    /// The tenant's user and group.
    Tenant,
    /// The image's own.
    Image,
    /// `uid[:gid]`.
    Id(String),
}

/// A mount with the root that allows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedMount {
    /// As asked for.
    pub mount: Mount,
    /// Where its source must be when every link was followed.
    pub root: MountRoot,
}

/// A container beside the task's.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    /// Its host name for the task.
    pub name: String,
    /// As asked for.
    pub spec: ServiceSpec,
    /// Its image.
    pub image: ImageRef,
    /// When that is pulled.
    pub pull: PullPolicy,
    /// Who it runs as.
    pub user: ContainerUser,
    /// Its mounts.
    pub mounts: Vec<AllowedMount>,
    /// CPUs' worth of time; its class's default unless asked.
    pub cpus: f64,
    /// Memory; its class's default unless asked.
    pub memory: ByteSize,
    /// Processes and threads: its class's default.
    pub pids: u64,
    /// When it is ready.
    pub health: Option<HealthCheck>,
}

/// The container of a task with runtime `docker`.
pub(super) fn container(task: &Task, policy: &Policy<'_>) -> Result<Container, Rejection> {
    let execution = &task.assignment.execution;
    let Some(text) = execution.image.as_deref() else {
        return Err(invalid("execution.image: missing; runtime docker needs one".to_owned()));
    };
    let image = image("execution.image", text, task, policy)?;
    let pull = policy.asked_or(execution.pull, "pull", |c| c.pull);
    for (field, argv) in [("execution.entrypoint", &execution.entrypoint), ("execution.command", &execution.command)] {
        arguments(field, argv.as_deref())?;
    }
    let services = services(task, policy, pull.value)?;
    Ok(Container {
        image,
        pull,
        registry_secret: registry_secret(task)?,
        entrypoint: execution.entrypoint.clone(),
        command: execution.command.clone(),
        user: user("execution.user", execution.user.as_deref(), policy)?,
        network: network(execution, policy, !services.is_empty())?,
        mounts: mounts("execution.mounts", &execution.mounts, task, policy)?,
        services,
    })
}

fn registry_secret(task: &Task) -> Result<Option<String>, Rejection> {
    let Some(name) = &task.assignment.execution.registry_secret else { return Ok(None) };
    if !task.assignment.secrets.iter().any(|secret| secret.name == *name) {
        return Err(invalid(format!("execution.registry_secret: {name:?} is none of the task's secrets; add it to \"secrets\"")));
    }
    Ok(Some(name.clone()))
}

/// What a container needs beyond what every task does.
pub(super) fn check_memory(bytes: u64) -> Result<(), Rejection> {
    if bytes < MIN_CONTAINER_MEMORY.bytes() {
        let error = format!("execution.resources.memory: {bytes} bytes are too little for a container; at least {MIN_CONTAINER_MEMORY}");
        return Err(invalid(error));
    }
    Ok(())
}

fn image(field: &str, text: &str, task: &Task, policy: &Policy<'_>) -> Result<ImageRef, Rejection> {
    let image: ImageRef = text.parse().map_err(|e| invalid(format!("{field}: {e}")))?;
    if policy.images().iter().any(|pattern| pattern.allows(&image)) {
        return Ok(image);
    }
    let allowed: Vec<String> = policy.images().iter().map(ToString::to_string).collect();
    let allowed = if allowed.is_empty() { "none".to_owned() } else { allowed.join(", ") };
    let error = format!("{field}: tenant {} may not use {image}; allowed: {allowed}", task.tenant);
    let listed = "tenants.<name>.images or docker.images of the workers";
    let hint = if image.digest.is_some() {
        format!("have an operator add its name without a tag, or with this digest, to {listed}: a tag there allows no digest")
    } else {
        format!("use an image that is allowed, or have an operator add it to {listed}")
    };
    Err(reject(Reason::ImageRefused, error, &hint))
}

fn arguments(field: &str, argv: Option<&[String]>) -> Result<(), Rejection> {
    match argv.and_then(|argv| argv.iter().position(|argument| argument.contains('\0'))) {
        Some(at) => Err(invalid(format!("{field}[{at}]: holds a NUL byte, which no argument can"))),
        None => Ok(()),
    }
}

fn user(field: &str, asked: Option<&str>, policy: &Policy<'_>) -> Result<Decided<ContainerUser>, Rejection> {
    let Some(asked) = asked else { return Ok(Decided { value: ContainerUser::Tenant, from: Source::Default }) };
    if !is_user(asked) {
        return Err(invalid(format!("{field}: {asked:?} is no user; write uid, uid:gid, or image")));
    }
    let value = if asked == "image" { ContainerUser::Image } else { ContainerUser::Id(asked.to_owned()) };
    if !policy.class.users.iter().any(|user| user == asked) {
        let error =
            format!("{field}: {asked:?} is not allowed in this class; allowed are the tenant's own user{}", listed(&policy.class.users));
        return Err(reject(Reason::PolicyRefused, error, "leave it out, or have an operator add it to classes.<name>.users"));
    }
    Ok(Decided { value, from: Source::Assignment })
}

fn listed(words: &[String]) -> String {
    words.iter().map(|word| format!(", {word}")).collect()
}

fn network(execution: &Execution, policy: &Policy<'_>, with_services: bool) -> Result<Decided<String>, Rejection> {
    let network = policy.asked_or(execution.network.clone(), "network", |c| c.network.clone());
    if network.from == Source::Assignment && !policy.class.networks.contains(&network.value) {
        let error = format!(
            "execution.network: {:?} is not allowed in this class; allowed are {}",
            network.value,
            policy.class.networks.join(", ")
        );
        return Err(reject(Reason::PolicyRefused, error, "use another one, or have an operator add it to classes.<name>.networks"));
    }
    // A way out of any other kind than a bridge is the operator's choice, which a service must not lead around.
    if with_services && network.value != "none" && network.value != "bridge" {
        let error = format!("{:?} is not possible with services; they share a private network with the task", network.value);
        return Err(match network.from {
            Source::Assignment => invalid(format!("execution.network: {error}")),
            Source::Tenant | Source::Class | Source::Default => reject(
                Reason::PolicyRefused,
                format!("services: the network of this class, {error}"),
                "ask for execution.network none where the class allows it, or have an operator set classes.<name>.network",
            ),
        });
    }
    Ok(network)
}

fn mounts(field: &str, mounts: &[Mount], task: &Task, policy: &Policy<'_>) -> Result<Vec<AllowedMount>, Rejection> {
    if mounts.len() > MOST_MOUNTS {
        return Err(invalid(format!("{field}: {} of them; at most {MOST_MOUNTS}", mounts.len())));
    }
    let mut targets = BTreeSet::new();
    let mut allowed = Vec::new();
    for (at, mount) in mounts.iter().enumerate() {
        let source = plain_path(&format!("{field}[{at}].source"), &mount.source)?;
        let target = target(&format!("{field}[{at}].target"), &mount.target)?;
        if !targets.insert(target) {
            return Err(invalid(format!("{field}[{at}].target: {:?} is mounted twice", mount.target)));
        }
        let below = |root: &&MountRoot| source.starts_with(&root.path);
        let root = policy.mount_roots().iter().filter(below).find(|root| mount.read_only || !root.read_only);
        let Some(root) = root else {
            let how = if mount.read_only { "" } else { " for writing" };
            let error = format!("{field}[{at}].source: tenant {} may not mount {:?}{how}", task.tenant, mount.source);
            return Err(reject(
                Reason::PolicyRefused,
                error,
                "have an operator add a root of it to tenants.<name>.mounts, or mount it read-only",
            ));
        };
        allowed.push(AllowedMount { mount: mount.clone(), root: root.clone() });
    }
    Ok(allowed)
}

/// An absolute path that leads nowhere else by itself.
fn plain_path(field: &str, path: &str) -> Result<PathBuf, Rejection> {
    let plain = path.starts_with('/') && !path.contains('\0') && !path.split('/').any(|part| part == "..");
    // Its components: without doubled slashes and single dots, which would be other words for the same place.
    if plain {
        Ok(Path::new(path).components().collect())
    } else {
        Err(invalid(format!("{field}: {path:?} must be an absolute path without \"..\"")))
    }
}

/// Where something may appear in a container.
pub(super) fn target(field: &str, path: &str) -> Result<PathBuf, Rejection> {
    let target = plain_path(field, path)?;
    let whole = ["/", "/tmp"].iter().any(|taken| target == Path::new(taken));
    let inside = ["/proc", "/sys", "/dev", "/windlass", "/windlass-secrets"].iter().any(|taken| target.starts_with(taken));
    if whole || inside {
        return Err(invalid(format!("{field}: {path:?} belongs to the system or to Windlass; choose another place")));
    }
    Ok(target)
}

/// The services, each after those that it depends on.
fn services(task: &Task, policy: &Policy<'_>, pull: PullPolicy) -> Result<Vec<Service>, Rejection> {
    let specs = &task.assignment.services;
    if specs.len() > MOST_SERVICES {
        return Err(invalid(format!("services: {} of them; at most {MOST_SERVICES}", specs.len())));
    }
    let names: BTreeSet<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
    let mut services = Vec::new();
    for (at, spec) in specs.iter().enumerate() {
        let field = |key: &str| format!("services[{at}].{key}");
        if !is_host_name(&spec.name) {
            return Err(invalid(format!(
                "{}: {:?} is no host name; use 1 to 63 of a-z 0-9 -, none of - at an end",
                field("name"),
                spec.name
            )));
        }
        if spec.name == "localhost" {
            return Err(invalid(format!("{}: \"localhost\" is the container's own; choose another", field("name"))));
        }
        if specs[..at].iter().any(|other| other.name == spec.name) {
            return Err(invalid(format!("{}: {:?} is there twice", field("name"), spec.name)));
        }
        if let Some(unknown) = spec.depends_on.iter().find(|name| !names.contains(name.as_str())) {
            return Err(invalid(format!("{}: {unknown:?} is no service of this task", field("depends_on"))));
        }
        for (key, argv) in [("entrypoint", &spec.entrypoint), ("command", &spec.command)] {
            arguments(&field(key), argv.as_deref())?;
        }
        service::check(at, spec, policy)?;
        services.push(Service {
            name: spec.name.clone(),
            image: image(&field("image"), &spec.image, task, policy)?,
            pull,
            user: user(&field("user"), spec.user.as_deref(), policy)?.value,
            mounts: mounts(&field("mounts"), &spec.mounts, task, policy)?,
            cpus: spec.cpus.unwrap_or(policy.class.cpus),
            memory: spec.memory.unwrap_or(policy.class.memory),
            pids: policy.class.pids,
            health: health(&field("health"), spec.health.as_ref())?,
            spec: spec.clone(),
        });
    }
    in_order(services)
}

fn health(field: &str, check: Option<&HealthCheck>) -> Result<Option<HealthCheck>, Rejection> {
    let Some(check) = check else { return Ok(None) };
    if check.command.is_empty() {
        return Err(invalid(format!("{field}.command: empty; name a program of the service's image")));
    }
    for (key, value) in [("interval_s", check.interval_s), ("timeout_s", check.timeout_s)] {
        if !(0.05..=3600.0).contains(&value) {
            return Err(invalid(format!("{field}.{key}: {value}; allowed is 0.05 to 3600")));
        }
    }
    if !(1..=10_000).contains(&check.retries) {
        return Err(invalid(format!("{field}.retries: {}; allowed is 1 to 10000", check.retries)));
    }
    Ok(Some(check.clone()))
}

/// Each after those that it depends on.
fn in_order(mut left: Vec<Service>) -> Result<Vec<Service>, Rejection> {
    let mut ordered: Vec<Service> = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let ready = |service: &Service| service.spec.depends_on.iter().all(|name| ordered.iter().any(|done| done.name == *name));
        let Some(at) = left.iter().position(ready) else {
            let names: Vec<&str> = left.iter().map(|service| service.name.as_str()).collect();
            return Err(invalid(format!("services: {} depend on each other in a circle", names.join(", "))));
        };
        ordered.push(left.remove(at));
    }
    Ok(ordered)
}

fn is_host_name(name: &str) -> bool {
    let of_name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&name.len()) && name.bytes().all(of_name) && !name.starts_with('-') && !name.ends_with('-')
}
