//! `windlass doctor`: is everything right here for a worker, and what mends what is not.

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::output::{Style, Table, visible};
use super::{Exit, Failed, Global, Output};
use crate::bus::rights::Role;
use crate::config;
use crate::doctor::{self, Examination, Finding, Level, Reach, Wishes};

/// `windlass doctor`
#[derive(Debug, Clone, Args)]
pub struct DoctorArgs {
    /// Whose rights this NATS user must have
    #[arg(long, value_enum, default_value_t = Role::Worker)]
    pub role: Role,
    /// NATS server with a user of the system account, to see when servers write to disk [default: --server]
    #[arg(long, value_name = "URL")]
    pub system_server: Option<String>,
    /// Credentials file of a user of the system account
    #[arg(long, value_name = "FILE")]
    pub system_creds: Option<String>,
    /// Examine a worker that runs with --allow-unlimited
    #[arg(long)]
    pub allow_unlimited: bool,
}

/// Runs the verb.
pub(super) async fn run(global: &Global, args: &DoctorArgs, output: &Output) -> Result<Exit, Failed> {
    let mut config = global.load_config()?;
    config.cgroup.allow_unlimited |= args.allow_unlimited;
    let wishes = Wishes { role: args.role, system: system(args, &config.bus) };
    let stop = CancellationToken::new();
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let interrupted = stop.clone();
    tokio::spawn(async move {
        // Cancel safe, both.
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        interrupted.cancel();
    });
    let examination = doctor::examine(&config, &wishes, &stop).await;
    if stop.is_cancelled() {
        return Err(Failed::new(Exit::Interrupted, "interrupted; nothing is left of the examination"));
    }
    if output.is_json() {
        output.json(&examination.findings)?;
    } else {
        output.table(&table(&examination.findings))?;
        for line in mends(&examination.findings) {
            output.line(&visible(&line))?;
        }
    }
    Ok(exit(&examination))
}

/// The way to the system account, when one was given.
fn system(args: &DoctorArgs, bus: &config::Bus) -> Option<config::Bus> {
    if args.system_server.is_none() && args.system_creds.is_none() {
        return None;
    }
    let server = args.system_server.clone().unwrap_or_else(|| bus.server.clone());
    Some(config::Bus { server, creds: args.system_creds.clone().unwrap_or_default(), ..bus.clone() })
}

fn exit(examination: &Examination) -> Exit {
    match (examination.reach, examination.worst()) {
        (Reach::Unreachable, _) => Exit::Unreachable,
        (Reach::NotPermitted, _) => Exit::NotPermitted,
        (Reach::Examined | Reach::Refused, Level::Fail) => Exit::Error,
        (Reach::Examined | Reach::Refused, Level::Ok | Level::Warn) => Exit::Done,
    }
}

fn shown(level: Level) -> (String, Style) {
    let (word, style) = match level {
        Level::Ok => ("ok", Style::Green),
        Level::Warn => ("warn", Style::Yellow),
        Level::Fail => ("fail", Style::Red),
    };
    (word.to_owned(), style)
}

fn table(findings: &[Finding]) -> Table {
    let mut table = Table::new(&["LEVEL", "AREA", "CHECK", "FOUND"]);
    for finding in findings {
        let area = (finding.area.as_str().to_owned(), Style::Dim);
        table.row(vec![shown(finding.level), area, (finding.check.clone(), Style::Plain), (finding.found.clone(), Style::Plain)]);
    }
    table
}

/// What to do, the worst first.
fn mends(findings: &[Finding]) -> Vec<String> {
    let mut bad: Vec<&Finding> = findings.iter().filter(|finding| finding.level != Level::Ok).collect();
    bad.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    let one = |finding: &&Finding| {
        let (level, _) = shown(finding.level);
        let head = format!("{level}  {}: {}", finding.area.as_str(), finding.check);
        let mend = finding.mend.as_deref().unwrap_or_default();
        [String::new(), head, format!("      wanted: {}", finding.wanted), format!("      mend:   {mend}")]
    };
    bad.iter().flat_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Area;

    #[test]
    fn the_exit_code_says_how_bad_it_is() {
        let finding = |level| Finding {
            check: "c".to_owned(),
            area: Area::Disk,
            level,
            found: "f".to_owned(),
            wanted: "w".to_owned(),
            mend: (level != Level::Ok).then(|| "m".to_owned()),
        };
        for (reach, levels, code) in [
            (Reach::Examined, vec![Level::Ok, Level::Warn], 0),
            (Reach::Examined, vec![Level::Fail, Level::Warn], 1),
            (Reach::Refused, vec![Level::Fail], 1),
            (Reach::NotPermitted, vec![Level::Fail], 4),
            (Reach::Unreachable, vec![Level::Fail], 6),
        ] {
            let findings: Vec<Finding> = levels.into_iter().map(finding).collect();
            let lines = mends(&findings).join("\n");
            assert_eq!(lines.contains("mend:   m"), findings.iter().any(|f| f.level != Level::Ok), "{lines}");
            assert_eq!(exit(&Examination { findings, reach }).code(), code);
        }
    }
}
