//! Windlass: stateless workers that pull tasks from NATS JetStream, run them under real limits, and
//! acknowledge only what is durably published.

pub mod config;
pub mod execute;
pub mod report;
pub mod supervisor;
pub mod task;
pub mod wire;
