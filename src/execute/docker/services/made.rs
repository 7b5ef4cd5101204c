//! The start of a service's container, within its limits.

use std::path::Path;

use bollard::models::HostConfig;

use super::hold::Hold;
use crate::execute::docker::Refusal;
use crate::execute::docker::container::{Own, own_limits};
use crate::execute::docker::engine::{Engine, EngineError};
use crate::task::Limits;

/// A container that was made.
pub(super) struct Made {
    pub id: String,
    pub warnings: Vec<String>,
    /// As the engine was asked for it.
    pub asked: HostConfig,
    pub limits: Limits,
}

impl Made {
    /// Starts it, and sees that it has its limits: those of the cgroup that is held for it, else the engine's own.
    pub(super) async fn start(
        &self,
        engine: &Engine,
        hold: Option<&Hold>,
        cgroups: &Path,
        refused: impl Fn(EngineError) -> Refusal,
    ) -> Result<(), Refusal> {
        let Self { id, warnings, asked, limits } = self;
        let held = hold.filter(|hold| hold.parent().is_some());
        if held.is_none() {
            own_limits(engine, id, asked, limits, warnings).await?;
        }
        engine.start(id).await.map_err(refused)?;
        let Some(hold) = held else { return self.limited(engine, cgroups).await };
        if hold.contains(id) {
            return Ok(());
        }
        // The engine has put it elsewhere, or it is over already.
        own_limits(engine, id, asked, limits, warnings).await?;
        self.limited(engine, cgroups).await
    }

    /// As the kernel has them, where its cgroup is to be seen.
    async fn limited(&self, engine: &Engine, cgroups: &Path) -> Result<(), Refusal> {
        Own::of(engine, &self.id, cgroups).await.map_or(Ok(()), |(own, _)| own.limited(&self.limits))
    }
}
