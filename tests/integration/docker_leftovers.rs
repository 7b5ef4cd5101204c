//! No container left behind: whoever dies, and at whatever moment, what it made at the engine goes, and what others made stays.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use windlass::config;
use windlass::execute::docker::labels::{self, Owner, Role, Work};
use windlass::execute::docker::reap::{Reaped, Which, reap};
use windlass::execute::native::{Holding, StartError, Supervisor};
use windlass::task::WorkerId;
use windlass::task::event::WorkerInfo;
use windlass::task::limits::Limits;

use crate::harness::docker::IMAGE;
use crate::harness::server::skip;
use crate::harness::{Engine, Fleet, Job, PATIENCE, Task, leftovers, slowness};

/// A worker as others know it: its directory, locked while it lives.
struct Someone {
    owner: Owner,
    dir: PathBuf,
    lock: Option<File>,
}

impl Someone {
    fn new(state: &Path) -> Self {
        let instance = uuid::Uuid::now_v7().simple().to_string();
        let dir = state.join(&instance);
        std::fs::create_dir(&dir).unwrap();
        let lock = File::open(&dir).unwrap();
        lock.try_lock().unwrap();
        let info = WorkerInfo { worker_id: WorkerId::new("w").unwrap(), instance, host: "h".into(), version: "1".into() };
        Self { owner: Owner::new(&info, &dir), dir, lock: Some(lock) }
    }

    fn dies(&mut self) {
        self.lock = None;
    }

    /// A container of this one's that sleeps, in a network of its own and with a nameless volume; created only, or started as well.
    fn container(&self, engine: &Engine, start: bool, more: &Value) -> String {
        let work = Work { tenant: "acme", task: "t", attempt: 1 };
        let mut host = json!({"NetworkMode": "none", "Init": false});
        host.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let body = json!({"Image": IMAGE, "Cmd": ["sleep", "600"], "Volumes": {"/data": {}}, "HostConfig": host,
                          "Labels": self.owner.labels(Role::Task, work)});
        let path = format!("/containers/create?name={}", self.owner.fresh_name());
        let made = engine.ask("POST", &path, body.to_string().as_bytes()).unwrap();
        assert_eq!(made.status, 201, "{}", made.text());
        let id = made.json()["Id"].as_str().unwrap().to_owned();
        if start {
            engine.does("POST", &format!("/containers/{id}/start"), &[204]);
        }
        id
    }

    fn network(&self, engine: &Engine) -> String {
        let work = Work { tenant: "acme", task: "t", attempt: 1 };
        let name = self.owner.fresh_name();
        let body = json!({"Name": name, "Internal": true, "Labels": self.owner.labels(Role::Network, work)});
        let made = engine.ask("POST", "/networks/create", body.to_string().as_bytes()).unwrap();
        assert_eq!(made.status, 201, "{}", made.text());
        name
    }

    /// What the engine has of it.
    fn left(&self, engine: &Engine) -> Vec<String> {
        engine.left_of(Some(&self.dir))
    }
}

async fn connected(engine: &Engine) -> windlass::execute::docker::Engine {
    windlass::execute::docker::Engine::connect_to(&engine.host(), Duration::from_secs(30)).await.unwrap()
}

fn volumes(engine: &Engine) -> usize {
    engine.does("GET", "/volumes", &[200]).json()["Volumes"].as_array().map_or(0, Vec::len)
}

/// Containers and networks.
fn count(reaped: Reaped) -> (usize, usize) {
    (reaped.containers.len(), reaped.networks)
}

