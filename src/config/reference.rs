//! `docs/configuration.md`: every key as the types, the defaults and the rules have it. Nothing here is written twice.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::{Config, DEFAULTS, load, load_text, validate};
use crate::wire::schema;

const HEAD: &str = "\
# Configuration

<!-- Generated from the types by `make schemas`; `make lint` fails when it is not what they say. -->

Every key of a worker's configuration. [`config/worker.toml`](../config/worker.toml) has the same with the defaults, ready to be
edited; a file given with `--config` (or `WINDLASS_CONFIG`) needs only the keys that differ. Any key can be set by environment,
section and key joined by two underscores, as `WINDLASS__CLASSES__CPU_SHORT__SLOTS=8`, which goes before the file. Unknown keys
and wrong values are reported all at once, each with where it was set. `windlass config show` prints what is in force and who set it.

A *size* is a number of bytes, or text such as `\"512MiB\"` (B, KB, MB, GB, TB, KiB, MiB, GiB, TiB). A *name* matches
`[A-Za-z0-9_-]{1,64}`.
";

/// What the rules are asked about: names that stand for any, and every list with something in it.
const EXAMPLE: &str = "[tenants.any]\nuid = 1\ngid = 1\nimages = []\n[sandbox]\nwrite_paths = [\"/any\"]\n[classes.any]\n";

/// The page.
#[must_use]
pub fn reference() -> String {
    let schema = schema::all().into_iter().find(|(name, _)| *name == "config").map(|(_, schema)| schema).unwrap_or_default();
    let defaults = load(None, []).ok().and_then(|config| serde_json::to_value(config).ok()).unwrap_or_default();
    let rules = load_text(EXAMPLE).map(|config| rules(&config)).unwrap_or_default();
    let mut text = HEAD.to_owned();
    let mut sections: Vec<&String> = schema["properties"].as_object().into_iter().flat_map(Map::keys).collect();
    // As `config/worker.toml` has them.
    sections.sort_by_key(|section| written(section).0);
    for key in sections {
        let property = &schema["properties"][key];
        // A table of names: each is of one type.
        let named = property["patternProperties"].as_object().and_then(|patterns| patterns.values().next());
        let (table, default, title, prefix) = match named {
            Some(table) => {
                // Of classes, that which says what the others have where they are silent.
                let of = defaults[key].as_object();
                let default = of.and_then(|all| all.get("cpu_short").or_else(|| all.values().next())).unwrap_or(&Value::Null);
                (table, default, format!("{key}.<name>"), format!("{key}.any"))
            }
            None => (property, &defaults[key], key.clone(), key.clone()),
        };
        let about = property["description"].as_str().unwrap_or_default();
        let _ = write!(text, "\n## `[{title}]`\n\n{about}\n\n| key | type | default | meaning | allowed |\n|---|---|---|---|---|\n");
        let mut page = Page { schema: &schema, rules: &rules, written: written(key).1, text: &mut text };
        page.keys(table, default, &prefix, "");
    }
    text
}

/// What is allowed, by key.
fn rules(config: &Config) -> BTreeMap<String, Vec<String>> {
    let mut rules: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (key, rule) in validate::rules(config) {
        let of_key = rules.entry(key).or_default();
        if !of_key.contains(&rule) {
            of_key.push(rule);
        }
    }
    rules
}

/// Where `config/worker.toml` writes of a section, the first of its tables where it has names, and all from there on.
fn written(section: &str) -> (usize, &'static str) {
    let begin = [format!("\n[{section}]\n"), format!("\n[{section}.")].iter().find_map(|head| DEFAULTS.find(head.as_str()));
    begin.map_or((usize::MAX, ""), |begin| (begin, &DEFAULTS[begin..]))
}

struct Page<'a> {
    schema: &'a Value,
    rules: &'a BTreeMap<String, Vec<String>>,
    /// Keys are listed in this order.
    written: &'static str,
    text: &'a mut String,
}

impl<'a> Page<'a> {
    /// The type that a property has or refers to.
    fn resolved(&self, property: &'a Value) -> (&'a Value, &'a str) {
        match property["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
            Some(name) => (&self.schema["$defs"][name], name),
            None => (property, ""),
        }
    }

