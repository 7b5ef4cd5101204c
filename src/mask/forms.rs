//! The forms in which programs print a secret.
//!
//! | form | variants |
//! |---|---|
//! | as it is | of a text of several lines also every line |
//! | base64 | standard and URL-safe; alone, padded or not; inside a longer text, at each of its three alignments; in lines of 64 or 76 |
//! | hexadecimal | lower and upper case; in lines of 60, as `xxd -p` writes them |
//! | percent-encoding | of every byte, of all but letters and digits, of all that RFC 3986 reserves, with `/` left, with what JavaScript leaves, with `+` for a space; lower and upper case |
//! | JSON text | with the shortest escapes, ASCII only, `/` escaped, `<`, `>` and `&` escaped; and that as JSON text again |
//! | shell | in single quotes, as `set -x` writes it; in double quotes |
//! | a JSON document | every long text in it, as it is |
//!
//! At the ends of base64 inside a longer text, a character stands for bits of the secret and of its neighbour: it stays, and
//! with it four bits of the secret at most.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde_json::Value;

use super::SHORTEST;
use crate::wire::hex;

/// Texts inside a JSON document that are looked for by themselves: shorter ones are its words.
const LONG: usize = 16;

/// Lines of base64: of PEM, and of MIME and `base64`.
const BASE64_LINES: [usize; 2] = [64, 76];

/// Lines of `xxd -p`.
const HEX_LINE: usize = 60;

/// Every form of every value, each once.
pub(super) fn all<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Vec<Vec<u8>> {
    let mut forms = BTreeSet::new();
    for value in values {
        for part in parts(value) {
            add(&mut forms, &part);
        }
    }
    forms.retain(|form: &Vec<u8>| form.len() >= SHORTEST);
    forms.into_iter().collect()
}

/// The value, its lines, and what is in it when it is a JSON document.
fn parts(value: &[u8]) -> BTreeSet<Vec<u8>> {
    let mut parts = BTreeSet::from([value.to_vec()]);
    parts.extend(value.split(|b| matches!(b, b'\n' | b'\r')).map(<[u8]>::to_vec));
    if let Ok(document @ (Value::Object(_) | Value::Array(_))) = serde_json::from_slice(value) {
        texts(&document, &mut parts);
    }
    parts.retain(|part| part.len() >= SHORTEST);
    parts
}

fn texts(value: &Value, parts: &mut BTreeSet<Vec<u8>>) {
    match value {
        Value::String(text) if text.len() >= LONG => {
            parts.insert(text.clone().into_bytes());
            parts.extend(text.lines().filter(|line| line.len() >= LONG).map(|line| line.as_bytes().to_vec()));
        }
        Value::Array(items) => items.iter().for_each(|item| texts(item, parts)),
        Value::Object(map) => map.values().for_each(|item| texts(item, parts)),
        Value::String(_) | Value::Number(_) | Value::Bool(_) | Value::Null => {}
    }
}

fn add(forms: &mut BTreeSet<Vec<u8>>, value: &[u8]) {
    forms.insert(value.to_vec());
    base64(forms, value);
    let lower = hex(value);
    let upper = lower.to_ascii_uppercase();
    for text in [lower, upper] {
        forms.extend(text.as_bytes().chunks(HEX_LINE).filter(|_| text.len() > HEX_LINE).map(<[u8]>::to_vec));
        forms.insert(text.into_bytes());
    }
    percent(forms, value);
    if let Ok(text) = std::str::from_utf8(value) {
        quoted(forms, text);
    }
}

fn base64(forms: &mut BTreeSet<Vec<u8>>, value: &[u8]) {
    for engine in [STANDARD, URL_SAFE] {
        let padded = engine.encode(value);
        let bare = padded.trim_end_matches('=');
        for width in BASE64_LINES {
            // The last line may go on with something else.
            let lines = settled(value.len(), 0, bare).as_bytes().chunks(width).filter(|_| bare.len() > width);
            forms.extend(lines.map(<[u8]>::to_vec));
        }
        forms.insert(bare.as_bytes().to_vec());
        forms.insert(padded.clone().into_bytes());
        for before in 0..3 {
            let text = engine.encode([&[0; 2][..before], value].concat());
            forms.insert(settled(value.len(), before, &text).as_bytes().to_vec());
        }
    }
}

/// The characters of `text`, base64 of `before` bytes and a value of `len` bytes, that stand for the value alone.
fn settled(len: usize, before: usize, text: &str) -> &str {
    let first = (before * 8).div_ceil(6);
    &text[first..(before + len) * 8 / 6]
}

fn percent(forms: &mut BTreeSet<Vec<u8>>, value: &[u8]) {
    forms.insert(value.iter().flat_map(|b| format!("%{b:02x}").into_bytes()).collect());
    forms.insert(value.iter().flat_map(|b| format!("%{b:02X}").into_bytes()).collect());
    // RFC 3986 leaves letters, digits and -._~
    for (left, plus) in [("-._~", false), ("-._~", true), ("-._~/", false), ("-._~!'()*", false), ("*-._", true), ("", false)] {
        for upper in [false, true] {
            let mut text = Vec::with_capacity(value.len() * 3);
            for byte in value {
                match byte {
                    b' ' if plus => text.push(b'+'),
                    b if b.is_ascii_alphanumeric() || left.as_bytes().contains(b) => text.push(*b),
                    b => text.extend(if upper { format!("%{b:02X}") } else { format!("%{b:02x}") }.into_bytes()),
                }
            }
            forms.insert(text);
        }
    }
}

fn quoted(forms: &mut BTreeSet<Vec<u8>>, text: &str) {
    let plain = json(text);
    let variants = [
        json(&plain),
        plain.replace('/', "\\/"),
        ascii(&plain, false),
        ascii(&plain, true),
        plain.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026"),
        plain,
        text.replace('\'', "'\\''"),
        text.replace('\\', "\\\\").replace('"', "\\\"").replace('$', "\\$").replace('`', "\\`"),
    ];
    forms.extend(variants.map(String::into_bytes));
}

/// JSON text without its quotes.
fn json(text: &str) -> String {
    let quoted = Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

/// With `\u` for everything that is not ASCII, as Python's `json.dumps` writes it.
fn ascii(text: &str, upper: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_ascii() {
            out.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                out.push_str(&if upper { format!("\\u{unit:04X}") } else { format!("\\u{unit:04x}") });
            }
        }
    }
    out
}
