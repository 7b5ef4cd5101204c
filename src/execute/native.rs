//! Native tasks: the worker's side of the supervisor.
//!
//! [`Supervisor::start`] makes the process; [`Supervisor::spawn`] gives it a program and three descriptors; [`Process`] is
//! the handle. Dropping a handle kills the task. When the supervisor is gone, so are its tasks: everything that waits for
//! it hears [`SupervisorLost`].

pub mod cgroup;
mod link;
mod verdict;

pub use link::{Process, SpawnFailure, StartError, Supervisor, SupervisorLost};
pub use verdict::{reason_of_refusal, verdict};
