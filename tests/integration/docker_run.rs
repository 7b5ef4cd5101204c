//! What is a container's own: how it is closed, what it is given, and why it does not start. What it shares with native tasks is
//! in `docker_table`.

use serde_json::json;
use windlass::task::log_chunk::LogStream;
use windlass::task::{EventKind, Outcome, Reason};

use crate::harness::{Fleet, Job, slowness};

/// Lines of a task's standard output.
async fn lines(fleet: &Fleet, job: &Job) -> Vec<String> {
    let task = fleet.submit(job).await;
    let end = fleet.end(&task).await;
    assert_eq!(end.reason, Some(Reason::Ok), "{:?} {:?} {:?}", end.error, end.hint, end.stderr_tail);
    let output = fleet.output(&task, &end, LogStream::Stdout).await;
    String::from_utf8(output).unwrap().lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn hello_from_a_container() {
    let Some(fleet) = Fleet::docker(&[]).await else { return };
    fleet.worker(&[]);
    let task = fleet.submit(&Job::container(["echo", "hello"])).await;
    let end = fleet.end(&task).await;
    assert_eq!(
        (end.event, end.reason, end.outcome),
        (EventKind::TaskCompleted, Some(Reason::Ok), Some(Outcome::Success)),
        "{:?}",
        end.error
    );
    assert_eq!(fleet.output(&task, &end, LogStream::Stdout).await, b"hello\n");
    let run = end.run.unwrap();
    assert!(run.image.is_some_and(|image| image.contains("windlass-test/base:1")));
    assert!(run.image_digest.is_some_and(|digest| digest.starts_with("sha256:")));
    assert!(run.container_id.is_some_and(|id| id.len() == 64));
    assert_eq!((run.pid, run.sandbox), (None, None));
    let usage = end.usage.unwrap();
    assert!(usage.memory_peak_bytes > 0, "{usage:?}");
    fleet.finish().await;
}

/// Everything that isolates it, as its own program sees it.
#[tokio::test]
async fn a_container_is_closed_unless_something_is_asked_for() {
    let Some(fleet) = Fleet::docker(&[]).await else { return };
    fleet.worker(&[]);
    let script = r#"
        grep -E '^(CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\t'
        touch /written 2>/dev/null && echo 'root written'
        touch /tmp/x && echo 'tmp written'
        touch here && echo 'work written'
        echo "dir $(pwd)"
        echo "interfaces $(ls /sys/class/net | tr '\n' ' ')"
        echo "id $(id -u):$(id -g)"
        test -e /var/run/docker.sock && echo 'a socket of the engine'
        echo "processes $(ls -d /proc/[0-9]* | wc -l)"
        echo "result $WINDLASS_RESULT, home $HOME, path $PATH"
    "#;
    let lines = lines(&fleet, &Job::container_script(script)).await;
    let has = |line: &str| lines.iter().any(|l| l == line);
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(has(&format!("{set}:0000000000000000")), "{set}: {lines:#?}");
    }
    for line in ["NoNewPrivs:1", "Seccomp:2", "tmp written", "work written", "dir /windlass/work", "interfaces lo "] {
        assert!(has(line), "{line}: {lines:#?}");
    }
    assert!(has("result /windlass/result.json, home /windlass/work, path /bin"), "{lines:#?}");
    assert!(!has("root written") && !has("a socket of the engine"), "{lines:#?}");
    let id = lines.iter().find_map(|line| line.strip_prefix("id ")).unwrap();
    assert!(!id.starts_with("0:") || !rustix::process::geteuid().is_root(), "root in a container: {id}");
    let processes: u32 = lines.iter().find_map(|line| line.strip_prefix("processes ")).unwrap().parse().unwrap();
    assert!(processes < 10, "it sees others' processes: {lines:#?}");
    fleet.finish().await;
}

