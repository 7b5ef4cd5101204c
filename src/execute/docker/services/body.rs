//! The container of a service, as it is asked for: hardened as tasks' containers are. Pure.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, EndpointSettings, HostConfig, HostConfigLogConfig, Mount, MountType, NetworkingConfig, RestartPolicy,
    RestartPolicyNameEnum,
};

use super::Request;
use crate::plan::{AllowedMount, ContainerUser, Service};

/// What is kept of a service's output, twice: enough for its last words.
const LOG_SIZE: &str = "1m";
/// What NVIDIA's runtime goes by.
const DEVICES: &str = "NVIDIA_VISIBLE_DEVICES";

/// What is only known when it is to be made.
pub(super) struct Place<'a> {
    /// Id of the network.
    pub(super) network: &'a str,
    /// Id of the image.
    pub(super) image: &'a str,
    /// Cgroup that is held for it.
    pub(super) cgroup_parent: Option<&'a str>,
    /// Sources of its mounts, every link followed, in their order.
    pub(super) sources: &'a [String],
}

pub(super) fn body(request: &Request, service: &Service, place: &Place<'_>) -> ContainerCreateBody {
    let spec = &service.spec;
    // After its own: an engine with NVIDIA's runtime would give devices to whoever asks for them.
    let env = spec.env.iter().filter(|(name, _)| *name != DEVICES).map(|(name, value)| format!("{name}={value}"));
    let env = env.chain([format!("{DEVICES}=void")]).collect();
    let endpoint = EndpointSettings { aliases: Some(vec![service.name.clone()]), ..EndpointSettings::default() };
    ContainerCreateBody {
        hostname: Some(service.name.clone()),
        user: user(request, service),
        env: Some(env),
        cmd: spec.command.clone(),
        entrypoint: spec.entrypoint.clone(),
        image: Some(place.image.to_owned()),
        labels: Some(labels(&request.labels, "service", Some(&service.name))),
        host_config: Some(host(request, service, place)),
        networking_config: Some(NetworkingConfig { endpoints_config: Some(HashMap::from([(place.network.to_owned(), endpoint)])) }),
        ..ContainerCreateBody::default()
    }
}

/// Those of the attempt with the role of the thing, and the service's name.
pub(super) fn labels(of_attempt: &HashMap<String, String>, role: &str, service: Option<&str>) -> HashMap<String, String> {
    let mut labels = of_attempt.clone();
    labels.insert("windlass.role".to_owned(), role.to_owned());
    labels.extend(service.map(|name| ("windlass.service".to_owned(), name.to_owned())));
    labels
}

fn user(request: &Request, service: &Service) -> Option<String> {
    match &service.user {
        ContainerUser::Tenant => request.user.clone(),
        ContainerUser::Image => None,
        ContainerUser::Id(id) => Some(id.clone()),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "checked to be at most 10,000 CPUs")]
fn host(request: &Request, service: &Service, place: &Place<'_>) -> HostConfig {
    let memory = i64::try_from(service.memory.bytes()).unwrap_or(i64::MAX);
    HostConfig {
        memory: Some(memory),
        memory_swap: Some(memory),
        nano_cpus: Some((service.cpus * 1e9) as i64),
        pids_limit: i64::try_from(service.pids).ok(),
        cgroup_parent: place.cgroup_parent.map(str::to_owned),
        network_mode: Some(place.network.to_owned()),
        log_config: Some(bounded_log()),
        mounts: Some(mounts(service, place.sources)),
        tmpfs: Some(tmpfs(request, service)),
        cap_drop: Some(vec!["ALL".to_owned()]),
        security_opt: Some(vec!["no-new-privileges:true".to_owned()]),
        readonly_rootfs: Some(true),
        privileged: Some(false),
        init: request.engine.facts().has_init.then_some(true),
        restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
        ..HostConfig::default()
    }
}

/// Two files, for engines of before 2019 hang on to a log of one when it is turned over.
pub(in crate::execute::docker) fn bounded_log() -> HostConfigLogConfig {
    let config = [("max-size", LOG_SIZE), ("max-file", "2")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    HostConfigLogConfig { typ: Some("json-file".to_owned()), config: Some(HashMap::from(config)) }
}

fn mounts(service: &Service, sources: &[String]) -> Vec<Mount> {
    let one = |(allowed, source): (&AllowedMount, &String)| Mount {
        typ: Some(MountType::BIND),
        source: Some(source.clone()),
        target: Some(allowed.mount.target.clone()),
        read_only: Some(allowed.mount.read_only),
        ..Mount::default()
    };
    service.mounts.iter().zip(sources).map(one).collect()
}

/// Its `/tmp` and what it asked for, which is its own user's: programs such as databases insist on that.
fn tmpfs(request: &Request, service: &Service) -> HashMap<String, String> {
    let owner = user(request, service).map_or_else(|| "mode=1777".to_owned(), |user| owned_by(&user));
    let mut all = HashMap::from([("/tmp".to_owned(), format!("rw,nosuid,nodev,size={},mode=1777", request.tmp.bytes()))]);
    for dir in &service.spec.tmpfs {
        all.insert(dir.trim_end_matches('/').to_owned(), format!("rw,nosuid,nodev,size={},{owner}", service.memory.bytes()));
    }
    all
}

fn owned_by(user: &str) -> String {
    match user.split_once(':') {
        Some((uid, gid)) => format!("mode=0700,uid={uid},gid={gid}"),
        None => format!("mode=0700,uid={user}"),
    }
}
