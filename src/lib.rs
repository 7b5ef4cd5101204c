//! Windlass: stateless workers that pull tasks from NATS JetStream, run them under real limits, and
//! acknowledge only what is durably published.

pub mod bus;
pub mod claim;
pub mod cli;
pub mod config;
pub mod dev;
pub mod execute;
pub mod intake;
pub mod plan;
pub mod prepare;
pub mod report;
pub mod retry;
pub mod settle;
pub mod shutdown;
pub mod supervisor;
pub mod task;
pub mod telemetry;
pub mod wire;
pub mod worker;
