//! The life of one task as a pure state machine: what happened in, what to do out. Time is an argument.
//!
//! ```text
//! Running ──stop──▶ Terminating ──grace over──▶ Killing ──tree empty──▶ (buried)
//!    │                   └──────────tree empty──────────────────────────────▲
//!    ├──lease over, stop with no grace──────────▶ Killing                   │
//!    └──leader ended─────────────────────────────────────tree empty─────────┤
//!                          └──processes left──▶ Killing ────────────────────┘
//! ```

use std::time::{Duration, Instant};

use super::protocol::ExitStatus;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// The worker wants it stopped.
    Stop { grace: Duration },
    /// The worker still holds the lease.
    Renew { lease: Duration },
    /// The task's own process ended.
    Ended(ExitStatus),
    /// It ended, and could not be buried: so many processes are alive in its tree.
    Left(u64),
    /// Time passed, or a process died.
    Tick,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing.
    Wait,
    /// SIGTERM to every process of the tree.
    Terminate,
    /// SIGKILL to the whole tree.
    Kill,
    /// Read usage and remove the cgroup; answer with [`Event::Left`] when somebody is in it.
    Bury,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    Terminating { until: Instant },
    Killing { since: Instant },
}

/// Shortest pause between two looks at a tree that should be empty soon; it doubles up to [`LONGEST_LOOK`].
const FIRST_LOOK: Duration = Duration::from_micros(200);
/// For processes in uninterruptible sleep: they may stay for minutes and must not cost CPU.
const LONGEST_LOOK: Duration = Duration::from_millis(50);

/// One task.
#[derive(Debug)]
pub(super) struct Life {
    phase: Phase,
    lease: Option<Instant>,
    ended: Option<ExitStatus>,
    lease_expired: bool,
    leaked: u64,
    next_look: Option<Instant>,
    pause: Duration,
}

impl Life {
    pub(super) fn new(lease: Option<Duration>, now: Instant) -> Self {
        let lease = lease.and_then(|lease| now.checked_add(lease));
        Self { phase: Phase::Running, lease, ended: None, lease_expired: false, leaked: 0, next_look: None, pause: FIRST_LOOK }
    }

    /// The one transition function.
    #[must_use]
    pub(super) fn on(&mut self, event: Event, now: Instant) -> Step {
        match event {
            Event::Stop { grace } => self.stop(grace, now),
            Event::Renew { lease } => {
                if self.lease.is_some() && !self.lease_expired {
                    self.lease = now.checked_add(lease);
                }
                Step::Wait
            }
            Event::Ended(status) => {
                self.ended = Some(status);
                Step::Bury
            }
            Event::Left(alive) => self.left(alive, now),
            Event::Tick => self.tick(now),
        }
    }

    fn stop(&mut self, grace: Duration, now: Instant) -> Step {
        match self.phase {
            Phase::Killing { .. } => Step::Wait,
            Phase::Running | Phase::Terminating { .. } if grace.is_zero() => self.kill(now),
            Phase::Running => {
                // A grace beyond the clock's range is as good as the longest one.
                let until = now.checked_add(grace).unwrap_or(now + Duration::from_secs(86_400));
                self.phase = Phase::Terminating { until };
                Step::Terminate
            }
            Phase::Terminating { until } => {
                // A second stop may shorten the grace and never lengthens it.
                let until = now.checked_add(grace).map_or(until, |new| new.min(until));
                self.phase = Phase::Terminating { until };
                Step::Wait
            }
        }
    }

    fn left(&mut self, alive: u64, now: Instant) -> Step {
        self.next_look = now.checked_add(self.pause);
        self.pause = (self.pause * 2).min(LONGEST_LOOK);
        match self.phase {
            Phase::Running if alive > 0 => {
                self.leaked = alive;
                self.kill(now)
            }
            // The last process is on its way out: nobody to kill, the cgroup is free in a moment.
            Phase::Running => Step::Wait,
            // What was asked to end has the rest of its grace, with or without its leader.
            Phase::Terminating { .. } => Step::Wait,
            // With cgroup.kill once is enough; without it processes may have been born meanwhile.
            Phase::Killing { .. } if alive > 0 => Step::Kill,
            Phase::Killing { .. } => Step::Wait,
        }
    }

    fn tick(&mut self, now: Instant) -> Step {
        if self.lease.is_some_and(|end| end <= now) && !self.lease_expired && !matches!(self.phase, Phase::Killing { .. }) {
            self.lease_expired = true;
            return self.kill(now);
        }
        match self.phase {
            Phase::Terminating { until } if until <= now => self.kill(now),
            Phase::Running | Phase::Terminating { .. } | Phase::Killing { .. } if self.ended.is_some() => Step::Bury,
            Phase::Killing { .. } if self.next_look.is_some_and(|at| at <= now) => {
                self.next_look = now.checked_add(self.pause);
                self.pause = (self.pause * 2).min(LONGEST_LOOK);
                Step::Kill
            }
            Phase::Running | Phase::Terminating { .. } | Phase::Killing { .. } => Step::Wait,
        }
    }

