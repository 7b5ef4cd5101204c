//! `windlass services up|down|status` at a real engine.

use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::file;
use crate::harness::docker::IMAGE;
use crate::harness::{Engine, Fleet, PATIENCE};

/// Exit code, JSON lines and what stands on stderr.
async fn services(fleet: &Fleet, file: &Path, args: &[&str]) -> (i32, Vec<Value>, String) {
    let mut command = fleet.cli(["services"].iter().chain(args));
    command.args(["-o", "json"]).env("WINDLASS_SERVICES_CONFIG", file);
    let output = command.output().await.expect("windlass runs");
    let lines = String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    (output.status.code().unwrap_or(-1), lines, String::from_utf8_lossy(&output.stderr).into_owned())
}

fn states(lines: &[Value]) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    lines.iter().map(|line| (text(&line["service"]), text(&line["state"]))).collect()
}

fn is(lines: &[Value], wanted: &[(&str, &str)]) -> bool {
    states(lines) == wanted.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect::<Vec<_>>()
}

async fn fleet() -> Option<(Fleet, Arc<Engine>)> {
    Some((Fleet::docker(&[]).await?, Engine::shared()?))
}

fn config(environment: &str, greeting: &str) -> String {
    format!(
        r#"
environment = "{environment}"
[services.front]
image = "{IMAGE}"
command = ["bash", "-c", "exec 3<>/dev/tcp/back/80 && head -n1 <&3 && sleep 1000"]
depends_on = ["back"]
[services.back]
image = "{IMAGE}"
command = ["bash", "-c", "exec nc -ll -p 80 -e echo \"$GREETING\""]
env = {{ GREETING = "{greeting}" }}
secrets = {{ TOKEN = "env:STACK_TOKEN" }}
volumes = ["data:/data"]
ports = ["18080:80"]
health = {{ command = ["bash", "-c", "netstat -ltn | grep -q :80"], interval_s = 0.05, retries = 600 }}
"#
    )
}

#[tokio::test]
async fn long_lived_services_come_up_stay_and_go() {
    let Some((fleet, engine)) = fleet().await else { return };
    let environment = fleet.prefix.to_lowercase();
    let path = file(&fleet, "services.toml", &config(&environment, "hello").replace("secrets = { TOKEN = \"env:STACK_TOKEN\" }\n", ""));
    let (code, lines, error) = services(&fleet, &path, &["status"]).await;
    assert!(code == 1 && is(&lines, &[("back", "missing"), ("front", "missing")]), "{code} {lines:?} {error}");
    let (code, up, error) = services(&fleet, &path, &["up"]).await;
    assert!(code == 0 && is(&up, &[("back", "ready"), ("front", "ready")]), "{code} {up:?} {error}");
    // From outside, at the port of the engine's machine that the file names.
    let mut port = std::net::TcpStream::connect(("127.0.0.1", engine.expose(18080))).expect("a way to the port");
    port.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    let mut said = String::new();
    port.read_to_string(&mut said).expect("what the service says");
    assert_eq!(said.trim(), "hello");
    // Again: nothing changes.
    let (code, again, error) = services(&fleet, &path, &["up"]).await;
    assert!(code == 0 && again == up, "{code} {again:?} {error}");
    let label = format!("windlass.environment={environment}");
    let containers = engine.containers(&[&label, "windlass.role=stack"]);
    assert_eq!(containers.len(), 2);
    assert!(containers.iter().all(|c| !c.labels.contains_key("windlass.instance")), "a worker would remove them: {containers:?}");
    let id = |lines: &[Value], at: usize| lines[at]["container_id"].clone();
    // One that changed is made anew, the other one stays.
    file(&fleet, "services.toml", &std::fs::read_to_string(&path).expect("the file").replace("hello", "good morning"));
    let (code, lines, _) = services(&fleet, &path, &["status"]).await;
    assert!(code == 1 && is(&lines, &[("back", "outdated"), ("front", "ready")]), "{code} {lines:?}");
    let (code, changed, error) = services(&fleet, &path, &["up"]).await;
    assert!(code == 0 && id(&changed, 0) != id(&up, 0) && id(&changed, 1) == id(&up, 1), "{code} {changed:?} {error}");
    // One that was stopped is started again.
    engine.does("POST", &format!("/containers/{}/stop?t=1", id(&changed, 1).as_str().expect("an id")), &[204]);
    let (code, lines, _) = services(&fleet, &path, &["status"]).await;
    assert!(code == 1 && is(&lines, &[("back", "ready"), ("front", "stopped")]), "{code} {lines:?}");
    let (code, started, error) = services(&fleet, &path, &["up"]).await;
    assert!(code == 0 && started == changed, "{code} {started:?} {error}");
    let (code, removed, error) = services(&fleet, &path, &["down", "--volumes"]).await;
    assert_eq!(code, 0, "{error}");
    assert_eq!(removed[0]["services"], serde_json::json!(["back", "front"]));
    assert_eq!(removed[0]["volumes"].as_array().map(Vec::len), Some(1));
    assert!(engine.containers(&[&label]).is_empty());
    let networks = engine.does("GET", "/networks", &[200]).text();
    assert!(!networks.contains(&format!("windlass-{environment}")), "{networks}");
    fleet.finish().await;
}

