//! Cgroups of tasks: made, limited, read back, killed, read, removed. The only place that names `cgroups_rs`.
//!
//! ```text
//! <mount>/[<controller>/]<parent>/<instance>/<task_id>.<attempt>
//! ```
//! Three layouts are served by the same code. *v2*: one hierarchy with everything. *v1*: one per controller. *Hybrid*: v1
//! controllers, and a cgroup2 mount without controllers, which still can start a process inside a group, tell when a group
//! is empty, and kill it whole. So a [`Group`] is a list of limited directories and, where there is one, a tracking
//! directory; in v2 they are the same.
//!
//! `cgroups_rs` sets the limits, by its direct setters: its `apply()` answers Ok when a limit was not set. Every limit is
//! read back here.

mod group;
mod layout;
mod limit;

pub use group::{Group, Reading};
pub use layout::{Instance, Layout, LayoutError};

/// The controllers that carry the promised limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Controller {
    /// Time.
    Cpu,
    /// Memory and swap.
    Memory,
    /// Processes.
    Pids,
    /// Block I/O, only where it is asked for.
    Io,
}

impl Controller {
    /// Those without which a worker does not start.
    pub const REQUIRED: [Self; 3] = [Self::Cpu, Self::Memory, Self::Pids];

    fn name_v1(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Io => "blkio",
        }
    }

    fn name_v2(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Io => "io",
        }
    }
}

/// Reads a small control file.
fn read(path: &std::path::Path) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut text = String::with_capacity(512);
    std::fs::File::open(path)?.read_to_string(&mut text)?;
    Ok(text)
}

/// Writes a control file in one write, as the kernel wants it.
fn write(path: &std::path::Path, text: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    std::fs::OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

/// The value of `key` in a file of `key value` lines.
fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix([' ', ':'])?.trim().parse().ok())
}
