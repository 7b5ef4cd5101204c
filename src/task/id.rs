//! Tokens: the names that become parts of NATS subjects, of cgroup and of file names.
//!
//! One rule for all of them, `[A-Za-z0-9_-]{1,64}`, so that no name can add a subject level, a
//! wildcard or a path component.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Why a text is not a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a valid {what}: allowed are 1 to 64 characters of A-Z a-z 0-9 _ -")]
pub struct InvalidToken {
    what: &'static str,
    value: String,
}

/// True for `[A-Za-z0-9_-]{1,64}`.
#[must_use]
pub fn is_token(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

macro_rules! token {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"})
            }
        }

        impl $name {
            /// Checks `text` against the token rule.
            ///
            /// # Errors
            /// When a character or the length is not allowed.
            pub fn new(text: impl Into<String>) -> Result<Self, InvalidToken> {
                let text = text.into();
                if is_token(&text) { Ok(Self(text)) } else { Err(InvalidToken { what: $what, value: text }) }
            }

            /// The text of the token.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidToken;
            fn try_from(text: String) -> Result<Self, InvalidToken> {
                Self::new(text)
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidToken;
            fn from_str(text: &str) -> Result<Self, InvalidToken> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(token: $name) -> String {
                token.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

token!(
    /// Names one task for ever; chosen by whoever publishes it.
    TaskId,
    "task_id"
);
token!(
    /// Whose task it is.
    Tenant,
    "tenant"
);
token!(
    /// The kind of work; picks queue, defaults, ceilings and slots.
    ClassName,
    "class"
);
token!(
    /// A worker's stable name; one process of it is an *instance*.
    WorkerId,
    "worker_id"
);

/// The queue within a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Served first.
    High,
    /// The usual one.
    Normal,
    /// Served when the others are empty, and now and then when they are not.
    Low,
}

impl Priority {
    /// All priorities, most urgent first.
    pub const ALL: [Self; 3] = [Self::High, Self::Normal, Self::Low];

    /// The subject token.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Priority {
    type Err = InvalidToken;
    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        Self::ALL
            .into_iter()
            .find(|p| p.as_str() == text)
            .ok_or_else(|| InvalidToken { what: "priority (high, normal or low)", value: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_cannot_leave_their_subject_level() {
        for (text, good) in [
            ("01JD8Z5M4Q", true),
            ("a_b-c", true),
            ("", false),
            ("a.b", false),
            ("*", false),
            (">", false),
            ("../x", false),
            ("ü", false),
            ("a b", false),
        ] {
            assert_eq!(TaskId::new(text).is_ok(), good, "{text:?}");
        }
        assert!(TaskId::new("x".repeat(64)).is_ok());
        assert!(TaskId::new("x".repeat(65)).is_err());
    }
}
