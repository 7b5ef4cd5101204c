//! The supervisor: a small single-threaded process that starts, limits, kills and buries tasks.

pub mod protocol;
