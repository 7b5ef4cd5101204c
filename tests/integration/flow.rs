//! From an assignment to its end.

use serde_json::json;
use windlass::task::log_chunk::LogStream;
use windlass::task::{EventKind, Reason};

use crate::harness::job::Gate;
use crate::harness::{Fleet, Job};

#[tokio::test]
async fn a_no_op_goes_from_assignment_to_completed_in_both_encodings() {
    let Some(fleet) = Fleet::with_worker(4, &[]).await else { return };
    let argv = || Job::argv(["/bin/true"]);
    for job in [argv(), argv().msgpack(), argv().without_content_type(), argv().msgpack().without_content_type()] {
        let task = fleet.submit(&job).await;
        let end = fleet.end(&task).await;
        assert_eq!((end.event, end.reason, end.exit_code), (EventKind::TaskCompleted, Some(Reason::Ok), Some(0)), "{end:?}");
        let chain = fleet.chain(&task);
        assert_eq!(chain.len(), 2, "started and completed, nothing else");
        assert_eq!(chain[0].event.task.submitted_at, end.task.submitted_at);
        assert_eq!(end.logs.expect("a manifest").chunks, 0, "a task without output has no chunk");
    }
    fleet.finish().await;
}

#[tokio::test]
async fn events_and_chunks_are_messagepack_where_it_is_configured() {
    let Some(fleet) = Fleet::with_worker(2, &[("EVENTS__ENCODING", "msgpack")]).await else { return };
    let task = fleet.submit(&Job::bash("printf 'a\\0b\\377'; echo err >&2").set("/context", json!({"deep": [1, null, "x"]}))).await;
    let end = fleet.end(&task).await;
    let chain = fleet.chain(&task);
    assert!(chain.iter().all(|l| l.stored.header("Content-Type") == Some("application/vnd.msgpack")));
    assert_eq!(end.task.context, json!({"deep": [1, null, "x"]}));
    assert_eq!(fleet.output(&task, &end, LogStream::Stdout).await, b"a\0b\xff");
    assert_eq!(fleet.output(&task, &end, LogStream::Stderr).await, b"err\n");
    fleet.finish().await;
}

#[tokio::test]
async fn what_the_publisher_says_comes_back_in_every_event() {
    let Some(fleet) = Fleet::with_worker(2, &[]).await else { return };
    let job = Job::argv(["true"])
        .set("/workflow_id", "nightly")
        .set("/name", "a name")
        .set("/labels", json!({"team": "bi"}))
        .set("/context", json!({"any": "thing"}))
        .set("/tenant", "acme")
        .set("/class", "cpu_short");
    let task = fleet.submit(&job).await;
    fleet.end(&task).await;
    let digest = windlass::wire::sha256_hex(&job.encode());
    for link in fleet.chain(&task) {
        let info = &link.event.task;
        assert_eq!((info.workflow_id.as_deref(), info.name.as_deref()), (Some("nightly"), Some("a name")));
        assert_eq!((info.labels["team"].as_str(), &info.context["any"]), ("bi", &json!("thing")));
        assert_eq!((info.assignment_sha256.as_str(), info.deliveries), (digest.as_str(), 1));
        assert_eq!(link.event.worker.worker_id.as_str(), "worker-0");
    }
    fleet.finish().await;
}

