//! The cgroup of a service: one of its own that the supervisor holds, so that it ends with the worker and keeps its limits.

use std::time::Duration;

use super::{Request, ServiceError};
use crate::plan::Service;

/// A cgroup that is held, or none where the engine puts containers where it likes.
#[derive(Debug)]
pub(super) struct Hold;

impl Hold {
    pub(super) async fn take(_request: &Request, _service: &Service) -> Result<Self, ServiceError> {
        Ok(Self)
    }

    /// As the engine wants it.
    pub(super) fn parent(&self) -> Option<&str> {
        None
    }

    /// It may run for another `lease` from now.
    pub(super) fn renew(&self, _lease: Duration) {}

    /// The container is gone: so is its cgroup.
    pub(super) async fn release(self) {}
}
