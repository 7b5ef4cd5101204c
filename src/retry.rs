//! Delays between tries. The one place that names `backoff`, which is unmaintained (see `deny.toml`):
//! replacing it means replacing this file.

use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff as _;

use crate::config::RetryConfig;
use crate::task::assignment::BackoffPolicy;

/// Growing delays with jitter, for talking to servers. Never gives up by itself: the caller owns the deadline.
#[derive(Debug)]
pub struct Delays(ExponentialBackoff);

impl Delays {
    /// From `initial` to `max`, doubling, each drawn from half to one and a half times its nominal value so that a
    /// fleet does not come back in step.
    #[must_use]
    pub fn new(initial: Duration, max: Duration) -> Self {
        Self(policy(initial, 2.0, max, 0.5))
    }

    /// As configured, with the same jitter.
    #[must_use]
    pub fn of(config: &RetryConfig) -> Self {
        let max = Duration::from_millis(config.max_ms);
        Self(policy(Duration::from_millis(config.initial_ms).min(max), config.factor.max(1.0), max, 0.5))
    }

    /// The next delay.
    pub fn next_delay(&mut self) -> Duration {
        self.0.next_backoff().unwrap_or(self.0.max_interval)
    }

    /// Sleeps for the next delay.
    pub async fn wait(&mut self) {
        tokio::time::sleep(self.next_delay()).await;
    }
}

/// The delay before attempt `failed + 1` of a task whose attempt `failed` (from 1) has just failed: exact, without jitter,
/// because `not_before` is a promise of the contract.
#[must_use]
pub fn task_delay(policy_of_task: &BackoffPolicy, failed: u32) -> Duration {
    let max = Duration::from_millis(policy_of_task.max_ms);
    let initial = Duration::from_millis(policy_of_task.initial_ms).min(max);
    let mut delays = policy(initial, policy_of_task.factor.max(1.0), max, 0.0);
    // Beyond this many doublings every delay has reached its maximum, whatever the factor was meant to be.
    let steps = failed.clamp(1, 64);
    (0..steps).map(|_| delays.next_backoff().unwrap_or(max)).last().unwrap_or(initial)
}

fn policy(initial: Duration, multiplier: f64, max: Duration, jitter: f64) -> ExponentialBackoff {
    let mut policy = ExponentialBackoff {
        initial_interval: initial,
        multiplier,
        max_interval: max,
        randomization_factor: jitter,
        // The default gives up after 15 minutes.
        max_elapsed_time: None,
        ..ExponentialBackoff::default()
    };
    policy.reset();
    policy
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn task_delays_grow_by_the_factor_up_to_the_maximum() {
        let policy = BackoffPolicy { initial_ms: 100, factor: 2.0, max_ms: 350 };
        let ms: Vec<u128> = (1..=4).map(|n| task_delay(&policy, n).as_millis()).collect();
        assert_eq!(ms, [100, 200, 350, 350]);
        assert_eq!(task_delay(&policy, 1_000_000), Duration::from_millis(350));
    }

    #[test]
    fn server_delays_stay_within_their_bounds() {
        let mut delays = Delays::new(Duration::from_millis(10), Duration::from_millis(100));
        assert!((0..1000).map(|_| delays.next_delay()).all(|d| (Duration::from_millis(5)..=Duration::from_millis(150)).contains(&d)));
    }
}
