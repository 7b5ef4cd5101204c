//! Disks that cannot be used, users without privileges, and examinations that are cut short.

use super::*;

#[tokio::test]
async fn a_disk_that_is_small_full_or_read_only_is_named() {
    let Some(disk) = Disk::make(Shape { inodes: Some(512), ..Shape::default() }) else { return };
    let Some(fleet) = Fleet::start(&[]).await else { return };
    std::fs::create_dir(disk.seen().join("state")).unwrap();
    let state = disk.path().join("state");
    let examine = async || {
        let mut command = windlass_under(&disk.under());
        command.args(["doctor", "-o", "json", "--server", &fleet.server.url(), "--prefix", &fleet.prefix]);
        command.env("WINDLASS__WORKER__STATE_DIR", &state).env("WINDLASS__CGROUP__PARENT", fleet.cgroup_parent());
        command.env("WINDLASS__STREAMS__LOGS_MAX", "2GiB").env("WINDLASS__STREAMS__MAX_WAITING", "512");
        Said::of(&ended(command).await)
    };
    let said = examine().await;
    assert_eq!((said.code, said.named("fail")), (Some(0), vec![]), "{}", said.text);
    for check in ["worker.state_dir: room", "worker.state_dir: inodes"] {
        assert_eq!(said.find(check)["level"], "warn", "{}", said.text);
    }
    assert_eq!(said.find("worker.state_dir: file system")["found"], "ext4");
    disk.fill_inodes();
    let said = examine().await;
    assert_eq!((said.code, said.named("fail")), (Some(1), vec!["worker.state_dir"]), "{}", said.text);
    assert!(said.find("worker.state_dir")["found"].as_str().unwrap().contains("No space left"), "{}", said.text);
    disk.free();
    disk.fill(0);
    let said = examine().await;
    assert_eq!(said.named("fail"), ["worker.state_dir"], "{}", said.text);
    disk.free();
    disk.remount("ro");
    let said = examine().await;
    assert!(said.find("worker.state_dir")["found"].as_str().unwrap().contains("Read-only"), "{}", said.text);
    disk.remount("rw");
    assert_eq!(leftovers::entries(&disk.seen().join("state")), Vec::<std::path::PathBuf>::new());
    fleet.finish_unchecked().await;
}

#[tokio::test]
async fn a_user_without_privileges_is_told_what_to_grant() {
    const USER: u32 = 54_321;
    if !rustix::process::geteuid().is_root() {
        return skip("only root can become another user");
    }
    let Some(fleet) = Fleet::start(&[]).await else { return };
    // Where that user can read it, wherever the repository is.
    let program = fleet.dir.join("windlass");
    std::fs::copy(env!("CARGO_BIN_EXE_windlass"), &program).unwrap();
    for (path, mode) in [(fleet.root(), 0o755), (fleet.root().parent().unwrap(), 0o711), (program.as_path(), 0o755)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let closed = fleet.root().join("closed");
    std::fs::create_dir(&closed).unwrap();
    let mut command = Command::new(&program);
    command.args(["doctor", "-o", "json", "--server", &fleet.server.url(), "--prefix", &fleet.prefix]).env_clear();
    command.env("WINDLASS__WORKER__STATE_DIR", closed.join("state")).env("WINDLASS__STREAMS__LOGS_MAX", "2GiB");
    command.env("WINDLASS__STREAMS__MAX_WAITING", "512").uid(USER).gid(USER).kill_on_drop(true);
    let said = Said::of(&ended(command).await);
    assert_eq!(said.code, Some(1), "{}", said.text);
    let limits = said.find("limits");
    assert!(limits["level"] == "fail" && limits["mend"].as_str().unwrap().contains("Delegate=cpu memory pids io"), "{limits}");
    let state = said.find("worker.state_dir");
    assert!(state["level"] == "fail" && state["found"].as_str().unwrap().contains("Permission denied"), "{state}");
    assert!(state["mend"].as_str().unwrap().starts_with(&format!("install -d -o {USER} ")), "{state}");
    // What can be had without limits is told all the same.
    assert!(said.find("class cpu_short")["found"].as_str().is_some() && said.find("start")["level"] == "ok", "{}", said.text);
    assert!(said.areas().contains("rights"), "{}", said.text);
    fleet.finish_unchecked().await;
}

/// Waits until the supervisor of an examination has made its cgroups; false when it was faster.
fn caught(fleet: &Fleet, child: &mut tokio::process::Child) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "it neither starts a supervisor nor ends");
        let pid = Pid::from_raw(child.id().unwrap().cast_signed()).unwrap();
        if !leftovers::cgroups(&fleet.cgroup_parent()).is_empty() {
            // It stands still, and what it started goes on.
            let _ = kill_process(pid, Signal::STOP);
            return !leftovers::cgroups(&fleet.cgroup_parent()).is_empty();
        }
    }
    false
}

#[tokio::test]
async fn an_examination_that_is_cut_short_leaves_nothing() {
    let Some(fleet) = Fleet::start(&[]).await else { return };
    for (signal, code) in [(Signal::INT, Some(130)), (Signal::TERM, Some(130)), (Signal::KILL, None)] {
        let mut interrupted = false;
        for _ in 0..20 {
            let mut command = doctor(&fleet, &[]);
            let mut child = command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
            interrupted = caught(&fleet, &mut child);
            if let Some(pid) = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
                let _ = kill_process(pid, signal);
                let _ = kill_process(pid, Signal::CONT);
            }
            let status = tokio::time::timeout(PATIENCE, child.wait()).await.expect("it ends").unwrap();
            if interrupted {
                assert_eq!(status.code(), code, "{signal:?}: {status}");
                break;
            }
        }
        assert!(interrupted, "{signal:?}: never caught with a supervisor");
        let left = leftovers::gone(PATIENCE, || leftovers::cgroups(&fleet.cgroup_parent())).await;
        assert!(left.is_empty(), "{signal:?}: {left:?}");
        let left = leftovers::gone(PATIENCE, || fleet.processes()).await;
        assert!(left.is_empty(), "{signal:?}: {left:?}");
        assert_eq!(leftovers::entries(&fleet.root().join("examined")), Vec::<std::path::PathBuf>::new());
    }
    fleet.finish_unchecked().await;
}
