//! What is shipped besides the binary, judged by the programs that will read it: systemd, Docker Compose, nats-server, make.
//!
//! That the image and the package do what they should is `make image-test` and `make deb-test`; they build for minutes.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

use serde_json::Value;
use windlass::config;

use crate::harness::Server;
use crate::harness::server::{free_port, skip};

const TOP: &str = env!("CARGO_MANIFEST_DIR");
const EXE: &str = env!("CARGO_BIN_EXE_windlass");
const UNIT: &str = "deploy/systemd/windlass-worker.service";

fn file(path: &str) -> String {
    fs::read_to_string(Path::new(TOP).join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// `make TARGET` into a directory, with the binary under test.
fn make(target: &str, root: &Path) -> Output {
    let mut make = Command::new("make");
    // Not what a `make` above this test says.
    make.env_remove("MAKEFLAGS").env_remove("MAKELEVEL").env_remove("DESTDIR").current_dir(TOP).stdin(Stdio::null());
    make.args(["--silent", target, &format!("BINARY={EXE}"), &format!("PREFIX={}/usr", root.display())]);
    make.arg(format!("SYSCONFDIR={}/etc", root.display()));
    make.output().expect("make")
}

fn installed() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let output = make("install", root.path());
    assert!(output.status.success(), "{}", said(&output));
    root
}

/// Every file below, by its path from there.
fn files(root: &Path) -> BTreeSet<String> {
    let (mut found, mut open) = (BTreeSet::new(), vec![root.to_path_buf()]);
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            if entry.path().is_dir() {
                open.push(entry.path());
            } else {
                found.insert(entry.path().strip_prefix(root).unwrap().display().to_string());
            }
        }
    }
    found
}

fn has_verb(verb: &str) -> bool {
    Command::new(EXE).args(["help", verb]).stdout(Stdio::null()).stderr(Stdio::null()).status().expect("windlass").success()
}

#[test]
fn make_install_puts_everything_in_its_place_and_uninstall_leaves_the_configuration() {
    let root = installed();
    let found = files(root.path());
    let mut expected = vec!["usr/bin/windlass", "usr/lib/systemd/system/windlass-worker.service", "etc/windlass/worker.toml"];
    expected.extend(["usr/share/doc/windlass/operating.md", "usr/share/doc/windlass/README.md", "usr/share/doc/windlass/worker.toml"]);
    if has_verb("man") {
        expected.extend(["usr/share/man/man1/windlass.1", "usr/share/man/man1/windlass-worker.1"]);
    }
    if has_verb("completions") {
        expected.extend(["usr/share/bash-completion/completions/windlass", "usr/share/zsh/vendor-completions/_windlass"]);
        expected.push("usr/share/fish/vendor_completions.d/windlass.fish");
    }
    for path in expected {
        assert!(found.contains(path), "{path} is missing in {found:#?}");
    }
    let version = Command::new(root.path().join("usr/bin/windlass")).arg("--version").output().unwrap();
    assert!(said(&version).contains(env!("CARGO_PKG_VERSION")), "{version:?}");

    // What an operator wrote stays, whatever is installed over it or removed.
    let config = root.path().join("etc/windlass/worker.toml");
    fs::write(&config, "[worker]\nid = \"mine\"\n").unwrap();
    let again = make("install", root.path());
    assert!(again.status.success() && said(&again).contains("is kept"), "{}", said(&again));
    let removal = make("uninstall", root.path());
    assert!(removal.status.success(), "{}", said(&removal));
    assert_eq!(files(root.path()), BTreeSet::from(["etc/windlass/worker.toml".to_owned()]));
    assert_eq!(fs::read_to_string(&config).unwrap(), "[worker]\nid = \"mine\"\n");
}

