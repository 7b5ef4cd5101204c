//! The vocabulary of a task: what is asked for, what happened, and what follows from it.
//!
//! Pure data and decisions. Nothing here knows about tokio, NATS or the kernel, so every rule can be
//! tested as a table. The shapes are those of `docs/protocol.md`; `crate::wire` puts them into bytes.

pub mod assignment;
pub mod chain;
pub mod container;
pub mod event;
pub mod id;
pub mod image;
pub mod limits;
pub mod log_chunk;
pub mod nesting;
pub mod outcome;
pub mod sandbox;
pub mod secret;
pub mod size;
pub mod stage;
pub mod time;

pub use assignment::Assignment;
pub use container::{HealthCheck, Mount, MountRoot, PullPolicy, ServiceSpec, is_user};
pub use event::{Event, EventKind};
pub use id::{ClassName, Priority, TaskId, Tenant, WorkerId};
pub use image::{ImagePattern, ImageRef};
pub use limits::{IoLimits, Limits};
pub use outcome::{Outcome, Reason};
pub use sandbox::Profile;
pub use size::ByteSize;
pub use time::Time;
