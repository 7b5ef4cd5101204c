//! What the program says of itself: its configuration, schemas, completions, manual pages, and which build it is.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::harness::watchdog;

const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");

/// The binary, with nothing of this environment.
fn windlass(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_windlass"));
    command.args(args).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
}

fn run(mut command: Command) -> Output {
    command.output().expect("it starts")
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn json_lines(output: &Output) -> Vec<Value> {
    text(output).lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e} in {line:?}"))).collect()
}

fn dir(name: &str) -> PathBuf {
    let dir = watchdog::watchdog().dir().join(name);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

#[test]
fn config_show_says_who_set_each_key() {
    let file = dir("config-show").join("worker.toml");
    std::fs::write(&file, "[bus]\ncreds = \"/run/windlass.creds\"\nprefix = \"from-the-file\"\n[classes.gpu]\nslots = 2\n").unwrap();
    let file = file.to_str().unwrap();
    let mut command = windlass(&["config", "show", "-o", "json", "--config", file, "--prefix", "from-an-option"]);
    command.env("NATS_URL", "nats://ann:hunter2@a,tls://token@b").env("WINDLASS__CLASSES__GPU__PIDS", "7");
    let output = run(command);
    assert!(output.status.success(), "{output:?}");
    assert!(!text(&output).contains("hunter2") && !text(&output).contains("token"), "a password is shown");
    let lines = json_lines(&output);
    for (key, value, source, origin) in [
        ("bus.server", json!("nats://ann:***@a,tls://***@b"), "environment", json!("NATS_URL")),
        ("bus.creds", json!("/run/windlass.creds"), "file", json!(file)),
        ("bus.prefix", json!("from-an-option"), "option", json!("--prefix")),
        ("classes.gpu.slots", json!(2), "file", json!(file)),
        ("classes.gpu.pids", json!(7), "environment", json!("WINDLASS__CLASSES__GPU__PIDS")),
        ("classes.gpu.cpus", json!(4.0), "default", Value::Null),
        ("logs.window", json!(16), "default", Value::Null),
    ] {
        let own: Vec<_> = lines.iter().filter(|line| line["key"] == key).collect();
        assert_eq!(own, [&json!({"key": key, "value": value, "source": source, "origin": origin})], "{key}");
    }
    assert!(!lines.iter().any(|line| line["key"].as_str().unwrap().starts_with("classes.cpu_short")), "the file names all classes");
}

#[test]
fn config_show_can_be_asked_for_a_part_and_reports_mistakes() {
    let output = run(windlass(&["config", "show", "bus", "-o", "json"]));
    let keys: Vec<_> = json_lines(&output).iter().map(|line| line["key"].as_str().unwrap().to_owned()).collect();
    assert_eq!(keys, ["bus.creds", "bus.ping_interval_s", "bus.prefix", "bus.request_timeout_s", "bus.server"]);
    assert_eq!(run(windlass(&["config", "show", "bu"])).status.code(), Some(3), "no key begins so");
    let mut mistaken = windlass(&["config", "show"]);
    mistaken.env("WINDLASS__LOGS__WINDOW", "0");
    let output = run(mistaken);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("logs.window = 0"), "{output:?}");
}

#[test]
fn a_server_that_is_not_there_is_named_without_its_password() {
    let output = run(windlass(&["status", "x", "--server", "nats://ann:hunter2@127.0.0.1:1"]));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(6) && said.contains("nats://ann:***@127.0.0.1:1") && !said.contains("hunter2"), "{said}");
}

