//! Room for images: what goes, what stays, and when the engine does not do what is asked.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use windlass::execute::docker::Engine;
use windlass::task::{PullPolicy, Reason};

use super::{Scene, hello, name, noise};
use crate::harness::docker;
use crate::harness::proxy::{Direction, Flow};
use crate::harness::registry::Registry;
use crate::harness::server::skip;
use crate::harness::watchdog::watchdog;

#[tokio::test]
async fn room_is_made_from_what_nobody_uses() {
    let Some(mut scene) = Scene::new().await else { return };
    let (images, registry) = (scene.images(), Arc::clone(&scene.registry));
    let image = |name: &str| Scene::reference(registry.port(), &format!("{name}:1"));
    let names: Vec<String> = (0..4).map(|_| name()).collect();
    let pushed: Vec<_> = names.iter().map(|name| registry.push(name, "1", &[("hello", &noise(2000))], &hello())).collect();
    let mut ready = Vec::new();
    for name in &names {
        ready.push(scene.ensure(&images, &image(name), PullPolicy::Missing).await.unwrap());
    }
    let foreign = name();
    let foreign_id = registry.push(&foreign, "1", &[("hello", &noise(2000))], &hello()).id;
    let pull = format!("/images/create?fromImage={}&tag=1", image(&foreign).name());
    assert_eq!(scene.daemon.ask("POST", &pull, &[]).unwrap().status, 200);
    drop(scene.ensure(&images, &image(&foreign), PullPolicy::Always).await.unwrap());

    // The first is used again, the second by a container, the third by a task that is about to start.
    let in_use = ready.remove(2);
    drop(ready);
    drop(scene.ensure(&images, &image(&names[0]), PullPolicy::Never).await.unwrap());
    let body = json!({"Image": pushed[1].id, "Cmd": ["/hello"]}).to_string();
    let created = scene.daemon.ask("POST", "/containers/create", body.as_bytes()).unwrap().json();

    assert_eq!(images.make_room(&scene.engine).await, Vec::<String>::new(), "there is room enough");
    scene.config.disk_high_percent = 0.0;
    // Another worker of the same machine.
    let other = scene.images();
    assert_eq!(other.make_room(&scene.engine).await, [pushed[3].id.clone(), pushed[0].id.clone()], "the longest unused first");
    for (id, there) in [(&pushed[0].id, false), (&pushed[1].id, true), (&pushed[2].id, true), (&pushed[3].id, false), (&foreign_id, true)] {
        assert_eq!(scene.has(id), there, "{id}");
    }
    drop(in_use);
    scene.daemon.does("DELETE", &format!("/containers/{}", created["Id"].as_str().unwrap()), &[204]);
    let mut removed = other.make_room(&scene.engine).await;
    removed.sort();
    let mut left = [pushed[1].id.clone(), pushed[2].id.clone()];
    left.sort();
    assert_eq!(removed, left);
    assert!(scene.has(&foreign_id), "what was there before Windlass stays");
    assert_eq!(scene.ensure(&images, &image(&names[0]), PullPolicy::Missing).await.unwrap().id, pushed[0].id, "pulled again");
}

/// A worker that dies as it pulls has noted that it would; what its engine has of it is Windlass's.
#[tokio::test]
async fn what_a_dead_worker_pulled_goes_too() {
    let Some(mut scene) = Scene::new().await else { return };
    let (images, name, proxy) = (scene.images(), name(), scene.proxy());
    let pushed = scene.registry.push(&name, "1", &[("hello", &noise(2000))], &hello());
    let image = Scene::reference(proxy.port(), &format!("{name}:1"));
    proxy.set(Direction::ToClient, Flow::Hold);
    tokio::select! {
        pulled = scene.ensure(&images, &image, PullPolicy::Missing) => panic!("{pulled:?}"),
        () = proxy.until_connected(0) => {}
    }
    proxy.mend();
    // An engine that was told to stop too late.
    let pull = format!("/images/create?fromImage={}&tag=1", image.name());
    assert_eq!(scene.daemon.ask("POST", &pull, &[]).unwrap().status, 200);
    scene.config.disk_high_percent = 0.0;
    assert_eq!(scene.images().make_room(&scene.engine).await, std::slice::from_ref(&pushed.id));
    assert!(!scene.has(&pushed.id));
}