    fn kill(&mut self, now: Instant) -> Step {
        self.phase = Phase::Killing { since: now };
        self.pause = FIRST_LOOK;
        self.next_look = now.checked_add(self.pause);
        Step::Kill
    }

    /// When [`Event::Tick`] is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let killing = matches!(self.phase, Phase::Killing { .. });
        let until = match self.phase {
            Phase::Terminating { until } => Some(until),
            Phase::Running | Phase::Killing { .. } => None,
        };
        let lease = self.lease.filter(|_| !killing);
        let look = self.next_look.filter(|_| killing || self.ended.is_some());
        [until, lease, look].into_iter().flatten().min()
    }

    /// True when the task's own process has ended and only its tree is waited for.
    pub(super) fn is_leaderless(&self) -> bool {
        self.ended.is_some()
    }

    /// How the task's own process ended.
    pub(super) fn status(&self) -> Option<ExitStatus> {
        self.ended
    }

    pub(super) fn lease_expired(&self) -> bool {
        self.lease_expired
    }

    pub(super) fn leaked(&self) -> u64 {
        self.leaked
    }

    /// Time since the kill was decided; zero when none was.
    pub(super) fn kill_time(&self, now: Instant) -> Duration {
        match self.phase {
            Phase::Killing { since } => now.saturating_duration_since(since),
            Phase::Running | Phase::Terminating { .. } => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: Event = Event::Ended(ExitStatus::Code(0));

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// Feeds (milliseconds, event) and expects steps.
    fn play(lease: Option<u64>, script: &[(u64, Event, Step)]) -> (Life, Instant) {
        let start = Instant::now();
        let mut life = Life::new(lease.map(ms), start);
        for (at, event, step) in script {
            assert_eq!(life.on(*event, start + ms(*at)), *step, "{event:?} at {at} ms of {script:?}");
        }
        (life, start)
    }

    #[test]
    fn an_ordinary_end_is_buried_at_once() {
        let (life, start) = play(Some(30_000), &[(5, OK, Step::Bury)]);
        assert_eq!((life.leaked(), life.lease_expired(), life.kill_time(start + ms(9))), (0, false, Duration::ZERO));
    }

    #[test]
    fn what_is_left_behind_is_counted_once_and_killed() {
        let (life, start) = play(
            None,
            &[(5, OK, Step::Bury), (5, Event::Left(3), Step::Kill), (6, Event::Tick, Step::Bury), (6, Event::Left(1), Step::Kill)],
        );
        assert_eq!((life.leaked(), life.kill_time(start + ms(8))), (3, ms(3)));
    }

    #[test]
    fn a_cgroup_that_is_only_not_free_yet_is_no_leak() {
        let (life, start) = play(None, &[(5, OK, Step::Bury), (5, Event::Left(0), Step::Wait), (6, Event::Tick, Step::Bury)]);
        assert_eq!((life.leaked(), life.kill_time(start + ms(8))), (0, Duration::ZERO));
        assert!(life.deadline().is_some(), "it is looked at again");
    }

    #[test]
    fn stop_asks_first_and_kills_after_the_grace() {
        let stop = Event::Stop { grace: ms(100) };
        let (life, start) = play(None, &[(10, stop, Step::Terminate), (50, Event::Tick, Step::Wait), (110, Event::Tick, Step::Kill)]);
        assert_eq!(life.kill_time(start + ms(112)), ms(2));
        play(None, &[(10, Event::Stop { grace: Duration::ZERO }, Step::Kill), (10, stop, Step::Wait)]);
    }

    #[test]
    fn a_second_stop_only_shortens() {
        let (life, start) =
            play(None, &[(0, Event::Stop { grace: ms(100) }, Step::Terminate), (10, Event::Stop { grace: ms(500) }, Step::Wait)]);
        assert_eq!(life.deadline(), Some(start + ms(100)));
        let (life, start) =
            play(None, &[(0, Event::Stop { grace: ms(100) }, Step::Terminate), (10, Event::Stop { grace: ms(20) }, Step::Wait)]);
        assert_eq!(life.deadline(), Some(start + ms(30)));
    }

    #[test]
    fn children_keep_the_grace_when_their_leader_obeys_at_once() {
        let (life, _) = play(
            None,
            &[
                (0, Event::Stop { grace: ms(100) }, Step::Terminate),
                (1, OK, Step::Bury),
                (1, Event::Left(2), Step::Wait),
                (100, Event::Tick, Step::Kill),
            ],
        );
        assert_eq!(life.leaked(), 0, "they were told to end, not left behind");
    }

    #[test]
    fn a_lease_that_is_not_renewed_kills_and_no_renewal_undoes_it() {
        let renew = Event::Renew { lease: ms(100) };
        let (life, _) = play(
            Some(100),
            &[(90, renew, Step::Wait), (100, Event::Tick, Step::Wait), (190, Event::Tick, Step::Kill), (190, renew, Step::Wait)],
        );
        assert!(life.lease_expired());
        let (life, _) = play(None, &[(10, renew, Step::Wait)]);
        assert_eq!(life.deadline(), None, "a task without a lease gets none by renewal");
    }
}
