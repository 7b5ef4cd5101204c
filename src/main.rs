//! The `windlass` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    match (args.next().as_deref(), args.next()) {
        (Some("supervisor"), Some(config)) => windlass::supervisor::main(&config),
        _ => ExitCode::from(2),
    }
}