#[test]
fn each_schema_is_printed_and_is_the_one_of_the_repository() {
    let listed = json_lines(&run(windlass(&["schema", "-o", "json"])));
    let names: BTreeSet<String> = listed.iter().map(|line| line["name"].as_str().unwrap().to_owned()).collect();
    assert!(["assignment", "event", "log_chunk", "config"].iter().all(|name| names.contains(*name)), "{names:?}");
    let document = text(&run(windlass(&["schema", "asyncapi"])));
    assert_eq!(document, std::fs::read_to_string(Path::new(REPOSITORY).join("schemas/asyncapi.yaml")).unwrap());
    for name in names.iter().filter(|name| *name != "asyncapi") {
        let output = run(windlass(&["schema", name]));
        let path = Path::new(REPOSITORY).join(format!("schemas/{name}.schema.json"));
        assert_eq!(text(&output), std::fs::read_to_string(path).unwrap(), "{name}");
        assert_eq!(json_lines(&run(windlass(&["schema", name, "-o", "json"]))).len(), 1, "{name} on one line");
    }
    assert_eq!(run(windlass(&["schema", "nothing"])).status.code(), Some(3));
}

#[test]
fn what_is_generated_is_written_and_drift_is_named() {
    assert!(run(windlass(&["schema", "--check", REPOSITORY])).status.success(), "run `make schemas`");
    let copy = dir("generated");
    let output = run(windlass(&["schema", "--write", copy.to_str().unwrap()]));
    assert!(output.status.success(), "{output:?}");
    assert!(run(windlass(&["schema", "--check", copy.to_str().unwrap()])).status.success());
    let page = copy.join("docs/configuration.md");
    let stale = std::fs::read_to_string(&page).unwrap().replace("Largest chunk.", "Smallest chunk.");
    std::fs::write(&page, stale).unwrap();
    let output = run(windlass(&["schema", "--check", copy.to_str().unwrap()]));
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("docs/configuration.md"), "{output:?}");
}

/// The verbs that people see in `--help`.
fn verbs() -> Vec<String> {
    let help = text(&run(windlass(&["--help"])));
    let list = help.split("Commands:\n").nth(1).expect("a list of verbs").split("\n\n").next().expect("an end");
    let verbs = list.lines().filter_map(|line| line.strip_prefix("  ").filter(|line| !line.starts_with(' ')));
    verbs.filter_map(|line| line.split_whitespace().next()).filter(|verb| *verb != "help").map(str::to_owned).collect()
}

#[test]
fn completions_offer_every_verb_and_nothing_hidden() {
    let verbs = verbs();
    assert!(verbs.len() > 10 && verbs.contains(&"plan".to_owned()), "{verbs:?}");
    for shell in ["bash", "zsh", "fish"] {
        let script = text(&run(windlass(&["completions", shell])));
        for verb in &verbs {
            assert!(script.contains(verb.as_str()), "{shell}: {verb}");
        }
        assert!(!script.contains("supervisor") && !script.contains("guard"), "{shell} offers what is not for people");
    }
    // As the shell does it: words, the number of the one that is being written, and the function for the command.
    let ask = "source <(\"$0\" completions bash); COMP_WORDS=(windlass pl); COMP_CWORD=1; _windlass windlass pl windlass; echo \"${COMPREPLY[@]}\"";
    let mut bash = Command::new("bash");
    bash.args(["-c", ask, env!("CARGO_BIN_EXE_windlass")]);
    let output = run(bash);
    assert_eq!(text(&output), "plan\n", "{output:?}");
}

#[test]
fn every_verb_has_a_manual_page() {
    let dir = dir("man");
    assert!(run(windlass(&["man", dir.to_str().unwrap()])).status.success());
    for verb in verbs() {
        let page = std::fs::read_to_string(dir.join(format!("windlass-{verb}.1"))).unwrap_or_else(|e| panic!("{verb}: {e}"));
        assert!(page.contains(&format!(".TH windlass-{verb} 1  \"windlass {}\" Windlass", env!("CARGO_PKG_VERSION"))), "{page}");
    }
    let plan = std::fs::read_to_string(dir.join("windlass-plan.1")).unwrap();
    assert!(plan.contains("\\-\\-encoding"), "{plan}");
    assert!(dir.join("windlass-config-show.1").exists() && !dir.join("windlass-supervisor.1").exists());
    assert!(text(&run(windlass(&["man"]))).contains(".TH windlass 1"));
}

