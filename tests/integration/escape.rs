//! Hostile tasks and hostile publishers: one test for each thing that somebody may try. `SECURITY.md` says what is promised.
//!
//! A test of an attempt asserts what the attacker sees, and what the machine looks like afterwards. Where that harms nothing the
//! same attempt is made without the sandbox (profile `none`) and has to succeed there: so a test that could not fail is noticed.
//! The attempts themselves are in `tests/programs/escape.py`.

#[path = "escape/attacker.rs"]
mod attacker;
#[path = "escape/control.rs"]
mod control;
#[path = "escape/files.rs"]
mod files;
#[path = "escape/kernel.rs"]
mod kernel;
#[path = "escape/lasting.rs"]
mod lasting;
#[path = "escape/publisher.rs"]
mod publisher;
#[path = "escape/screen.rs"]
mod screen;
#[path = "escape/spying.rs"]
mod spying;
#[path = "escape/tenancy.rs"]
mod tenancy;
#[path = "escape/unprivileged.rs"]
mod unprivileged;
