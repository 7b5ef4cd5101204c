//! What long-lived services must satisfy beyond the types of their keys.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use super::Service;
use crate::task::ByteSize;
use crate::task::secret::{SecretRef, is_variable};

/// Less than this the engine refuses.
const MIN_MEMORY: ByteSize = ByteSize::mib(6);

fn is_host_name(name: &str, longest: usize) -> bool {
    let of_name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=longest).contains(&name.len()) && name.bytes().all(of_name) && !name.starts_with('-') && !name.ends_with('-')
}

pub(super) fn environment(name: &str, mistakes: &mut Vec<String>) {
    if !is_host_name(name, 32) {
        mistakes.push(format!("environment = {name:?}: use 1 to 32 of a-z 0-9 -, none of - at an end"));
    }
}

pub(super) fn service(name: &str, service: &Service, all: &BTreeMap<String, Service>, mistakes: &mut Vec<String>) {
    if !is_host_name(name, 63) {
        mistakes.push(format!("services.{name}: it is the service's host name; use 1 to 63 of a-z 0-9 -, none of - at an end"));
    }
    let mut wrong = |key: &str, value: &dyn Display, rule: &dyn Display| mistakes.push(format!("services.{name}.{key} = {value}: {rule}"));
    if let Err(error) = service.image() {
        wrong("image", &format!("{:?}", service.image), &error);
    }
    if let Some(cpus) = service.cpus.filter(|cpus| !(0.01..=10_000.0).contains(cpus)) {
        wrong("cpus", &cpus, &"allowed is 0.01 to 10000; leave it out for no limit");
    }
    if let Some(memory) = service.memory.filter(|memory| *memory < MIN_MEMORY) {
        wrong("memory", &memory, &"at least 6MiB, or the engine refuses it; leave it out for no limit");
    }
    if service.pids == Some(0) {
        wrong("pids", &0, &"at least 1; leave it out for no limit");
    }
    if let Some(unknown) = service.depends_on.iter().find(|other| !all.contains_key(*other)) {
        wrong("depends_on", &format!("[{unknown:?}]"), &"no service of this file");
    }
    let is_id = |text: &str| text.parse::<u32>().is_ok();
    if let Some(user) = service.user.as_deref().filter(|user| !user.split(':').take(3).all(is_id) || user.matches(':').count() > 1) {
        wrong("user", &format!("{user:?}"), &"write uid or uid:gid; leave it out for the image's own");
    }
    variables(service, &mut wrong);
    health(service, &mut wrong);
    let mut targets = BTreeSet::new();
    for volume in service.volumes.iter().filter(|volume| !targets.insert(volume.target.trim_end_matches('/'))) {
        wrong("volumes", &format!("[\"{volume}\"]"), &"its target is mounted twice");
    }
}

fn variables(service: &Service, wrong: &mut impl FnMut(&str, &dyn Display, &dyn Display)) {
    for (variable, value) in &service.env {
        if variable.is_empty() || variable.contains(['=', '\0']) || value.contains('\0') {
            wrong("env", &format!("{variable:?}"), &"no environment variable: no empty names, no '=' in names, no NUL bytes");
        }
    }
    for (variable, reference) in &service.secrets {
        if !is_variable(variable) || service.env.contains_key(variable) {
            wrong("secrets", &format!("{variable:?}"), &"a name is letters, digits and _, and not in env as well");
        }
        match reference.parse::<SecretRef>() {
            Ok(SecretRef::Env(_) | SecretRef::File(_)) => {}
            Ok(SecretRef::Kv { .. }) => wrong("secrets", &format!("{reference:?}"), &"services take env:NAME and file:/path"),
            // The text may be the secret itself.
            Err(_) => wrong("secrets", &format!("{{ {variable} = … }}"), &"no reference; write env:NAME or file:/path, never the secret"),
        }
    }
}

fn health(service: &Service, wrong: &mut impl FnMut(&str, &dyn Display, &dyn Display)) {
    let Some(check) = &service.health else { return };
    if check.command.is_empty() {
        wrong("health.command", &"[]", &"name a program of the service's image");
    }
    for (key, value) in [("health.interval_s", check.interval_s), ("health.timeout_s", check.timeout_s)] {
        if !(0.05..=3600.0).contains(&value) {
            wrong(key, &value, &"allowed is 0.05 to 3600");
        }
    }
    if !(1..=10_000).contains(&check.retries) {
        wrong("health.retries", &check.retries, &"allowed is 1 to 10000");
    }
}

/// No two services can have one port of the machine.
pub(super) fn ports(services: &BTreeMap<String, Service>, mistakes: &mut Vec<String>) {
    let mut taken = BTreeMap::new();
    for (name, port) in services.iter().flat_map(|(name, service)| service.ports.iter().map(move |port| (name, port))) {
        if let Some(other) = taken.insert((port.address, port.host, port.udp), name) {
            mistakes.push(format!("services.{name}.ports = [\"{port}\"]: services.{other} has this port already; give another one"));
        }
    }
}

/// Each after those that it depends on.
pub(super) fn in_order(mut left: BTreeMap<String, Service>, mistakes: &mut Vec<String>) -> Vec<(String, Service)> {
    let mut ordered: Vec<(String, Service)> = Vec::with_capacity(left.len());
    let names: BTreeSet<String> = left.keys().cloned().collect();
    while !left.is_empty() {
        // What is not there at all was told already.
        let done = |name: &String| !names.contains(name) || ordered.iter().any(|(done, _)| done == name);
        let ready = left.iter().find(|(_, service)| service.depends_on.iter().all(done)).map(|(name, _)| name.clone());
        let Some((name, service)) = ready.and_then(|name| left.remove_entry(&name)) else {
            let circle: Vec<&str> = left.keys().map(String::as_str).collect();
            mistakes.push(format!("services: {} depend on each other in a circle", circle.join(", ")));
            return ordered;
        };
        ordered.push((name, service));
    }
    ordered
}
