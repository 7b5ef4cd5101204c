//! Where a worker may work under cgroup2: the ways in which systemd (or a container) hands it a place, and what is missing
//! in places that are none. Root lays out the places, so `make test-vm` runs this.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::XattrFlags;
use windlass::config;
use windlass::execute::native::{SpawnFailure, StartError, Supervisor};

use super::{EXE, Program, cgroup2, null, program, run, unique};

const MOUNT: &str = "/sys/fs/cgroup";
const USER: u32 = 1000;
const ALL: &str = "+cpu +memory +pids +io";

/// A unit's cgroup, as a service manager makes it: in a slice that passes on some controllers.
struct Unit {
    slice: PathBuf,
    path: PathBuf,
}

impl Unit {
    /// `None` where this machine is not for it.
    fn new(controllers: &str) -> Option<Self> {
        if !cgroup2::is_all_there_is() {
            return None;
        }
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: only root lays out units; it runs this, too");
            return None;
        }
        fs::write(Path::new(MOUNT).join("cgroup.subtree_control"), ALL).expect("controllers");
        let slice = Path::new(MOUNT).join(unique("windlass-test.slice"));
        let path = slice.join("unit.service");
        fs::create_dir_all(&path).expect("makes");
        fs::write(slice.join("cgroup.subtree_control"), controllers).expect("controllers");
        Some(Self { slice, path })
    }

    /// `Delegate=` and `User=`: the directory and the three files.
    fn hand_over(self) -> Self {
        for file in ["", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"] {
            chown(self.path.join(file), Some(USER), Some(USER)).expect("chown");
        }
        self
    }

    /// `DelegateSubgroup=`, or a place for somebody else.
    fn below(&self, name: &str) -> PathBuf {
        let path = self.path.join(name);
        fs::create_dir(&path).expect("makes");
        path
    }

    fn mark(&self, attribute: &str) {
        rustix::fs::setxattr(&self.path, attribute, b"1", XattrFlags::empty()).expect("an attribute");
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        remove(&self.slice);
    }
}

fn remove(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten().filter(|e| e.path().is_dir()) {
        remove(&entry.path());
    }
    if let Err(error) = fs::remove_dir(directory) {
        println!("{} is left: {error}", directory.display());
    }
}

/// The life of a worker's supervisor in a place; what it says comes back as text.
struct Worker<'a> {
    /// Its cgroup.
    place: &'a Path,
    /// Not root.
    user: bool,
    /// `[cgroup] parent`
    parent: &'a str,
    unlimited: bool,
}

impl Worker<'_> {
    fn live(&self) -> String {
        let mut command = Command::new(std::env::current_exe().expect("test binary"));
        command.args(["--exact", "native::delegation::helper_in_its_place", "--nocapture"]).env("WINDLASS_TEST_PLACE", self.parent);
        if self.user {
            command.uid(USER).gid(USER);
        }
        if self.unlimited {
            command.env("WINDLASS_TEST_UNLIMITED", "1");
        }
        let mut worker = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("starts");
        fs::write(self.place.join("cgroup.procs"), worker.id().to_string()).expect("moves");
        worker.stdin.take().expect("piped").write_all(b"go\n").expect("waits for it");
        let mut said = String::new();
        worker.stdout.take().expect("piped").read_to_string(&mut said).expect("text");
        assert!(worker.wait().expect("ends").success(), "{said}");
        said
    }
}

/// Started by the others in the place that they made, and told when it is there.
#[tokio::test]
async fn helper_in_its_place() {
    let Ok(parent) = std::env::var("WINDLASS_TEST_PLACE") else { return };
    std::io::stdin().read_line(&mut String::new()).expect("told");
    let unlimited = std::env::var_os("WINDLASS_TEST_UNLIMITED").is_some();
    let config = config::Cgroup { mount: MOUNT.into(), parent, allow_unlimited: unlimited };
    let supervisor = match Supervisor::start(Path::new(EXE), &config, "instance").await {
        Ok(supervisor) => supervisor,
        Err(StartError::Unfit(why)) => return println!("UNFIT {why}"),
        Err(error) => panic!("{error}"),
    };
    let capabilities = supervisor.capabilities();
    println!("STARTED {}, enforced {}", capabilities.description, capabilities.enforced);
    println!("WORKER {}", fs::read_to_string("/proc/self/cgroup").expect("own cgroup"));
    let named = |name: &str, argv: &[&str]| Program { cgroup: name.into(), ..program(argv) };
    let mut task = named("task", &["cat", "/proc/self/cgroup"]);
    if unlimited {
        match supervisor.spawn(named("limited", &["true"]), null(), null(), null()).await {
            Err(SpawnFailure::Refused(error)) => println!("REFUSED {error}"),
            other => panic!("{other:?}"),
        }
        task.limits.enforced = false;
    }
    let (report, out) = run(&supervisor, task).await;
    println!("TASK {:?} {out}", report.status);
    supervisor.shutdown().await;
}

