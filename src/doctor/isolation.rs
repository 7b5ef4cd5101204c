//! Cgroups, supervisor and sandbox: a real supervisor is started, runs one program under limits, and goes.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::{Area, Check, Finding, Level};
use crate::config::{self, Config};
use crate::execute::native::cgroup::Footprint;
use crate::execute::native::sandbox::{Confinement, Wish};
use crate::execute::native::{Capabilities, Program, Supervisor};
use crate::supervisor::protocol::ExitStatus;
use crate::task::{Limits, Profile};

/// What was found.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    root: bool,
    /// Why a supervisor that is to enforce limits does not start.
    refused: Option<String>,
    /// What it can do; after a refusal, what it can do without limits.
    seen: Option<Seen>,
}

#[derive(Debug, Clone)]
struct Seen {
    capabilities: Capabilities,
    /// From its start to its first word.
    ready: Duration,
    /// A tree is killed in one stroke.
    kill: bool,
    /// A program under limits: how long it took, or why it did not run.
    trial: Result<Duration, String>,
}

/// What the trial runs with.
const LIMITS: Limits = Limits { cpus: 1.0, memory_bytes: 256 << 20, pids: 16, timeout_ms: 30_000, io: None, enforced: true };

/// A program that has only to say its version.
const TRIAL_WITHIN: Duration = Duration::from_secs(30);

/// Starts a supervisor and takes it away again, whatever happens.
pub(super) async fn gather(config: &Config, stop: &CancellationToken) -> Facts {
    let root = rustix::process::geteuid().is_root();
    let footprint = Footprint::before(&config.cgroup);
    let first = observe(config, &config.cgroup, &footprint, stop).await;
    let (refused, seen) = match first {
        Ok(seen) => (None, seen),
        Err(error) => {
            let unlimited = config::Cgroup { allow_unlimited: true, ..config.cgroup.clone() };
            let seen =
                if config.cgroup.allow_unlimited { None } else { observe(config, &unlimited, &footprint, stop).await.ok().flatten() };
            (Some(error), seen)
        }
    };
    Facts { root, refused, seen }
}

