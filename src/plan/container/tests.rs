//! What a container may be, and every refusal by its field.

use serde_json::{Value, json};

use crate::config::{self, Config};
use crate::intake::Task;
use crate::plan::{ContainerUser, Decided, Plan, Policy, Rejection, Source, plan};
use crate::task::{PullPolicy, Reason};

/// A configuration that allows some of everything.
fn config() -> Config {
    let text = r#"
        [docker]
        images = ["redis:7*", "registry.example/app"]
        [classes.cpu_short]
        runtimes = ["docker"]
        networks = ["none", "bridge", "backend"]
        users = ["image", "1000:1000"]
        max_cpus = 2.0
        max_memory = "1GiB"
        max_gpus = 1
        [tenants.acme]
        mounts = ["/srv/acme", "/srv/shared:ro"]
    "#;
    config::load_text(text).unwrap()
}

fn planned(assignment: Value) -> Result<Plan, Rejection> {
    planned_with(&config(), assignment)
}

fn planned_with(config: &Config, mut assignment: Value) -> Result<Plan, Rejection> {
    assignment["task_id"] = json!("t");
    let task = Task::of(serde_json::from_value(assignment).unwrap());
    plan(&task, &Policy::of(config, &task, true).expect("served"))
}

/// A task with these fields of `execution`.
fn with(fields: Value) -> Value {
    let mut execution = json!({"runtime": "docker", "image": "redis:7"});
    execution.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    json!({"execution": execution})
}

/// A task with these services.
fn beside(services: Value) -> Value {
    json!({"execution": {"runtime": "docker", "image": "redis:7"}, "services": services})
}

#[test]
fn what_is_left_out_is_the_images_the_classes_and_the_tenants() {
    let plan = planned(with(json!({}))).unwrap();
    let container = plan.container.unwrap();
    assert_eq!(container.image.to_string(), "docker.io/library/redis:7");
    assert_eq!((container.entrypoint, container.command), (None, None));
    assert_eq!(container.user, Decided { value: ContainerUser::Tenant, from: Source::Default });
    assert_eq!(container.network, Decided { value: "none".to_owned(), from: Source::Default });
    assert_eq!(container.pull, Decided { value: PullPolicy::Missing, from: Source::Default });
    assert!(container.mounts.is_empty() && container.services.is_empty());
}

#[test]
fn what_is_asked_for_and_allowed_is_given() {
    let plan = planned(with(json!({
        "image": "registry.example/app:v1", "pull": "always", "entrypoint": ["/bin/sh"], "command": ["-c", "true"],
        "user": "1000:1000", "network": "backend", "resources": {"gpus": 1},
        "mounts": [
            {"source": "/srv/acme/in", "target": "/in"},
            {"source": "/srv/acme/out", "target": "/out", "read_only": false},
            {"source": "/srv/shared", "target": "/tmp/shared"},
        ],
    })))
    .unwrap();
    assert_eq!(plan.gpus, Decided { value: 1, from: Source::Assignment });
    let container = plan.container.unwrap();
    assert_eq!(container.pull, Decided { value: PullPolicy::Always, from: Source::Assignment });
    assert_eq!(container.user.value, ContainerUser::Id("1000:1000".to_owned()));
    assert_eq!(container.network, Decided { value: "backend".to_owned(), from: Source::Assignment });
    let roots: Vec<String> = container.mounts.iter().map(|mount| String::from(mount.root.clone())).collect();
    assert_eq!(roots, ["/srv/acme", "/srv/acme", "/srv/shared:ro"]);
    assert_eq!(planned(with(json!({"user": "image"}))).unwrap().container.unwrap().user.value, ContainerUser::Image);
}

