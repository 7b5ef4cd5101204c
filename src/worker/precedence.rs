//! Which class comes first where there is too little room for it.
//!
//! Classes take turns, but what becomes free in small parts never becomes free for one whose tasks take more: others would
//! have it at once. So for the class whose turn it is, and that has no room, room is kept while messages wait for it: nobody else
//! asks for work with what it needs. What runs already is left alone. To know of messages costs requests, which are made
//! only while there is such a class, and more seldom the longer there is nothing.
//!
//! A message that was handed out before and waits to be handed out again looks like one that runs somewhere. While there are
//! such, room is kept now and then for a while.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::Shared;
use crate::bus::BusError;
use crate::task::ClassName;
use crate::telemetry::causes;

/// Time between two looks at the queues of a class that has no room, while messages wait there and at most.
const LOOK: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(8));
/// Looks of which the first few count as if messages waited, where some are handed out and may come again.
const DOUBT: (u32, u32) = (3, 12);

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
            let (mut pause, mut doubts) = (LOOK.0, 0);
            // The other end is there as long as the worker takes work in.
            while first.wait_for(Option::is_some).await.is_ok() {
                tokio::time::sleep(pause).await;
                let class = first.borrow().clone();
                let found = match look(&shared, class.as_ref()).await {
                    Found::Waiting => true,
                    Found::HandedOut => {
                        doubts = (doubts + 1) % DOUBT.1;
                        doubts < DOUBT.0
                    }
                    Found::Nothing => false,
                };
                pause = if found { LOOK.0 } else { (pause * 2).min(LOOK.1) };
                let found = class.filter(|_| found);
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

/// What is known of a class's messages.
enum Found {
    /// Some can be had.
    Waiting,
    /// Some run, or can be had.
    HandedOut,
    /// There are none.
    Nothing,
}

async fn look(shared: &Shared, class: Option<&ClassName>) -> Found {
    // It has had its turn.
    let Some(class) = class else { return Found::Nothing };
    match shared.bus.waiting(class).await {
        Ok((1.., _)) => Found::Waiting,
        Ok((0, 1..)) => Found::HandedOut,
        Ok((0, 0)) => Found::Nothing,
        Err(error) => {
            tracing::debug!(%class, error = %causes(&error), "cannot see what waits for a class");
            Found::Nothing
        }
    }
}
