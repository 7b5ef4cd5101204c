//! `plan` and `submit --dry-run` say what a worker then does: limits, argument vector, environment, user; or why it does not.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use windlass::task::log_chunk::LogStream;
use windlass::task::{EventKind, Reason};

use crate::harness::worker::windlass as command;
use crate::harness::{Fleet, Job, PATIENCE, watchdog};

/// What a task says of itself: its arguments, its environment, where it is and who it is.
const CONFESS: &str = "cat /proc/$$/cmdline /proc/$$/environ; pwd -P; id -u";

async fn run(mut command: Command) -> Output {
    tokio::time::timeout(PATIENCE, command.output()).await.expect("the verb ends").expect("windlass starts")
}

fn json_lines(output: &Output) -> Vec<Value> {
    String::from_utf8_lossy(&output.stdout).lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e} in {l:?}"))).collect()
}

/// The one line that `plan` says of a job, and its exit code.
async fn planned(fleet: &Fleet, job: &Job) -> (Value, i32) {
    let file = fleet.dir.join(format!("{}.json", job.task_id()));
    std::fs::write(&file, job.encode()).unwrap();
    let output = run(fleet.cli(["plan", "-o", "json", file.to_str().unwrap()])).await;
    let lines = json_lines(&output);
    assert_eq!(lines.len(), 1, "{output:?}");
    (lines[0].clone(), output.status.code().unwrap())
}

/// With the names in the body, so that `plan` has nothing to fill in and judges the very bytes that are published.
fn named(job: Job) -> Job {
    let (tenant, class) = (job.tenant.clone(), job.class.clone());
    job.set("/tenant", tenant).set("/class", class)
}

struct Confession {
    argv: Vec<String>,
    env: BTreeMap<String, String>,
    cwd: String,
    uid: u64,
}

fn confession(output: &[u8], arguments: usize) -> Confession {
    let text = String::from_utf8_lossy(output).into_owned();
    let mut pieces: Vec<String> = text.split('\0').map(str::to_owned).collect();
    let rest = pieces.pop().expect("cwd and uid");
    let env = pieces.split_off(arguments);
    let env = env.iter().map(|v| v.split_once('=').unwrap_or_else(|| panic!("{v:?} in {text:?}"))).map(|(n, v)| (n.into(), v.into()));
    let (cwd, uid) = rest.trim_end().split_once('\n').unwrap_or_else(|| panic!("{rest:?}"));
    Confession { env: env.collect(), argv: pieces, cwd: cwd.to_owned(), uid: uid.parse().expect("a number") }
}

fn accepted() -> Vec<(&'static str, Job)> {
    let native = |script: &str| Job::argv(["sh", "-c", script, "sh", "one \"two\"", ""]);
    let mut bare = native(CONFESS).set("/execution/env", json!({"PATH": "/usr/bin:/bin", "OWN": "x"}));
    bare.class = "bare".to_owned();
    let secrets = json!([{"name": "ONE", "ref": "env:PLAN_ONE"}, {"name": "TWO", "ref": "env:PLAN_TWO", "as": "file"}]);
    vec![
        ("what the defaults give", native(CONFESS)),
        ("a script", Job::bash(CONFESS).set("/execution/args", json!(["$HOME", "-x"])).set("/execution/stdin", "hello")),
        ("a script too long for an argument", Job::bash(format!("{CONFESS}\n#{}", "x".repeat(70_000)))),
        (
            "everything asked for",
            native(CONFESS)
                .memory("64MiB")
                .timeout(20.0)
                .grace(0.5)
                .set("/execution/resources/cpus", 0.25)
                .set("/execution/resources/pids", 32)
                .set("/execution/env", json!({"HOME": "/tmp", "WINDLASS_TENANT": "somebody else"}))
                .set("/execution/working_dir", "/usr")
                .set("/retry", json!({"max_attempts": 2, "on": ["exit_nonzero"]})),
        ),
        ("a class of its own, without a sandbox", bare),
        ("secrets", Job::bash(CONFESS).set("/secrets", secrets)),
    ]
}

