//! Defaults, the order of origins, and that every mistake is named at once.

use std::io::Write as _;

use super::*;

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("temporary file");
    file.write_all(text.as_bytes()).expect("written");
    file
}

fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
}

/// The mistakes of a file and an environment.
fn mistakes(text: &str, pairs: &[(&str, &str)]) -> Vec<String> {
    let file = file(text);
    match load(Some(file.path()), env(pairs)) {
        Err(ConfigError::Mistakes(mistakes)) => {
            mistakes.into_iter().map(|m| m.replace(&file.path().display().to_string(), "FILE")).collect()
        }
        other => panic!("{text}: expected mistakes, got {other:?}"),
    }
}

#[test]
fn the_commented_file_is_the_default_and_has_every_key() {
    let config = load(None, []).expect("the defaults are valid");
    let class = &config.classes[&ClassName::new("cpu_short").expect("token")];
    assert_eq!(class, &Class::default(), "what [classes.cpu_short] says is what a class without keys gets");
    assert_eq!(config.bus.server, "nats://127.0.0.1:4222");
    assert_eq!((config.lease.ack_wait_s, config.lease.on_lease_loss), (30.0, OnLeaseLoss::Stop));
    assert_eq!((config.logs.chunk, config.logs.cap), (ByteSize::kib(64), ByteSize::mib(256)));
    // Every key of the types stands in the file, so that the file documents them all. Other classes name what differs.
    let written = first_class_alone(toml::Value::try_from(&config).expect("serializes"));
    let documented = first_class_alone(toml::Value::Table(DEFAULTS.parse().expect("TOML")));
    assert_eq!(keys(&written), keys(&documented));
}

#[test]
fn the_shipped_classes_are_those_of_the_plan() {
    let config = load(None, []).expect("valid");
    let class = |name: &str| &config.classes[&ClassName::new(name).expect("token")];
    for (name, runtimes, timeout_s, gpus) in [
        ("cpu_short", vec![Runtime::Native, Runtime::Bash], 60.0, 0),
        ("cpu_long", vec![Runtime::Docker], 900.0, 0),
        ("gpu", vec![Runtime::Docker, Runtime::Native, Runtime::Bash], 600.0, 1),
        ("gpu_slurm", vec![Runtime::Slurm], 3600.0, 1),
    ] {
        let class = class(name);
        assert_eq!((&class.runtimes, class.timeout_s, class.gpus), (&runtimes, timeout_s, gpus), "{name}");
    }
    let offered: Vec<&str> = config.offered_classes().map(|(name, _)| name.as_str()).collect();
    assert_eq!(offered, ["cpu_long", "cpu_short", "gpu"], "nobody has the runtime of gpu_slurm yet");
}

#[test]
fn the_engine_is_found_by_its_own_variable_first() {
    let file = file("[docker]\nhost = \"unix:///file.sock\"\n");
    let both = [("WINDLASS__DOCKER__HOST", "unix:///ours.sock"), ("DOCKER_HOST", "unix:///theirs.sock")];
    for (vars, host, origin) in [
        (&both[..], "unix:///theirs.sock", Origin::Environment("DOCKER_HOST".to_owned())),
        (&both[..1], "unix:///ours.sock", Origin::Environment("WINDLASS__DOCKER__HOST".to_owned())),
        (&[("DOCKER_HOST", "")], "unix:///file.sock", Origin::File(file.path().display().to_string())),
    ] {
        let config = load(Some(file.path()), env(vars)).expect("valid");
        assert_eq!((config.docker.host.as_str(), config.origins.of("docker.host")), (host, origin));
    }
    for host in ["tcp://127.0.0.1:2375", "ssh://me@there", "unix://relative.sock", "/var/run/docker.sock"] {
        let found = mistakes("", &[("DOCKER_HOST", host)]);
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(found[0].starts_with(&format!("docker.host = {host:?}: give a socket of this machine")), "{found:#?}");
        assert!(found[0].ends_with("(environment DOCKER_HOST)"), "{found:#?}");
    }
}

fn first_class_alone(mut config: toml::Value) -> toml::Value {
    config["classes"].as_table_mut().expect("a table").retain(|name, _| name == "cpu_short");
    config
}