/// How a path looks in `/proc/self/cgroup`.
fn seen(path: &Path) -> String {
    format!("0::/{}\n", path.strip_prefix(MOUNT).expect("below the mount").display())
}

const WHOLE: &str = "STARTED cgroup2 cpu,memory,pids,io, enforced true";

#[tokio::test]
async fn a_user_works_in_the_unit_that_was_delegated_and_moves_into_a_leaf() {
    let Some(unit) = Unit::new(ALL).map(Unit::hand_over) else { return };
    let leaf = unit.path.join("windlass-leaf");
    // The second life is started by what the first one moved: in the leaf.
    for place in [&unit.path, &leaf] {
        let said = Worker { place, user: true, parent: "", unlimited: false }.live();
        assert!(said.contains(WHOLE), "{said}");
        assert!(said.contains(&format!("WORKER {}", seen(&leaf))), "{said}");
        assert!(said.contains(&format!("TASK Code(0) {}", seen(&unit.path.join("windlass/instance/task")))), "{said}");
        assert!(!unit.path.join("windlass/instance").exists(), "left");
    }
}

#[tokio::test]
async fn a_subgroup_of_the_unit_is_left_alone_and_the_tasks_go_beside_it() {
    for (user, attribute) in [(true, "user.delegate"), (false, "trusted.delegate")] {
        let Some(unit) = Unit::new(ALL) else { return };
        let unit = if user { unit.hand_over() } else { unit };
        let own = unit.below("worker");
        if user {
            chown(&own, Some(USER), Some(USER)).expect("chown");
        }
        unit.mark(attribute);
        let said = Worker { place: &own, user, parent: "", unlimited: false }.live();
        assert!(said.contains(WHOLE), "{said}");
        assert!(said.contains(&format!("WORKER {}", seen(&own))), "{said}");
        assert!(said.contains(&format!("TASK Code(0) {}", seen(&unit.path.join("windlass/instance/task")))), "{said}");
        assert!(!unit.path.join("windlass/instance").exists(), "left");
    }
}

#[tokio::test]
async fn an_examination_leaves_the_unit_as_it_was() {
    for marked in [false, true] {
        let Some(unit) = Unit::new(ALL).map(Unit::hand_over) else { return };
        if marked {
            unit.mark("user.delegate");
        }
        let mut command = Command::new("sh");
        command.args(["-c", "read -r go && exec \"$0\" doctor -o json --server nats://127.0.0.1:1", EXE]);
        command.env("WINDLASS__WORKER__STATE_DIR", "/tmp").uid(USER).gid(USER);
        let mut doctor = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("starts");
        fs::write(unit.path.join("cgroup.procs"), doctor.id().to_string()).expect("moves");
        doctor.stdin.take().expect("piped").write_all(b"go\n").expect("waits for it");
        let mut said = String::new();
        doctor.stdout.take().expect("piped").read_to_string(&mut said).expect("text");
        assert_eq!(doctor.wait().expect("ends").code(), Some(6), "{said}");
        let findings: Vec<serde_json::Value> = serde_json::from_str(&said).expect("findings");
        let found = |check: &str| findings.iter().find(|f| f["check"] == check).unwrap_or_else(|| panic!("{check}: {said}"));
        assert_eq!((&found("limits")["level"], &found("trial")["level"]), (&"ok".into(), &"ok".into()), "{said}");
        assert!(found("place")["found"].as_str().expect("text").starts_with(unit.path.to_str().expect("text")), "{said}");
        assert_eq!(fs::read_to_string(unit.path.join("cgroup.subtree_control")).expect("reads").trim(), "", "controllers are left");
        let left = fs::read_dir(&unit.path).expect("reads").flatten().filter(|entry| entry.path().is_dir()).map(|entry| entry.path());
        assert_eq!(left.collect::<Vec<_>>(), Vec::<PathBuf>::new(), "left");
    }
}

