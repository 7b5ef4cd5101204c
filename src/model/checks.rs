//! What holds, over every order of things within bounds.

use std::time::Instant;

use super::explore::explore;
use super::world::{Fault, Setting, World};
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

/// More by `WINDLASS_MODEL=long`.
fn long() -> bool {
    std::env::var("WINDLASS_MODEL").is_ok_and(|bounds| bounds == "long")
}

fn holds(name: &str, setting: Setting) {
    let begun = Instant::now();
    match explore(&World::new(setting)) {
        Ok(seen) => println!(
            "{name}: {} hands, {} attempts, any {} faults: {} states, {} moves, {} ends, {:.1} s",
            setting.hands,
            setting.max_attempts,
            setting.faults,
            seen.states,
            seen.moves,
            seen.ends,
            begun.elapsed().as_secs_f64()
        ),
        Err(found) => panic!("{found:?}"),
    }
}

#[test]
fn whatever_happens_the_chain_is_sound() {
    let faults = if long() { 4 } else { 2 };
    let setting = Setting { hands: 2, max_attempts: 2, faults, may: ANYTHING, in_time: false, carried: true, flaw: None };
    holds("anything", setting);
}

#[test]
fn in_time_nobodys_task_is_taken() {
    let faults = if long() { 4 } else { 2 };
    let setting = Setting { hands: 2, max_attempts: 2, faults, may: IN_TIME, in_time: true, carried: true, flaw: None };
    holds("in time", setting);
}