fn keys(value: &toml::Value) -> Vec<String> {
    let toml::Value::Table(table) = value else { return Vec::new() };
    let mut all: Vec<String> = Vec::new();
    for (key, value) in table {
        all.push(key.clone());
        all.extend(keys(value).into_iter().map(|inner| format!("{key}.{inner}")));
    }
    all.sort();
    all
}

#[test]
fn environment_beats_file_beats_default() {
    let file = file("[bus]\nserver = \"nats://file:4222\"\nprefix = \"acme\"\n[classes.cpu_short]\ntimeout_s = 5\n");
    let vars = env(&[
        ("WINDLASS__BUS__SERVER", "nats://env:4222"),
        ("WINDLASS__CLASSES__CPU_SHORT__MAX_TIMEOUT_S", "90"),
        ("WINDLASS__CLASSES__CPU_SHORT__RUNTIMES", "[\"bash\"]"),
        ("WINDLASS__CLASSES__CPU_SHORT__BACKOFF__INITIAL_MS", "7"),
        ("WINDLASS__WORKER__ID", "007"),
        ("WINDLASS__CAPACITY__MEMORY", "2GiB"),
        ("WINDLASS__CGROUP__ALLOW_UNLIMITED", "true"),
        ("WINDLASS_PREFIX", "not a key of the file"),
    ]);
    let config = load(Some(file.path()), vars).expect("valid");
    assert_eq!(config.bus.server, "nats://env:4222");
    assert_eq!(config.bus.prefix.as_str(), "acme");
    let class = &config.classes[&ClassName::new("cpu_short").expect("token")];
    assert_eq!((class.timeout_s, class.max_timeout_s, class.backoff.initial_ms), (5.0, 90.0, 7));
    assert_eq!(class.runtimes, vec![Runtime::Bash]);
    assert_eq!(class.backoff.max_ms, 60_000, "keys beside the one that was set keep their defaults");
    assert_eq!(config.worker.id, "007", "what is not a TOML number is text");
    assert_eq!(config.capacity.memory, ByteSize::mib(2048));
    assert!(config.cgroup.allow_unlimited);
}

#[test]
fn a_file_that_names_classes_names_all_of_them() {
    let file = file("[classes.batch]\nmax_timeout_s = 100\n[classes.empty]\n");
    let config = load(Some(file.path()), []).expect("valid");
    let names: Vec<&str> = config.classes.keys().map(ClassName::as_str).collect();
    assert_eq!(names, ["batch", "empty"]);
    let batch = &config.classes[&ClassName::new("batch").expect("token")];
    assert_eq!(batch, &Class { max_timeout_s: 100.0, ..Class::default() });
    assert_eq!(config.classes[&ClassName::new("empty").expect("token")], Class::default());
    assert!(mistakes("[classes]\n", &[])[0].starts_with("classes is empty"));
}

#[test]
fn every_mistake_is_named_at_once_with_its_origin() {
    let found = mistakes(
        "nonsense = 1\n[empty]\n[buss]\nserver = \"x\"\n[bus]\nsever = \"x\"\nping_interval_s = \"often\"\n[streams]\nreplicas = 2\n\
         [classes.cpu_short]\ntimout_s = 1\n[classes.\"a.b\"]\nslots = 1\n",
        &[
            ("WINDLASS__LOGS__WINDOW", "0"),
            ("WINDLASS__LOGS__CHUNK", "lots"),
            ("WINDLASS__NOWHERE__KEY", "1"),
            ("WINDLASS__BUS", "x"),
            ("WINDLASS__EVENTS__ENCODING", "xml"),
        ],
    );
    for expected in [
        ("nonsense: not a section", "(FILE)"),
        ("empty: no such section", "(FILE)"),
        ("buss.server", "unknown field `buss`"),
        ("bus.sever", "unknown field `sever`"),
        ("bus.ping_interval_s = \"often\"", "(FILE)"),
        ("streams.replicas = 2: allowed are 1, 3 and 5", "(FILE)"),
        ("classes.cpu_short.timout_s", "unknown field `timout_s`"),
        ("classes.a.b.slots", "not a valid class"),
        ("logs.window = 0: allowed is 1 to 64", "(environment WINDLASS__LOGS__WINDOW)"),
        ("logs.chunk = \"lots\"", "is not a size"),
        ("nowhere.key = \"1\"", "unknown field `nowhere`"),
        ("bus = \"x\"", "(environment WINDLASS__BUS)"),
        ("events.encoding = \"xml\"", "unknown variant"),
    ] {
        let matching = found.iter().filter(|m| m.starts_with(expected.0) && m.contains(expected.1)).count();
        assert_eq!(matching, 1, "{expected:?} in {found:#?}");
    }
    assert_eq!(found.len(), 13, "{found:#?}");
}