#[test]
fn systemd_takes_the_unit_as_it_is_installed() {
    if !Command::new("systemd-analyze").arg("--version").output().is_ok_and(|o| o.status.success()) {
        return skip("no systemd-analyze (Debian: apt-get install systemd)");
    }
    let root = installed();
    let unit = root.path().join("usr/lib/systemd/system/windlass-worker.service");
    let verified = Command::new("systemd-analyze").arg("verify").arg(&unit).output().unwrap();
    assert!(verified.status.success() && !said(&verified).contains("windlass"), "{}", said(&verified));
    // It starts processes as other users, in name spaces of their own: less than this is not to be had, and more is a setting lost.
    let secured = Command::new("systemd-analyze").args(["security", "--offline=true", "--threshold=62"]).arg(&unit).output().unwrap();
    assert!(secured.status.success(), "{}", said(&secured));
}

/// Values of a key of the unit.
fn setting(unit: &str, key: &str) -> Vec<String> {
    unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).map(str::to_owned).collect()
}

#[test]
fn the_unit_gives_a_worker_its_cgroups_and_the_time_to_drain() {
    let (unit, config) = (file(UNIT), config::load_text("").unwrap());
    let delegated = setting(&unit, "Delegate").join(" ");
    for controller in ["cpu", "memory", "pids", "io"] {
        assert!(delegated.split(' ').any(|c| c == controller), "{controller} is not delegated: {delegated}");
    }
    let longest_grace = config.classes.values().map(|class| class.max_grace_s).fold(0.0, f64::max);
    let needed = config.worker.drain_timeout_s + longest_grace;
    let given: f64 = setting(&unit, "TimeoutStopSec").join("").parse().unwrap();
    assert!(given > needed, "systemd kills after {given} s, a worker may need {needed} s");
    assert_eq!(setting(&unit, "KillMode"), ["mixed"], "SIGTERM is the worker's, not its tasks'");
    assert_eq!(setting(&unit, "OOMPolicy"), ["continue"], "a task that runs out of memory does not stop the worker");
    let state = setting(&unit, "StateDirectory").join("");
    assert_eq!(config.worker.state_dir, Path::new("/var/lib").join(state), "the state directory is the configuration's");
}

/// Docker Compose 2: `WINDLASS_TEST_COMPOSE`, else what `deploy/fetch-compose.sh` fetched, else the one on PATH.
fn compose() -> Option<PathBuf> {
    let fetched = Path::new(TOP).join(".windlass/tools/docker-compose");
    let asked = std::env::var_os("WINDLASS_TEST_COMPOSE").map(PathBuf::from);
    let plugins = ["/usr/libexec/docker/cli-plugins/docker-compose", "/usr/lib/docker/cli-plugins/docker-compose"];
    let mut candidates = asked.into_iter().chain([fetched]).chain(plugins.map(PathBuf::from)).chain(["docker-compose".into()]);
    let found = candidates.find(|path| {
        let version = Command::new(path).args(["version", "--short"]).stdin(Stdio::null()).output();
        version.is_ok_and(|o| o.status.success() && !said(&o).trim_start_matches('v').starts_with("1."))
    });
    if found.is_none() {
        skip("no Docker Compose 2: deploy/fetch-compose.sh fetches one");
    }
    found
}