#[test]
fn every_refusal_names_its_field_its_value_and_what_is_allowed() {
    let mount = |source: &str, target: &str| with(json!({"mounts": [{"source": source, "target": target}]}));
    let writing = |source: &str| with(json!({"mounts": [{"source": source, "target": "/x", "read_only": false}]}));
    let many: Vec<Value> = (0..65).map(|n| json!({"source": "/srv/acme", "target": format!("/t{n}")})).collect();
    for (assignment, reason, words) in [
        (json!({"execution": {"runtime": "docker"}}), Reason::InvalidAssignment, "execution.image: missing; runtime docker needs one"),
        (with(json!({"image": "Redis"})), Reason::InvalidAssignment, "execution.image: \"Redis\" names no image: a name has lower-case"),
        (
            with(json!({"image": "redis:6"})),
            Reason::ImageRefused,
            "execution.image: tenant acme may not use docker.io/library/redis:6; allowed: redis:7*, registry.example/app",
        ),
        (
            with(json!({"image": format!("redis:7@sha256:{}", "0".repeat(64))})),
            Reason::ImageRefused,
            "execution.image: tenant acme may not use docker.io/library/redis:7@sha256:000",
        ),
        (with(json!({"script": "true"})), Reason::InvalidAssignment, "execution: runtime docker takes entrypoint and command, not script"),
        (with(json!({"args": ["a"]})), Reason::InvalidAssignment, "execution: runtime docker takes entrypoint and command"),
        (with(json!({"entrypoint": ["a\0"]})), Reason::InvalidAssignment, "execution.entrypoint[0]: holds a NUL byte"),
        (with(json!({"command": ["a", "b\0"]})), Reason::InvalidAssignment, "execution.command[1]: holds a NUL byte"),
        (with(json!({"env": {"": "x"}})), Reason::InvalidAssignment, "execution.env: \"\" cannot be an environment variable"),
        (with(json!({"working_dir": "../x"})), Reason::InvalidAssignment, "execution.working_dir: \"../x\" holds"),
        (with(json!({"user": "root"})), Reason::InvalidAssignment, "execution.user: \"root\" is no user; write uid, uid:gid, or image"),
        (with(json!({"user": "+1"})), Reason::InvalidAssignment, "execution.user: \"+1\" is no user"),
        (
            with(json!({"user": "0"})),
            Reason::PolicyRefused,
            "execution.user: \"0\" is not allowed in this class; allowed are the tenant's own user, image, 1000:1000",
        ),
        (
            with(json!({"network": "host"})),
            Reason::PolicyRefused,
            "execution.network: \"host\" is not allowed in this class; allowed are none, bridge, backend",
        ),
        (with(json!({"network": "container:abc"})), Reason::PolicyRefused, "execution.network: \"container:abc\" is not allowed"),
        (
            with(json!({"resources": {"memory": "2MiB"}})),
            Reason::InvalidAssignment,
            "execution.resources.memory: 2097152 bytes are too little for a container; at least 6MiB",
        ),
        (with(json!({"resources": {"gpus": 2}})), Reason::PolicyRefused, "execution.resources.gpus: 2 is above the class's ceiling of 1"),
        (with(json!({"mounts": many})), Reason::InvalidAssignment, "execution.mounts: 65 of them; at most 64"),
        (mount("srv/acme", "/x"), Reason::InvalidAssignment, "execution.mounts[0].source: \"srv/acme\" must be an absolute path"),
        (mount("/srv/acme/../../etc", "/x"), Reason::InvalidAssignment, "execution.mounts[0].source: \"/srv/acme/../../etc\" must be"),
        (mount("/srv/acme", "x"), Reason::InvalidAssignment, "execution.mounts[0].target: \"x\" must be an absolute path"),
        (mount("/etc", "/x"), Reason::PolicyRefused, "execution.mounts[0].source: tenant acme may not mount \"/etc\""),
        (
            mount("/srv/acme-other", "/x"),
            Reason::PolicyRefused,
            "execution.mounts[0].source: tenant acme may not mount \"/srv/acme-other\"",
        ),
        (
            writing("/srv/shared"),
            Reason::PolicyRefused,
            "execution.mounts[0].source: tenant acme may not mount \"/srv/shared\" for writing",
        ),
        (
            with(json!({"mounts": [{"source": "/srv/acme", "target": "/x"}, {"source": "/srv/acme", "target": "//x/."}]})),
            Reason::InvalidAssignment,
            "execution.mounts[1].target: \"//x/.\" is mounted twice",
        ),
    ] {
        let rejection = planned(assignment.clone()).expect_err(words);
        assert_eq!(rejection.reason, reason, "{assignment}");
        assert!(rejection.error.starts_with(words), "{assignment}: {}", rejection.error);
        assert!(!rejection.hint.is_empty(), "{assignment}");
    }
}

