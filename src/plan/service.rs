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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_refused_with_the_field_that_is_wrong() {
        let check = |more: serde_json::Value| {
            let mut spec = serde_json::json!({"name": "db", "image": "x"});
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            check(3, &serde_json::from_value(spec).unwrap())
        };
        for (more, field) in [
            (serde_json::json!({"cpus": 0.0}), "services[3].cpus: 0; allowed is 0.01 to 10000"),
            (serde_json::json!({"memory": "5MiB"}), "services[3].memory: 5MiB is too little"),
            (serde_json::json!({"env": {"A=B": "c"}}), "services[3].env: \"A=B\""),
            (serde_json::json!({"tmpfs": ["/a", "b"]}), "services[3].tmpfs[1]: \"b\""),
            (serde_json::json!({"tmpfs": ["/a/../b"]}), "services[3].tmpfs[0]"),
            (serde_json::json!({"tmpfs": ["/"]}), "services[3].tmpfs[0]"),
            (serde_json::json!({"tmpfs": ["/proc/x"]}), "services[3].tmpfs[0]"),
            (serde_json::json!({"tmpfs": ["/a:exec"]}), "services[3].tmpfs[0]"),
            (serde_json::json!({"tmpfs": ["/a", "/a/"]}), "services[3].tmpfs[1]: \"/a/\" is mounted twice"),
            (serde_json::json!({"tmpfs": ["/a"], "mounts": [{"source": "/s", "target": "/a"}]}), "services[3].tmpfs[0]"),
        ] {
            let error = check(more.clone()).expect_err("refused").error;
            assert!(error.contains(field), "{more}: {error}");
        }
        assert!(check(serde_json::json!({"cpus": 0.5, "memory": "6MiB", "env": {"A": "b"}, "tmpfs": ["/data", "/run"]})).is_ok());
    }
}
