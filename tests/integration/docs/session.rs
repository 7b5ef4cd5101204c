//! A reader with two terminals: `windlass dev` in the first, and in the second the blocks of one document in their order.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;

use super::markdown::{Block, Document, root};
use super::shown;
use crate::harness::server::free_port;
use crate::harness::watchdog::{MARK, watchdog};
use crate::harness::{PATIENCE, leftovers, slowness};

/// Marks every process of a document's.
const NAME: &str = "WINDLASS_TEST_DOCUMENT";

/// What is run of a document.
pub struct Step<'a> {
    block: &'a Block,
    /// The block after it, when that shows what it prints.
    prints: Option<&'a Block>,
}

impl Step<'_> {
    /// Goes into the first terminal, in place of what ran there.
    fn is_first_terminal(&self) -> bool {
        self.block.remark.as_deref() == Some("first terminal")
    }
}

/// The blocks that are run, each with what it is to print.
pub fn steps(document: &Document) -> Vec<Step<'_>> {
    let next = document.blocks.iter().skip(1).map(Some).chain([None]);
    let run = document.blocks.iter().zip(next).filter(|(block, _)| is_run(block));
    let shown = |next: &&Block| next.follows && next.language == "text";
    run.map(|(block, next)| Step { block, prints: next.filter(shown) }).collect()
}

/// Commands for the shell, and programs that a comment gives a file's name to.
pub fn is_run(block: &Block) -> bool {
    let program = block.language == "python" && block.remarked("snippet").is_some();
    (block.language == "sh" || program) && block.remarked("not run").is_none()
}

/// Does what the document says in a fresh directory, and returns what does not go as it says. The name is the run's own.
pub async fn follow(name: &str, document: &Document, nats_server: &Path, python: Option<&Path>) -> Vec<String> {
    let dir = watchdog().dir().join(name);
    furnish(&dir, nats_server);
    let steps = steps(document);
    std::fs::write(dir.join("steps.sh"), script(&dir, &steps)).unwrap();
    let cgroup = leftovers::cgroup_place(&format!("windlass-test-{name}"));
    let mut shell = shell(&dir, python);
    shell.env("WINDLASS__CGROUP__PARENT", &cgroup).env(NAME, name);
    let mut child = shell.spawn().expect("bash");
    let pid = child.id().expect("running");
    watchdog().adopt(pid);
    // Held open until it is over: when it closes, because this process died, what runs in the first terminal ends too.
    let pipe = child.stdin.take();
    let status = tokio::time::timeout(PATIENCE * 2 * slowness(), child.wait()).await;
    if status.is_err() {
        kill_all(name);
    }
    drop(pipe);
    watchdog().release(pid);
    let mut wrong = judge(&dir, document, &steps, status.is_ok_and(|s| s.is_ok_and(|s| s.success())));
    let left = leftovers::gone(PATIENCE, || leftovers::processes(&format!("{NAME}={name}\0"))).await;
    if !left.is_empty() {
        wrong.push(format!("{}: processes left: {left:?}", document.path.display()));
    }
    for path in leftovers::cgroup_parents(&cgroup) {
        std::fs::remove_dir(&path).unwrap_or_else(|e| panic!("{} is not empty: {e}", path.display()));
    }
    wrong
}

/// A command of the document does not end.
fn kill_all(name: &str) {
    for (pid, _) in leftovers::processes(&format!("{NAME}={name}\0")) {
        let _ = kill_process(Pid::from_raw(pid.cast_signed()).expect("not zero"), Signal::KILL);
    }
}

/// As in a clone after `make install`: the programs on PATH, the repository's files where its documents say.
fn furnish(dir: &Path, nats_server: &Path) {
    std::fs::create_dir_all(dir.join("bin")).unwrap();
    for (from, to) in [(Path::new(env!("CARGO_BIN_EXE_windlass")), "bin/windlass"), (nats_server, "bin/nats-server")] {
        std::os::unix::fs::symlink(from, dir.join(to)).unwrap();
    }
    for own in ["config", "deploy", "examples", "schemas"] {
        std::os::unix::fs::symlink(root().join(own), dir.join(own)).unwrap();
    }
}

