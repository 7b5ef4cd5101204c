//! Secrets by reference: delivered, refused, and nowhere to be found. The canaries are unlike anything else in the world, so
//! that one byte string found is a leak.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use serde_json::{Value, json};
use windlass::task::log_chunk::LogStream;
use windlass::task::{Event, EventKind, Reason};
use windlass::wire::sha256_hex;

use crate::harness::feed::read_all;
use crate::harness::job::Gate;
use crate::harness::orchestrator::chunk_of;
use crate::harness::server::Options;
use crate::harness::{Fleet, Job, Server, Task, leftovers};

/// What tenant acme may refer to; `{dir}` and `{prefix}` are the fleet's.
const GRANTS: &str = r#"["env:CANARY_*", "file:{dir}/vault/acme/*", "kv:{prefix}-vault/acme.*"]"#;

/// The four secrets of a test, each with the bytes that are looked for.
struct Canaries {
    values: Vec<String>,
    secrets: Value,
}

impl Canaries {
    /// Puts them where the worker finds them. `WORKER_ENV` is for [`Fleet::worker`].
    async fn plant(fleet: &Fleet) -> Self {
        // With everything that some form writes otherwise.
        let one = |kind: &str| format!("canary/{kind} \"{}\"&+é", uuid::Uuid::now_v7().simple());
        let values: Vec<String> = ["env", "file", "asfile", "kv"].map(one).to_vec();
        let vault = fleet.dir.join("vault/acme");
        std::fs::create_dir_all(&vault).unwrap();
        std::fs::write(vault.join("one"), format!("{}\n", values[1])).unwrap();
        std::fs::write(vault.join("two"), &values[2]).unwrap();
        let bucket = format!("{}-vault", fleet.prefix);
        let config = async_nats::jetstream::kv::Config { bucket: bucket.clone(), ..Default::default() };
        let store = fleet.js.create_key_value(config).await.unwrap();
        store.put("acme.four", values[3].clone().into()).await.unwrap();
        let secrets = json!([
            {"name": "ONE", "ref": "env:CANARY_ENV"},
            {"name": "TWO", "ref": format!("file:{}/one", vault.display()), "as": "env"},
            {"name": "THREE", "ref": format!("file:{}/two", vault.display()), "as": "file"},
            {"name": "FOUR", "ref": format!("kv:{bucket}/acme.four")},
        ]);
        Self { values, secrets }
    }

    /// What nobody may find: each canary as it is, and the forms that say it whole.
    fn needles(&self) -> Vec<(String, Vec<u8>)> {
        let mut needles = Vec::new();
        for value in &self.values {
            // The part that no quoting changes is enough to be found in any quoting.
            let core = value.split('"').nth(1).unwrap();
            needles.push(("as it is", core.as_bytes().to_vec()));
            needles.push(("in upper case hex", windlass::wire::hex(core.as_bytes()).to_uppercase().into_bytes()));
            needles.push(("in hex", windlass::wire::hex(core.as_bytes()).into_bytes()));
            needles.push(("percent-encoded", core.bytes().flat_map(|b| format!("%{b:02X}").into_bytes()).collect()));
            for before in 0..3 {
                let text = base64::engine::general_purpose::STANDARD.encode([&[0; 2][..before], core.as_bytes()].concat());
                needles.push(("in base64", text.as_bytes()[4..text.len() - 4].to_vec()));
            }
        }
        needles.into_iter().map(|(form, needle)| (form.to_owned(), needle)).collect()
    }
}

fn settings(dir: &Path, prefix: &str) -> Vec<(String, String)> {
    let grants = GRANTS.replace("{dir}", &dir.display().to_string()).replace("{prefix}", prefix);
    let files = format!("/dev/shm/windlass-test-{prefix}");
    vec![("TENANTS__ACME__SECRETS".into(), grants), ("WORKER__SECRETS_DIR".into(), files)]
}

