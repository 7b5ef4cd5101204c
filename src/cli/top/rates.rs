//! How many tasks start and end in a second, over the last ten seconds and the last minute, by the server's clock.

use std::collections::VecDeque;
use std::time::Duration;

use serde::Serialize;

use crate::task::{EventKind, Time};

/// Windows that are shown, seconds.
pub(super) const WINDOWS: [u64; 2] = [10, 60];
/// Longest of them, and the second that is not over.
const KEPT: usize = 61;

/// Events of one kind each, or their rate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(super) struct Counts<T> {
    /// `task_started`
    pub(super) started: T,
    /// `task_completed`
    pub(super) completed: T,
    /// `task_failed`, whatever its outcome.
    pub(super) failed: T,
    /// `task_retrying`
    pub(super) retrying: T,
}

/// Counts of the last minute, by second.
#[derive(Debug, Clone, Default)]
pub(super) struct Rates {
    /// Newest last; the second since 1970, and what was stored in it.
    seconds: VecDeque<(i64, Counts<u32>)>,
    /// What was stored before this was not seen.
    since: Option<Time>,
}

fn second(time: Time) -> i64 {
    time.as_micros().div_euclid(1_000_000)
}

impl Rates {
    /// Nothing was seen of what was stored before `since`.
    pub(super) fn begin(&mut self, since: Time) {
        self.since = Some(since);
    }

    /// An event was stored.
    pub(super) fn count(&mut self, kind: EventKind, stored: Time) {
        let at = second(stored);
        // In the order of the stream; a new leader's clock may be behind the old one's.
        if self.seconds.back().is_none_or(|(last, _)| *last < at) {
            self.seconds.push_back((at, Counts::default()));
            if self.seconds.len() > KEPT {
                self.seconds.pop_front();
            }
        }
        let Some((_, counts)) = self.seconds.back_mut() else { return };
        match kind {
            EventKind::TaskStarted => counts.started += 1,
            EventKind::TaskCompleted => counts.completed += 1,
            EventKind::TaskFailed => counts.failed += 1,
            EventKind::TaskRetrying => counts.retrying += 1,
            EventKind::TaskProgress | EventKind::TaskReleased => {}
        }
    }

    /// Events in a second, over the `window` seconds before `now` or as many of them as were seen.
    pub(super) fn over(&self, window: u64, now: Time) -> Counts<f64> {
        let seen = self.since.map_or(Duration::from_secs(window), |since| now.after(since)).as_secs_f64();
        let over = seen.clamp(1.0, window as f64);
        // The second of `now` has only begun.
        let first = second(now) - i64::try_from(window).unwrap_or(i64::MAX);
        let mut sum = Counts::<u32>::default();
        for (_, counts) in self.seconds.iter().filter(|(at, _)| *at > first) {
            sum.started += counts.started;
            sum.completed += counts.completed;
            sum.failed += counts.failed;
            sum.retrying += counts.retrying;
        }
        let rate = |n: u32| f64::from(n) / over;
        Counts { started: rate(sum.started), completed: rate(sum.completed), failed: rate(sum.failed), retrying: rate(sum.retrying) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Time {
        Time::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn a_rate_is_of_its_window() {
        let mut rates = Rates::default();
        for s in 0..50 {
            for _ in 0..3 {
                rates.count(EventKind::TaskStarted, at(1000 + s));
            }
        }
        rates.count(EventKind::TaskFailed, at(1050));
        assert_eq!(rates.over(10, at(1050)), Counts { started: 2.7, failed: 0.1, ..Counts::default() });
        assert_eq!(rates.over(60, at(1050)).started, 2.5);
        assert_eq!(rates.over(10, at(1200)), Counts::default(), "what is long ago does not count");
    }

    #[test]
    fn what_was_not_seen_does_not_thin_it() {
        let mut rates = Rates::default();
        rates.begin(at(1000));
        for s in 0..5 {
            rates.count(EventKind::TaskCompleted, at(1000 + s));
        }
        assert_eq!(rates.over(60, at(1005)).completed, 1.0, "five in the five seconds that were seen");
        assert_eq!(rates.over(60, at(1000)).completed, 5.0, "never divided by less than a second");
    }

    #[test]
    fn it_does_not_grow() {
        let mut rates = Rates::default();
        for s in 0..10_000 {
            rates.count(EventKind::TaskStarted, at(s));
        }
        assert_eq!(rates.seconds.len(), KEPT);
        rates.count(EventKind::TaskStarted, at(5));
        assert_eq!((rates.seconds.len(), rates.seconds.back().unwrap().1.started), (KEPT, 2), "a clock that went back adds no second");
    }
}
