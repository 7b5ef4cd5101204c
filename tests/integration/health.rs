//! `/healthz` and `/readyz`: what an orchestrator of processes asks, and what strangers may try.

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use windlass::task::{EventKind, Reason};

use crate::harness::http::{get, send};
use crate::harness::job::Gate;
use crate::harness::proxy::Proxy;
use crate::harness::server::{Options, Server};
use crate::harness::{Fleet, Job, PATIENCE};

#[tokio::test]
async fn readiness_follows_the_server() {
    let Some(server) = Server::private(Options::default()) else { return };
    let fleet = Fleet::on(server, &[]).await;
    let worker = fleet.worker(&[]);
    worker.is_fit().await;
    fleet.server.kill9();
    worker.readiness("unready", |status, body| status == 503 && body["conditions"]["nats"]["ok"] == false).await;
    assert_eq!(get(&worker.http().await, "/healthz").await.unwrap().status, 200, "it lives, and a restart would mend nothing");
    fleet.server.restart();
    worker.is_fit().await;
    let task = fleet.submit(&Job::argv(["true"])).await;
    assert_eq!(fleet.end(&task).await.reason, Some(Reason::Ok));
    fleet.finish().await;
}

#[tokio::test]
async fn a_worker_that_waits_for_its_server_lives_and_is_not_ready() {
    let Some(fleet) = Fleet::start(&[]).await else { return };
    let lonely = fleet.worker_at("lonely", "nats://127.0.0.1:1", &[]);
    lonely.not_ready_for(&["disk", "engine", "nats", "pulling", "streams", "supervisor"]).await;
    let metrics = lonely.metrics().await;
    assert_eq!(
        (metrics.value("windlass_worker_state{state=\"starting\"}"), metrics.value("windlass_worker_state{state=\"running\"}")),
        (1.0, 0.0)
    );
    lonely.signal(Signal::TERM);
    assert!(lonely.exit(PATIENCE).await.success());
    fleet.finish_unchecked().await;
}

#[tokio::test]
async fn a_draining_worker_is_not_ready() {
    let Some(fleet) = Fleet::start(&[("WORKER__DRAIN_TIMEOUT_S", "600")]).await else { return };
    let worker = fleet.worker(&[]);
    let gate = Gate::new(&fleet.dir, "drain");
    let task = fleet.submit(&Job::bash(gate.wait())).await;
    fleet.event(&task, EventKind::TaskStarted).await;
    worker.is_fit().await;
    worker.signal(Signal::TERM);
    worker.not_ready_for(&["not_draining"]).await;
    let metrics = worker.metrics().await;
    assert_eq!(
        (metrics.value("windlass_worker_state{state=\"draining\"}"), metrics.value("windlass_worker_state{state=\"running\"}")),
        (1.0, 0.0)
    );
    assert_eq!(metrics.value("windlass_worker_condition{condition=\"not_draining\"}"), 0.0);
    assert_eq!(get(&worker.http().await, "/healthz").await.unwrap().status, 200);
    gate.open();
    assert!(worker.exit(PATIENCE).await.success());
    fleet.finish().await;
}

#[tokio::test]
async fn a_worker_without_its_supervisor_is_not_ready() {
    let Some(fleet) = Fleet::start(&[]).await else { return };
    // It gives its task back to a server that does not answer: it takes a while to end.
    let proxy = Proxy::before(&fleet.server);
    let worker = fleet.worker_at("orphan", &proxy.url(), &[]);
    let task = fleet.submit(&Job::argv(["sleep", "1000"]).set("/retry/max_attempts", 2)).await;
    fleet.running(&task).await;
    worker.is_fit().await;
    proxy.partition();
    let supervisor = worker.children()[0];
    kill_process(Pid::from_raw(supervisor.cast_signed()).unwrap(), Signal::KILL).unwrap();
    worker.readiness("unready", |status, body| status == 503 && body["conditions"]["supervisor"]["ok"] == false).await;
    proxy.mend();
    assert!(!worker.exit(PATIENCE).await.success(), "without a supervisor it cannot go on");
    fleet.finish_unchecked().await;
}

