//! Integration tests: one binary, the real kernel, real servers.
#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests are tests; figures are printed for the reader"
)]

#[path = "integration/native.rs"]
mod native;
