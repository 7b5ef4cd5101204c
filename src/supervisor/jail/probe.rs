//! A child that goes through a whole profile and then finds no program to run.

use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags};

use super::Jail;
use crate::execute::native::cgroup::Entrance;
use crate::execute::native::sandbox::{Missing, Part, User};
use crate::supervisor::sys::{self, Image, Origin, Step};
use crate::task::Profile;

/// Nobody has a program of this name; that it is not found is the proof that everything before it worked.
const NOWHERE: &std::ffi::CStr = c"/windlass-probe-of-the-sandbox";

/// Tries `parts`; the first that fails is the error.
pub(super) fn run(jail: &Jail, profile: Profile, parts: &[Part]) -> Result<(), Missing> {
    let fallback = if profile == Profile::Strict && parts.contains(&Part::Namespaces) { Part::Namespaces } else { Part::Mounts };
    let missing = |part: Part, error: String| Missing { part, error };
    let at = |part: Part, what: &str, error: &std::io::Error| missing(part, format!("{what}: {error}"));
    let mut cell = jail.build(parts, None, None, &[], 64 << 20).map_err(|e| at(Part::Landlock, "ruleset", &e))?;
    if let Some(wish) = jail.wish.as_ref().filter(|_| parts.contains(&Part::Users)) {
        cell.user = Some(User { uid: wish.uid_base, gid: wish.uid_base });
    }
    let null = || -> std::io::Result<OwnedFd> { Ok(std::fs::File::options().read(true).write(true).open("/dev/null")?.into()) };
    let stdio = (|| Ok([null()?, null()?, null()?]))().map_err(|e: std::io::Error| at(fallback, "/dev/null", &e))?;
    let image = Image::new(vec![NOWHERE.to_owned()], c"/".to_owned(), vec![NOWHERE.to_owned()], Vec::new());
    let entrance = Entrance { clone_into: None, tasks: Vec::new() };
    let started = sys::start(&image, &stdio, &entrance, Origin::take(), &cell).map_err(|e| at(fallback, "clone", &e))?;
    let mut fds = [PollFd::new(&started.report, PollFlags::IN)];
    while matches!(rustix::event::poll(&mut fds, None), Err(rustix::io::Errno::INTR)) {}
    let failed = sys::failure(&started.report);
    let pid = rustix::process::Pid::from_raw(started.pid.cast_signed());
    while matches!(rustix::process::waitpid(pid, rustix::process::WaitOptions::empty()), Err(rustix::io::Errno::INTR)) {}
    match failed {
        Ok(Some((Step::Exec, _))) => Ok(()),
        Ok(Some((step, error))) => Err(at(part_of(step, fallback), step.name(), &error)),
        Ok(None) => Err(missing(fallback, "the child ended without a word".to_owned())),
        Err(error) => Err(at(fallback, "report", &error)),
    }
}

fn part_of(step: Step, fallback: Part) -> Part {
    match step {
        Step::Mounts => Part::Mounts,
        Step::User => Part::Users,
        Step::Landlock => Part::Landlock,
        Step::Seccomp => Part::Seccomp,
        Step::Namespaces => Part::Namespaces,
        Step::Cgroup | Step::Session | Step::Guard | Step::Stdio | Step::Privileges | Step::Directory | Step::Exec => fallback,
    }
}
