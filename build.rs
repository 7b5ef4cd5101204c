//! Facts of this build for `windlass --version` (`src/version.rs`): commit, compiler, target, features.
//!
//! The commit is read from the checkout's own files: git need not be there, and a repository around an unpacked archive is
//! not taken for ours. It is looked for again when HEAD moves.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=WINDLASS_COMMIT");
    fact("COMMIT", &named_commit().or_else(commit).unwrap_or_else(|| "unknown".to_owned()));
    fact("RUSTC", &rustc().unwrap_or_else(|| "unknown".to_owned()));
    fact("TARGET", &env::var("TARGET").unwrap_or_default());
    fact("PROFILE", &env::var("PROFILE").unwrap_or_default());
    fact("FEATURES", &features());
}

fn fact(name: &str, value: &str) {
    println!("cargo::rustc-env=WINDLASS_BUILD_{name}={value}");
}

/// For builds without a checkout, such as those of packages and images.
fn named_commit() -> Option<String> {
    let named = env::var("WINDLASS_COMMIT").ok()?;
    let good = (1..=64).contains(&named.len()) && named.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    good.then_some(named)
}

fn commit() -> Option<String> {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR")?);
    let dir = git_dir(&root.join(".git"))?;
    let common = match fs::read_to_string(dir.join("commondir")) {
        Ok(path) => dir.join(path.trim()),
        Err(_) => dir.clone(),
    };
    let head = fs::read_to_string(dir.join("HEAD")).ok()?;
    watch(&dir.join("HEAD"));
    let hash = match head.trim().strip_prefix("ref: ") {
        None => head.trim().to_owned(),
        Some(name) => branch(&dir, &common, name)?,
    };
    (hash.len() >= 40 && hash.bytes().all(|b| b.is_ascii_hexdigit())).then(|| hash[..12].to_owned())
}

/// `.git` is the directory, or a file that says where it is.
fn git_dir(path: &Path) -> Option<PathBuf> {
    if path.is_dir() {
        return Some(path.to_owned());
    }
    let text = fs::read_to_string(path).ok()?;
    Some(path.parent()?.join(text.trim().strip_prefix("gitdir: ")?))
}

/// What a branch points to: a file of its own, or a line among the packed ones.
fn branch(dir: &Path, common: &Path, name: &str) -> Option<String> {
    let own = common.join(name);
    if let Ok(hash) = fs::read_to_string(&own) {
        watch(&own);
        return Some(hash.trim().to_owned());
    }
    // The next commit makes the file, and a line in this log.
    watch(&dir.join("logs/HEAD"));
    watch(&common.join("packed-refs"));
    let packed = fs::read_to_string(common.join("packed-refs")).ok()?;
    packed.lines().find_map(|line| line.split_once(' ').filter(|(_, known)| *known == name)).map(|(hash, _)| hash.to_owned())
}

/// A path that is not there would be a reason to build every time.
fn watch(path: &Path) {
    if path.exists() {
        println!("cargo::rerun-if-changed={}", path.display());
    }
}

fn rustc() -> Option<String> {
    let output = Command::new(env::var_os("RUSTC")?).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().trim_start_matches("rustc ").to_owned())
}

fn features() -> String {
    let names = env::vars().filter_map(|(name, _)| Some(name.strip_prefix("CARGO_FEATURE_")?.to_lowercase().replace('_', "-")));
    let mut names: Vec<String> = names.filter(|name| name != "default").collect();
    names.sort();
    if names.is_empty() { "none".to_owned() } else { names.join(" ") }
}
