//! Verbs and options that a document names, against those that there are.

use clap::{Arg, Command};

use super::markdown::{Block, Document};

/// Options of other programs that the documents name alone, without their program beside them.
const FOREIGN: [&str; 4] = ["--cgroupns", "--features", "--locked", "--release"];

/// Options that clap adds when it reads a command line.
const EVERYWHERE: [&str; 2] = ["help", "version"];

/// What a document names and the command line does not have, with its place.
pub fn unknown(cli: &Command, document: &Document) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut check = |line: usize, found: Result<(), String>| {
        if let Err(what) = found {
            wrong.push(format!("{}:{line}: {what}", document.path.display()));
        }
    };
    for span in &document.spans {
        if let Some(words) = span.text.strip_prefix("windlass ") {
            check(span.line, known(cli, words));
        } else if span.text.starts_with("--") && !document.path.starts_with("examples") {
            // There they are of the programs that lie beside it.
            let topic = span.topic.as_deref().and_then(|topic| topic.strip_prefix("windlass "));
            check(span.line, alone(cli, topic, &span.text));
        }
    }
    let commands_of = |block: &&Block| ["sh", "console"].contains(&block.language.as_str());
    for block in document.blocks.iter().filter(commands_of) {
        let text = block.text.replace("\\\n", " ");
        for (n, line) in text.lines().enumerate() {
            let line = unquoted(line);
            let line = line.split(" #").next().unwrap_or_default();
            for words in commands(line) {
                check(block.line + n, known(cli, words));
            }
        }
    }
    wrong
}

/// With one word in place of each quoted text, which may look like anything.
fn unquoted(line: &str) -> String {
    let (mut text, mut quote) = (String::new(), None);
    for c in line.chars() {
        match quote {
            None if c == '"' || c == '\'' => {
                text.push('Q');
                quote = Some(c);
            }
            None => text.push(c),
            Some(open) => quote = Some(open).filter(|open| *open != c),
        }
    }
    text
}

/// What follows `windlass` wherever it stands as a command.
fn commands(line: &str) -> impl Iterator<Item = &str> {
    line.match_indices("windlass ").filter_map(|(at, found)| {
        let before = line[..at].trim_end_matches(['/']).chars().next_back();
        let begins = at == 0 || before.is_some_and(|c| " $(;|&".contains(c)) || line[..at].ends_with("release/");
        let after = &line[at + found.len()..];
        // `cd windlass && …`, `-p windlass`: a verb is a word of small letters.
        let verb = after.starts_with(|c: char| c.is_ascii_lowercase());
        (begins && verb).then(|| after.split([';', '|', '&', ')', '>']).next().unwrap_or_default())
    })
}

/// `status ID --tenant acme`: each word that must be a verb is one, each option is one of it or of all.
fn known(cli: &Command, words: &str) -> Result<(), String> {
    let mut verbs = vec![cli];
    let mut rest = words.split_whitespace().map(|word| word.trim_matches(['[', ']', '(', ')', ',', '`', '…', '.']));
    while let Some(word) = rest.next().filter(|word| *word != "--") {
        if word.starts_with('-') {
            let found = verbs.iter().chain([&cli]).find_map(|command| argument(command, word));
            if found.is_none() && long(word).is_some_and(|name| !EVERYWHERE.contains(&name)) {
                return Err(format!("windlass {words}: no {word}"));
            }
            if found.is_some_and(|argument| argument.get_action().takes_values()) && !word.contains('=') {
                rest.next();
            }
        } else if word.starts_with(|c: char| c.is_ascii_lowercase()) && verbs.iter().any(|verb| verb.has_subcommands()) {
            // `dead list|show|requeue` names three.
            let named = word.split('|').map(|one| find(&verbs, one).ok_or_else(|| format!("windlass {words}: no verb {one}")));
            verbs = named.collect::<Result<_, _>>()?;
        }
    }
    Ok(())
}

/// The argument that `-o` or `--output=json` is.
fn argument<'a>(command: &'a Command, word: &str) -> Option<&'a Arg> {
    let short = word.strip_prefix('-').and_then(|rest| rest.chars().next());
    command.get_arguments().find(|argument| match long(word) {
        Some(name) => argument.get_long() == Some(name),
        None => argument.get_short() == short,
    })
}

fn find<'a>(commands: &[&'a Command], name: &str) -> Option<&'a Command> {
    commands.iter().find_map(|command| command.find_subcommand(name))
}

/// `--wait`, within a paragraph about a verb or anywhere else.
fn alone(cli: &Command, topic: Option<&str>, text: &str) -> Result<(), String> {
    let Some(option) = text.split_whitespace().next().and_then(long) else { return Ok(()) };
    if FOREIGN.iter().any(|foreign| foreign.strip_prefix("--") == Some(option)) {
        return Ok(());
    }
    // The paragraph's own verb, or `dead` of `dead list`; anything goes where there is none.
    let verbs = topic.and_then(|topic| topic.split_whitespace().next()).into_iter().flat_map(|verb| verb.split('|'));
    let verbs: Vec<&Command> = verbs.filter_map(|verb| cli.find_subcommand(verb)).collect();
    let known = if verbs.is_empty() { anywhere(cli, option) } else { has(cli, option) || verbs.iter().any(|verb| anywhere(verb, option)) };
    match topic {
        _ if known => Ok(()),
        Some(topic) => Err(format!("no --{option} of windlass {topic}")),
        None => Err(format!("no verb has --{option}")),
    }
}

fn anywhere(command: &Command, option: &str) -> bool {
    has(command, option) || command.get_subcommands().any(|sub| anywhere(sub, option))
}

fn has(command: &Command, option: &str) -> bool {
    EVERYWHERE.contains(&option) || command.get_arguments().any(|argument| argument.get_long() == Some(option))
}

/// The name of an option: `--output=json` and `--output|-o` are `output`.
fn long(word: &str) -> Option<&str> {
    let name = word.strip_prefix("--")?.split(['=', '|', '…']).next().unwrap_or_default();
    (!name.is_empty()).then_some(name)
}

#[test]
fn what_does_not_exist_is_found() {
    use clap::CommandFactory as _;
    let cli = windlass::cli::Cli::command();
    let text = "`windlass statsu ID` `windlass status ID --tenat x` `windlass dead list|shw`\n\n**`windlass logs ID`** has `--retry-on`.\n\n`--nowhere`\n\n```sh\nid=$(windlass submit x.json --wiat)\nwindlass run --memory 1MiB -- ls --no-such; windlass logs \"$id\" --folow\n```\n";
    let found = unknown(&cli, &Document::parse("x.md".into(), text));
    let wanted = ["statsu", "--tenat", "shw", "--retry-on", "--nowhere", "--wiat", "--folow"];
    assert!(found.len() == wanted.len() && found.iter().zip(wanted).all(|(f, w)| f.contains(w)), "{found:#?}");
    let text = "`windlass run [--] CMD…` `windlass dead list|show|requeue` **`windlass logs ID`** `--output table|json` `-f`\n\n```sh\ncargo build -p windlass\nwindlass -o json status x | jq .state\n```\n";
    assert_eq!(unknown(&cli, &Document::parse("x.md".into(), text)), Vec::<String>::new());
}
