//! Room on the disk that holds images: what Windlass pulled and nobody uses goes, the longest unused first.

use std::collections::BTreeSet;
use std::path::Path;

use bollard::query_parameters::{ListContainersOptionsBuilder, RemoveImageOptionsBuilder};

use super::images::{Entry, Journal};
use super::{Engine, EngineError};
use crate::telemetry::{causes, spawn_blocking};

/// At this nothing is removed.
const NEVER: f64 = 100.0;

/// Removes what may be removed until the disk is used less than `high_percent`. What was removed. An engine whose disk cannot be seen
/// from here looks after it itself.
pub(super) async fn make_room(engine: &Engine, journal: &Journal, high_percent: f64) -> Vec<String> {
    make(engine, journal, high_percent, 0).await
}

/// Likewise after a pull for which there was not room enough, whatever the disk looks like now: the engine has thrown away what it had
/// of that pull. At least one image goes if there is one.
pub(super) async fn make_more_room(engine: &Engine, journal: &Journal, high_percent: f64) -> Vec<String> {
    if high_percent >= NEVER {
        return Vec::new();
    }
    make(engine, journal, high_percent, 1).await
}

async fn make(engine: &Engine, journal: &Journal, high_percent: f64, at_least: usize) -> Vec<String> {
    if at_least == 0 && !is_above(engine, high_percent).await {
        return Vec::new();
    }
    let lock = journal.clone();
    let Ok(Ok(_lock)) = spawn_blocking(move || lock.lock()).await else { return Vec::new() };
    let mut removed = Vec::new();
    if let Err(error) = remove_unused(engine, journal, high_percent, at_least, &mut removed).await {
        tracing::warn!(error = %causes(&error), "cannot make room for images");
    }
    removed
}

async fn remove_unused(
    engine: &Engine,
    journal: &Journal,
    high_percent: f64,
    at_least: usize,
    removed: &mut Vec<String>,
) -> Result<(), EngineError> {
    adopt(engine, journal).await?;
    let used = used_by_containers(engine).await?;
    for entry in journal.entries().into_iter().filter(|entry| !used.contains(&entry.id)) {
        // Another worker may have made room while this one waited.
        if removed.len() >= at_least && !is_above(engine, high_percent).await {
            return Ok(());
        }
        match remove(engine, &entry).await {
            Ok(true) => removed.push(entry.id),
            Ok(false) => {}
            // Its words are about this image: the next one may go all the same.
            Err(error @ EngineError::Refused { .. }) => {
                tracing::warn!(error = %causes(&error), id = entry.id, "cannot remove an image to make room");
            }
            Err(error @ (EngineError::Unavailable { .. } | EngineError::Unfit(_))) => return Err(error),
        }
    }
    if is_above(engine, high_percent).await {
        tracing::warn!(high_percent, removed = removed.len(), "the disk that holds images is full of what Windlass may not remove");
    }
    Ok(())
}

/// Whether the disk is used more than that. As `df` counts: what is kept for root is neither used nor free.
async fn is_above(engine: &Engine, high_percent: f64) -> bool {
    let root = engine.facts().root_dir.clone();
    let used = spawn_blocking(move || used_percent(Path::new(&root))).await;
    matches!(used, Ok(Some(used)) if used > high_percent)
}

fn used_percent(root: &Path) -> Option<f64> {
    let fs = rustix::fs::statvfs(root).ok()?;
    let used = fs.f_blocks.checked_sub(fs.f_bfree)?;
    let all = used + fs.f_bavail;
    (all > 0).then(|| used as f64 / all as f64 * 100.0)
}

/// Takes over what workers had pulled that died before they could note it.
async fn adopt(engine: &Engine, journal: &Journal) -> Result<(), EngineError> {
    for pull in journal.abandoned() {
        match engine.ask("inspect image", engine.api().inspect_image(&pull.reference.to_string())).await {
            Ok(found) if found.id != pull.before => drop(journal.pulled(&pull.reference, &found).await),
            Ok(_) => {}
            Err(error) if error.is_not_found() => {}
            // It stays noted.
            Err(error @ EngineError::Refused { .. }) => {
                tracing::warn!(error = %causes(&error), image = %pull.reference, "cannot look after what a dead worker pulled");
                continue;
            }
            Err(error) => return Err(error),
        }
        pull.settled();
    }
    Ok(())
}

/// Images of all containers, running or not: the engine would refuse them, one name after the other.
async fn used_by_containers(engine: &Engine) -> Result<BTreeSet<String>, EngineError> {
    let all = ListContainersOptionsBuilder::default().all(true).build();
    let containers = engine.ask("list containers", engine.api().list_containers(Some(all))).await?;
    Ok(containers.into_iter().filter_map(|container| container.image_id).collect())
}

/// Takes the names away that Windlass gave it; with the last name the engine removes the image. Whether there was one to take away.
async fn remove(engine: &Engine, entry: &Entry) -> Result<bool, EngineError> {
    let Some(unused) = entry.unused() else { return Ok(false) };
    let mut was_there = false;
    for reference in &unused.references {
        match engine.ask("inspect image", engine.api().inspect_image(reference)).await {
            // A tag may name another image by now.
            Ok(found) if found.id.as_ref() != Some(&entry.id) => continue,
            Ok(_) => {}
            Err(error) if error.is_not_found() => continue,
            Err(error) => return Err(error),
        }
        let gently = RemoveImageOptionsBuilder::default().force(false).build();
        match engine.ask("remove image", engine.api().remove_image(reference, Some(gently), None)).await {
            Ok(_) => {
                tracing::info!(reference, id = entry.id, "removed an image to make room");
                was_there = true;
            }
            Err(error) if error.is_not_found() => {}
            // A container was made from it meanwhile, by somebody else.
            Err(error) if error.is_conflict() => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    unused.removed();
    Ok(was_there)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_used_between_nothing_and_all() {
        let used = used_percent(Path::new("/")).unwrap();
        assert!((0.0..=100.0).contains(&used), "{used}");
        assert_eq!(used_percent(Path::new("/nonexistent")), None, "an engine on another machine");
    }
}
