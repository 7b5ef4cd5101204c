//! A worker that is an ordinary user: its tasks are the same user, so modes and owners stop nothing, and what holds is
//! Landlock, seccomp and that the worker's memory may not be looked at.

use super::attacker::{CONFINED, World, instances, list};
use crate::harness::Job;

/// What belongs to a process alone.
const PRIVATE: [&str; 11] =
    ["environ", "maps", "memory", "memory-write", "process_vm_readv", "descriptors", "root", "cwd", "pidfd_getfd", "setns", "ptrace"];

/// `strict` takes a user namespace, and in a chroot there is none: `sandbox::parts` shows that its tasks are refused.
fn can_be_had(profile: &&str) -> bool {
    *profile != "strict" || !crate::harness::chrooted()
}

#[tokio::test]
async fn processes_of_the_same_user_cannot_be_read() {
    for profile in CONFINED.into_iter().filter(can_be_had) {
        let Some(world) = World::unprivileged(profile, &[]).await else { return };
        let victim = world.victim("globex").await;
        for (who, pid) in [("the worker", world.worker.pid), ("its supervisor", world.supervisor().await), ("another task", victim.pid)] {
            let seen = world.attack("acme", ["spy", &pid.to_string(), "canary-of-globex"]).await;
            let read: Vec<_> = PRIVATE.into_iter().filter(|what| seen.got(what)).collect();
            assert_eq!(read, [""; 0], "{profile}, {who}: {seen:?}");
        }
        victim.ends_unharmed(&world).await;
        world.fleet.finish().await;
    }
    // Two tasks of one user without a sandbox can; the worker itself is closed even to them.
    let Some(world) = World::unprivileged("none", &[]).await else { return };
    let victim = world.victim("globex").await;
    let seen = world.attack("acme", ["spy", &victim.pid.to_string(), "canary-of-globex"]).await;
    assert!(seen.got("environ") && seen.lines.contains(&"GOT memory found".to_owned()), "{seen:?}");
    for pid in [world.worker.pid, world.supervisor().await] {
        let seen = world.attack("acme", ["spy", &pid.to_string(), "NATS"]).await;
        for what in ["environ", "memory", "memory-write", "descriptors", "ptrace", "process_vm_readv", "pidfd_getfd"] {
            assert!(!seen.got(what), "{what} of a process that is not dumpable: {seen:?}");
        }
    }
    victim.ends_unharmed(&world).await;
    world.fleet.finish().await;
}

#[tokio::test]
async fn processes_of_the_same_user_cannot_be_signalled_or_starved() {
    for profile in CONFINED.into_iter().filter(can_be_had) {
        let Some(world) = World::unprivileged(profile, &[]).await else { return };
        let pids = [world.worker.pid, world.supervisor().await];
        let victim = world.victim("globex").await;
        for pid in [pids[0], pids[1], victim.pid] {
            let seen = world.attack("acme", ["signal", &pid.to_string(), "0", "18", "9"]).await;
            assert_eq!(seen.successes(), [""; 0], "{profile}");
            let seen = world.attack("acme", ["handicap", &pid.to_string(), "change"]).await;
            assert_eq!(seen.successes(), [""; 0], "{profile}");
        }
        world.is_well(pids).await;
        victim.ends_unharmed(&world).await;
        world.fleet.finish().await;
    }
    let Some(world) = World::unprivileged("none", &[]).await else { return };
    let pid = world.worker.pid.to_string();
    let seen = world.attack("acme", ["signal", &pid, "0", "18"]).await;
    let limits = world.attack("acme", ["handicap", &pid, "look"]).await;
    assert_eq!((seen.successes().len(), limits.successes().len()), (4, 1), "without a sandbox it can: {seen:?} {limits:?}");
    world.fleet.finish().await;
}

#[tokio::test]
async fn files_of_the_same_user_cannot_be_reached() {
    for profile in ["none", "standard", "strict"].into_iter().filter(can_be_had) {
        let Some(world) = World::unprivileged(profile, &[]).await else { return };
        let victim = world.victim("globex").await;
        let mut paths = vec![world.worker.state_dir().display().to_string()];
        for instance in instances(&world.worker) {
            paths.push(instance.display().to_string());
            paths.extend(list(&instance).iter().map(|p| p.display().to_string()));
        }
        paths.extend([victim.root.display().to_string(), victim.root.join("work/secret").display().to_string()]);
        let seen = world.attack("acme", ["read".to_owned()].into_iter().chain(paths.clone())).await;
        // In a /tmp of its own the way to its directory is there too, and holds nothing else.
        let told = seen.successes().iter().any(|s| s.contains("'spool'") || s.contains("globex"));
        assert_eq!(told, profile == "none", "{profile}: {seen:?}");
        if profile != "none" {
            let seen = world.attack("acme", ["write".to_owned()].into_iter().chain(paths.clone())).await;
            // Landlock knows nothing of modes and owners: what is not promised to a worker without root.
            let closed = |s: &&str| !s.starts_with("chmod") && !s.starts_with("chown");
            let changed: Vec<_> = seen.successes().into_iter().filter(closed).collect();
            assert!(profile == "strict" || changed.is_empty(), "{profile}: {changed:?}");
            println!("{profile}: not prevented: {:?}", seen.successes());
            for path in &paths {
                let planted: Vec<_> = list(path.as_ref()).into_iter().filter(|p| p.to_string_lossy().contains("planted")).collect();
                assert!(planted.is_empty() && std::path::Path::new(path).exists(), "{profile}: {path}: {planted:?}");
            }
        }
        victim.ends_unharmed(&world).await;
        world.fleet.finish().await;
    }
}

#[tokio::test]
async fn system_calls_and_namespaces_are_refused_without_root_too() {
    for profile in CONFINED.into_iter().filter(can_be_had) {
        let Some(world) = World::unprivileged(profile, &[]).await else { return };
        for attempt in ["namespaces", "become"] {
            let seen = world.attack("acme", [attempt]).await;
            assert_eq!(seen.successes(), [""; 0], "{profile}");
        }
        let seen = world.attack("acme", ["kernel"]).await;
        let open: Vec<_> = seen.lines.iter().filter(|l| !l.ends_with(" EPERM") && !l.ends_with(" ENOSYS")).collect();
        assert!(open.is_empty(), "{profile}: {open:?}");
        let seen = world.run(&Job::bash("echo $(ulimit -c); grep NoNewPrivs /proc/self/status | cut -f2")).await;
        assert_eq!(seen.lines, ["0", "1"], "{profile}");
        world.fleet.finish().await;
    }
}
