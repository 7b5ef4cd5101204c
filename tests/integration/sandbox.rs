//! What each profile of the sandbox does, seen by programs that run in it. What it withstands is tested by the hostile ones.

use windlass::task::log_chunk::LogStream;
use windlass::task::{Event, EventKind, Profile, Reason};

use crate::harness::server::skip;
use crate::harness::{Fleet, Job};

const STRICT: &[(&str, &str)] = &[("CLASSES__CPU_SHORT__SANDBOX", "strict")];
const NONE: &[(&str, &str)] = &[("CLASSES__CPU_SHORT__SANDBOX", "none")];

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs a script to its end; its output comes with the event. `None`, said once, where this machine has no such sandbox.
async fn run(fleet: &Fleet, script: &str) -> Option<(Event, String)> {
    let task = fleet.submit(&Job::bash(script)).await;
    let end = fleet.end(&task).await;
    if end.reason == Some(Reason::IsolationUnavailable) {
        skip(&format!("this machine cannot give the sandbox: {:?}", end.error));
        return None;
    }
    let out = fleet.output(&task, &end, LogStream::Stdout).await;
    Some((end, String::from_utf8(out).expect("text")))
}

/// Every line of `out` is `name=value`.
fn value<'a>(out: &'a str, name: &str) -> &'a str {
    out.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix('=')).unwrap_or_else(|| panic!("no {name} in\n{out}"))
}

