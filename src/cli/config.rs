//! `windlass config show`: every key with its value and who set it.

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::Value;

use super::output::{Style, Table};
use super::{Exit, Failed, Global, Output};
use crate::config::{Config, Origin, Origins};

/// `windlass config`
#[derive(Debug, Clone, Subcommand)]
pub enum ConfigAction {
    /// Every key with its value and who set it; passwords in URLs are left out
    Show(ShowArgs),
}

/// `windlass config show`
#[derive(Debug, Clone, Args)]
pub struct ShowArgs {
    /// Only what begins so: a section (bus), a class (classes.cpu_short), a key (bus.server)
    #[arg(value_name = "KEY")]
    pub key: Option<String>,
}

/// A key, for `--output json`.
#[derive(Debug, Serialize)]
struct Setting {
    key: String,
    value: Value,
    source: &'static str,
    origin: Option<String>,
}

/// Runs the verb.
pub(super) fn run(global: &Global, action: &ConfigAction, output: &Output) -> Result<Exit, Failed> {
    let ConfigAction::Show(ShowArgs { key }) = action;
    let config = global.load_config()?;
    let mut settings = settings(&config).map_err(|e| Failed::new(Exit::Error, e.to_string()))?;
    if let Some(wanted) = key {
        settings.retain(|setting| setting.key.strip_prefix(wanted.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')));
        if settings.is_empty() {
            return Err(Failed::new(Exit::NotFound, format!("{wanted}: no such key")).hint("`windlass config show` lists all"));
        }
    }
    if output.is_json() {
        for setting in &settings {
            output.json(setting)?;
        }
        return Ok(Exit::Done);
    }
    let mut table = Table::new(&["KEY", "VALUE", "SOURCE"]);
    for Setting { key, value, source, origin } in settings {
        let (from, style) = origin.map_or((source.to_owned(), Style::Dim), |origin| (format!("{source} {origin}"), Style::Plain));
        table.row(vec![(key, Style::Plain), (value.to_string(), Style::Plain), (from, style)]);
    }
    output.table(&table)?;
    Ok(Exit::Done)
}

fn settings(config: &Config) -> Result<Vec<Setting>, serde_json::Error> {
    let mut shown = serde_json::to_value(config)?;
    shown["bus"]["server"] = Value::String(config.bus.shown_server());
    let mut settings = Vec::new();
    flatten(&mut settings, &config.origins, "", shown);
    Ok(settings)
}

/// Tables become the keys in them; one without keys is there all the same, as a class or tenant can be.
fn flatten(settings: &mut Vec<Setting>, origins: &Origins, key: &str, value: Value) {
    match value {
        Value::Object(table) if !table.is_empty() => {
            for (name, value) in table {
                let key = if key.is_empty() { name } else { format!("{key}.{name}") };
                flatten(settings, origins, &key, value);
            }
        }
        value @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) | Value::Object(_)) => {
            let (source, origin) = match origins.of(key) {
                Origin::Default => ("default", None),
                Origin::File(path) => ("file", Some(path)),
                Origin::Environment(name) => ("environment", Some(name)),
                Origin::Option(name) => ("option", Some(name)),
            };
            settings.push(Setting { key: key.to_owned(), value, source, origin });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_shown_once_and_no_password() {
        let env = [("WINDLASS__BUS__SERVER", "nats://ann:hunter2@a"), ("WINDLASS__CLASSES__CPU_SHORT__BACKOFF__FACTOR", "3")];
        let config = crate::config::load(None, env.map(|(n, v)| (n.to_owned(), v.to_owned()))).unwrap();
        let settings = settings(&config).unwrap();
        let of = |key: &str| settings.iter().filter(|s| s.key == key).collect::<Vec<_>>();
        let server = of("bus.server");
        assert_eq!((server.len(), server[0].value.as_str(), server[0].source), (1, Some("nats://ann:***@a"), "environment"));
        assert_eq!(server[0].origin.as_deref(), Some("WINDLASS__BUS__SERVER"));
        assert_eq!(
            (&of("classes.cpu_short.backoff.factor")[0].value, of("classes.cpu_short.cpus")[0].source),
            (&Value::from(3.0), "default")
        );
        assert!(settings.iter().all(|s| !s.value.to_string().contains("hunter2")));
    }
}
