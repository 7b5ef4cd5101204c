//! What the model must not let pass: a decision or a rule of the server, broken on purpose, and the promise that breaks.

use super::bus::{ALLOWED, CONTIGUOUS, NOT_LATE, ONE_END, ONE_OWNER, RELEASED};
use super::explore::{CAN_END, explore};
use super::sweep::{MENDED, TWICE};
use super::world::{ACK, AT_ONCE, Fault, LETTER, Setting, TAKEN, World};

/// One mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flaw {
    /// Acknowledges although the answer to the last append never came.
    AckUnread,
    /// The server stores events without regard to their condition.
    NoCondition,
    /// Takes another's chain for its own when it reads back.
    AnyNonce,
    /// Acknowledges a delivery that is another's by now.
    AckStale,
    /// Claims on top of a running attempt with a late delivery.
    TakeStale,
    /// Gives a message back although it was fenced.
    NakFenced,
    /// Sends a nak again whose answer was lost.
    NakAgain,
    /// Gives a message back although its lease was over before.
    NakUnheld,
    /// Gives back what comes unasked without a look at its chain.
    BackUnseen,
    /// Buries a task before its end is stored.
    LetterFirst,
    /// Does not carry over how many attempts were released.
    CountReleased,
    /// Takes the server's count of deliveries for the attempt's number.
    DeliveriesAreAttempts,
    /// Goes on when the attempts are used up.
    NoLimit,
    /// Does not read cancel requests.
    DeafToCancel,
    /// Lets a task run when its lease is over.
    RunsOn,
    /// The server's `ack_wait` is shorter than the worker believes.
    ShortAckWait,
    /// The server hands a message out once only.
    MaxDeliver,
    /// Nobody sweeps.
    NoSweeper,
    /// Sweeps without searching, over a queue that takes a second message.
    BlindSweeper,
    /// Takes a stream without a leader for none.
    NoLeaderIsNever,
    /// Sends a dead worker's end wherever the chain stands.
    UnfencedReplay,
    /// Events are kept for a shorter time than messages.
    EventsExpire,
}

const BASE: Setting = Setting { hands: 2, max_attempts: 2, faults: 2, may: &[], in_time: false, carried: true, flaw: None };

#[track_caller]
fn catches(flaw: Flaw, promise: &str, setting: Setting) {
    if let Err(found) = explore(&World::new(setting)) {
        panic!("without the flaw there must be nothing to find, {found:?}");
    }
    match explore(&World::new(Setting { flaw: Some(flaw), ..setting })) {
        Ok(seen) => panic!("{flaw:?} passes: {seen:?}"),
        Err(found) => assert_eq!(found.promise, promise, "{found:?}"),
    }
}

macro_rules! catches {
    ($($name:ident: $flaw:ident breaks $promise:expr, $may:expr $(, $key:ident: $value:expr)*;)*) => {$(
        #[test]
        fn $name() {
            catches(Flaw::$flaw, $promise, Setting { may: &$may, $($key: $value,)* ..BASE });
        }
    )*};
}

use Fault::{Cancel, Crash, EarlyExpiry, Freeze, Lapse, Leave, LostAnswer, NoLeader, Sweep, Unasked, Vanish};

catches! {
    the_model_catches_an_ack_for_an_unconfirmed_end: AckUnread breaks ACK, [Crash];
    the_model_catches_a_claim_without_condition: NoCondition breaks ONE_OWNER, [EarlyExpiry];
    the_model_catches_a_receipt_for_anothers_event: AnyNonce breaks ONE_OWNER, [EarlyExpiry];
    the_model_catches_an_ack_of_a_stale_delivery: AckStale breaks ACK, [Freeze];
    the_model_catches_a_late_claim: TakeStale breaks NOT_LATE, [Freeze];
    the_model_catches_a_nak_of_the_fenced: NakFenced breaks NOT_LATE, [Lapse], in_time: true;
    the_model_catches_a_nak_sent_twice: NakAgain breaks TAKEN, [Leave, LostAnswer], in_time: true;
    the_model_catches_a_nak_after_the_lease: NakUnheld breaks TAKEN, [Lapse, Leave], in_time: true;
    the_model_catches_a_late_delivery_given_back_unseen: BackUnseen breaks NOT_LATE, [Freeze, Unasked];
    the_model_catches_a_letter_before_its_end: LetterFirst breaks LETTER, [Lapse];
    the_model_catches_released_attempts_that_count: CountReleased breaks RELEASED, [Leave, Crash];
    the_model_catches_deliveries_that_count_as_attempts: DeliveriesAreAttempts breaks CONTIGUOUS, [Crash];
    the_model_catches_an_attempt_too_many: NoLimit breaks ALLOWED, [Crash];
    the_model_catches_a_cancel_that_is_not_read: DeafToCancel breaks "no attempt begins once its cancel was read", [Cancel, Crash];
    the_model_catches_a_task_that_outlives_its_lease: RunsOn breaks AT_ONCE, [Lapse], in_time: true;
    the_model_catches_a_short_ack_wait: ShortAckWait breaks TAKEN, [Crash], in_time: true;
    the_model_catches_a_limit_of_deliveries: MaxDeliver breaks CAN_END, [Crash];
    the_model_catches_that_nobody_sweeps: NoSweeper breaks CAN_END, [Crash, Vanish];
    the_model_catches_a_blind_sweeper: BlindSweeper breaks TWICE, [Sweep];
    the_model_catches_an_end_for_want_of_a_leader: NoLeaderIsNever breaks MENDED, [Vanish, NoLeader, Crash], faults: 3;
    the_model_catches_an_unfenced_replay: UnfencedReplay breaks ONE_END, [Crash];
    the_model_catches_events_that_expire_first: EventsExpire breaks ONE_END, [Crash];
}
