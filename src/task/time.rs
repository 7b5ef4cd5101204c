//! Points in time on the wire: RFC 3339, UTC, microseconds.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A point in time; prints as `2026-11-21T10:02:11.482913Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(Timestamp);

impl Time {
    /// This moment by the wall clock, cut to microseconds so that it survives a round trip.
    #[must_use]
    pub fn now() -> Self {
        Self::from_micros(Timestamp::now().as_microsecond())
    }

    /// Microseconds since 1970; out of range is clamped.
    #[must_use]
    pub fn from_micros(micros: i64) -> Self {
        Self(Timestamp::from_microsecond(micros).unwrap_or(if micros < 0 { Timestamp::MIN } else { Timestamp::MAX }))
    }

    /// Nanoseconds since 1970, as the server stamps messages; what is finer than a microsecond is cut off.
    #[must_use]
    pub fn from_nanos(nanos: i128) -> Self {
        Self::from_micros(i64::try_from(nanos / 1000).unwrap_or(if nanos < 0 { i64::MIN } else { i64::MAX }))
    }

    /// Microseconds since 1970.
    #[must_use]
    pub fn as_micros(self) -> i64 {
        self.0.as_microsecond()
    }

    /// How long until `self`, seen from `now`; zero when it has passed.
    #[must_use]
    pub fn after(self, now: Self) -> Duration {
        Duration::try_from(self.0.duration_since(now.0)).unwrap_or(Duration::ZERO)
    }

    /// `self` plus `delay`, clamped to what can be written.
    #[must_use]
    pub fn plus(self, delay: Duration) -> Self {
        SignedDuration::try_from(delay).ok().and_then(|d| self.0.checked_add(d).ok()).map_or(Self(Timestamp::MAX), Self)
    }

    /// `self` less `span`, clamped to what can be written.
    #[must_use]
    pub fn minus(self, span: Duration) -> Self {
        SignedDuration::try_from(span).ok().and_then(|d| self.0.checked_sub(d).ok()).map_or(Self(Timestamp::MIN), Self)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.6}", self.0)
    }
}

impl FromStr for Time {
    type Err = jiff::Error;
    fn from_str(text: &str) -> Result<Self, jiff::Error> {
        // Cut as all times are: what is read is written alike.
        text.parse().map(|time: Timestamp| Self::from_micros(time.as_microsecond()))
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse()
            .map_err(|_| de::Error::custom(format!("{text:?} is not a time: write RFC 3339 with an offset, such as 2026-11-21T10:02:11Z")))
    }
}

impl JsonSchema for Time {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Time".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "format": "date-time", "description": "RFC 3339; events use UTC with microseconds."})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_six_digits_and_comes_back() {
        let time: Time = "2026-11-21T11:02:11.5+01:00".parse().expect("valid");
        assert_eq!(time.to_string(), "2026-11-21T10:02:11.500000Z");
        assert_eq!(time.to_string().parse::<Time>().expect("own output"), time);
        assert_eq!(time.plus(Duration::from_millis(5)).after(time), Duration::from_millis(5));
        assert_eq!(time.after(time.plus(Duration::from_secs(1))), Duration::ZERO);
        assert_eq!(time.minus(Duration::from_secs(1)).plus(Duration::from_secs(1)), time);
        assert!(time.minus(Duration::MAX) < time);
    }
}
