//! `windlass completions`, `windlass man`: for shells and for `man`, made from the command line as it is.

use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Command, CommandFactory as _, ValueEnum};
use clap_mangen::Man;

use super::{Cli, Exit, Failed, Global, Output};
use crate::version::VERSION;

/// `windlass completions`
#[derive(Debug, Clone, Args)]
pub struct CompletionsArgs {
    /// For which shell
    pub shell: Shell,
}

/// Shells that completions are tested for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// source <(windlass completions bash)
    Bash,
    /// windlass completions zsh > "${fpath[1]}/_windlass"
    Zsh,
    /// windlass completions fish > ~/.config/fish/completions/windlass.fish
    Fish,
}

/// `windlass man`
#[derive(Debug, Clone, Args)]
pub struct ManArgs {
    /// Where to, one page for each verb [default: the page of windlass itself, on stdout]
    pub dir: Option<PathBuf>,
}

/// Runs `completions`.
pub(super) fn completions(args: &CompletionsArgs, output: &Output) -> Result<Exit, Failed> {
    let mut text = Vec::new();
    let shell = match args.shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    clap_complete::generate(shell, &mut offered(), "windlass", &mut text);
    output.raw(&text, false)?;
    Ok(Exit::Done)
}

/// Runs `man`.
pub(super) fn man(args: &ManArgs, output: &Output) -> Result<Exit, Failed> {
    let Some(dir) = &args.dir else {
        let mut page = Vec::new();
        page_of(offered()).render(&mut page)?;
        output.raw(&page, false)?;
        return Ok(Exit::Done);
    };
    let written = std::fs::create_dir_all(dir).and_then(|()| {
        let mut all = offered().disable_help_subcommand(true);
        // Only then do verbs of verbs know their whole names.
        all.build();
        pages(&all, dir)
    });
    written.map_err(|e| Failed::new(Exit::Error, format!("cannot write into {}: {e}", dir.display())))?;
    Ok(Exit::Done)
}

/// The command line without what is not for people: completions would offer it.
fn offered() -> Command {
    let all = Cli::command();
    let shown: Vec<Command> = all.get_subcommands().filter(|verb| !verb.is_hide_set()).cloned().collect();
    let base = Command::new("windlass").version(VERSION).about(all.get_about().cloned().unwrap_or_default());
    <Global as Args>::augment_args(base).subcommand_required(true).subcommands(shown)
}

fn page_of(command: Command) -> Man {
    Man::new(command).source(format!("windlass {VERSION}")).manual("Windlass")
}

/// A page for `command` and for each verb below it.
fn pages(command: &Command, dir: &Path) -> io::Result<()> {
    for verb in command.get_subcommands() {
        pages(verb, dir)?;
    }
    page_of(command.clone()).generate_to(dir).map(drop)
}
