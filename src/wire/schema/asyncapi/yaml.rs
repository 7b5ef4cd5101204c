//! YAML for generated documents: block style, every text that is not plainly a word in JSON's quotes, which YAML shares.

use serde_json::{Map, Value};

/// Keys that a reader looks for first, in this order; the others follow by name.
const FIRST: [&str; 16] = [
    "asyncapi",
    "info",
    "defaultContentType",
    "servers",
    "channels",
    "operations",
    "components",
    "title",
    "name",
    "version",
    "action",
    "channel",
    "address",
    "contentType",
    "summary",
    "description",
];

/// The document as text.
pub(super) fn text(value: &Value) -> String {
    let mut out = String::new();
    block(value, 0, &mut out);
    out
}

fn block(value: &Value, depth: usize, out: &mut String) {
    let pad = "  ".repeat(depth);
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in ordered(map) {
                out.push_str(&pad);
                out.push_str(&word(key));
                out.push(':');
                if is_block(value) {
                    out.push('\n');
                    block(value, depth + 1, out);
                } else {
                    out.push(' ');
                    block(value, 0, out);
                }
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                let mut text = String::new();
                block(item, if is_block(item) { depth + 1 } else { 0 }, &mut text);
                out.push_str(&pad);
                out.push_str("- ");
                // The first line of a nested block stands beside the dash.
                out.push_str(text.trim_start_matches(' '));
            }
        }
        Value::String(text) => {
            out.push_str(&word(text));
            out.push('\n');
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            out.push_str(&value.to_string());
            out.push('\n');
        }
    }
}

fn is_block(value: &Value) -> bool {
    value.as_object().is_some_and(|map| !map.is_empty()) || value.as_array().is_some_and(|items| !items.is_empty())
}

fn ordered(map: &Map<String, Value>) -> Vec<(&String, &Value)> {
    let mut entries: Vec<_> = map.iter().collect();
    entries.sort_by_key(|(key, _)| FIRST.iter().position(|first| first == key).unwrap_or(FIRST.len()));
    entries
}

/// A text without quotes where no reader of YAML, old or new, takes it for anything else.
fn word(text: &str) -> String {
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'/'))
        && !matches!(text.to_ascii_lowercase().as_str(), "true" | "false" | "null" | "yes" | "no" | "on" | "off" | "y" | "n");
    if plain { text.to_owned() } else { Value::from(text).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nested_blocks_stand_where_they_belong() {
        let value = json!({"z": [], "asyncapi": "3.0.0", "list": [{"b": 1, "a": [["x"], {}]}, "no", null], "text": "a: b\n\"c\""});
        let expected = "asyncapi: \"3.0.0\"\nlist:\n  - a:\n      - - x\n      - {}\n    b: 1\n  - \"no\"\n  - null\ntext: \"a: b\\n\\\"c\\\"\"\nz: []\n";
        assert_eq!(text(&value), expected);
    }
}
