//! What a task must not do to others, and to its own limits.

use super::attacker::{CONFINED, World};
use crate::harness::{Job, leftovers};

#[tokio::test]
async fn nobody_else_can_be_signalled() {
    for profile in CONFINED {
        let Some(world) = World::new(profile, &[]).await else { return };
        let pids = [world.worker.pid, world.supervisor().await];
        let victim = world.victim("globex").await;
        for pid in [world.worker.pid, world.supervisor().await, victim.pid] {
            let seen = world.attack("acme", ["signal", &pid.to_string(), "0", "18", "15", "9", "19"]).await;
            assert_eq!(seen.successes(), [""; 0], "{profile}");
        }
        world.is_well(pids).await;
        victim.ends_unharmed(&world).await;
        world.fleet.finish().await;
    }
    // Without a sandbox it would have worked: with a signal that changes nothing.
    let Some(world) = World::new("none", &[]).await else { return };
    let seen = world.attack("acme", ["signal", &world.worker.pid.to_string(), "0", "18"]).await;
    assert_eq!(seen.successes().len(), 4, "{seen:?}");
    world.fleet.finish().await;
}

#[tokio::test]
async fn limits_of_others_cannot_be_lowered() {
    for profile in ["none", "standard", "strict"] {
        let Some(world) = World::new(profile, &[]).await else { return };
        let pids = [world.worker.pid, world.supervisor().await];
        let change = if profile == "none" { "look" } else { "change" };
        for pid in pids {
            let seen = world.attack("acme", ["handicap", &pid.to_string(), change]).await;
            assert_eq!(seen.successes().len(), usize::from(profile == "none"), "{profile}: {seen:?}");
        }
        world.is_well(pids).await;
        world.fleet.finish().await;
    }
}

#[tokio::test]
async fn the_cgroup_cannot_be_left() {
    for profile in CONFINED {
        let Some(world) = World::new(profile, &[]).await else { return };
        let seen = world.attack("acme", ["cgroup", "leave"]).await;
        assert_eq!(seen.successes(), [""; 0], "{profile}");
        assert!(profile == "strict" || seen.lines.len() > 2, "it found no cgroup to leave: {seen:?}");
        world.fleet.finish().await;
    }
    // Without a sandbox the same task gets out; it ends at once, so nothing is lost.
    let Some(world) = World::new("none", &[]).await else { return };
    let seen = world.attack("acme", ["cgroup", "leave"]).await;
    assert!(!seen.successes().is_empty(), "{seen:?}");
    for dir in leftovers::cgroups(&world.fleet.cgroup_parent()) {
        if dir.ends_with("inner") {
            std::fs::remove_dir(&dir).unwrap();
        }
    }
    world.fleet.finish().await;
}

#[tokio::test]
async fn the_limits_of_the_cgroup_cannot_be_raised() {
    for profile in ["none", "standard", "strict"] {
        let Some(world) = World::new(profile, &[]).await else { return };
        let seen = world.attack("acme", ["cgroup", "raise"]).await;
        if profile == "none" {
            assert!(seen.successes().iter().any(|s| s.contains("memory.") || s.contains("pids.max")), "{seen:?}");
        } else {
            assert_eq!(seen.successes(), [""; 0], "{profile}");
            // And they hold while it tries.
            let program = crate::harness::programs().join("escape.py").display().to_string();
            let script = format!("{program} cgroup raise; head -c 300000000 /dev/zero | tail | wc -c");
            let seen = world.run(&Job::bash(script).memory("48MiB")).await;
            assert!(seen.end.usage.unwrap().oom_kills > 0, "{profile}");
        }
        world.fleet.finish().await;
    }
}

#[tokio::test]
async fn resource_limits_and_priorities_cannot_be_raised() {
    for profile in ["none", "standard", "strict"] {
        let Some(world) = World::new(profile, &[]).await else { return };
        let seen = world.attack("acme", ["limits"]).await;
        if profile == "none" {
            assert!(seen.got("nice"), "{seen:?}");
        } else {
            assert_eq!(seen.successes(), [""; 0], "{profile}");
            let unlimited: Vec<_> = seen.lines.iter().filter(|l| l.starts_with("UNLIMITED")).collect();
            assert!(unlimited.is_empty(), "{profile}: {unlimited:?}");
        }
        world.fleet.finish().await;
    }
}

#[tokio::test]
async fn files_of_the_machine_cannot_be_changed() {
    for profile in CONFINED {
        let Some(world) = World::new(profile, &[]).await else { return };
        let outside = world.fleet.dir.parent().unwrap().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("file"), "precious").unwrap();
        for path in [&outside, &outside.join("file")] {
            std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        }
        let mut paths: Vec<String> = [
            "/etc",
            "/usr",
            "/usr/bin",
            "/",
            "/var/lib",
            "/var/spool",
            "/root",
            "/home",
            "/boot",
            "/sys",
            "/proc/sys/kernel",
            "/dev",
            "/run",
            "/etc/passwd",
            "/etc/hostname",
        ]
        .map(str::to_owned)
        .into_iter()
        .filter(|p| std::path::Path::new(p).exists())
        .collect();
        // Should the sandbox be broken, the machine must not be: only what harms nothing is tried there.
        paths.push(outside.display().to_string());
        let seen = world.attack("acme", ["touch".to_owned()].into_iter().chain(paths.clone())).await;
        assert_eq!(seen.successes(), [""; 0], "{profile}");
        let own = [outside.display().to_string(), outside.join("file").display().to_string()];
        let seen = world.attack("acme", ["write".to_owned()].into_iter().chain(own)).await;
        assert_eq!(seen.successes(), [""; 0], "{profile}");
        assert_eq!(super::attacker::list(&outside).len(), 1, "{profile}");
        assert_eq!(std::fs::read_to_string(outside.join("file")).unwrap(), "precious");
        world.fleet.finish().await;
    }
}
