//! What a service's own fields must be like, beyond what every container's must.

use super::container::MIN_MEMORY;
use super::{Rejection, invalid};
use crate::task::ServiceSpec;

/// Directories that belong to the system.
const RESERVED: [&str; 4] = ["", "/proc", "/sys", "/dev"];

/// Limits, environment and directories of the service at `at`.
pub(super) fn check(at: usize, spec: &ServiceSpec) -> Result<(), Rejection> {
    let field = |key: &str| format!("services[{at}].{key}");
    if let Some(cpus) = spec.cpus.filter(|cpus| !(0.01..=10_000.0).contains(cpus)) {
        return Err(invalid(format!("{}: {cpus}; allowed is 0.01 to 10000", field("cpus"))));
    }
    if let Some(memory) = spec.memory.filter(|memory| memory.bytes() < MIN_MEMORY) {
        return Err(invalid(format!("{}: {memory} is too little for a container; at least 6MiB", field("memory"))));
    }
    for (name, value) in &spec.env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(invalid(format!(
                "{}: {name:?} cannot be an environment variable: no empty names, no '=' in names, no NUL bytes",
                field("env")
            )));
        }
    }
    for (n, dir) in spec.tmpfs.iter().enumerate() {
        let plain = dir.starts_with('/') && !dir.contains(['\0', ':', ',']) && !dir.split('/').any(|part| part == "..");
        let bare = dir.trim_end_matches('/');
        let reserved = RESERVED.iter().any(|r| bare == *r || (!r.is_empty() && bare.starts_with(&format!("{r}/"))));
        if !plain || reserved {
            return Err(invalid(format!(
                "{}[{n}]: {dir:?} must be an absolute path without \"..\", colons and commas, not / nor below /proc, /sys and /dev",
                field("tmpfs")
            )));
        }
        let taken = |other: &str| other.trim_end_matches('/') == bare;
        if spec.tmpfs[..n].iter().any(|other| taken(other)) || spec.mounts.iter().any(|mount| taken(&mount.target)) {
            return Err(invalid(format!("{}[{n}]: {dir:?} is mounted twice", field("tmpfs"))));
        }
    }
    Ok(())
}