/// None when it was stopped.
async fn observe(
    config: &Config,
    cgroup: &config::Cgroup,
    footprint: &Footprint,
    stop: &CancellationToken,
) -> Result<Option<Seen>, String> {
    let exe = std::env::current_exe().map_err(|e| format!("cannot find this program's own file: {e}"))?;
    let instance = uuid::Uuid::now_v7().simple().to_string();
    let started = Instant::now();
    let supervisor = tokio::select! {
        // Dropped before it is ready, it goes by itself: its socket is closed.
        supervisor = Supervisor::start_with(&exe, cgroup, &instance, Some(Wish::looking(config))) => supervisor.map_err(|e| chain(&e))?,
        () = stop.cancelled() => return Ok(None),
    };
    let ready = started.elapsed();
    let capabilities = supervisor.capabilities().clone();
    let kill = capabilities.directories.iter().any(|dir| dir.join("cgroup.kill").exists());
    let trial = tokio::select! {
        trial = tokio::time::timeout(TRIAL_WITHIN, run(&supervisor, &exe)) => Some(trial.unwrap_or_else(|_| Err("it does not end".to_owned()))),
        () = stop.cancelled() => None,
    };
    supervisor.shutdown().await;
    footprint.restore(&capabilities.directories);
    Ok(trial.map(|trial| Seen { capabilities, ready, kill, trial }))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

async fn run(supervisor: &Supervisor, exe: &Path) -> Result<Duration, String> {
    let null =
        || std::fs::File::options().read(true).write(true).open("/dev/null").map(OwnedFd::from).map_err(|e| format!("/dev/null: {e}"));
    let program = Program {
        cgroup: "doctor".to_owned(),
        limits: Limits { enforced: supervisor.capabilities().enforced, ..LIMITS },
        argv: vec![exe.display().to_string(), "--version".to_owned()],
        env: Vec::new(),
        cwd: "/".to_owned(),
        sandbox: Confinement::none(),
        lease: Some(TRIAL_WITHIN),
    };
    let started = Instant::now();
    let mut process = supervisor.spawn(program, null()?, null()?, null()?).await.map_err(|e| e.to_string())?;
    match process.wait().await.map_err(|e| e.to_string())?.status {
        ExitStatus::Code(0) => Ok(started.elapsed()),
        ExitStatus::Code(code) => Err(format!("it exited with {code}")),
        ExitStatus::Signal(signal) => Err(format!("signal {signal} ended it")),
    }
}

/// What to make of it.
pub(super) fn judge(facts: &Facts, config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let limits = Check::new(Area::Cgroups, "limits", "CPU, memory and processes of each task can be limited");
    match (&facts.refused, &facts.seen) {
        (Some(why), _) => findings.push(limits.fail(why, grant(facts.root))),
        (None, Some(seen)) if seen.capabilities.enforced => findings.push(limits.ok(&seen.capabilities.description)),
        (None, Some(seen)) => {
            let found = format!("{}; allowed by cgroup.allow_unlimited", seen.capabilities.description);
            findings.push(limits.warn(found, grant(facts.root)));
        }
        (None, None) => {}
    }
    if let Some(seen) = &facts.seen {
        findings.extend(of_cgroups(seen));
        findings.extend(of_supervisor(facts, seen));
        findings.extend(of_sandbox(facts, seen, config));
    }
    findings
}

fn grant(root: bool) -> &'static str {
    if root {
        "mount | grep cgroup   # in a container: --cgroupns=private and a writable /sys/fs/cgroup; see docs/operating.md"
    } else {
        "sudo systemd-run --pty --uid=$(id -u) -p 'Delegate=cpu memory pids io' -p DelegateSubgroup=worker windlass doctor   # and so in the worker's unit"
    }
}

fn of_cgroups(seen: &Seen) -> Vec<Finding> {
    let capabilities = &seen.capabilities;
    let mut findings = Vec::new();
    let place = Check::new(Area::Cgroups, "place", "a directory for the worker's cgroups in each hierarchy");
    let parents: Vec<String> = capabilities.directories.iter().filter_map(|dir| Some(dir.parent()?.display().to_string())).collect();
    if !parents.is_empty() {
        findings.push(place.ok(parents.join(", ")));
    }
    let io = Check::new(Area::Cgroups, "io", "assignments can limit what they read and write");
    findings.push(if capabilities.controllers.iter().any(|c| c == "io") {
        io.ok("can be limited")
    } else {
        io.warn(
            "no io controller: tasks that ask for `resources.io` are refused",
            "echo +io > /sys/fs/cgroup/cgroup.subtree_control   # as root; under systemd: Delegate=cpu memory pids io",
        )
    });
    let kill = Check::new(Area::Cgroups, "cgroup.kill", "a task's processes are killed in one stroke");
    findings.push(if seen.kill {
        kill.ok("there")
    } else {
        kill.warn(
            "not there: processes are killed one by one until none is left",
            "mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified   # Linux 5.14 or newer",
        )
    });
    for (instance, gone) in &capabilities.swept {
        let check = Check::new(Area::Cgroups, format!("instance {instance}"), "no cgroups of dead workers");
        findings.push(if *gone {
            check.ok("left by a dead worker; removed")
        } else {
            check.warn(
                "left by a dead worker, and cannot be removed yet",
                "windlass doctor   # again, once its processes have left the kernel",
            )
        });
    }
    findings
}

