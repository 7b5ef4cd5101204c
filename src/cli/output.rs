//! What a verb says: data on stdout, notices on stderr; tables or JSON; colours only where a person looks.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use super::Failed;
use super::terminal::{Screen, is_harmful};

/// The form of what goes to stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Aligned columns, for people; may change.
    Table,
    /// JSON, one object a line; a contract.
    Json,
}

/// Where a verb's words go.
#[derive(Debug)]
pub struct Output {
    format: Format,
    colour: bool,
    colour_notices: bool,
    watched: bool,
    /// Where stdout and stderr are terminals.
    screens: [Option<Mutex<Screen>>; 2],
}

/// How a word is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// As it is.
    Plain,
    /// Good.
    Green,
    /// Bad.
    Red,
    /// To be looked at.
    Yellow,
    /// Beside the point.
    Dim,
    /// A heading.
    Bold,
}

impl Style {
    fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Green => "\x1b[32m",
            Self::Red => "\x1b[31m",
            Self::Yellow => "\x1b[33m",
            Self::Dim => "\x1b[2m",
            Self::Bold => "\x1b[1m",
        }
    }
}

/// Text of a style, when colours are wanted.
pub(super) fn paint(text: &str, style: Style, colour: bool) -> String {
    if colour && style != Style::Plain { format!("{}{text}\x1b[0m", style.code()) } else { text.to_owned() }
}

impl Output {
    /// Of this process.
    #[must_use]
    pub fn new(format: Format) -> Self {
        // https://no-color.org: any value but the empty one.
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty()) || std::env::var_os("TERM").is_some_and(|t| t == "dumb");
        Self {
            format,
            colour: !unwanted && io::stdout().is_terminal(),
            colour_notices: !unwanted && io::stderr().is_terminal(),
            watched: io::stderr().is_terminal(),
            screens: [io::stdout().is_terminal(), io::stderr().is_terminal()].map(|terminal| terminal.then(Mutex::default)),
        }
    }

    pub(crate) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// True when stdout wants colours.
    pub(crate) fn colour(&self) -> bool {
        self.colour
    }

    /// One line of data.
    pub(crate) fn line(&self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        writeln!(out, "{text}")?;
        out.flush()
    }

    /// One JSON object on a line. What could drive a terminal stands in it as an escape, which means the same.
    pub(crate) fn json(&self, value: &impl Serialize) -> io::Result<()> {
        self.line(&escaped(&serde_json::to_string(value)?))
    }

    /// A table.
    pub(super) fn table(&self, table: &Table) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(table.render(self.colour).as_bytes())?;
        out.flush()
    }

    /// Where a table that changes is shown.
    pub(super) fn frames(&self) -> Frames<'_> {
        Frames { output: self, opened: false }
    }

    /// Output of a task, to stdout or stderr: as it is, but on a terminal nothing that drives one.
    pub(super) fn of_task(&self, bytes: &[u8], to_stderr: bool) -> io::Result<()> {
        match &self.screens[usize::from(to_stderr)] {
            Some(screen) => {
                let shown = screen.lock().unwrap_or_else(PoisonError::into_inner).show(bytes);
                self.raw(shown.as_bytes(), to_stderr)
            }
            None => self.raw(bytes, to_stderr),
        }
    }

    /// There is no more output of tasks.
    pub(super) fn end_of_task(&self) -> io::Result<()> {
        for (to_stderr, screen) in [false, true].into_iter().zip(&self.screens) {
            if let Some(screen) = screen {
                let rest = screen.lock().unwrap_or_else(PoisonError::into_inner).end();
                self.raw(rest.as_bytes(), to_stderr)?;
            }
        }
        Ok(())
    }

    /// Bytes as they are, to stdout or stderr.
    pub(super) fn raw(&self, bytes: &[u8], to_stderr: bool) -> io::Result<()> {
        if to_stderr {
            io::stderr().lock().write_all(bytes)
        } else {
            let mut out = io::stdout().lock();
            out.write_all(bytes)?;
            out.flush()
        }
    }

    /// A notice for whoever watches: only when stderr is a terminal.
    pub(super) fn notice(&self, text: &str) {
        if self.watched {
            self.say(text, Style::Dim);
        }
    }

    /// A plain line for whoever watches.
    pub(crate) fn tell(&self, text: &str) {
        self.say(text, Style::Plain);
    }

    /// A notice that matters also in a log.
    pub(super) fn warn(&self, text: &str) {
        self.say(text, Style::Yellow);
    }

    /// Why a verb failed.
    pub(crate) fn failed(&self, failed: &Failed) {
        if failed.message.is_empty() {
            return;
        }
        if self.is_json() {
            let error = serde_json::json!({"ok": false, "error": failed.message, "hint": failed.hint, "exit_code": failed.exit.code()});
            // Nobody is left to tell when stderr is closed.
            let _ = writeln!(io::stderr().lock(), "{error}");
            return;
        }
        self.say(&failed.message, Style::Red);
        if let Some(hint) = &failed.hint {
            self.say(hint, Style::Dim);
        }
    }

    fn say(&self, text: &str, style: Style) {
        // In one write, so that processes that share a terminal keep to lines.
        let line = paint(&format!("windlass: {}", visible(text)), style, self.colour_notices) + "\n";
        let _ = io::stderr().lock().write_all(line.as_bytes());
    }
}

