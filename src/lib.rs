//! Windlass: stateless workers that pull tasks from NATS JetStream, run them under real limits, and
//! acknowledge only what is durably published.

pub mod bus;
pub mod config;
pub mod report;
pub mod retry;
pub mod supervisor;
pub mod task;
pub mod wire;
