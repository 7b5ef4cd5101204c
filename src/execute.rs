//! Stage 5, execute.
pub mod native;
