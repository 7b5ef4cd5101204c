//! What holds, over every order of things within bounds.

use std::time::Instant;

use super::explore::explore;
use super::world::{AT_ONCE, Fault, Setting, TAKEN, World};
use Fault::{
    Cancel, Crash, DiskFull, EarlyExpiry, Freeze, InFlight, Lapse, LateRequest, Leave, LostAnswer, NewConsumer, NoLeader, Progress,
    Republish, Shed, StaleRead, Sweep, TooSoon, Unasked, Vanish,
};

/// Everything that can happen.
const ANYTHING: &[Fault] = &[
    Crash,
    LostAnswer,
    LateRequest,
    Lapse,
    EarlyExpiry,
    Freeze,
    StaleRead,
    InFlight,
    NoLeader,
    Shed,
    Unasked,
    Leave,
    Progress,
    DiskFull,
    TooSoon,
    NewConsumer,
    Vanish,
    Sweep,
    Cancel,
    Republish,
];

/// What can happen while clocks and network are within bounds, and nobody else touches the queue.
const IN_TIME: &[Fault] = &[
    Crash,
    LostAnswer,
    LateRequest,
    Lapse,
    StaleRead,
    InFlight,
    NoLeader,
    Shed,
    Unasked,
    Leave,
    Progress,
    DiskFull,
    TooSoon,
    Sweep,
    Cancel,
    Republish,
];

/// Explores one setting; with `WINDLASS_MODEL=long` the second one, which is larger.
fn holds(name: &str, short: Setting, long: Setting) {
    let setting = if std::env::var("WINDLASS_MODEL").is_ok_and(|bounds| bounds == "long") { long } else { short };
    let begun = Instant::now();
    match explore(&World::new(setting)) {
        Ok(seen) => println!(
            "{name}: {} hands, {} attempts, any {} faults: {} states, {} moves of {} kinds, {} ends, {:.1} s",
            setting.hands,
            setting.max_attempts,
            setting.faults,
            seen.states,
            seen.moves,
            seen.kinds,
            seen.ends,
            begun.elapsed().as_secs_f64()
        ),
        Err(found) => panic!("{found:?}"),
    }
}

const UNTIMED: Setting = Setting { hands: 2, max_attempts: 2, faults: 2, may: ANYTHING, in_time: false, carried: true, flaw: None };
const TIMED: Setting = Setting { may: IN_TIME, in_time: true, ..UNTIMED };

#[test]
fn whatever_happens_the_chain_is_sound() {
    holds("whatever happens", UNTIMED, Setting { faults: 3, ..UNTIMED });
}

#[test]
fn whatever_happens_among_three_hands_the_chain_is_sound() {
    holds("three hands", Setting { hands: 3, max_attempts: 3, ..UNTIMED }, Setting { hands: 3, max_attempts: 3, faults: 3, ..UNTIMED });
}

#[test]
fn whatever_happens_a_task_too_large_for_its_chain_ends() {
    let large = Setting { carried: false, ..UNTIMED };
    holds("assignment not carried", large, Setting { faults: 3, ..large });
}

#[test]
fn in_time_nobodys_task_is_taken() {
    holds("in time", Setting { faults: 3, ..TIMED }, Setting { faults: 4, ..TIMED });
}

#[test]
fn in_time_nobodys_only_attempt_is_taken() {
    let once = Setting { max_attempts: 1, ..TIMED };
    holds("in time, one attempt", Setting { faults: 3, ..once }, Setting { faults: 4, ..once });
}

#[test]
fn in_time_nobodys_task_is_taken_among_three_hands() {
    let three = Setting { hands: 3, max_attempts: 3, ..TIMED };
    holds("in time, three hands", three, Setting { faults: 4, ..three });
}

/// The limits of the promise, so that nobody takes them for covered.
#[test]
fn beyond_its_bounds_a_running_task_can_be_taken() {
    for fault in [&[EarlyExpiry], &[Freeze], &[Vanish], &[NewConsumer]] {
        let found = explore(&World::new(Setting { may: fault, ..TIMED }));
        match (found, fault[0]) {
            // Counts that begin anew are smaller than the owner's: nobody is taken for a later delivery.
            (Ok(_), NewConsumer) => {}
            (Ok(seen), fault) => panic!("{fault:?} does no harm any more, say so in docs/guarantees.md: {seen:?}"),
            (Err(found), fault) => assert!(fault != NewConsumer && [TAKEN, AT_ONCE].contains(&found.promise), "{fault:?}: {found:?}"),
        }
    }
}

/// A part of the model that nothing reaches would prove nothing.
#[test]
fn everything_that_can_happen_does() {
    let kinds = |may: Vec<Fault>| explore(&World::new(Setting { may: may.leak(), ..UNTIMED })).expect("holds").kinds;
    for fault in ANYTHING {
        let needed = [(TooSoon, DiskFull), (NoLeader, Vanish), (StaleRead, InFlight)];
        let before: Vec<Fault> = needed.iter().filter(|(late, _)| late == fault).map(|(_, early)| *early).collect();
        let with: Vec<Fault> = before.iter().copied().chain([*fault]).collect();
        assert!(kinds(with) > kinds(before), "{fault:?} makes nothing happen");
    }
}