fn settings() -> Vec<(&'static str, &'static str)> {
    vec![
        ("CLASSES__CPU_SHORT__PIDS", "77"),
        ("CLASSES__BARE__SANDBOX", "none"),
        ("CLASSES__BARE__CPUS", "0.5"),
        ("TENANTS__ACME__SECRETS", "[\"env:PLAN_*\"]"),
        ("TENANTS__ACME__UID", "54321"),
    ]
}

#[tokio::test]
async fn what_plan_says_is_what_a_worker_does() {
    let Some(fleet) = Fleet::start(&settings()).await else { return };
    let place = format!("/dev/shm/windlass-test-{}", fleet.prefix);
    fleet.worker(&[("WORKER__SECRETS_DIR", &place), ("env:PLAN_ONE", "first canary"), ("env:PLAN_TWO", "second canary")]);
    for (what, job) in accepted() {
        let job = named(job);
        let (told, code) = planned(&fleet, &job).await;
        assert_eq!((code, &told["accepted"], &told["refusal"]), (0, &json!(true), &Value::Null), "{what}: {told}");
        let plan = &told["plan"];
        let task = fleet.submit(&job).await;
        let end = fleet.end(&task).await;
        assert_eq!(end.reason, Some(Reason::Ok), "{what}: {:?} {:?}", end.error, end.stderr_tail);
        let started = fleet.event(&task, EventKind::TaskStarted).await;
        same_limits(what, plan, &started);
        let argv = plan["argv"].as_array().unwrap();
        let confessed = confession(&fleet.output(&task, &end, LogStream::Stdout).await, argv.len());
        same_process(what, plan, &confessed);
        same_environment(what, plan, &confessed, &started.run.as_ref().unwrap().sandbox_missing);
        let separate = rustix::process::geteuid().is_root() && plan["sandbox"]["value"] != "none";
        if separate && !started.run.unwrap().sandbox_missing.contains(&"users".to_owned()) {
            assert_eq!(plan["user"], json!({"value": {"uid": confessed.uid, "gid": confessed.uid}, "from": "tenant"}), "{what}");
        }
    }
    fleet.finish().await;
    std::fs::remove_dir(place).unwrap();
}

fn same_limits(what: &str, plan: &Value, started: &windlass::task::Event) {
    let run = started.run.as_ref().expect("run");
    let limits = run.limits.as_ref().expect("limits");
    let said = &plan["limits"];
    assert_eq!(said["cpus"]["value"], limits.cpus, "{what}");
    assert_eq!(said["memory_bytes"]["value"], limits.memory_bytes, "{what}");
    assert_eq!(said["pids"]["value"], limits.pids, "{what}");
    assert_eq!(said["timeout_ms"]["value"], limits.timeout_ms, "{what}");
    assert_eq!(said["io"]["value"], serde_json::to_value(limits.io).unwrap(), "{what}");
    assert_eq!(plan["sandbox"]["value"], serde_json::to_value(run.sandbox).unwrap(), "{what}");
    assert_eq!(plan["runtime"], serde_json::to_value(run.runtime).unwrap(), "{what}");
    assert_eq!(plan["max_attempts"]["value"], started.task.max_attempts, "{what}");
}

/// Argument vector and directory; what `plan` cannot know is where the task's directory will be.
fn same_process(what: &str, plan: &Value, confessed: &Confession) {
    let workdir = Path::new(&confessed.env["WINDLASS_WORKDIR"]);
    let attempt = workdir.parent().unwrap().display().to_string();
    let known = |text: &Value| {
        let text = text.as_str().unwrap().replace("$WINDLASS_WORKDIR/..", &attempt);
        text.replace("$WINDLASS_WORKDIR", &workdir.display().to_string())
    };
    let argv: Vec<String> = plan["argv"].as_array().unwrap().iter().map(known).collect();
    assert_eq!(argv, confessed.argv, "{what}");
    assert_eq!(known(&plan["cwd"]), confessed.cwd, "{what}");
}

