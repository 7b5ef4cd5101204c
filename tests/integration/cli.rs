//! The operator's verbs against a real fleet: data, exit codes, and what is left behind.

use std::process::{Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::Command;
use windlass::task::{EventKind, Reason};

use crate::harness::disk::{Disk, Shape};
use crate::harness::job::Gate;
use crate::harness::server::{Server, free_port};
use crate::harness::worker::{windlass as command, windlass_under};
use crate::harness::{Fleet, Job, PATIENCE, Task, leftovers};

pub(crate) async fn run(mut command: Command) -> Output {
    tokio::time::timeout(PATIENCE, command.output()).await.expect("the verb ends").expect("windlass starts")
}

pub(crate) fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("{output:?}"))
}

pub(crate) fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn said(output: &Output) -> String {
    format!("stdout: {}\nstderr: {}", text(output), String::from_utf8_lossy(&output.stderr))
}

pub(crate) fn json_lines(output: &Output) -> Vec<Value> {
    text(output).lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e} in {l:?}"))).collect()
}

#[tokio::test]
async fn run_gives_the_tasks_own_output_and_exit_code() {
    let Some(fleet) = Fleet::with_worker(4, &[]).await else { return };
    for (args, expected, stdout, stderr) in [
        (vec!["run", "--", "/bin/true"], 0, "", ""),
        (vec!["run", "--", "sh", "-c", "echo out; echo err >&2; exit 7"], 7, "out\n", "err\n"),
        (vec!["run", "--bash", "printf '%s|' \"$@\"", "a b", "c"], 0, "a b|c|", ""),
        (vec!["run", "--", "sh", "-c", "kill -TERM $$"], 143, "", ""),
        (vec!["run", "--timeout", "0.3", "--grace", "0", "--", "sleep", "1000"], 124, "", ""),
        (vec!["run", "--memory", "32MiB", "--bash", "head -c 300000000 /dev/zero | tail"], 137, "", ""),
        (vec!["run", "-e", "A=1", "--", "sh", "-c", "printf %s $A"], 0, "1", ""),
        (vec!["run", "--", "no-such-program"], 1, "", "no-such-program"),
    ] {
        let output = run(fleet.cli(&args)).await;
        assert_eq!(code(&output), expected, "{args:?}: {}", said(&output));
        assert_eq!(text(&output), stdout, "{args:?}: stdout is the task's own, byte for byte");
        assert!(String::from_utf8_lossy(&output.stderr).contains(stderr), "{args:?}: {}", said(&output));
        assert!(!said(&output).contains('\x1b'), "colours without a terminal: {}", said(&output));
    }
    fleet.finish_unchecked().await;
}

#[tokio::test]
async fn run_shows_output_live_and_cancels_when_interrupted() {
    let Some(fleet) = Fleet::with_worker(1, &[]).await else { return };
    let mut verb = fleet.cli(["run", "--id", "live", "--", "sh", "-c", "echo first; sleep 1000"]);
    let mut child = verb.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let first = tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("output comes while it runs").unwrap();
    assert_eq!(first.as_deref(), Some("first"));
    kill_process(Pid::from_raw(child.id().unwrap().cast_signed()).unwrap(), Signal::INT).unwrap();
    let status = tokio::time::timeout(PATIENCE, child.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(130));
    let end = fleet.end(&Task { tenant: "default".into(), id: "live".into() }).await;
    assert_eq!(end.reason, Some(Reason::Canceled), "an interrupted run leaves no task behind");
    fleet.finish_unchecked().await;
}