#[tokio::test]
async fn a_unit_that_is_not_the_users_is_refused_with_what_to_grant() {
    let Some(unit) = Unit::new(ALL) else { return };
    let said = Worker { place: &unit.path, user: true, parent: "", unlimited: false }.live();
    assert!(said.contains("UNFIT") && said.contains("not delegated to this user"), "{said}");
    assert!(said.contains(unit.path.to_str().expect("text")) && said.contains("Delegate=cpu memory pids io"), "{said}");
}

#[tokio::test]
async fn without_the_memory_controller_there_are_no_limits_unless_none_are_wanted() {
    let Some(unit) = Unit::new("+cpu +pids").map(Unit::hand_over) else { return };
    let said = Worker { place: &unit.path, user: true, parent: "", unlimited: false }.live();
    assert!(said.contains("UNFIT no cgroup controller memory under") && said.contains("--allow-unlimited"), "{said}");
    // A service manager removes a unit's cgroup before it starts the unit again.
    drop(unit);
    let unit = Unit::new("+cpu +pids").map(Unit::hand_over).expect("as before");
    let said = Worker { place: &unit.path, user: true, parent: "", unlimited: true }.live();
    assert!(said.contains("STARTED cgroup2 cpu,pids, enforced false"), "{said}");
    assert!(said.contains("REFUSED cannot set limit all: not enforceable here (cgroup2 cpu,pids)"), "{said}");
    assert!(said.contains(&format!("TASK Code(0) {}", seen(&unit.path.join("windlass/instance/task")))), "{said}");
}

#[tokio::test]
async fn a_worker_outside_the_place_that_it_was_given_does_not_start() {
    let Some(unit) = Unit::new(ALL).map(Unit::hand_over) else { return };
    // It may make directories there; to start a task in one takes a right on what is above both.
    let outside = unit.slice.join("session.scope");
    fs::create_dir(&outside).expect("makes");
    let parent = unit.path.join("jobs");
    let parent = parent.strip_prefix(MOUNT).expect("below the mount").to_str().expect("text");
    let said = Worker { place: &outside, user: true, parent, unlimited: false }.live();
    assert!(said.contains(&format!("UNFIT cannot use {}", unit.slice.display())) && said.contains("Permission denied"), "{said}");
    let said = Worker { place: &unit.below("worker"), user: true, parent, unlimited: false }.live();
    assert!(said.contains(&format!("TASK Code(0) {}", seen(&unit.path.join("jobs/instance/task")))), "{said}");
}

#[tokio::test]
async fn a_place_where_others_sit_or_that_is_threaded_is_refused_by_its_name() {
    let Some(unit) = Unit::new(ALL) else { return };
    let mut stranger = Command::new("sleep").arg("300").spawn().expect("starts");
    fs::write(unit.path.join("cgroup.procs"), stranger.id().to_string()).expect("moves");
    let named = |place: &Path| place.join("jobs").strip_prefix(MOUNT).expect("below the mount").to_str().expect("text").to_owned();
    let root = Path::new(MOUNT);
    let said = Worker { place: root, user: false, parent: &named(&unit.path), unlimited: false }.live();
    assert!(said.contains(&format!("UNFIT cannot use {}", unit.path.display())) && said.contains("os error 16"), "{said}");
    assert_eq!(fs::read_to_string(unit.path.join("cgroup.procs")).expect("reads"), format!("{}\n", stranger.id()), "a stranger was moved");
    stranger.kill().expect("kills");
    stranger.wait().expect("reaped");

    let threaded = unit.slice.join("threaded");
    fs::create_dir(&threaded).expect("makes");
    fs::write(unit.slice.join("cgroup.subtree_control"), "-cpu -memory -pids -io").expect("disables");
    fs::write(threaded.join("cgroup.type"), "threaded").expect("threaded");
    let said = Worker { place: root, user: false, parent: &named(&threaded), unlimited: false }.live();
    assert!(said.contains("UNFIT") && !said.contains("STARTED"), "{said}");
}