fn same_environment(what: &str, plan: &Value, confessed: &Confession, missing: &[String]) {
    let said: BTreeSet<&str> = plan["environment"].as_array().unwrap().iter().map(|v| v["name"].as_str().unwrap()).collect();
    let mut real: BTreeSet<&str> = confessed.env.keys().map(String::as_str).collect();
    // A machine that cannot give a private /tmp gives a directory in its place.
    if !missing.is_empty() && !said.contains("TMPDIR") {
        real.remove("TMPDIR");
    }
    assert_eq!(said, real, "{what}");
    assert!(!plan.to_string().contains("canary"), "{what}: a value of a secret");
}

#[tokio::test]
async fn every_value_says_who_decided_it() {
    let Some(fleet) = Fleet::start(&settings()).await else { return };
    let job = named(Job::argv(["true"]).memory("64MiB").set("/secrets", json!([{"name": "ONE", "ref": "env:PLAN_ONE"}])));
    let (told, _) = planned(&fleet, &job).await;
    let plan = &told["plan"];
    for (pointer, from) in [
        ("/limits/memory_bytes", "assignment"),
        ("/limits/pids", "class"),
        ("/limits/cpus", "default"),
        ("/limits/timeout_ms", "default"),
        ("/grace_ms", "default"),
        ("/user", "tenant"),
        ("/sandbox", "default"),
        ("/max_attempts", "default"),
        ("/backoff", "default"),
    ] {
        assert_eq!(plan.pointer(pointer).unwrap()["from"], from, "{pointer} in {plan}");
    }
    assert_eq!(plan["secrets"][0]["grant"], "env:PLAN_*");
    let file = fleet.dir.join("shown.json");
    std::fs::write(&file, job.encode()).unwrap();
    let output = run(fleet.cli(["plan", file.to_str().unwrap()])).await;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let row = |key: &str| {
        let line = text.lines().find(|l| l.starts_with(key)).unwrap_or_else(|| panic!("no {key} in {text}"));
        line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
    };
    assert_eq!((row("pids").as_str(), row("memory").as_str()), ("class cpu_short 77", "assignment 64MiB"), "{text}");
    assert_eq!(row("secret"), "tenant, by env:PLAN_* env:PLAN_ONE in ONE", "{text}");
    fleet.finish_unchecked().await;
}

fn refused() -> Vec<(&'static str, Job)> {
    let job = || Job::argv(["true"]);
    vec![
        ("no program", Job::argv([""; 0])),
        ("a NUL", Job::argv(["echo", "a\0b"])),
        ("no script", job().set("/execution/runtime", "bash")),
        ("an unknown key", job().set("/execution/timout_s", 5)),
        ("a wrong type", job().set("/retry/backoff/factor", "twice")),
        ("a version from the future", job().set("/v", 2)),
        ("a deep context", job().set("/context", (0..40).fold(json!(1), |inner, _| json!([inner])))),
        ("a runtime of a later version", job().set("/execution/runtime", "python")),
        ("a container in a class without", job().set("/execution/runtime", "docker").set("/execution/image", "redis")),
        ("a runtime that its class does not allow", {
            let mut job = job();
            job.class = "bare".to_owned();
            job
        }),
        ("too much memory", job().memory("1TiB")),
        ("too long", job().timeout(1e9)),
        ("no time at all", job().timeout(0.0)),
        ("too many attempts", job().set("/retry/max_attempts", 1000)),
        ("a variable that is none", job().set("/execution/env", json!({"a=b": "c"}))),
        ("out of its directory", job().set("/execution/working_dir", "../..")),
        ("another's secret", job().set("/secrets", json!([{"name": "X", "ref": "env:HOME"}]))),
        ("a deadline of yesterday", job().set("/deadline", "2020-01-01T00:00:00Z")),
        ("artifacts", job().set("/artifacts", json!({"inputs": [{}]}))),
    ]
}

