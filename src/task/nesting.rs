//! How deep a value of the publisher's or the task's own may be nested.
//!
//! Such values are repeated in events, some levels down. Readers stop at a depth, ours at 128 levels of JSON and 64 of
//! MessagePack: a chain that holds a deeper value could be written and never be read again, by nobody.

use serde_json::Value;

/// Deepest nesting; far from what any reader refuses.
pub const MAX_NESTING: usize = 32;

/// Refuses what is deeper than [`MAX_NESTING`].
///
/// # Errors
/// What is wrong, to follow the value's name.
pub fn check(value: &Value) -> Result<(), String> {
    if is_deeper(value, MAX_NESTING) { Err(format!("is nested deeper than {MAX_NESTING} levels")) } else { Ok(()) }
}

fn is_deeper(value: &Value, levels: usize) -> bool {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
        Value::Array(_) | Value::Object(_) if levels == 0 => true,
        Value::Array(items) => items.iter().any(|item| is_deeper(item, levels - 1)),
        Value::Object(members) => members.values().any(|member| is_deeper(member, levels - 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_is_counted_by_lists_and_objects() {
        let nested =
            |levels: usize| {
                (0..levels).fold(Value::from(1), |inner, n| {
                    if n % 2 == 0 { Value::from(vec![inner]) } else { serde_json::json!({"a": 1, "z": inner}) }
                })
            };
        for (levels, accepted) in [(0, true), (1, true), (MAX_NESTING, true), (MAX_NESTING + 1, false), (100, false)] {
            assert_eq!(check(&nested(levels)).is_ok(), accepted, "{levels} levels");
        }
    }
}
