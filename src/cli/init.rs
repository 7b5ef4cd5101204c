//! `windlass init`: streams and consumers, planned, shown and applied; nothing is destroyed.

use clap::Args;
use serde_json::json;

use super::output::{Style, Table};
use super::{Exit, Failed, Global, Output};
use crate::bus::provision::{self, Action, Change};

/// `windlass init`
#[derive(Debug, Clone, Args)]
pub struct InitArgs {
    /// Print the plan and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Runs the verb.
pub(super) async fn run(global: &Global, args: &InitArgs, output: &mut Output) -> Result<Exit, Failed> {
    let (bus, config) = global.connect().await?;
    let changes = provision::plan(&bus, &config).await?;
    if !output.is_json() {
        output.table(&plan(&changes))?;
    }
    if !args.dry_run {
        provision::apply(&bus, &config).await?;
    }
    if output.is_json() {
        output.json(&json!({"changes": changes, "applied": !args.dry_run}))?;
    } else {
        output.notice(if args.dry_run { "nothing was changed (--dry-run)" } else { "done" });
    }
    let conflicts: Vec<&str> = changes.iter().filter(|c| c.action == Action::Conflict).map(|c| c.what.as_str()).collect();
    if conflicts.is_empty() {
        return Ok(Exit::Done);
    }
    Err(Failed::new(Exit::Conflict, format!("left as they are: {}", conflicts.join(", ")))
        .hint("NATS cannot change these keys in place: drain and remove the stream or consumer yourself, or use another --prefix"))
}

fn plan(changes: &[Change]) -> Table {
    let mut table = Table::new(&["ACTION", "WHAT", "DIFFERENCES"]);
    for change in changes {
        let (action, style) = match change.action {
            Action::Create => ("create", Style::Green),
            Action::Update => ("update", Style::Yellow),
            Action::Keep => ("keep", Style::Dim),
            Action::Conflict => ("conflict", Style::Red),
        };
        let cells = [(action.to_owned(), style), (change.what.clone(), Style::Plain), (change.differences.join("; "), Style::Plain)];
        table.row(cells.to_vec());
    }
    table
}
