//! The kernel: its version, what it offers to everybody, and the limits that this process inherited.

use super::{Area, Check, Finding, Level};
use crate::config::{self, Config};
use crate::task::Profile;
use crate::worker::capacity::{Capacity, Machine};

/// What was found.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    root: bool,
    release: String,
    /// System calls can be refused.
    seccomp: bool,
    /// Most user namespaces, and whether users without privileges may make them.
    namespaces: Result<u64, String>,
    /// `kernel.pid_max` and `kernel.threads-max`.
    tasks: [u64; 2],
    /// Resource limits; none for no limit.
    processes: Option<u64>,
    open_files: Option<u64>,
    machine: Machine,
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn number(path: &str) -> Option<u64> {
    read(path)?.parse().ok()
}

/// What a distribution adds: a switch that keeps users without privileges from making namespaces.
fn namespaces() -> Result<u64, String> {
    for (path, closed) in
        [("/proc/sys/kernel/unprivileged_userns_clone", "0"), ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1")]
    {
        if read(path).as_deref() == Some(closed) {
            let key = path.trim_start_matches("/proc/sys/").replace('/', ".");
            return Err(format!("{key} = {closed}"));
        }
    }
    number("/proc/sys/user/max_user_namespaces").ok_or_else(|| "this kernel has none".to_owned())
}

impl Facts {
    /// Looks.
    pub(super) fn gather() -> Self {
        use rustix::process::{Resource, getrlimit};
        Self {
            root: rustix::process::geteuid().is_root(),
            release: rustix::system::uname().release().to_string_lossy().into_owned(),
            seccomp: read("/proc/sys/kernel/seccomp/actions_avail").is_some_and(|actions| actions.contains("errno")),
            namespaces: namespaces(),
            tasks: ["/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"].map(|path| number(path).unwrap_or(u64::MAX)),
            processes: getrlimit(Resource::Nproc).current,
            open_files: getrlimit(Resource::Nofile).current,
            machine: Machine::here(),
        }
    }
}

/// `6.12.3-amd64` → `(6, 12)`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(['.', '-', '+']).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// What to make of it.
pub(super) fn judge(facts: &Facts, config: &Config) -> Vec<Finding> {
    let capacity = Capacity::new(config, facts.machine);
    let slots = u64::from(capacity.slots());
    let mut findings = vec![release(facts, config), seccomp(facts, config), user_namespaces(facts, config)];
    findings.push(processes(facts, config, slots));
    findings.push(open_files(facts, slots));
    let Machine { cpus, memory, .. } = facts.machine;
    let found = format!("{slots} slots on {cpus} CPUs and {} MiB", memory >> 20);
    findings.push(Check::new(Area::Capacity, "slots", "room for tasks; which classes fit is told below").ok(found));
    findings
}

fn release(facts: &Facts, config: &Config) -> Finding {
    let sandboxed = config.native_classes().any(|(_, class)| class.sandbox != Profile::None);
    let (least, why) = match (facts.root, sandboxed) {
        (false, true) => ((6, 12), "Landlock keeps tasks of one user from signalling each other"),
        _ => ((5, 14), "cgroup.kill ends a tree in one stroke"),
    };
    let check = Check::new(Area::Kernel, "version", format!("Linux {}.{} or newer: {why}", least.0, least.1));
    match version(&facts.release) {
        Some(found) if found >= least => check.ok(&facts.release),
        _ => check.warn(&facts.release, "install a newer kernel; what this one lacks is listed under sandbox and cgroups"),
    }
}

/// How bad it is to lack something that these profiles need.
fn lack(config: &Config, needs: impl Fn(Profile) -> bool) -> Option<Level> {
    let needed = config.native_classes().any(|(_, class)| needs(class.sandbox));
    needed.then_some(if config.sandbox.required { Level::Fail } else { Level::Warn })
}

fn seccomp(facts: &Facts, config: &Config) -> Finding {
    let check = Check::new(Area::Kernel, "seccomp", "dangerous system calls of tasks can be refused");
    match (facts.seccomp, lack(config, |profile| profile != Profile::None)) {
        (true, _) => check.ok("filters are there"),
        (false, level) => check.bad(
            level.unwrap_or(Level::Warn),
            "no filters",
            "boot a kernel with CONFIG_SECCOMP_FILTER=y: grep SECCOMP /boot/config-$(uname -r)",
        ),
    }
}

fn user_namespaces(facts: &Facts, config: &Config) -> Finding {
    let check = Check::new(Area::Kernel, "user namespaces", "profile `strict` needs them when the worker is not root");
    let found = match &facts.namespaces {
        Ok(0) => "user.max_user_namespaces = 0".to_owned(),
        Ok(most) => return check.ok(format!("{most} at most")),
        Err(why) => why.clone(),
    };
    let mend = match found.split_once(" = ") {
        Some((key, "1")) => format!("sysctl -w {key}=0"),
        Some(("user.max_user_namespaces", _)) => "sysctl -w user.max_user_namespaces=15000".to_owned(),
        Some((key, _)) => format!("sysctl -w {key}=1"),
        None => "boot a kernel with CONFIG_USER_NS=y, or run the worker as root".to_owned(),
    };
    match lack(config, |profile| profile == Profile::Strict) {
        Some(level) if !facts.root => check.bad(level, found, mend),
        _ => check.ok(format!("{found}, and none are needed")),
    }
}

fn processes(facts: &Facts, config: &Config, slots: u64) -> Finding {
    let of_class = |class: &config::Class| {
        let slots = if class.slots == 0 { slots } else { slots.min(class.slots.into()) };
        slots.saturating_mul(class.pids)
    };
    let need = config.offered_classes().map(|(_, class)| of_class(class)).max().unwrap_or(0);
    let check =
        Check::new(Area::Kernel, "processes", format!("{need} of the tasks that may run at one time, and room for the machine's own"));
    // Root is not bound by the resource limit.
    let own = facts.processes.filter(|_| !facts.root).unwrap_or(u64::MAX);
    let limits = [("kernel.pid_max", facts.tasks[0]), ("kernel.threads-max", facts.tasks[1]), ("ulimit -u", own)];
    let (name, least) = limits.into_iter().min_by_key(|(_, limit)| *limit).unwrap_or(("kernel.pid_max", 0));
    if least > need.saturating_add(need / 4) {
        return check.ok(format!("{least} ({name})"));
    }
    let more = need.saturating_mul(2).max(32_768);
    let mend = if name == "ulimit -u" { format!("LimitNPROC={more}   # in the worker's unit") } else { format!("sysctl -w {name}={more}") };
    check.warn(format!("{least} ({name})"), mend)
}

fn open_files(facts: &Facts, slots: u64) -> Finding {
    // Pipes, spool, files and sockets of a running task, and what the worker has open without any.
    let need = 128 + 24 * slots;
    let check = Check::new(Area::Kernel, "open files", format!("{need} for {slots} slots"));
    match facts.open_files {
        None => check.ok("no limit"),
        Some(most) if most >= need => check.ok(format!("{most}")),
        Some(most) => check.warn(format!("{most} (ulimit -n)"), "ulimit -n 65536   # in the worker's unit: LimitNOFILE=65536"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fine() -> Facts {
        Facts {
            root: true,
            release: "6.12.3-amd64".to_owned(),
            seccomp: true,
            namespaces: Ok(15_000),
            tasks: [4_194_304, 100_000],
            processes: Some(1),
            open_files: Some(65_536),
            machine: Machine { cpus: 2, memory: 8 << 30, gpus: 0 },
        }
    }

    fn levels(facts: &Facts, config: &Config) -> Vec<(String, Level)> {
        judge(facts, config).into_iter().filter(|f| f.level != Level::Ok).map(|f| (f.check, f.level)).collect()
    }

    #[test]
    fn each_lack_has_its_level() {
        let plain = config::load(None, []).unwrap();
        assert_eq!(levels(&fine(), &plain), []);
        let strict = config::load_text("[classes.s]\nsandbox = \"strict\"").unwrap();
        let relaxed = config::load_text("[sandbox]\nrequired = false\n[classes.s]\nsandbox = \"strict\"").unwrap();
        let closed = || Err("kernel.unprivileged_userns_clone = 0".to_owned());
        let user = Facts { root: false, processes: None, ..fine() };
        for (facts, config, expected, why) in [
            (Facts { release: "5.10.0-1".to_owned(), ..fine() }, &plain, vec![("version", Level::Warn)], "no cgroup.kill"),
            (Facts { release: "6.1.0-30".to_owned(), ..user.clone() }, &plain, vec![("version", Level::Warn)], "no scopes for a user"),
            (Facts { release: "6.1.0-30".to_owned(), ..fine() }, &plain, vec![], "root does without"),
            (Facts { release: "unknown".to_owned(), ..fine() }, &plain, vec![("version", Level::Warn)], "what cannot be read is not good"),
            (Facts { seccomp: false, ..fine() }, &plain, vec![("seccomp", Level::Fail)], "tasks are refused"),
            (Facts { seccomp: false, ..fine() }, &relaxed, vec![("seccomp", Level::Warn)], "tasks run with less"),
            (Facts { namespaces: closed(), ..user.clone() }, &plain, vec![], "nobody asks for them"),
            (Facts { namespaces: closed(), ..user.clone() }, &strict, vec![("user namespaces", Level::Fail)], "strict tasks are refused"),
            (Facts { namespaces: closed(), ..fine() }, &strict, vec![], "root needs none"),
            (Facts { namespaces: Ok(0), ..user.clone() }, &relaxed, vec![("user namespaces", Level::Warn)], "strict is less"),
            (Facts { tasks: [1024, 100_000], ..fine() }, &plain, vec![("processes", Level::Warn)], "four slots of 256"),
            (Facts { processes: Some(500), ..user.clone() }, &plain, vec![("processes", Level::Warn)], "a user's own limit"),
            (Facts { open_files: Some(200), ..fine() }, &plain, vec![("open files", Level::Warn)], "too few"),
        ] {
            let expected: Vec<(String, Level)> = expected.into_iter().map(|(check, level)| (check.to_owned(), level)).collect();
            assert_eq!(levels(&facts, config), expected, "{why}");
        }
    }

    #[test]
    fn the_mend_names_the_switch_that_is_closed() {
        let strict = config::load_text("[classes.s]\nsandbox = \"strict\"").unwrap();
        for (namespaces, mend) in [
            (Ok(0), "sysctl -w user.max_user_namespaces=15000"),
            (Err("kernel.unprivileged_userns_clone = 0".to_owned()), "sysctl -w kernel.unprivileged_userns_clone=1"),
            (
                Err("kernel.apparmor_restrict_unprivileged_userns = 1".to_owned()),
                "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
            ),
        ] {
            let facts = Facts { root: false, namespaces, ..fine() };
            assert_eq!(user_namespaces(&facts, &strict).mend.as_deref(), Some(mend));
        }
    }
}
