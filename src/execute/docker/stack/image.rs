//! The image of a long-lived service: there, or pulled.

use super::PullSettings;
use crate::config::services::Service;
use crate::execute::docker::engine::{Engine, EngineError};

/// Its id.
pub(super) async fn ensure(
    engine: &Engine,
    service: &Service,
    _pull: &PullSettings,
    _tell: &(dyn Fn(&str) + Sync),
) -> Result<String, EngineError> {
    let image = engine.ask("inspect image", engine.api().inspect_image(&service.image)).await?;
    Ok(image.id.unwrap_or_default())
}
