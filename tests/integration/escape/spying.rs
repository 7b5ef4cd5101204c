//! What a task must not read: other tenants, the worker, its credentials, its spool.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use windlass::task::Reason;

use super::attacker::{CONFINED, World, instances, is_root, list};
use crate::harness::job::Gate;
use crate::harness::server::skip;
use crate::harness::{Fleet, Job, PATIENCE};

/// Everything that would give something away of a process that is not the attacker's.
const PRIVATE: [&str; 14] = [
    "environ",
    "maps",
    "memory",
    "memory-write",
    "process_vm_readv",
    "descriptors",
    "descriptor-0",
    "root",
    "cwd",
    "auxv",
    "pidfd_getfd",
    "setns",
    "kcmp",
    "ptrace",
];

#[tokio::test]
async fn another_tenants_directory_cannot_be_read_or_changed() {
    for profile in ["none", "standard", "strict"] {
        let Some(world) = World::new(profile, &[]).await else { return };
        let victim = world.victim("globex").await;
        let secret = victim.root.join("work/secret").display().to_string();
        let (root, work) = (victim.root.display().to_string(), victim.root.join("work").display().to_string());
        let parent = victim.root.parent().unwrap().display().to_string();
        for tenant in ["acme", "initech"] {
            let seen = world.attack(tenant, ["read", &secret, &work, &root, &parent]).await;
            let read = seen.lines.iter().any(|l| l.contains("canary-of-globex"));
            assert_eq!(read, profile == "none", "{profile}: {seen:?}");
            if profile == "none" {
                continue;
            }
            assert_eq!(seen.successes(), [""; 0], "{profile}");
            let seen = world.attack(tenant, ["write", &work, &root, &parent, &secret, &format!("{work}/../result.json")]).await;
            assert_eq!(seen.successes(), [""; 0], "{profile}");
        }
        if profile == "none" {
            let seen = world.attack("acme", ["write", &work]).await;
            assert!(seen.got(&format!("create {work}")), "{seen:?}");
            // Renamed by the attacker: put back for its owner.
            std::fs::rename(format!("{work}.renamed"), &work).unwrap();
        } else {
            let mut found: Vec<_> = list(&victim.root.join("work")).iter().map(|p| p.file_name().unwrap().to_owned()).collect();
            found.sort();
            assert_eq!(found, ["secret"], "{profile}");
        }
        victim.ends_unharmed(&world).await;
        world.fleet.finish().await;
    }
}

#[tokio::test]
async fn two_tasks_of_one_tenant_are_kept_apart_too() {
    for profile in CONFINED {
        let Some(world) = World::new(profile, &[]).await else { return };
        let victim = world.victim("acme").await;
        let secret = victim.root.join("work/secret").display().to_string();
        let seen = world.attack("acme", ["read", &secret]).await;
        assert_eq!(seen.successes(), [""; 0], "{profile}");
        let seen = world.attack("acme", ["write", &victim.root.join("work").display().to_string()]).await;
        // Their user is the same, and Landlock knows nothing of modes and owners.
        let changed: Vec<_> = seen.successes().into_iter().filter(|s| !s.starts_with("ch")).collect();
        assert_eq!(changed, [""; 0], "{profile}");
        let seen = world.attack("acme", ["spy", &victim.pid.to_string()]).await;
        let read: Vec<_> = PRIVATE.into_iter().filter(|what| seen.got(what)).collect();
        assert_eq!(read, [""; 0], "{profile}: {seen:?}");
        let seen = world.attack("acme", ["signal", &victim.pid.to_string(), "0", "18", "9"]).await;
        assert_eq!(seen.successes(), [""; 0], "{profile}: Landlock's scopes, Linux 6.12");
        victim.ends_unharmed(&world).await;
        world.fleet.finish().await;
    }
}