/// A table that is shown again and again: in place on a terminal, one after the other elsewhere.
#[derive(Debug)]
pub(super) struct Frames<'a> {
    output: &'a Output,
    opened: bool,
}

impl Frames<'_> {
    /// Shows the next one.
    pub(super) fn show(&mut self, table: &Table) -> io::Result<()> {
        let text = table.render(self.output.colour);
        let first = !std::mem::replace(&mut self.opened, true);
        let mut out = io::stdout().lock();
        match (io::stdout().is_terminal(), first) {
            // The terminal's second screen, so that what was there before is there again afterwards; then from its top.
            (true, true) => write!(out, "\x1b[?1049h\x1b[H\x1b[2J{text}")?,
            (true, false) => write!(out, "\x1b[H\x1b[2J{text}")?,
            (false, true) => write!(out, "{text}")?,
            (false, false) => write!(out, "\n{text}")?,
        }
        out.flush()
    }
}

impl Drop for Frames<'_> {
    fn drop(&mut self) {
        if self.opened && io::stdout().is_terminal() {
            // Nobody is left to tell when it is closed.
            let _ = write!(io::stdout().lock(), "\x1b[?1049l").and_then(|()| io::stdout().flush());
        }
    }
}

/// Columns for people.
#[derive(Debug, Default)]
pub(super) struct Table {
    rows: Vec<Vec<(String, Style)>>,
}

impl Table {
    /// With a heading.
    pub(super) fn new(columns: &[&str]) -> Self {
        Self { rows: vec![columns.iter().map(|c| ((*c).to_owned(), Style::Bold)).collect()] }
    }

    /// Without one: a list of keys and values.
    pub(super) fn pairs() -> Self {
        Self::default()
    }

    /// Adds a row. Control characters are made visible: what tasks write into events must not drive a terminal.
    pub(super) fn row(&mut self, cells: Vec<(String, Style)>) {
        self.rows.push(cells.into_iter().map(|(text, style)| (visible(&text).replace('\n', " "), style)).collect());
    }

    /// Adds a key and its value, when there is one.
    pub(super) fn pair(&mut self, key: &str, value: Option<impl ToString>) {
        if let Some(value) = value {
            self.row(vec![(key.to_owned(), Style::Dim), (value.to_string(), Style::Plain)]);
        }
    }

    fn render(&self, colour: bool) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| self.rows.iter().filter_map(|r| r.get(column)).map(|(t, _)| t.chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (column, (cell, style)) in row.iter().enumerate() {
                line.push_str(&paint(cell, *style, colour));
                if column + 1 < row.len() {
                    line.push_str(&" ".repeat(widths[column] + 2 - cell.chars().count()));
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// The text with what could drive a terminal replaced; line ends and tabs stay.
pub(super) fn visible(text: &str) -> String {
    text.chars().map(|c| if is_harmful(c) { '\u{fffd}' } else { c }).collect()
}

/// JSON with what could drive a terminal escaped: the characters of which JSON itself escapes only some.
fn escaped(json: &str) -> String {
    if !json.contains(is_harmful) {
        return json.to_owned();
    }
    let mut text = String::with_capacity(json.len() + 64);
    for c in json.chars() {
        // They occur within strings only, and all have one code unit.
        let _ = if is_harmful(c) { write!(text, "\\u{:04x}", u32::from(c)) } else { text.write_char(c) };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_nothing_trails() {
        let mut table = Table::new(&["TASK", "STATE", ""]);
        table.row(vec![("a".to_owned(), Style::Plain), ("RUNNING".to_owned(), Style::Green), (String::new(), Style::Plain)]);
        table.row(vec![("longer".to_owned(), Style::Plain), ("über".to_owned(), Style::Plain), ("x".to_owned(), Style::Plain)]);
        assert_eq!(table.render(false), "TASK    STATE\na       RUNNING\nlonger  über     x\n");
        assert!(table.render(true).contains("\x1b[32mRUNNING\x1b[0m"));
    }

    #[test]
    fn json_means_the_same_and_drives_nothing() {
        let value = serde_json::json!({"a": "\u{9b}2J \u{7f} \u{202e} \x1b ü", "b\u{85}": [1]});
        let text = escaped(&value.to_string());
        assert!(!text.contains(is_harmful), "{text:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }

    #[test]
    fn what_a_task_wrote_cannot_drive_the_terminal() {
        let mut table = Table::pairs();
        table.pair("error", Some("red \x1b[31m\x07\ntwo lines"));
        assert_eq!(table.render(false), "error  red \u{fffd}[31m\u{fffd} two lines\n");
    }
}
