//! What this NATS user may do, by what came of trying it.

use std::collections::BTreeMap;

use super::{Area, Check, Finding};
use crate::bus::inspect::UserFacts;
use crate::bus::rights::{Act, Answer, Right, Role};

/// A subject to allow, with everything that was tried below it.
struct Granted<'a> {
    right: &'a Right,
    answer: Answer,
}

/// What to make of it.
pub(super) fn judge(tried: &[(Right, Answer)], role: Role, user: Option<&UserFacts>) -> Vec<Finding> {
    [Role::Worker, Role::Operator]
        .into_iter()
        .flat_map(|of| if of == role { needed(tried, of, user) } else { vec![other(tried, of)] })
        .collect()
}

/// The worst answer below each subject of a role.
fn by_subject(tried: &[(Right, Answer)], role: Role) -> Vec<Granted<'_>> {
    let mut subjects: BTreeMap<(Act, &str), Granted<'_>> = BTreeMap::new();
    for (right, answer) in tried.iter().filter(|(right, _)| right.role == role) {
        let entry = subjects.entry((right.act, &right.grant)).or_insert(Granted { right, answer: *answer });
        if rank(*answer) > rank(entry.answer) {
            *entry = Granted { right, answer: *answer };
        }
    }
    subjects.into_values().collect()
}

fn rank(answer: Answer) -> u8 {
    match answer {
        Answer::Granted => 0,
        Answer::Silent => 1,
        Answer::Denied => 2,
    }
}

fn name(role: Role) -> &'static str {
    match role {
        Role::Worker => "worker",
        Role::Operator => "operator",
    }
}

/// Each right that is not there, or that all are.
fn needed(tried: &[(Right, Answer)], role: Role, user: Option<&UserFacts>) -> Vec<Finding> {
    let all = by_subject(tried, role);
    let lacking: Vec<Finding> = all.iter().filter_map(|granted| lacking(granted, user)).collect();
    if lacking.is_empty() {
        let check = Check::new(
            Area::Rights,
            name(role),
            format!("everything that a{} {} does", if role == Role::Worker { "" } else { "n" }, name(role)),
        );
        return vec![check.ok(format!("{} of {0} subjects may be used", all.len()))];
    }
    lacking
}

fn lacking(granted: &Granted<'_>, user: Option<&UserFacts>) -> Option<Finding> {
    let Granted { right, answer } = granted;
    let check = Check::new(Area::Rights, format!("{} {}", right.act.as_str(), right.grant), format!("allowed: {}", right.purpose));
    let (short, section) = match right.act {
        Act::Publish => ("pub", "publish"),
        Act::Subscribe => ("sub", "subscribe"),
    };
    let user = user.map(|user| user.user.as_str()).filter(|user| !user.is_empty()).unwrap_or("NAME");
    let mend =
        format!("nsc edit user --name {user} --allow-{short} '{}'   # or in nats-server.conf: permissions.{section}.allow", right.grant);
    match (answer, right.optional) {
        (Answer::Granted, _) => None,
        (Answer::Denied, false) => Some(check.fail("denied", mend)),
        (Answer::Denied, true) => Some(check.warn("denied; it can do without", mend)),
        (Answer::Silent, _) => Some(check.warn("no answer", "windlass doctor   # again; the stream may have no leader just now")),
    }
}

/// A user that is none of that role's is not to have its rights.
fn other(tried: &[(Right, Answer)], role: Role) -> Finding {
    let all = by_subject(tried, role);
    let there = all.iter().filter(|granted| granted.answer == Answer::Granted).count();
    let check = Check::new(Area::Rights, name(role), "not needed, see --role");
    check.ok(format!("{there} of {} subjects may be used", all.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::{Subjects, rights};
    use crate::config;
    use crate::doctor::Level;

    fn tried(deny: &str) -> Vec<(Right, Answer)> {
        let config = config::load(None, []).unwrap();
        let all = rights::rights(&Subjects::new(&config.bus.prefix), &config).into_iter();
        let answer = |right: &Right| if !deny.is_empty() && right.grant.contains(deny) { Answer::Denied } else { Answer::Granted };
        all.map(|right| (right.clone(), answer(&right))).collect()
    }

    fn bad(tried: &[(Right, Answer)], role: Role) -> Vec<(String, Level)> {
        judge(tried, role, None).into_iter().filter(|f| f.level != Level::Ok).map(|f| (f.check, f.level)).collect()
    }

    #[test]
    fn each_denied_subject_of_the_role_is_named_once() {
        assert_eq!(bad(&tried(""), Role::Worker), []);
        assert_eq!(bad(&tried("windlass.events"), Role::Worker), [("publish windlass.events.*.*.*".to_owned(), Level::Fail)]);
        assert_eq!(bad(&tried("windlass.events"), Role::Operator), [("subscribe windlass.events.*.*.*".to_owned(), Level::Fail)]);
        assert_eq!(
            bad(&tried("CONSUMER.CREATE"), Role::Worker),
            [("publish $JS.API.CONSUMER.CREATE.WINDLASS_TASKS.>".to_owned(), Level::Warn)]
        );
        assert_eq!(
            bad(&tried("CONSUMER.CREATE"), Role::Operator),
            [
                ("publish $JS.API.CONSUMER.CREATE.WINDLASS_EVENTS.>".to_owned(), Level::Warn),
                ("publish $JS.API.CONSUMER.CREATE.WINDLASS_TASKS.>".to_owned(), Level::Fail)
            ]
        );
        assert_eq!(bad(&tried("STREAM.CREATE"), Role::Worker), [], "a worker is no operator");
    }

    #[test]
    fn the_mend_can_be_pasted() {
        let user = UserFacts { user: "w1".to_owned(), account: "A".to_owned(), expires_ns: None };
        let findings = judge(&tried("MSG.NEXT"), Role::Worker, Some(&user));
        let mend = findings[0].mend.as_deref().unwrap();
        assert!(mend.starts_with("nsc edit user --name w1 --allow-pub '$JS.API.CONSUMER.MSG.NEXT.WINDLASS_TASKS.*'"), "{mend}");
    }
}
