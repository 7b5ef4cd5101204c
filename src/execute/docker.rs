//! Containers, by the Engine API of Docker or Podman.
//!
//! ```text
//! Plan ─▶ images (pull) ─▶ create (hardened, in a cgroup that the supervisor holds) ─▶ attach ─▶ start ─▶ wait ─▶ inspect ─▶ remove
//! ```
//! A container's cgroup is below one that the supervisor made and limits ([`Supervisor::hold`](super::native::Supervisor)), where the
//! engine lets it be: so limits, lease, kill, usage and the end of a worker are one code for native tasks and containers. Where
//! it does not, the engine's own limits hold and its API is asked. Only this module names `bollard`.

pub mod credentials;
pub mod devices;
pub mod engine;
mod evict;
pub mod images;
pub mod labels;
mod network;
pub mod reap;
pub mod services;
pub mod stack;

pub use credentials::Credentials;
pub use engine::{Engine, EngineError};
pub use images::{ImageError, Images, PullProgress, Ready};
