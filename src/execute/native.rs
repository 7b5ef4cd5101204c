//! Native.
pub mod cgroup;