#[tokio::test]
async fn mistakes_and_services_that_are_not_ready_are_told() {
    let Some((fleet, engine)) = fleet().await else { return };
    let path = file(&fleet, "wrong.toml", "[services.a]\nimage = \"UPPER\"\ncpus = 0\n");
    let (code, _, error) = services(&fleet, &path, &["up"]).await;
    assert!(code == 2 && error.contains("services.a.image") && error.contains("services.a.cpus"), "{code} {error}");
    let environment = fleet.prefix.to_lowercase();
    let secret = file(&fleet, "secret.toml", &config(&environment, "x"));
    let (code, _, error) = services(&fleet, &secret, &["up"]).await;
    assert!(code == 2 && error.contains("env:STACK_TOKEN"), "{code} {error}");
    let ill = format!(
        "environment = \"{environment}\"\n[services.ill]\nimage = \"{IMAGE}\"\ncommand = [\"bash\", \"-c\", \"echo I feel faint; sleep 1000\"]\n\
         health = {{ command = [\"bash\", \"-c\", \"echo no pulse; exit 3\"], interval_s = 0.05, retries = 3 }}\n"
    );
    let ill = file(&fleet, "ill.toml", &ill);
    let (code, _, error) = services(&fleet, &ill, &["up"]).await;
    assert!(code == 1 && error.contains("no pulse") && error.contains("I feel faint"), "{code} {error}");
    let (code, lines, _) = services(&fleet, &ill, &["status"]).await;
    assert!(code == 1 && is(&lines, &[("ill", "not_ready")]), "{code} {lines:?}");
    let (code, _, error) = services(&fleet, &ill, &["down"]).await;
    assert!(code == 0 && engine.containers(&[&format!("windlass.environment={environment}")]).is_empty(), "{error}");
    let mut away = fleet.cli(["services", "status"]);
    away.env("WINDLASS__DOCKER__HOST", "unix:///no/such/socket").env("WINDLASS_SERVICES_CONFIG", &ill);
    assert_eq!(away.output().await.expect("windlass runs").status.code(), Some(6));
    fleet.finish().await;
}

/// How many of the machine have that command line.
fn processes(command_line: &str) -> usize {
    let all = std::fs::read_dir("/proc").expect("proc").flatten();
    all.filter(|entry| std::fs::read(entry.path().join("cmdline")).is_ok_and(|found| found == command_line.as_bytes())).count()
}

/// It cannot be ended from outside, so that a process would be left by each look.
#[tokio::test]
async fn a_check_that_hangs_runs_once() {
    let Some((fleet, _engine)) = fleet().await else { return };
    let environment = fleet.prefix.to_lowercase();
    // No other process of the machine has this one's arguments.
    let seconds = (100_000 + std::process::id()).to_string();
    let hangs = format!(
        "environment = \"{environment}\"\n[services.stuck]\nimage = \"{IMAGE}\"\ncommand = [\"sleep\", \"1000\"]\n\
         health = {{ command = [\"sleep\", \"{seconds}\"], interval_s = 0.05, timeout_s = 1.0, retries = 5 }}\n"
    );
    let hangs = file(&fleet, "hangs.toml", &hangs);
    let (code, _, error) = services(&fleet, &hangs, &["up"]).await;
    assert!(code == 1 && error.contains("has not ended yet"), "{code} {error}");
    let (code, lines, _) = services(&fleet, &hangs, &["status"]).await;
    assert!(code == 1 && is(&lines, &[("stuck", "not_ready")]), "{code} {lines:?}");
    assert_eq!(processes(&format!("sleep\0{seconds}\0")), 1);
    let (code, _, error) = services(&fleet, &hangs, &["down"]).await;
    assert_eq!(code, 0, "{error}");
    fleet.finish().await;
}

/// Both names may have what stands between them.
#[tokio::test]
async fn environments_whose_names_are_alike_share_nothing() {
    let Some((fleet, engine)) = fleet().await else { return };
    let one = fleet.prefix.to_lowercase();
    let other = format!("{one}-b");
    let text = |environment: &str, volume: &str, service: &str| {
        format!(
            "environment = \"{environment}\"\n[services.{service}]\nimage = \"{IMAGE}\"\ncommand = [\"sleep\", \"1000\"]\n\
             volumes = [\"{volume}:/data\"]\n"
        )
    };
    let first = file(&fleet, "one.toml", &text(&one, "b-data", "b-db"));
    let second = file(&fleet, "other.toml", &text(&other, "data", "db"));
    for path in [&first, &second] {
        let (code, lines, error) = services(&fleet, path, &["up"]).await;
        assert_eq!(code, 0, "{lines:?} {error}");
    }
    let mut volumes = Vec::new();
    for path in [&first, &second] {
        let (code, removed, error) = services(&fleet, path, &["down", "--volumes"]).await;
        assert_eq!((code, removed[0]["volumes"].as_array().map(Vec::len)), (0, Some(1)), "{removed:?} {error}");
        volumes.push(removed[0]["volumes"][0].clone());
    }
    assert_ne!(volumes[0], volumes[1]);
    assert!(engine.containers(&[&format!("windlass.environment={other}")]).is_empty());
    fleet.finish().await;
}
