//! A shell that outlives the test process by a moment and takes everything with it that was started.
//!
//! It holds the reading end of a pipe. When the test process ends, even by SIGKILL, the pipe closes, and the shell kills
//! what is still registered and removes the run's directory. A process is only killed when it carries the run's mark in
//! its environment, so that a reused process id harms nobody.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Mutex, OnceLock};

/// Environment variable that marks every process of the run.
pub const MARK: &str = "WINDLASS_TEST_RUN";

const SCRIPT: &str = r#"
trap '' INT TERM HUP
pids=' '
while read -r op pid; do
  case $op in
    +) pids="$pids$pid " ;;
    -) pids="${pids%% $pid *} ${pids#* $pid }" ;;
    e) engines=1 ;;
  esac
done
for pid in $pids; do
  if grep -qs "$MARKED" "/proc/$pid/environ"; then kill -CONT "$pid"; kill -9 "$pid"; fi
done
# A dying process may still write into the directory.
for pid in $pids; do
  while grep -qs "$MARKED" "/proc/$pid/environ"; do sleep 0.02; done
done
# Of engines: containerd and its shims, which inherit the mark, and then what they leave in containers.
if [ -n "$engines" ]; then
  for environ in /proc/[0-9]*/environ; do
    pid=${environ#/proc/} pid=${pid%/environ}
    [ "$pid" = $$ ] || ! grep -qs "$MARKED" "$environ" || kill -9 "$pid"
  done
  for cgroup in /sys/fs/cgroup/$WINDLASS_TEST_CGROUP/windlass-test-w$RUN-engine* /sys/fs/cgroup/*/windlass-test-w$RUN-engine*; do
    [ ! -d "$cgroup" ] || find "$cgroup" -name cgroup.procs | while read -r procs; do
      while read -r pid; do kill -9 "$pid"; done <"$procs"
    done
  done
fi
# The supervisors of killed workers empty their cgroups; the parents are the tests'. Only what is empty can be removed.
for _ in 1 2 3 4 5 6 7 8 9 10; do
  left=
  for cgroup in /sys/fs/cgroup/$WINDLASS_TEST_CGROUP/windlass-test-w$RUN-* /sys/fs/cgroup/*/windlass-test-w$RUN-*; do
    [ ! -d "$cgroup" ] || rmdir "$cgroup" || left=1
    # Those of containers are nobody's any more.
    case $cgroup in *-engine*) find "$cgroup" -depth -type d -exec rmdir {} + ;; esac
  done
  [ -n "$left" ] || break
  sleep 0.2
done
# Never through a mount that something left there: what is behind it is the machine's.
grep -s " $DIR/" /proc/self/mountinfo | cut -d' ' -f5 | sort -r | while read -r at; do umount -l "$at"; done
if [ -z "$KEEP" ] && [ -r /proc/self/mountinfo ] && ! grep -qs " $DIR/" /proc/self/mountinfo; then rm -rf "$DIR"; fi
"#;

/// The one of this run.
pub struct Watchdog {
    dir: PathBuf,
    mark: String,
    pipe: Mutex<ChildStdin>,
}

/// The one of this run, started by the first who asks.
pub fn watchdog() -> &'static Watchdog {
    static RUN: OnceLock<Watchdog> = OnceLock::new();
    RUN.get_or_init(Watchdog::start)
}

impl Watchdog {
    #[expect(clippy::zombie_processes, reason = "it outlives this process by design")]
    fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("windlass-test-").tempdir().expect("a temporary directory").keep();
        let mark = dir.file_name().expect("a name").to_string_lossy().into_owned();
        let mut child = Command::new("sh")
            .args(["-c", SCRIPT])
            .env("DIR", &dir)
            .env("RUN", std::process::id().to_string())
            .env("MARKED", format!("{MARK}={mark}"))
            .env("KEEP", std::env::var("WINDLASS_TEST_KEEP").unwrap_or_default())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Not in the terminal's foreground group: Ctrl-C is for the tests, and this cleans up after it.
            .process_group(0)
            .spawn()
            .expect("sh starts");
        let pipe = Mutex::new(child.stdin.take().expect("piped"));
        Self { dir, mark, pipe }
    }

    /// The run's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Value of [`MARK`].
    pub fn mark(&self) -> &str {
        &self.mark
    }

    /// `pid` is to die with the run.
    pub fn adopt(&self, pid: u32) {
        self.say(&format!("+ {pid}\n"));
    }

    /// `pid` has ended and was waited for.
    pub fn release(&self, pid: u32) {
        self.say(&format!("- {pid}\n"));
    }

    /// Engines of containers are started: what they start in their turn is to die with the run, too.
    pub fn expect_engines(&self) {
        self.say("e -\n");
    }

    fn say(&self, line: &str) {
        self.pipe.lock().expect("not poisoned").write_all(line.as_bytes()).expect("the watchdog listens");
    }
}
