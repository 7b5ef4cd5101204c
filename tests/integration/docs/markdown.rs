//! What a Markdown document holds that can be wrong: commands, links, headings.

use std::path::{Path, PathBuf};

use pulldown_cmark::{CodeBlockKind, Event, HeadingLevel, Options, Parser, Tag, TagEnd};

/// One document of the repository.
#[derive(Debug)]
pub struct Document {
    /// Its path, from the repository's top.
    pub path: PathBuf,
    /// Fenced blocks, in order.
    pub blocks: Vec<Block>,
    /// Where links and pictures lead, with their lines.
    pub links: Vec<(usize, String)>,
    /// What a link can name after `#`.
    pub anchors: Vec<String>,
    /// `code` in the text, with line and the section it stands in.
    pub spans: Vec<Span>,
}

/// A fenced block.
#[derive(Debug, Clone)]
pub struct Block {
    /// Line of its first line of content.
    pub line: usize,
    /// What stands after the fence.
    pub language: String,
    /// What is between the fences.
    pub text: String,
    /// What the invisible comment right before it says.
    pub remark: Option<String>,
    /// Whether nothing stands between it and the block before.
    pub follows: bool,
}

/// Code within a sentence.
#[derive(Debug)]
pub struct Span {
    pub line: usize,
    pub text: String,
    /// The first code of the paragraph, when the paragraph begins with it: `docs/cli.md` has a paragraph for each verb.
    pub topic: Option<String>,
}

impl Block {
    /// What the remark says after that word: `not run: needs root` is "needs root" for `not run`.
    pub fn remarked(&self, word: &str) -> Option<&str> {
        self.remark.as_deref()?.strip_prefix(word)?.strip_prefix(':').map(str::trim)
    }
}

/// The repository's top.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Markdown file that belongs to the repository.
pub fn all() -> Vec<Document> {
    let mut found = Vec::new();
    collect(root(), &mut found);
    found.sort();
    found.into_iter().map(Document::read).collect()
}

fn collect(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("a directory of the repository").flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        // What is built, fetched or hidden is nobody's document.
        if name.starts_with('.') || ["target", "node_modules", "artifacts"].contains(&name.as_ref()) {
            continue;
        }
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|e| e == "md") {
            found.push(path);
        }
    }
}

impl Document {
    fn read(path: PathBuf) -> Self {
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Self::parse(path.strip_prefix(root()).expect("in the repository").to_owned(), &text)
    }

    /// Reads one.
    pub fn parse(path: PathBuf, text: &str) -> Self {
        let document = Self { path, blocks: vec![], links: vec![], anchors: vec![], spans: vec![] };
        let mut reader = Reader { document, state: State::default() };
        for (event, range) in Parser::new_ext(text, Options::ENABLE_TABLES).into_offset_iter() {
            let line = text[..range.start].matches('\n').count() + 1;
            reader.take(event, line);
        }
        reader.document
    }

    /// Its directory, in the repository.
    pub fn dir(&self) -> &Path {
        self.path.parent().expect("a file")
    }
}

/// Where the reader is.
#[derive(Debug, Default)]
struct State {
    remark: Option<String>,
    block: Option<Block>,
    heading: Option<String>,
    topic: Option<String>,
    /// Something was read in this paragraph before.
    began: bool,
    /// The last thing read was a block.
    after_block: bool,
}

struct Reader {
    document: Document,
    state: State,
}

#[expect(clippy::wildcard_enum_match_arm, reason = "of all that Markdown has, few things can be wrong")]
impl Reader {
    fn take(&mut self, event: Event<'_>, line: usize) {
        match event {
            Event::Start(tag) => self.start(tag, line),
            Event::End(tag) => self.end(tag),
            Event::Html(html) => self.state.remark = remark(&html).or(self.state.remark.take()),
            Event::Text(text) => self.text(&text),
            Event::Code(code) => self.code(&code, line),
            _ => {}
        }
    }

