//! What a mount's source is, when every link is followed.

use std::path::Path;

use super::ServiceError;
use crate::plan::{AllowedMount, Service};
use crate::task::Reason;

/// The sources of a service's mounts, in their order.
///
/// Whoever can write below a root can still exchange a directory for a link after this look: what a tenant may mount for
/// writing, it should not be able to rearrange from elsewhere.
pub(super) async fn resolve(service: &Service) -> Result<Vec<String>, ServiceError> {
    let (name, mounts) = (service.name.clone(), service.mounts.clone());
    let looked = crate::telemetry::spawn_blocking(move || mounts.iter().map(|mount| one(&name, mount)).collect());
    looked.await.unwrap_or_else(|error| {
        Err(ServiceError { reason: Reason::Internal, error: error.to_string(), hint: "this is a defect of Windlass".to_owned() })
    })
}

fn one(service: &str, allowed: &AllowedMount) -> Result<String, ServiceError> {
    let source = &allowed.mount.source;
    let refused = |reason, why: String, hint: &str| ServiceError {
        reason,
        error: format!("service {service}: mount of {source}: {why}"),
        hint: hint.to_owned(),
    };
    let real = |path: &Path| std::fs::canonicalize(path);
    let found = real(Path::new(source)).map_err(|error| {
        refused(Reason::WorkspaceFailed, error.to_string(), "make the directory on the workers' machines, or mount another one")
    })?;
    let inside = real(&allowed.root.path).is_ok_and(|root| found.starts_with(root));
    if !inside {
        let why = format!("it leads to {}, which is not below {}", found.display(), allowed.root.path.display());
        return Err(refused(Reason::PolicyRefused, why, "mount the place itself, or have an operator allow it in tenants.<name>.mounts"));
    }
    found.to_str().map(str::to_owned).ok_or_else(|| refused(Reason::PolicyRefused, "its path is no UTF-8".to_owned(), "rename it"))
}