#[tokio::test]
async fn submit_takes_one_or_many_and_waits_when_asked() {
    let Some(fleet) = Fleet::with_worker(4, &[]).await else { return };
    let file = fleet.dir.join("task.json");
    std::fs::write(&file, serde_json::to_vec(&json!({"execution": {"runtime": "native", "command": ["sh", "-c", "exit 5"]}})).unwrap())
        .unwrap();
    let path = file.to_str().unwrap();
    let output = run(fleet.cli(["submit", path, "--wait", "-o", "json"])).await;
    assert_eq!(code(&output), 5, "with --wait it exits as the task did: {}", said(&output));
    let output = run(fleet.cli(["submit", path, "--encoding", "msgpack", "--id", "named", "-o", "json"])).await;
    assert_eq!((code(&output), &json_lines(&output)[0]["task_id"]), (0, &json!("named")), "{}", said(&output));
    fleet.end(&Task { tenant: "default".into(), id: "named".into() }).await;
    let output = run(fleet.cli(["submit", path, "--id", "named"])).await;
    assert_eq!(code(&output), 5, "an id is used once: {}", said(&output));
    let many: String = (0..20)
        .map(|n| {
            format!("{{\"task_id\":\"many-{n}\",\"tenant\":\"acme\",\"execution\":{{\"runtime\":\"native\",\"command\":[\"true\"]}}}}\n")
        })
        .collect();
    let mut verb = fleet.cli(["submit", "-", "--wait", "-o", "json"]);
    let mut child = verb.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(many.as_bytes()).await.unwrap();
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.unwrap().unwrap();
    assert_eq!(code(&output), 0, "{}", said(&output));
    for n in 0..20 {
        assert_eq!(fleet.end(&Task { tenant: "acme".into(), id: format!("many-{n}") }).await.reason, Some(Reason::Ok));
    }
    fleet.finish_unchecked().await;
}

#[tokio::test]
async fn a_mistake_in_one_line_queues_nothing_and_names_all_mistakes() {
    let Some(fleet) = Fleet::start(&[]).await else { return };
    let file = fleet.dir.join("tasks.ndjson");
    let good = r#"{"execution":{"runtime":"native","command":["true"]}}"#;
    let lines = [good, r#"{"execution":{"runtime":"natve"}}"#, good, r#"{"execution":{"runtime":"native","comand":[]}}"#];
    std::fs::write(&file, lines.join("\n")).unwrap();
    let output = run(fleet.cli(["submit", file.to_str().unwrap()])).await;
    assert_eq!(code(&output), 2, "{}", said(&output));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("line 2: execution.runtime") && errors.contains("line 4: execution.comand"), "{errors}");
    assert!(fleet.queued().await.is_empty(), "nothing was queued");
    fleet.finish_unchecked().await;
}

#[tokio::test]
async fn status_logs_and_events_tell_the_same_story() {
    let Some(fleet) = Fleet::with_worker(2, &[]).await else { return };
    let task = fleet.submit(&Job::bash("printf 'a\\0b\\377'; echo oops >&2; exit 3")).await;
    let end = fleet.end(&task).await;
    let output = run(fleet.cli(["status", &task.id, "-o", "json"])).await;
    let status = &json_lines(&output)[0];
    assert_eq!(
        (&status["state"], &status["reason"], &status["exit_code"]),
        (&json!("FAILED"), &json!("exit_nonzero"), &json!(3)),
        "{status}"
    );
    let output = run(fleet.cli(["status", &task.id])).await;
    assert!(text(&output).contains("FAILED") && text(&output).contains("exit_nonzero"), "{}", said(&output));
    let output = run(fleet.cli(["logs", &task.id])).await;
    assert_eq!((code(&output), &output.stdout[..], &output.stderr[..]), (0, &b"a\0b\xff"[..], &b"oops\n"[..]));
    let output = run(fleet.cli(["logs", &task.id, "--stream", "stderr"])).await;
    assert_eq!(text(&output), "oops\n", "a stream asked for by name is data");
    let output = run(fleet.cli(["logs", "-f", &task.id])).await;
    assert_eq!((code(&output), &output.stdout[..]), (0, &b"a\0b\xff"[..]), "following what has ended ends");
    let output = run(fleet.cli(["events", &task.id, "-o", "json"])).await;
    let told = json_lines(&output);
    assert_eq!(told.len(), 2, "{}", said(&output));
    assert!(text(&output).contains(&end.nonce));
    fleet.finish().await;
}

