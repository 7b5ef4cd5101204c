//! Stage 5, execute: from a plan to an exit.
//!
//! Each backend is a module of its own. What they share is the end they report: a status, what was used, and
//! whether the platform or the task is to blame.

pub mod docker;
pub mod gpu;
pub mod native;
