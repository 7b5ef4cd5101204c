//! Where bytes may be cut without cutting a character.

/// Length of the longest prefix that does not end inside a UTF-8 character.
///
/// At most 3 bytes are left over, and only when they could become a character: a stray byte counts as whole.
pub(super) fn whole_chars(bytes: &[u8]) -> usize {
    for (back, byte) in bytes.iter().rev().take(3).enumerate() {
        let needed = match byte {
            0x80..=0xBF => continue,
            0xC2..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xF4 => 4,
            _ => 1,
        };
        return if back + 1 < needed { bytes.len() - back - 1 } else { bytes.len() };
    }
    bytes.len()
}

/// First index from `from` on that is not in the middle of a character; looks at 3 bytes at most.
pub(super) fn next_char(bytes: &[u8], from: usize) -> usize {
    let inside = bytes.iter().skip(from).take(3).take_while(|byte| (0x80..=0xBF).contains(*byte)).count();
    (from + inside).min(bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_is_kept_whole_and_stray_bytes_are_let_go() {
        for (bytes, whole, why) in [
            (&b""[..], 0, "nothing"),
            (b"abc", 3, "ASCII"),
            ("aé".as_bytes(), 3, "a complete pair"),
            (b"a\xC3", 1, "one of two"),
            (b"a\xE2\x82", 1, "two of three"),
            ("a€".as_bytes(), 4, "a complete triple"),
            (b"a\xF0\x9F\x98", 1, "three of four"),
            ("a😀".as_bytes(), 5, "a complete quadruple"),
            (b"\xF0\x9F\x98", 0, "only a beginning"),
            (b"\x80\x80\x80\x80\x80", 5, "only continuations"),
            (b"a\xFF", 2, "never valid"),
            (b"a\xC3\x28", 3, "a broken pair"),
        ] {
            assert_eq!(whole_chars(bytes), whole, "{why}");
        }
        assert_eq!(next_char("a€b".as_bytes(), 2), 4);
        assert_eq!(next_char("a€b".as_bytes(), 1), 1);
        assert_eq!(next_char(b"\x80\x80\x80\x80\x80", 0), 3, "binary: give up after three");
        assert_eq!(next_char(b"a", 1), 1);
    }
}
