//! Which class comes first where there is too little room for it.
//!
//! Classes take turns, but what becomes free in small parts never becomes free for one whose tasks take more: others would
//! have it at once. So the class whose turn it is, and that has no room, is kept a place: nobody begins to wait at an empty
//! queue with what it needs. While messages really wait for it, nobody takes work with that, either; to know so costs requests,
//! which are made once a second, and only then. What runs already is left alone.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::Shared;
use crate::bus::BusError;
use crate::task::ClassName;
use crate::telemetry::causes;

/// Time between two looks at the queues of a class that has no room.
const LOOK: Duration = Duration::from_secs(1);

/// Who comes first.
pub(super) struct Precedence {
    shared: Arc<Shared>,
    /// It has no room.
    first: watch::Sender<Option<ClassName>>,
    /// Messages waited for it when it was last looked at.
    waited_for: watch::Sender<Option<ClassName>>,
    seen: watch::Receiver<Option<ClassName>>,
}

impl Precedence {
    /// Nobody so far.
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let (waited_for, seen) = watch::channel(None);
        Self { shared, first: watch::Sender::new(None), waited_for, seen }
    }

    /// That class comes first, and has no room; none: all that want to ask can.
    pub(super) fn has_no_room(&self, class: Option<ClassName>) {
        self.first.send_if_modified(|first| {
            let other = *first != class;
            *first = class;
            other
        });
    }

    /// Whether messages wait for that class, as far as is known.
    pub(super) fn is_waited_for(&self, class: &ClassName) -> bool {
        self.waited_for.borrow().as_ref() == Some(class)
    }

    /// Resolves when that may have changed. Cancel safe.
    pub(super) async fn changed(&mut self) {
        if self.seen.changed().await.is_err() {
            std::future::pending().await
        }
    }

    /// Looks for ever.
    pub(super) fn looks(&self) -> impl Future<Output = Result<(), BusError>> + use<> {
        let (shared, mut first, waited_for) = (Arc::clone(&self.shared), self.first.subscribe(), self.waited_for.clone());
        async move {
            // The other end is there as long as the worker takes work in.
            while first.wait_for(Option::is_some).await.is_ok() {
                tokio::time::sleep(LOOK).await;
                let class = first.borrow().clone();
                let found = match class {
                    Some(class) => is_waited_for(&shared, &class).await.then_some(class),
                    None => None,
                };
                waited_for.send_if_modified(|before| {
                    let other = *before != found;
                    *before = found;
                    other
                });
            }
            Ok(())
        }
    }
}

async fn is_waited_for(shared: &Shared, class: &ClassName) -> bool {
    match shared.bus.waiting(class).await {
        Ok(waiting) => waiting > 0,
        Err(error) => {
            tracing::debug!(%class, error = %causes(&error), "cannot see what waits for a class");
            false
        }
    }
}
