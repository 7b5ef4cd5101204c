//! Secrets by reference: what an assignment names, and what an operator allows a tenant to name. Never a value.
//!
//! | reference | where the worker looks |
//! |---|---|
//! | `env:NAME` | its own environment |
//! | `file:/path` | a file of its machine |
//! | `kv:BUCKET/KEY` | a key-value bucket of NATS |

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One secret that a task asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretRequest {
    /// The environment variable that holds it, or, with `_FILE` appended, the path of its file.
    #[schemars(regex(pattern = r"^[A-Za-z_][A-Za-z0-9_]{0,63}$"))]
    pub name: String,
    /// `env:NAME`, `file:/path` or `kv:BUCKET/KEY`.
    #[serde(rename = "ref")]
    #[schemars(regex(pattern = r"^(env|file|kv):."))]
    pub reference: String,
    /// How the task gets it.
    #[serde(rename = "as", default)]
    pub delivery: SecretAs,
}

/// How a task gets a secret.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SecretAs {
    /// As the variable of its name.
    #[default]
    Env,
    /// As a file that only the task may read; the variable `<name>_FILE` has its path.
    File,
}

/// A reference that has been read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum SecretRef {
    /// A variable of the worker's environment.
    Env(String),
    /// An absolute path without `.`, `..` and empty parts.
    File(String),
    /// A key of a bucket.
    Kv {
        /// Bucket.
        bucket: String,
        /// Key.
        key: String,
    },
}

/// True for `[A-Za-z_][A-Za-z0-9_]*`.
#[must_use]
pub fn is_variable(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// True for an absolute path that says where it leads: no `.`, no `..`, nothing empty.
fn is_plain_path(path: &str) -> bool {
    let parts = path.strip_prefix('/');
    parts.is_some_and(|parts| !path.contains('\0') && parts.split('/').all(|part| !matches!(part, "" | "." | "..")))
}

fn is_bucket(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

fn is_key_text(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'/' | b'=' | b'.'))
}

impl FromStr for SecretRef {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("env", name)) if is_variable(name) => Ok(Self::Env(name.to_owned())),
            Some(("env", _)) => Err(format!("{text:?}: after env: stands the name of a variable, letters, digits and _")),
            Some(("file", path)) if is_plain_path(path) => Ok(Self::File(path.to_owned())),
            Some(("file", _)) => Err(format!("{text:?}: after file: stands an absolute path without . and .. and doubled slashes")),
            Some(("kv", rest)) => match rest.split_once('/') {
                Some((bucket, key)) if is_bucket(bucket) && is_key_text(key) && key.split('.').all(|token| !token.is_empty()) => {
                    Ok(Self::Kv { bucket: bucket.to_owned(), key: key.to_owned() })
                }
                _ => Err(format!("{text:?}: after kv: stand a bucket, a slash and a key, as NATS allows them")),
            },
            _ => Err(format!("{text:?} is no reference; write env:NAME, file:/path or kv:BUCKET/KEY, never the secret itself")),
        }
    }
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "env:{name}"),
            Self::File(path) => write!(f, "file:{path}"),
            Self::Kv { bucket, key } => write!(f, "kv:{bucket}/{key}"),
        }
    }
}

/// What a tenant may refer to: one reference, or all that begin alike (`env:ACME_*`, `file:/run/secrets/acme/*`,
/// `kv:secrets/acme.*`; `*` only at the end, for files only after a slash).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct SecretGrant(String);

impl TryFrom<String> for SecretGrant {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let Some(head) = text.strip_suffix('*') else {
            return SecretRef::from_str(&text).map(|_| Self(text));
        };
        let good = match head.split_once(':') {
            Some(("env", name)) => is_variable(name),
            Some(("file", dir)) => dir.strip_suffix('/').is_some_and(is_plain_path),
            Some(("kv", rest)) => rest.split_once('/').is_some_and(|(bucket, key)| is_bucket(bucket) && is_key_text(key)),
            _ => false,
        };
        if good {
            Ok(Self(text))
        } else {
            Err(format!(
                "{text:?} allows nothing that can be told; write a reference, or env:PREFIX*, file:/directory/* or kv:BUCKET/prefix*"
            ))
        }
    }
}

impl From<SecretGrant> for String {
    fn from(grant: SecretGrant) -> Self {
        grant.0
    }
}

impl SecretGrant {
    /// True when `reference` is one that it allows.
    #[must_use]
    pub fn allows(&self, reference: &SecretRef) -> bool {
        let text = reference.to_string();
        match self.0.strip_suffix('*') {
            Some(head) => text.len() > head.len() && text.starts_with(head),
            None => text == self.0,
        }
    }

    /// The directory that a file which it allows may not lead out of, by links for example.
    #[must_use]
    pub fn directory(&self) -> Option<&str> {
        let path = self.0.strip_prefix("file:")?;
        path.rsplit_once('/').map(|(dir, _)| if dir.is_empty() { "/" } else { dir })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read_or_refused() {
        for good in ["env:DB_PASSWORD", "file:/run/secrets/acme/db", "kv:secrets/acme.db", "kv:secrets/a/b=c"] {
            assert_eq!(good.parse::<SecretRef>().expect(good).to_string(), good);
        }
        for bad in [
            "",
            "hunter2",
            "env:",
            "env:A B",
            "env:1A",
            "file:relative",
            "file:/",
            "file:/a/../b",
            "file:/a//b",
            "file:/a/./b",
            "file:/a/",
            "kv:secrets",
            "kv:/key",
            "kv:secrets/",
            "kv:secrets/a..b",
            "kv:secrets/.a",
            "kv:secrets/a*",
            "kv:se.crets/a",
            "vault:x",
        ] {
            assert!(bad.parse::<SecretRef>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_grant_allows_what_begins_alike_and_nothing_else() {
        let grant = |text: &str| SecretGrant::try_from(text.to_owned());
        for (text, allowed, refused) in [
            ("env:ACME_*", "env:ACME_DB", "env:ACM"),
            ("env:TOKEN", "env:TOKEN", "env:TOKEN2"),
            ("file:/run/secrets/acme/*", "file:/run/secrets/acme/sub/db", "file:/run/secrets/acme2/db"),
            ("file:/run/secrets/acme/db", "file:/run/secrets/acme/db", "file:/run/secrets/acme/db2"),
            ("kv:secrets/acme.*", "kv:secrets/acme.db", "kv:secrets/acmes"),
            ("kv:secrets/*", "kv:secrets/x", "kv:secrets2/x"),
        ] {
            let grant = grant(text).expect(text);
            assert!(grant.allows(&allowed.parse().expect("valid")), "{text} {allowed}");
            assert!(!grant.allows(&refused.parse().expect("valid")), "{text} {refused}");
        }
        for bad in ["*", "env:*", "file:*", "file:/*", "file:/run/acme*", "file:/run/../*", "kv:*", "kv:se*", "kv:b/a*b", "vault:x*"] {
            assert!(grant(bad).is_err(), "{bad:?}");
        }
        assert_eq!(grant("file:/run/secrets/acme/*").expect("valid").directory(), Some("/run/secrets/acme"));
        assert_eq!(grant("file:/db").expect("valid").directory(), Some("/"));
    }
}
