//! The container of a service, as it is asked for: hardened as tasks' containers are. Pure.

use std::collections::HashMap;

use bollard::models::{ContainerCreateBody, EndpointSettings, HostConfigLogConfig, NetworkingConfig};

use super::{Asked, Request};
use crate::execute::docker::create::{self, Bind, Order};
use crate::execute::docker::labels::{Role, Work};
use crate::task::{ByteSize, Limits};

/// What is kept of a service's output, twice: enough for its last words.
const LOG_SIZE: &str = "1m";
/// Name of a service.
const SERVICE: &str = "windlass.service";
/// What NVIDIA's runtime goes by: on an engine that has it by default, whoever names devices gets them.
const DEVICES: &str = "NVIDIA_VISIBLE_DEVICES";

/// What is only known when it is to be made.
pub(super) struct Place<'a> {
    /// Name of the network.
    pub(super) network: &'a str,
    /// Cgroup that is held for it.
    pub(super) cgroup_parent: Option<&'a str>,
    /// Its mounts, every link followed.
    pub(super) binds: Vec<Bind>,
}

pub(super) fn body(request: &Request, asked: &Asked, place: Place<'_>) -> ContainerCreateBody {
    let name = &asked.service.name;
    let mut body = create::body(&order(request, asked, &place), &limits(request, asked));
    body.hostname = Some(name.clone());
    // Nobody reads along: what it writes is in its log.
    (body.attach_stdout, body.attach_stderr) = (Some(false), Some(false));
    let endpoint = EndpointSettings { aliases: Some(vec![name.clone()]), ..EndpointSettings::default() };
    body.networking_config = Some(NetworkingConfig { endpoints_config: Some(HashMap::from([(place.network.to_owned(), endpoint)])) });
    if let Some(host) = &mut body.host_config {
        host.log_config = Some(bounded_log());
        host.tmpfs.get_or_insert_default().extend(own_directories(asked));
    }
    body
}

fn order(request: &Request, asked: &Asked, place: &Place<'_>) -> Order {
    let spec = &asked.service.spec;
    let env = spec.env.iter().filter(|(name, _)| *name != DEVICES).map(|(name, value)| (name.clone(), value.clone()));
    Order {
        image: asked.image.id.clone(),
        entrypoint: spec.entrypoint.clone(),
        command: spec.command.clone(),
        user: asked.user.clone(),
        env: env.chain([(DEVICES.to_owned(), "void".to_owned())]).collect(),
        binds: place.binds.clone(),
        tmpfs: vec![("/tmp".to_owned(), request.tmp)],
        labels: labels(request, Role::Service, Some(&asked.service.name)),
        cgroup_parent: place.cgroup_parent.map(str::to_owned),
        network: place.network.to_owned(),
        init: request.engine.facts().has_init,
        ..Order::default()
    }
}

/// Those that were promised.
pub(super) fn limits(request: &Request, asked: &Asked) -> Limits {
    let service = &asked.service;
    Limits {
        cpus: service.cpus,
        memory_bytes: service.memory.bytes(),
        pids: service.pids,
        timeout_ms: 0,
        io: None,
        enforced: request.enforced,
    }
}

/// Those of the attempt with the role of the thing, and the service's name.
pub(super) fn labels(request: &Request, role: Role, service: Option<&str>) -> HashMap<String, String> {
    let (task, attempt) = &request.task;
    let mut labels = request.owner.labels(role, Work { tenant: request.tenant.as_str(), task: task.as_str(), attempt: *attempt });
    labels.extend(service.map(|name| (SERVICE.to_owned(), name.to_owned())));
    labels
}

/// Two files, for engines of before 2019 hang on to a log of one when it is turned over.
pub(in crate::execute::docker) fn bounded_log() -> HostConfigLogConfig {
    let config = [("max-size", LOG_SIZE), ("max-file", "2")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    HostConfigLogConfig { typ: Some("json-file".to_owned()), config: Some(HashMap::from(config)) }
}

/// Directories in memory of its user's own: programs such as databases insist on that.
fn own_directories(asked: &Asked) -> HashMap<String, String> {
    let owner = match asked.user.as_deref().map(|user| user.split_once(':').unwrap_or((user, ""))) {
        None => "mode=1777".to_owned(),
        Some((uid, "")) => format!("mode=0700,uid={uid}"),
        Some((uid, gid)) => format!("mode=0700,uid={uid},gid={gid}"),
    };
    let ByteSize(size) = asked.service.memory;
    let one = |dir: &String| (dir.trim_end_matches('/').to_owned(), format!("rw,exec,nosuid,nodev,size={size},{owner}"));
    asked.service.spec.tmpfs.iter().map(one).collect()
}
