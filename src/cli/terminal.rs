//! What a task wrote, made safe for a terminal.
//!
//! A terminal obeys what it is shown: text that is only looked at can rename the window, fill the clipboard, answer with
//! keystrokes, or paint over what stands above. Colours and the like (`ESC [ … m`), tabs, line ends and carriage returns pass;
//! every other control character, and those that turn the direction of text, become U+FFFD, and the rest of a sequence is text.
//! Where no terminal is, bytes pass as they are.

/// Longest sequence that sets colours.
const LONGEST: usize = 64;
/// What stands for a character that may not pass.
const REPLACEMENT: char = '\u{fffd}';

/// True for what must not reach a terminal: control characters and those that turn the direction of text or end its line.
/// Tabs and line ends are fine.
pub(super) fn is_harmful(c: char) -> bool {
    match c {
        '\n' | '\t' => false,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => true,
        c => c.is_control(),
    }
}

/// One stream of output on a terminal. Sequences and characters may be cut anywhere.
#[derive(Debug, Default)]
pub(super) struct Screen {
    /// The beginning of a character.
    bytes: Vec<u8>,
    /// The beginning of a sequence.
    sequence: String,
    coloured: bool,
}

impl Screen {
    /// What may be shown of the next bytes.
    pub(super) fn show(&mut self, bytes: &[u8]) -> String {
        let mut input = std::mem::take(&mut self.bytes);
        input.extend_from_slice(bytes);
        let mut shown = String::with_capacity(input.len());
        let mut chunks = input.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            for c in chunk.valid().chars() {
                self.next(c, &mut shown);
            }
            let invalid = chunk.invalid();
            let unfinished = chunks.peek().is_none() && std::str::from_utf8(invalid).is_err_and(|e| e.error_len().is_none());
            if unfinished {
                invalid.clone_into(&mut self.bytes);
            } else if !invalid.is_empty() {
                self.next(REPLACEMENT, &mut shown);
            }
        }
        shown
    }

    fn next(&mut self, c: char, shown: &mut String) {
        if !self.sequence.is_empty() {
            let belongs = match self.sequence.len() {
                1 => c == '[',
                n => n < LONGEST && (c.is_ascii_digit() || matches!(c, ';' | ':' | 'm')),
            };
            if belongs {
                self.sequence.push(c);
                if c == 'm' {
                    shown.push_str(&std::mem::take(&mut self.sequence));
                    self.coloured = true;
                }
                return;
            }
            self.give_up(shown);
        }
        match c {
            '\x1b' => self.sequence.push(c),
            '\r' => shown.push(c),
            c if is_harmful(c) => shown.push(REPLACEMENT),
            c => shown.push(c),
        }
    }

    /// It is no sequence that may pass: its rest is text.
    fn give_up(&mut self, shown: &mut String) {
        if !self.sequence.is_empty() {
            shown.push(REPLACEMENT);
            shown.push_str(&self.sequence[1..]);
            self.sequence.clear();
        }
    }

    /// What is still to be shown when the output is over.
    pub(super) fn end(&mut self) -> String {
        let mut shown = String::new();
        self.give_up(&mut shown);
        if !std::mem::take(&mut self.bytes).is_empty() {
            shown.push(REPLACEMENT);
        }
        if std::mem::take(&mut self.coloured) {
            shown.push_str("\x1b[0m");
        }
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: impl AsRef<[u8]>) -> String {
        let mut screen = Screen::default();
        screen.show(text.as_ref()) + &screen.end()
    }

    #[test]
    fn colours_pass_and_nothing_else() {
        for (text, expected) in [
            ("plain\ttext\r\n", "plain\ttext\r\n"),
            ("\x1b[1;31mred\x1b[0m", "\x1b[1;31mred\x1b[0m\x1b[0m"),
            ("\x1b[38:5:7mgrey", "\x1b[38:5:7mgrey\x1b[0m"),
            ("\x1b]0;title\x07x", "\u{fffd}]0;title\u{fffd}x"),
            ("\x1b]52;c;cm0=\x1b\\x", "\u{fffd}]52;c;cm0=\u{fffd}\\x"),
            ("\x1b[2J\x1b[1;1Hx", "\u{fffd}[2J\u{fffd}[1;1Hx"),
            ("\x1b[>c\x1b[6n\x1bc", "\u{fffd}[>c\u{fffd}[6n\u{fffd}c"),
            ("\x1b\x1b[0m", "\u{fffd}\x1b[0m\x1b[0m"),
            ("\u{9b}2Jx\u{7f}\u{8}\0", "\u{fffd}2Jx\u{fffd}\u{fffd}\u{fffd}"),
            ("a\u{202e}b\u{2066}c\u{2028}d", "a\u{fffd}b\u{fffd}c\u{fffd}d"),
            ("über 日本", "über 日本"),
            ("cut \x1b[3", "cut \u{fffd}[3"),
        ] {
            assert_eq!(shown(text), expected, "{text:?}");
        }
        assert_eq!(shown(b"a\x9b2Jb\xffc"), "a\u{fffd}2Jb\u{fffd}c", "eight-bit controls are no UTF-8");
        assert!(!shown(format!("\x1b[{}m", "1;".repeat(100))).contains('\x1b'), "too long to be a colour");
    }

    #[test]
    fn it_makes_no_difference_where_output_is_cut() {
        let text = "a\x1b[31mü日\x1b]0;x\x07\u{9b}K\u{202e}\x1b[0m end \x1b".as_bytes();
        let whole = shown(text);
        for cut in 0..=text.len() {
            let mut screen = Screen::default();
            let parts = screen.show(&text[..cut]) + &screen.show(&text[cut..]) + &screen.end();
            assert_eq!(parts, whole, "cut at {cut}");
        }
        let mut screen = Screen::default();
        let single: String = text.iter().map(|b| screen.show(&[*b])).collect();
        assert_eq!(single + &screen.end(), whole);
    }
}
