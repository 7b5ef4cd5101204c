//! What an append's answer means, and the chain's last event after it: the decision table, pure.

use super::super::BusError;
use super::super::store::Stored;
use super::{Appended, Head};
use crate::wire::event::Encoded;

/// "wrong last sequence", with the current one.
const WRONG_LAST_SEQUENCE: u64 = 10071;
/// "something is in flight on that subject": may hit the rightful writer.
const IN_FLIGHT: u64 = 10164;

/// What the server's answer to an append means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Stored(u64),
    ReadBack,
    Again,
    Never,
}

pub(crate) fn after_answer(answer: &Result<Stored, BusError>) -> Answer {
    match answer {
        Ok(stored) => Answer::Stored(stored.sequence),
        Err(BusError::Refused { code: WRONG_LAST_SEQUENCE | IN_FLIGHT, .. }) => Answer::ReadBack,
        Err(BusError::TooLarge { .. } | BusError::Closed { .. }) => Answer::Never,
        // 503, time-outs, 10158, full stores: the same bytes again, until they are stored or somebody else is.
        Err(BusError::TimedOut { .. } | BusError::NoResponders { .. } | BusError::Refused { .. } | BusError::Unreadable { .. }) => {
            Answer::Again
        }
    }
}

/// Where an append goes: after what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    /// Sequence of the chain's last event; 0 for none.
    pub(crate) expected: u64,
    /// Its digest, where it is known.
    pub(crate) sha256: Option<&'a str>,
    /// The connection under which it was last seen there; none: in another life.
    pub(crate) seen: Option<u64>,
}

/// What the chain's last event means for an append that may have been stored.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ReadBack {
    Known(Appended),
    /// As expected: a refusal was about something in flight.
    Unmoved,
    /// What the append builds on is not there: not readable yet, or lost by a server that had confirmed it.
    Gone,
}

pub(crate) fn after_read_back(head: Option<&Head>, place: Place<'_>, mine: &Encoded) -> ReadBack {
    match head {
        Some(head) if head.event.nonce == mine.nonce && head.event.id == mine.id => ReadBack::Known(Appended::Stored(head.sequence)),
        Some(head) if head.sequence > place.expected => ReadBack::Known(Appended::Fenced),
        Some(head) if head.sequence < place.expected => ReadBack::Gone,
        // A server that lost its newest messages gives their sequences out again.
        Some(head) if place.sha256.is_some_and(|known| known != head.sha256) => ReadBack::Known(Appended::Fenced),
        None if place.expected > 0 => ReadBack::Gone,
        Some(_) | None => ReadBack::Unmoved,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Event;

    fn head(sequence: u64, nonce: &str, sha256: &str) -> Head {
        let mut event: Event = serde_json::from_str(include_str!("../../../tests/golden/task_started.json")).unwrap();
        (event.nonce, event.id) = (nonce.to_owned(), format!("{nonce}.task_started"));
        Head { sequence, event, sha256: sha256.to_owned() }
    }

    #[test]
    fn an_append_is_stored_fenced_or_waits_by_what_the_chain_ends_with() {
        let mine = serde_json::json!({
            "subject": "s", "kind": "task_completed", "id": "me.end", "nonce": "me", "headers": [], "body": "", "sha256": "" });
        let mine: Encoded = serde_json::from_value(mine).unwrap();
        let place = Place { expected: 7, sha256: Some("claim"), seen: None };
        let fenced = || ReadBack::Known(Appended::Fenced);
        for (found, meaning, why) in [
            (Some(head(7, "me", "claim")), ReadBack::Unmoved, "nobody has written"),
            (Some(head(8, "other", "x")), fenced(), "somebody else went on"),
            (Some(head(7, "other", "x")), fenced(), "the sequence was given out again after a loss"),
            (Some(head(5, "me", "earlier")), ReadBack::Gone, "the newest events are lost, or not readable yet"),
            (None, ReadBack::Gone, "the whole chain is"),
        ] {
            assert_eq!(after_read_back(found.as_ref(), place, &mine), meaning, "{why}");
        }
        let mut stored = head(9, "me", "end");
        stored.event.id = "me.end".to_owned();
        assert_eq!(after_read_back(Some(&stored), place, &mine), ReadBack::Known(Appended::Stored(9)));
        assert_eq!(after_read_back(None, Place { expected: 0, sha256: None, seen: None }, &mine), ReadBack::Unmoved);
    }
}