#[tokio::test]
async fn logs_and_events_follow_a_running_task_to_its_end() {
    let Some(fleet) = Fleet::with_worker(1, &[]).await else { return };
    let gate = Gate::new(&fleet.dir, "follow");
    let task = fleet.submit(&Job::bash(format!("echo one; {}; echo two", gate.wait()))).await;
    fleet.event(&task, EventKind::TaskStarted).await;
    let mut logs = fleet.cli(["logs", "-f", &task.id]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(logs.stdout.take().unwrap()).lines();
    assert_eq!(tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("live").unwrap().as_deref(), Some("one"));
    gate.open();
    assert_eq!(tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("live").unwrap().as_deref(), Some("two"));
    assert_eq!(tokio::time::timeout(PATIENCE, logs.wait()).await.expect("it ends with the task").unwrap().code(), Some(0));
    fleet.finish().await;
}

#[tokio::test]
async fn cancel_says_what_became_of_it() {
    let Some(fleet) = Fleet::with_worker(1, &[]).await else { return };
    let task = fleet.submit(&Job::bash("sleep 1000").grace(0.0)).await;
    fleet.event(&task, EventKind::TaskStarted).await;
    let output = run(fleet.cli(["cancel", &task.id, "--wait", "--reason", "enough"])).await;
    assert_eq!(code(&output), 0, "{}", said(&output));
    let end = fleet.end(&task).await;
    assert_eq!(end.reason, Some(Reason::Canceled));
    assert!(end.error.is_some_and(|e| e.contains("enough")));
    let output = run(fleet.cli(["cancel", &task.id])).await;
    assert_eq!(code(&output), 5, "what is over cannot be canceled: {}", said(&output));
    fleet.finish().await;
}

#[tokio::test]
async fn dead_letters_are_listed_shown_and_queued_again() {
    let Some(fleet) = Fleet::with_worker(1, &[("LEASE__ACK_WAIT_S", "1")]).await else { return };
    let broken = fleet.submit_raw("broken", Some("application/json"), "{\"task_id\":").await;
    fleet.end(&broken).await;
    let above = fleet.submit(&Job::bash("echo ran").memory("1TiB")).await;
    fleet.end(&above).await;
    let output = run(fleet.cli(["dead", "list", "-o", "json"])).await;
    let letters = json_lines(&output);
    let of =
        |id: &str| letters.iter().find(|l| l["task_id"] == id).unwrap_or_else(|| panic!("{id} is no dead letter: {letters:?}")).clone();
    assert_eq!(of("broken")["reason"], "invalid_assignment");
    assert_eq!(of(&above.id)["reason"], "policy_refused");
    let sequence = of("broken")["sequence"].to_string();
    let output = run(fleet.cli(["dead", "show", &sequence, "--raw"])).await;
    assert_eq!(text(&output), "{\"task_id\":");
    let output = run(fleet.cli(["dead", "requeue", &sequence])).await;
    assert_ne!(code(&output), 0, "what is no assignment cannot be queued: {}", said(&output));
    // Refused by a ceiling; the operator raises it, and gives the task another chance.
    let before = fleet.worker(&[("CLASSES__CPU_SHORT__MAX_MEMORY", "2TiB"), ("CAPACITY__MEMORY", "4TiB")]);
    let first = fleet.logs();
    drop((before, first));
    let sequence = of(&above.id)["sequence"].to_string();
    let output = run(fleet.cli(["dead", "requeue", &sequence, "--id", "second-chance", "-o", "json"])).await;
    assert_eq!((code(&output), &json_lines(&output)[0]["task_id"]), (0, &json!("second-chance")), "{}", said(&output));
    let end = fleet.end(&Task { tenant: "acme".into(), id: "second-chance".into() }).await;
    assert!(matches!(end.reason, Some(Reason::Ok | Reason::PolicyRefused)), "whichever worker took it: {:?}", end.error);
    let output = run(fleet.cli(["dead", "show", "999999"])).await;
    assert_eq!(code(&output), 3);
    fleet.finish().await;
}

#[tokio::test]
async fn init_plans_applies_and_finds_nothing_more_to_do() {
    let Some(fleet) = Fleet::start(&[]).await else { return };
    let output = run(fleet.cli(["init", "-o", "json"])).await;
    assert_eq!(code(&output), 0, "{}", said(&output));
    assert!(!text(&output).contains("\"create\"") && !text(&output).contains("\"update\""), "{}", said(&output));
    let prefix = format!("{}-planned", fleet.prefix);
    let output = run(fleet.cli(["init", "--dry-run", "--prefix", &prefix])).await;
    assert_eq!(code(&output), 0, "{}", said(&output));
    assert!(text(&output).contains("_TASKS") && text(&output).contains("create"), "{}", said(&output));
    assert!(fleet.js.get_stream(format!("{}_TASKS", prefix.to_uppercase())).await.is_err(), "a plan changes nothing");
    fleet.finish_unchecked().await;
}

#[tokio::test]
async fn a_worker_refuses_streams_that_break_a_promise_and_names_the_key() {
    let Some(fleet) = Fleet::start(&[]).await else { return };
    let mut config = fleet.js.get_stream(fleet.stream("TASKS")).await.unwrap().cached_info().config.clone();
    config.discard_new_per_subject = false;
    fleet.js.update_stream(config).await.unwrap();
    let worker = fleet.worker(&[]);
    assert!(!worker.exit(PATIENCE).await.success());
    assert!(worker.log().contains("discard_new_per_subject") && worker.log().contains("windlass init"), "{}", worker.log());
    assert_eq!(code(&run(fleet.cli(["init"])).await), 0);
    fleet.worker(&[]);
    let task = fleet.submit(&Job::argv(["true"])).await;
    fleet.end(&task).await;
    fleet.finish().await;
}

#[tokio::test]
async fn exit_codes_are_those_of_the_contract() {
    let Some(fleet) = Fleet::start(&[]).await else { return };
    let mut unreachable = command();
    unreachable.args(["status", "x", "--server", "nats://127.0.0.1:1"]);
    assert_eq!(code(&run(unreachable).await), 6);
    for (args, expected) in [
        (vec!["status", "no-such-task"], 3),
        (vec!["logs", "no-such-task"], 3),
        (vec!["cancel", "no-such-task"], 3),
        (vec!["status", "not.a.token"], 2),
        (vec!["frobnicate"], 2),
        (vec!["submit", "/no/such/file"], 3),
    ] {
        let output = run(fleet.cli(&args)).await;
        assert_eq!(code(&output), expected, "{args:?}: {}", said(&output));
    }
    let file = fleet.dir.join("slow.json");
    std::fs::write(&file, r#"{"execution":{"runtime":"native","command":["true"]}}"#).unwrap();
    let output = run(fleet.cli(["submit", file.to_str().unwrap(), "--wait", "--wait-timeout", "0.3"])).await;
    assert_eq!(code(&output), 124, "nobody takes it: {}", said(&output));
    let mut mistaken = fleet.cli(["worker"]);
    mistaken.env("WINDLASS__WORKER__DRAIN_TIMEOUT_S", "soon").env("WINDLASS__NO__SUCH", "1").env("WINDLASS__LOGS__WINDOW", "-4");
    let output = run(mistaken).await;
    assert_eq!(code(&output), 2, "{}", said(&output));
    for word in ["worker.drain_timeout_s", "no.such", "logs.window"] {
        assert!(String::from_utf8_lossy(&output.stderr).contains(word), "all mistakes at once, {word} too: {}", said(&output));
    }
    fleet.finish_unchecked().await;
}

#[tokio::test]
async fn a_server_without_room_for_a_stream_is_named_with_what_to_do() {
    let small = |port, dir: &std::path::Path| {
        format!("listen: 127.0.0.1:{port}\njetstream {{ store_dir: \"{}\"\n max_file: 1GB }}\n", dir.display())
    };
    let Some(server) = Server::with_config(small) else { return };
    let mut init = command();
    init.args(["init", "--server", &server.url()]);
    let output = run(init).await;
    let said = said(&output);
    assert_eq!(code(&output), 1, "{said}");
    assert!(said.contains("WINDLASS_LOGS") && said.contains("(10047)") && said.contains("lower streams.logs_max"), "{said}");
}

#[tokio::test]
async fn dev_comes_up_on_a_disk_that_is_smaller_than_its_streams_may_become() {
    let Some(server) = Server::binary() else { return };
    let Some(disk) = Disk::make(Shape { mebibytes: 192, ..Shape::default() }) else { return };
    let name = leftovers::cgroup_place(&format!("windlass-test-w{}-small", std::process::id()));
    let mut dev = windlass_under(&disk.under());
    dev.args(["dev", "-o", "json", "--port", &free_port().to_string(), "--nats-server"])
        .arg(server)
        .arg("--data")
        .arg(disk.path().join("data"));
    dev.env("WINDLASS__CGROUP__PARENT", &name).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = dev.spawn().unwrap();
    crate::harness::watchdog::watchdog().adopt(child.id().unwrap());
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let ready = tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("it comes up or ends").unwrap();
    let Some(ready) = ready else { panic!("{}", said(&child.wait_with_output().await.unwrap())) };
    let ready: Value = serde_json::from_str(&ready).unwrap();
    let mut verb = command();
    verb.args(["run", "--server", ready["nats_url"].as_str().unwrap(), "--", "echo", "hello"]);
    let output = run(verb).await;
    assert_eq!((code(&output), text(&output).as_str()), (0, "hello\n"), "{}", said(&output));
    kill_process(Pid::from_raw(child.id().unwrap().cast_signed()).unwrap(), Signal::INT).unwrap();
    tokio::time::timeout(PATIENCE, child.wait()).await.expect("Ctrl-C ends it").unwrap();
    for path in leftovers::cgroup_parents(&name) {
        std::fs::remove_dir(path).unwrap();
    }
}

#[tokio::test]
async fn dev_is_everything_in_one_command_and_leaves_nothing() {
    let Some(server) = Server::binary() else { return };
    let mark = format!("dev-{}", std::process::id());
    let dir = crate::harness::watchdog::watchdog().dir().join(&mark);
    std::fs::create_dir_all(&dir).unwrap();
    let mut dev = command();
    dev.arg("dev").arg("--nats-server").arg(server).arg("--data").arg(dir.join("data")).current_dir(&dir);
    dev.env("WINDLASS_TEST_DEV", &mark).env("WINDLASS__CGROUP__PARENT", format!("windlass-test-{mark}"));
    let mut child = dev.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    crate::harness::watchdog::watchdog().adopt(child.id().unwrap());
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut noise = BufReader::new(child.stderr.take().unwrap()).lines();
    let url = tokio::time::timeout(PATIENCE, async {
        loop {
            let line = tokio::select! {
                line = lines.next_line() => line.unwrap().expect("it goes on"),
                Ok(Some(line)) = noise.next_line() => line,
            };
            if let Some(at) = line.find("nats://") {
                return line[at..].split_whitespace().next().unwrap().trim_matches(['\'', '"', '`', ',']).to_owned();
            }
        }
    });
    let url = url.await.expect("it prints the NATS URL");
    let mut verb = command();
    verb.args(["run", "--server", &url, "--", "echo", "hello"]);
    let output = run(verb).await;
    assert_eq!((code(&output), text(&output).as_str()), (0, "hello\n"), "{}", said(&output));
    let mut running = command();
    running.args(["run", "--server", &url, "--", "sleep", "1000"]).stdout(Stdio::null()).stderr(Stdio::null());
    let _running = running.spawn().unwrap();
    kill_process(Pid::from_raw(child.id().unwrap().cast_signed()).unwrap(), Signal::INT).unwrap();
    tokio::time::timeout(PATIENCE, child.wait()).await.expect("Ctrl-C ends it").unwrap();
    let left = leftovers::gone(std::time::Duration::from_secs(3), || leftovers::processes(&format!("WINDLASS_TEST_DEV={mark}"))).await;
    assert!(left.is_empty(), "{left:?}");
    let parent = format!("windlass-test-{mark}");
    let left = leftovers::gone(std::time::Duration::from_secs(3), || leftovers::cgroups(&parent)).await;
    assert!(left.is_empty(), "{left:?}");
    for path in leftovers::cgroup_parents(&parent) {
        std::fs::remove_dir(path).unwrap();
    }
}
