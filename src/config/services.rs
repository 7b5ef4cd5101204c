//! `config/services.toml`: the long-lived services of an environment, read as strictly as the worker's configuration.
//!
//! The embedded file has none. One that is given replaces it. Keys are read one by one, so that every mistake is reported
//! at once, with its key, its value and what is allowed.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::ConfigError;
use crate::task::{ByteSize, HealthCheck, ImageRef, PullPolicy};

mod check;
mod port;
mod volume;

pub use port::Port;
pub use volume::{Volume, VolumeSource};

/// The default, and the documentation of every key.
pub const DEFAULTS: &str = include_str!("../../config/services.toml");

/// The variable that names a file in its place.
pub const VARIABLE: &str = "WINDLASS_SERVICES_CONFIG";

/// The long-lived services of an environment.
#[derive(Debug, Clone, PartialEq)]
pub struct Services {
    /// Name of the environment.
    pub environment: String,
    /// The services, each after those that it depends on.
    pub services: Vec<(String, Service)>,
}

/// `[services.<name>]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Image.
    pub image: String,
    /// When it is pulled.
    #[serde(default = "missing")]
    pub pull: PullPolicy,
    /// Entry point; the image's unless given.
    #[serde(default)]
    pub entrypoint: Option<Vec<String>>,
    /// Command; the image's unless given.
    #[serde(default)]
    pub command: Option<Vec<String>>,
    /// Environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Environment by reference.
    #[serde(default)]
    pub secrets: BTreeMap<String, String>,
    /// Named volumes and directories of the machine.
    #[serde(default)]
    pub volumes: Vec<Volume>,
    /// Ports of the machine.
    #[serde(default)]
    pub ports: Vec<Port>,
    /// User; the image's unless given.
    #[serde(default)]
    pub user: Option<String>,
    /// CPUs' worth of time.
    #[serde(default)]
    pub cpus: Option<f64>,
    /// Memory.
    #[serde(default)]
    pub memory: Option<ByteSize>,
    /// Processes and threads.
    #[serde(default)]
    pub pids: Option<u32>,
    /// When it is ready.
    #[serde(default)]
    pub health: Option<HealthCheck>,
    /// Services before it.
    #[serde(default)]
    pub depends_on: Vec<String>,
}

fn missing() -> PullPolicy {
    PullPolicy::Missing
}

impl Service {
    /// Its image, which was checked to be one.
    ///
    /// # Errors
    /// Never for a service that was loaded.
    pub fn image(&self) -> Result<ImageRef, crate::task::image::InvalidImage> {
        self.image.parse()
    }
}

/// Reads `file`, or the embedded default.
///
/// # Errors
/// When it cannot be read, or any key or value is wrong; every mistake is in the error.
pub fn load(file: Option<&Path>) -> Result<Services, ConfigError> {
    let Some(path) = file else { return parse(DEFAULTS, "default") };
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Read { path: shown.clone(), error })?;
    parse(&text, &shown)
}

/// Reads the text of such a file; `origin` is what it is called.
///
/// # Errors
/// As [`load`].
pub fn parse(text: &str, origin: &str) -> Result<Services, ConfigError> {
    let table: Table = text.parse().map_err(|error| ConfigError::Mistakes(vec![format!("{} ({origin})", misspelt(text, &error))]))?;
    let mut read = Read { environment: "default".to_owned(), services: BTreeMap::new(), mistakes: Vec::new() };
    for (key, value) in table {
        read.key(&key, value);
    }
    check::environment(&read.environment, &mut read.mistakes);
    for (name, service) in &read.services {
        check::service(name, service, &read.services, &mut read.mistakes);
    }
    check::ports(&read.services, &mut read.mistakes);
    let services = check::in_order(read.services, &mut read.mistakes);
    if read.mistakes.is_empty() {
        return Ok(Services { environment: read.environment, services });
    }
    Err(ConfigError::Mistakes(read.mistakes.into_iter().map(|mistake| format!("{mistake} ({origin})")).collect()))
}

struct Read {
    environment: String,
    services: BTreeMap<String, Service>,
    mistakes: Vec<String>,
}

impl Read {
    fn key(&mut self, key: &str, value: Value) {
        match (key, value) {
            ("environment", Value::String(name)) => self.environment = name,
            ("environment", _) => self.mistakes.push("environment: give a name in quotes".to_owned()),
            ("services", Value::Table(services)) => services.into_iter().for_each(|(name, value)| self.service(&name, value)),
            (key, _) => self.mistakes.push(format!("{key}: no such key; there are environment and [services.<name>]")),
        }
    }

    /// One key after the other beside an image, so that each that does not fit is told.
    fn service(&mut self, name: &str, value: Value) {
        let Value::Table(keys) = value else {
            return self.mistakes.push(format!("services.{name}: not a section; write [services.{name}]"));
        };
        let before = self.mistakes.len();
        if !keys.contains_key("image") {
            self.mistakes.push(format!("services.{name}.image: missing; name the image, such as redis:7"));
        }
        for (key, value) in &keys {
            if matches!(key.as_str(), "env" | "secrets") {
                self.texts(&format!("services.{name}.{key}"), value);
                continue;
            }
            let mut alone = Table::from_iter([("image".to_owned(), Value::String("x".to_owned()))]);
            alone.insert(key.clone(), value.clone());
            if let Err(error) = Value::Table(alone).try_into::<Service>() {
                let error = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
                // A key that nobody knows may be a misspelt `env`, or a variable that should be in it.
                let shown = if error.starts_with("unknown field") { String::new() } else { format!(" = {value}") };
                self.mistakes.push(format!("services.{name}.{key}{shown}: {error}"));
            }
        }
        if self.mistakes.len() > before {
            return;
        }
        match Value::Table(keys).try_into::<Service>() {
            // Never: each key was read alone.
            Err(_) => self.mistakes.push(format!("services.{name}: its keys do not fit together")),
            Ok(service) => drop(self.services.insert(name.to_owned(), service)),
        }
    }

    /// Names and texts; what the texts are stays here, since they may be passwords.
    fn texts(&mut self, key: &str, value: &Value) {
        let Value::Table(entries) = value else {
            return self.mistakes.push(format!("{key}: not a table; write {{ NAME = \"value\" }}"));
        };
        let odd = entries.iter().filter(|(_, value)| !value.is_str());
        self.mistakes.extend(odd.map(|(entry, _)| format!("{key}.{entry}: its value is no text; put it in quotes")));
    }
}

/// Without the line itself, which may have a password in it.
fn misspelt(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    format!("line {}: {}", before.matches('\n').count() + 1, error.message())
}

#[cfg(test)]
mod tests;
