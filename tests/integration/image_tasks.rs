//! Tasks whose images come from a registry: what their events say of it, and how they end without one.

use std::sync::Arc;

use serde_json::{Value, json};
use windlass::task::log_chunk::LogStream;
use windlass::task::{EventKind, Outcome, Reason};

use crate::harness::proxy::{Cut, Direction, Flow, Proxy};
use crate::harness::registry::{PASSWORD, Pushed, Registry, USER, tar};
use crate::harness::{Engine, Fleet, Job};

/// Retries that a test can wait for.
const QUICK: [(&str, &str); 3] =
    [("DOCKER__PULL_RETRY__INITIAL_MS", "10"), ("DOCKER__PULL_RETRY__MAX_MS", "50"), ("DOCKER__PULL_RETRY__MAX_ATTEMPTS", "2")];

/// A fleet with one worker, and a registry that its engine reaches.
struct Scene {
    fleet: Fleet,
    engine: Arc<Engine>,
    registry: Arc<Registry>,
}

impl Scene {
    async fn new(registry: Option<Arc<Registry>>, settings: &[(&str, &str)]) -> Option<Self> {
        let (Some(registry), Some(engine)) = (registry, Engine::shared()) else { return None };
        let fleet = Fleet::docker(settings).await?;
        engine.reach(registry.port());
        Some(Self { fleet, engine, registry })
    }

    /// A link between the engine and the registry.
    fn proxy(&self) -> Proxy {
        let proxy = Proxy::of_bytes(self.registry.port());
        self.engine.reach(proxy.port());
        proxy
    }
}