#[tokio::test]
async fn a_task_sees_its_own_facts_and_nothing_of_the_worker() {
    let Some(fleet) = Fleet::with_worker(2, &[]).await else { return };
    let script = r#"env; echo "cwd=$PWD"; [ -d "$WINDLASS_OUTPUTS" ] && echo outputs=there; ls /proc/self/fd | tr '\n' ' ' >&2"#;
    let task = fleet.submit(&Job::bash(script).set("/execution/env", json!({"MINE": "a=b", "WINDLASS_ATTEMPT": "99"}))).await;
    let end = fleet.end(&task).await;
    let text = String::from_utf8(fleet.output(&task, &end, LogStream::Stdout).await).unwrap();
    let fence = fleet.chain(&task)[0].stored.sequence;
    for line in [
        &format!("WINDLASS_TASK_ID={}", task.id),
        "WINDLASS_ATTEMPT=1",
        &format!("WINDLASS_FENCE={fence}"),
        "WINDLASS_TENANT=acme",
        "WINDLASS_CLASS=cpu_short",
        "MINE=a=b",
        "outputs=there",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
    }
    let of = |name: &str| text.lines().find_map(|l| l.strip_prefix(name)).map(str::to_owned);
    assert_eq!(of("cwd="), of("WINDLASS_WORKDIR="), "a task starts in its own directory");
    for name in ["WINDLASS_RESULT=", "WINDLASS_PROGRESS=", "WINDLASS_OUTPUTS=", "PATH="] {
        assert!(of(name).is_some(), "{name} is missing in\n{text}");
    }
    assert!(!text.contains("WINDLASS__") && !text.contains("WINDLASS_TEST_RUN") && !text.contains("NATS_URL"), "the worker's own\n{text}");
    let descriptors = String::from_utf8(fleet.output(&task, &end, LogStream::Stderr).await).unwrap();
    // The fourth is that of ls itself.
    assert_eq!(descriptors.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"], "descriptors of the worker were inherited");
    fleet.finish().await;
}

#[tokio::test]
async fn standard_input_arguments_and_directory_are_as_asked() {
    let Some(fleet) = Fleet::with_worker(2, &[]).await else { return };
    let dir = fleet.dir.join("elsewhere");
    std::fs::create_dir(&dir).unwrap();
    let job = Job::bash(r#"cat; printf '<%s>' "$@"; pwd"#)
        .set("/execution/stdin", "line\nwithout end ü")
        .set("/execution/args", json!(["one two", "", "$HOME"]))
        .set("/execution/working_dir", dir.to_str().unwrap());
    let asked = fleet.submit(&job).await;
    let plain = fleet.submit(&Job::argv(["cat"])).await;
    let end = fleet.end(&asked).await;
    let expected = format!("line\nwithout end ü<one two><><$HOME>{}\n", dir.display());
    assert_eq!(String::from_utf8(fleet.output(&asked, &end, LogStream::Stdout).await).unwrap(), expected);
    let end = fleet.end(&plain).await;
    assert_eq!((end.reason, end.logs.unwrap().stdout.bytes), (Some(Reason::Ok), 0), "without text standard input is empty, not open");
    fleet.finish().await;
}

#[tokio::test]
async fn the_publishers_trace_goes_on_in_the_task() {
    let Some(fleet) = Fleet::with_worker(1, &[]).await else { return };
    let job = Job::bash("echo \"$TRACEPARENT\"");
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("traceparent", trace);
    let subject = fleet.subject(&job, &job.task_id());
    fleet.js.publish_with_headers(subject, headers, job.encode().into()).await.unwrap().await.unwrap();
    let task = crate::harness::Task { tenant: "acme".into(), id: job.task_id() };
    let end = fleet.end(&task).await;
    let text = String::from_utf8(fleet.output(&task, &end, LogStream::Stdout).await).unwrap();
    assert!(text.contains("0af7651916cd43dd8448eb211c80319c"), "the task has TRACEPARENT {text:?}");
    fleet.finish().await;
}

#[tokio::test]
async fn high_goes_first_and_low_does_not_starve() {
    let Some(fleet) = Fleet::with_worker(1, &[]).await else { return };
    let gate = Gate::new(&fleet.dir, "queue");
    let blocker = fleet.submit(&Job::bash(gate.wait())).await;
    fleet.event(&blocker, EventKind::TaskStarted).await;
    let mut tasks = Vec::new();
    for (priority, count) in [("low", 4), ("normal", 10), ("high", 30)] {
        for _ in 0..count {
            tasks.push((priority, fleet.submit(&Job::argv(["true"]).priority(priority)).await));
        }
    }
    gate.open();
    let mut order = Vec::new();
    for (priority, task) in &tasks {
        fleet.end(task).await;
        order.push((fleet.chain(task)[0].stored.sequence, *priority));
    }
    order.sort_unstable();
    let words: Vec<_> = order.iter().map(|(_, p)| *p).collect();
    let share = |p: &str, n: usize| words[..n].iter().filter(|w| **w == p).count();
    assert!(share("high", 12) >= 7, "most of the first are high: {words:?}");
    let last = |p: &str| words.iter().rposition(|w| *w == p).unwrap();
    let first = |p: &str| words.iter().position(|w| *w == p).unwrap();
    assert!(last("high") < last("normal"), "high is through before normal: {words:?}");
    assert!(first("low") < last("high"), "low is served although high is waiting: {words:?}");
    fleet.finish().await;
}

#[tokio::test]
async fn a_task_too_big_for_one_worker_is_left_to_a_bigger_one() {
    let Some(fleet) = Fleet::start(&[("WORKER__SHED_DELAY_S", "0.2")]).await else { return };
    fleet.worker(&[("CAPACITY__CPUS", "1"), ("CAPACITY__MEMORY", "1GiB"), ("CAPACITY__SLOTS", "2")]);
    let small = fleet.submit(&Job::argv(["true"])).await;
    assert_eq!(fleet.end(&small).await.worker.worker_id.as_str(), "worker-0");
    let big = fleet.submit(&Job::argv(["true"]).set("/execution/resources/cpus", 4.0)).await;
    let wide = fleet.submit(&Job::argv(["true"]).memory("3GiB")).await;
    // What it gives back must not keep it from other work.
    let next = fleet.submit(&Job::argv(["true"])).await;
    assert_eq!(fleet.end(&next).await.worker.worker_id.as_str(), "worker-0");
    assert!(fleet.chain(&big).is_empty(), "a task that does not fit was claimed");
    fleet.worker(&[]);
    for task in [&big, &wide] {
        let end = fleet.end(task).await;
        assert_eq!((end.reason, end.worker.worker_id.as_str(), end.task.attempt), (Some(Reason::Ok), "worker-1", 1));
    }
    fleet.finish().await;
}

#[tokio::test]
async fn tasks_of_two_classes_are_served_with_the_slots_of_each() {
    let Some(fleet) = Fleet::start(&[("CLASSES__SLOW__SLOTS", "1"), ("CLASSES__SLOW__TIMEOUT_S", "30")]).await else { return };
    fleet.worker(&[("CAPACITY__SLOTS", "4")]);
    let gate = Gate::new(&fleet.dir, "slow");
    let slow = |script: String| {
        let mut job = Job::bash(script);
        job.class = "slow".into();
        job
    };
    let first = fleet.submit(&slow(gate.wait())).await;
    fleet.event(&first, EventKind::TaskStarted).await;
    let second = fleet.submit(&slow("true".into())).await;
    let other = fleet.submit(&Job::argv(["true"])).await;
    fleet.end(&other).await;
    assert!(fleet.chain(&second).is_empty(), "the class has one slot, and it is taken");
    gate.open();
    assert_eq!(fleet.end(&second).await.reason, Some(Reason::Ok));
    fleet.finish().await;
}

#[tokio::test]
async fn a_worker_with_fewer_slots_than_queues_serves_all_its_classes() {
    let classes = ["alpha", "beta", "gamma", "omega"];
    let settings: Vec<(String, &str)> = classes.iter().map(|class| (format!("CLASSES__{}__SLOTS", class.to_uppercase()), "0")).collect();
    let settings: Vec<(&str, &str)> = settings.iter().map(|(key, value)| (key.as_str(), *value)).collect();
    let Some(fleet) = Fleet::start(&settings).await else { return };
    fleet.worker(&[("CAPACITY__SLOTS", "1")]);
    let of = |class: &str| {
        let mut job = Job::argv(["true"]);
        job.class = class.to_owned();
        job
    };
    // While all is quiet, and while one class has more than the worker can do.
    for class in classes.into_iter().rev() {
        let task = fleet.submit(&of(class)).await;
        assert_eq!(fleet.end(&task).await.reason, Some(Reason::Ok), "{class}");
    }
    let mut flood = Vec::new();
    for _ in 0..200 {
        flood.push(fleet.submit(&of("alpha")).await);
    }
    let other = fleet.submit(&of("omega")).await;
    assert_eq!(fleet.end(&other).await.reason, Some(Reason::Ok));
    let last = flood.last().expect("some");
    assert!(fleet.chain(last).is_empty(), "omega had to wait until alpha had nothing more to do");
    for task in &flood {
        fleet.end(task).await;
    }
    fleet.finish().await;
}