#[test]
fn nothing_is_mounted_over_the_system_or_over_windlass() {
    for target in
        ["/", "//", "/.", "/tmp", "/tmp/", "/proc/1", "/sys", "/dev/x", "/windlass", "/./windlass/result.json", "//windlass-secrets"]
    {
        let rejection = planned(with(json!({"mounts": [{"source": "/srv/acme", "target": target}]}))).expect_err(target);
        assert_eq!(rejection.reason, Reason::InvalidAssignment);
        let words = format!("execution.mounts[0].target: {target:?} belongs to the system or to Windlass");
        assert!(rejection.error.starts_with(&words), "{}", rejection.error);
    }
    planned(with(json!({"mounts": [{"source": "/srv/acme", "target": "/process"}, {"source": "/srv/acme", "target": "/windlassx"}]})))
        .unwrap();
}

#[test]
fn a_tenants_own_images_replace_those_of_all() {
    let mut config = config();
    let acme = config.tenants.values_mut().next().unwrap();
    acme.images = Some(vec!["own/app".parse().unwrap()]);
    assert!(planned_with(&config, with(json!({"image": "own/app:x"}))).is_ok());
    let rejection = planned_with(&config, with(json!({}))).expect_err("allowed to others");
    assert!(rejection.error.ends_with("allowed: own/app"), "{}", rejection.error);
    config.tenants.values_mut().next().unwrap().images = Some(vec![]);
    let rejection = planned_with(&config, with(json!({}))).expect_err("none is allowed");
    assert!(rejection.error.ends_with("allowed: none"), "{}", rejection.error);
}

#[test]
fn services_are_started_after_those_that_they_need() {
    let plan = planned(beside(json!([
        {"name": "web", "image": "registry.example/app", "depends_on": ["db", "cache"]},
        {"name": "cache", "image": "redis:7", "depends_on": ["db"], "user": "image", "tmpfs": ["/data"], "memory": "64MiB", "cpus": 0.5},
        {"name": "db", "image": "redis:7.2", "health": {"command": ["redis-cli", "ping"]}},
    ])))
    .unwrap();
    let services = plan.container.unwrap().services;
    assert_eq!(services.iter().map(|service| service.name.as_str()).collect::<Vec<_>>(), ["db", "cache", "web"]);
    assert_eq!(services[1].user, ContainerUser::Image);
    let health = services[0].health.as_ref().unwrap();
    assert_eq!((health.interval_s, health.timeout_s, health.retries), (1.0, 5.0, 30));
}

