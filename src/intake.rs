//! Stage 1, intake: from a delivery to an assignment, and the lease that holds the message.
//!
//! Owns the only calls that end or prolong a delivery. [`Lease`] is move-only and has three ends: `ack` with a
//! [`Receipt`](crate::report::Receipt), `give_back`, and `forsake`, which sends nothing at all, for a worker that lost
//! its task. Dropping a lease is forsaking it: the queue hands the message out again after `ack_wait`.

mod decode;
pub(crate) mod lease;

pub use decode::{Poison, Task, decode, read};
pub use lease::{Lease, Loss, Renewer};
