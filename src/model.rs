//! The protocol as a model, explored exhaustively.
//!
//! ```text
//! explore ── every state that a machine can reach: what is broken there, and whether it can still come to its end
//! world ──── the machine: one task, its queue message, its chain, the hands that deliveries are in, the sweeper, the wire
//! real ───── what is decided, asked of the code that the worker runs: decide, dispose, after_answer, after_read_back, …
//! lease ──── a second, timed machine: the clock of the lease against the server's ack_wait
//! ```
//! The environment is modelled, the decisions are not: each is taken by the function that the worker calls. What a round
//! of faults may contain is a [`world::Setting`]; `WINDLASS_MODEL=long` raises the bounds (`make model`).
//!
//! `docs/guarantees.md` says which rules of the server are here, which promises are checked and what is left out.

mod bus;
mod checks;
mod explore;
mod flaws;
mod hand;
mod lease;
mod real;
mod sweep;
mod world;
