//! `windlass schema` (hidden): the JSON Schemas and the AsyncAPI document, written, or compared with what is there.

use super::{Exit, Failed, Output};
use crate::wire::schema;
use clap::Args;
use std::path::PathBuf;

/// `windlass schema`
#[derive(Debug, Clone, Args)]
pub struct SchemaArgs {
    /// Where to
    pub dir: PathBuf,
    /// Write nothing; fail when a file is not what would be written
    #[arg(long)]
    pub check: bool,
}

/// Runs the verb.
pub(super) fn run(args: &SchemaArgs, output: &Output) -> Result<Exit, Failed> {
    let mut stale = Vec::new();
    for (name, text) in schema::files() {
        let path = args.dir.join(name);
        if args.check {
            if std::fs::read_to_string(&path).ok().as_deref() != Some(text.as_str()) {
                stale.push(path.display().to_string());
            }
            continue;
        }
        let written = std::fs::create_dir_all(&args.dir).and_then(|()| std::fs::write(&path, text));
        written.map_err(|e| Failed::new(Exit::Error, format!("cannot write {}: {e}", path.display())))?;
        output.line(&path.display().to_string())?;
    }
    if stale.is_empty() {
        return Ok(Exit::Done);
    }
    Err(Failed::new(Exit::Error, format!("not what the types say: {}", stale.join(", "))).hint("run `make schemas` and commit the result"))
}