#[tokio::test]
async fn what_plan_refuses_a_worker_refuses_in_the_same_words() {
    let Some(fleet) = Fleet::with_worker(4, &[("CLASSES__BARE__RUNTIMES", "[\"bash\"]")]).await else { return };
    for (what, job) in refused() {
        let job = named(job);
        let (told, code) = planned(&fleet, &job).await;
        assert_eq!((code, &told["accepted"], &told["plan"]), (1, &json!(false), &Value::Null), "{what}: {told}");
        let task = fleet.submit(&job).await;
        let end = fleet.end(&task).await;
        let real = json!({"reason": end.reason, "outcome": end.outcome, "error": end.error, "hint": end.hint});
        assert_eq!(told["refusal"], real, "{what}");
        assert!(end.run.is_none(), "{what}: it was run");
    }
    fleet.finish().await;
}

/// A directory of a test that needs no fleet.
fn place(name: &str) -> PathBuf {
    let dir = watchdog::watchdog().dir().join(name);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// `plan` where there is no server, with a file's bytes on stdin.
async fn plan_of(bytes: &[u8], args: &[&str]) -> Output {
    let mut verb = command();
    verb.args(["plan", "-", "-o", "json", "--server", "nats://127.0.0.1:1"]).args(args);
    verb.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = verb.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // What is refused by its arguments is not read.
    if let Err(error) = stdin.write_all(bytes).await {
        assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe, "{error}");
    }
    drop(stdin);
    tokio::time::timeout(PATIENCE, child.wait_with_output()).await.expect("it ends").unwrap()
}

#[tokio::test]
async fn every_form_of_a_file_is_planned_without_a_server() {
    let one = Job::argv(["true"]).body;
    let two = Job::bash("true").memory("1TiB").body;
    let lines = format!("{one}\n{two}\n");
    let packed = rmp_serde::to_vec_named(&json!([one, two])).unwrap();
    let apart = [rmp_serde::to_vec_named(&one).unwrap(), rmp_serde::to_vec_named(&two).unwrap()].concat();
    for (what, bytes, places) in [
        ("one a line", lines.into_bytes(), [1, 2]),
        ("an array", json!([one, two]).to_string().into_bytes(), [1, 1]),
        ("an array in MessagePack", packed, [1, 2]),
        ("one after the other in MessagePack", apart, [1, 2]),
    ] {
        let output = plan_of(&bytes, &[]).await;
        assert_eq!(output.status.code(), Some(1), "{what}: {output:?}");
        let lines = json_lines(&output);
        let told: Vec<_> = lines.iter().map(|l| (l["line"].as_u64().unwrap(), l["accepted"].as_bool().unwrap())).collect();
        assert_eq!(told, [(places[0], true), (places[1], false)], "{what}");
        assert_eq!((&lines[0]["tenant"], &lines[0]["class"]), (&json!("default"), &json!("cpu_short")), "{what}");
    }
    for (bytes, args, code) in [
        (one.to_string(), vec![], 0),
        (one.to_string(), vec!["--class", "batch"], 1),
        ("hello".to_owned(), vec![], 2),
        (String::new(), vec![], 2),
        (one.to_string(), vec!["--tenant", "a.b"], 2),
    ] {
        let output = plan_of(bytes.as_bytes(), &args).await;
        assert_eq!(output.status.code(), Some(code), "{bytes} {args:?}: {output:?}");
    }
    let unserved = json_lines(&plan_of(one.to_string().as_bytes(), &["--class", "batch"]).await);
    assert_eq!(unserved[0]["refusal"]["reason"], Value::Null, "no worker says anything of it: {unserved:?}");
}