#[tokio::test]
async fn what_the_dead_left_is_removed_and_the_living_keep_theirs() {
    let Some(engine) = Engine::private(&[]) else { return };
    let state = tempfile::tempdir().unwrap();
    let (living, mut dead, mut buried) = (Someone::new(state.path()), Someone::new(state.path()), Someone::new(state.path()));
    let mut contained = Someone::new(state.path());
    // One that sees other directories than this process does, as a worker in a container of its own.
    let elsewhere = tempfile::tempdir().unwrap();
    let elsewhere = elsewhere.path().join("state").join(contained.owner.instance());
    let info = WorkerInfo {
        worker_id: WorkerId::new("w").unwrap(),
        instance: contained.owner.instance().to_owned(),
        host: "h".into(),
        version: "1".into(),
    };
    contained.owner = Owner::new(&info, &elsewhere);
    contained.dir = elsewhere;
    let network = dead.network(&engine);
    let in_network = json!({"NetworkMode": network});
    dead.container(&engine, true, &in_network);
    dead.container(&engine, false, &json!({}));
    let paused = dead.container(&engine, true, &json!({}));
    engine.does("POST", &format!("/containers/{paused}/pause"), &[204]);
    let exited = dead.container(&engine, true, &json!({}));
    engine.does("POST", &format!("/containers/{exited}/kill"), &[204]);
    buried.container(&engine, true, &json!({}));
    let kept = [living.container(&engine, true, &json!({})), contained.container(&engine, true, &json!({}))];
    living.network(&engine);
    let stranger = json!({"Image": IMAGE, "Cmd": ["sleep", "600"], "Labels": {"windlass.role": "stack"}}).to_string();
    assert_eq!(engine.ask("POST", "/containers/create?name=stranger", stranger.as_bytes()).unwrap().status, 201);
    let engine_of_ours = connected(&engine).await;

    assert_eq!(reap(&engine_of_ours, Which::Dead).await.unwrap(), Reaped::default(), "all of them live");
    dead.dies();
    buried.dies();
    std::fs::remove_dir(&buried.dir).unwrap();
    assert_eq!(count(reap(&engine_of_ours, Which::Dead).await.unwrap()), (5, 1));
    assert_eq!((dead.left(&engine), buried.left(&engine)), (vec![], vec![]));
    for id in &kept {
        assert_eq!(engine.inspect(id)["State"]["Running"], true, "the living, and those of whom nothing is known");
    }
    assert_eq!(living.left(&engine).len(), 2, "with its network");
    assert_eq!(engine.inspect("stranger")["State"]["Status"], "created");
    assert_eq!(volumes(&engine), 2, "nameless volumes go with their containers");
    assert_eq!(reap(&engine_of_ours, Which::Dead).await.unwrap(), Reaped::default(), "and again: nothing");
    assert_eq!(count(reap(&engine_of_ours, Which::Instance(living.owner.instance())).await.unwrap()), (1, 1));
    assert_eq!(living.left(&engine), Vec::<String>::new());
}

#[tokio::test]
async fn what_was_made_before_a_boot_goes_once_it_has_not_run_for_long() {
    let Some(engine) = Engine::shared() else { return };
    let state = tempfile::tempdir().unwrap();
    let before = Someone::new(state.path());
    let mut labels = before.owner.labels(Role::Task, Work { tenant: "acme", task: "t", attempt: 1 });
    labels.insert(labels::BOOT_ID.to_owned(), "another".to_owned());
    let body = json!({"Image": IMAGE, "Cmd": ["sleep", "600"], "HostConfig": {"NetworkMode": "none"}, "Labels": labels}).to_string();
    let made = engine.ask("POST", "/containers/create", body.as_bytes()).unwrap().json();
    let id = made["Id"].as_str().unwrap();
    // It may as well be another machine's: only time tells. That it is long ago is not for a test to wait for.
    reap(&connected(&engine).await, Which::Dead).await.unwrap();
    assert_eq!(engine.inspect(id)["State"]["Status"], "created");
    engine.does("DELETE", &format!("/containers/{id}?force=1&v=1"), &[204]);
}