/// Starts a worker that may read the canaries.
fn worker(fleet: &Fleet, canaries: &Canaries, more: &[(&str, &str)]) -> std::sync::Arc<crate::harness::worker::Worker> {
    let settings = settings(&fleet.dir, &fleet.prefix);
    let mut all: Vec<(&str, &str)> = settings.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    all.push(("env:CANARY_ENV", &canaries.values[0]));
    // Not the tenant's, and not as they should be.
    all.extend([("env:CANARY_SHORT", "12345"), ("env:CANARY_PATH", "/canary-of-a/search-path")]);
    all.extend(more);
    fleet.worker(&all)
}

async fn clean(fleet: Fleet) {
    let place = PathBuf::from(format!("/dev/shm/windlass-test-{}", fleet.prefix));
    let bucket = format!("{}-vault", fleet.prefix);
    let js = fleet.js.clone();
    fleet.finish().await;
    let left: Vec<_> = std::fs::read_dir(&place).into_iter().flatten().flatten().map(|e| e.path()).collect();
    assert!(left.is_empty(), "secrets left behind: {left:?}");
    let _ = std::fs::remove_dir(&place);
    let _ = js.delete_key_value(bucket).await;
}

/// Everything that a program can do with a secret to show it.
const SHOW: &str = r#"
hex() { od -An -v -tx1 | tr -d ' \n'; }
show() {
  printf '%s\n' "$1"; printf '%s' "$1" >&2; echo >&2
  printf '%s' "$1" | base64; printf '%s' "$1" | base64 -w 0; echo
  printf 'x%s' "$1" | base64 -w 0; echo; printf 'yy%sz' "$1" | base64 -w 0 | tr '+/' '-_'; echo
  printf '%s' "$1" | hex; echo; printf '%s' "$1" | hex | tr a-f A-F; echo
  printf '%s' "$1" | hex | sed 's/../%&/g'; echo; printf '%s' "$1" | hex | tr a-f A-F | sed 's/../%&/g'; echo
  printf '{"json": "%s"}\n' "${1//\"/\\\"}"
  for ((i = 0; i < ${#1}; i++)); do printf '%s' "${1:$i:1}"; done; echo
  head -c 1000 /dev/zero | tr '\0' .; printf '%s' "$1"; printf '\xff\n'
  (set -x; : "$1") 2>&1
  "$1" || true
}
for secret in "$ONE" "$TWO" "$(cat "$THREE_FILE")" "$FOUR"; do show "$secret"; done
"#;

/// Likewise, by other ways than output.
const TELL: &str = r#"
printf '{"value": "%s", "%s": 1, "deep": [{"x": "a %s b"}], "metrics": {"m": "%s"}}' "${ONE//\"/\\\"}" "${TWO//\"/\\\"}" "${FOUR//\"/\\\"}" "${ONE//\"/\\\"}" > "$WINDLASS_RESULT"
printf '{"stage": "%s", "pct": 5, "message": "is %s"}\n' "${ONE//\"/\\\"}" "${FOUR//\"/\\\"}" >> "$WINDLASS_PROGRESS"
touch "$WINDLASS_OUTPUTS/${ONE//\//}"
"#;

/// All that the server has but the vault, with the output put together, and all that the worker wrote but what tasks have in
/// their own directories.
async fn everywhere(fleet: &Fleet) -> Vec<(String, Vec<u8>)> {
    let mut places: Vec<(String, Vec<u8>)> = Vec::new();
    let mut streams = std::collections::BTreeMap::<String, Vec<u8>>::new();
    for kind in ["EVENTS", "LOGS", "CONTROL", "DEAD"] {
        let filter = format!("{}.{}.>", fleet.prefix, kind.to_lowercase());
        for stored in read_all(&fleet.js, &fleet.stream(kind), &filter).await {
            let headers: Vec<String> = stored.headers.iter().map(|(name, values)| format!("{name}: {values:?}")).collect();
            if kind == "LOGS" {
                streams.entry(stored.subject.clone()).or_default().extend(chunk_of(&stored).1);
            }
            let whole = [stored.subject.as_bytes(), headers.join("\n").as_bytes(), &stored.body].concat();
            places.push((format!("{kind} {} {}", stored.sequence, stored.subject), whole));
        }
    }
    places.extend(fleet.queued().await.into_iter().map(|m| (format!("the queue: {}", m.subject), m.body.to_vec())));
    let presence = format!("KV_{}", fleet.stream("WORKERS"));
    places.extend(read_all(&fleet.js, &presence, "$KV.>").await.into_iter().map(|m| (m.subject, m.body.to_vec())));
    places.extend(streams);
    places.extend(files(&fleet.dir));
    places
}

/// Files of the worker: its log, local copies, spool, events on their way.
fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for path in std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()) {
            if path.is_dir() {
                // A task's own directory holds what the task puts there; the vault is where they come from.
                todo.extend((!path.ends_with("work") && !path.ends_with("vault")).then_some(path));
            } else {
                let bytes = std::fs::read(&path).unwrap_or_default();
                found.push((path.display().to_string(), [path.display().to_string().into_bytes(), bytes].concat()));
            }
        }
    }
    found
}

