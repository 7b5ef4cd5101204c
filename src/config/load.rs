//! Merging of defaults, file and environment, and the report of every mistake.

use std::path::Path;

use toml::{Table, Value};

use super::{Config, validate};

/// `config/worker.toml`: the defaults, and the documentation of every key.
pub const DEFAULTS: &str = include_str!("../../config/worker.toml");

/// Prefix of environment variables that set keys.
const ENV_PREFIX: &str = "WINDLASS__";

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read configuration {path}: {error}")]
    Read {
        /// As given.
        path: String,
        /// The system's answer.
        error: std::io::Error,
    },
    /// The file is not TOML.
    #[error("configuration {path} is not TOML: {error}")]
    Syntax {
        /// As given.
        path: String,
        /// Where and what.
        error: Box<toml::de::Error>,
    },
    /// Keys or values that do not exist or do not fit; all of them.
    #[error("{} in the configuration:\n{}", plural(.0.len()), .0.iter().map(|m| format!("  {m}")).collect::<Vec<_>>().join("\n"))]
    Mistakes(Vec<String>),
}

fn plural(n: usize) -> String {
    if n == 1 { "1 mistake".to_owned() } else { format!("{n} mistakes") }
}

/// Reads the configuration: defaults, then `file`, then `env` (pairs of name and value).
///
/// # Errors
/// When the file cannot be read, or any key or value is wrong; every mistake is in the error.
pub fn load(file: Option<&Path>, env: impl IntoIterator<Item = (String, String)>) -> Result<Config, ConfigError> {
    let mut mistakes = Vec::new();
    let mut table = defaults();
    if let Some(path) = file {
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Read { path: shown.clone(), error })?;
        let given: Table = text.parse().map_err(|error| ConfigError::Syntax { path: shown.clone(), error: Box::new(error) })?;
        overlay(&mut table, &given, &shown, &mut mistakes);
    }
    overlay_env(&mut table, env, &mut mistakes);
    match Value::Table(table).try_into::<Config>() {
        Ok(config) => {
            mistakes.extend(validate::check(&config));
            if mistakes.is_empty() { Ok(config) } else { Err(ConfigError::Mistakes(mistakes)) }
        }
        Err(error) => {
            if mistakes.is_empty() {
                mistakes.push(error.to_string());
            }
            Err(ConfigError::Mistakes(mistakes))
        }
    }
}

fn defaults() -> Table {
    DEFAULTS.parse().unwrap_or_default()
}

/// Sets every leaf of `given` in `table`; a leaf that does not fit is reported and left out, so that the rest is checked too.
fn overlay(table: &mut Table, given: &Table, origin: &str, mistakes: &mut Vec<String>) {
    for (section, value) in given {
        let Value::Table(keys) = value else {
            mistakes.push(format!("{section}: not a section; sections are {} ({origin})", sections()));
            continue;
        };
        for (key, value) in keys {
            let mut paths = vec![(vec![section.clone(), key.clone()], value)];
            if section == "classes"
                && let Value::Table(class) = value
            {
                paths = class.iter().map(|(k, v)| (vec![section.clone(), key.clone(), k.clone()], v)).collect();
                if paths.is_empty() {
                    paths.push((vec![section.clone(), key.clone()], value));
                }
            }
            for (path, value) in paths {
                if let Err(error) = try_set(table, &path, value) {
                    mistakes.push(format!("{} = {value}: {error} ({origin})", path.join(".")));
                }
            }
        }
    }
}

fn sections() -> String {
    defaults().keys().map(|k| format!("[{k}]")).collect::<Vec<_>>().join(" ")
}

/// Tries one key in a copy of the whole, and keeps it when the copy is still a configuration.
fn try_set(table: &mut Table, path: &[String], value: &Value) -> Result<(), String> {
    let mut copy = table.clone();
    let Some((last, parents)) = path.split_last() else { return Ok(()) };
    let mut here = &mut copy;
    for parent in parents {
        let entry = here.entry(parent.clone()).or_insert_with(|| Value::Table(Table::new()));
        let Value::Table(next) = entry else { return Err("not a section".to_owned()) };
        here = next;
    }
    here.insert(last.clone(), value.clone());
    match Value::Table(copy.clone()).try_into::<Config>() {
        Ok(_) => {
            *table = copy;
            Ok(())
        }
        Err(error) => Err(error.message().to_owned()),
    }
}

fn overlay_env(table: &mut Table, env: impl IntoIterator<Item = (String, String)>, mistakes: &mut Vec<String>) {
    for (name, text) in env {
        let Some(rest) = name.strip_prefix(ENV_PREFIX) else { continue };
        let path: Vec<String> = rest.split("__").map(str::to_ascii_lowercase).collect();
        let readings = readings(&text);
        let mut error = None;
        for value in &readings {
            match try_set(table, &path, value) {
                Ok(()) => {
                    error = None;
                    break;
                }
                Err(e) => error = error.or(Some(e)),
            }
        }
        if let Some(error) = error {
            mistakes.push(format!("{} = {text:?}: {error} (environment {name})", path.join(".")));
        }
    }
}

/// The values that a text may stand for: TOML first, so that numbers, booleans and lists can be written, then the text itself.
fn readings(text: &str) -> Vec<Value> {
    let mut readings = Vec::new();
    if let Ok(table) = format!("x = {text}").parse::<Table>()
        && let Some(value) = table.get("x")
    {
        readings.push(value.clone());
        if let Value::Integer(n) = value
            && let Ok(n) = i32::try_from(*n)
        {
            readings.push(Value::Float(f64::from(n)));
        }
    }
    readings.push(Value::String(text.to_owned()));
    readings
}
