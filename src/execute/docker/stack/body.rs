//! The container of a long-lived service, and whether one that is there is the same. Pure.

use std::collections::HashMap;

use super::Stack;
use crate::config::services::{Service, VolumeSource};
use crate::execute::docker::services::bounded_log;
use crate::wire::sha256_hex;
use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, EndpointSettings, HostConfig, Mount, MountType, NetworkingConfig, PortBinding, PortMap,
    RestartPolicy, RestartPolicyNameEnum,
};

/// Label with the digest of what a container was made from.
const CONFIG: &str = "windlass.config";

/// Of everything that the file says. The values of secrets are not in it: a digest of a short one would give it away.
fn digest(service: &Service) -> String {
    sha256_hex(serde_json::to_string(service).unwrap_or_default().as_bytes())
}

pub(super) fn body(stack: &Stack, name: &str, service: &Service, image: &str, secrets: &[(String, String)]) -> ContainerCreateBody {
    let mut labels = stack.labels();
    labels.insert("windlass.service".to_owned(), name.to_owned());
    labels.insert(CONFIG.to_owned(), digest(service));
    let endpoint = EndpointSettings { aliases: Some(vec![name.to_owned()]), ..EndpointSettings::default() };
    ContainerCreateBody {
        hostname: Some(name.to_owned()),
        user: service.user.clone(),
        env: Some(service.env.iter().chain(secrets.iter().map(|(n, v)| (n, v))).map(|(n, v)| format!("{n}={v}")).collect()),
        cmd: service.command.clone(),
        entrypoint: service.entrypoint.clone(),
        image: Some(image.to_owned()),
        labels: Some(labels),
        exposed_ports: Some(service.ports.iter().map(crate::config::services::Port::in_container).collect()),
        host_config: Some(host(stack, service)),
        networking_config: Some(NetworkingConfig { endpoints_config: Some(HashMap::from([(stack.name(), endpoint)])) }),
        ..ContainerCreateBody::default()
    }
}

#[expect(clippy::cast_possible_truncation, reason = "checked to be at most 10,000 CPUs")]
fn host(stack: &Stack, service: &Service) -> HostConfig {
    let memory = service.memory.and_then(|memory| i64::try_from(memory.bytes()).ok());
    HostConfig {
        memory,
        memory_swap: memory,
        nano_cpus: service.cpus.map(|cpus| (cpus * 1e9) as i64),
        pids_limit: service.pids.map(i64::from),
        network_mode: Some(stack.name()),
        log_config: Some(bounded_log()),
        mounts: Some(mounts(stack, service)),
        port_bindings: Some(ports(service)),
        security_opt: Some(vec!["no-new-privileges=true".to_owned()]),
        privileged: Some(false),
        init: stack.engine.facts().has_init.then_some(true),
        restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::UNLESS_STOPPED), maximum_retry_count: None }),
        ..HostConfig::default()
    }
}

fn mounts(stack: &Stack, service: &Service) -> Vec<Mount> {
    let one = |volume: &crate::config::services::Volume| {
        let (typ, source) = match &volume.source {
            VolumeSource::Named(own) => (MountType::VOLUME, stack.volume(own)),
            VolumeSource::Path(path) => (MountType::BIND, path.clone()),
        };
        Mount {
            typ: Some(typ),
            source: Some(source),
            target: Some(volume.target.clone()),
            read_only: Some(volume.read_only),
            ..Mount::default()
        }
    };
    service.volumes.iter().map(one).collect()
}

fn ports(service: &Service) -> PortMap {
    let mut map = PortMap::new();
    for port in &service.ports {
        let binding = PortBinding { host_ip: Some(port.address.to_string()), host_port: Some(port.host.to_string()) };
        map.entry(port.in_container()).or_default().get_or_insert_default().push(binding);
    }
    map
}

/// Whether a container was made from what the file says.
pub(super) fn is_of(found: &ContainerInspectResponse, service: &Service) -> bool {
    label(found) == Some(&digest(service))
}

/// Likewise, and from this image and these secrets.
pub(super) fn is_same(found: &ContainerInspectResponse, wanted: &ContainerCreateBody) -> bool {
    let env = found.config.as_ref().and_then(|config| config.env.as_ref());
    let has = |pair: &String| env.is_some_and(|env| env.contains(pair));
    found.image == wanted.image
        && label(found) == wanted.labels.as_ref().and_then(|labels| labels.get(CONFIG))
        && wanted.env.iter().flatten().all(has)
}

fn label(found: &ContainerInspectResponse) -> Option<&String> {
    found.config.as_ref()?.labels.as_ref()?.get(CONFIG)
}