fn command_lines() -> Vec<(String, Vec<u8>)> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes.map(|p| p.path().join("cmdline")).filter_map(|p| Some((p.display().to_string(), std::fs::read(&p).ok()?))).collect()
}

/// Where the canaries are seen.
fn sightings(canaries: &Canaries, places: &[(String, Vec<u8>)]) -> Vec<String> {
    let mut seen = Vec::new();
    for (form, needle) in canaries.needles() {
        let finder = |bytes: &[u8]| bytes.windows(needle.len()).any(|w| w == needle);
        seen.extend(places.iter().filter(|(_, bytes)| finder(bytes)).map(|(place, _)| format!("{form} in {place}")));
    }
    seen
}

/// The tasks that do everything, and when they have ended.
async fn everything(fleet: &Fleet, with: impl Fn(Job) -> Job) -> Vec<(Task, Event)> {
    let gate = Gate::new(&fleet.dir, "stopped");
    let again = json!({"max_attempts": 2, "on": ["failure"], "backoff": {"initial_ms": 10, "factor": 1.0, "max_ms": 10}});
    let jobs = [
        Job::bash(SHOW),
        Job::bash(format!("{TELL}\n{SHOW}")),
        Job::bash(format!("{TELL}\n{SHOW}\nexit 3")),
        Job::bash(format!("{TELL}\nprintf %s \"$ONE\" >&2; exit 4")).set("/retry", again),
        // A result that is none, and its text in the error.
        Job::bash("printf '{\"%s' \"$TWO\" > \"$WINDLASS_RESULT\""),
        Job::bash(format!("printf %s \"$FOUR\"\n{SHOW}\n{}", gate.wait())).timeout(3.0).grace(0.1),
        Job::bash(format!("{SHOW}\n{TELL}\necho shown\n{}", gate.wait())).id("to-cancel"),
    ];
    let mut tasks = Vec::new();
    for job in jobs {
        tasks.push(fleet.submit(&with(job)).await);
    }
    let cancel = tasks.last().unwrap();
    fleet.output_has(cancel, "shown").await;
    fleet.event(cancel, EventKind::TaskProgress).await;
    fleet.cancel(cancel).await;
    let mut ended = Vec::new();
    for task in tasks {
        let end = fleet.end(&task).await;
        ended.push((task, end));
    }
    ended
}

const EXPECTED: [Reason; 7] =
    [Reason::Ok, Reason::Ok, Reason::ExitNonzero, Reason::ExitNonzero, Reason::ResultInvalid, Reason::Timeout, Reason::Canceled];

async fn fleet(server: std::sync::Arc<Server>, encoding: &str) -> (Fleet, Canaries) {
    let fleet = Fleet::on(
        server,
        &[("LOG__LEVEL", "trace"), ("LOGS__CHUNK", "1KiB"), ("LEASE__ACK_WAIT_S", "300"), ("EVENTS__ENCODING", encoding)],
    )
    .await;
    let canaries = Canaries::plant(&fleet).await;
    let copies = fleet.dir.join("copies").display().to_string();
    worker(&fleet, &canaries, &[("CAPACITY__SLOTS", "4"), ("LOGS__DIR", &copies)]);
    (fleet, canaries)
}

