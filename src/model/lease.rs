//! The clock of a lease against the server's `ack_wait`: what "in time" means in the other machine.
//!
//! Time goes in ticks, twenty to an `ack_wait`. The server may hand the message out again from the tick on at which
//! `ack_wait` is over since the delivery or the last progress ack that it took; requests and answers take any time at all.
//! The question is whether the task's process can still be there then.

use std::time::Duration;

use tokio::time::Instant;

use super::explore::{Machine, Move, explore};
use crate::intake::lease::{lease_end, renewal};

/// What the environment may take, in ticks.
#[derive(Debug, Clone, Copy)]
struct Clock {
    /// The way of a delivery from the server to the worker's clock.
    way: u8,
    /// From the end of the lease until the task's process is gone.
    stop: u8,
    /// The worker's clock stands still for one tick of so many; 0: never.
    slow: u8,
    /// A renewal counts from its answer instead of from when it was sent: a mistake.
    from_answer: bool,
}

const ACK_WAIT: u8 = 20;

fn ticks(duration: Duration) -> u8 {
    u8::try_from(duration.as_secs()).expect("few ticks")
}

fn ack_wait() -> Duration {
    Duration::from_secs(ACK_WAIT.into())
}

/// Ticks from the last renewal to the end of the lease, by the worker's own code.
fn lease() -> u8 {
    let last = Instant::now();
    ticks(lease_end(last, ack_wait()) - last)
}

/// Ages, in ticks since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct State {
    /// Since `ack_wait` began anew, by the server.
    pending: u8,
    again: bool,
    /// The delivery is on its way since.
    way: Option<u8>,
    /// Since the last confirmed renewal was sent, by the worker.
    last: u8,
    /// Since a progress ack was sent, and whether the server took it.
    asked: Option<(u8, bool)>,
    /// Since the process was told to stop.
    stopping: Option<u8>,
    since_slow: u8,
}

/// How long a renewal's answer is waited for.
fn patience() -> u8 {
    ticks(renewal(ack_wait()))
}

const STOPPED: &str = "a task is stopped before its message is handed out again";

impl Clock {
    fn runs(self, state: &State) -> bool {
        state.way.is_none() && state.stopping.is_none_or(|since| since < self.stop)
    }

    /// What must happen before time goes on.
    fn urgent(self, state: &State) -> bool {
        let arrives = state.way == Some(self.way);
        let ends = state.way.is_none() && state.stopping.is_none() && state.last >= lease();
        let unanswered = state.asked.is_some_and(|(since, _)| since >= patience());
        arrives || ends || unanswered
    }

    fn tick(self, state: &State, slow: bool) -> State {
        let own = u8::from(!slow);
        State {
            pending: (state.pending + 1).min(ACK_WAIT),
            way: state.way.map(|since| since + 1),
            last: (state.last + if state.way.is_none() { own } else { 0 }).min(2 * ACK_WAIT),
            asked: state.asked.map(|(since, taken)| (since + own, taken)),
            stopping: state.stopping.map(|since| (since + 1).min(self.stop)),
            since_slow: if slow { 0 } else { (state.since_slow + 1).min(self.slow) },
            ..*state
        }
    }
}

impl Machine for Clock {
    type State = State;

    fn start(&self) -> State {
        State { pending: 0, again: false, way: Some(0), last: 0, asked: None, stopping: None, since_slow: 0 }
    }

    fn moves(&self, state: &State, out: &mut Vec<Move<State>>) {
        let mut may = |what, to| out.push(Move { what, fault: false, to });
        if !self.urgent(state) {
            may("time goes on", self.tick(state, false));
            if self.slow > 0 && state.since_slow == self.slow {
                may("time goes on, the worker's clock does not", self.tick(state, true));
            }
        }
        if state.way.is_some() {
            may("the delivery arrives", State { way: None, last: 0, ..*state });
        }
        let holds = state.way.is_none() && state.stopping.is_none();
        if holds && state.last >= lease() {
            may("the lease is over: the task is told to stop", State { stopping: Some(0), asked: None, ..*state });
        } else if holds && state.asked.is_none() && state.last >= ticks(renewal(ack_wait())) {
            may("a renewal is sent", State { asked: Some((0, false)), ..*state });
        }
        match state.asked {
            None => {}
            // The server takes it whether or not the message is still this worker's.
            Some((since, false)) => {
                may("the server takes the renewal", State { asked: Some((since, true)), pending: 0, ..*state });
            }
            Some((since, true)) => {
                let last = if self.from_answer { 0 } else { since };
                may("the renewal is confirmed", State { asked: None, last, ..*state });
            }
        }
        if state.asked.is_some_and(|(since, _)| since >= patience()) {
            may("the renewal's answer does not come", State { asked: None, ..*state });
        }
        if state.pending >= ACK_WAIT && !state.again {
            may("the message is handed out again", State { again: true, ..*state });
        }
    }

    fn broken(&self, state: &State) -> Option<&'static str> {
        (state.again && self.runs(state)).then_some(STOPPED)
    }

    fn is_done(&self, state: &State) -> bool {
        state.again
    }
}

fn clock(way: u8, stop: u8, slow: u8) -> Clock {
    Clock { way, stop, slow, from_answer: false }
}

#[test]
fn a_task_is_stopped_before_its_message_is_handed_out_again() {
    // Less than a quarter of ack_wait for everything that takes time.
    for (way, stop, slow) in [(4, 0, 0), (0, 4, 0), (2, 2, 0), (1, 1, 10), (0, 2, 10)] {
        match explore(&clock(way, stop, slow)) {
            Ok(seen) => println!("way {way}, stop {stop}, one tick lost of {slow}: {seen:?}"),
            Err(found) => panic!("{found:?}"),
        }
    }
}

#[test]
fn the_model_catches_a_lease_without_margin() {
    // What the assumption is worth: a little more breaks it, and so does a renewal that counts from its answer.
    let late = Clock { from_answer: true, ..clock(0, 4, 0) };
    for clock in [clock(5, 0, 0), clock(0, 6, 0), clock(2, 4, 0), clock(0, 5, 10), late] {
        let Err(found) = explore(&clock) else { panic!("there is margin left: {clock:?}") };
        assert_eq!(found.promise, STOPPED, "{clock:?}: {found:?}");
    }
}