fn of_supervisor(facts: &Facts, seen: &Seen) -> Vec<Finding> {
    let start = Check::new(Area::Supervisor, "start", "the process that starts and kills tasks can be started");
    let mut findings = vec![start.ok(format!("ready in {} ms", seen.ready.as_millis()))];
    let clone = Check::new(Area::Supervisor, "clone3", "tasks start inside their cgroup in one step");
    findings.push(match &seen.capabilities.no_clone_into {
        None => clone.ok("clones into a cgroup"),
        Some(why) => clone.warn(
            format!("{why}: tasks enter their cgroup by a write, which takes some 10 ms"),
            "uname -r   # Linux 5.7 or newer; in a container, a seccomp profile that allows clone3",
        ),
    });
    let trial = Check::new(Area::Supervisor, "trial", "a program runs under limits that read back as they were set");
    findings.push(match &seen.trial {
        Ok(took) if seen.capabilities.enforced => trial.ok(format!("ran and ended within {} ms", took.as_millis().max(1))),
        Ok(_) => trial.warn("ran, without limits", grant(facts.root)),
        Err(why) => trial.fail(why, grant(facts.root)),
    });
    findings
}

fn of_sandbox(facts: &Facts, seen: &Seen, config: &Config) -> Vec<Finding> {
    let report = &seen.capabilities.sandbox;
    let landlock = Check::new(Area::Sandbox, "Landlock", "version 1 or newer; 6 when the worker is not root");
    let wanted = if facts.root { 1 } else { 6 };
    let needed = config.native_classes().any(|(_, class)| class.sandbox != Profile::None);
    let mut findings = vec![match report.landlock_abi {
        abi if abi >= wanted || !needed => landlock.ok(format!("version {abi}")),
        0 => landlock.warn(
            "not offered",
            "cat /sys/kernel/security/lsm   # boot with lsm=landlock,$(cat /sys/kernel/security/lsm), Linux 5.13 or newer",
        ),
        abi => landlock.warn(format!("version {abi}"), "uname -r   # Linux 6.12 or newer, or run the worker as root"),
    }];
    let tenants = Check::new(Area::Sandbox, "tenants", "each is a user of its own");
    findings.push(if report.separate_users {
        tenants.ok("users of their own")
    } else if config.tenants.len() < 2 {
        tenants.ok("all are this user: the worker is not root, and not more than one is configured")
    } else {
        tenants.warn("all are this user", "sudo windlass doctor   # run the worker as root")
    });
    findings.extend(config.native_classes().map(|(name, class)| of_class(&name.to_string(), class, seen, config.sandbox.required)));
    findings
}