#[tokio::test]
async fn nothing_of_another_process_can_be_read() {
    for profile in ["none", "standard", "strict"] {
        let Some(world) = World::new(profile, &[]).await else { return };
        let victim = world.victim("globex").await;
        let supervisor = world.supervisor().await;
        let init = 1;
        for (who, pid) in
            [("the worker", world.worker.pid), ("its supervisor", supervisor), ("a task of another tenant", victim.pid), ("init", init)]
        {
            // Without a sandbox a task is root, and may do what root may; two of these are refused even there.
            if profile == "none" && who != "a task of another tenant" && who != "the worker" {
                continue;
            }
            let seen = world.attack("acme", ["spy", &pid.to_string(), "canary-of-globex"]).await;
            let read: Vec<_> = PRIVATE.into_iter().filter(|what| seen.got(what)).collect();
            if profile == "none" {
                for what in ["environ", "maps", "memory", "descriptors", "root", "ptrace"] {
                    assert!(read.contains(&what), "{who}: {what} cannot even be read without a sandbox: {seen:?}");
                }
                continue;
            }
            // In a process namespace the number is nobody's, or its own init's: 1 is not the machine's.
            if profile == "strict" && pid == init {
                continue;
            }
            assert_eq!(read, [""; 0], "{profile}, {who}: {seen:?}");
            assert!(!seen.lines.iter().any(|l| l.contains("canary") || l.contains("NATS_")), "{seen:?}");
            assert!(!seen.got("exists") && !seen.got("cmdline"), "{profile}, {who}: not even its command line: {seen:?}");
        }
        let pids = [world.worker.pid, supervisor, victim.pid].map(|pid| pid.to_string());
        let seen = world.attack("acme", ["processes".to_owned()].into_iter().chain(pids)).await;
        assert_eq!(seen.successes().len(), if profile == "none" { 3 } else { 0 }, "{profile}: {seen:?}");
        victim.ends_unharmed(&world).await;
        world.fleet.finish().await;
    }
}

/// A seed that is in NATS's own documentation, and opens nothing.
const SEED: &str = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY";

/// Credentials as `nsc` writes them.
fn creds() -> String {
    let jwt = "eyJ0eXAiOiJKV1QiLCJhbGciOiJlZDI1NTE5LW5rZXkifQ.eyJqdGkiOiJYIn0.c2lnbmF0dXJl";
    format!(
        "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\n{SEED}\n------END USER NKEY SEED------\n"
    )
}

/// A directory that is removed with the test.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[tokio::test]
async fn the_workers_credentials_are_out_of_reach_on_disk_and_in_memory() {
    for profile in ["none", "standard", "strict"] {
        if !is_root() {
            return skip("needs root");
        }
        let Some(mut fleet) = Fleet::start(&[("CLASSES__CPU_SHORT__SANDBOX", profile)]).await else { return };
        // In directories that tasks may read or even write, and readable for all: only the sandbox knows that they are not for
        // them. One of these is below the task's own /tmp, where other rules hold.
        let opt = Directory(PathBuf::from(format!("/opt/windlass-test-{}", fleet.prefix)));
        std::fs::create_dir_all(&opt.0).unwrap();
        std::fs::write(opt.0.join("neighbour"), "for everybody").unwrap();
        for dir in [opt.0.clone(), fleet.dir.clone()] {
            let path = dir.join("worker.creds");
            std::fs::write(&path, creds()).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
            let path = path.display().to_string();
            let worker = fleet.worker(&[("CAPACITY__SLOTS", "4"), ("BUS__CREDS", &path)]);
            let world = World { fleet, worker };
            let config = concat!(env!("CARGO_MANIFEST_DIR"), "/config/worker.toml");
            let neighbour = opt.0.join("neighbour").display().to_string();
            let seen = world.attack("acme", ["read", &path, config, &neighbour]).await;
            assert_eq!(seen.lines.iter().any(|l| l.contains("BEGIN NATS USER JWT")), profile == "none", "{profile}: {seen:?}");
            assert_eq!(seen.got(&format!("read {config}")), profile == "none", "{profile}: {seen:?}");
            assert!(seen.got(&format!("read {neighbour}")), "{profile}: what is beside it is not closed: {seen:?}");
            let seen = world.attack("acme", ["spy", &world.worker.pid.to_string(), SEED]).await;
            if profile == "none" {
                assert!(seen.lines.contains(&"GOT memory found".to_owned()), "the worker has it in memory: {seen:?}");
            } else {
                assert!(!seen.got("memory") && !seen.got("environ"), "{profile}: {seen:?}");
                let seen = world.attack("acme", ["write", &path]).await;
                assert_eq!(seen.successes(), [""; 0], "{profile}");
            }
            assert_eq!(std::fs::read_to_string(&path).unwrap(), creds());
            // The next one has them elsewhere.
            world.worker.signal(rustix::process::Signal::TERM);
            assert!(world.worker.exit(PATIENCE).await.success());
            fleet = world.fleet;
        }
        fleet.finish().await;
    }
}