#[tokio::test]
async fn a_container_is_given_what_its_assignment_says() {
    let Some(fleet) = Fleet::docker(&[]).await else { return };
    fleet.worker(&[]);
    let script = r#"cat; echo "$GREETING"; echo '{"answer": 42}' > "$WINDLASS_RESULT"; cat "$1/file""#;
    let source = fleet.dir.join("given");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("file"), "mounted\n").unwrap();
    let job = Job::container(["-c", script, "sh", "/given"])
        .set("/execution/entrypoint", json!(["sh"]))
        .set("/execution/stdin", "from stdin\n")
        .set("/execution/env", json!({"GREETING": "hi"}))
        .set("/execution/mounts", json!([{"source": source, "target": "/given"}]));
    let task = fleet.submit(&job).await;
    let end = fleet.end(&task).await;
    assert_eq!(end.reason, Some(Reason::Ok), "{:?} {:?}", end.error, end.stderr_tail);
    assert_eq!(fleet.output(&task, &end, LogStream::Stdout).await, b"from stdin\nhi\nmounted\n");
    assert_eq!(end.result.unwrap().value, json!({"answer": 42}));
    fleet.finish().await;
}

#[tokio::test]
async fn a_link_that_leads_out_of_the_allowed_root_is_not_mounted() {
    let Some(fleet) = Fleet::docker(&[]).await else { return };
    fleet.worker(&[]);
    std::os::unix::fs::symlink("/etc", fleet.dir.join("out")).unwrap();
    let mount =
        |source: &str| Job::container(["true"]).set("/execution/mounts", json!([{"source": fleet.dir.join(source), "target": "/given"}]));
    for (source, reason) in [("out", Reason::PolicyRefused), ("absent", Reason::SpawnFailed)] {
        let task = fleet.submit(&mount(source)).await;
        let end = fleet.end(&task).await;
        assert_eq!(end.reason, Some(reason), "{source}: {:?}", end.error);
    }
    let writable =
        Job::container(["sh", "-c", "touch /given/x"]).set("/execution/mounts", json!([{"source": fleet.dir, "target": "/given"}]));
    let task = fleet.submit(&writable).await;
    assert_eq!(fleet.end(&task).await.reason, Some(Reason::ExitNonzero), "read-only unless said otherwise");
    fleet.finish().await;
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    let Some(fleet) = Fleet::docker(&[]).await else { return };
    fleet.worker(&[]);
    for (job, word) in [
        (Job::container(["no-such-program"]), "no-such-program"),
        (Job::container(["/etc/passwd"]), "/etc/passwd"),
        (Job::container(["true"]).set("/execution/working_dir", "/etc/passwd"), "working_dir"),
    ] {
        let task = fleet.submit(&job).await;
        let end = fleet.end(&task).await;
        assert_eq!((end.event, end.reason), (EventKind::TaskFailed, Some(Reason::SpawnFailed)), "{:?}", end.error);
        let told = format!("{} {}", end.error.unwrap(), end.hint.unwrap());
        assert!(told.contains(word), "{told}");
    }
    let absent = Job::container(["true"]).set("/execution/image", "windlass-test/absent:1");
    let task = fleet.submit(&absent).await;
    assert_eq!(fleet.end(&task).await.reason, Some(Reason::ImageNotFound));
    fleet.finish().await;
}

#[tokio::test]
async fn limits_hold_in_a_container() {
    let Some(fleet) = Fleet::docker(&[]).await else { return };
    fleet.worker(&[]);
    let long = 60.0 * f64::from(slowness());
    let eater = Job::container_script("head -c 400m /dev/zero | tail").memory("32MiB").timeout(long);
    let task = fleet.submit(&eater).await;
    let end = fleet.end(&task).await;
    assert_eq!(end.reason, Some(Reason::OomKilled), "{:?} {:?}", end.error, end.usage);
    assert!(end.usage.unwrap().oom_kills >= 1);
    let coping = Job::container_script("(head -c 400m /dev/zero | tail) ; echo survived").memory("32MiB").timeout(long);
    let task = fleet.submit(&coping).await;
    let end = fleet.end(&task).await;
    assert_eq!(end.reason, Some(Reason::Ok), "an exit status of 0 is success: {:?}", end.error);
    assert!(end.usage.unwrap().oom_kills >= 1, "and the kill is counted");
    let bomb = Job::container_script("for i in $(seq 100); do sleep 1000 & done; echo no").set("/execution/resources/pids", 16);
    let task = fleet.submit(&bomb.timeout(20.0)).await;
    let end = fleet.end(&task).await;
    assert!(end.usage.unwrap().pids_peak <= 16, "{end:?}");
    fleet.finish().await;
}

