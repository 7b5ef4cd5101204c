//! Which queue is asked next: pure, so that its fairness can be tested.
//!
//! A class has three queues. With free permits the queues are first asked without waiting, high before normal before low,
//! one request at a time so that the order is kept; every few rounds a lower queue goes first, so that it does not starve.
//! When all are empty, each gets one waiting request with one permit: the first message through any of them starts a new
//! round with all the permits that are left. Where there are fewer permits than queues, the waiting requests are short
//! and take turns. While one queue has messages, the others are believed to be empty for [`RECHECK`] after each look.
//!
//! The classes of a worker spend the same permits ([`Others`]): while one of them finds messages, the others only look, and the
//! queues of all of them that nobody waits at decide together whether it waits shortly.

use std::time::Duration;

use tokio::time::Instant;

/// Wait of a request at an empty queue.
const WAIT: Duration = Duration::from_secs(2);
/// Wait when queues have to take turns.
const SHORT_WAIT: Duration = Duration::from_millis(250);
/// Most messages asked for in one request.
const BATCH: u32 = 32;
/// Every this many rounds the low queue goes first, and in the middle between two of those the normal one.
const TURN: u64 = 8;
/// How long a queue is believed to be empty: what a message of high priority may wait behind a flood of low ones, and what
/// keeps a flood in one queue from paying for looks at the others with every task.
const RECHECK: Duration = Duration::from_millis(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// May hold messages.
    Unknown,
    /// A request without waiting is under way.
    Asking,
    /// Had nothing at that time.
    Empty(Instant),
    /// A waiting request is under way.
    Waiting,
}

/// The queues of one class.
#[derive(Debug)]
pub struct Schedule {
    states: Vec<State>,
    /// Whose last request was filled: there may be more.
    filled: Vec<bool>,
    waited: Vec<u64>,
    round: u64,
    clock: u64,
}

/// The other classes, which want the same permits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Others {
    /// One of them finds messages, and has permits to take them with.
    pub flowing: bool,
    /// Their queues that nobody waits at.
    pub unwaited: usize,
}

/// What to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// Which queue.
    pub queue: usize,
    /// How many messages, at most.
    pub batch: u32,
    /// How long to wait for them.
    pub wait: Option<Duration>,
}

impl Schedule {
    /// For `queues` queues, most urgent first.
    #[must_use]
    pub fn new(queues: usize) -> Self {
        Self { states: vec![State::Unknown; queues], filled: vec![false; queues], waited: vec![0; queues], round: 0, clock: 0 }
    }

    /// The next request at `now`, with `free` permits to spend on it; none when nothing is to be asked.
    pub fn next(&mut self, free: u32, now: Instant, others: Others) -> Option<Ask> {
        if free == 0 || self.states.contains(&State::Asking) {
            return None;
        }
        if others.flowing || self.is_flowing() {
            for state in &mut self.states {
                if matches!(state, State::Empty(since) if now.duration_since(*since) >= RECHECK) {
                    *state = State::Unknown;
                }
            }
        }
        if let Some(queue) = self.order().find(|q| self.states[*q] == State::Unknown) {
            let is_turn = queue != self.first_unknown();
            self.states[queue] = State::Asking;
            self.round += 1;
            // A lower queue's turn is for one message: high is asked again right after.
            return Some(Ask { queue, batch: if is_turn { 1 } else { free.min(BATCH) }, wait: None });
        }
        if others.flowing {
            return None;
        }
        let is_empty = |q: &usize| matches!(self.states[*q], State::Empty(_));
        let queue = (0..self.states.len()).filter(is_empty).min_by_key(|q| (self.waited[*q], *q))?;
        let more_than_permits = self.unwaited() + others.unwaited > free as usize;
        self.states[queue] = State::Waiting;
        self.clock += 1;
        self.waited[queue] = self.clock;
        Some(Ask { queue, batch: 1, wait: Some(if more_than_permits { SHORT_WAIT } else { WAIT }) })
    }

    /// Whether messages were found at one of the queues when it was last asked.
    #[must_use]
    pub fn is_flowing(&self) -> bool {
        self.filled.contains(&true)
    }

    /// Queues that nobody waits at.
    #[must_use]
    pub fn unwaited(&self) -> usize {
        self.states.iter().filter(|s| matches!(s, State::Unknown | State::Empty(_))).count()
    }

    /// What had nothing may have something by now.
    pub fn look_again(&mut self) {
        for state in self.states.iter_mut().filter(|state| matches!(state, State::Empty(_))) {
            *state = State::Unknown;
        }
    }