#[test]
fn keys_that_contradict_each_other_are_found_in_the_merged_whole() {
    // Neither of the two is wrong alone, and the order in which they are set does not matter.
    let config = file("[streams]\ntasks_max_age_h = 900\nevents_max_age_h = 1000\n");
    assert!(load(Some(config.path()), []).is_ok());
    for (text, key) in [
        ("[streams]\ntasks_max_age_h = 800\n", "streams.tasks_max_age_h = 800"),
        ("[logs]\ncap = \"100KiB\"\n", "logs.cap = 100KiB"),
        ("[classes.cpu_short]\ntimeout_s = 4000\n", "classes.cpu_short.timeout_s = 4000: more than its ceiling"),
        ("[classes.cpu_short]\nmax_memory = \"1MiB\"\n", "classes.cpu_short.memory = 512MiB: more than its ceiling"),
        ("[classes.cpu_short]\nruntimes = [\"docker\"]\nmemory = \"2MiB\"\n", "classes.cpu_short.memory = 2MiB: at least 6MiB"),
        ("[classes.cpu_short]\ngpus = 3\nmax_gpus = 2\n", "classes.cpu_short.gpus = 3: more than its ceiling"),
        ("[classes.cpu_short]\nbackoff = { max_ms = 1 }\n", "classes.cpu_short.backoff.initial_ms = 1000: more than its ceiling"),
    ] {
        let found = mistakes(text, &[]);
        assert_eq!(found.len(), 1, "{text}: {found:#?}");
        assert!(found[0].starts_with(key), "{text}: {found:#?}");
    }
}

