//! JSON Schemas of everything on the wire and the AsyncAPI document, generated from the types. `schemas/` holds them; `make lint`
//! fails on drift.

use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::Value;

use crate::task::{Assignment, Event, log_chunk::LogChunk};

pub mod asyncapi;

/// Every file of `schemas/`: name and text.
#[must_use]
pub fn files() -> Vec<(String, String)> {
    let schemas = all().into_iter().map(|(name, schema)| (format!("{name}.schema.json"), format!("{schema:#}\n")));
    schemas.chain([("asyncapi.yaml".to_owned(), asyncapi::text())]).collect()
}

/// File name (without `.schema.json`) and schema of each.
#[must_use]
pub fn all() -> Vec<(&'static str, Value)> {
    vec![
        ("assignment", schema_of::<Assignment>("assignment")),
        ("event", schema_of::<Event>("event")),
        ("log_chunk", schema_of::<LogChunk>("log_chunk")),
        ("config", schema_of::<crate::config::Config>("config")),
    ]
}

/// Where an event's schema is found by a reader, `ce-dataschema`.
#[must_use]
pub fn uri(name: &str) -> String {
    format!("https://windlass.dev/schemas/v1/{name}.schema.json")
}

fn schema_of<T: JsonSchema>(name: &str) -> Value {
    let mut schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<T>();
    schema.insert("$id".to_owned(), Value::String(uri(name)));
    schema.to_value()
}
