//! What a task must not leave behind: processes, files, memory of the kernel.

use std::time::Duration;

use windlass::task::Reason;

use super::attacker::{CONFINED, World};
use crate::harness::server::skip;
use crate::harness::{Job, PATIENCE, leftovers};

#[tokio::test]
async fn a_daemon_does_not_outlive_its_task() {
    for profile in ["none", "standard", "strict"] {
        let Some(world) = World::new(profile, &[]).await else { return };
        let heart = world.fleet.dir.join("heart").display().to_string();
        let seen = world.attack("acme", ["daemon", &heart]).await;
        assert!(seen.got("started"), "{profile}: {seen:?}");
        let end = &seen.end;
        assert_eq!(end.reason, Some(Reason::Ok), "{:?}", end.error);
        assert!(end.usage.as_ref().unwrap().leaked_processes >= 1, "{profile}: {:?}", end.usage);
        // Its end was told, so it is dead: its heart beats no more, however long one looks.
        assert_eq!(world.fleet.processes_of(&end.task.task_id.to_string()), [], "{profile}");
        let beats = std::fs::metadata(&heart).unwrap().len();
        world.is_well([world.worker.pid, world.supervisor().await]).await;
        assert_eq!(std::fs::metadata(&heart).unwrap().len(), beats, "{profile}");
        world.fleet.finish().await;
    }
}

#[tokio::test]
async fn nobody_else_can_be_asked_to_run_something() {
    for profile in ["none", "standard", "strict"] {
        let Some(world) = World::new(profile, &[]).await else { return };
        // As the sockets of systemd, D-Bus, Docker and the like: in /run, open to everybody.
        let name = format!("windlass-test-{}", world.fleet.prefix);
        let path = format!("/run/{name}.sock");
        let _ = std::fs::remove_file(&path);
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        use std::os::linux::net::SocketAddrExt as _;
        let address = std::os::unix::net::SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
        let _abstract = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
        let known = [
            "/run/dbus/system_bus_socket",
            "/run/systemd/private",
            "/run/docker.sock",
            "/var/run/docker.sock",
            "/run/containerd/containerd.sock",
        ];
        let own = format!("@{name}");
        let seen = world.attack("acme", ["connect", &path, &own].into_iter().chain(known)).await;
        std::fs::remove_file(&path).unwrap();
        if profile == "none" {
            assert!(seen.got(&format!("connect {path}")) && seen.got(&format!("connect {own}")), "{seen:?}");
        } else {
            assert_eq!(seen.successes(), [""; 0], "{profile}");
        }
        for program in ["at", "systemd-run", "crontab", "busctl", "docker"] {
            if !std::path::Path::new("/usr/bin").join(program).exists() {
                println!("{program} is not installed here: its sockets and spools are tried without it");
            }
        }
        if profile != "none" {
            let spools: Vec<&str> = [
                "/var/spool/cron",
                "/var/spool/cron/crontabs",
                "/var/spool/at",
                "/var/spool/cron/atjobs",
                "/etc/cron.d",
                "/etc/systemd/system",
            ]
            .into_iter()
            .filter(|p| std::path::Path::new(p).exists())
            .collect();
            let seen = world.attack("acme", ["touch"].into_iter().chain(spools)).await;
            assert_eq!(seen.successes(), [""; 0], "{profile}");
            let script = "for c in 'at now' 'crontab -' 'systemd-run true' 'systemd-run --user true' 'docker ps'; do echo 'echo hi' | $c >/dev/null 2>&1 && echo \"GOT $c\"; done; echo over";
            let seen = world.run(&Job::bash(script)).await;
            assert_eq!(seen.lines, ["over"], "{profile}");
        }
        world.fleet.finish().await;
    }
}

fn free(dir: &str) -> u64 {
    let stat = rustix::fs::statvfs(dir).unwrap();
    stat.f_bavail * stat.f_frsize
}

#[tokio::test]
async fn temporary_directories_cannot_be_filled_for_others() {
    for profile in CONFINED {
        let Some(world) = World::new(profile, &[]).await else { return };
        let dirs = ["/tmp", "/var/tmp", "/dev/shm"];
        let seen = world.attack("acme", ["fill"].into_iter().chain(dirs)).await;
        // 96 MiB are more than the task's own, which counts against its memory of 128 MiB.
        assert_eq!(seen.successes(), [""; 0], "{profile}: it met its own limit, not the machine's");
        assert!(seen.lines.iter().all(|l| l.ends_with("ENOSPC")), "{profile}: {seen:?}");
        for dir in dirs {
            assert!(!std::path::Path::new(dir).join("fill").exists(), "{dir} of the machine");
        }
        println!("free on the machine: /dev/shm {} MiB", free("/dev/shm") >> 20);
        let seen = world.run(&Job::bash("find /tmp /var/tmp /dev/shm -type f -size +0 2>/dev/null | grep -v windlass-test | wc -l")).await;
        assert_eq!(seen.lines, ["0"], "{profile}: the next task finds nothing of it");
        world.fleet.finish().await;
    }
}

/// System V objects with that key.
fn objects(key: u32) -> Vec<String> {
    let of = |file: &str| {
        let text = std::fs::read_to_string(format!("/proc/sysvipc/{file}")).unwrap_or_default();
        let own = move |l: &&str| l.split_whitespace().next() == Some(&key.cast_signed().to_string());
        text.lines().filter(own).map(|l| format!("{file}: {l}")).collect::<Vec<_>>()
    };
    ["shm", "msg", "sem"].into_iter().flat_map(of).collect()
}

#[tokio::test]
async fn shared_memory_and_queues_do_not_outlive_the_task() {
    for (n, profile) in CONFINED.into_iter().enumerate() {
        let Some(world) = World::new(profile, &[]).await else { return };
        if !std::path::Path::new("/proc/sysvipc/shm").exists() {
            skip("this kernel has no System V IPC");
            return world.fleet.finish().await;
        }
        let key = 0x5749_0000 + (std::process::id() & 0xfff) * 4 + u32::try_from(n).unwrap();
        let seen = world.attack("acme", ["ipc", &key.to_string()]).await;
        println!("{profile}: {:?}", seen.lines);
        let left = leftovers::gone(Duration::from_secs(5), || objects(key)).await;
        assert!(left.is_empty(), "{profile}: {left:?}");
        // Not even another task of the tenant meets them, so they are no way from one to another.
        let seen = world.run(&Job::bash("ls /dev/mqueue 2>/dev/null; grep -c . /proc/sysvipc/shm")).await;
        assert_eq!(seen.lines, ["1"], "{profile}: {seen:?}");
        world.fleet.finish().await;
    }
}

#[tokio::test]
async fn another_process_cannot_be_made_to_carry_on() {
    for profile in CONFINED {
        let Some(world) = World::new(profile, &[]).await else { return };
        // A parasite needs a host: another task of the same tenant is the nearest there is.
        let victim = world.victim("acme").await;
        let seen = world.attack("acme", ["spy", &victim.pid.to_string()]).await;
        for way in ["ptrace", "memory-write", "pidfd_getfd", "process_vm_readv"] {
            assert!(!seen.got(way), "{profile}: {seen:?}");
        }
        let work = victim.root.display().to_string();
        victim.ends_unharmed(&world).await;
        let gone = leftovers::gone(PATIENCE, || world.work().into_iter().filter(|p| p.display().to_string() == work).collect()).await;
        assert!(gone.is_empty(), "{gone:?}");
        world.fleet.finish().await;
    }
}
