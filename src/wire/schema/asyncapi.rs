//! The AsyncAPI document of the contract (`schemas/asyncapi.yaml`), put together from what the worker itself uses: the types,
//! the names of subjects and headers, and the configuration of streams and consumers as `windlass init` makes them.
//!
//! It stands on its own: schemas are repeated in `components` in the dialect that AsyncAPI has (JSON Schema draft 7), because
//! most tools for it read neither another dialect nor a second file.

use serde_json::{Value, json};

use crate::bus::connect::SERVER_FLOOR;
use crate::bus::{Subjects, provision};
use crate::config::{self, Config};
use crate::task::Tenant;

mod channels;
mod messages;
mod operations;
mod yaml;

/// The document as YAML.
#[must_use]
pub fn text() -> String {
    let head = "# Generated from the types of windlass by `make schemas`; `make lint` fails when it is not what they say.\n";
    format!("{head}{}", yaml::text(&document()))
}

/// The document.
#[must_use]
pub fn document() -> Value {
    let (Ok(config), Ok(prefix)) = (config::load_text(""), Tenant::new("windlass")) else { return Value::Null };
    let facts = provision::described(&Subjects::new(&prefix), &config);
    json!({
        "asyncapi": "3.0.0",
        "info": info(),
        "defaultContentType": "application/json",
        "servers": {"nats": server(&config)},
        "channels": channels::all(&facts),
        "operations": operations::all(),
        "components": {"messages": messages::all(), "schemas": messages::schemas()},
    })
}

fn info() -> Value {
    json!({
        "title": "Windlass",
        "version": "1",
        "description": "Tasks go into a JetStream work queue; workers run them, append events to one chain per task, publish output in \
            chunks, and acknowledge a task only after all of that is stored. The version is the `v` of every body. `windlass` is the \
            prefix unless the operator says otherwise (`bus.prefix`), stream names are its upper-case form. Every body is a map, in JSON \
            or in MessagePack with the same keys; `Content-Type` says which. What the sentences of docs/protocol.md say beyond this \
            document is part of the contract too.",
        "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        "tags": operations::views(),
    })
}

fn server(config: &Config) -> Value {
    let (major, minor, patch) = SERVER_FLOOR;
    json!({
        "host": config.bus.server.trim_start_matches("nats://"),
        "protocol": "nats",
        "description": format!("nats-server {major}.{minor}.{patch} or newer with JetStream. \"Stored\" means what the server means by it: \
            use `sync_interval: always`, or three replicas on machines that do not fail together."),
        "x-nats-server-floor": format!("{major}.{minor}.{patch}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_referred_to_is_there() {
        fn walk(value: &Value, document: &Value, found: &mut usize) {
            if let Some(Value::String(reference)) = value.get("$ref") {
                let pointer = reference.strip_prefix('#').unwrap_or_else(|| panic!("{reference} is in another file"));
                assert!(document.pointer(pointer).is_some(), "{reference} is not there");
                *found += 1;
            }
            match value {
                Value::Array(items) => items.iter().for_each(|v| walk(v, document, found)),
                Value::Object(map) => map.values().for_each(|v| walk(v, document, found)),
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
            }
        }
        let (document, mut found) = (document(), 0);
        walk(&document, &document, &mut found);
        assert!(found > 50, "{found} references");
    }
}