#[tokio::test]
async fn a_dry_run_says_the_same_and_queues_nothing() {
    let Some(fleet) = Fleet::start(&[]).await else { return };
    let file = fleet.dir.join("tasks.json");
    let jobs = [Job::argv(["true"]).body, Job::argv(["true"]).memory("1TiB").body];
    std::fs::write(&file, json!(jobs).to_string()).unwrap();
    let file = file.to_str().unwrap();
    let dry = run(fleet.cli(["submit", "--dry-run", "-o", "json", file])).await;
    let plan = run(fleet.cli(["plan", "-o", "json", file])).await;
    assert_eq!((dry.status.code(), json_lines(&dry)), (Some(1), json_lines(&plan)));
    assert_eq!(json_lines(&dry).len(), 2);
    assert!(fleet.queued().await.is_empty(), "a dry run queues nothing");
    fleet.finish_unchecked().await;
}

#[tokio::test]
async fn what_decides_is_the_configuration_that_is_named() {
    let dir = place("plan-config");
    let config = dir.join("worker.toml");
    std::fs::write(&config, "[classes.cpu_short]\nmax_memory = \"2TiB\"\ncpus = 2\n").unwrap();
    let body = Job::argv(["true"]).memory("1TiB").body.to_string();
    assert_eq!(plan_of(body.as_bytes(), &[]).await.status.code(), Some(1));
    let output = plan_of(body.as_bytes(), &["--config", config.to_str().unwrap()]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let told = json_lines(&output);
    assert_eq!(told[0]["plan"]["limits"]["cpus"], json!({"value": 2.0, "from": "class"}));
    assert_eq!(told[0]["fits"], true);
    std::fs::write(&config, "[capacity]\nmemory = \"64GiB\"\n[classes.cpu_short]\nmax_memory = \"2TiB\"\n").unwrap();
    let output = plan_of(body.as_bytes(), &["--config", config.to_str().unwrap()]).await;
    assert_eq!((output.status.code(), &json_lines(&output)[0]["fits"]), (Some(0), &json!(false)), "no such worker could ever take it");
}

#[tokio::test]
async fn what_plan_says_of_a_container_is_what_a_worker_does() {
    let Some(fleet) = Fleet::docker(&[("CLASSES__CPU_SHORT__PIDS", "77")]).await else { return };
    fleet.worker(&[]);
    let script = "env | cut -d= -f1 | sort -u; echo --; id -u; pwd -P";
    let job = named(Job::container_script(script).memory("64MiB").set("/execution/env", json!({"OWN": "x", "HOME": "/tmp"})));
    let (told, code) = planned(&fleet, &job).await;
    assert_eq!((code, &told["accepted"]), (0, &json!(true)), "{told}");
    let plan = &told["plan"];
    assert_eq!((&plan["argv"], &plan["sandbox"]), (&Value::Null, &Value::Null), "{plan}");
    let task = fleet.submit(&job).await;
    let end = fleet.end(&task).await;
    assert_eq!(end.reason, Some(Reason::Ok), "{:?} {:?}", end.error, end.stderr_tail);
    let started = fleet.event(&task, EventKind::TaskStarted).await;
    same_limits("a container", plan, &started);
    assert_eq!(plan["container"]["image"], json!(started.run.unwrap().image));
    assert_eq!(plan["container"]["network"], json!({"value": "none", "from": "default"}));
    let output = String::from_utf8(fleet.output(&task, &end, LogStream::Stdout).await).unwrap();
    let (names, rest) = output.split_once("--\n").unwrap();
    let said: BTreeSet<&str> = plan["environment"].as_array().unwrap().iter().map(|v| v["name"].as_str().unwrap()).collect();
    // What the engine, the image and the shell add is not the worker's to know.
    let own = BTreeSet::from(["PATH", "HOSTNAME", "PWD", "OLDPWD", "SHLVL", "_"]);
    let real: BTreeSet<&str> = names.lines().filter(|name| !own.contains(name)).collect();
    assert_eq!(said, real, "{output}");
    let user = &plan["user"]["value"]["uid"];
    assert_eq!(rest, format!("{user}\n/windlass/work\n"), "{plan}");
    fleet.finish().await;
}
