//! Containers, by the Engine API of Docker or Podman.
//!
//! ```text
//! Plan ─▶ images (pull) ─▶ create (hardened, in a cgroup that the supervisor holds) ─▶ attach ─▶ start ─▶ over ─▶ inspect ─▶ remove
//! ```
//! A container's cgroup is below one that the supervisor made and limits ([`Supervisor::hold`](super::native::Supervisor::hold)),
//! where the engine lets it be: so limits, lease, kill, usage and the end of a worker are one code for native tasks and
//! containers. Where it does not, the engine's own limits hold and its API is asked. Only this module names `bollard`.
//!
//! Output is read from the engine as it comes, and kept by nobody on the way. An engine that goes away under a task, or a
//! stream that breaks before the container's end, makes a broken [`Exit`](super::Exit), never a whole one.

pub mod containers;
pub mod create;
pub mod credentials;
pub mod devices;
pub mod engine;
pub mod images;
pub mod labels;
pub mod mounts;
pub mod reap;
pub mod refusal;
pub mod services;
pub mod stack;

mod container;
mod evict;
mod identity;
mod network;
mod output;
mod removal;
mod requests;

pub use container::{Container, Launch};
pub use containers::{Containers, Standing};
pub use credentials::Credentials;
pub use engine::{Engine, EngineError};
pub use identity::Identity;
pub use images::{ImageError, Images, PullProgress, Ready};
pub use refusal::Refusal;