async fn no_canary_is_seen(encoding: &str) {
    let Some(server) = Server::shared() else { return };
    let (fleet, canaries) = fleet(server, encoding).await;
    let ended = everything(&fleet, |job| job.set("/secrets", canaries.secrets.clone())).await;
    assert_eq!(ended.iter().map(|(_, end)| end.reason.unwrap()).collect::<Vec<_>>(), EXPECTED);
    // Not a task, refused, and a program that is looked for in a secret path.
    fleet.submit_raw("poison", None, format!("{{\"secrets\": {}, \"nonsense\": 1}}", canaries.secrets)).await;
    let stranger = Job { tenant: "stranger".into(), ..Job::argv(["true"]).set("/secrets", canaries.secrets.clone()) };
    let stranger = fleet.submit(&stranger).await;
    assert_eq!(fleet.end(&stranger).await.reason, Some(Reason::PolicyRefused));
    let lost = Job::argv(["no-such-program"]).set("/secrets", json!([{"name": "PATH", "ref": "env:CANARY_PATH"}]));
    let lost = fleet.submit(&lost).await;
    let end = fleet.end(&lost).await;
    assert_eq!(end.reason, Some(Reason::SpawnFailed));
    let said = format!("{:?} {:?}", end.error, end.hint);
    assert!(said.matches("PATH=***").count() == 2 && !said.contains("search-path"), "{said}");
    let seen = sightings(&canaries, &everywhere(&fleet).await);
    assert!(seen.is_empty(), "{seen:#?}");
    clean(fleet).await;
}

#[tokio::test]
async fn no_canary_is_seen_in_anything_that_leaves() {
    no_canary_is_seen("json").await;
}

#[tokio::test]
async fn no_canary_is_seen_in_anything_that_leaves_as_messagepack() {
    no_canary_is_seen("msgpack").await;
}

/// The same without masking: the values come as plain environment, which nobody takes for secrets.
#[tokio::test]
async fn what_is_no_secret_is_seen_everywhere_so_the_search_can_find() {
    let Some(server) = Server::shared() else { return };
    let (fleet, canaries) = fleet(server, "json").await;
    let plain = fleet.dir.join("plain-three");
    std::fs::write(&plain, &canaries.values[2]).unwrap();
    let env = json!({"ONE": canaries.values[0], "TWO": canaries.values[1], "THREE_FILE": plain, "FOUR": canaries.values[3]});
    everything(&fleet, |job| job.set("/execution/env", env.clone())).await;
    let seen = sightings(&canaries, &everywhere(&fleet).await);
    for form in ["as it is", "in hex", "in upper case hex", "percent-encoded", "in base64"] {
        for place in ["LOGS", ".stdout", "copies/acme"] {
            assert!(seen.iter().any(|s| s.starts_with(form) && s.contains(place)), "{form} is not found in {place}");
        }
    }
    for place in [".task_progress", ".task_completed", ".task_failed", ".task_retrying"] {
        assert!(seen.iter().any(|s| s.contains(place)), "nothing is found in {place}");
    }
    clean(fleet).await;
}

#[tokio::test]
async fn neither_the_spool_nor_a_command_line_has_a_canary_while_a_task_runs() {
    let Some(server) = Server::private(Options::default()) else { return };
    let (fleet, canaries) = fleet(server, "json").await;
    let (go, done) = (Gate::new(&fleet.dir, "go"), fleet.dir.join("done"));
    let script = format!("echo ready\n{}\n{SHOW}\n{TELL}\ntouch '{}'\n{}", go.wait(), done.display(), Gate::new(&fleet.dir, "end").wait());
    let task = fleet.submit(&Job::bash(script).set("/secrets", canaries.secrets.clone())).await;
    fleet.output_has(&task, "ready").await;
    // Away: what the task writes waits in the spool.
    fleet.server.freeze();
    go.open();
    let missing = || if done.exists() { vec![] } else { vec!["the task's mark"] };
    assert!(leftovers::gone(crate::harness::PATIENCE, missing).await.is_empty());
    let spooled = || files(&fleet.dir).iter().any(|(name, bytes)| name.ends_with(".segment") && bytes.len() > 4000);
    let waiting = leftovers::gone(crate::harness::PATIENCE, || if spooled() { vec![] } else { vec!["the spool"] }).await;
    assert!(waiting.is_empty(), "nothing is spooled: {:?}", files(&fleet.dir).iter().map(|(n, _)| n).collect::<Vec<_>>());
    let seen = sightings(&canaries, &[files(&fleet.dir), command_lines()].concat());
    fleet.server.thaw();
    assert!(seen.is_empty(), "{seen:#?}");
    Gate::new(&fleet.dir, "end").open();
    assert_eq!(fleet.end(&task).await.reason, Some(Reason::Ok));
    clean(fleet).await;
}

