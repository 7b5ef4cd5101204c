//! One test for each invariant of the architecture, named after it, as far as this version reaches. Most are proven again
//! by the checker at the end of every other test; these look at the moment where each could break.

use std::time::{Duration, Instant};

use windlass::task::log_chunk::LogStream;
use windlass::task::{EventKind, Reason};

use crate::harness::job::Gate;
use crate::harness::server::{Options, Server};
use crate::harness::{Fleet, Job, PATIENCE, leftovers};

#[tokio::test]
async fn invariant_01_no_ack_without_a_receipt() {
    let Some(fleet) = Fleet::start(&[]).await else { return };
    fleet.worker(&[]);
    // LOGS refuses what is larger than this: the task's output can never be confirmed.
    let mut config = fleet.js.get_stream(fleet.stream("LOGS")).await.unwrap().cached_info().config.clone();
    let usual = config.max_message_size;
    config.max_message_size = 64;
    fleet.js.update_stream(config.clone()).await.unwrap();
    let gate = Gate::new(&fleet.dir, "receipt");
    let task = fleet.submit(&Job::bash(format!("echo something to be stored; {}", gate.wait()))).await;
    fleet.event(&task, EventKind::TaskStarted).await;
    gate.open();
    let gone = leftovers::gone(PATIENCE, || fleet.processes_of(&task.id)).await;
    assert!(gone.is_empty());
    // It is over on the machine, but its output is not stored: no end, no ack. A second task shows that time has passed.
    let silent = fleet.submit(&Job::bash("sleep 1")).await;
    fleet.end(&silent).await;
    assert!(fleet.chain(&task).iter().all(|l| l.event.event != EventKind::TaskCompleted), "completed although its output is not stored");
    if fleet.chain(&task).iter().all(|l| !l.event.event.is_terminal()) {
        assert!(fleet.queued().await.iter().any(|m| m.subject.ends_with(&format!(".{}", task.id))), "acked although nothing is stored");
    }
    config.max_message_size = usual;
    fleet.js.update_stream(config).await.unwrap();
    fleet.finish().await;
}

