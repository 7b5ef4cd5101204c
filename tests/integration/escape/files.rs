//! What a task leaves in place of its files, through a real worker: nothing of the machine comes out, nothing outside is
//! touched, the next task runs, and everything is gone in the end.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use windlass::task::log_chunk::LogStream;
use windlass::task::{EventKind, Reason};

use super::attacker::{NONE, instances, list};
use crate::harness::server::skip;
use crate::harness::worker::Worker;
use crate::harness::{Fleet, Job, PATIENCE, leftovers};

/// What only the worker may read, and a directory that must stay as it is.
struct Outside {
    dir: PathBuf,
}

const SECRET: &str = r#"{"secret": "canary-of-the-worker"}"#;

impl Outside {
    fn new(fleet: &Fleet) -> Self {
        let dir = fleet.dir.join("outside");
        std::fs::create_dir_all(dir.join("inner")).unwrap();
        std::fs::write(dir.join("secret.json"), SECRET).unwrap();
        std::fs::write(dir.join("inner/precious"), "precious").unwrap();
        std::fs::set_permissions(dir.join("secret.json"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        Self { dir }
    }

    fn path(&self) -> &str {
        self.dir.to_str().unwrap()
    }

    fn is_untouched(&self, after: &str) {
        assert_eq!(std::fs::read_to_string(self.dir.join("secret.json")).unwrap(), SECRET, "after {after}");
        assert_eq!(std::fs::read_to_string(self.dir.join("inner/precious")).unwrap(), "precious", "after {after}");
        assert_eq!(std::fs::metadata(self.dir.join("inner")).unwrap().uid(), rustix::process::geteuid().as_raw(), "after {after}");
    }
}

/// Work directories of a worker that are there now.
fn work(worker: &Worker) -> Vec<PathBuf> {
    instances(worker).iter().flat_map(|instance| list(&instance.join("work"))).collect()
}

/// A fleet with one worker that is known.
async fn fleet(settings: &[(&str, &str)]) -> Option<(Fleet, Arc<Worker>)> {
    let fleet = Fleet::start(settings).await?;
    let worker = fleet.worker(&[("CAPACITY__SLOTS", "2")]);
    Some((fleet, worker))
}

#[tokio::test]
async fn nothing_in_place_of_the_result_is_read_but_a_plain_file() {
    let Some(fleet) = Fleet::with_worker(2, &[]).await else { return };
    let outside = Outside::new(&fleet);
    let secret = outside.dir.join("secret.json");
    let secret = secret.to_str().unwrap();
    for (what, script, words) in [
        ("a link to what the worker reads", format!("ln -s {secret} $WINDLASS_RESULT"), &["symbolic link"][..]),
        ("a link to its environment", "ln -s /proc/$PPID/environ $WINDLASS_RESULT".into(), &["symbolic link"]),
        ("a link to itself", "ln -s result.json $WINDLASS_RESULT".into(), &["symbolic link"]),
        ("a second name", "echo 1 > x; ln x $WINDLASS_RESULT".into(), &["hard link"]),
        ("a pipe that nobody writes", "mkfifo $WINDLASS_RESULT".into(), &["plain file"]),
        ("a directory", "mkdir $WINDLASS_RESULT".into(), &["plain file"]),
        (
            "a socket",
            "python3 -c 'import os,socket; os.chdir(os.path.dirname(os.environ[\"WINDLASS_RESULT\"])); socket.socket(socket.AF_UNIX).bind(\"result.json\")' || mkfifo $WINDLASS_RESULT".into(),
            &["plain file"],
        ),
        ("a terabyte of nothing", "truncate -s 1T $WINDLASS_RESULT || truncate -s 1G $WINDLASS_RESULT".into(), &["larger than"]),
        ("one byte too much", "head -c 262145 /dev/zero > $WINDLASS_RESULT".into(), &["larger than"]),
        ("half a value", "echo '{\"a\":' > $WINDLASS_RESULT".into(), &["not valid JSON"]),
        ("no text at all", "head -c 1000 /dev/urandom > $WINDLASS_RESULT".into(), &["not valid JSON"]),
        ("brackets", "head -c 200000 /dev/zero | tr '\\0' '[' > $WINDLASS_RESULT".into(), &["not valid JSON"]),
    ] {
        let task = fleet.submit(&Job::bash(script)).await;
        let end = fleet.end(&task).await;
        let error = end.error.unwrap_or_default();
        assert_eq!((end.event, end.reason, end.phase.as_deref()), (EventKind::TaskFailed, Some(Reason::ResultInvalid), Some("finalize")), "{what}: {error}");
        assert!(words.iter().all(|word| error.contains(word)), "{what}: {error}");
        assert!(end.result.is_none() && !error.contains("canary"), "{what}: {error}");
        outside.is_untouched(what);
    }
    fleet.finish().await;
}

#[tokio::test]
async fn hostile_progress_is_ignored_and_the_task_runs_on() {
    let Some(fleet) = Fleet::with_worker(2, &[("EVENTS__PROGRESS_INTERVAL_MS", "50")]).await else { return };
    let outside = Outside::new(&fleet);
    std::fs::write(outside.dir.join("lines"), "{\"message\": \"canary-of-the-worker\", \"pct\": 5}\n").unwrap();
    // Each ends with one true report, which is seen when the file is a plain one.
    let report = "echo '{\"stage\": \"TRUE\", \"pct\": 77}' >> $WINDLASS_PROGRESS";
    for (what, script, seen) in [
        ("a link", format!("ln -s {}/lines $WINDLASS_PROGRESS", outside.path()), false),
        ("a pipe", "mkfifo $WINDLASS_PROGRESS".to_owned(), false),
        ("a directory", "mkdir $WINDLASS_PROGRESS".to_owned(), false),
        ("a second name", format!("echo '{{\"message\": \"canary\"}}' > x; ln x $WINDLASS_PROGRESS; {report}"), false),
        (
            "a line without end",
            format!("head -c 500000 /dev/zero | tr '\\0' x >> $WINDLASS_PROGRESS; echo >> $WINDLASS_PROGRESS; {report}"),
            true,
        ),
        (
            "a nested bomb",
            format!("(echo -n '{{\"x\":'; head -c 15000 /dev/zero | tr '\\0' '['; echo) >> $WINDLASS_PROGRESS; {report}"),
            true,
        ),
        ("empty lines", format!("head -c 250000 /dev/zero | tr '\\0' '\\n' >> $WINDLASS_PROGRESS; {report}"), true),
    ] {
        // As long as it takes until the worker has looked; in vain where there is nothing to be seen.
        let task = fleet.submit(&Job::bash(format!("{script}; sleep 1"))).await;
        let end = fleet.end(&task).await;
        assert_eq!(end.reason, Some(Reason::Ok), "{what}: {:?}", end.error);
        assert_eq!(end.stages.iter().any(|s| s.stage == "TRUE"), seen, "{what}: {:?}", end.stages);
        let told = format!("{:?}", fleet.chain(&task).iter().map(|l| l.event.progress.clone()).collect::<Vec<_>>());
        assert!(!told.contains("canary"), "{what}: {told}");
    }
    fleet.finish().await;
}

#[tokio::test]
async fn a_directory_that_is_exchanged_for_a_link_gives_nothing_away() {
    let Some(fleet) = Fleet::with_worker(2, &[]).await else { return };
    let outside = Outside::new(&fleet);
    std::fs::write(outside.dir.join("result.json"), SECRET).unwrap();
    for (what, script) in [
        // Where the task may not do that, the sandbox holds; where it may, the worker does not look there.
        ("the whole directory", "cd /; r=$(dirname $WINDLASS_RESULT); echo 1 > $WINDLASS_RESULT; mv $r $r.away && ln -s OUT $r; true"),
        (
            "the work directory",
            "cd /; mv $WINDLASS_WORKDIR $WINDLASS_WORKDIR.away && ln -s OUT $WINDLASS_WORKDIR; echo 1 > $WINDLASS_RESULT; true",
        ),
        ("the outputs", "rmdir $WINDLASS_OUTPUTS && ln -s OUT $WINDLASS_OUTPUTS; echo 1 > $WINDLASS_RESULT; true"),
        (
            "links everywhere",
            "for n in 1 2 3; do mkdir -p d$n/e; ln -s OUT d$n/e/f; ln -s OUT/inner d$n/g; done; ln -s / root; echo 1 > $WINDLASS_RESULT; true",
        ),
    ] {
        let task = fleet.submit(&Job::bash(script.replace("OUT", outside.path()))).await;
        let end = fleet.end(&task).await;
        assert_eq!((end.reason, end.result.map(|r| r.value)), (Some(Reason::Ok), Some(serde_json::json!(1))), "{what}: {:?}", end.error);
        outside.is_untouched(what);
    }
    fleet.finish().await;
}

/// Makes so many directories, one in another.
fn deep(levels: u32) -> String {
    format!("python3 -c 'import os\nfor n in range({levels}): os.mkdir(\"d\"); os.chdir(\"d\")' && echo made")
}

#[tokio::test]
async fn trees_that_are_hard_to_remove_are_removed() {
    let Some((fleet, worker)) = fleet(&[]).await else { return };
    let outside = Outside::new(&fleet);
    for (what, script) in [
        // More than a worker has descriptors. Landlock looks at every level for each that is made: more would take too long.
        ("two thousand levels", deep(2000)),
        ("many files", "seq 20000 | xargs touch && echo made".into()),
        (
            "no permissions",
            "mkdir -p a/b/c && touch a/b/c/f && chmod 0 a/b/c a/b a && d=$PWD && cd / && chmod 0 $d && chmod 0 $(dirname $d) && echo made"
                .into(),
        ),
        ("strange names", "mkdir -p $'new\\nline/x' $'\\e[31m/y' -- '-rf/z' && mkfifo pipe && echo made".into()),
        ("a full directory beside its own", "mkdir ../more && touch ../more/f && echo made".into()),
    ] {
        let task = fleet.submit(&Job::bash(script).set("/execution/resources/memory", "1GiB")).await;
        let end = fleet.end(&task).await;
        assert_eq!(end.reason, Some(Reason::Ok), "{what}: {:?} {:?}", end.error, end.stderr_tail);
        assert_eq!(fleet.output(&task, &end, LogStream::Stdout).await, b"made\n", "{what}");
        let left = leftovers::gone(PATIENCE, || work(&worker)).await;
        assert!(left.is_empty(), "{what}: {left:?}");
    }
    outside.is_untouched("all of them");
    fleet.finish().await;
}

#[tokio::test]
async fn what_only_root_can_leave_is_removed_too() {
    let Some((fleet, worker)) = fleet(NONE).await else { return };
    if !rustix::process::geteuid().is_root() {
        skip("needs root");
        return fleet.finish().await;
    }
    let outside = Outside::new(&fleet);
    for (what, script) in [
        ("ten thousand levels", deep(10_000).as_str()),
        ("files that cannot be changed", "mkdir -p a/b && touch a/b/f && chattr +i a/b/f && chattr +a a && echo made || echo cannot"),
        ("a mount", "mkdir -p a/m && mount --bind OUT a/m && mount --bind OUT a/m && echo made || echo cannot"),
        ("a mount on a file", "touch f && mount --bind OUT/inner/precious f && echo made || echo cannot"),
        ("a mount on its directory", "cd / && mount --bind OUT $(dirname $WINDLASS_RESULT) && echo made || echo cannot"),
        ("files of somebody else", "mkdir -p a/b && touch a/b/f && chown -R 4242:4242 a && chmod 0 a && echo made || echo cannot"),
        ("a device", "mknod null c 1 3 && echo made || echo cannot"),
    ] {
        let task = fleet.submit(&Job::bash(script.replace("OUT", outside.path()))).await;
        let end = fleet.end(&task).await;
        assert_eq!(end.reason, Some(Reason::Ok), "{what}: {:?}", end.error);
        let made = fleet.output(&task, &end, LogStream::Stdout).await;
        if made != b"made\n" {
            skip(&format!("{what} cannot be made here: {:?}", end.stderr_tail));
        }
        let left = leftovers::gone(PATIENCE, || work(&worker)).await;
        assert!(left.is_empty(), "{what}: {left:?}");
        outside.is_untouched(what);
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(fleet.dir.to_str().unwrap()), "a mount is left");
    fleet.finish().await;
}
