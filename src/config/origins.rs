//! Who set a key: for mistakes, for `config show`, and for plans that tell what an operator decided from what nobody did.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use toml::Value;

/// Who set a key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "source", content = "origin")]
pub enum Origin {
    /// Nobody.
    #[default]
    Default,
    /// A file, by its path as it was given.
    File(String),
    /// An environment variable, by its name.
    Environment(String),
    /// An option of the command line, by its name.
    Option(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => f.write_str(path),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Option(name) => write!(f, "option {name}"),
        }
    }
}

/// Who set which keys; keys that are not here have their default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origins(BTreeMap<String, Origin>);

impl Origins {
    /// Notes that `key` was set to `value` by `origin`: the key itself, and all that a table brings with it.
    pub(super) fn note(&mut self, key: &str, value: &Value, origin: &Origin) {
        let inside = format!("{key}.");
        self.0.retain(|known, _| !known.starts_with(&inside));
        self.0.insert(key.to_owned(), origin.clone());
        if let Value::Table(table) = value {
            for (name, value) in table {
                self.note(&format!("{inside}{name}"), value, origin);
            }
        }
    }

    /// Notes that an option or its variable set `key`.
    pub(crate) fn set(&mut self, key: &str, origin: Origin) {
        self.0.insert(key.to_owned(), origin);
    }

    /// Who set that very key.
    #[must_use]
    pub fn of(&self, key: &str) -> Origin {
        self.0.get(key).cloned().unwrap_or_default()
    }

    /// Who set the key, or the innermost table around it that somebody set.
    pub(super) fn around(&self, key: &str) -> Origin {
        let mut key = key;
        loop {
            match (self.0.get(key), key.rsplit_once('.')) {
                (Some(origin), _) => return origin.clone(),
                (None, Some((outer, _))) => key = outer,
                (None, None) => return Origin::Default,
            }
        }
    }

    /// Whether anybody set the key, or a part of its value.
    #[must_use]
    pub fn sets(&self, key: &str) -> bool {
        let inside = format!("{key}.");
        self.0.contains_key(key) || self.0.range(inside.clone()..).next().is_some_and(|(known, _)| known.starts_with(&inside))
    }
}