fn of_class(name: &str, class: &config::Class, seen: &Seen, required: bool) -> Finding {
    let profile = class.sandbox;
    let check = Check::new(Area::Sandbox, format!("class {name}"), format!("everything of profile `{profile}`"));
    let Some(finding) = seen.capabilities.sandbox.of(profile) else { return check.ok("limits only") };
    if finding.missing.is_empty() && finding.available {
        return check.ok(format!("profile `{profile}` in full"));
    }
    let missing: Vec<String> = finding.missing.iter().map(|m| format!("{} ({})", m.part.as_str(), m.error)).collect();
    let advice: Vec<&str> = finding.missing.iter().map(|m| m.part.advice()).collect();
    let found = format!("missing {}", missing.join(", "));
    let upper = name.to_uppercase();
    if !finding.available {
        let mend = format!("{}   # or: export WINDLASS__CLASSES__{upper}__SANDBOX=none", advice.join("; "));
        let found = if required { format!("{found}: its tasks are refused") } else { found };
        return check.fail(found, mend);
    }
    check.bad(Level::Warn, format!("{found}: its tasks run without"), advice.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::execute::native::sandbox::{Finding as Profiled, Missing, Part, Report};

    fn fine() -> Seen {
        let of = |profile| Profiled { profile, available: true, missing: vec![], private_tmp: true };
        let sandbox = Report { landlock_abi: 7, separate_users: true, profiles: vec![of(Profile::Standard), of(Profile::Strict)] };
        let capabilities = Capabilities {
            enforced: true,
            description: "cgroup2 cpu,memory,pids,io".to_owned(),
            controllers: ["cpu", "memory", "pids", "io"].map(str::to_owned).to_vec(),
            no_clone_into: None,
            directories: vec!["/sys/fs/cgroup/windlass/x".into()],
            swept: vec![],
            sandbox,
        };
        Seen { capabilities, ready: Duration::from_millis(9), kill: true, trial: Ok(Duration::from_millis(2)) }
    }

    fn bad(facts: &Facts, config: &Config) -> Vec<(String, Level)> {
        judge(facts, config).into_iter().filter(|f| f.level != Level::Ok).map(|f| (f.check, f.level)).collect()
    }

    fn with(change: impl FnOnce(&mut Seen)) -> Facts {
        let mut seen = fine();
        change(&mut seen);
        Facts { root: true, refused: None, seen: Some(seen) }
    }

    fn lacking(available: bool) -> Facts {
        with(|seen| {
            let missing = vec![Missing { part: Part::Mounts, error: "EPERM".to_owned() }];
            seen.capabilities.sandbox.profiles[0] = Profiled { profile: Profile::Standard, available, missing, private_tmp: false };
        })
    }

    #[test]
    fn each_lack_has_its_level() {
        let plain = config::load(None, []).unwrap();
        let two = config::load_text("[tenants.a]\n[tenants.b]").unwrap();
        let refused = Facts { root: false, refused: Some("no cgroup controller memory".to_owned()), seen: None };
        let unlimited = with(|seen| seen.capabilities.enforced = false);
        for (facts, config, expected) in [
            (with(|_| ()), &plain, vec![]),
            (refused, &plain, vec![("limits", Level::Fail)]),
            (unlimited, &plain, vec![("limits", Level::Warn), ("trial", Level::Warn)]),
            (with(|seen| seen.capabilities.controllers.truncate(3)), &plain, vec![("io", Level::Warn)]),
            (with(|seen| seen.kill = false), &plain, vec![("cgroup.kill", Level::Warn)]),
            (with(|seen| seen.capabilities.swept = vec![("dead".to_owned(), true)]), &plain, vec![]),
            (with(|seen| seen.capabilities.swept = vec![("dead".to_owned(), false)]), &plain, vec![("instance dead", Level::Warn)]),
            (with(|seen| seen.capabilities.no_clone_into = Some("ENOSYS".to_owned())), &plain, vec![("clone3", Level::Warn)]),
            (with(|seen| seen.trial = Err("cannot set limit pids.max".to_owned())), &plain, vec![("trial", Level::Fail)]),
            (with(|seen| seen.capabilities.sandbox.landlock_abi = 0), &plain, vec![("Landlock", Level::Warn)]),
            (with(|seen| seen.capabilities.sandbox.separate_users = false), &plain, vec![]),
            (with(|seen| seen.capabilities.sandbox.separate_users = false), &two, vec![("tenants", Level::Warn)]),
            (lacking(false), &plain, vec![("class cpu_short", Level::Fail), ("class gpu", Level::Fail)]),
            (lacking(true), &plain, vec![("class cpu_short", Level::Warn), ("class gpu", Level::Warn)]),
        ] {
            let expected: Vec<(String, Level)> = expected.into_iter().map(|(check, level)| (check.to_owned(), level)).collect();
            assert_eq!(bad(&facts, config), expected, "{facts:?}");
        }
    }

    #[test]
    fn what_is_missing_is_named_with_what_to_do() {
        let plain = config::load(None, []).unwrap();
        let findings = judge(&lacking(false), &plain);
        let class = findings.iter().find(|f| f.check == "class cpu_short").unwrap();
        assert!(class.found.contains("mounts (EPERM)"), "{class:?}");
        assert!(class.mend.as_ref().unwrap().contains(Part::Mounts.advice()), "{class:?}");
    }
}
