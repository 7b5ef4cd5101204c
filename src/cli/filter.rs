//! How tasks and events are picked on the command line: words of the contract, and times.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use jiff::SpanRelativeTo;

use crate::task::chain::RunState;
use crate::task::{EventKind, Outcome, Reason, Time};

/// A word of a closed set, whatever its case.
fn one_of<T: Copy + Send + Sync + 'static>(all: &'static [T], word: fn(T) -> &'static str) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(all.iter().map(|value| word(*value)))
        .try_map(move |text| all.iter().copied().find(|value| word(*value).eq_ignore_ascii_case(&text)).ok_or("not a word of the contract"))
}

pub(super) fn state() -> impl TypedValueParser<Value = RunState> {
    one_of(&RunState::ALL, RunState::as_str)
}

pub(super) fn kind() -> impl TypedValueParser<Value = EventKind> {
    one_of(&EventKind::ALL, EventKind::as_str)
}

pub(super) fn outcome() -> impl TypedValueParser<Value = Outcome> {
    one_of(&Outcome::ALL, Outcome::as_str)
}

pub(super) fn reason() -> impl TypedValueParser<Value = Reason> {
    one_of(Reason::ALL, Reason::as_str)
}

/// `10m`, `2h`, `1d 6h`: so long ago; or a time.
pub(super) fn since(text: &str) -> Result<Time, String> {
    since_at(text, Time::now())
}

fn since_at(text: &str, now: Time) -> Result<Time, String> {
    if let Ok(time) = text.parse::<Time>() {
        return Ok(time);
    }
    let span: jiff::Span = text.parse().map_err(|_| "write a duration (10m, 2h, 1d) or a time (2026-11-21T10:02:11Z)".to_owned())?;
    let long = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| "write it in weeks, days, hours and so on".to_owned())?;
    let long = std::time::Duration::try_from(long).map_err(|_| "it lies in the future".to_owned())?;
    Ok(now.minus(long))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn since_is_a_duration_or_a_time() {
        let now = Time::from_micros(1_800_000_000_000_000);
        for (text, seconds) in [("10m", 600), ("2h", 7200), ("1d", 86_400), ("1w", 604_800), ("1h30m", 5400), ("90 seconds", 90)] {
            assert_eq!(since_at(text, now), Ok(now.minus(Duration::from_secs(seconds))), "{text}");
        }
        assert_eq!(since("2026-11-21T11:00:00+01:00").unwrap().to_string(), "2026-11-21T10:00:00.000000Z");
        for text in ["", "10", "soon", "-10m", "1mo", "2026-11-21"] {
            assert!(since(text).is_err(), "{text:?}");
        }
    }
}
