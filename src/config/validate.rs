//! What a configuration must satisfy beyond the types of its keys.

use super::Config;

/// Every rule that `config` breaks, one line each: key, value, what is allowed.
pub(super) fn check(config: &Config) -> Vec<String> {
    let mut mistakes = Vec::new();
    if config.classes.is_empty() {
        mistakes.push("classes: none; a worker serves at least one".to_owned());
    }
    mistakes
}