#[test]
fn every_refusal_of_a_service_names_it() {
    let one = |fields: Value| {
        let mut service = json!({"name": "db", "image": "redis:7"});
        service.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        beside(json!([service]))
    };
    let named = |name: &str| one(json!({"name": name}));
    let needs = |name: &str, other: &str| json!({"name": name, "image": "redis:7", "depends_on": [other]});
    let seventeen: Vec<Value> = (0..17).map(|n| json!({"name": format!("s{n}"), "image": "redis:7"})).collect();
    let mut elsewhere = beside(json!([{"name": "db", "image": "redis:7"}]));
    elsewhere["execution"]["network"] = json!("backend");
    for (assignment, reason, words) in [
        (beside(json!(seventeen)), Reason::InvalidAssignment, "services: 17 of them; at most 16"),
        (named("Db"), Reason::InvalidAssignment, "services[0].name: \"Db\" is no host name; use 1 to 63 of a-z 0-9 -"),
        (named("-db"), Reason::InvalidAssignment, "services[0].name: \"-db\" is no host name"),
        (named(""), Reason::InvalidAssignment, "services[0].name: \"\" is no host name"),
        (named("localhost"), Reason::InvalidAssignment, "services[0].name: \"localhost\" is the container's own"),
        (one(json!({"image": "redis:6"})), Reason::ImageRefused, "services[0].image: tenant acme may not use docker.io/library/redis:6"),
        (one(json!({"depends_on": ["cache"]})), Reason::InvalidAssignment, "services[0].depends_on: \"cache\" is no service of this task"),
        (one(json!({"depends_on": ["db"]})), Reason::InvalidAssignment, "services: db depend on each other in a circle"),
        (beside(json!([needs("a", "b"), needs("b", "a")])), Reason::InvalidAssignment, "services: a, b depend on each other in a circle"),
        (
            beside(json!([{"name": "a", "image": "redis:7"}, {"name": "a", "image": "redis:7"}])),
            Reason::InvalidAssignment,
            "services[1].name: \"a\" is there twice",
        ),
        (one(json!({"command": ["a\0"]})), Reason::InvalidAssignment, "services[0].command[0]: holds a NUL byte"),
        (one(json!({"env": {"a=b": ""}})), Reason::InvalidAssignment, "services[0].env: \"a=b\" cannot be an environment variable"),
        (one(json!({"user": "7"})), Reason::PolicyRefused, "services[0].user: \"7\" is not allowed in this class"),
        (one(json!({"cpus": 3})), Reason::PolicyRefused, "services[0].cpus: 3 is above the class's ceiling of 2"),
        (one(json!({"cpus": -1})), Reason::InvalidAssignment, "services[0].cpus: -1 is too small; at least 0.01"),
        (one(json!({"memory": "2GiB"})), Reason::PolicyRefused, "services[0].memory: 2GiB is above the class's ceiling of 1GiB"),
        (
            one(json!({"memory": "1MiB"})),
            Reason::InvalidAssignment,
            "services[0].memory: 1MiB is too little for a container; at least 6MiB",
        ),
        (one(json!({"tmpfs": ["data"]})), Reason::InvalidAssignment, "services[0].tmpfs[0]: \"data\" must be an absolute path"),
        (one(json!({"tmpfs": ["/a:exec"]})), Reason::InvalidAssignment, "services[0].tmpfs[0]: \"/a:exec\" must be a path without colons"),
        (one(json!({"tmpfs": ["/a", "/a/"]})), Reason::InvalidAssignment, "services[0].tmpfs[1]: \"/a/\" is mounted twice"),
        (one(json!({"tmpfs": ["/dev"]})), Reason::InvalidAssignment, "services[0].tmpfs[0]: \"/dev\" belongs to the system"),
        (
            one(json!({"mounts": [{"source": "/etc", "target": "/x"}]})),
            Reason::PolicyRefused,
            "services[0].mounts[0].source: tenant acme may not mount",
        ),
        (one(json!({"health": {"command": []}})), Reason::InvalidAssignment, "services[0].health.command: empty"),
        (
            one(json!({"health": {"command": ["a"], "interval_s": 0}})),
            Reason::InvalidAssignment,
            "services[0].health.interval_s: 0; allowed is 0.05 to 3600",
        ),
        (
            one(json!({"health": {"command": ["a"], "timeout_s": 1e9}})),
            Reason::InvalidAssignment,
            "services[0].health.timeout_s: 1000000000; allowed",
        ),
        (
            one(json!({"health": {"command": ["a"], "retries": 0}})),
            Reason::InvalidAssignment,
            "services[0].health.retries: 0; allowed is 1 to 10000",
        ),
        (elsewhere, Reason::InvalidAssignment, "execution.network: \"backend\" is not possible with services"),
    ] {
        let rejection = planned(assignment.clone()).expect_err(words);
        assert_eq!(rejection.reason, reason, "{assignment}");
        assert!(rejection.error.starts_with(words), "{assignment}: {}", rejection.error);
    }
    let native = json!({"execution": {"runtime": "native", "command": ["true"]}, "services": [{"name": "db", "image": "redis:7"}]});
    let config = config::load_text("").unwrap();
    let rejection = planned_with(&config, native).expect_err("a native task has none");
    assert_eq!((rejection.reason, rejection.error.split(':').next()), (Reason::Unschedulable, Some("services")));
}

#[test]
fn services_lead_no_way_around_the_network_of_their_class() {
    let text =
        "[docker]\nimages = [\"*\"]\n[classes.cpu_short]\nruntimes = [\"docker\"]\nnetwork = \"filtered\"\nnetworks = [\"filtered\"]";
    let config = config::load_text(text).unwrap();
    let execution = json!({"runtime": "docker", "image": "redis:7"});
    let alone = planned_with(&config, json!({"execution": execution})).expect("its class's network");
    assert_eq!(alone.container.expect("a container").network.value, "filtered");
    let beside = json!({"execution": execution, "services": [{"name": "db", "image": "redis:7"}]});
    let rejection = planned_with(&config, beside).expect_err("its private network would have another way out");
    assert_eq!(rejection.reason, Reason::PolicyRefused, "{}", rejection.error);
}
