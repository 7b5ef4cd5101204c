//! Stage 5, execute: the program of a task, run under its limits until its whole tree is gone.

pub mod native;