#[tokio::test]
async fn invariant_02_claim_before_side_effects() {
    let Some(server) = Server::private(Options::default()) else { return };
    let fleet = Fleet::on(server, &[]).await;
    fleet.worker(&[]);
    let warm = fleet.submit(&Job::argv(["true"])).await;
    fleet.end(&warm).await;
    // EVENTS takes nothing: a claim cannot be appended.
    let mut config = fleet.js.get_stream(fleet.stream("EVENTS")).await.unwrap().cached_info().config.clone();
    let usual = config.max_message_size;
    config.max_message_size = 64;
    fleet.js.update_stream(config.clone()).await.unwrap();
    let marker = fleet.dir.join("effect");
    let task = fleet.submit(&Job::bash(format!("echo x > '{}'", marker.display()))).await;
    let delivered = || async {
        let mut stream = fleet.js.get_stream(fleet.stream("TASKS")).await.unwrap();
        stream.info().await.unwrap();
        let consumer = stream.get_consumer::<async_nats::jetstream::consumer::pull::Config>("cpu_short-normal").await.unwrap();
        consumer.cached_info().num_ack_pending > 0
    };
    let deadline = Instant::now() + PATIENCE;
    while !delivered().await {
        assert!(Instant::now() < deadline, "never delivered");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // It has it and cannot claim it: long enough for any program to have started.
    let nothing = leftovers::gone(Duration::from_millis(700), || if marker.exists() { vec![] } else { vec![()] }).await;
    assert!(!nothing.is_empty(), "it ran without a claim");
    config.max_message_size = usual;
    fleet.js.update_stream(config).await.unwrap();
    assert_eq!(fleet.end(&task).await.reason, Some(Reason::Ok));
    assert!(marker.exists());
    fleet.finish().await;
}

#[tokio::test]
async fn invariant_03_one_owner_one_chain() {
    let Some(fleet) = Fleet::start(&[]).await else { return };
    fleet.worker(&[]);
    let gate = Gate::new(&fleet.dir, "owner");
    let task = fleet.submit(&Job::bash(format!("echo up; {}", gate.wait()))).await;
    fleet.output_has(&task, "up").await;
    // Somebody else takes the task over, lawfully: by appending the next claim to the chain.
    let claim = fleet.chain(&task)[0].clone();
    let mut event = claim.event.clone();
    event.task.attempt = 2;
    event.seq = 1;
    event.nonce = "somebody-else".into();
    event.prev_sha256 = Some(windlass::wire::sha256_hex(&claim.stored.body));
    event.id = format!("{}.2.task_started", task.id);
    let mut headers = claim.stored.headers.clone();
    headers.insert("Nats-Expected-Last-Subject-Sequence", claim.stored.sequence.to_string().as_str());
    headers.insert("ce-id", event.id.as_str());
    let body = windlass::wire::Encoding::Json.encode(&event).unwrap();
    fleet.js.publish_with_headers(claim.stored.subject.clone(), headers, body).await.unwrap().await.unwrap();
    // The worker finds out at the latest with its next look at the chain, and stops.
    let left = leftovers::gone(PATIENCE, || fleet.processes_of(&task.id)).await;
    assert!(left.is_empty(), "the fenced task runs on: {left:?}");
    gate.open();
    let probe = fleet.submit(&Job::argv(["true"])).await;
    fleet.end(&probe).await;
    assert_eq!(fleet.chain(&task).len(), 2, "the fenced worker wrote a word");
    let queued = fleet.queued().await;
    assert!(queued.iter().any(|m| m.subject.ends_with(&format!(".{}", task.id))), "the fenced worker acked");
    fleet.finish_unchecked().await;
}

#[tokio::test]
async fn invariant_04_renew_or_stop() {
    let Some(server) = Server::private(Options::default()) else { return };
    let fleet = Fleet::on(server, &[("LEASE__ACK_WAIT_S", "3")]).await;
    fleet.worker(&[]);
    let task =
        fleet.submit(&Job::bash("trap '' TERM; echo up; [ $WINDLASS_ATTEMPT -gt 1 ] || while :; do sleep 0.1; done").grace(60.0)).await;
    fleet.output_has(&task, "up").await;
    assert!(!fleet.processes_of(&task.id).is_empty());
    fleet.server.freeze();
    let frozen = Instant::now();
    let left = leftovers::gone(Duration::from_secs(3), || fleet.processes_of(&task.id)).await;
    let stopped = frozen.elapsed();
    fleet.server.thaw();
    assert!(left.is_empty(), "not renewed for {stopped:?}, and still running when another worker may start it: {left:?}");
    let end = fleet.end(&task).await;
    assert_eq!((end.reason, end.task.attempt), (Some(Reason::Ok), 2));
    fleet.finish().await;
}

#[tokio::test]
async fn invariant_05_capacity_before_pull() {
    let Some(fleet) = Fleet::start(&[]).await else { return };
    fleet.worker(&[("CAPACITY__SLOTS", "3")]);
    let gate = Gate::new(&fleet.dir, "capacity");
    let mut tasks = Vec::new();
    for _ in 0..10 {
        tasks.push(fleet.submit(&Job::bash(gate.wait())).await);
    }
    for task in &tasks[..3] {
        fleet.event(task, EventKind::TaskStarted).await;
    }
    let stream = fleet.js.get_stream(fleet.stream("TASKS")).await.unwrap();
    let pending = || async {
        let consumer = stream.get_consumer::<async_nats::jetstream::consumer::pull::Config>("cpu_short-normal").await.unwrap();
        consumer.cached_info().num_ack_pending
    };
    let watched = Instant::now();
    while watched.elapsed() < Duration::from_secs(1) {
        assert!(pending().await <= 3, "it holds messages that it cannot start");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Another worker finds everything else at once.
    fleet.worker(&[("CAPACITY__SLOTS", "16")]);
    for task in &tasks[3..] {
        assert_eq!(fleet.event(task, EventKind::TaskStarted).await.worker.worker_id.as_str(), "worker-1");
    }
    gate.open();
    fleet.finish().await;
}

#[tokio::test]
async fn invariant_06_everything_has_an_owner_and_a_label() {
    let Some(fleet) = Fleet::start(&[("LEASE__ACK_WAIT_S", "2")]).await else { return };
    let worker = fleet.worker_named("owner", &[]);
    let task = fleet.submit(&Job::bash("setsid sleep 1000 & echo up; [ $WINDLASS_ATTEMPT -gt 1 ] || wait")).await;
    fleet.output_has(&task, "up").await;
    let instance = fleet.chain(&task)[0].event.worker.instance.clone();
    let parent = fleet.cgroup_parent();
    let cgroups = leftovers::cgroups(&parent);
    // On a machine that is slower than the lease it may be another attempt's by now.
    let label = format!("{}.", task.id);
    assert!(cgroups.iter().any(|c| c.to_string_lossy().contains(&instance) && c.to_string_lossy().contains(&label)), "{cgroups:?}");
    let dirs: Vec<_> =
        std::fs::read_dir(worker.state_dir()).unwrap().flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    assert_eq!(dirs, std::slice::from_ref(&instance), "directories carry the instance");
    // A stranger's things beside its own.
    let stranger = worker.state_dir().join("not-an-instance");
    std::fs::create_dir(&stranger).unwrap();
    worker.kill9().await;
    let left = leftovers::gone(Duration::from_secs(1), || leftovers::cgroups(&parent)).await;
    assert!(left.is_empty(), "a second after its death: {left:?}");
    fleet.worker_named("owner", &[]);
    fleet.end(&task).await;
    assert!(stranger.is_dir(), "a sweep removed what is not its own");
    std::fs::remove_dir(&stranger).unwrap();
    fleet.finish().await;
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0)
}

#[tokio::test]
async fn invariant_07_bounded_memory() {
    let Some(server) = Server::private(Options::default()) else { return };
    let fleet = Fleet::on(server, &[("LEASE__ACK_WAIT_S", "60")]).await;
    let worker = fleet.worker(&[]);
    let gate = Gate::new(&fleet.dir, "flood");
    let task = fleet
        .submit(&Job::bash(format!(
            "echo up; {}; yes 0123456789 | head -c 200000000; echo > '{}'",
            gate.wait(),
            fleet.dir.join("flooded").display()
        )))
        .await;
    fleet.output_has(&task, "up").await;
    let before = resident_kib(worker.pid);
    fleet.server.freeze();
    gate.open();
    let mut peak = 0;
    let deadline = Instant::now() + Duration::from_secs(40);
    while !fleet.dir.join("flooded").exists() {
        assert!(Instant::now() < deadline, "an absent broker blocks the task");
        peak = peak.max(resident_kib(worker.pid));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    fleet.server.thaw();
    let end = fleet.end(&task).await;
    assert_eq!((end.reason, end.logs.unwrap().stdout.bytes), (Some(Reason::Ok), 200_000_003));
    assert!(peak < before + (64 << 10), "200 MB of output grew the worker from {before} KiB to {peak} KiB");
    fleet.finish().await;
}

#[tokio::test]
async fn invariant_08_only_masked_bytes_leave() {
    // In all its forms and on all ways out: `secrets`.
    let Some(fleet) = Fleet::start(&[("TENANTS__ACME__SECRETS", r#"["env:CANARY"]"#)]).await else { return };
    fleet.worker(&[("env:CANARY", "a-canary-of-invariant-8")]);
    let script = "echo out $TOKEN; echo err $TOKEN >&2; echo \"\\\"$TOKEN\\\"\" > $WINDLASS_RESULT";
    let task = fleet.submit(&Job::bash(script).set("/secrets", serde_json::json!([{"name": "TOKEN", "ref": "env:CANARY"}]))).await;
    let end = fleet.end(&task).await;
    assert_eq!((end.reason, end.stderr_tail.as_deref()), (Some(Reason::Ok), Some("err ***\n")));
    assert_eq!(end.result.as_ref().map(|r| r.value.clone()), Some("***".into()));
    assert_eq!(fleet.output(&task, &end, LogStream::Stdout).await, b"out ***\n");
    fleet.finish().await;
}

#[tokio::test]
async fn invariant_09_every_bad_input_has_a_name() {
    let Some(fleet) = Fleet::with_worker(4, &[]).await else { return };
    let whole = serde_json::to_vec(&Job::argv(["true"]).id("x").body).unwrap();
    let packed = Job::argv(["true"]).id("x").msgpack().encode();
    let mut seed = 7_u32;
    for n in 0..120 {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let mut body = if n % 2 == 0 { whole.clone() } else { packed.clone() };
        let at = (seed >> 8) as usize % body.len();
        match n % 3 {
            0 => body.truncate(at),
            1 => body[at] ^= (seed >> 24) as u8 | 1,
            _ => drop(body.splice(at..at, *b"\0\xff{")),
        }
        fleet.submit_raw(&format!("fuzz{n}"), None, body).await;
    }
    for task in fleet.submitted() {
        let end = fleet.end(&task).await;
        assert_eq!((end.event, end.reason), (EventKind::TaskFailed, Some(Reason::InvalidAssignment)), "{}", task.id);
    }
    fleet.finish().await;
}

#[tokio::test]
async fn invariant_10_a_limit_that_could_not_be_set_is_a_failure() {
    let Some(fleet) = Fleet::start(&[]).await else { return };
    fleet.worker(&[]);
    // Limits on a device's operations that this kernel either enforces or cannot: never silently dropped.
    let job = Job::argv(["true"]).set("/execution/resources/io", serde_json::json!({"write_bytes_per_s": 1_000_000}));
    let task = fleet.submit(&job.set("/retry/max_attempts", 1)).await;
    let end = fleet.end(&task).await;
    match end.reason {
        Some(Reason::Ok) => {
            let limits = end.run.unwrap().limits.unwrap();
            assert_eq!(limits.io.and_then(|io| io.write_bytes_per_s), Some(1_000_000));
            assert!(limits.enforced);
        }
        Some(Reason::IsolationUnavailable) => assert!(end.error.is_some_and(|e| e.contains("io") || e.contains("blkio"))),
        other => panic!("{other:?}: {:?}", end.error),
    }
    fleet.finish().await;
}