#[tokio::test]
async fn readiness_follows_the_disk() {
    let Some(fleet) = Fleet::start(&[]).await else { return };
    let worker = fleet.worker(&[]);
    worker.is_fit().await;
    let instance = std::fs::read_dir(worker.state_dir()).unwrap().next().unwrap().unwrap().path();
    let away = worker.state_dir().with_extension("away");
    std::fs::rename(&instance, &away).unwrap();
    worker.not_ready_for(&["disk"]).await;
    std::fs::rename(&away, &instance).unwrap();
    worker.is_fit().await;
    fleet.finish().await;
}

#[tokio::test]
async fn readiness_follows_the_streams() {
    let Some(server) = Server::private(Options::default()) else { return };
    let fleet = Fleet::on(server, &[]).await;
    let worker = fleet.worker(&[]);
    worker.is_fit().await;
    fleet.js.delete_stream(fleet.stream("TASKS")).await.unwrap();
    worker.not_ready_for(&["pulling", "streams"]).await;
    worker.says(&["the streams do not keep the contract any more", "TASKS: does not exist"]).await;
    assert!(fleet.cli(["init"]).output().await.unwrap().status.success());
    worker.is_fit().await;
    worker.says(&["the streams keep the contract again"]).await;
    let task = fleet.submit(&Job::argv(["true"])).await;
    assert_eq!(fleet.end(&task).await.reason, Some(Reason::Ok));
    fleet.finish().await;
}

#[tokio::test]
async fn strangers_can_read_and_nothing_else() {
    let Some(fleet) = Fleet::start(&[]).await else { return };
    let worker = fleet.worker(&[]);
    worker.is_fit().await;
    let address = worker.http().await;
    assert_eq!(get(&address, "/nothing").await.unwrap().status, 404);
    for (path, method) in [("/metrics", "POST"), ("/readyz", "DELETE"), ("/healthz", "PUT")] {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc");
        assert_eq!(send(&address, request.as_bytes()).await.unwrap().status, 405, "{method} {path}");
    }
    // One that never says that it has a request does not keep its place, and does not keep others out.
    let mut silent = Vec::new();
    for _ in 0..40 {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nX: ").await.unwrap();
        silent.push(stream);
    }
    assert_eq!(get(&address, "/healthz").await.unwrap().status, 200, "after the silent ones had their time");
    for mut stream in silent {
        let mut rest = Vec::new();
        let end = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        assert!(end.is_ok(), "a connection without a request is still open");
    }
    // A head without an end is refused before it is large.
    let mut endless = TcpStream::connect(&address).await.unwrap();
    let sent = tokio::time::timeout(PATIENCE, async {
        endless.write_all(b"GET /healthz HTTP/1.1\r\n").await?;
        for n in 0..100_000 {
            endless.write_all(format!("X-{n}: {}\r\n", "x".repeat(1000)).as_bytes()).await?;
        }
        Ok::<_, std::io::Error>(())
    });
    assert!(sent.await.unwrap().is_err(), "100 MB of headers were taken");
    fleet.finish().await;
}

#[tokio::test]
async fn an_address_that_is_taken_is_an_error_only_where_it_was_asked_for() {
    let Some(fleet) = Fleet::start(&[]).await else { return };
    let first = fleet.worker(&[]);
    let taken = first.http().await;
    let second = fleet.worker(&[("HTTP__LISTEN", &taken)]);
    let status = second.exit(PATIENCE).await;
    assert_eq!(status.code(), Some(2), "{}", second.log());
    second.says(&[&taken, "cannot listen there", "Address already in use"]).await;
    let none = fleet.worker(&[("HTTP__LISTEN", "")]);
    let (one, two) = (fleet.worker(&[("HTTP__LISTEN", "auto")]), fleet.worker(&[("HTTP__LISTEN", "auto")]));
    none.ready().await;
    assert!(!none.said("over HTTP"), "{}", none.log());
    let (one, two) = (one.http().await, two.http().await);
    assert!(one.starts_with("127.0.0.1:94") && two.starts_with("127.0.0.1:94") && one != two, "{one} {two}");
    fleet.finish().await;
}