/// A shell that says who it is, and bytes to carry about.
fn push(registry: &Registry, name: &str, tag: &str, says: &str, ballast: usize) -> Pushed {
    let busybox = std::fs::read("/bin/busybox").expect("busybox-static, which the engine needs too");
    let config = json!({"Env": ["PATH=/bin", format!("SAYS={says}")], "Cmd": ["/bin/sh", "-c", "echo $SAYS"]});
    let ballast: Vec<u8> = (0..ballast).flat_map(|n| (n as u32).wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    registry.push_tars(name, tag, &[tar("bin/sh", &busybox), tar("ballast", &ballast)], &config)
}

/// A task of that image, which runs what the image says.
fn job(port: u16, rest: &str) -> Job {
    let body: Value = json!({"runtime": "docker", "image": format!("127.0.0.1:{port}/{rest}")});
    Job::container(["true"]).set("/execution", body)
}

#[tokio::test]
async fn what_really_ran_is_in_the_end() {
    let Some(scene) = Scene::new(Registry::open(), &[]).await else { return };
    let (fleet, port) = (&scene.fleet, scene.registry.port());
    fleet.worker(&[]);
    let first = push(&scene.registry, "tasks/really", "1", "first", 10);
    let by_tag = fleet.submit(&job(port, "tasks/really:1")).await;
    let end = fleet.end(&by_tag).await;
    assert_eq!(end.reason, Some(Reason::Ok), "{:?} {:?}", end.error, end.hint);
    assert_eq!(fleet.output(&by_tag, &end, LogStream::Stdout).await, b"first\n");
    let run = end.run.unwrap();
    assert_eq!((run.image, run.image_digest), (Some(format!("127.0.0.1:{port}/tasks/really:1")), Some(first.digest.clone())));

    let second = push(&scene.registry, "tasks/really", "1", "second", 10);
    for (rest, pull, says, pushed) in [
        ("tasks/really:1".to_owned(), "missing", "first", &first),
        ("tasks/really:1".to_owned(), "always", "second", &second),
        (format!("tasks/really@{}", first.digest), "always", "first", &first),
        (format!("tasks/really:1@{}", first.digest), "never", "first", &first),
    ] {
        let task = fleet.submit(&job(port, &rest).set("/execution/pull", pull)).await;
        let end = fleet.end(&task).await;
        assert_eq!(end.reason, Some(Reason::Ok), "{rest} {pull}: {:?}", end.error);
        assert_eq!(fleet.output(&task, &end, LogStream::Stdout).await, format!("{says}\n").into_bytes(), "{rest} {pull}");
        assert_eq!(end.run.unwrap().image_digest.as_ref(), Some(&pushed.digest), "{rest} {pull}");
    }
    scene.fleet.finish().await;
}

#[tokio::test]
async fn what_may_not_or_cannot_be_had_has_a_name() {
    let Some(scene) = Scene::new(Registry::open(), &QUICK).await else { return };
    let (fleet, port, proxy) = (&scene.fleet, scene.registry.port(), scene.proxy());
    let known = push(&scene.registry, "tasks/known", "1", "known", 10);
    let allowed =
        format!("[\"127.0.0.1:{port}/tasks/absent\", \"127.0.0.1:{port}/tasks/known@{}\", \"127.0.0.1:{}/*\"]", known.digest, proxy.port());
    fleet.worker(&[("DOCKER__IMAGES", &allowed)]);
    proxy.cut(Cut::Reset);
    for (rest, pull, port, reason, outcome, word) in [
        // Only its digest is allowed: what a tag names now may be another one.
        ("tasks/known:1", "missing", port, Reason::ImageRefused, Outcome::Failure, "may not use"),
        ("tasks/other:1", "never", port, Reason::ImageRefused, Outcome::Failure, "may not use"),
        ("tasks/absent:1", "missing", port, Reason::ImageNotFound, Outcome::Failure, "not found"),
        ("tasks/absent:1", "never", port, Reason::ImageNotFound, Outcome::Failure, "pull is never"),
        ("tasks/far:1", "missing", proxy.port(), Reason::ImagePullFailed, Outcome::Error, "tried 2 times"),
    ] {
        let once = job(port, rest).set("/execution/pull", pull).set("/retry", json!({"max_attempts": 1}));
        let task = fleet.submit(&once).await;
        let end = fleet.end(&task).await;
        assert_eq!((end.reason, end.outcome), (Some(reason), Some(outcome)), "{rest} {pull}: {:?}", end.error);
        assert!(end.error.as_ref().is_some_and(|error| error.contains(word)), "{rest}: {:?}", end.error);
        assert!(end.hint.is_some(), "{rest}");
    }
    for name in ["tasks/known", "tasks/other"] {
        assert_eq!(scene.registry.pulls(name), 0, "nobody asks for what may not be had");
    }
    let end = fleet.end(&fleet.submit(&job(port, &format!("tasks/known:1@{}", known.digest))).await).await;
    assert_eq!(end.reason, Some(Reason::Ok), "{:?}", end.error);
    scene.fleet.finish().await;
}

/// A fault of the platform is the platform's to repeat.
#[tokio::test]
async fn a_registry_that_comes_back_is_a_matter_of_attempts() {
    let Some(scene) = Scene::new(Registry::open(), &QUICK).await else { return };
    let (fleet, proxy) = (&scene.fleet, scene.proxy());
    let pushed = push(&scene.registry, "tasks/back", "1", "back", 10);
    fleet.worker(&[]);
    proxy.cut(Cut::Reset);
    let patient = json!({"max_attempts": 20, "backoff": {"initial_ms": 50, "factor": 1.0, "max_ms": 50}});
    let task = fleet.submit(&job(proxy.port(), "tasks/back:1").set("/retry", patient)).await;
    let retrying = fleet.event(&task, EventKind::TaskRetrying).await;
    assert_eq!(retrying.reason, Some(Reason::ImagePullFailed), "{:?}", retrying.error);
    proxy.mend();
    let end = fleet.end(&task).await;
    assert_eq!(end.reason, Some(Reason::Ok), "{:?}", end.error);
    assert_eq!(end.run.unwrap().image_digest, Some(pushed.digest));
    scene.fleet.finish().await;
}

#[tokio::test]
async fn a_pull_tells_how_far_it_is_and_can_be_canceled() {
    let Some(scene) = Scene::new(Registry::open(), &[("EVENTS__PROGRESS_INTERVAL_MS", "50")]).await else { return };
    let (fleet, proxy) = (&scene.fleet, scene.proxy());
    push(&scene.registry, "tasks/far", "1", "far", 1 << 20);
    fleet.worker(&[]);
    proxy.throttle(Some(256 << 10));
    let task = fleet.submit(&job(proxy.port(), "tasks/far:1")).await;
    let told = fleet
        .until(&task, "tells how far its pull is", |chain| {
            let progress = chain.iter().filter_map(|link| link.event.progress.clone());
            // An engine that is slow tells of one layer before it tells of the other.
            let all = |message: &String| message.contains("tasks/far:1: ") && message.contains("of 2 layers");
            progress.into_iter().find(|progress| progress.pct.is_some_and(|pct| pct > 0.0) && progress.message.as_ref().is_some_and(all))
        })
        .await;
    assert_eq!(told.stage.as_deref(), Some("PULLING"));
    // From now on nothing comes any more: only a pull that is stopped ends.
    proxy.set(Direction::ToClient, Flow::Hold);
    fleet.cancel(&task).await;
    let end = fleet.end(&task).await;
    assert_eq!((end.reason, end.outcome), (Some(Reason::Canceled), Some(Outcome::Cancellation)), "{:?}", end.error);
    // Nothing of it is in the way of the next one.
    proxy.mend();
    let again = fleet.end(&fleet.submit(&job(proxy.port(), "tasks/far:1")).await).await;
    assert_eq!(again.reason, Some(Reason::Ok), "{:?}", again.error);
    scene.fleet.finish().await;
}

#[tokio::test]
async fn a_task_opens_its_registry_with_a_secret_that_nobody_sees() {
    let Some(scene) = Scene::new(Registry::locked(), &[]).await else { return };
    let (fleet, port) = (&scene.fleet, scene.registry.port());
    let pushed = push(&scene.registry, "tasks/locked", "1", "open", 10);
    let vault = fleet.open_dir("vault");
    std::fs::write(vault.join("right"), format!("{USER}:{PASSWORD}\n")).unwrap();
    std::fs::write(vault.join("wrong"), format!("{USER}:{PASSWORD}wrong\n")).unwrap();
    std::fs::write(vault.join("neither"), format!("{PASSWORD}\n")).unwrap();
    let grants = format!("[\"file:{}/*\"]", vault.display());
    fleet.worker(&[("TENANTS__ACME__SECRETS", &grants), ("LOG__LEVEL", "trace")]);
    let locked = |secret: &str| {
        let secrets = json!([{"name": "REGISTRY", "ref": format!("file:{}/{secret}", vault.display()), "as": "file"}]);
        job(port, "tasks/locked:1").set("/secrets", secrets).set("/execution/registry_secret", "REGISTRY")
    };
    for (job, reason) in [
        (job(port, "tasks/locked:1"), Reason::ImageNotFound),
        (locked("wrong"), Reason::ImageNotFound),
        (locked("neither"), Reason::SecretMissing),
        (locked("right"), Reason::Ok),
    ] {
        let task = fleet.submit(&job).await;
        let end = fleet.end(&task).await;
        assert_eq!(end.reason, Some(reason), "{:?} {:?}", end.error, end.hint);
        if reason == Reason::Ok {
            assert_eq!(end.run.unwrap().image_digest.as_ref(), Some(&pushed.digest));
        }
    }
    let said = format!("{:?}{}", fleet.all_events(), fleet.logs());
    for form in [PASSWORD, "hunter2"] {
        assert!(!said.contains(form), "the password is told");
    }
    scene.fleet.finish().await;
}