#[tokio::test]
async fn the_spool_and_the_state_of_the_worker_are_out_of_reach() {
    for profile in ["none", "standard", "strict"] {
        let Some(world) = World::new(profile, &[]).await else { return };
        // Output that is on the worker's disk while its task runs: the end of it is kept until then.
        let gate = Gate::new(&world.fleet.dir, "flood");
        let mut job = Job::bash(format!("echo canary-in-the-output; head -c 3000000 /dev/zero; echo up >&2; {}", gate.wait()));
        job.tenant = "globex".into();
        let flood = world.fleet.submit(&job).await;
        world.fleet.output_has(&flood, "up").await;
        let state = world.worker.state_dir().display().to_string();
        let mut paths = vec![state.clone(), world.worker.state_dir().parent().unwrap().display().to_string()];
        for instance in instances(&world.worker) {
            paths.push(instance.display().to_string());
            for part in ["spool", "commit", "work"] {
                paths.push(instance.join(part).display().to_string());
                paths.extend(list(&instance.join(part)).iter().map(|p| p.display().to_string()));
            }
        }
        let logs = world.worker.state_dir().parent().unwrap().join(format!("{}.log", world.worker.id));
        paths.push(logs.display().to_string());
        // Its own directory will be there too when it runs, but is not in the list.
        let seen = world.attack("acme", ["read".to_owned()].into_iter().chain(paths.clone())).await;
        let successes = seen.successes().len();
        if profile == "none" {
            assert_eq!(successes, paths.len(), "{seen:?}");
        } else {
            assert_eq!(seen.successes(), [""; 0], "{profile}");
            let seen = world.attack("acme", ["write".to_owned()].into_iter().chain(paths)).await;
            assert_eq!(seen.successes(), [""; 0], "{profile}");
        }
        gate.open();
        assert_eq!(world.fleet.end(&flood).await.reason, Some(Reason::Ok));
        world.fleet.finish().await;
    }
}

#[tokio::test]
async fn a_task_is_given_its_three_streams_and_nothing_else() {
    for profile in ["none", "standard", "strict"] {
        let Some(world) = World::new(profile, &[]).await else { return };
        let victim = world.victim("globex").await;
        let seen = world.attack("acme", ["inherited"]).await;
        let numbers: Vec<_> = seen.lines.iter().filter_map(|l| l.strip_prefix("fd ")?.split(' ').next()).collect();
        assert_eq!(numbers, ["0", "1", "2"], "{profile}: {seen:?}");
        assert!(!seen.lines.iter().any(|l| l.contains("socket:")), "{profile}: {seen:?}");
        // And of the environment only what it was told.
        let seen = world.run(&Job::argv(["env"])).await;
        let known = ["HOME", "LANG", "PATH", "TMPDIR", "TRACEPARENT"];
        for line in &seen.lines {
            let name = line.split('=').next().unwrap();
            assert!(known.contains(&name) || name.starts_with("WINDLASS_"), "{profile}: {line}");
            assert!(!name.starts_with("WINDLASS__") && !name.starts_with("WINDLASS_TEST"), "{profile}: the worker's own {line}");
        }
        victim.ends_unharmed(&world).await;
        world.fleet.finish().await;
    }
}
