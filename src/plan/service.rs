//! What a service's own fields must be like, beyond what every container's must.

use std::collections::BTreeSet;

use super::bounds::{below, within};
use super::container::target;
use super::{Policy, Rejection, check_variables, invalid};
use crate::config::MIN_CONTAINER_MEMORY;
use crate::task::ServiceSpec;

/// Limits, environment and directories of the service at `at`.
pub(super) fn check(at: usize, spec: &ServiceSpec, policy: &Policy<'_>) -> Result<(), Rejection> {
    let field = |key: &str| format!("services[{at}].{key}");
    check_variables(&field("env"), &spec.env)?;
    if let Some(cpus) = spec.cpus {
        within(&field("cpus"), cpus, 0.01, policy.class.max_cpus)?;
    }
    if let Some(memory) = spec.memory {
        below(&field("memory"), memory, policy.class.max_memory)?;
        if memory < MIN_CONTAINER_MEMORY {
            return Err(invalid(format!("{}: {memory} is too little for a container; at least {MIN_CONTAINER_MEMORY}", field("memory"))));
        }
    }
    let mut taken: BTreeSet<_> = spec.mounts.iter().filter_map(|mount| target("", &mount.target).ok()).collect();
    for (number, path) in spec.tmpfs.iter().enumerate() {
        let field = format!("{}[{number}]", field("tmpfs"));
        // The engine takes options behind a colon.
        if path.contains([':', ',']) {
            return Err(invalid(format!("{field}: {path:?} must be a path without colons and commas")));
        }
        if !taken.insert(target(&field, path)?) {
            return Err(invalid(format!("{field}: {path:?} is mounted twice")));
        }
    }
    Ok(())
}