#[tokio::test]
async fn a_standard_task_is_a_user_of_its_tenant_without_rights() {
    let Some(fleet) = Fleet::with_worker(2, &[]).await else { return };
    let script = r#"
        echo uid=$(id -u) groups=$(id -G) work=$(stat -c %a:%u "$WINDLASS_WORKDIR") umask=$(umask) core=$(ulimit -c)
        grep -E '^(Cap|NoNewPrivs|Seccomp:|Groups)' /proc/self/status | tr -d ' \t' | sed 's/:/=/'
        echo probe > /tmp/x && echo tmp=ok; echo x > "$WINDLASS_WORKDIR/x" && echo workdir=ok
        echo '{"answer": 42}' > "$WINDLASS_RESULT"; echo hello > /dev/stdout; echo to null > /dev/null && echo null=ok
        (echo x > /etc/windlass-test) 2>/dev/null || echo etc=closed
        (echo x > /usr/windlass-test) 2>/dev/null || echo usr=closed
        (echo x > /var/lib/windlass-test) 2>/dev/null || echo var=closed
        (ls /root || ls /home/*) >/dev/null 2>&1 || echo home=closed"#;
    let Some((end, out)) = run(&fleet, script).await else { return };
    assert_eq!((end.reason, end.event), (Some(Reason::Ok), EventKind::TaskCompleted), "{out}{:?}", end.stderr_tail);
    let run = end.run.unwrap();
    assert_eq!((run.sandbox, run.sandbox_missing), (Some(Profile::Standard), vec![]));
    assert_eq!(end.result.unwrap().value["answer"], 42, "the worker reads what the task's user wrote");
    for cap in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(value(&out, cap), "0000000000000000", "{out}");
    }
    assert_eq!((value(&out, "NoNewPrivs"), value(&out, "Seccomp")), ("1", "2"), "{out}");
    for closed in ["etc", "usr", "var", "home"] {
        assert_eq!(value(&out, closed), "closed", "{out}");
    }
    for open in ["tmp", "workdir", "null"] {
        assert_eq!(value(&out, open), "ok", "{out}");
    }
    assert!(out.contains("hello\n") && out.contains("umask=0022 core=0"), "{out}");
    if is_root() {
        let uid = run_user("acme");
        assert!(out.starts_with(&format!("uid={uid} groups={uid} work=700:{uid} ")), "{out}");
        assert_eq!((value(&out, "CapBnd"), value(&out, "Groups")), ("0000000000000000", ""), "{out}");
    }
    fleet.finish().await;
}

fn run_user(tenant: &str) -> u32 {
    use windlass::execute::native::sandbox::User;
    let tenant = windlass::task::Tenant::new(tenant).unwrap();
    User::of_tenant(&tenant, None, 1_879_048_192).uid
}

#[tokio::test]
async fn tenants_are_different_users_and_a_pinned_one_is_that_user() {
    let Some(fleet) = Fleet::with_worker(2, &[("TENANTS__GLOBEX__UID", "54321"), ("TENANTS__GLOBEX__GID", "54322")]).await else { return };
    if !is_root() {
        skip("only root can be several users");
        return fleet.finish().await;
    }
    let mut uids = Vec::new();
    for tenant in ["acme", "initech", "globex"] {
        let mut job = Job::bash("echo $(id -u):$(id -g)");
        job.tenant = tenant.to_owned();
        let task = fleet.submit(&job).await;
        let end = fleet.end(&task).await;
        uids.push(String::from_utf8(fleet.output(&task, &end, LogStream::Stdout).await).unwrap());
    }
    assert_eq!(uids[2], "54321:54322\n");
    assert_ne!(uids[0], uids[1]);
    fleet.finish().await;
}

#[tokio::test]
async fn ordinary_programs_work_in_each_profile() {
    for settings in [NONE, &[], STRICT] {
        let Some(fleet) = Fleet::with_worker(2, settings).await else { return };
        let script = r#"
            set -e
            cd "$WINDLASS_WORKDIR"
            python3 - <<'PY'
import concurrent.futures, hashlib, multiprocessing, os, socket, subprocess, tempfile, threading
with tempfile.NamedTemporaryFile() as f:
    f.write(b"x" * 100000); f.flush(); assert os.stat(f.name).st_size == 100000
threads = [threading.Thread(target=lambda: hashlib.sha256(b"x").hexdigest()) for _ in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
with multiprocessing.Pool(2) as pool: assert pool.map(abs, [-1, -2]) == [1, 2]
assert subprocess.check_output(["sh", "-c", "echo hi"]) == b"hi\n"
s = socket.socket(); s.bind(("127.0.0.1", 0)); s.listen(1)
c = socket.create_connection(s.getsockname()); s.accept()
assert os.cpu_count() >= 1
PY
            mkdir -p a/b && mv a/b c && ln -s c d && ln a.txt e.txt 2>/dev/null || true
            tar cf - c | tar tf - > /dev/null
            seq 1000 | sort -R -T "${TMPDIR:-/tmp}" | wc -l
            getent hosts localhost > /dev/null || true
            date > /dev/null; nproc > /dev/null; df . > /dev/null; cat < /dev/null; head -c 10 /dev/urandom > /dev/null
            if command -v git > /dev/null; then git init -q g && cd g && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m x && git log --oneline | wc -l; fi
            echo done"#;
        let task = fleet.submit(&Job::bash(script)).await;
        let end = fleet.end(&task).await;
        if end.reason == Some(Reason::IsolationUnavailable) {
            skip(&format!("{settings:?}: {:?}", end.error));
        } else {
            assert_eq!(end.reason, Some(Reason::Ok), "{settings:?}: {:?} {:?}", end.error, end.stderr_tail);
            let out = fleet.output(&task, &end, LogStream::Stdout).await;
            assert!(out.ends_with(b"done\n"), "{settings:?}: {}", String::from_utf8_lossy(&out));
        }
        fleet.finish().await;
    }
}

#[tokio::test]
async fn tmp_is_private_limited_and_gone_afterwards() {
    let Some(fleet) = Fleet::with_worker(2, &[]).await else { return };
    let mark = format!("windlass-{}", fleet.prefix);
    let script = format!(
        "t=${{TMPDIR:-/tmp}}; echo secret > $t/{mark}; echo kept=$(cat $t/{mark}); \
         [ -n \"$TMPDIR\" ] || {{ head -c 400M /dev/zero > /tmp/big; echo filled=$?; echo used=$(stat -c %s /tmp/big); \
         df /var/tmp /dev/shm | tail -n +2 | wc -l; }}; true"
    );
    let task = fleet.submit(&Job::bash(script).memory("64MiB")).await;
    let end = fleet.end(&task).await;
    assert_eq!(end.reason, Some(Reason::Ok), "{:?}", end.stderr_tail);
    let out = String::from_utf8(fleet.output(&task, &end, LogStream::Stdout).await).unwrap();
    assert_eq!(value(&out, "kept"), "secret");
    if is_root() {
        assert_eq!(value(&out, "filled"), "1", "no space left, and not out of memory: {out}");
        let used: u64 = value(&out, "used").parse().unwrap();
        assert!((31 << 20..=32 << 20).contains(&used), "half of the task's memory: {out}");
    }
    for dir in ["/tmp", "/var/tmp", "/dev/shm"] {
        assert!(!std::path::Path::new(dir).join(&mark).exists(), "{dir} of the machine");
    }
    let again = fleet.submit(&Job::bash(format!("ls ${{TMPDIR:-/tmp}}/{mark} 2>/dev/null || echo gone"))).await;
    let end = fleet.end(&again).await;
    assert_eq!(fleet.output(&again, &end, LogStream::Stdout).await, b"gone\n", "nothing of one task is there for the next");
    fleet.finish().await;
}

#[tokio::test]
async fn shared_memory_goes_with_its_task() {
    let Some(fleet) = Fleet::with_worker(2, &[]).await else { return };
    if !is_root() {
        skip("only root gives tasks IPC objects of their own");
        return fleet.finish().await;
    }
    let key = 0x5749_0000 | (std::process::id() & 0xffff);
    let script =
        format!("python3 -c 'import ctypes; print(ctypes.CDLL(None).shmget({key}, 4096, 0o1666) >= 0)'; wc -l < /proc/sysvipc/shm");
    let Some((end, out)) = run(&fleet, &script).await else { return };
    assert_eq!(out, "True\n2\n", "made, and the only one: {:?}", end.stderr_tail);
    let left = std::fs::read_to_string("/proc/sysvipc/shm").unwrap();
    assert!(!left.contains(&format!(" {key} ")), "{left}");
    fleet.finish().await;
}

#[tokio::test]
async fn a_strict_task_is_alone() {
    let Some(fleet) = Fleet::with_worker(2, STRICT).await else { return };
    let script = r#"
        echo processes=$(ls /proc | grep -c '^[0-9]*$') shell=$$
        echo links=$(ls /sys/class/net 2>/dev/null | wc -l); cat /proc/net/dev | tail -n +3 | cut -d: -f1 | tr -d ' ' | sed 's/^/link=/'
        (exec 3<>/dev/tcp/127.0.0.1/4222) 2>/dev/null && echo tcp=open || echo tcp=closed
        python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); s.listen(1); socket.create_connection(s.getsockname()); print("loopback=up")'
        ipcs -m 2>/dev/null | tail -n +4 | wc -l"#;
    let Some((end, out)) = run(&fleet, script).await else { return };
    assert_eq!(end.reason, Some(Reason::Ok), "{out}{:?}", end.stderr_tail);
    assert_eq!(end.run.unwrap().sandbox, Some(Profile::Strict));
    assert!(out.contains("shell=2\n"), "the second process after its init: {out}");
    let processes: u32 = value(&out, "processes").split(' ').next().unwrap().parse().unwrap();
    assert!(processes <= 6, "only its own: {out}");
    assert_eq!(out.lines().filter(|l| l.starts_with("link=")).collect::<Vec<_>>(), ["link=lo"], "{out}");
    assert_eq!((value(&out, "tcp"), value(&out, "loopback")), ("closed", "up"), "{out}");
    fleet.finish().await;
}

#[tokio::test]
async fn ends_are_told_exactly_behind_an_init() {
    let Some(fleet) = Fleet::with_worker(4, STRICT).await else { return };
    if run(&fleet, "true").await.is_none() {
        return;
    }
    for (script, reason, code, signal) in [
        ("exit 7", Reason::ExitNonzero, Some(7), None),
        ("kill -SEGV $$", Reason::Signaled, None, Some(11)),
        ("kill -KILL $$", Reason::Signaled, None, Some(9)),
        ("[ \"$(ls -d /proc/[0-9]* | wc -l)\" -lt 8 ] && kill -KILL -1; exit 3", Reason::ExitNonzero, Some(3), None),
    ] {
        let task = fleet.submit(&Job::bash(script)).await;
        let end = fleet.end(&task).await;
        assert_eq!((end.reason, end.exit_code, end.signal), (Some(reason), code, signal), "{script}: {:?}", end.error);
        assert_eq!(end.usage.unwrap().leaked_processes, 0, "{script}: its init is nobody's leftover");
    }
    let polite = "trap 'echo asked; exit 0' TERM; echo ready; while :; do sleep 0.05; done";
    let task = fleet.submit(&Job::bash(polite).grace(30.0)).await;
    fleet.output_has(&task, "ready").await;
    fleet.cancel(&task).await;
    let end = fleet.end(&task).await;
    assert_eq!(end.reason, Some(Reason::Canceled));
    assert_eq!(fleet.output(&task, &end, LogStream::Stdout).await, b"ready\nasked\n", "SIGTERM reaches the program");
    let left = fleet.submit(&Job::bash("setsid sleep 1000 & sleep 1000 & exit 5")).await;
    let end = fleet.end(&left).await;
    assert_eq!((end.exit_code, end.usage.unwrap().leaked_processes), (Some(5), 2), "what it left is counted and killed");
    let oom = fleet.submit(&Job::bash("head -c 300000000 /dev/zero | tail").memory("32MiB")).await;
    let end = fleet.end(&oom).await;
    assert_eq!(end.reason, Some(Reason::OomKilled), "{:?}", end.error);
    fleet.finish().await;
}

#[tokio::test]
async fn what_is_named_can_be_used_and_what_is_protected_cannot() {
    let Some(fleet) = Fleet::start(&[]).await else { return };
    std::fs::write(fleet.dir.join("plain"), "plain\n").unwrap();
    let worker = fleet.worker(&[]);
    let state = worker.state_dir().display().to_string();
    let plain = fleet.dir.join("plain").display().to_string();
    let script = format!(
        "cat {plain}; (ls {state} || ls {state}/*/spool || ls {state}/*/work) >/dev/null 2>&1 || echo; echo state=$(ls {state} 2>/dev/null | wc -l)"
    );
    let Some((_, out)) = run(&fleet, &script).await else { return };
    assert!(out.starts_with("plain\n"), "{out}");
    assert_eq!(value(&out, "state"), "0");
    fleet.finish().await;
}

#[tokio::test]
async fn dangerous_calls_are_refused_and_threads_are_not() {
    let Some(fleet) = Fleet::with_worker(2, &[]).await else { return };
    // Numbers of x86_64. An argument that is refused for itself (EFAULT, EINVAL, EBADF) would show that the call went through.
    let script = r#"
        [ "$(uname -m)" = x86_64 ] || { echo skipped; exit 0; }
        python3 - <<'PY'
import ctypes, errno, threading
libc = ctypes.CDLL(None, use_errno=True)
def call(*args):
    ctypes.set_errno(0)
    return errno.errorcode.get(ctypes.get_errno(), "ok") if libc.syscall(*args) < 0 else "ok"
calls = dict(mount=165, umount2=166, pivot_root=155, chroot=161, open_tree=428, move_mount=429, fsopen=430, setns=308, ptrace=101,
    process_vm_readv=310, pidfd_getfd=438, bpf=321, perf_event_open=298, userfaultfd=323, io_uring_setup=425, add_key=248, keyctl=250,
    open_by_handle_at=304, name_to_handle_at=303, kexec_load=246, init_module=175, reboot=169, swapon=167, sethostname=170,
    settimeofday=164, clock_settime=227, acct=163, quotactl=179, iopl=172, syslog=103)
for name, number in calls.items():
    print(f"{name}={call(number, -1, -1, -1, -1, -1, -1)}")
for name, flag in dict(user=0x10000000, ns=0x20000, pid=0x20000000, net=0x40000000).items():
    print(f"unshare_{name}={call(272, flag)}")
    print(f"clone_{name}={call(56, flag | 17, 0, 0, 0, 0)}")
print("clone3=" + call(435, 0, 0))
print("x32=" + call(0x40000000 | 39))
print("tiocsti=" + call(16, 0, 0x5412, 0))
print("vsock=" + call(41, 40, 1, 0))
print("inet=" + call(41, 2, 1, 0))
print("unshare_files=" + call(272, 0x400))
t = threading.Thread(target=lambda: print("thread=ok")); t.start(); t.join()
PY"#;
    let Some((end, out)) = run(&fleet, script).await else { return };
    assert_eq!(end.reason, Some(Reason::Ok), "{out}{:?}", end.stderr_tail);
    if out != "skipped\n" {
        for line in out.lines() {
            let expected = match line.split_once('=').expect("name=value").0 {
                "clone3" | "x32" => "ENOSYS",
                "inet" | "thread" | "unshare_files" => "ok",
                _ => "EPERM",
            };
            assert_eq!(line.split_once('=').unwrap().1, expected, "{line}\n{out}");
        }
        assert!(out.lines().count() > 40, "{out}");
    }
    fleet.finish().await;
}

mod parts {
    //! Supervisors that may less than ours: what they cannot give is found, named, and refused.

    use std::fs::File;
    use std::io::Read as _;
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::{Path, PathBuf};

    use windlass::config::{self, Config};
    use windlass::execute::native::sandbox::{Confinement, Part, Wish};
    use windlass::execute::native::{Program, SpawnFailure, Supervisor};
    use windlass::supervisor::protocol::{ExitStatus, SpawnError};
    use windlass::task::{Limits, Profile, Reason};

    use super::{is_root, skip};

    /// A program that starts `windlass` with fewer rights; `None` where there is no `setpriv` or nothing to take away.
    fn with_less(dir: &Path, options: &str) -> Option<PathBuf> {
        let there = std::process::Command::new("setpriv").arg("--version").output().is_ok_and(|o| o.status.success());
        if !there || !is_root() {
            skip("needs root and setpriv (util-linux)");
            return None;
        }
        let exe = dir.join("windlass-with-less");
        std::fs::write(&exe, format!("#!/bin/sh\nexec setpriv {options} {} \"$@\"\n", env!("CARGO_BIN_EXE_windlass"))).unwrap();
        for path in [dir, &exe] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        Some(exe)
    }

    fn config(dir: &Path, required: bool) -> Config {
        let mut config = config::load(None, []).unwrap();
        config.worker.state_dir = dir.join("state");
        config.sandbox.required = required;
        // No cgroups: what is tried here does not depend on them.
        config.cgroup = config::Cgroup { mount: dir.join("none"), parent: String::new(), allow_unlimited: true };
        std::fs::create_dir_all(config.worker.state_dir.join("task")).unwrap();
        std::fs::set_permissions(config.worker.state_dir.join("task"), std::fs::Permissions::from_mode(0o777)).unwrap();
        config
    }

    async fn supervisor(exe: &Path, config: &Config) -> Supervisor {
        let instance = uuid::Uuid::now_v7().simple().to_string();
        Supervisor::start_with(exe, &config.cgroup, &instance, Some(Wish::new(config))).await.expect("starts")
    }

    async fn run(supervisor: &Supervisor, config: &Config, profile: Profile, script: &str) -> Result<(ExitStatus, String), SpawnFailure> {
        let (mut read, write) = std::io::pipe().unwrap();
        let null = || -> OwnedFd { File::options().read(true).write(true).open("/dev/null").unwrap().into() };
        let root = config.worker.state_dir.join("task").display().to_string();
        let program = Program {
            cgroup: format!("t-{profile}-{}", uuid::Uuid::now_v7().simple()),
            limits: Limits { cpus: 1.0, memory_bytes: 64 << 20, pids: 64, timeout_ms: 0, io: None, enforced: false },
            argv: vec!["sh".into(), "-c".into(), script.into()],
            env: vec![("PATH".into(), "/usr/bin:/bin".into())],
            cwd: root.clone(),
            sandbox: Confinement { profile, user: None, root, secrets: None, devices: vec![], hidden: vec![] },
            lease: None,
        };
        let mut process = supervisor.spawn(program, null(), write.into(), null()).await?;
        let status = process.wait().await.expect("the supervisor lives").status;
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        Ok((status, text))
    }

    #[tokio::test]
    async fn what_cannot_be_had_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let Some(exe) = with_less(dir.path(), "--inh-caps=-sys_admin --bounding-set=-sys_admin") else { return };
        let strictly = config(dir.path(), true);
        let without = supervisor(&exe, &strictly).await;
        let finding = without.capabilities().sandbox.of(Profile::Standard).unwrap().clone();
        let missing: Vec<Part> = finding.missing.iter().map(|m| m.part).collect();
        assert_eq!((finding.available, missing), (false, vec![Part::Mounts]), "{finding:?}");
        match run(&without, &strictly, Profile::Standard, "true").await {
            Err(SpawnFailure::Refused(error @ SpawnError::Sandbox { .. })) => {
                assert!(error.to_string().contains("mounts (") && error.to_string().contains("CAP_SYS_ADMIN"), "{error}");
                assert_eq!(windlass::execute::native::explain_refusal(&error).0, Reason::IsolationUnavailable);
            }
            other => panic!("{other:?}"),
        }
        let (status, _) = run(&without, &strictly, Profile::None, "true").await.expect("none needs nothing");
        assert_eq!(status, ExitStatus::Code(0));
        without.shutdown().await;

        let leniently = config(dir.path(), false);
        let without = supervisor(&exe, &leniently).await;
        let finding = without.capabilities().sandbox.of(Profile::Standard).unwrap();
        assert_eq!((finding.available, finding.private_tmp, finding.without()), (true, false, vec!["mounts".to_owned()]));
        let script = "echo x > file && echo own; (echo x > /tmp/windlass-x) 2>/dev/null || echo tmp closed";
        assert_eq!(run(&without, &leniently, Profile::Standard, script).await.unwrap().1, "own\ntmp closed\n");
        without.shutdown().await;
    }

    #[tokio::test]
    async fn an_unprivileged_worker_confines_by_landlock_and_namespaces_of_its_user() {
        let dir = tempfile::tempdir().unwrap();
        let Some(exe) = with_less(dir.path(), "--reuid=65534 --regid=65534 --clear-groups") else { return };
        let config = config(dir.path(), true);
        let supervisor = supervisor(&exe, &config).await;
        let report = supervisor.capabilities().sandbox.clone();
        assert!(!report.separate_users, "{report:?}");
        let script = "echo $(id -u) $$ > file; cat file; (echo x > /var/tmp/windlass-x) 2>/dev/null && echo wrote; ls /root >/dev/null 2>&1 || echo closed; \
                      grep CapEff /proc/self/status; kill -0 $PPID 2>/dev/null && echo parent";
        for profile in [Profile::Standard, Profile::Strict] {
            let finding = report.of(profile).unwrap();
            if profile == Profile::Strict && crate::harness::chrooted() {
                assert_eq!((finding.available, finding.without()), (false, vec!["namespaces".to_owned()]), "no user namespace in a chroot");
                continue;
            }
            if !finding.available {
                skip(&format!("{report:?}"));
                continue;
            }
            let (status, out) = run(&supervisor, &config, profile, script).await.unwrap();
            assert!(matches!(status, ExitStatus::Code(_)), "{status:?}");
            assert!(out.starts_with("65534 ") && out.contains("closed\nCapEff:\t0000000000000000\n"), "{profile}: {out}");
            // It is of the same user, supervisor or init, and outside of the Landlock domain.
            assert!(!out.contains("parent"), "{profile}: the parent can be signalled: {out}");
            assert_eq!(
                (out.contains("wrote"), out.starts_with("65534 2\n")),
                (profile == Profile::Strict, profile == Profile::Strict),
                "{out}"
            );
            assert!(!Path::new("/var/tmp/windlass-x").exists(), "{profile}: a file of the task is on the machine");
        }
        supervisor.shutdown().await;
    }
}
