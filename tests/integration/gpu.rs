//! GPUs: one task each, whole and alone, among all workers of the machine; given back by whatever death; nobody else's to open.
//!
//! Made-up devices stand for real ones: nodes with numbers that every kernel has. [`real_devices_are_given_to_tasks`] is for
//! machines with an NVIDIA card.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::process::Signal;
use serde_json::json;
use windlass::config::Gpu;
use windlass::execute::gpu::locks::LockDir;
use windlass::execute::gpu::{Inventory, Source};
use windlass::task::log_chunk::LogStream;
use windlass::task::{EventKind, Reason};

use crate::harness::job::Gate;
use crate::harness::proxy::{Cut, Direction, Proxy, Spring};
use crate::harness::server::skip;
use crate::harness::worker::Worker;
use crate::harness::{Fleet, Job, PATIENCE, leftovers};

const A: &str = "GPU-aaaaaaaa";
const B: &str = "GPU-bbbbbbbb";
/// Of `/dev/zero` and `/dev/full`: both can be read for ever.
const NUMBERS: [(&str, u32); 2] = [(A, 5), (B, 7)];
const LOCK_OF_A: &str = "1-5.lock";

/// Nodes of devices; in `/dev`, for tasks see nothing else that could hold any.
struct Nodes(Vec<(&'static str, PathBuf)>);

impl Nodes {
    /// None where nodes cannot be made.
    fn make(fleet: &Fleet, how_many: usize) -> Option<Self> {
        let name = |id: &str| Path::new("/dev").join(format!("{}-{id}", fleet.root().file_name().unwrap().to_str().unwrap()));
        let mut nodes = Self(Vec::new());
        for (id, minor) in NUMBERS.into_iter().take(how_many) {
            let path = name(id);
            if let Err(error) = Self::one(&path, minor) {
                skip(&format!("no device nodes can be made here: {error}"));
                return None;
            }
            nodes.0.push((id, path));
        }
        Some(nodes)
    }

    /// For every user, as those of real devices.
    fn one(path: &Path, minor: u32) -> std::io::Result<()> {
        mknodat(CWD, path, FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(1, minor))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))
    }

    fn path(&self, id: &str) -> &Path {
        &self.0.iter().find(|(known, _)| *known == id).expect("one of them").1
    }

    /// `gpu.devices`
    fn setting(&self) -> String {
        let listed: Vec<String> = self.0.iter().map(|(id, path)| format!("\"{id}={}\"", path.display())).collect();
        format!("[{}]", listed.join(", "))
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for (_, path) in &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A fleet whose class takes one device a task unless asked otherwise, its devices, and their locks.
struct Rig {
    fleet: Fleet,
    nodes: Nodes,
    locks: PathBuf,
}

/// One device a task, two at most.
const SETTINGS: [(&str, &str); 3] = [("CLASSES__CPU_SHORT__GPUS", "1"), ("CLASSES__CPU_SHORT__MAX_GPUS", "2"), ("CAPACITY__SLOTS", "4")];

impl Rig {
    async fn start(devices: usize, settings: &[(&str, &str)]) -> Option<Self> {
        Self::on(Fleet::start(&[&SETTINGS, settings].concat()).await?, devices).await
    }

    /// Likewise, with an engine for containers.
    async fn with_engine(devices: usize, settings: &[(&str, &str)]) -> Option<Self> {
        Self::on(Fleet::docker(&[&SETTINGS, settings].concat()).await?, devices).await
    }

    async fn on(fleet: Fleet, devices: usize) -> Option<Self> {
        let Some(nodes) = Nodes::make(&fleet, devices) else {
            fleet.finish().await;
            return None;
        };
        let locks = fleet.root().join("gpu-locks");
        Some(Self { fleet, nodes, locks })
    }

    fn worker(&self, id: &str) -> std::sync::Arc<Worker> {
        let (devices, locks) = (self.nodes.setting(), self.locks.display().to_string());
        self.fleet.worker_named(id, &[("GPU__DEVICES", &devices), ("GPU__LOCK_DIR", &locks)])
    }

    /// The locks, as another worker sees them.
    fn locks(&self) -> LockDir {
        LockDir::open(&self.locks, Path::new("/sys/fs/cgroup")).expect("the directory of locks")
    }

    async fn finish(self) {
        self.fleet.finish().await;
        drop(self.nodes);
    }
}

async fn until(what: &str, fleet: &Fleet, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not yet: {what}\n{}", fleet.logs());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn said(fleet: &Fleet, task: &crate::harness::Task) -> (windlass::task::event::Event, String) {
    let end = fleet.end(task).await;
    let output = fleet.output(task, &end, LogStream::Stdout).await;
    (end, String::from_utf8(output).expect("text"))
}

#[tokio::test]
async fn a_device_is_one_tasks_at_a_time_among_all_workers() {
    let Some(rig) = Rig::start(2, &[]).await else { return };
    let fleet = &rig.fleet;
    let _workers = [rig.worker("one"), rig.worker("two")];
    let taken = fleet.open_dir("taken");
    // Whoever has a device makes its directory: it must not be there yet.
    let script = format!(
        "cd {}; mkdir $CUDA_VISIBLE_DEVICES || exit 9; sleep 0.1; rmdir $CUDA_VISIBLE_DEVICES; echo $NVIDIA_VISIBLE_DEVICES",
        taken.display()
    );
    let mut tasks = Vec::new();
    for _ in 0..12 {
        tasks.push(fleet.submit(&Job::bash(&script)).await);
    }
    let mut used = BTreeSet::new();
    for task in &tasks {
        let (end, output) = said(fleet, task).await;
        assert_eq!((end.reason, end.task.attempt), (Some(Reason::Ok), 1), "{end:?}");
        let gpus = end.run.as_ref().expect("how it ran").gpus.clone();
        assert_eq!(gpus, [output.trim()], "events name the device that the task was told to use");
        let started = fleet.event(task, EventKind::TaskStarted).await;
        assert_eq!(started.run.expect("how it runs").gpus, gpus);
        used.extend(gpus);
    }
    assert_eq!(used, BTreeSet::from([A.to_owned(), B.to_owned()]), "all of them are used");
    rig.finish().await;
}

#[tokio::test]
async fn tasks_wait_in_the_queue_and_not_at_a_worker_without_free_devices() {
    let Some(rig) = Rig::start(1, &[]).await else { return };
    let fleet = &rig.fleet;
    let worker = rig.worker("one");
    let gate = Gate::new(&fleet.dir, "first");
    let first = fleet.submit(&Job::bash(gate.wait())).await;
    fleet.running(&first).await;
    let mut tasks = vec![first];
    for _ in 0..3 {
        tasks.push(fleet.submit(&Job::argv(["true"])).await);
    }
    let scrape = worker.metrics().await;
    assert_eq!((scrape.value("windlass_gpus"), scrape.value("windlass_gpus_in_use")), (1.0, 1.0));
    gate.open();
    for task in &tasks {
        let end = fleet.end(task).await;
        assert_eq!((end.reason, end.task.deliveries), (Some(Reason::Ok), 1), "it was pulled when there was a device for it");
    }
    let deadline = Instant::now() + PATIENCE;
    while worker.metrics().await.value("windlass_gpus_in_use") != 0.0 {
        assert!(Instant::now() < deadline, "devices are not given back\n{}", worker.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    rig.finish().await;
}

#[tokio::test]
async fn a_task_takes_as_many_as_it_asks_for_and_no_more_than_its_class_allows() {
    let Some(rig) = Rig::start(2, &[]).await else { return };
    let fleet = &rig.fleet;
    rig.worker("one");
    let asking = |n: u32| Job::bash("echo $CUDA_VISIBLE_DEVICES $NVIDIA_VISIBLE_DEVICES").set("/execution/resources/gpus", n);
    let (both, none, many) = (fleet.submit(&asking(2)).await, fleet.submit(&asking(0)).await, fleet.submit(&asking(3)).await);
    let (end, output) = said(fleet, &both).await;
    assert_eq!((end.run.unwrap().gpus, output), (vec![A.to_owned(), B.to_owned()], format!("{A},{B} {A},{B}\n")));
    let (end, output) = said(fleet, &none).await;
    assert_eq!((end.run.unwrap().gpus, output.as_str()), (vec![], "-1 void\n"), "who has none is told so");
    let end = fleet.end(&many).await;
    assert_eq!((end.reason, end.task.attempt), (Some(Reason::PolicyRefused), 0));
    assert!(end.error.as_ref().is_some_and(|e| e.starts_with("execution.resources.gpus: 3") && e.contains("ceiling of 2")), "{end:?}");
    rig.finish().await;
}

#[tokio::test]
async fn a_worker_without_devices_leaves_the_class_to_others() {
    let Some(rig) = Rig::start(1, &[("CLASSES__PLAIN__SLOTS", "2")]).await else { return };
    let fleet = &rig.fleet;
    let locks = rig.locks.display().to_string();
    let without = fleet.worker_named("without", &[("GPU__DEVICES", "[]"), ("GPU__LOCK_DIR", &locks)]);
    without.says(&["not served here", "1 GPUs each, and this worker has 0", "class=cpu_short"]).await;
    without.ready().await;
    let waiting = fleet.submit(&Job::argv(["true"])).await;
    let mut plain = Job::bash("echo ${CUDA_VISIBLE_DEVICES-unset}");
    "plain".clone_into(&mut plain.class);
    let plain = fleet.submit(&plain).await;
    let (end, output) = said(fleet, &plain).await;
    assert_eq!((end.reason, output.as_str()), (Some(Reason::Ok), "unset\n"), "where there are no devices nothing is said of them");
    rig.worker("with");
    let end = fleet.end(&waiting).await;
    assert_eq!((end.reason, end.worker.worker_id.as_str(), end.task.deliveries), (Some(Reason::Ok), "with", 1));
    rig.finish().await;
}

/// Ends only when it is killed, and so does its child, which is no part of its session; a later attempt ends at once.
const STUBBORN: &str = "[ $WINDLASS_ATTEMPT -gt 1 ] && exit; trap '' TERM; setsid bash -c \"trap '' TERM; while :; do sleep 1; done\" & while :; do sleep 1; done";

#[tokio::test]
async fn a_device_is_free_after_the_death_of_its_worker_but_not_before_that_of_its_task() {
    let Some(rig) = Rig::start(1, &[("LEASE__ACK_WAIT_S", "2")]).await else { return };
    worker_dies(rig, &Job::bash(STUBBORN)).await;
}

#[tokio::test]
async fn a_device_is_free_after_the_death_of_its_worker_but_not_before_that_of_its_container() {
    let Some(rig) = Rig::with_engine(1, &[("LEASE__ACK_WAIT_S", "2")]).await else { return };
    worker_dies(rig, &Job::container_script(STUBBORN)).await;
}

async fn worker_dies(rig: Rig, job: &Job) {
    let fleet = &rig.fleet;
    let victim = rig.worker("victim");
    let task = fleet.submit(job).await;
    fleet.running(&task).await;
    let locks = rig.locks();
    assert!(!locks.is_free(LOCK_OF_A));
    victim.signal(Signal::KILL);
    // Not the supervisor's word, nor a time: whenever the lock can be had, nobody may be there.
    until("the lock is free", fleet, || {
        let free = locks.take(LOCK_OF_A).expect("a lock").is_some();
        assert!(!free || fleet.processes_of(&task.id).is_empty(), "the device is free, and its task lives");
        free
    })
    .await;
    victim.exit(PATIENCE).await;
    rig.worker("victim");
    let end = fleet.end(&task).await;
    assert_eq!((end.reason, end.task.attempt, end.run.unwrap().gpus), (Some(Reason::Ok), 2, vec![A.to_owned()]));
    rig.finish().await;
}

#[tokio::test]
async fn a_device_is_not_free_while_a_task_lives_whose_worker_and_supervisor_were_killed() {
    let Some(rig) = Rig::start(1, &[("LEASE__ACK_WAIT_S", "2")]).await else { return };
    let fleet = &rig.fleet;
    let victim = rig.worker("victim");
    let other = rig.worker("other");
    let task = fleet.submit(&Job::bash(STUBBORN)).await;
    fleet.running(&task).await;
    until("both of its processes run", fleet, || fleet.processes_of(&task.id).len() > 2).await;
    let started = fleet.event(&task, EventKind::TaskStarted).await;
    let victim = if started.worker.worker_id.as_str() == "victim" { victim } else { other };
    let supervisor = *victim.children().first().expect("a supervisor");
    victim.signal(Signal::STOP);
    let supervisor = rustix::process::Pid::from_raw(supervisor.cast_signed()).expect("not zero");
    rustix::process::kill_process(supervisor, Signal::KILL).expect("it lives");
    victim.signal(Signal::KILL);
    victim.exit(PATIENCE).await;
    // Nobody holds the lock any more. What is left of the task went on living, and is no more to be killed by anybody here.
    let locks = rig.locks();
    assert!(!fleet.processes_of(&task.id).is_empty(), "the child outlives all of them");
    assert!(!locks.is_free(LOCK_OF_A) && locks.take(LOCK_OF_A).expect("a lock").is_none(), "it may still compute");
    // The next start sweeps, and the device is there for everybody.
    rig.worker(&victim.id);
    let end = fleet.end(&task).await;
    assert_eq!((end.reason, end.task.attempt, end.run.unwrap().gpus), (Some(Reason::Ok), 2, vec![A.to_owned()]));
    assert_eq!(fleet.processes_of(&task.id), []);
    rig.finish().await;
}

/// What a task can read of both devices, and of one that is nobody's.
fn reader(nodes: &Nodes) -> String {
    let read = |id: &str| format!("head -c 1 {} >/dev/null 2>&1 && echo {id}", nodes.path(id).display());
    format!("{}; {}; head -c 1 /dev/null && echo done", read(A), read(B))
}

#[tokio::test]
async fn a_task_can_open_its_own_device_and_no_other() {
    let Some(rig) = Rig::start(2, &[("CLASSES__PLAIN__MAX_GPUS", "1")]).await else { return };
    let fleet = &rig.fleet;
    rig.worker("one");
    let gate = Gate::new(&fleet.dir, "holder");
    // One of the two is in use, so that the other task's is not always the first.
    let holder = fleet.submit(&Job::bash(format!("{}; {}", gate.wait(), reader(&rig.nodes)))).await;
    fleet.running(&holder).await;
    let task = fleet.submit(&Job::bash(reader(&rig.nodes))).await;
    let mut without = Job::bash(reader(&rig.nodes));
    "plain".clone_into(&mut without.class);
    let without = fleet.submit(&without).await;
    assert_eq!(said(fleet, &task).await.1, format!("{B}\ndone\n"));
    assert_eq!(said(fleet, &without).await.1, "done\n", "a task without a device opens none");
    gate.open();
    assert_eq!(said(fleet, &holder).await.1, format!("{A}\ndone\n"));
    rig.finish().await;
}

#[tokio::test]
async fn containers_get_their_devices_and_no_others() {
    let Some(rig) = Rig::with_engine(2, &[]).await else { return };
    let fleet = &rig.fleet;
    rig.worker("one");
    let asking = |n: u32| {
        let script = format!("{}; echo $CUDA_VISIBLE_DEVICES $NVIDIA_VISIBLE_DEVICES", reader(&rig.nodes));
        Job::container_script(script).set("/execution/resources/gpus", n)
    };
    let (end, output) = said(fleet, &fleet.submit(&asking(1)).await).await;
    let own = end.run.as_ref().expect("how it ran").gpus.clone();
    assert_eq!((own.len(), output), (1, format!("{0}\ndone\n{0} {0}\n", own.concat())), "{end:?}");
    let (end, output) = said(fleet, &fleet.submit(&asking(2)).await).await;
    assert_eq!(output, format!("{A}\n{B}\ndone\n{A},{B} {A},{B}\n"), "{end:?}");
    let (end, output) = said(fleet, &fleet.submit(&asking(0)).await).await;
    assert_eq!((end.run.expect("how it ran").gpus, output.as_str()), (vec![], "done\n-1 void\n"), "an image that asks for all gets none");
    rig.finish().await;
}

#[tokio::test]
async fn without_a_sandbox_the_devices_controller_keeps_others_away() {
    let controller = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    if !controller.lines().any(|line| line.contains(" - cgroup ") && line.ends_with("devices")) {
        skip("no cgroup hierarchy of version 1 with the devices controller; on cgroup2 only the sandbox keeps devices apart");
        return;
    }
    let Some(rig) = Rig::start(2, &[("CLASSES__CPU_SHORT__SANDBOX", "none")]).await else { return };
    let fleet = &rig.fleet;
    rig.worker("one");
    let one = fleet.submit(&Job::bash(reader(&rig.nodes))).await;
    let (end, output) = said(fleet, &one).await;
    assert_eq!(output, format!("{}\ndone\n", end.run.unwrap().gpus[0]));
    let none = fleet.submit(&Job::bash(reader(&rig.nodes)).set("/execution/resources/gpus", 0)).await;
    assert_eq!(said(fleet, &none).await.1, "done\n");
    rig.finish().await;
}

/// It was there when its permit was taken, and is gone when the claim is known to be stored.
#[tokio::test]
async fn a_device_that_goes_between_permit_and_start_costs_an_attempt() {
    let Some(rig) = Rig::with_engine(1, &[("BUS__REQUEST_TIMEOUT_S", "1"), ("BUS__PING_INTERVAL_S", "0.5")]).await else { return };
    let fleet = &rig.fleet;
    let proxy = Proxy::before(&fleet.server);
    let (devices, locks) = (rig.nodes.setting(), rig.locks.display().to_string());
    fleet.worker_at("far", &proxy.url(), &[("GPU__DEVICES", &devices), ("GPU__LOCK_DIR", &locks)]);
    let node = rig.nodes.path(A).to_path_buf();
    let retry = json!({"max_attempts": 2, "backoff": {"initial_ms": 50, "factor": 1.0, "max_ms": 50}});
    for job in [Job::argv(["true"]), Job::container(["true"])] {
        let job = job.set("/retry", retry.clone());
        let claim = format!("{}.events.{}.{}.task_started", fleet.prefix, job.tenant, job.task_id());
        let mut claimed = proxy.trap(Direction::ToServer, &[&claim], Spring::LoseAnswers);
        let task = fleet.submit(&job).await;
        claimed.sprung().await;
        fleet.event(&task, EventKind::TaskStarted).await;
        std::fs::remove_file(&node).unwrap();
        proxy.cut(Cut::Reset);
        proxy.mend();
        let failed = fleet.event(&task, EventKind::TaskRetrying).await;
        assert_eq!((failed.reason, failed.phase.as_deref()), (Some(Reason::GpuUnavailable), Some("prepare")), "{:?}", failed.error);
        assert!(failed.error.unwrap().contains(node.to_str().unwrap()) && failed.hint.is_some());
        // Nobody takes the message while there is no device for it.
        Nodes::one(&node, NUMBERS[0].1).unwrap();
        let end = fleet.end(&task).await;
        assert_eq!((end.reason, end.task.attempt), (Some(Reason::Ok), 2), "{:?}", end.error);
    }
    until("the device is free", fleet, || rig.locks().is_free(LOCK_OF_A)).await;
    rig.finish().await;
}

#[tokio::test]
async fn what_cannot_be_shared_is_said_at_the_start() {
    let Some(rig) = Rig::start(1, &[]).await else { return };
    let fleet = &rig.fleet;
    let (devices, locks) = (rig.nodes.setting(), rig.locks.display().to_string());
    let file = fleet.dir.join("file");
    std::fs::write(&file, "").unwrap();
    let file = file.display().to_string();
    for (id, devices, locks, said) in [
        ("directory", devices.as_str(), file.as_str(), "gpu.lock_dir: cannot use"),
        ("node", "[\"GPU-1=/dev/no-such-device\"]", locks.as_str(), "gpu.devices: /dev/no-such-device: No such file"),
        ("no-device", "[\"GPU-1=/etc/passwd\"]", locks.as_str(), "gpu.devices: /etc/passwd: not a character device"),
        ("list", "[\"auto\", \"GPU-1\"]", locks.as_str(), "gpu.devices = [\"auto\", \"GPU-1\"]: \"auto\" stands alone"),
        ("nothing", "[]", locks.as_str(), "cpu_short: its tasks take 1 GPUs each, and this worker has 0"),
    ] {
        let worker = fleet.worker_named(id, &[("GPU__DEVICES", devices), ("GPU__LOCK_DIR", locks)]);
        assert_eq!(worker.exit(PATIENCE).await.code(), Some(2), "{}", worker.log());
        assert!(worker.said(said), "{said}\n{}", worker.log());
    }
    rig.finish().await;
}

#[tokio::test]
async fn nvidias_library_is_asked_where_it_is_there() {
    let Some(fleet) = Fleet::start(&[("CLASSES__CPU_SHORT__GPUS", "1"), ("CLASSES__CPU_SHORT__MAX_GPUS", "1")]).await else { return };
    let library = fleet.dir.join("libnvidia-ml.so.1");
    let source = crate::harness::programs().join("nvml.c");
    let compiled = std::process::Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source).status();
    if !compiled.is_ok_and(|status| status.success()) {
        skip("no C compiler (cc) for the stand-in of NVIDIA's library");
        fleet.finish().await;
        return;
    }
    let (path, locks) = (fleet.dir.display().to_string(), fleet.root().join("gpu-locks").display().to_string());
    let worker = fleet.worker(&[("env:LD_LIBRARY_PATH", &path), ("GPU__DEVICES", "[\"auto\"]"), ("GPU__LOCK_DIR", &locks)]);
    let id = "GPU-11111111-2222-3333-4444-555555555555";
    let line = worker.says(&["GPU 1 is left out"]).await;
    assert!(line.contains("divided (MIG)") && line.contains("nvidia-smi -i 1 -mig 0"), "{line}");
    let task = fleet.submit(&Job::bash("echo $CUDA_VISIBLE_DEVICES")).await;
    let (end, output) = said(&fleet, &task).await;
    assert_eq!((end.run.unwrap().gpus, output), (vec![id.to_owned()], format!("{id}\n")));
    let scrape = worker.metrics().await;
    assert_eq!(scrape.value("windlass_gpus"), 1.0);
    assert_eq!(scrape.value(&format!("windlass_gpu_utilization{{device=\"{id}\"}}")), 0.37);
    assert_eq!(scrape.value(&format!("windlass_gpu_memory_used_bytes{{device=\"{id}\"}}")), f64::from(1 << 30));
    fleet.finish().await;
}

/// On a machine with an NVIDIA card and its driver; everywhere else there is nothing to prove, and no tool that could be installed.
#[tokio::test]
async fn real_devices_are_given_to_tasks() {
    let found = Inventory::find(&Gpu { devices: vec!["auto".to_owned()], lock_dir: "/nowhere".into() }).expect("auto names nothing");
    let Some(first) = found.devices.first() else {
        println!("SKIPPED: NVML knows no GPU here{}", found.notes.iter().map(|note| format!("; {note}")).collect::<String>());
        return;
    };
    assert_eq!(first.source, Source::Nvml);
    let Some(fleet) = Fleet::start(&[("CLASSES__CPU_SHORT__GPUS", "1"), ("CLASSES__CPU_SHORT__MAX_GPUS", "1")]).await else { return };
    let locks = fleet.root().join("gpu-locks").display().to_string();
    let worker = fleet.worker(&[("GPU__DEVICES", "[\"auto\"]"), ("GPU__LOCK_DIR", &locks)]);
    // Its own node and those that all devices have in common can be opened, and no other.
    let script =
        "for node in /dev/nvidia[0-9]* /dev/nvidiactl; do (exec 3<>$node) 2>/dev/null && echo $node; done; echo $CUDA_VISIBLE_DEVICES";
    let task = fleet.submit(&Job::bash(script)).await;
    let (end, output) = said(&fleet, &task).await;
    let gpus = end.run.expect("how it ran").gpus;
    assert_eq!((end.reason, gpus.len()), (Some(Reason::Ok), 1), "{output}");
    let device = found.devices.iter().find(|device| device.id == gpus[0]).expect("one of this machine's");
    let node = device.node.as_ref().map(|node| format!("{}\n", node.display())).unwrap_or_default();
    assert_eq!(output, format!("{node}/dev/nvidiactl\n{}\n", gpus[0]));
    let scrape = worker.metrics().await;
    assert!(scrape.value(&format!("windlass_gpu_memory_used_bytes{{device=\"{}\"}}", gpus[0])) >= 0.0);
    assert_eq!(leftovers::processes(&format!("WINDLASS_TASK_ID={}\0", task.id)), []);
    fleet.finish().await;
}
