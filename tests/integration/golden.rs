//! Samples of everything on the wire, in both encodings, written by another implementation (`tests/golden/`). They are of
//! contract version 1: they may be added to, never changed.

use std::path::PathBuf;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use windlass::task::log_chunk::{ChunkData, ChunkEncoding, LogChunk};
use windlass::task::{Assignment, Event};
use windlass::wire::{Encoding, schema};

fn samples(start: &str) -> Vec<(String, Vec<u8>, Vec<u8>)> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut found: Vec<_> = std::fs::read_dir(&dir).unwrap().flatten().map(|e| e.path()).collect();
    found.retain(|p| p.extension().is_some_and(|e| e == "json") && p.file_name().unwrap().to_string_lossy().starts_with(start));
    found.sort();
    assert!(!found.is_empty());
    let read = |path: &PathBuf| std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    found.iter().map(|p| (p.file_stem().unwrap().to_string_lossy().into_owned(), read(p), read(&p.with_extension("msgpack")))).collect()
}

fn decode<T: DeserializeOwned>(encoding: Encoding, name: &str, body: &[u8]) -> T {
    encoding.decode(body).unwrap_or_else(|e| panic!("{name} as {encoding:?}: {e}"))
}

fn again<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(name: &str, value: &T) {
    for encoding in [Encoding::Json, Encoding::Msgpack] {
        let body = encoding.encode(value).unwrap();
        assert_eq!(&decode::<T>(encoding, name, &body), value, "{name} does not survive {encoding:?}");
    }
}

#[test]
fn assignments_of_version_1_are_read_alike_in_both_encodings() {
    for (name, json, msgpack) in samples("assignment") {
        let value: Assignment = decode(Encoding::Json, &name, &json);
        assert_eq!(decode::<Assignment>(Encoding::Msgpack, &name, &msgpack), value, "{name}");
        again(&name, &value);
    }
}

#[test]
fn events_of_version_1_are_read_alike_and_written_with_the_same_keys() {
    let mut kinds = Vec::new();
    for (name, json, msgpack) in samples("task_") {
        let value: Event = decode(Encoding::Json, &name, &json);
        assert_eq!(decode::<Event>(Encoding::Msgpack, &name, &msgpack), value, "{name}");
        again(&name, &value);
        let written: Value = serde_json::to_value(&value).unwrap();
        assert_eq!(written, serde_json::from_slice::<Value>(&json).unwrap(), "{name}: a key was renamed, dropped or added");
        kinds.push(value.event.as_str());
    }
    kinds.sort_unstable();
    // Fields that came later have samples of their own.
    kinds.dedup();
    assert_eq!(kinds, ["task_completed", "task_failed", "task_progress", "task_released", "task_retrying", "task_started"]);
}

#[test]
fn log_chunks_of_version_1_hold_the_same_bytes_in_both_encodings() {
    use base64::Engine as _;
    for (name, json, msgpack) in samples("log_chunk") {
        let text: LogChunk = decode(Encoding::Json, &name, &json);
        let binary: LogChunk = decode(Encoding::Msgpack, &name, &msgpack);
        let (ChunkData::Text(data), ChunkData::Bytes(bytes)) = (&text.data, &binary.data) else { panic!("{name}: {text:?} {binary:?}") };
        let from_text = match text.encoding {
            ChunkEncoding::Utf8 => data.clone().into_bytes(),
            ChunkEncoding::Base64 => base64::engine::general_purpose::STANDARD.decode(data).unwrap(),
            ChunkEncoding::Bin => panic!("{name}: bin in JSON"),
        };
        assert_eq!((&from_text, binary.encoding), (bytes, ChunkEncoding::Bin), "{name}");
        assert_eq!(text.len, bytes.len() as u64, "{name}");
        again(&name, &text);
        // `bin` is MessagePack's own: it is never written as JSON.
        assert_eq!(decode::<LogChunk>(Encoding::Msgpack, &name, &Encoding::Msgpack.encode(&binary).unwrap()), binary, "{name}");
        assert_eq!(serde_json::to_value(&text).unwrap(), serde_json::from_slice::<Value>(&json).unwrap(), "{name}");
    }
}

#[test]
fn samples_satisfy_the_schemas_and_mistakes_do_not() {
    let schemas: std::collections::BTreeMap<_, _> = schema::all().into_iter().collect();
    for (start, kind) in [("assignment", "assignment"), ("task_", "event"), ("log_chunk", "log_chunk")] {
        let validator = jsonschema::validator_for(&schemas[kind]).unwrap();
        for (name, json, _) in samples(start) {
            let value: Value = serde_json::from_slice(&json).unwrap();
            let errors: Vec<_> = validator.iter_errors(&value).map(|e| format!("{}: {e}", e.instance_path())).collect();
            assert!(errors.is_empty(), "{name}: {errors:?}");
            let mut broken = value.clone();
            broken["v"] = "one".into();
            assert!(!validator.is_valid(&broken), "{name}: the schema takes anything");
        }
    }
}

#[test]
fn published_schemas_are_those_of_the_types() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("schemas");
    for (name, schema) in schema::all() {
        let path = dir.join(format!("{name}.schema.json"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), schema, "{} has drifted", path.display());
    }
}
