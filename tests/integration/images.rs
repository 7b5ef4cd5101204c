//! Images of a real registry, pulled by a real engine, as a worker does it: `Images` itself, and the broken network in between.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use windlass::config;
use windlass::execute::docker::{Credentials, Engine, ImageError, Images, PullProgress, Ready};
use windlass::task::{ImageRef, PullPolicy, Reason};

use crate::harness::PATIENCE;
use crate::harness::docker;
use crate::harness::proxy::{Cut, Direction, Flow, Proxy, Spring};
use crate::harness::registry::{PASSWORD, Registry, USER, tar};

#[path = "images/room.rs"]
mod room;

/// An engine, a registry that it reaches, and a worker's state directory.
struct Scene {
    daemon: Arc<docker::Engine>,
    engine: Engine,
    registry: Arc<Registry>,
    state: tempfile::TempDir,
    config: config::Docker,
}

impl Scene {
    async fn new() -> Option<Self> {
        Self::of(docker::Engine::shared()?, Registry::open()?).await
    }

    async fn of(daemon: Arc<docker::Engine>, registry: Arc<Registry>) -> Option<Self> {
        daemon.reach(registry.port());
        let mut config = config::load(None, []).unwrap().docker;
        config.host = daemon.host();
        // The machine's disk is not the test's to judge.
        config.disk_high_percent = 100.0;
        (config.pull_retry.initial_ms, config.pull_retry.max_ms) = (10, 50);
        let engine = Engine::connect(&config).await.unwrap();
        Some(Self { daemon, engine, registry, state: tempfile::tempdir().unwrap(), config })
    }

    /// As a worker of this machine has them.
    fn images(&self) -> Images {
        Images::new(&self.config, self.state.path())
    }

    /// A link between the engine and the registry.
    fn proxy(&self) -> Proxy {
        let proxy = Proxy::of_bytes(self.registry.port());
        self.daemon.reach(proxy.port());
        proxy
    }

    /// An image of the registry by the way over that port.
    fn reference(port: u16, rest: &str) -> ImageRef {
        format!("127.0.0.1:{port}/{rest}").parse().unwrap()
    }

    async fn ensure(&self, images: &Images, image: &ImageRef, pull: PullPolicy) -> Result<Ready, ImageError> {
        images.ensure(&self.engine, image, pull, None, &|_| {}).await
    }

    fn has(&self, reference: &str) -> bool {
        self.daemon.ask("GET", &format!("/images/{reference}/json"), &[]).unwrap().status == 200
    }
}

