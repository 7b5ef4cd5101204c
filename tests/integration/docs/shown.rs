//! Whether a command printed what the document shows beside it.

/// The first line that differs, or nothing. Times, ids, durations and sizes count as equal; `…` stands for any rest of words
/// within a line, and alone on a line for any number of lines.
pub fn difference(expected: &str, actual: &str) -> Option<String> {
    let expected: Vec<String> = expected.lines().map(normal).collect();
    let actual: Vec<String> = actual.lines().map(normal).collect();
    let mut furthest = 0;
    if lines_match(&expected, &actual, 0, &mut furthest) {
        return None;
    }
    Some(format!("line {} should be {:?}", furthest + 1, expected.get(furthest).map_or("the end", String::as_str)))
}

fn lines_match(expected: &[String], actual: &[String], at: usize, furthest: &mut usize) -> bool {
    *furthest = (*furthest).max(at);
    match (expected.split_first(), actual.split_first()) {
        (None, rest) => rest.is_none(),
        (Some((any, later)), _) if any == "…" => (0..=actual.len()).any(|n| lines_match(later, &actual[n..], at + 1, furthest)),
        (Some((line, later)), Some((found, rest))) => line_matches(line, found) && lines_match(later, rest, at + 1, furthest),
        (Some(_), None) => false,
    }
}

fn line_matches(pattern: &str, line: &str) -> bool {
    let mut parts = pattern.split('…');
    let Some(rest) = line.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    let mut rest = rest;
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// A line with one blank between words, and with names for what differs from run to run.
pub fn normal(line: &str) -> String {
    let mut words: Vec<String> = Vec::new();
    for word in line.split_whitespace() {
        let (core, tail) = word.split_at(word.trim_end_matches([',', ';', ':', '.', ')']).len());
        let unit = match core {
            "ms" | "s" | "min" | "h" => Some("TIME"),
            "bytes" | "KiB" | "MiB" | "GiB" => Some("SIZE"),
            _ => None,
        };
        let number = words.last().is_some_and(|last| is_number(last));
        match unit {
            Some(unit) if number => {
                words.pop();
                // "1 min 1 s" is one duration.
                if words.last().is_some_and(|last| last == unit) {
                    words.pop();
                }
                words.push(format!("{unit}{tail}"));
            }
            _ if is_uuid(core) => words.push(format!("ID{tail}")),
            _ if is_time(core) => words.push(format!("CLOCK{tail}")),
            _ => words.push(word.to_owned()),
        }
    }
    words.join(" ")
}

fn is_number(word: &str) -> bool {
    let word = word.strip_prefix('<').unwrap_or(word);
    !word.is_empty() && word.chars().all(|c| c.is_ascii_digit() || c == '.')
}

fn is_uuid(word: &str) -> bool {
    let parts: Vec<usize> = word.split('-').map(str::len).collect();
    parts == [8, 4, 4, 4, 12] && word.chars().all(|c| c == '-' || c.is_ascii_hexdigit())
}

/// `10:02:11.482` or `2026-11-21T10:02:11Z`.
fn is_time(word: &str) -> bool {
    let clock = word.rsplit('T').next().unwrap_or_default();
    let digits = |s: &str| !s.is_empty() && s.chars().all(|c| c.is_ascii_digit() || c == '.');
    let parts: Vec<&str> = clock.trim_end_matches('Z').split(':').collect();
    parts.len() == 3 && parts.iter().all(|part| digits(part))
}

#[test]
fn what_differs_from_run_to_run_is_equal_and_nothing_else() {
    let same = |a: &str, b: &str| difference(a, b).is_none();
    assert!(same("  1  10:02:11.482  took 840 ms", " 1 11:00:00.000  took 1.2 s"));
    assert!(same("queued as task 0198f3a0-7c11-7000-8000-0123456789ab", "queued as task 0198f3a0-0000-7000-8000-0123456789ff"));
    assert!(same("512.0 MiB, 1 min 1 s", "1.5 KiB, 3 ms"));
    assert!(
        same("a … z", "a b c z")
            && same("a\n…\nz", "a\nb\nc\nz\n")
            && same("…", "")
            && same("at 2026-11-21T10:00:00Z", "at 2026-01-01T00:00:00.1Z")
    );
    assert!(!same("exit code 3", "exit code 4"));
    assert!(!same("a", "a\nb") && !same("a\nb", "a") && !same("a … z", "a b c") && !same("…\nz", "a\nb"));
    assert_eq!(difference("a\nb\nc", "a\nx\nc").as_deref(), Some("line 2 should be \"b\""));
}