#[test]
fn every_range_is_held() {
    for (section, key, value) in [
        ("bus", "server", "\"\""),
        ("bus", "server", "\"a b\""),
        ("bus", "prefix", "\"a.b\""),
        ("bus", "ping_interval_s", "0"),
        ("bus", "request_timeout_s", "nan"),
        ("bus", "request_timeout_s", "inf"),
        ("worker", "id", "\"a.b\""),
        ("worker", "state_dir", "\"\""),
        ("worker", "drain_timeout_s", "-1"),
        ("worker", "shed_delay_s", "0"),
        ("worker", "path", "\"\""),
        ("capacity", "slots", "-1"),
        ("capacity", "cpus", "-0.5"),
        ("capacity", "memory", "\"1KiB\""),
        ("cgroup", "mount", "\"cgroup\""),
        ("cgroup", "parent", "\"../up\""),
        ("lease", "ack_wait_s", "0.5"),
        ("lease", "on_lease_loss", "\"ignore\""),
        ("logs", "chunk", "\"1MiB\""),
        ("logs", "chunk", "1"),
        ("logs", "flush_ms", "0"),
        ("logs", "window", "65"),
        ("logs", "file_max", "1"),
        ("logs", "dir_max", "\"1MiB\""),
        ("streams", "replicas", "4"),
        ("streams", "logs_max_age_h", "0"),
        ("streams", "logs_max", "0"),
        ("streams", "max_ack_pending", "0"),
        ("streams", "max_waiting", "0"),
        ("sweeper", "interval_s", "-1"),
        ("http", "listen", "\"9464\""),
        ("http", "metrics_tenants", "[\"a.b\"]"),
        ("log", "level", "\"a=b=c\""),
        ("log", "format", "\"xml\""),
        ("classes.x", "runtimes", "[]"),
        ("classes.x", "runtimes", "[\"docker\", \"python\"]"),
        ("classes.x", "gpus", "1"),
        ("classes.x", "max_gpus", "2000"),
        ("classes.x", "network", "\"bridge\""),
        ("classes.x", "networks", "[\"none\", \"host\"]"),
        ("classes.x", "networks", "[\"none\", \"container:abc\"]"),
        ("classes.x", "networks", "[\"none\", \"default\"]"),
        ("classes.x", "networks", "[\"none\", \"\"]"),
        ("classes.x", "networks", "[\"none\", \"../x\"]"),
        ("classes.x", "users", "[\"root\"]"),
        ("classes.x", "users", "[\"1:\"]"),
        ("classes.x", "users", "[\"-1\"]"),
        ("docker", "host", "\"tcp://127.0.0.1:2375\""),
        ("docker", "images", "[\"a b\"]"),
        ("docker", "images", "[\"a@sha256:12\"]"),
        ("docker", "credentials", "\"config.json\""),
        ("docker", "request_timeout_s", "0"),
        ("docker", "pull_inactivity_s", "nan"),
        ("docker", "pull_retry", "{ max_attempts = 0, initial_ms = 1, factor = 1.0, max_ms = 1 }"),
        ("docker", "pull_retry", "{ max_attempts = 1, initial_ms = 2, factor = 1.0, max_ms = 1 }"),
        ("docker", "pull_retry", "{ max_attempts = 1, initial_ms = 1, factor = 0.1, max_ms = 1 }"),
        ("docker", "disk_high_percent", "101"),
        ("docker", "tmp", "1"),
        ("tenants.x", "images", "[\"\"]"),
        ("tenants.x", "mounts", "[\"srv\"]"),
        ("tenants.x", "mounts", "[\"/srv/../etc\"]"),
        ("classes.x", "timeout_s", "0"),
        ("classes.x", "grace_s", "-1"),
        ("classes.x", "cpus", "0"),
        ("classes.x", "memory", "1"),
        ("classes.x", "pids", "0"),
        ("classes.x", "max_attempts", "0"),
        ("classes.x", "backoff", "{ factor = 0.5 }"),
    ] {
        let found = mistakes(&format!("[{section}]\n{key} = {value}\n"), &[]);
        assert_eq!(found.len(), 1, "[{section}] {key} = {value}: {found:#?}");
        assert!(found[0].starts_with(&format!("{section}.{key}")), "{found:#?}");
        assert!(found[0].ends_with("(FILE)"), "{found:#?}");
    }
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let error = load(Some(std::path::Path::new("/no/such/file.toml")), []).expect_err("no file");
    assert!(error.to_string().contains("/no/such/file.toml"), "{error}");
    let broken = file("[bus\n");
    assert!(matches!(load(Some(broken.path()), []), Err(ConfigError::Syntax { .. })));
}

#[test]
fn every_key_knows_who_set_it() {
    let file = file("[bus]\nprefix = \"acme\"\n[classes.a]\n[classes.b]\nbackoff = { factor = 3.0 }\n");
    let vars = env(&[("WINDLASS__BUS__SERVER", "nats://env:4222"), ("WINDLASS__CLASSES__B__BACKOFF__MAX_MS", "9000")]);
    let config = load(Some(file.path()), vars).expect("valid");
    let path = Origin::File(file.path().display().to_string());
    for (key, origin) in [
        ("bus.prefix", path.clone()),
        ("bus.server", Origin::Environment("WINDLASS__BUS__SERVER".to_owned())),
        ("bus.creds", Origin::Default),
        ("classes.a.cpus", Origin::Default),
        ("classes.b.backoff.factor", path),
        ("classes.b.backoff.initial_ms", Origin::Default),
        ("classes.b.backoff.max_ms", Origin::Environment("WINDLASS__CLASSES__B__BACKOFF__MAX_MS".to_owned())),
    ] {
        assert_eq!(config.origins.of(key), origin, "{key}");
    }
    assert!(config.origins.sets("classes.b.backoff") && !config.origins.sets("classes.b.cpus") && !config.origins.sets("classes.a.cpus"));
}

#[test]
fn passwords_in_urls_are_not_shown() {
    for (server, shown) in [
        ("nats://127.0.0.1:4222", "nats://127.0.0.1:4222"),
        ("nats://ann:hunter2@a:4222, tls://b", "nats://ann:***@a:4222, tls://b"),
        ("tls://token@a,nats://ann:hunt@er2@b", "tls://***@a,nats://ann:***@b"),
        ("ann:hunter2@a", "ann:***@a"),
    ] {
        let bus = Bus { server: server.to_owned(), ..load(None, []).expect("valid").bus };
        assert_eq!(bus.shown_server(), shown);
    }
}
