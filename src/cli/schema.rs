//! `windlass schema`: the JSON Schemas and the AsyncAPI document, shown; and, for those who change the types, all that is generated from them, written
//! into the repository or compared with what is there.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::output::{Style, Table};
use super::{Exit, Failed, Output};
use crate::config::reference;
use crate::wire::schema;

/// `windlass schema`
#[derive(Debug, Clone, Args)]
pub struct SchemaArgs {
    /// Which [default: list them]
    pub name: Option<String>,
    /// Write everything that is generated from the types below this directory, the repository
    #[arg(long, value_name = "DIR", hide = true, conflicts_with = "name")]
    pub write: Option<PathBuf>,
    /// Write nothing; fail when a file below this directory is not what would be written
    #[arg(long, value_name = "DIR", hide = true, conflicts_with_all = ["name", "write"])]
    pub check: Option<PathBuf>,
}

/// The document that is YAML, not a schema.
const ASYNCAPI: &str = "asyncapi";
const ABOUT_ASYNCAPI: &str = "All subjects, streams and messages, as an AsyncAPI 3.0 document (YAML)";

/// Runs the verb.
pub(super) fn run(args: &SchemaArgs, output: &Output) -> Result<Exit, Failed> {
    match args {
        SchemaArgs { name: Some(name), .. } => show(name, output),
        SchemaArgs { write: Some(dir), .. } => write(dir, output),
        SchemaArgs { check: Some(dir), .. } => check(dir),
        SchemaArgs { name: None, write: None, check: None } => list(output),
    }
}

fn list(output: &Output) -> Result<Exit, Failed> {
    let mut table = Table::new(&["NAME", "WHAT", "ID"]);
    for (name, schema) in schema::all() {
        let what = schema["description"].as_str().unwrap_or_default();
        if output.is_json() {
            output.json(&json!({"name": name, "description": what, "id": schema["$id"]}))?;
        }
        table.row(vec![(name.to_owned(), Style::Plain), (what.to_owned(), Style::Plain), (schema::uri(name), Style::Dim)]);
    }
    if output.is_json() {
        output.json(&json!({"name": ASYNCAPI, "description": ABOUT_ASYNCAPI, "id": null}))?;
    } else {
        table.row([ASYNCAPI, ABOUT_ASYNCAPI, ""].map(|cell| (cell.to_owned(), Style::Plain)).to_vec());
        output.table(&table)?;
    }
    Ok(Exit::Done)
}

fn show(name: &str, output: &Output) -> Result<Exit, Failed> {
    if name == ASYNCAPI {
        output.line(schema::asyncapi::text().trim_end())?;
        return Ok(Exit::Done);
    }
    let all = schema::all();
    let Some((_, schema)) = all.iter().find(|(known, _)| *known == name) else {
        let names: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
        return Err(Failed::new(Exit::NotFound, format!("{name}: no such schema; there are {}, {ASYNCAPI}", names.join(", "))));
    };
    if output.is_json() {
        output.json(schema)?;
    } else {
        output.line(&format!("{schema:#}"))?;
    }
    Ok(Exit::Done)
}

/// Every generated file of the repository, with its text.
fn generated() -> Vec<(PathBuf, String)> {
    let schemas = schema::files().into_iter().map(|(name, text)| (Path::new("schemas").join(name), text));
    schemas.chain([(PathBuf::from("docs/configuration.md"), reference())]).collect()
}

fn write(dir: &Path, output: &Output) -> Result<Exit, Failed> {
    for (path, text) in generated() {
        let path = dir.join(path);
        let written = path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(&path, text));
        written.map_err(|e| Failed::new(Exit::Error, format!("cannot write {}: {e}", path.display())))?;
        output.line(&path.display().to_string())?;
    }
    Ok(Exit::Done)
}

fn check(dir: &Path) -> Result<Exit, Failed> {
    let mut stale = Vec::new();
    for (path, text) in generated() {
        if std::fs::read_to_string(dir.join(&path)).ok().as_deref() != Some(text.as_str()) {
            stale.push(path.display().to_string());
        }
    }
    if stale.is_empty() {
        return Ok(Exit::Done);
    }
    Err(Failed::new(Exit::Error, format!("not what the types say: {}", stale.join(", "))).hint("run `make schemas` and commit the result"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_has_what_the_types_say() {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
        for (path, text) in generated() {
            let there = std::fs::read_to_string(repository.join(&path)).unwrap_or_default();
            assert!(there == text, "{} is stale: run `make schemas`", path.display());
        }
    }
}
