use std::borrow::Cow;

use base64::Engine as _;
use proptest::prelude::*;
use serde_json::json;

use super::*;

const SECRET: &str = "s3cr/t+\"Pass\" wörd&<$`'>";

fn masker(values: &[&str]) -> Masker {
    Masker::new(values.iter().map(|v| v.as_bytes())).expect("a masker")
}

fn masked(masker: &Masker, text: &str) -> String {
    String::from_utf8(masker.bytes(text.as_bytes()).into_owned()).expect("text")
}

fn in_pieces<'a>(masker: &Masker, pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut stream = masker.stream().expect("something to look for");
    let mut out = Vec::new();
    for piece in pieces {
        stream.push(piece, &mut |part| out.extend_from_slice(part));
    }
    stream.finish(&mut |part| out.extend_from_slice(part));
    out
}

#[test]
fn nothing_is_looked_for_without_secrets() {
    let none = Masker::default();
    assert!(none.is_idle() && none.stream().is_none() && masker(&["", "12345"]).is_idle());
    assert!(matches!(none.bytes(b"text"), Cow::Borrowed(_)));
}

#[test]
fn every_form_is_found_inside_other_text() {
    use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
    let masker = masker(&[SECRET]);
    let json = serde_json::to_string(SECRET).unwrap();
    for (form, what) in [
        (SECRET.to_owned(), "as it is"),
        (STANDARD.encode(SECRET), "base64"),
        (STANDARD_NO_PAD.encode(SECRET), "base64 without padding"),
        (URL_SAFE.encode(SECRET), "base64 for URLs"),
        (URL_SAFE_NO_PAD.encode(SECRET), "base64 for URLs without padding"),
        (crate::wire::hex(SECRET.as_bytes()), "hexadecimal"),
        (crate::wire::hex(SECRET.as_bytes()).to_uppercase(), "upper-case hexadecimal"),
        ("s3cr%2Ft%2B%22Pass%22%20w%C3%B6rd%26%3C%24%60%27%3E".to_owned(), "percent"),
        ("s3cr%2ft%2b%22Pass%22%20w%c3%b6rd%26%3c%24%60%27%3e".to_owned(), "lower-case percent"),
        ("s3cr/t%2B%22Pass%22%20w%C3%B6rd%26%3C%24%60%27%3E".to_owned(), "Python's quote"),
        ("s3cr%2Ft%2B%22Pass%22+w%C3%B6rd%26%3C%24%60%27%3E".to_owned(), "of a form"),
        ("s3cr%2Ft%2B%22Pass%22%20w%C3%B6rd%26%3C%24%60'%3E".to_owned(), "JavaScript's encodeURIComponent"),
        (json[1..json.len() - 1].to_owned(), "JSON text"),
        (r#"s3cr/t+\"Pass\" w\u00f6rd&<$`'>"#.to_owned(), "ASCII JSON text"),
        (r#"s3cr\/t+\"Pass\" wörd&<$`'>"#.to_owned(), "PHP's JSON text"),
        (r#"s3cr/t+\\\"Pass\\\" wörd&<$`'>"#.to_owned(), "JSON text in JSON text"),
        (r#"s3cr/t+\"Pass\" wörd\u0026\u003c$`'\u003e"#.to_owned(), "Go's JSON text"),
        (r#"s3cr/t+"Pass" wörd&<$`'\''>"#.to_owned(), "set -x"),
    ] {
        assert_eq!(masked(&masker, &format!("<{form}>")), "<***>", "{what}: {form}");
    }
    for before in 0..3 {
        for after in 0..3 {
            let text = STANDARD.encode(["x".repeat(before), SECRET.to_owned(), "y".repeat(after)].concat());
            let masked = masked(&masker, &text);
            let left = masked.len() - MARK.len();
            assert!(masked.contains(MARK) && left <= 8, "{before} bytes before, {after} after: {masked}");
        }
    }
}

#[test]
fn lines_of_a_key_and_texts_of_a_document_are_found_alone() {
    let key = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQ\nab\n-----END KEY-----\n";
    let document = json!({"type": "account", "private_key": key}).to_string();
    let masker = masker(&[key, &document]);
    assert_eq!(masked(&masker, "line: MIIEvQIBADANBgkqhkiG9w0BAQ!"), "line: ***!");
    assert_eq!(masked(&masker, "ab cd account"), "ab cd account", "too short to be looked for alone");
    let mut result = serde_json::from_str(&document).unwrap();
    masker.json(&mut result);
    assert_eq!(result, json!({"type": "account", "private_key": "***"}));
}

#[test]
fn secrets_that_overlap_are_masked_as_one() {
    let masker = masker(&["abcdef", "defghi", "aaaaaa"]);
    assert_eq!(masked(&masker, "<abcdefghi>"), "<***>");
    assert_eq!(masked(&masker, "<abcdefabcdef>"), "<******>");
    assert_eq!(masked(&masker, &format!("<{}>", "a".repeat(100_000))), "<***>");
}

#[test]
fn only_the_beginning_of_a_secret_is_held_back() {
    let masker = masker(&["hunter2hunter2"]);
    let mut stream = masker.stream().unwrap();
    let mut out = String::new();
    let mut push = |stream: &mut StreamMask, piece: &str| {
        stream.push(piece.as_bytes(), &mut |part| out.push_str(std::str::from_utf8(part).unwrap()));
        out.clone()
    };
    assert_eq!(push(&mut stream, "password: "), "password: ");
    assert_eq!(push(&mut stream, "hunter2hunt"), "password: ");
    assert_eq!(push(&mut stream, "er2"), "password: ", "what goes on as one is not over");
    assert_eq!(push(&mut stream, "\nhun"), "password: ***\n");
    assert_eq!(push(&mut stream, "dred\n"), "password: ***\nhundred\n");
}

#[test]
fn a_long_beginning_at_the_end_is_masked_and_a_short_one_is_not() {
    let masker = masker(&["hunter2hunter2"]);
    assert_eq!(masked(&masker, "was hunter2hunter"), "was ***");
    assert_eq!(masked(&masker, "was hunt"), "was hunt");
}

#[test]
fn json_is_masked_in_texts_keys_and_numbers() {
    let mut value = json!({"a": ["x hunter22 y", 31415926, 3, true, null], "hunter22": {"n": "31415926"}});
    masker(&["hunter22", "31415926"]).json(&mut value);
    assert_eq!(value, json!({"a": ["x *** y", "***", 3, true, null], "***": {"n": "***"}}));
}

#[test]
fn a_large_secret_is_found_by_the_small_automaton() {
    let secret: String = (0..60_000_u32).map(|n| char::from(b'a' + (n.wrapping_mul(2_654_435_761) >> 24) as u8 % 26)).collect();
    let masker = masker(&[&secret]);
    let text = format!("<{secret}|{}>", base64::engine::general_purpose::STANDARD.encode(&secret));
    assert_eq!(in_pieces(&masker, text.as_bytes().chunks(1000)), b"<***|***>");
}

#[test]
fn nothing_prints_what_is_looked_for() {
    let masker = masker(&["hunter2hunter2"]);
    let mut stream = masker.stream().unwrap();
    stream.push(b"hunter2", &mut |_| ());
    assert!(!format!("{masker:?} {stream:?}").contains("hunter"));
}

#[test]
fn the_workers_own_log_is_masked_while_the_attempt_lives() {
    let line = b"oops: live-secret-0815";
    let live = masker(&["live-secret-0815"]).enlist();
    assert_eq!(redact(line).as_ref(), b"oops: ***");
    drop(live);
    assert_eq!(redact(line).as_ref(), line);
}

/// Texts of few different characters, so that secrets begin, repeat and overlap often.
fn texts(len: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop::sample::select(b"ab\n\"".to_vec()), len)
}

fn naive(patterns: &[Vec<u8>], text: &[u8]) -> Vec<bool> {
    let mut covered = vec![false; text.len()];
    for pattern in patterns {
        for at in 0..text.len().saturating_sub(pattern.len() - 1) {
            if text[at..].starts_with(pattern) {
                covered[at..at + pattern.len()].fill(true);
            }
        }
    }
    covered
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 512 }))]

    #[test]
    fn where_the_output_is_cut_makes_no_difference(
        secrets in prop::collection::vec(texts(6..12), 1..4),
        text in texts(0..200),
        cuts in prop::collection::vec(0_usize..200, 0..20),
    ) {
        let masker = Masker::new(secrets.iter().map(Vec::as_slice)).unwrap();
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).chain([0, text.len()]).collect();
        cuts.sort_unstable();
        let pieces = cuts.windows(2).map(|w| &text[w[0]..w[1]]);
        let whole = in_pieces(&masker, [text.as_slice()]);
        prop_assert_eq!(&in_pieces(&masker, pieces), &whole);
        prop_assert_eq!(&in_pieces(&masker, text.chunks(1)), &whole);
    }

    #[test]
    fn exactly_the_secrets_are_missing(secrets in prop::collection::vec(texts(6..12), 1..4), text in texts(0..200)) {
        let masker = Masker::new(secrets.iter().map(Vec::as_slice)).unwrap();
        let patterns = forms::all(secrets.iter().map(Vec::as_slice));
        // A last character that is in no form, so that nothing is left over at the end.
        let text = [text, vec![0]].concat();
        let out = in_pieces(&masker, [text.as_slice()]);
        for pattern in &patterns {
            prop_assert!(!out.windows(pattern.len()).any(|w| w == pattern), "{:?} in {:?}", pattern, out);
        }
        let covered = naive(&patterns, &text);
        let kept: Vec<u8> = text.iter().zip(&covered).filter(|(_, covered)| !**covered).map(|(byte, _)| *byte).collect();
        let left: Vec<u8> = out.iter().copied().filter(|byte| *byte != b'*').collect();
        prop_assert_eq!(left, kept);
    }
}
