//! Removing what workers left at the engine.
//!
//! ```text
//! worker dies ─▶ its supervisor kills the cgroups ─▶ becomes `windlass reap-containers` (orphans) ─▶ reap(Instance)
//! both die ────▶ any worker of the engine, at its start and each minute ─▶ reap(Dead)
//! ```
//! Containers go first, with their nameless volumes, then networks. What belongs to a worker that lives, or may live, stays: who
//! is dead is decided in `fate`, and when in doubt nobody is.

use std::collections::HashMap;

use bollard::query_parameters::{InspectContainerOptions, ListContainersOptions, ListNetworksOptions, RemoveContainerOptions};
use futures_util::StreamExt as _;

use super::labels;
use super::{Engine, EngineError};

mod fate;
pub mod orphans;

use fate::{Fate, Here};

/// Removals under way at one time: an engine does not do more of them any faster.
const AT_ONCE: usize = 4;

/// Whose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which<'a> {
    /// One instance's, dead or at its end.
    Instance(&'a str),
    /// Those of all instances that are known to be dead.
    Dead,
}

/// What was found and is gone, or going.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reaped {
    /// Ids of containers.
    pub containers: Vec<String>,
    /// Networks.
    pub networks: usize,
}

impl Reaped {
    /// There was nothing.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// Removes what is there at this moment. Who needs to know that nothing comes after, looks again.
///
/// # Errors
/// The engine's first error; the rest was tried all the same.
pub async fn reap(engine: &Engine, which: Which<'_>) -> Result<Reaped, EngineError> {
    let here = Here::look();
    let containers = containers(engine, which, &here).await?;
    let mut failed = None;
    // All of it owned: a future that borrows from its closure's argument cannot be sent to another thread.
    let removals: Vec<_> = containers.iter().map(|id| remove_container(engine.clone(), id.clone())).collect();
    let mut removals = futures_util::stream::iter(removals).buffer_unordered(AT_ONCE);
    while let Some(removed) = removals.next().await {
        failed = failed.or(removed.err());
    }
    let networks = networks(engine, which, &here).await?;
    for id in &networks {
        let removed = engine.ask("remove a network", engine.api().remove_network(id)).await;
        match removed {
            Err(error) if !error.is_not_found() => failed = failed.or(Some(error)),
            Ok(()) | Err(_) => {}
        }
    }
    match failed {
        Some(error) => Err(error),
        None => Ok(Reaped { containers, networks: networks.len() }),
    }
}

/// With force, whatever it does, and with the volumes that have no name. One that is gone, or going, is no error.
async fn remove_container(engine: Engine, id: String) -> Result<(), EngineError> {
    let options = RemoveContainerOptions { force: true, v: true, link: false };
    match engine.ask("remove a container", engine.api().remove_container(&id, Some(options))).await {
        Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
        answer => answer,
    }
}

fn filters(which: Which<'_>) -> Option<HashMap<String, Vec<String>>> {
    let label = match which {
        Which::Instance(instance) => format!("{}={instance}", labels::INSTANCE),
        Which::Dead => labels::INSTANCE.to_owned(),
    };
    Some(HashMap::from([("label".to_owned(), vec![label])]))
}

async fn containers(engine: &Engine, which: Which<'_>, here: &Here) -> Result<Vec<String>, EngineError> {
    let options = ListContainersOptions { all: true, filters: filters(which), ..ListContainersOptions::default() };
    let found = engine.ask("list containers", engine.api().list_containers(Some(options))).await?;
    let mut doomed = Vec::new();
    for container in found {
        let (Some(id), labels) = (container.id, container.labels.unwrap_or_default()) else { continue };
        if is_doomed(which, &labels, here, || idle_container(engine, &id)).await {
            doomed.push(id);
        }
    }
    Ok(doomed)
}

async fn networks(engine: &Engine, which: Which<'_>, here: &Here) -> Result<Vec<String>, EngineError> {
    let options = ListNetworksOptions { filters: filters(which) };
    let found = engine.ask("list networks", engine.api().list_networks(Some(options))).await?;
    let mut doomed = Vec::new();
    for network in found {
        let (Some(id), labels) = (network.id, network.labels.unwrap_or_default()) else { continue };
        // One that is in use cannot be removed.
        let created = network.created;
        if is_doomed(which, &labels, here, || std::future::ready(fate::is_long_ago(created.as_deref()))).await {
            doomed.push(id);
        }
    }
    Ok(doomed)
}

/// `idle` is asked only of what was made in another boot, or on another machine.
async fn is_doomed<I: Future<Output = bool>>(
    which: Which<'_>,
    labels: &HashMap<String, String>,
    here: &Here,
    idle: impl FnOnce() -> I,
) -> bool {
    match which {
        // The engine filters; what it does with a label that it does not understand is not known of every engine.
        Which::Instance(instance) => labels.get(labels::INSTANCE).is_some_and(|own| own == instance),
        Which::Dead => match here.fate_of(labels) {
            Fate::Dead => true,
            Fate::DeadIfIdle => idle().await,
            Fate::Living | Fate::Unknown => false,
        },
    }
}

/// Whether a container has not run for long.
async fn idle_container(engine: &Engine, id: &str) -> bool {
    let inspected = engine.ask("inspect a container", engine.api().inspect_container(id, None::<InspectContainerOptions>)).await;
    let Ok(container) = inspected else { return false };
    let state = container.state.unwrap_or_default();
    let runs = [state.running, state.paused, state.restarting].contains(&Some(true));
    // One that was never started has a time of end all the same: that of the year 1.
    !runs && fate::is_long_ago(container.created.as_deref()) && fate::is_long_ago(state.finished_at.as_deref())
}