    /// A row for each key of a table, and for those of the tables in it.
    fn keys(&mut self, table: &'a Value, default: &Value, path: &str, outer: &str) {
        let (table, _) = self.resolved(table);
        let written = self.written;
        let place = |key: &str| [format!("\n{key} ="), format!("\n# {key} =")].iter().filter_map(|line| written.find(line.as_str())).min();
        let mut properties: Vec<_> = table["properties"].as_object().into_iter().flatten().collect();
        properties.sort_by_key(|(key, _)| place(key).unwrap_or(usize::MAX));
        for (key, property) in properties {
            let (kind, name) = self.resolved(property);
            let default = default.get(key).or_else(|| property.get("default")).unwrap_or(&Value::Null);
            let (path, shown) = (format!("{path}.{key}"), format!("{outer}{key}"));
            if kind["properties"].is_object() {
                self.keys(kind, default, &path, &format!("{shown}."));
                continue;
            }
            let meaning = property["description"].as_str().or_else(|| kind["description"].as_str()).unwrap_or_default();
            let default = if default.is_null() { "—".to_owned() } else { format!("`{default}`") };
            let cells = [format!("`{shown}`"), self.kind(kind, name), default, meaning.to_owned(), self.allowed(kind, &path)];
            let cells = cells.map(|cell| cell.replace('|', "\\|").replace('\n', " "));
            let _ = writeln!(self.text, "| {} |", cells.join(" | "));
        }
    }

    fn kind(&self, kind: &'a Value, name: &str) -> String {
        if let "ByteSize" | "Tenant" = name {
            return if name == "ByteSize" { "size" } else { "name" }.to_owned();
        }
        // One type, or that and null.
        let kinds = &kind["type"];
        let word = kinds.as_array().and_then(|kinds| kinds.first()).unwrap_or(kinds).as_str();
        match word {
            Some("array") => {
                let (items, name) = self.resolved(&kind["items"]);
                format!("list of {}", self.kind(items, name))
            }
            Some("string") | None => "text".to_owned(),
            Some(word) => word.to_owned(),
        }
    }

    /// The words of an enumeration, and the rules.
    fn allowed(&self, kind: &'a Value, path: &str) -> String {
        let (items, _) = self.resolved(if kind["items"].is_object() { &kind["items"] } else { kind });
        let words = items["oneOf"].as_array().into_iter().flatten().filter(|choice| choice["const"].is_string());
        let words: Vec<String> = words.map(|choice| format!("`{}`", choice["const"])).collect();
        let words = Some(words.join(", ")).filter(|words| !words.is_empty() && !self.rules.contains_key(path));
        words.into_iter().chain(self.rules.get(path).into_iter().flatten().cloned()).collect::<Vec<_>>().join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_a_row_with_a_meaning() {
        let page = reference();
        let config = load_text(EXAMPLE).unwrap();
        let rows = page.lines().filter(|line| line.starts_with("| `")).count();
        fn leaves(value: &Value) -> usize {
            value.as_object().map_or(1, |table| table.values().map(leaves).sum())
        }
        assert_eq!(rows, leaves(&serde_json::to_value(config).unwrap()), "{page}");
        let titles: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("## ")).collect();
        assert_eq!((titles[0], titles[titles.len() - 1]), ("`[bus]`", "`[classes.<name>]`"), "in the order of the file");
        for line in page.lines().filter(|line| line.starts_with("| `")) {
            let cells: Vec<&str> = line.split(" | ").collect();
            assert_eq!(cells.len(), 5, "{line}");
            assert!(!cells[3].trim().is_empty(), "{line}");
        }
    }

    #[test]
    fn what_is_allowed_is_what_is_checked() {
        let page = reference();
        let row = |key: &str| page.lines().find(|line| line.starts_with(&format!("| `{key}` "))).unwrap().to_owned();
        assert!(row("window").contains("1 to 64"), "{}", row("window"));
        assert!(row("on_lease_loss").contains("`\"stop\"`, `\"continue\"`"), "{}", row("on_lease_loss"));
        assert!(row("timeout_s").contains("at most max_timeout_s"), "{}", row("timeout_s"));
        assert!(row("cap").contains("`\"256MiB\"`"), "{}", row("cap"));
    }
}
