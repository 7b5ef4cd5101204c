//! Streams and consumers against the contract, key by key.

use super::{Area, Check, Finding};
use crate::bus::provision::{Difference, Drift};

/// What to make of it.
pub(super) fn judge(drift: &Result<Vec<Drift>, String>) -> Vec<Finding> {
    match drift {
        Ok(all) => all.iter().flat_map(of_one).collect(),
        Err(why) => {
            let check = Check::new(Area::Streams, "streams", "as `windlass init` makes them");
            vec![check.fail(format!("cannot be looked at: {why}"), "windlass init --dry-run")]
        }
    }
}

fn of_one(drift: &Drift) -> Vec<Finding> {
    let Drift { what, differences } = drift;
    let check = Check::new(Area::Streams, what, "as `windlass init` makes it");
    match differences.as_deref() {
        None => vec![check.fail("does not exist", "windlass init")],
        Some([]) => vec![check.ok("as it should be")],
        Some(all) => all.iter().map(|difference| of_key(what, difference)).collect(),
    }
}

fn of_key(what: &str, difference: &Difference) -> Finding {
    let check = Check::new(Area::Streams, format!("{what}: {}", difference.key), &difference.should);
    let by_hand =
        format!("# NATS cannot change it in place: drain and remove the {what} yourself, then `windlass init`; or use another --prefix");
    let mend = if difference.changeable { "windlass init" } else { &by_hand };
    // Sizes and ages are an operator's choice; a worker does not start against what breaks a promise.
    if difference.breaks_a_promise() { check.fail(&difference.is, mend) } else { check.warn(&difference.is, mend) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    fn difference(key: &'static str, changeable: bool) -> Difference {
        Difference { key, is: "is".to_owned(), should: "should".to_owned(), changeable }
    }

    #[test]
    fn every_key_is_named_with_its_level_and_mend() {
        let drift = |differences| vec![Drift { what: "stream S".to_owned(), differences }];
        let all = Some(vec![difference("discard", true), difference("max_age", true), difference("retention", false)]);
        let findings = judge(&Ok(drift(all)));
        let seen: Vec<_> = findings.iter().map(|f| (f.check.as_str(), f.level, f.found.as_str(), f.wanted.as_str())).collect();
        let expected = [("discard", Level::Fail), ("max_age", Level::Warn), ("retention", Level::Fail)];
        let names = expected.map(|(key, _)| format!("stream S: {key}"));
        let expected: Vec<_> = names.iter().zip(expected).map(|(name, (_, level))| (name.as_str(), level, "is", "should")).collect();
        assert_eq!(seen, expected);
        assert_eq!(findings[0].mend.as_deref(), Some("windlass init"));
        assert!(findings[2].mend.as_ref().unwrap().contains("another --prefix"));
        assert_eq!(judge(&Ok(drift(None)))[0].level, Level::Fail);
        assert_eq!(judge(&Ok(drift(Some(vec![]))))[0].level, Level::Ok);
        assert_eq!(judge(&Err("no answer".to_owned()))[0].level, Level::Fail);
    }
}