#[tokio::test]
async fn images_and_numbers_may_be_asked_for_as_the_user() {
    let Some(fleet) = Fleet::docker(&[("CLASSES__CPU_SHORT__USERS", r#"["image", "1234:4321"]"#)]).await else { return };
    fleet.worker(&[]);
    let job = |user: &str| Job::container_script("touch f; echo '1' > $WINDLASS_RESULT; id -u").set("/execution/user", user);
    assert_eq!(lines(&fleet, &job("image")).await, ["0"]);
    assert_eq!(lines(&fleet, &job("1234:4321")).await, ["1234"]);
    let task = fleet.submit(&job("1")).await;
    assert_eq!(fleet.end(&task).await.reason, Some(Reason::PolicyRefused));
    fleet.finish().await;
}

/// Without a cgroup that the engine could be given: its own limits hold, and its API kills and counts.
#[tokio::test]
async fn an_engine_that_cannot_be_given_a_cgroup_is_asked_itself() {
    let Some(fleet) = Fleet::docker(&[]).await else { return };
    let nowhere = fleet.dir.join("no-cgroups");
    std::fs::create_dir(&nowhere).unwrap();
    fleet.worker(&[("CGROUP__MOUNT", nowhere.to_str().unwrap()), ("CGROUP__ALLOW_UNLIMITED", "true")]);
    let task = fleet.submit(&Job::container_script("head -c 400m /dev/zero | tail").memory("32MiB")).await;
    let end = fleet.end(&task).await;
    assert_eq!(end.reason, Some(Reason::OomKilled), "{:?} {:?}", end.error, end.usage);
    let polite = Job::container_script("trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done").grace(30.0);
    let rude = Job::container_script("trap '' TERM; echo up; while :; do sleep 0.05; done").grace(0.3);
    for (job, output) in [(polite, "up\nbye\n"), (rude, "up\n")] {
        let task = fleet.submit(&job).await;
        fleet.output_has(&task, "up").await;
        fleet.cancel(&task).await;
        let end = fleet.end(&task).await;
        assert_eq!(end.reason, Some(Reason::Canceled));
        assert_eq!(String::from_utf8(fleet.output(&task, &end, LogStream::Stdout).await).unwrap(), output);
    }
    // Longer than the engine takes to answer: what ends before its first look is not measured.
    let long = fleet.submit(&Job::container_script("sleep 3")).await;
    let end = fleet.end(&long).await;
    assert!(end.usage.unwrap().memory_peak_bytes > 0, "the engine was asked");
    fleet.finish().await;
}

#[tokio::test]
async fn a_flood_arrives_whole_and_in_order() {
    let Some(fleet) = Fleet::docker(&[("LOGS__CAP", "512MiB")]).await else { return };
    fleet.worker(&[]);
    let task = fleet.submit(&Job::container_script("seq 1 2000000; seq 1 100000 >&2").timeout(50.0)).await;
    let end = fleet.end(&task).await;
    assert_eq!(end.reason, Some(Reason::Ok), "{:?}", end.error);
    let lines = |output: Vec<u8>| String::from_utf8(output).unwrap().lines().map(|line| line.parse().unwrap()).collect::<Vec<u32>>();
    assert!(lines(fleet.output(&task, &end, LogStream::Stdout).await).into_iter().eq(1..=2_000_000));
    assert!(lines(fleet.output(&task, &end, LogStream::Stderr).await).into_iter().eq(1..=100_000));
    fleet.finish().await;
}
