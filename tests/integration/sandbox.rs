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
        ("kill -KILL -1; exit 3", Reason::ExitNonzero, Some(3), None),
    ] {
        let task = fleet.submit(&Job::bash(script)).await;
        let end = fleet.end(&task).await;
        assert_eq!((end.reason, end.exit_code, end.signal), (Some(reason), code, signal), "{script}: {:?}", end.error);
        assert_eq!(end.usage.unwrap().leaked_processes, 0, "{script}: its init is nobody's leftover");
    }
    let polite = "trap 'echo asked; exit 0' TERM; echo ready; while :; do sleep 0.05; done";
    let task = fleet.submit(&Job::bash(polite).timeout(0.7).grace(30.0)).await;
    let end = fleet.end(&task).await;
    assert_eq!(end.reason, Some(Reason::Timeout));
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
