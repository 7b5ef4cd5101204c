//! The time that the fleet goes by.
//!
//! `deadline` and `not_before` must be the same moment for every worker, however wrong its own clock is. So they are
//! compared with the server's clock: read now and then, and carried on by the monotonic clock in between, which no
//! adjustment of this machine's wall clock touches. What this worker only tells, the times in its events, is its own.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::bus::Bus;
use crate::task::Time;
use crate::telemetry::causes;

/// Time between two looks at the server's clock.
const LOOK: Duration = Duration::from_secs(10);
/// An answer that took longer says too little.
const LONGEST_ANSWER: Duration = Duration::from_secs(1);
/// A difference that is worth a word.
const NOTEWORTHY_MS: i64 = 1000;

/// The server's clock as far as it is known; this machine's before that.
#[derive(Debug, Default)]
pub struct Clock {
    anchor: Mutex<Option<(Instant, Time)>>,
    /// The difference that was last spoken of, milliseconds.
    told: AtomicI64,
}

impl Clock {
    /// This moment.
    #[must_use]
    pub fn now(&self) -> Time {
        let anchor = *self.anchor.lock().unwrap_or_else(PoisonError::into_inner);
        anchor.map_or_else(Time::now, |(at, time)| time.plus(at.elapsed()))
    }

    /// Looks for ever.
    pub async fn follow(&self, bus: &Bus) {
        loop {
            self.look(bus).await;
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Looks once.
    pub async fn look(&self, bus: &Bus) {
        let sent = Instant::now();
        let time = match bus.server_time().await {
            Ok(time) => time,
            Err(error) => return tracing::debug!(error = %causes(&error), "the server's clock is not known"),
        };
        let took = sent.elapsed();
        if took > LONGEST_ANSWER {
            return;
        }
        *self.anchor.lock().unwrap_or_else(PoisonError::into_inner) = Some((sent + took / 2, time));
        let ahead_ms = (Time::now().as_micros() - self.now().as_micros()) / 1000;
        if (ahead_ms - self.told.load(Ordering::Relaxed)).abs() >= NOTEWORTHY_MS {
            self.told.store(ahead_ms, Ordering::Relaxed);
            if ahead_ms.abs() >= NOTEWORTHY_MS {
                tracing::warn!(ahead_ms, "this machine's clock differs from the server's: times in events are off by that");
            } else {
                tracing::info!(ahead_ms, "this machine's clock agrees with the server's again");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_goes_on_by_the_monotonic_clock() {
        let clock = Clock::default();
        let then = Time::from_micros(1_000_000);
        *clock.anchor.lock().unwrap() = Some((Instant::now(), then));
        tokio::time::sleep(Duration::from_secs(7)).await;
        assert_eq!(clock.now().after(then).as_secs(), 7);
    }
}
