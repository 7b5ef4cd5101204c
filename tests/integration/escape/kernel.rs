//! Doors into the kernel, and ways to more rights.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;

use windlass::task::{EventKind, Reason};

use super::attacker::{CONFINED, NONE, World, list};
use crate::harness::Job;

#[tokio::test]
async fn dangerous_system_calls_are_refused_before_their_arguments_are_looked_at() {
    let Some(world) = World::new("none", &[]).await else { return };
    let seen = world.attack("acme", ["kernel"]).await;
    let open = |lines: &[String]| lines.iter().filter(|l| !l.ends_with(" EPERM") && !l.ends_with(" ENOSYS")).count();
    let tried = seen.lines.len();
    assert!(tried > 40 && open(&seen.lines) > 30, "without a sandbox they get through: {seen:?}");
    world.fleet.finish().await;
    for profile in CONFINED {
        let Some(world) = World::new(profile, &[]).await else { return };
        let seen = world.attack("acme", ["kernel"]).await;
        assert_eq!((seen.lines.len(), open(&seen.lines)), (tried, 0), "{profile}: {seen:?}");
        world.fleet.finish().await;
    }
}

#[tokio::test]
async fn other_tables_of_system_calls_are_closed() {
    for profile in ["none", "standard", "strict"] {
        let Some(world) = World::new(profile, &[]).await else { return };
        let seen = world.attack("acme", ["foreign"]).await;
        if profile == "none" {
            // Not every kernel has them.
            println!("without a sandbox: {:?}", seen.lines);
        } else {
            assert_eq!(seen.successes(), [""; 0], "{profile}");
        }
        world.fleet.finish().await;
    }
}

#[tokio::test]
async fn namespaces_cannot_be_made() {
    for profile in ["none", "standard", "strict"] {
        let Some(world) = World::new(profile, &[]).await else { return };
        let seen = world.attack("acme", ["namespaces"]).await;
        if profile == "none" {
            assert!(seen.successes().len() > 8, "{seen:?}");
        } else {
            assert_eq!(seen.successes(), [""; 0], "{profile}");
        }
        // By the usual programs, too.
        let script = "for c in 'unshare -Ur true' 'unshare -m true' 'mount -t tmpfs none .' 'mount --bind . .' 'nsenter -t 1 -m true' 'chroot / true'; do $c >/dev/null 2>&1 && echo \"GOT $c\"; done; echo over";
        let seen = world.run(&Job::bash(script)).await;
        let got = seen.lines.iter().filter(|l| l.starts_with("GOT")).count();
        assert!(if profile == "none" { got >= 3 } else { got == 0 }, "{profile}: {seen:?}");
        world.fleet.finish().await;
    }
}

#[tokio::test]
async fn other_users_devices_and_raw_sockets_are_refused() {
    for profile in ["none", "standard", "strict"] {
        let Some(world) = World::new(profile, &[]).await else { return };
        let seen = world.attack("acme", ["become"]).await;
        if profile == "none" {
            assert!(seen.got("setuid-0") && seen.got("mknod") && seen.got("chown"), "{seen:?}");
        } else {
            assert_eq!(seen.successes(), [""; 0], "{profile}");
        }
        world.fleet.finish().await;
    }
}

#[tokio::test]
async fn setuid_programs_give_nothing() {
    for profile in CONFINED {
        let Some(world) = World::new(profile, &[]).await else { return };
        let id = world.fleet.dir.join("id");
        std::fs::copy("/usr/bin/id", &id).unwrap();
        std::fs::set_permissions(&id, std::fs::Permissions::from_mode(0o4755)).unwrap();
        let path = id.display().to_string();
        // It would work: somebody without rights becomes root by it.
        let top = world.fleet.dir.parent().unwrap().parent().unwrap();
        std::fs::set_permissions(top, std::fs::Permissions::from_mode(0o711)).unwrap();
        let copy = std::process::Command::new(&path).arg("-u").uid(65534).gid(65534).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&copy.stdout), "0\n", "no setuid programs on this file system?");
        let seen = world.run(&Job::bash(format!("{path} -u; id -u"))).await;
        assert_eq!(seen.lines.len(), 2, "{seen:?}");
        assert_eq!(seen.lines[0], seen.lines[1], "{profile}");
        assert_ne!(seen.lines[0], "0", "{profile}");
        world.fleet.finish().await;
    }
}

#[tokio::test]
async fn no_core_is_dumped() {
    for settings in [NONE, &[], &[("CLASSES__CPU_SHORT__SANDBOX", "strict")]] {
        let Some(fleet) = crate::harness::Fleet::with_worker(1, settings).await else { return };
        let program = crate::harness::programs().join("escape.py").display().to_string();
        let script = format!("ulimit -c unlimited 2>/dev/null && echo unlimited; {program} crash; ls -A");
        let task = fleet.submit(&Job::bash(script)).await;
        let end = fleet.end(&task).await;
        assert_eq!((end.event, end.reason), (EventKind::TaskCompleted, Some(Reason::Ok)), "{:?}", end.error);
        let out = fleet.output(&task, &end, windlass::task::log_chunk::LogStream::Stdout).await;
        // Root without a sandbox may raise the limit again; then what it dumps lies in its own directory, and goes with it.
        if settings != NONE {
            assert_eq!(String::from_utf8_lossy(&out), "", "{settings:?}");
        }
        fleet.finish().await;
    }
}

#[tokio::test]
async fn mounts_of_a_task_are_seen_by_nobody() {
    let Some(world) = World::new("standard", &[]).await else { return };
    let before = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let seen = world.run(&Job::bash("cat /proc/self/mountinfo; mount -t tmpfs x /tmp 2>/dev/null && echo MOUNTED")).await;
    assert!(!seen.lines.contains(&"MOUNTED".to_owned()));
    let mounts = |text: &str| text.lines().filter(|l| l.contains("windlass")).count();
    assert_eq!(mounts(&std::fs::read_to_string("/proc/self/mountinfo").unwrap()), mounts(&before));
    assert!(list(std::path::Path::new("/tmp")).iter().all(|p| !p.ends_with("fill")));
    world.fleet.finish().await;
}
