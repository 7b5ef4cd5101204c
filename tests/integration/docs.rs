//! The documents keep their word: what they tell a reader to type works in that order, what they show is what appears, what they
//! name exists, and where they lead is something.
//!
//! In Markdown, right before a block, an invisible comment can say:
//!
//! ```text
//! <!-- not run: why -->     it needs another machine, other rights or a network; listed by the test
//! <!-- first terminal -->   it goes into the first terminal, in place of what runs there
//! <!-- until: TEXT -->      it goes on until Ctrl-C; pressed once it has shown TEXT
//! <!-- snippet: NAME.py --> a program: put into that file and run
//! ```
//! All other `sh` blocks of a document are run by one shell, in a fresh directory, with `windlass dev` in the first terminal.
//! A `text` block right below one is what it prints. `console` blocks are sessions to look at, and are not run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::process::Stdio;

use clap::CommandFactory as _;
use futures_util::StreamExt as _;
use windlass::cli::Cli;

use crate::harness::server::skip;
use crate::harness::watchdog::{MARK, watchdog};
use crate::harness::{PATIENCE, Server, leftovers};

#[path = "docs/markdown.rs"]
mod markdown;
#[path = "docs/named.rs"]
mod named;
#[path = "docs/session.rs"]
mod session;
#[path = "docs/shown.rs"]
mod shown;

use markdown::{Document, root};

/// Documents whose commands are run; others are checked for links and names only.
fn is_for_readers(document: &Document) -> bool {
    let top = document.path.components().next().and_then(|c| c.as_os_str().to_str()).unwrap_or_default();
    ["README.md", "SECURITY.md", "docs", "examples"].contains(&top)
}

#[tokio::test]
async fn every_command_of_a_document_runs_and_prints_what_is_shown() {
    let Some(nats_server) = Server::binary() else { return };
    let documents: Vec<Document> = markdown::all().into_iter().filter(is_for_readers).collect();
    for document in &documents {
        for block in document.blocks.iter().filter(|b| b.language == "sh" || b.language == "python") {
            if let Some(why) = block.remarked("not run") {
                println!("not run: {}:{}: {why}", document.path.display(), block.line);
            }
        }
    }
    let python = if documents.iter().any(needs_python) { super::python::python().await } else { None };
    let runs = documents.iter().filter(|d| !session::steps(d).is_empty()).enumerate().map(|(n, document)| {
        let (nats_server, python) = (nats_server.clone(), python.clone());
        async move {
            if needs_python(document) && python.is_none() {
                return Vec::new();
            }
            session::follow(&format!("w{}-document-{n}", std::process::id()), document, &nats_server, python.as_deref()).await
        }
    });
    // A few at a time: each has a server, a worker and a disk that flushes.
    let wrong: Vec<String> = futures_util::stream::iter(runs).buffer_unordered(4).collect::<Vec<_>>().await.concat();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn needs_python(document: &Document) -> bool {
    document.blocks.iter().any(|block| block.language == "python" && session::is_run(block))
}

#[tokio::test]
async fn the_picture_shows_what_the_demo_prints() {
    let Some(nats_server) = Server::binary() else { return };
    let name = "picture";
    let dir = watchdog().dir().join(name);
    std::fs::create_dir_all(&dir).unwrap();
    std::os::unix::fs::symlink(nats_server, dir.join("nats-server")).unwrap();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(dir.clone()).chain(std::env::split_paths(&path))).unwrap();
    let mut picture = tokio::process::Command::new("python3");
    picture.arg(root().join("deploy/picture.py")).arg("--check").env("PATH", path).env("TMPDIR", &dir).env_remove("NATS_VERSION");
    picture.env("WINDLASS_DEMO_PROGRAM", env!("CARGO_BIN_EXE_windlass")).env(MARK, watchdog().mark()).kill_on_drop(true);
    let cgroup = leftovers::cgroup_place(&format!("windlass-test-w{}-{name}", std::process::id()));
    picture.env("WINDLASS__CGROUP__PARENT", &cgroup).stdin(Stdio::null());
    let output = match tokio::time::timeout(PATIENCE * 2, picture.output()).await.expect("the demo ends") {
        Ok(output) => output,
        Err(error) => return skip(&format!("no python3: {error}")),
    };
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    for path in leftovers::cgroup_parents(&cgroup) {
        std::fs::remove_dir(path).unwrap();
    }
}

#[test]
fn every_link_of_a_document_leads_somewhere() {
    let documents = markdown::all();
    let anchors: BTreeMap<&Path, BTreeSet<&str>> =
        documents.iter().map(|d| (d.path.as_path(), d.anchors.iter().map(String::as_str).collect())).collect();
    let mut wrong = Vec::new();
    for document in &documents {
        for (line, target) in document.links.iter().filter(|(_, target)| !target.contains("://") && !target.starts_with("mailto:")) {
            let (file, anchor) = target.split_once('#').map_or((target.as_str(), None), |(file, anchor)| (file, Some(anchor)));
            let path = if file.is_empty() { document.path.clone() } else { normalised(&document.dir().join(file)) };
            let exists = root().join(&path).exists();
            let known = anchor.is_none_or(|anchor| anchors.get(path.as_path()).is_some_and(|known| known.contains(anchor)));
            if !exists || !known {
                wrong.push(format!("{}:{line}: {target}", document.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "these links lead nowhere:\n{}", wrong.join("\n"));
}

/// Without `..`; a link that leaves the repository stays as it is, and is not found.
fn normalised(path: &Path) -> PathBuf {
    let mut parts = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir if parts.file_name().is_some() => {
                parts.pop();
            }
            Component::CurDir => {}
            part @ (Component::Normal(_) | Component::RootDir | Component::Prefix(_) | Component::ParentDir) => parts.push(part),
        }
    }
    parts
}

#[test]
fn every_verb_and_option_that_a_document_names_exists() {
    let cli = Cli::command();
    let wrong: Vec<String> = markdown::all().iter().flat_map(|document| named::unknown(&cli, document)).collect();
    assert!(wrong.is_empty(), "these do not exist:\n{}", wrong.join("\n"));
}

#[test]
fn every_verb_is_in_the_reference_of_the_command_line() {
    let cli = Cli::command();
    let documents = markdown::all();
    let reference = documents.iter().find(|d| d.path == Path::new("docs/cli.md")).expect("docs/cli.md");
    let topics: Vec<&str> =
        reference.spans.iter().filter_map(|span| span.topic.as_deref()).chain(reference.spans.iter().map(|s| s.text.as_str())).collect();
    let verbs = cli.get_subcommands().filter(|verb| !verb.is_hide_set()).map(clap::Command::get_name);
    let missing: Vec<&str> =
        verbs.filter(|verb| !topics.iter().any(|t| t.split_whitespace().nth(1) == Some(verb) && t.starts_with("windlass "))).collect();
    assert!(missing.is_empty(), "docs/cli.md says nothing about {missing:?}");
}