#[tokio::test]
async fn a_task_gets_its_secrets_as_it_asked_for_them() {
    let Some(fleet) = Fleet::start(&[]).await else { return };
    let canaries = Canaries::plant(&fleet).await;
    worker(&fleet, &canaries, &[("CAPACITY__SLOTS", "1")]);
    let script = r#"for s in "$ONE" "$TWO" "$(cat "$THREE_FILE")" "$FOUR"; do printf %s "$s" | sha256sum | cut -c1-64; done
        stat -c '%a %u' "$THREE_FILE"; stat -f -c %T "$THREE_FILE"; [ "$(id -u)" = "$(stat -c %u "$THREE_FILE")" ] && echo mine
        [ -z "$TWO_FILE$THREE" ] && echo "nothing else""#;
    let task = fleet.submit(&Job::bash(script).set("/secrets", canaries.secrets.clone())).await;
    let end = fleet.end(&task).await;
    let output = String::from_utf8(fleet.output(&task, &end, LogStream::Stdout).await).unwrap();
    let lines: Vec<&str> = output.lines().collect();
    let expected: Vec<String> = canaries.values.iter().map(|v| sha256_hex(v.as_bytes())).collect();
    assert_eq!(lines[..4], expected, "{:?} {:?}", end.error, end.stderr_tail);
    assert!(lines[4].starts_with("400 ") && lines[5..] == ["tmpfs", "mine", "nothing else"], "{lines:?}");
    clean(fleet).await;
}

#[tokio::test]
async fn what_cannot_be_had_is_refused_with_its_name() {
    let Some(fleet) = Fleet::start(&[]).await else { return };
    let canaries = Canaries::plant(&fleet).await;
    let vault = fleet.dir.join("vault");
    std::fs::write(vault.join("other"), "another tenant's secret").unwrap();
    std::os::unix::fs::symlink("../other", vault.join("acme/link")).unwrap();
    std::fs::write(vault.join("acme/large"), "x".repeat(70_000)).unwrap();
    std::fs::write(vault.join("acme/binary"), b"12345\xff").unwrap();
    worker(&fleet, &canaries, &[("CAPACITY__SLOTS", "4")]);
    let (dir, kv) = (vault.display(), format!("kv:{}-vault", fleet.prefix));
    for (reference, reason, word) in [
        ("env:HOME".to_owned(), Reason::PolicyRefused, "may not refer to env:HOME"),
        (format!("file:{dir}/other"), Reason::PolicyRefused, "may not refer to"),
        (format!("file:{dir}/acme/../other"), Reason::InvalidAssignment, "without . and .."),
        (format!("file:{dir}/acme/link"), Reason::PolicyRefused, "a link leads out"),
        (format!("{kv}/other.key"), Reason::PolicyRefused, "may not refer to"),
        ("just-the-secret".to_owned(), Reason::InvalidAssignment, "is no reference"),
        ("env:CANARY_NONE".to_owned(), Reason::SecretMissing, "(env:CANARY_NONE): the worker's environment"),
        ("env:CANARY_SHORT".to_owned(), Reason::SecretMissing, "5 bytes are too few"),
        (format!("file:{dir}/acme/none"), Reason::SecretMissing, "no such file"),
        (format!("file:{dir}/acme/large"), Reason::SecretMissing, "larger than 65536 bytes"),
        (format!("file:{dir}/acme/binary"), Reason::SecretMissing, "no environment variable can"),
        (format!("{kv}/acme.none"), Reason::SecretMissing, "the bucket or the key does not exist"),
    ] {
        let task = fleet.submit(&Job::argv(["true"]).set("/secrets", json!([{"name": "A", "ref": reference}]))).await;
        let end = fleet.end(&task).await;
        let error = end.error.unwrap_or_default();
        assert_eq!(end.reason, Some(reason), "{reference}: {error}");
        assert!(error.contains(word), "{reference}: {error:?} does not say {word:?}");
        assert!(end.run.is_none_or(|run| run.pid.is_none()), "{reference}: it ran");
    }
    clean(fleet).await;
}