    /// Whether there is nothing under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.unwaited() == self.states.len()
    }

    fn first_unknown(&self) -> usize {
        self.states.iter().position(|s| *s == State::Unknown).unwrap_or(0)
    }

    /// The order in which queues are looked at in this round.
    fn order(&self) -> impl Iterator<Item = usize> + use<> {
        let n = self.states.len();
        let first = match self.round % TURN {
            r if r == TURN - 1 => n - 1,
            r if r == TURN / 2 - 1 => n / 2,
            _ => 0,
        };
        std::iter::once(first).chain((0..n).filter(move |q| *q != first))
    }

    /// The request at `queue` is over at `now`, with `unused` of its permits.
    pub fn ended(&mut self, queue: usize, unused: u32, now: Instant) {
        self.filled[queue] = unused == 0;
        self.states[queue] = if unused == 0 { State::Unknown } else { State::Empty(now) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HIGH: usize = 0;
    const NORMAL: usize = 1;
    const LOW: usize = 2;

    /// Runs `rounds` requests with one permit against queues of endless or no messages; counts messages by queue.
    fn served(full: [bool; 3], rounds: u32) -> [u32; 3] {
        let start = Instant::now();
        let mut schedule = Schedule::new(3);
        let mut served = [0; 3];
        for round in 0..rounds {
            let now = start + Duration::from_millis(1) * round;
            let Some(ask) = schedule.next(1, now, Others::default()) else { break };
            if full[ask.queue] {
                served[ask.queue] += 1;
                schedule.ended(ask.queue, 0, now);
            } else {
                schedule.ended(ask.queue, ask.batch, now);
            }
        }
        served
    }

    #[test]
    fn high_goes_first_and_low_is_not_starved() {
        let [high, normal, low] = served([true; 3], 800);
        assert!(high >= 500, "{high}");
        assert!(normal >= 80 && low >= 80, "{normal} {low}");
    }

    #[test]
    fn a_flood_in_one_queue_seldom_pays_for_the_others() {
        let [high, normal, low] = served([false, true, false], 1000);
        assert!(normal >= 850, "{normal}");
        assert_eq!((high, low), (0, 0));
    }

    #[test]
    fn empty_queues_wait_with_one_permit_each() {
        let now = Instant::now();
        let mut schedule = Schedule::new(3);
        for queue in [HIGH, NORMAL, LOW] {
            let ask = schedule.next(8, now, Others::default()).expect("permits are free");
            assert_eq!((ask.queue, ask.batch, ask.wait), (queue, 8, None));
            assert_eq!(schedule.next(8, now, Others::default()), None, "one request without waiting at a time");
            schedule.ended(queue, 8, now);
        }
        for queue in [HIGH, NORMAL, LOW] {
            assert_eq!(schedule.next(8, now, Others::default()), Some(Ask { queue, batch: 1, wait: Some(WAIT) }));
        }
        assert_eq!(schedule.next(8, now, Others::default()), None);
        schedule.ended(NORMAL, 0, now);
        assert_eq!(
            schedule.next(5, now, Others::default()),
            Some(Ask { queue: NORMAL, batch: 5, wait: None }),
            "the rest of the permits go where messages are"
        );
        schedule.ended(HIGH, 1, now);
        schedule.ended(NORMAL, 0, now);
        let later = now + RECHECK;
        assert_eq!(schedule.next(5, later, Others::default()).map(|ask| ask.queue), Some(HIGH), "high is looked at again before long");
    }

    #[test]
    fn one_permit_takes_turns_over_three_empty_queues() {
        let now = Instant::now();
        let mut schedule = Schedule::new(3);
        for _ in 0..3 {
            let ask = schedule.next(1, now, Others::default()).unwrap();
            schedule.ended(ask.queue, 1, now);
        }
        let turns: Vec<usize> = (0..6)
            .map(|_| {
                let ask = schedule.next(1, now, Others::default()).unwrap();
                assert_eq!(ask.wait, Some(SHORT_WAIT));
                schedule.ended(ask.queue, 1, now);
                ask.queue
            })
            .collect();
        assert_eq!(turns, [0, 1, 2, 0, 1, 2]);
    }

    /// A schedule whose queues were all looked at and had nothing.
    fn empty(now: Instant) -> Schedule {
        let mut schedule = Schedule::new(3);
        for queue in [HIGH, NORMAL, LOW] {
            schedule.next(1, now, Others::default()).expect("a look");
            schedule.ended(queue, 1, now);
        }
        schedule
    }

    #[test]
    fn while_another_class_finds_messages_no_permit_waits_at_empty_queues() {
        let (now, flowing) = (Instant::now(), Others { flowing: true, ..Others::default() });
        let mut schedule = empty(now);
        assert_eq!(schedule.next(1, now, flowing), None, "just looked at");
        let later = now + RECHECK;
        let ask = schedule.next(1, later, flowing).expect("looked at again");
        assert_eq!(ask.wait, None);
        schedule.ended(ask.queue, 1, later);
        assert_eq!(schedule.next(1, later, Others::default()).map(|ask| ask.wait), Some(None), "the others were to be looked at, too");
    }

    #[test]
    fn queues_of_other_classes_make_waits_short() {
        let now = Instant::now();
        assert_eq!(empty(now).next(4, now, Others { unwaited: 1, ..Others::default() }).and_then(|ask| ask.wait), Some(WAIT));
        assert_eq!(empty(now).next(4, now, Others { unwaited: 6, ..Others::default() }).and_then(|ask| ask.wait), Some(SHORT_WAIT));
    }

    #[test]
    fn queues_that_were_empty_are_looked_at_again_when_asked_for() {
        let now = Instant::now();
        let mut schedule = empty(now);
        schedule.look_again();
        let mut looked_at: Vec<usize> = (0..3)
            .map(|_| {
                assert!(schedule.is_idle());
                let ask = schedule.next(1, now, Others::default()).expect("a look");
                assert_eq!((ask.batch, ask.wait), (1, None));
                assert!(!schedule.is_idle());
                schedule.ended(ask.queue, 1, now);
                ask.queue
            })
            .collect();
        looked_at.sort_unstable();
        assert_eq!(looked_at, [HIGH, NORMAL, LOW]);
        assert!(schedule.next(1, now, Others::default()).is_some_and(|ask| ask.wait.is_some()));
    }

    #[test]
    fn looks_that_take_long_end_in_waiting() {
        let mut now = Instant::now();
        let mut schedule = Schedule::new(3);
        for queue in [HIGH, NORMAL, LOW] {
            assert_eq!(schedule.next(1, now, Others::default()).map(|ask| (ask.queue, ask.wait)), Some((queue, None)));
            now += RECHECK * 2;
            schedule.ended(queue, 1, now);
        }
        assert_eq!(schedule.next(1, now, Others::default()).and_then(|ask| ask.wait), Some(SHORT_WAIT), "not the first one again");
    }
}
