//! How many chunks may be under way: as many as the link carries within the time that an answer may take.
//!
//! A window that is larger than that is worse than useless on a slow link: what is on its way is taken for lost, sent again,
//! and stands in its own way. So the pace grows with confirmations, and is halved by silence and by answers that take long,
//! as TCP's window is (RFC 5681: slow start up to the first loss, then additive increase, multiplicative decrease; the delay
//! as a sign of congestion before the loss: TCP Vegas).

use std::time::Duration;

use tokio::time::Instant;

/// Chunks under way at the beginning: enough to fill most links within one round trip, and less than any window in use.
const FIRST: f64 = 4.0;
/// An answer that takes longer says that too much is under way. Well below the time after which it is taken for lost.
const LONG: Duration = Duration::from_secs(1);
/// Shortest time between two words to the operator.
const QUIET: Duration = Duration::from_secs(10);

/// The pace of one attempt's chunks.
#[derive(Debug)]
pub(super) struct Pace {
    limit: f64,
    most: f64,
    /// Set by the first silence: from then on the pace grows slowly.
    careful: bool,
    halved: Option<Instant>,
    said: Option<Instant>,
}

impl Pace {
    /// Never more than `window`.
    pub(super) fn new(window: usize) -> Self {
        let most = u32::try_from(window.max(1)).map_or(f64::MAX, f64::from);
        Self { limit: FIRST.min(most), most, careful: false, halved: None, said: None }
    }

    /// Whether one more may be sent beside `under_way`.
    pub(super) fn allows(&self, under_way: usize) -> bool {
        u32::try_from(under_way).is_ok_and(|n| f64::from(n) + 1.0 <= self.limit)
    }

    /// A chunk that was sent at `sent` was confirmed.
    pub(super) fn confirmed(&mut self, sent: Instant, now: Instant) {
        if now.duration_since(sent) > LONG {
            return self.silent(sent, now);
        }
        let more = if self.careful { 1.0 / self.limit } else { 1.0 };
        self.limit = (self.limit + more).min(self.most);
    }

    /// A chunk that was sent at `sent` has no answer. The others that were on their way with it do not count again.
    pub(super) fn silent(&mut self, sent: Instant, now: Instant) {
        self.careful = true;
        if self.halved.is_none_or(|halved| sent >= halved) {
            self.limit = (self.limit / 2.0).max(1.0);
            self.halved = Some(now);
        }
    }

    /// Whether it is time to say again that something is not confirmed.
    pub(super) fn speaks(&mut self, now: Instant) -> bool {
        let due = self.said.is_none_or(|said| now.duration_since(said) >= QUIET);
        if due {
            self.said = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(pace: &Pace) -> usize {
        (0..100).take_while(|n| pace.allows(*n)).count()
    }

    #[test]
    fn it_grows_fast_until_the_first_silence_and_slowly_afterwards() {
        let start = Instant::now();
        let mut pace = Pace::new(16);
        assert_eq!(limit(&pace), 4);
        (0..12).for_each(|_| pace.confirmed(start, start));
        assert_eq!(limit(&pace), 16);
        pace.confirmed(start, start);
        assert_eq!(limit(&pace), 16, "never more than the window");
        pace.silent(start, start);
        assert_eq!(limit(&pace), 8);
        (0..9).for_each(|_| pace.confirmed(start, start + LONG));
        assert_eq!(limit(&pace), 9);
        pace.confirmed(start, start + LONG * 2);
        assert_eq!(limit(&pace), 4, "an answer that takes so long is a warning");
    }

    #[test]
    fn what_was_under_way_together_is_one_loss() {
        let start = Instant::now();
        let (sent, later) = (start, start + Duration::from_secs(1));
        let mut pace = Pace::new(8);
        (0..8).for_each(|_| pace.confirmed(start, start));
        (0..8).for_each(|_| pace.silent(sent, later));
        assert_eq!(limit(&pace), 4);
        for n in 1..5 {
            pace.silent(later, later + Duration::from_secs(n));
        }
        assert_eq!(limit(&pace), 2);
        (2..9).for_each(|n| pace.silent(start + Duration::from_secs(n), start + Duration::from_secs(n)));
        assert_eq!(limit(&pace), 1, "one is always allowed");
    }
}