/// A tag that moves leaves the image that it named without one.
#[tokio::test]
async fn images_whose_tags_moved_go_too() {
    let Some(mut scene) = Scene::new().await else { return };
    let (images, registry, name) = (scene.images(), Arc::clone(&scene.registry), name());
    let image = Scene::reference(registry.port(), &format!("{name}:1"));
    let old = registry.push(&name, "1", &[("hello", &noise(2000))], &hello());
    drop(scene.ensure(&images, &image, PullPolicy::Always).await.unwrap());
    let new = registry.push(&name, "1", &[("hello", &noise(2000))], &hello());
    let held = scene.ensure(&images, &image, PullPolicy::Always).await.unwrap();
    scene.config.disk_high_percent = 0.0;
    assert_eq!(scene.images().make_room(&scene.engine).await, std::slice::from_ref(&old.id));
    assert!(!scene.has(&old.id) && scene.has(&new.id));
    drop(held);
}

/// A file system of that size for an engine to keep its images on, where this process sees it as well; its engine must be gone first.
struct Small(std::path::PathBuf);

impl Small {
    fn new() -> Self {
        use rustix::mount::{MountFlags, mount};
        let dir = watchdog().dir().join(format!("small-{}", uuid::Uuid::now_v7()));
        std::fs::create_dir(&dir).unwrap();
        mount("tmpfs", &dir, "tmpfs", MountFlags::empty(), c"size=96m").unwrap();
        Self(dir)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        use rustix::mount::{UnmountFlags, unmount};
        let _ = unmount(&self.0, UnmountFlags::DETACH);
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// On a real file system that fills: as much goes as makes room below the watermark, and no more.
#[tokio::test]
async fn a_disk_that_fills_stays_below_its_watermark() {
    if !rustix::process::geteuid().is_root() {
        return skip("a file system of the test's own needs root");
    }
    let small = Small::new();
    let Some(daemon) = docker::Engine::private(&["--data-root", small.0.to_str().unwrap()]) else { return };
    let Some(registry) = Registry::open() else { return };
    let mut scene = Scene::of(daemon, registry).await.unwrap();
    scene.config.disk_high_percent = 70.0;
    let (images, registry) = (scene.images(), Arc::clone(&scene.registry));
    let used = || {
        let fs = rustix::fs::statvfs(&small.0).unwrap();
        (fs.f_blocks - fs.f_bfree) as f64 / fs.f_blocks as f64 * 100.0
    };
    assert!(used() < 50.0, "the engine alone takes {} %", used());
    let mut pulled: Vec<String> = Vec::new();
    while pulled.len() < 11 {
        let name = name();
        let pushed = registry.push(&name, "1", &[("hello", &noise(8 << 20))], &hello());
        drop(scene.ensure(&images, &Scene::reference(registry.port(), &format!("{name}:1")), PullPolicy::Missing).await.unwrap());
        pulled.push(pushed.id);
        assert!(used() <= 70.0, "{} % after {} images", used(), pulled.len());
    }
    let there: Vec<bool> = pulled.iter().map(|id| scene.has(id)).collect();
    let first = there.iter().position(|there| *there).expect("not everything goes");
    assert!(first > 0 && there[first..].iter().all(|there| *there), "the longest unused first: {there:?}");
    assert!(used() > 40.0, "more went than had to: {} %, {there:?}", used());
    drop(scene);
}

/// Its words are about one image; the others go.
#[tokio::test]
async fn an_image_that_the_engine_does_not_remove_keeps_no_other() {
    let Some(mut scene) = Scene::new().await else { return };
    let (images, registry, name) = (scene.images(), Arc::clone(&scene.registry), name());
    let pushed = registry.push(&name, "1", &[("hello", &noise(2000))], &hello());
    let image = Scene::reference(registry.port(), &format!("{name}:1"));
    // Older, and of a name that the engine takes for none.
    drop(scene.ensure(&images, &image, PullPolicy::Missing).await.unwrap());
    let journal = std::fs::read_dir(scene.state.path().join("images")).unwrap().next().unwrap().unwrap().path();
    let record = journal.join("0".repeat(64));
    std::fs::write(&record, "r.example/a._b:1\n").unwrap();
    std::fs::File::options().append(true).open(&record).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    let refused = scene.daemon.ask("GET", "/images/r.example/a._b:1/json", &[]).unwrap().status;
    assert!(![200, 404].contains(&refused), "{refused}: the engine does not refuse it");
    scene.config.disk_high_percent = 0.0;
    assert_eq!(scene.images().make_room(&scene.engine).await, std::slice::from_ref(&pushed.id));
    assert!(!scene.has(&pushed.id));
}

/// When a pull fails for want of room, the engine has cleaned up behind it, and the disk looks empty enough.
#[tokio::test]
async fn a_pull_that_fills_the_disk_takes_the_room_of_another_image() {
    let Some(mut scene) = Scene::new().await else { return };
    let (registry, old_name, name) = (Arc::clone(&scene.registry), name(), name());
    let old = registry.push(&old_name, "1", &[("hello", &noise(2000))], &hello());
    registry.push(&name, "1", &[("hello", &noise(2000))], &hello());
    drop(scene.ensure(&scene.images(), &Scene::reference(registry.port(), &format!("{old_name}:1")), PullPolicy::Missing).await.unwrap());
    let full = Full::of(&scene.daemon);
    scene.config.host = full.host();
    // The record of the same engine, by its other socket.
    let state = scene.state.path().join("images");
    let own = std::fs::read_dir(&state).unwrap().next().unwrap().unwrap().path();
    scene.config.disk_high_percent = 99.9;
    scene.config.pull_retry.max_attempts = 10;
    let images = scene.images();
    scene.engine = Engine::connect(&scene.config).await.unwrap();
    let image = Scene::reference(registry.port(), &format!("{name}:1"));
    let error = scene.ensure(&images, &image, PullPolicy::Missing).await.unwrap_err();
    assert!(error.reason == Reason::ImagePullFailed && error.hint.contains("free space"), "{error:?}");
    assert_eq!(full.pulls(), 1, "there was nothing to remove, so nothing to hope for");
    let other = std::fs::read_dir(&state).unwrap().flatten().map(|entry| entry.path()).find(|path| *path != own).unwrap();
    std::fs::remove_dir_all(&other).unwrap();
    std::fs::rename(&own, &other).unwrap();
    assert!(scene.has(&old.id));
    scene.ensure(&images, &image, PullPolicy::Missing).await.unwrap_err();
    assert_eq!(full.pulls(), 3, "once more for the one image that could go");
    assert!(!scene.has(&old.id));
}

/// Between a worker and its engine: every pull ends for want of room.
struct Full {
    socket: std::path::PathBuf,
    pulls: Arc<AtomicUsize>,
    _dir: tempfile::TempDir,
}

impl Full {
    fn of(engine: &docker::Engine) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("full.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let (pulls, upstream) = (Arc::new(AtomicUsize::new(0)), engine.host().trim_start_matches("unix://").to_owned());
        let counted = Arc::clone(&pulls);
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let (upstream, counted) = (upstream.clone(), Arc::clone(&counted));
                std::thread::spawn(move || serve(near, &upstream, &counted));
            }
        });
        Self { socket, pulls, _dir: dir }
    }

    fn host(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    fn pulls(&self) -> usize {
        self.pulls.load(Ordering::SeqCst)
    }
}

/// One connection; pulls have their own.
fn serve(mut near: UnixStream, upstream: &str, pulls: &AtomicUsize) {
    let mut head = vec![0; 64 << 10];
    let Ok(read @ 1..) = near.read(&mut head) else { return };
    if head.starts_with(b"POST /images/create") {
        pulls.fetch_add(1, Ordering::SeqCst);
        let line =
            "{\"errorDetail\":{\"message\":\"write /x: no space left on device\"},\"error\":\"write /x: no space left on device\"}\n";
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{line}", line.len());
        let _ = near.write_all(answer.as_bytes());
        return;
    }
    let Ok(mut far) = UnixStream::connect(upstream) else { return };
    let (mut near_again, mut far_again) = (near.try_clone().unwrap(), far.try_clone().unwrap());
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut far_again, &mut near_again);
        let _ = near_again.shutdown(std::net::Shutdown::Write);
    });
    if far.write_all(&head[..read]).is_ok() {
        let _ = std::io::copy(&mut near, &mut far);
    }
    let _ = far.shutdown(std::net::Shutdown::Write);
}