/// A name that no other test has.
fn name() -> String {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    format!("tests/image-{}", NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// Bytes that are nowhere twice.
fn noise(length: usize) -> Vec<u8> {
    let mut seed = uuid::Uuid::now_v7().as_u128() as u64 | 1;
    let mut next = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed.to_le_bytes()
    };
    (0..length.div_ceil(8)).flat_map(|_| next()).take(length).collect()
}

fn hello() -> Value {
    json!({"Cmd": ["/hello"], "WorkingDir": "/srv", "User": "7:8", "Env": ["A=b"], "Volumes": {"/data": {}}})
}

#[tokio::test]
async fn the_policy_decides_when_the_registry_is_asked() {
    let Some(scene) = Scene::new().await else { return };
    let (images, registry, name) = (scene.images(), &scene.registry, name());
    let first = registry.push(&name, "1", &[("hello", &noise(2000))], &hello());
    let image = Scene::reference(registry.port(), &format!("{name}:1"));

    let error = scene.ensure(&images, &image, PullPolicy::Never).await.unwrap_err();
    assert_eq!(error.reason, Reason::ImageNotFound, "{error}");
    assert!(error.error.contains("pull is never") && !error.hint.is_empty());
    assert_eq!(registry.pulls(&name), 0, "never means never");

    let ready = scene.ensure(&images, &image, PullPolicy::Missing).await.unwrap();
    assert_eq!((&ready.id, ready.digest.as_ref()), (&first.id, Some(&first.digest)));
    assert_eq!(ready.working_dir, "/srv");

    let asked = registry.pulls(&name);
    let second = registry.push(&name, "1", &[("hello", &noise(2000))], &hello());
    for pull in [PullPolicy::Missing, PullPolicy::Never] {
        let again = scene.ensure(&images, &image, pull).await.unwrap();
        assert_eq!((&again.id, again.digest.as_ref()), (&first.id, Some(&first.digest)), "the engine has one of that name");
    }
    assert_eq!(registry.pulls(&name), asked, "the registry was not asked");

    let moved = scene.ensure(&images, &image, PullPolicy::Always).await.unwrap();
    assert_eq!((&moved.id, moved.digest.as_ref()), (&second.id, Some(&second.digest)), "the tag has moved");
    // Who holds the first one still gets what he looked at: tags move, ids do not.
    let body = json!({"Image": ready.id, "Cmd": ["/hello"]}).to_string();
    let created = scene.daemon.ask("POST", "/containers/create", body.as_bytes()).unwrap();
    assert_eq!(created.status, 201, "{}", created.text());
    let id = created.json()["Id"].as_str().unwrap().to_owned();
    assert_eq!(scene.daemon.inspect(&id)["Image"], ready.id.as_str());
    scene.daemon.does("DELETE", &format!("/containers/{id}"), &[204]);
}

#[tokio::test]
async fn a_digest_is_that_image_and_nothing_else() {
    let Some(scene) = Scene::new().await else { return };
    let (images, registry, name) = (scene.images(), &scene.registry, name());
    let first = registry.push(&name, "1", &[("hello", &noise(2000))], &hello());
    let second = registry.push(&name, "1", &[("hello", &noise(2000))], &hello());
    for (rest, pushed) in [(format!("{name}@{}", first.digest), &first), (format!("{name}:1@{}", first.digest), &first)] {
        let image = Scene::reference(registry.port(), &rest);
        for pull in [PullPolicy::Missing, PullPolicy::Always, PullPolicy::Never] {
            let ready = scene.ensure(&images, &image, pull).await.unwrap();
            assert_eq!((&ready.id, ready.digest.as_ref()), (&pushed.id, Some(&pushed.digest)), "{rest} {pull}");
        }
    }
    assert!(!scene.has(&second.id), "what the tag names now was not asked for");

    let unknown = Scene::reference(registry.port(), &format!("{name}@sha256:{}", "0".repeat(64)));
    let error = scene.ensure(&images, &unknown, PullPolicy::Missing).await.unwrap_err();
    assert_eq!(error.reason, Reason::ImageNotFound, "{error}");

    // A registry whose content is not what its digests say.
    let spoiled = registry.push(&name, "2", &[("hello", &noise(2000))], &hello());
    registry.spoil(&spoiled.layers[0]);
    let image = Scene::reference(registry.port(), &format!("{name}@{}", spoiled.digest));
    let error = scene.ensure(&images, &image, PullPolicy::Missing).await.unwrap_err();
    assert_eq!(error.reason, Reason::ImagePullFailed, "{error}");
    assert!(!scene.has(&spoiled.id));
}

#[tokio::test]
async fn what_does_not_exist_is_not_asked_for_twice() {
    let Some(scene) = Scene::new().await else { return };
    let (images, registry, name) = (scene.images(), &scene.registry, name());
    registry.push(&name, "1", &[("hello", &noise(100))], &hello());
    for rest in [format!("{name}:2"), "tests/nothing:1".to_owned()] {
        let image = Scene::reference(registry.port(), &rest);
        let error = scene.ensure(&images, &image, PullPolicy::Missing).await.unwrap_err();
        assert_eq!(error.reason, Reason::ImageNotFound, "{error}");
        assert!(error.error.contains(&image.to_string()) && error.hint.contains("correct the name"), "{error:?}");
    }
    let asked = registry.requests(&["GET /v2/tests/nothing/manifests/1 ", "docker/"]);
    assert!(asked <= 1, "asked {asked} times");
}

#[tokio::test]
async fn a_registry_with_passwords_opens_to_those_who_have_one() {
    let (Some(daemon), Some(registry)) = (docker::Engine::shared(), Registry::locked()) else { return };
    let Some(mut scene) = Scene::of(daemon, registry).await else { return };
    let name = name();
    let pushed = scene.registry.push(&name, "1", &[("hello", &noise(2000))], &hello());
    let image = Scene::reference(scene.registry.port(), &format!("{name}:1"));
    let port = scene.registry.port();

    let error = scene.ensure(&scene.images(), &image, PullPolicy::Missing).await.unwrap_err();
    assert_eq!(error.reason, Reason::ImageNotFound, "{error}");
    assert!(error.hint.contains("wants credentials") && error.hint.contains("docker.credentials"), "{error:?}");

    let wrong = format!("{PASSWORD}x");
    let files = [scene.registry.login(port, USER, &wrong), scene.registry.login(1, USER, PASSWORD)];
    for (file, hint) in files.iter().zip(["do not open it", "wants credentials"]) {
        scene.config.credentials = file.display().to_string();
        let error = scene.ensure(&scene.images(), &image, PullPolicy::Missing).await.unwrap_err();
        assert_eq!(error.reason, Reason::ImageNotFound, "{error}");
        assert!(error.hint.contains(hint), "{error:?}");
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    }
    scene.config.credentials = "/nonexistent".to_owned();
    let error = scene.ensure(&scene.images(), &image, PullPolicy::Missing).await.unwrap_err();
    assert_eq!(error.reason, Reason::ImagePullFailed, "{error}");
    assert!(error.error.contains("docker.credentials: /nonexistent"), "{error}");

    // A task's own go before the file's.
    let own = Credentials::from_secret(format!("{USER}:{PASSWORD}").as_bytes()).unwrap();
    let others = Credentials::from_secret(format!("{USER}:{wrong}").as_bytes()).unwrap();
    let images = scene.images();
    let (right, wrong) = tokio::join!(
        images.ensure(&scene.engine, &image, PullPolicy::Always, Some(&own), &|_| {}),
        images.ensure(&scene.engine, &image, PullPolicy::Always, Some(&others), &|_| {}),
    );
    assert_eq!(right.unwrap().digest.as_ref(), Some(&pushed.digest));
    assert_eq!(wrong.unwrap_err().reason, Reason::ImageNotFound, "nobody gets in by another's credentials");

    let second = scene.registry.push(&name, "2", &[("hello", &noise(2000))], &hello());
    scene.config.credentials = scene.registry.login(port, USER, PASSWORD).display().to_string();
    let image = Scene::reference(port, &format!("{name}:2"));
    let ready = scene.ensure(&scene.images(), &image, PullPolicy::Missing).await.unwrap();
    assert_eq!(ready.id, second.id);
}

#[tokio::test]
async fn a_registry_that_breaks_is_asked_again() {
    let Some(mut scene) = Scene::new().await else { return };
    let (name, proxy) = (name(), scene.proxy());
    let pushed = scene.registry.push(&name, "1", &[("hello", &noise(2000))], &hello());
    let image = Scene::reference(proxy.port(), &format!("{name}:1"));
    scene.config.pull_retry.max_attempts = 4;

    // The way to the registry and its answer, each broken once.
    let traps = [
        proxy.trap(Direction::ToServer, &["/manifests/"], Spring::CutAfter(10)),
        proxy.trap(Direction::ToClient, &["docker.distribution.manifest"], Spring::CutAfter(40)),
    ];
    let told = Mutex::new(Vec::new());
    let note = |progress: PullProgress| told.lock().unwrap().push(progress.message);
    let ready = scene.images().ensure(&scene.engine, &image, PullPolicy::Missing, None, &note).await.unwrap();
    assert_eq!(ready.id, pushed.id);
    assert!(traps.iter().all(|trap| trap.is_sprung()), "nothing was broken");
    let told = told.into_inner().unwrap();
    assert!(told.iter().any(|message| message.contains("failed, again soon")), "{told:?}");

    proxy.cut(Cut::Reset);
    scene.config.pull_retry.max_attempts = 3;
    let error = scene.ensure(&scene.images(), &image, PullPolicy::Always).await.unwrap_err();
    assert_eq!(error.reason, Reason::ImagePullFailed, "{error}");
    assert!(error.error.contains("tried 3 times"), "{error}");
    // What the engine has, it has.
    assert_eq!(scene.ensure(&scene.images(), &image, PullPolicy::Missing).await.unwrap().id, pushed.id);
}

/// The engine itself tries a layer again, where it left off.
#[tokio::test]
async fn a_layer_that_breaks_in_the_middle_is_whole_in_the_end() {
    let Some(scene) = Scene::new().await else { return };
    let (name, proxy) = (name(), scene.proxy());
    let pushed = scene.registry.push(&name, "1", &[("hello", &noise(3 << 20))], &hello());
    let image = Scene::reference(proxy.port(), &format!("{name}:1"));
    proxy.throttle(Some(2 << 20));
    let broken = AtomicUsize::new(0);
    let cut = |progress: PullProgress| {
        if progress.pct > 0.0 && broken.fetch_add(1, Ordering::Relaxed) == 0 {
            proxy.cut(Cut::Reset);
            proxy.mend();
        }
    };
    let ready = scene.images().ensure(&scene.engine, &image, PullPolicy::Missing, None, &cut).await.unwrap();
    assert!(scene.registry.requests(&[&format!("\"GET /v2/{name}/blobs/{}", pushed.layers[0])]) > 1, "nothing was broken");
    assert_eq!((ready.id, ready.digest), (pushed.id, Some(pushed.digest)));
}

#[tokio::test]
async fn a_pull_without_progress_is_given_up() {
    let Some(mut scene) = Scene::new().await else { return };
    let (name, proxy) = (name(), scene.proxy());
    scene.registry.push(&name, "1", &[("hello", &noise(2000))], &hello());
    let image = Scene::reference(proxy.port(), &format!("{name}:1"));
    scene.config.pull_inactivity_s = 0.3;
    scene.config.pull_retry.max_attempts = 2;
    proxy.set(Direction::ToClient, Flow::Hold);
    let error = scene.ensure(&scene.images(), &image, PullPolicy::Missing).await.unwrap_err();
    assert_eq!(error.reason, Reason::ImagePullFailed, "{error}");
    assert!(error.error.contains("tried 2 times") && error.error.contains("no progress for 0.3 s"), "{error}");
    proxy.mend();
    scene.config.pull_inactivity_s = 60.0;
    scene.ensure(&scene.images(), &image, PullPolicy::Missing).await.unwrap();
}

#[tokio::test]
async fn many_who_want_one_image_share_one_pull() {
    let Some(scene) = Scene::new().await else { return };
    let (images, name, proxy) = (scene.images(), name(), scene.proxy());
    let pushed = scene.registry.push(&name, "1", &[("a", &noise(400_000)), ("b", &noise(400_000))], &hello());
    let image = Scene::reference(proxy.port(), &format!("{name}:1"));
    proxy.throttle(Some(2 << 20));
    let told = AtomicUsize::new(0);
    let note = |progress: PullProgress| {
        assert!((0.0..100.0).contains(&progress.pct), "{progress:?}");
        told.fetch_add(1, Ordering::Relaxed);
    };
    let ready =
        futures_util::future::join_all((0..8).map(|_| images.ensure(&scene.engine, &image, PullPolicy::Missing, None, &note))).await;
    for ready in ready {
        assert_eq!(ready.unwrap().id, pushed.id);
    }
    let got = |what: &str| scene.registry.requests(&[&format!("\"GET /v2/{name}/{what}"), "docker/"]);
    assert_eq!(got("manifests/"), 1, "one pull for all");
    for layer in &pushed.layers {
        assert_eq!(got(&format!("blobs/{layer}")), 1);
    }
    assert!(told.load(Ordering::Relaxed) >= 8, "everybody was told");
}

#[tokio::test]
async fn a_pull_that_nobody_waits_for_stops() {
    let Some(scene) = Scene::new().await else { return };
    let (images, name, proxy) = (scene.images(), name(), scene.proxy());
    // Far more than fits into the buffers on the way: the registry cannot be done with it before the engine is.
    let layer = tar("big", &noise(16 << 20));
    let pushed = scene.registry.push_tars(&name, "1", std::slice::from_ref(&layer), &hello());
    let image = Scene::reference(proxy.port(), &format!("{name}:1"));
    // Minutes, if it went on.
    proxy.throttle(Some(64 << 10));
    let begun = tokio::sync::Notify::new();
    let note = |progress: PullProgress| {
        if progress.pct > 0.0 {
            begun.notify_one();
        }
    };
    {
        let first = images.ensure(&scene.engine, &image, PullPolicy::Missing, None, &note);
        let second = images.ensure(&scene.engine, &image, PullPolicy::Missing, None, &note);
        let (mut first, second) = (Box::pin(first), Box::pin(second));
        {
            // One of two goes, and the other one's pull goes on.
            let mut second = second;
            let both = async { tokio::join!(&mut first, &mut second) };
            tokio::select! {
                _ = both => panic!("it cannot be there yet"),
                () = begun.notified() => {}
            }
        }
        let before = proxy.passed(Direction::ToClient);
        let moved = async {
            while proxy.passed(Direction::ToClient) < before + (64 << 10) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            _ = &mut first => panic!("it cannot be there yet"),
            () = moved => {}
        }
    }
    // The registry notes a request when it is over: with its layer whole that would be after two minutes.
    let request = format!("\"GET /v2/{name}/blobs/{}", pushed.layers[0]);
    let deadline = Instant::now() + PATIENCE;
    while scene.registry.requests(&[&request]) == 0 {
        assert!(Instant::now() < deadline, "the engine still pulls");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(scene.registry.requests(&[&request, &format!("\" 200 {} ", layer.len())]), 0, "it was fetched to its end");
    assert!(!scene.has(&pushed.id));
    proxy.mend();
    assert_eq!(scene.ensure(&images, &image, PullPolicy::Missing).await.unwrap().id, pushed.id, "the next one gets it");
}

#[tokio::test]
async fn an_engine_that_is_away_is_said_to_be() {
    let Some(scene) = Scene::new().await else { return };
    let Some(daemon) = docker::Engine::private(&[]) else { return };
    let mut config = scene.config.clone();
    config.host = daemon.host();
    let engine = Engine::connect(&config).await.unwrap();
    let images = Images::new(&config, scene.state.path());
    daemon.kill9();
    for pull in [PullPolicy::Missing, PullPolicy::Always] {
        let image = Scene::reference(scene.registry.port(), "tests/any:1");
        let error = images.ensure(&engine, &image, pull, None, &|_| {}).await.unwrap_err();
        assert_eq!(error.reason, Reason::DockerUnavailable, "{error}");
    }
}