/// A server that answers all but the reading of one bucket.
const LOCKED: Options = Options {
    sync_always: false,
    max_payload: None,
    more: "authorization { users = [ { user: all, password: all, permissions: { publish: { deny: [\"$JS.API.STREAM.MSG.GET.KV_locked\"] } } } ] }\nno_auth_user: all",
};

#[tokio::test]
async fn a_bucket_that_does_not_answer_is_asked_again_by_another_attempt() {
    let Some(server) = Server::private(LOCKED) else { return };
    let grants = [("TENANTS__ACME__SECRETS", r#"["kv:locked/*"]"#), ("BUS__REQUEST_TIMEOUT_S", "1")];
    let fleet = Fleet::on(server, &grants).await;
    let config = async_nats::jetstream::kv::Config { bucket: "locked".to_owned(), ..Default::default() };
    let store = fleet.js.create_key_value(config).await.unwrap();
    store.put("key", "a secret of some length".into()).await.unwrap();
    fleet.worker(&[("CAPACITY__SLOTS", "2")]);
    let job = || Job::bash("echo \"<$A>\"").set("/secrets", json!([{"name": "A", "ref": "kv:locked/key"}]));
    let (task, given_up) = (fleet.submit(&job()).await, fleet.submit(&job()).await);
    fleet.attempt(&given_up, 1).await;
    fleet.cancel(&given_up).await;
    assert_eq!(fleet.end(&given_up).await.reason, Some(Reason::Canceled), "a task that waits for its secrets hears of it");
    let retrying = fleet.event(&task, EventKind::TaskRetrying).await;
    assert_eq!(retrying.reason, Some(Reason::SecretUnavailable));
    fleet.server.reconfigure("KV_locked", "KV_other");
    let end = fleet.end(&task).await;
    assert_eq!(end.reason, Some(Reason::Ok), "{:?}", end.error);
    assert_eq!(fleet.output(&task, &end, LogStream::Stdout).await, b"<***>\n");
    fleet.finish().await;
}

#[tokio::test]
async fn secrets_in_files_do_not_outlive_a_killed_worker() {
    let Some(fleet) = Fleet::start(&[("LEASE__ACK_WAIT_S", "2")]).await else { return };
    let canaries = Canaries::plant(&fleet).await;
    let first = worker(&fleet, &canaries, &[("CAPACITY__SLOTS", "1")]);
    let gate = Gate::new(&fleet.dir, "end");
    let task = fleet.submit(&Job::bash(format!("echo ready\n{}", gate.wait())).set("/secrets", canaries.secrets.clone())).await;
    fleet.output_has(&task, "ready").await;
    let place = PathBuf::from(format!("/dev/shm/windlass-test-{}", fleet.prefix));
    let dirs = || std::fs::read_dir(&place).into_iter().flatten().flatten().map(|e| e.path()).collect::<Vec<_>>();
    let old = dirs();
    assert_eq!(old.len(), 1, "{old:?}");
    first.kill9().await;
    gate.open();
    worker(&fleet, &canaries, &[("CAPACITY__SLOTS", "1")]);
    let left = leftovers::gone(crate::harness::PATIENCE, || dirs().into_iter().filter(|dir| old.contains(dir)).collect()).await;
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(fleet.end(&task).await.reason, Some(Reason::Ok));
    clean(fleet).await;
}