/// What Compose makes of the files.
fn composed(compose: &Path, files: &[&str]) -> Value {
    let mut command = Command::new(compose);
    for name in ["NATS_IMAGE", "NATS_PORT", "WINDLASS_IMAGE", "COMPOSE_FILE", "COMPOSE_PROJECT_NAME"] {
        command.env_remove(name);
    }
    command.current_dir(TOP).stdin(Stdio::null()).args(files.iter().flat_map(|file| ["-f", file]));
    let output = command.args(["config", "--format", "json"]).output().expect("Compose");
    assert!(output.status.success() && output.stderr.is_empty(), "{}", said(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn compose_reads_the_file_and_sees_what_it_promises() {
    let Some(compose) = compose() else { return };
    let services = &composed(&compose, &["docker-compose.yml"])["services"];
    let (nats, init, worker) = (&services["nats"], &services["init"], &services["worker"]);
    assert_eq!(worker["deploy"]["replicas"], 2);
    assert_eq!((&worker["privileged"], &worker["cgroup"]), (&true.into(), &"private".into()));
    assert_eq!(worker["depends_on"]["init"]["condition"], "service_completed_successfully");
    assert_eq!(init["depends_on"]["nats"]["condition"], "service_healthy");
    assert!(nats["healthcheck"]["test"].is_array(), "{nats}");
    assert_eq!(nats["ports"][0]["host_ip"], "127.0.0.1", "without users it is not for the network");
    let mounts: Vec<(&str, &str)> =
        nats["volumes"].as_array().unwrap().iter().map(|v| (v["type"].as_str().unwrap(), v["target"].as_str().unwrap())).collect();
    assert_eq!(mounts, [("bind", "/etc/nats/nats.conf"), ("volume", "/data")]);
    let image = nats["image"].as_str().unwrap();
    let version: Vec<u32> = image.trim_start_matches("nats:").split(['.', '-']).map_while(|n| n.parse().ok()).collect();
    assert!(version >= vec![2, 12, 3], "{image} is older than what workers need");

    let worker = &composed(&compose, &["docker-compose.yml", "deploy/compose-unprivileged.yml"])["services"]["worker"];
    assert_ne!(worker["privileged"], true);
    assert_eq!(worker["user"], "windlass");
    let environment = &worker["environment"];
    assert_eq!(environment["NATS_URL"], "nats://nats:4222", "what the other file says still holds");
    assert!(worker["healthcheck"]["test"].to_string().contains(&environment["WINDLASS__HTTP__LISTEN"].as_str().unwrap()[10..]), "{worker}");
}

#[test]
fn a_nats_server_takes_its_configuration_and_syncs_every_write() {
    let monitoring = AtomicU16::new(0);
    let shipped = file("config/nats.conf");
    let server = Server::with_config(|port, dir| {
        monitoring.store(free_port(), Ordering::Relaxed);
        let mut text = shipped.clone();
        for (from, to) in [
            ("0.0.0.0:4222", format!("127.0.0.1:{port}")),
            ("127.0.0.1:8222", format!("127.0.0.1:{}", monitoring.load(Ordering::Relaxed))),
            ("\"/data\"", format!("{:?}", dir.join("data"))),
        ] {
            assert!(text.contains(from), "{from} is not in config/nats.conf");
            text = text.replace(from, &to);
        }
        text
    });
    if server.is_none() {
        return;
    }
    let mut stream = TcpStream::connect(("127.0.0.1", monitoring.into_inner())).expect("its monitoring port");
    stream.write_all(b"GET /jsz?config=true HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").expect("an answer over HTTP");
    let found: Value = serde_json::from_str(body).unwrap();
    assert_eq!(found["config"]["sync_always"], true, "{body}");
}

#[test]
fn the_image_is_built_of_files_that_are_there_and_sent() {
    let dockerfile = file("deploy/Dockerfile");
    let sent: BTreeSet<String> = file(".dockerignore").lines().filter_map(|line| line.strip_prefix('!')).map(str::to_owned).collect();
    let copies = dockerfile.lines().filter_map(|line| line.strip_prefix("COPY ")).filter(|line| !line.starts_with("--from"));
    for copy in copies {
        let mut sources: Vec<&str> = copy.split_whitespace().collect();
        sources.pop();
        for source in sources {
            // A pattern may match nothing; what it matches must be sent, too.
            let plain = source.trim_end_matches('*');
            assert!(source.ends_with('*') || Path::new(TOP).join(source).exists(), "{source} is not there");
            assert!(sent.contains(plain), "{plain} is not sent to the builder: {sent:?}");
        }
    }
    // What the code takes in while it is built, from outside of src.
    assert!(sent.contains("config") && dockerfile.contains("COPY config config"), "config/worker.toml is a part of the binary");
    assert!(sent.contains("tests/golden") && dockerfile.contains("COPY tests/golden tests/golden"), "samples are a part of the binary");
    let rust = file("Cargo.toml").lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap().trim_matches('"').to_owned();
    assert!(dockerfile.contains(&format!("RUST_IMAGE=rust:{rust}-")), "the image is built with the oldest Rust that is promised");
}