/// A supervisor whose worker is this test; cgroups below a parent of the test's own.
async fn supervisor(name: &str, instance: &str) -> Option<(Supervisor, String)> {
    let parent = format!("windlass-test-w{}-{name}", std::process::id());
    let cgroup = config::Cgroup { mount: "/sys/fs/cgroup".into(), parent: leftovers::cgroup_place(&parent), allow_unlimited: false };
    match Supervisor::start(Path::new(env!("CARGO_BIN_EXE_windlass")), &cgroup, instance).await {
        Ok(supervisor) => Some((supervisor, parent)),
        Err(StartError::Unfit(why)) => {
            skip(&why);
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn holding() -> Holding {
    let limits = Limits { cpus: 1.0, memory_bytes: 256 << 20, pids: 512, timeout_ms: 60_000, io: None, enforced: true };
    Holding { cgroup: "t.1".into(), limits, directory: "/".into(), lease: None, elsewhere: false }
}

/// Cgroups below the parent, and the parent itself; removed when there is nothing in it.
fn cgroups(parent: &str) -> Vec<PathBuf> {
    let left = leftovers::cgroups(parent);
    if left.is_empty() {
        for dir in leftovers::cgroup_parents(parent) {
            let _ = std::fs::remove_dir(dir);
        }
    }
    left
}

#[tokio::test]
async fn when_the_worker_is_gone_its_supervisor_removes_its_containers() {
    let Some(engine) = Engine::shared() else { return };
    let state = tempfile::tempdir().unwrap();
    let (mut gone, other) = (Someone::new(state.path()), Someone::new(state.path()));
    let Some((supervisor, parent)) = supervisor("gone", gone.owner.instance()).await else { return };
    supervisor.guard_containers(&engine.host(), Duration::from_secs(30));
    let held = supervisor.hold(holding()).await.unwrap();
    let Some(place) = held.parent().map(str::to_owned) else {
        skip("the cgroups of this user have no one name in all hierarchies");
        return supervisor.shutdown().await;
    };
    let inside = gone.container(&engine, true, &json!({"CgroupParent": place}));
    assert!(held.contains(&inside), "the engine puts it where it was told to");
    let network = gone.network(&engine);
    gone.container(&engine, true, &json!({"NetworkMode": network}));
    other.container(&engine, true, &json!({}));
    gone.dies();
    // What a worker's death is to its supervisor: the end of their connection. It ends when it is done.
    supervisor.shutdown().await;
    assert_eq!(gone.left(&engine), Vec::<String>::new());
    assert_eq!(other.left(&engine).len(), 1, "another one's stay");
    assert_eq!(cgroups(&parent), Vec::<PathBuf>::new());
    reap(&connected(&engine).await, Which::Instance(other.owner.instance())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_being_made_when_the_worker_died_goes_too() {
    let Some(engine) = Engine::shared() else { return };
    let state = tempfile::tempdir().unwrap();
    let gone = Arc::new(Someone::new(state.path()));
    let Some((supervisor, parent)) = supervisor("making", gone.owner.instance()).await else { return };
    supervisor.guard_containers(&engine.host(), Duration::from_secs(30));
    let held = supervisor.hold(holding()).await.unwrap();
    let place = json!({"CgroupParent": held.parent().unwrap_or_default()});
    // Requests that the engine has, and carries out although nobody waits for the answer.
    let stop = Arc::new(AtomicBool::new(false));
    let makers: Vec<_> = (0..3)
        .map(|_| {
            let (engine, gone, place, stop) = (Arc::clone(&engine), Arc::clone(&gone), place.clone(), Arc::clone(&stop));
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let work = Work { tenant: "acme", task: "t", attempt: 1 };
                    let body = json!({"Image": IMAGE, "Cmd": ["sleep", "600"], "HostConfig": {"NetworkMode": "none", "CgroupParent": place["CgroupParent"]},
                                      "Labels": gone.owner.labels(Role::Task, work)});
                    let made = engine.ask("POST", "/containers/create", body.to_string().as_bytes()).unwrap();
                    // It may be gone before it is started, or while.
                    if let Some(id) = made.json()["Id"].as_str() {
                        let _ = engine.ask("POST", &format!("/containers/{id}/start"), &[]);
                    }
                }
            })
        })
        .collect();
    let deadline = std::time::Instant::now() + PATIENCE * slowness();
    while gone.left(&engine).len() < 3 {
        assert!(std::time::Instant::now() < deadline, "containers come up");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let ending = tokio::spawn(async move { supervisor.shutdown().await });
    // The reaper is at work by then; what the makers have begun before that is still to come.
    let reaper = leftovers::gone(PATIENCE, || if reapers(gone.owner.instance()).is_empty() { vec!["no reaper yet"] } else { vec![] }).await;
    assert_eq!(reaper, Vec::<&str>::new());
    stop.store(true, Ordering::Relaxed);
    ending.await.unwrap();
    for maker in makers {
        maker.join().unwrap();
    }
    assert_eq!(gone.left(&engine), Vec::<String>::new());
    assert_eq!(cgroups(&parent), Vec::<PathBuf>::new(), "also those that the engine made for what it started late");
}

#[tokio::test]
async fn an_engine_that_was_away_is_waited_for_and_a_worker_that_cleaned_up_is_believed() {
    let Some(engine) = Engine::private(&[]) else { return };
    let state = tempfile::tempdir().unwrap();
    let gone = Someone::new(state.path());
    let Some((supervisor, away)) = supervisor("away", gone.owner.instance()).await else { return };
    supervisor.guard_containers(&engine.host(), Duration::from_secs(1));
    gone.container(&engine, true, &json!({}));
    engine.kill9();
    let ending = tokio::spawn(async move { supervisor.shutdown().await });
    let reaper = leftovers::gone(PATIENCE, || if reapers(gone.owner.instance()).is_empty() { vec!["no reaper yet"] } else { vec![] }).await;
    assert_eq!(reaper, Vec::<&str>::new());
    let pid = reapers(gone.owner.instance())[0];
    let open: Vec<_> = (0..3).map(|fd| std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap()).collect();
    assert_eq!(open, [Path::new("/dev/null"); 3], "nothing of the worker's is kept open");
    engine.restart();
    ending.await.unwrap();
    assert_eq!(gone.left(&engine), Vec::<String>::new());
    assert_eq!(leftovers::gone(PATIENCE, || cgroups(&away)).await, Vec::<PathBuf>::new());

    let polite = Someone::new(state.path());
    let (supervisor, own) = self::supervisor("polite", polite.owner.instance()).await.unwrap();
    supervisor.guard_containers(&engine.host(), Duration::from_secs(1));
    polite.container(&engine, true, &json!({}));
    supervisor.containers_gone();
    supervisor.shutdown().await;
    assert_eq!(polite.left(&engine).len(), 1, "nobody looked");
    assert_eq!(leftovers::gone(PATIENCE, || cgroups(&own)).await, Vec::<PathBuf>::new());
}

/// Processes that remove what that instance left.
fn reapers(instance: &str) -> Vec<u32> {
    let found = leftovers::named(instance).into_iter();
    found.filter(|(_, command)| command.contains("reap-containers")).map(|(pid, _)| pid).collect()
}

/// A container that says when it runs, and then waits to be killed.
fn sleeper() -> Job {
    Job::container_script("trap '' TERM; echo up; while :; do sleep 0.1; done").grace(0.0)
}

/// Kills a worker while it has a container, with or without its supervisor; what comes of it is for `then` to say.
async fn killed(fleet: &Fleet, engine: &Engine, with_supervisor: bool) -> (Task, Task, String) {
    let settings = [("CAPACITY__SLOTS", "1")];
    let victim = fleet.worker_named("victim", &settings);
    let task = fleet.submit(&sleeper()).await;
    fleet.output_has(&task, "up").await;
    let container = engine.container_of(&task).await;
    let bystander = fleet.worker_named("bystander", &settings);
    bystander.ready().await;
    let other = fleet.submit(&sleeper()).await;
    fleet.output_has(&other, "up").await;
    if with_supervisor {
        let supervisors = victim.children();
        assert_eq!(supervisors.len(), 1);
        // The worker stands still, so that it cannot see its supervisor go.
        victim.signal(rustix::process::Signal::STOP);
        let pid = rustix::process::Pid::from_raw(supervisors[0].cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
    victim.kill9().await;
    (task, other, container)
}

fn exists(engine: &Engine, container: &str) -> bool {
    engine.ask("GET", &format!("/containers/{container}/json"), &[]).unwrap().status == 200
}

async fn removed(engine: &Engine, container: &str) {
    let left = leftovers::gone(PATIENCE, || if exists(engine, container) { vec![container] } else { vec![] }).await;
    assert_eq!(left, Vec::<&str>::new());
}

#[tokio::test]
async fn a_killed_workers_container_goes_within_seconds_and_its_neighbours_stays() {
    let Some(fleet) = Fleet::docker(&[("LEASE__ACK_WAIT_S", "600")]).await else { return };
    let engine = Engine::shared().unwrap();
    let killed_at = std::time::Instant::now();
    let (task, other, container) = killed(&fleet, &engine, false).await;
    removed(&engine, &container).await;
    println!("worker killed and its container removed after at most {:?}", killed_at.elapsed());
    let neighbour = engine.container_of(&other).await;
    assert_eq!(engine.inspect(&neighbour)["State"]["Running"], true);
    for task in [&task, &other] {
        fleet.cancel(task).await;
    }
    fleet.end(&other).await;
    fleet.finish_unchecked().await;
}

#[tokio::test]
async fn when_worker_and_supervisor_are_killed_together_any_start_removes_what_they_left() {
    let Some(fleet) = Fleet::docker(&[("LEASE__ACK_WAIT_S", "600")]).await else { return };
    let engine = Engine::shared().unwrap();
    let (_, other, container) = killed(&fleet, &engine, true).await;
    assert!(exists(&engine, &container), "nobody is there to remove it");
    let next = fleet.worker_named("next", &[("CAPACITY__SLOTS", "1")]);
    next.ready().await;
    removed(&engine, &container).await;
    let neighbour = engine.container_of(&other).await;
    assert_eq!(engine.inspect(&neighbour)["State"]["Running"], true);
    fleet.cancel(&other).await;
    fleet.end(&other).await;
    fleet.finish_unchecked().await;
}