fn shell(dir: &Path, python: Option<&Path>) -> Command {
    let own = [Some(dir.join("bin")), python.and_then(|p| Some(p.parent()?.to_owned()))];
    let inherited = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(own.into_iter().flatten().chain(std::env::split_paths(&inherited))).expect("no colons");
    let (port, http) = (free_port(), free_port());
    let mut shell = Command::new("bash");
    shell
        .arg("steps.sh")
        .current_dir(dir)
        .env_clear()
        .env("PATH", path)
        .env("HOME", dir)
        .env("LANG", "C.UTF-8")
        .env("PORT", port.to_string());
    shell.env("NATS_URL", format!("nats://127.0.0.1:{port}")).env(MARK, watchdog().mark());
    shell.env("HTTP_PORT", http.to_string()).env("WINDLASS__HTTP__LISTEN", format!("127.0.0.1:{http}"));
    shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    shell
}

fn script(dir: &Path, steps: &[Step<'_>]) -> String {
    let mut script = PRELUDE.to_owned();
    if !steps.first().is_some_and(Step::is_first_terminal) {
        script.push_str("first_terminal <<<'windlass dev'\n");
    }
    for (n, step) in steps.iter().enumerate() {
        let _ = writeln!(script, "step {n}");
        let text = &step.block.text;
        let _ = match (step.block.remarked("snippet"), step.block.remarked("until")) {
            _ if step.is_first_terminal() => writeln!(script, "first_terminal <<'END_OF_STEP'\n{text}END_OF_STEP"),
            (Some(file), _) => {
                std::fs::write(dir.join(file), text).unwrap();
                writeln!(script, "python3 {file}")
            }
            (None, Some(until)) => writeln!(script, "until_shown {n} {} <<'END_OF_STEP'\n{text}END_OF_STEP", quoted(until)),
            (None, None) => write!(script, "{text}"),
        };
    }
    script.push_str("exec >end.out 2>&1\nend_first_terminal\n");
    script
}

fn judge(dir: &Path, document: &Document, steps: &[Step<'_>], all_done: bool) -> Vec<String> {
    let output = |n: usize| std::fs::read_to_string(dir.join(format!("{n}.out"))).ok();
    let begun = (0..steps.len()).take_while(|n| output(*n).is_some()).count();
    let mut wrong = Vec::new();
    for (n, step) in steps.iter().enumerate().take(begun) {
        let place = format!("{}:{}", document.path.display(), step.block.line);
        let output = output(n).unwrap_or_default();
        if !all_done && n + 1 == begun {
            wrong.push(format!("{place}: does not work\n{}--- it said\n{output}", step.block.text));
        } else if let Some(difference) = step.prints.and_then(|prints| shown::difference(&prints.text, &output)) {
            wrong.push(format!("{place}: what is shown is not what it prints: {difference}\n--- it printed\n{output}"));
        }
    }
    if !all_done {
        let said = |file: &str| std::fs::read_to_string(dir.join(file)).unwrap_or_default();
        wrong.push(format!("{}: stopped\n--- first terminal\n{}{}", document.path.display(), said("first.out"), said("end.out")));
    }
    wrong
}

/// One shell for all steps: a later one uses the variables of an earlier one. Each writes to a file of its own.
///
/// `first_terminal` ends what runs in the first terminal by Ctrl-C and starts something else there; `dev` is told the port that
/// every verb looks at, and `curl` asks the port that the worker has here for the usual one. `until_shown` is for what goes on until Ctrl-C, and presses that once the text has appeared.
const PRELUDE: &str = r#"set -eu
exec 9<&0 </dev/null >begin.out 2>&1
first=
curl() { command curl "${@/:9464/:$HTTP_PORT}"; }
step() { exec >"$1.out" 2>&1; }
shows() { # PID FILE TEXT
  until grep -qsF -- "$3" "$2"; do
    kill -0 "$1" 2>/dev/null || { echo "ended before it showed: $3"; return 1; }
    sleep 0.02
  done
}
end_first_terminal() {
  [ -n "$first" ] || return 0
  local pid=$first
  first=
  kill -- "-$watch" 2>/dev/null || true
  # It may have been drained.
  kill -INT -- "-$pid" 2>/dev/null || true
  wait "$pid"
}
first_terminal() {
  end_first_terminal
  cat >first.sh
  rm -f first.out
  set -m
  (
    windlass() { local verb=$1; shift; exec windlass "$verb" --port "$PORT" "$@"; }
    . ./first.sh
  ) >first.out 2>&1 9<&- &
  first=$!
  (cat <&9; kill -INT -- "-$first") >/dev/null 2>&1 &
  watch=$!
  set +m
  shows "$first" first.out 'Ctrl-C ends it'
}
until_shown() {
  cat >"$1.sh"
  set -m
  (. "./$1.sh") 9<&- &
  local pid=$!
  set +m
  shows "$pid" "$1.out" "$2"
  kill -INT -- "-$pid"
  wait "$pid" || true
}
trap 'end_first_terminal || true' EXIT
"#;

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
