//! The limits of containers whose cgroup is not below one of the worker's own.

use bollard::models::HostConfig;

use super::super::refusal::Refusal;
use super::super::{Engine, refusal};
use crate::task::limits::Limits;

/// The limits of an engine whose containers are not in a cgroup of ours: everything must be set, and read back.
pub(in crate::execute::docker) async fn own_limits(
    engine: &Engine,
    id: &str,
    asked: &HostConfig,
    limits: &Limits,
    warnings: &[String],
) -> Result<(), Refusal> {
    if !limits.enforced {
        return Ok(());
    }
    let missing = &engine.facts().missing_limits;
    if !missing.is_empty() {
        return Err(Refusal::isolation(format!("the container engine cannot limit {}", missing.join(", "))));
    }
    if limits.io.is_some() {
        return Err(Refusal::isolation("limits of block I/O need a cgroup driver cgroupfs, whose cgroups the worker shares".to_owned()));
    }
    if let Some(warning) = warnings.iter().find(|warning| warning.contains("discarded") || warning.contains("not support")) {
        return Err(Refusal::isolation(format!("the container engine warns: {warning}")));
    }
    let set = engine.inspect(id).await.map_err(|e| refusal::of_start(&e))?.host_config.unwrap_or_default();
    let same = [
        ("memory", asked.memory == set.memory),
        ("swap", asked.memory_swap == set.memory_swap),
        ("cpu", asked.cpu_quota == set.cpu_quota && asked.cpu_period == set.cpu_period),
        ("pids", asked.pids_limit == set.pids_limit),
    ];
    match same.iter().find(|(_, same)| !same) {
        Some((limit, _)) => Err(Refusal::isolation(format!("the container engine did not set the limit of {limit}"))),
        None => Ok(()),
    }
}
