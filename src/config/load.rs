//! Merging of defaults, file and environment, and the report of every mistake.
//!
//! Keys are set one by one, each tried against the types of the whole: one that does not fit is reported with its origin
//! and left out, so that the others are still checked. What the types cannot say is [`validate`]'s, on the merged whole,
//! because there a key may be wrong only beside another one.

use std::path::Path;

use toml::{Table, Value};

use super::{Config, Origin, Origins, validate};

/// `config/worker.toml`: the defaults, and the documentation of every key.
pub const DEFAULTS: &str = include_str!("../../config/worker.toml");

/// Prefix of environment variables that set keys.
const ENV_PREFIX: &str = "WINDLASS__";

/// The variable by which every program finds the container engine; it goes before our own.
pub(crate) const DOCKER_HOST: &str = "DOCKER_HOST";

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

/// The process's environment, without the variables that are not text (none of ours can be).
#[must_use]
pub fn environment() -> Vec<(String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))).collect()
}

/// Reads the configuration: defaults, then `file`, then `env` (pairs of name and value).
///
/// # Errors
/// When the file cannot be read, or any key or value is wrong; every mistake is in the error.
pub fn load(file: Option<&Path>, env: impl IntoIterator<Item = (String, String)>) -> Result<Config, ConfigError> {
    let mut merge = Merge::defaults();
    if let Some(path) = file {
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Read { path: shown.clone(), error })?;
        merge.text(&text, &Origin::File(shown))?;
    }
    merge.environment(env);
    let config = merge.finish()?;
    Ok(Config { source: file.map(Path::to_path_buf), ..config })
}

/// Reads a configuration file's text, without a file and without environment.
///
/// # Errors
/// As [`load`].
pub fn load_text(text: &str) -> Result<Config, ConfigError> {
    let mut merge = Merge::defaults();
    merge.text(text, &Origin::File("text".to_owned()))?;
    merge.finish()
}

struct Merge {
    table: Table,
    origins: Origins,
    mistakes: Vec<String>,
}

impl Merge {
    fn defaults() -> Self {
        Self { table: DEFAULTS.parse().unwrap_or_default(), origins: Origins::default(), mistakes: Vec::new() }
    }

    fn text(&mut self, text: &str, origin: &Origin) -> Result<(), ConfigError> {
        let given: Table = text.parse().map_err(|error| ConfigError::Syntax { path: origin.to_string(), error: Box::new(error) })?;
        self.file(&given, origin);
        Ok(())
    }

    /// Sets every key of `given`.
    fn file(&mut self, given: &Table, origin: &Origin) {
        if let Some(Value::Table(classes)) = given.get("classes") {
            self.keep_classes(classes);
        }
        for (section, value) in given {
            let Value::Table(keys) = value else {
                self.mistakes.push(format!("{section}: not a section; sections are {} ({origin})", sections()));
                continue;
            };
            // Its keys would tell; it has none.
            if keys.is_empty() && !self.table.contains_key(section) {
                self.mistakes.push(format!("{section}: no such section; sections are {} ({origin})", sections()));
            }
            for (key, value) in keys {
                // An empty table is set as a whole, so that the class or tenant is there at all.
                if let (true, Value::Table(named)) = (matches!(section.as_str(), "classes" | "tenants"), value)
                    && !named.is_empty()
                {
                    for (named_key, value) in named {
                        self.key(&[section, key, named_key], value, origin);
                    }
                } else {
                    self.key(&[section, key], value, origin);
                }
            }
        }
    }

    /// A file that names classes names all that its worker serves: else none could serve `gpu` alone.
    fn keep_classes(&mut self, named: &Table) {
        if let Some(Value::Table(classes)) = self.table.get_mut("classes") {
            classes.retain(|name, _| named.contains_key(name));
        }
    }

    fn key(&mut self, path: &[&str], value: &Value, origin: &Origin) {
        match try_set(&self.table, path, value) {
            Ok(table) => self.accept(table, path, value, origin),
            Err(error) => self.mistakes.push(format!("{} = {value}: {} ({origin})", path.join("."), one_line(&error))),
        }
    }

    fn accept(&mut self, table: Table, path: &[&str], value: &Value, origin: &Origin) {
        self.table = table;
        self.origins.note(&path.join("."), value, origin);
    }

    fn environment(&mut self, env: impl IntoIterator<Item = (String, String)>) {
        let mut engine = None;
        for (name, text) in env {
            let Some(rest) = name.strip_prefix(ENV_PREFIX) else {
                if name == DOCKER_HOST && !text.is_empty() {
                    engine = Some(text);
                }
                continue;
            };
            let lower = rest.to_ascii_lowercase();
            let path: Vec<&str> = lower.split("__").collect();
            let origin = Origin::Environment(name.clone());
            let mut first_error = None;
            let fits = readings(&text).into_iter().find_map(|value| match try_set(&self.table, &path, &value) {
                Ok(table) => Some((table, value)),
                Err(error) => {
                    first_error.get_or_insert(error);
                    None
                }
            });
            match (fits, first_error) {
                (Some((table, value)), _) => self.accept(table, &path, &value, &origin),
                (None, error) => {
                    let error = one_line(&error.unwrap_or_default());
                    self.mistakes.push(format!("{} = {text:?}: {error} ({origin})", path.join(".")));
                }
            }
        }
        if let Some(host) = engine {
            self.key(&["docker", "host"], &Value::String(host), &Origin::Environment(DOCKER_HOST.to_owned()));
        }
    }

    fn finish(mut self) -> Result<Config, ConfigError> {
        let config = match Value::Table(self.table).try_into::<Config>() {
            Ok(config) => config,
            Err(error) => {
                if self.mistakes.is_empty() {
                    self.mistakes.push(error.to_string());
                }
                return Err(ConfigError::Mistakes(self.mistakes));
            }
        };
        for mistake in validate::check(&config) {
            // A key inside a table may have been set with the whole table.
            let origin = self.origins.around(&mistake.key);
            self.mistakes.push(format!("{} {} ({origin})", mistake.key, mistake.text));
        }
        if self.mistakes.is_empty() { Ok(Config { origins: self.origins, ..config }) } else { Err(ConfigError::Mistakes(self.mistakes)) }
    }
}

fn sections() -> String {
    let defaults: Table = DEFAULTS.parse().unwrap_or_default();
    defaults.keys().map(|k| format!("[{k}]")).collect::<Vec<_>>().join(" ")
}

/// A copy of the whole with one key set, when that is still a configuration by its types.
fn try_set(table: &Table, path: &[&str], value: &Value) -> Result<Table, String> {
    let mut copy = table.clone();
    let Some((last, parents)) = path.split_last() else { return Ok(copy) };
    let mut here = &mut copy;
    for parent in parents {
        let entry = here.entry((*parent).to_owned()).or_insert_with(|| Value::Table(Table::new()));
        let Value::Table(next) = entry else { return Err(format!("{parent} is not a section")) };
        here = next;
    }
    here.insert((*last).to_owned(), value.clone());
    match Value::Table(copy.clone()).try_into::<Config>() {
        Ok(_) => Ok(copy),
        Err(error) => Err(error.message().to_owned()),
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The values that a text may stand for: TOML first, so that numbers, booleans and lists can be written, then the text itself.
fn readings(text: &str) -> Vec<Value> {
    let toml = format!("x = {text}").parse::<Table>().ok().filter(|table| table.len() == 1);
    let toml = toml.and_then(|mut table| table.remove("x"));
    toml.into_iter().chain([Value::String(text.to_owned())]).collect()
}