    fn start(&mut self, tag: Tag<'_>, line: usize) {
        match tag {
            Tag::CodeBlock(kind) => {
                let language = match kind {
                    CodeBlockKind::Fenced(language) => language.to_string(),
                    CodeBlockKind::Indented => String::new(),
                };
                let (remark, follows) = (self.state.remark.take(), self.state.after_block);
                self.state.block = Some(Block { line: line + 1, language, text: String::new(), remark, follows });
            }
            Tag::HtmlBlock => {}
            Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. } => self.document.links.push((line, dest_url.to_string())),
            Tag::Heading { level, .. } => {
                assert!(level <= HeadingLevel::H4, "{}:{line}: too deep", self.document.path.display());
                self.state = State { heading: Some(String::new()), ..State::default() };
            }
            Tag::Paragraph | Tag::TableRow | Tag::Item => {
                self.state = State { block: None, ..State::default() };
            }
            _ => self.state.after_block = false,
        }
    }

    fn end(&mut self, tag: TagEnd) {
        match tag {
            TagEnd::CodeBlock => {
                self.document.blocks.extend(self.state.block.take());
                self.state.after_block = true;
            }
            TagEnd::Heading(_) => {
                let heading = self.state.heading.take().unwrap_or_default();
                self.document.anchors.push(anchor(&heading, &self.document.anchors));
            }
            _ => {}
        }
    }

    fn text(&mut self, text: &str) {
        match (&mut self.state.block, &mut self.state.heading) {
            (Some(block), _) => block.text.push_str(text),
            (None, Some(heading)) => heading.push_str(text),
            (None, None) => self.state.began |= !text.trim().is_empty(),
        }
    }

    fn code(&mut self, code: &str, line: usize) {
        if let Some(heading) = &mut self.state.heading {
            heading.push_str(code);
        } else if !self.state.began {
            self.state.topic = Some(code.to_owned());
            self.state.began = true;
        }
        self.document.spans.push(Span { line, text: code.to_owned(), topic: self.state.topic.clone() });
    }
}

/// What an invisible comment says.
fn remark(html: &str) -> Option<String> {
    Some(html.trim().strip_prefix("<!--")?.strip_suffix("-->")?.trim().to_owned())
}

/// The name that a heading gets on the usual hosts of repositories: lower case, spaces as hyphens, no punctuation; a number when
/// it is not the first of that name.
fn anchor(heading: &str, before: &[String]) -> String {
    let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    let name: String = kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect();
    match before.iter().filter(|b| **b == name || b.strip_prefix(&format!("{name}-")).is_some_and(|n| n.parse::<u32>().is_ok())).count() {
        0 => name,
        n => format!("{name}-{n}"),
    }
}

#[test]
fn documents_are_read_as_they_are_meant() {
    let text = "# A `b`, c\n\nText `windlass x --y`, [link](d.md#e).\n\n<!-- not run: why -->\n```sh\nls\n```\n```text\nout\n```\n\n## A b c\n\n**`windlass v`** does `--z`.\n";
    let document = Document::parse("x.md".into(), text);
    assert_eq!(document.anchors, ["a-b-c", "a-b-c-1"]);
    assert_eq!(document.links, [(3, "d.md#e".to_owned())]);
    let [shell, shown] = &document.blocks[..] else { panic!("{document:?}") };
    assert_eq!((shell.line, shell.text.as_str(), shell.remarked("not run"), shell.follows), (7, "ls\n", Some("why"), false));
    assert_eq!((shown.language.as_str(), shown.remark.as_deref(), shown.follows), ("text", None, true));
    let topics: Vec<_> = document.spans.iter().map(|s| (s.text.as_str(), s.topic.as_deref())).collect();
    assert_eq!(topics, [("b", None), ("windlass x --y", None), ("windlass v", Some("windlass v")), ("--z", Some("windlass v"))]);
}
