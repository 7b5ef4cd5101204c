//! (timed)