#[test]
fn the_version_says_which_build_it_is() {
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(text(&run(windlass(&["-V"]))), format!("windlass {version}\n"));
    let long = text(&run(windlass(&["--version"])));
    let lines: Vec<_> = long.lines().collect();
    assert_eq!(lines[0], format!("windlass {version}"));
    let keys: Vec<_> = lines[1..].iter().map(|line| line.split_once(": ").unwrap_or_else(|| panic!("{long}"))).collect();
    assert_eq!(keys.iter().map(|(key, _)| *key).collect::<Vec<_>>(), ["commit", "rustc", "target", "profile", "features"]);
    assert!(keys[1].1.starts_with("1.") && keys[2].1.contains("linux"), "{long}");
    // Where this is a checkout and git may be asked, it knows the commit. Which one is HEAD may have changed since the build.
    let git = |args: &[&str]| Command::new("git").args(["-C", REPOSITORY]).args(args).output().is_ok_and(|o| o.status.success());
    if Path::new(REPOSITORY).join(".git").exists() && git(&["rev-parse", "HEAD"]) {
        assert!(git(&["cat-file", "-e", &format!("{}^{{commit}}", keys[0].1)]), "{long}");
    }
}

/// The build script alone, with a repository of the test's making.
fn commit_of(script: &Path, root: &Path, named: Option<&str>) -> String {
    let mut command = Command::new(script);
    command.env_clear().env("CARGO_MANIFEST_DIR", root).env("RUSTC", "no-such-rustc").envs(named.map(|name| ("WINDLASS_COMMIT", name)));
    let output = run(command);
    assert!(output.status.success(), "{output:?}");
    let lines = text(&output);
    let line = lines.lines().find_map(|line| line.strip_prefix("cargo::rustc-env=WINDLASS_BUILD_COMMIT=")).expect("a commit");
    line.to_owned()
}

#[test]
fn the_commit_is_found_in_every_kind_of_checkout_and_in_no_archive() {
    let dir = dir("commit");
    let script = dir.join("build");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let built = Command::new(rustc).args(["--edition", "2024", "-o"]).arg(&script).arg(Path::new(REPOSITORY).join("build.rs")).output();
    let Ok(built) = built else {
        assert!(std::env::var_os("CI").is_none(), "there is no rustc");
        return println!("SKIPPED: there is no rustc");
    };
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let [one, two] = ["1".repeat(40), "2".repeat(40)];
    let write = |path: &str, text: &str| {
        let path = dir.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    // An archive unpacked within somebody else's repository.
    write("outer/.git/HEAD", &format!("{one}\n"));
    std::fs::create_dir_all(dir.join("outer/archive")).unwrap();
    assert_eq!(commit_of(&script, &dir.join("outer/archive"), None), "unknown");
    assert_eq!(commit_of(&script, &dir.join("outer/archive"), Some("v1.2-rc3")), "v1.2-rc3");
    assert_eq!(commit_of(&script, &dir.join("outer/archive"), Some("a b")), "unknown", "what could break a line is not taken");
    assert_eq!(commit_of(&script, &dir.join("outer"), None), one[..12], "HEAD without a branch");
    write("plain/.git/HEAD", "ref: refs/heads/main\n");
    write("plain/.git/packed-refs", &format!("# pack-refs with: peeled\n{two} refs/heads/main\n{one} refs/heads/main2\n"));
    assert_eq!(commit_of(&script, &dir.join("plain"), None), two[..12], "a packed branch");
    write("plain/.git/refs/heads/main", &format!("{one}\n"));
    assert_eq!(commit_of(&script, &dir.join("plain"), None), one[..12], "a branch with a file of its own goes before");
    write("plain/.git/worktrees/w/HEAD", "ref: refs/heads/side\n");
    write("plain/.git/worktrees/w/commondir", "../..\n");
    write("plain/.git/refs/heads/side", &format!("{two}\n"));
    write("tree/.git", &format!("gitdir: {}\n", dir.join("plain/.git/worktrees/w").display()));
    assert_eq!(commit_of(&script, &dir.join("tree"), None), two[..12], "a worktree");
}
