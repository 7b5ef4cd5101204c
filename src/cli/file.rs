//! Assignments in files: one object, an array of them, or one after the other, in JSON or MessagePack; `-` is stdin.

use std::io::Read as _;
use std::path::Path;

use serde_json::Value;

use super::{Exit, Failed};
use crate::wire::Encoding;

/// A value of a file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    /// The line that it begins in; in MessagePack, which has none, its number.
    pub(super) line: usize,
    /// The value.
    pub(super) value: Value,
}

/// The bytes of a file, or of stdin for `-`.
pub(super) fn read(file: &Path) -> Result<Vec<u8>, Failed> {
    let mut text = Vec::new();
    let result = if file.as_os_str() == "-" {
        std::io::stdin().lock().read_to_end(&mut text)
    } else {
        std::fs::File::open(file).and_then(|mut f| f.read_to_end(&mut text))
    };
    match result {
        Ok(_) => Ok(text),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(Failed::new(Exit::NotFound, format!("{}: no such file", file.display()))),
        Err(e) => Err(Failed::new(Exit::Usage, format!("cannot read {}: {e}", file.display()))),
    }
}

/// All values of a file; at least one. `--id` would name them all alike, so it wants exactly one.
pub(super) fn entries(file: &Path, bytes: &[u8], has_id: bool) -> Result<Vec<Entry>, Failed> {
    let name = file.display();
    let entries = if is_msgpack(bytes) { msgpack(bytes) } else { json(bytes) };
    let entries = entries.map_err(|e| Failed::new(Exit::Usage, format!("{name}: {e}")))?;
    if entries.is_empty() {
        return Err(Failed::new(Exit::Usage, format!("{name}: no assignment in it")));
    }
    if entries.len() > 1 && has_id {
        return Err(Failed::new(Exit::Usage, format!("--id names one task, {name} has {}", entries.len())));
    }
    Ok(entries)
}

/// The first byte of a map or a list: none of them begins a text.
fn is_msgpack(bytes: &[u8]) -> bool {
    bytes.first().is_some_and(|byte| matches!(byte, 0x80..=0x9f | 0xdc..=0xdf))
}

fn msgpack(bytes: &[u8]) -> Result<Vec<Entry>, String> {
    let values = Encoding::msgpack_values(bytes).map_err(|e| format!("not MessagePack: {e}"))?;
    let mut all = Vec::new();
    for value in values {
        if let Value::Array(values) = value { all.extend(values) } else { all.push(value) }
    }
    Ok(all.into_iter().enumerate().map(|(at, value)| Entry { line: at + 1, value }).collect())
}

fn json(text: &[u8]) -> Result<Vec<Entry>, String> {
    let mut all = Vec::new();
    let mut stream = serde_json::Deserializer::from_slice(text).into_iter::<Value>();
    loop {
        let rest = &text[stream.byte_offset()..];
        let blank = rest.iter().take_while(|b| b.is_ascii_whitespace()).count();
        let line = 1 + text[..stream.byte_offset() + blank].iter().filter(|b| **b == b'\n').count();
        match stream.next() {
            Some(Ok(Value::Array(values))) => all.extend(values.into_iter().map(|value| Entry { line, value })),
            Some(Ok(value)) => all.push(Entry { line, value }),
            Some(Err(error)) => return Err(format!("not JSON: {error}")),
            None => return Ok(all),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(bytes: &[u8]) -> Result<Vec<usize>, String> {
        let entries = entries(Path::new("f"), bytes, false).map_err(|failed| failed.message)?;
        Ok(entries.iter().map(|entry| entry.line).collect())
    }

    #[test]
    fn values_know_their_line() {
        assert_eq!(lines(b"{}\n{}\n\n{}\n"), Ok(vec![1, 2, 4]));
        assert_eq!(lines(b"{\n\"a\": 1\n}\n{}"), Ok(vec![1, 4]));
        assert_eq!(lines(b"\n[{}, {}]"), Ok(vec![2, 2]));
        assert_eq!(lines(b" \n"), Err("f: no assignment in it".to_owned()));
        assert!(lines(b"{}\n{\"a\":}\n").expect_err("broken").contains("line 2"));
    }

    #[test]
    fn messagepack_is_known_by_its_first_byte() {
        // [{"a": 1}] and two maps one after the other.
        assert_eq!(lines(b"\x91\x81\xa1a\x01"), Ok(vec![1]));
        assert_eq!(lines(b"\x81\xa1a\x01\x80"), Ok(vec![1, 2]));
        assert!(lines(b"\x81\xa1a").expect_err("cut off").starts_with("f: not MessagePack: "));
    }
}
