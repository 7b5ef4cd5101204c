//! JetStream: what this account may use, how many copies there are, and what "stored" is worth.

use super::nats::Facts;
use super::{Area, Check, Finding};
use crate::bus::inspect::{AccountFacts, SyncFacts};
use crate::config::Config;
use crate::task::{ByteSize, Priority};

/// What to make of it.
pub(super) fn judge(facts: &Facts, config: &Config) -> Vec<Finding> {
    let mut findings = match &facts.account {
        Ok(account) => limits(account, facts, config),
        Err(why) => {
            let check = Check::new(Area::Jetstream, "account", "JetStream is enabled for this account");
            let mend = "jetstream: enabled   # for the account in nats-server.conf; or: nsc edit account NAME --js-disk-storage -1";
            vec![if why.contains("see rights") { check.warn(format!("cannot be seen: {why}"), mend) } else { check.fail(why, mend) }]
        }
    };
    findings.push(replicas(facts, config));
    findings.extend(fsync(facts, config));
    findings
}

fn limits(account: &AccountFacts, facts: &Facts, config: &Config) -> Vec<Finding> {
    vec![
        storage(account),
        streams(account, facts),
        consumers(account, config),
        at_most("max_ack_pending", account.max_ack_pending, u64::try_from(config.streams.max_ack_pending).unwrap_or(0), |n| n.to_string()),
        at_most("largest stream", account.max_stream_bytes, config.streams.logs_max.bytes(), |n| ByteSize(n).to_string()),
        sizes(account),
    ]
}

fn storage(account: &AccountFacts) -> Finding {
    let check = Check::new(Area::Jetstream, "storage", "less than nine tenths in use");
    let used = ByteSize(account.storage >> 10 << 10);
    let Some(most) = account.max_storage else {
        return check.ok(format!("{used} in use; the account has no limit, the server's own cannot be seen"));
    };
    let found = format!("{used} of {} in use", ByteSize(most));
    let mend = "nsc edit account NAME --js-disk-storage SIZE   # or remove what is not needed: nats stream report";
    if account.storage >= most {
        return check.fail(found, mend);
    }
    if account.storage >= most / 10 * 9 { check.warn(found, mend) } else { check.ok(found) }
}

fn streams(account: &AccountFacts, facts: &Facts) -> Finding {
    let drift = facts.drift.as_deref().unwrap_or_default();
    let to_make = drift.iter().filter(|drift| drift.what.starts_with("stream ") && drift.differences.is_none()).count() as u64;
    let check = Check::new(Area::Jetstream, "streams", format!("room for {to_make} that `windlass init` has to make"));
    let there = account.streams;
    match account.max_streams {
        None => check.ok(format!("{there}, no limit")),
        Some(most) if there + to_make <= most => check.ok(format!("{there} of {most}")),
        Some(most) => check.fail(format!("{there} of {most}"), format!("nsc edit account NAME --js-streams {}", there + to_make)),
    }
}

/// The account's limit is one for each stream, and the stream of tasks has them all.
fn consumers(account: &AccountFacts, config: &Config) -> Finding {
    let need = (config.offered_classes().count() * Priority::ALL.len()) as u64;
    let check = Check::new(Area::Jetstream, "consumers", format!("{need} of a stream: one for each class and priority"));
    match account.max_consumers {
        None => check.ok("no limit"),
        Some(most) if need <= most => check.ok(format!("{most} at most")),
        Some(most) => check.fail(format!("{most} at most"), format!("nsc edit account NAME --js-consumer {need}")),
    }
}

/// A limit of the account that a key of the configuration must not exceed: else `windlass init` is refused.
fn at_most(name: &str, most: Option<u64>, configured: u64, show: impl Fn(u64) -> String) -> Finding {
    let (key, variable) = match name {
        "max_ack_pending" => ("streams.max_ack_pending", "STREAMS__MAX_ACK_PENDING"),
        _ => ("streams.logs_max", "STREAMS__LOGS_MAX"),
    };
    let check = Check::new(Area::Jetstream, name, format!("{key} = {} or more", show(configured)));
    match most {
        None => check.ok("no limit"),
        Some(most) if most >= configured => check.ok(show(most)),
        Some(most) => check
            .fail(show(most), format!("export WINDLASS__{variable}={}   # and `windlass init`; or raise the account's limit", show(most))),
    }
}

fn sizes(account: &AccountFacts) -> Finding {
    let check = Check::new(Area::Jetstream, "sizes", "streams may be without a limit of their size");
    if account.max_bytes_required {
        return check.fail("the account wants one of every stream", "nsc edit account NAME --js-max-bytes-required=false");
    }
    check.ok("they may")
}

fn replicas(facts: &Facts, config: &Config) -> Finding {
    let replicas = config.streams.replicas;
    let check = Check::new(Area::Jetstream, "replicas", "streams.replicas fits the servers: 3 in a cluster, 1 without");
    match (&facts.server.cluster, replicas) {
        (None, 1) => check.ok("1, a single server"),
        (None, n) => check.fail(
            format!("{n}, but a single server"),
            "export WINDLASS__STREAMS__REPLICAS=1   # or name the servers of a cluster with --server",
        ),
        (Some(cluster), 1) => {
            let mend = "WINDLASS__STREAMS__REPLICAS=3 windlass init";
            check.warn(format!("1 in cluster {cluster}: the loss of the wrong server stops the fleet"), mend)
        }
        (Some(cluster), n) => check.ok(format!("{n} in cluster {cluster}")),
    }
}

fn fsync(facts: &Facts, config: &Config) -> Vec<Finding> {
    let wanted = "`sync_interval: always`: what is confirmed survives a power cut";
    let check = |name: String| Check::new(Area::Jetstream, name, wanted);
    let unseen = |why: &str| {
        let mend = "windlass doctor --system-server nats://SYSTEM_USER:PASSWORD@HOST:4222   # or look yourself: grep sync_interval nats-server.conf";
        vec![check("fsync".to_owned()).warn(format!("cannot be seen from here: {why}"), mend)]
    };
    match &facts.sync {
        None => unseen("servers tell it to users of the system account only"),
        Some(Err(why)) => unseen(why),
        Some(Ok(servers)) => servers.iter().map(|server| of_server(server, check(format!("fsync of {}", server.server)), config)).collect(),
    }
}

fn of_server(server: &SyncFacts, check: Check, config: &Config) -> Finding {
    if server.always {
        return check.ok("always: stored means on the disk");
    }
    let found = format!("every {} s: a power cut loses what was confirmed since", server.interval.as_secs());
    let mend = "sync_interval: always   # in the block jetstream of nats-server.conf, then restart it";
    if config.streams.replicas >= 3 {
        return check.warn(format!("{found}, if it hits {} servers at one time", config.streams.replicas / 2 + 1), mend);
    }
    check.fail(found, mend)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::bus::provision::Drift;
    use crate::config;
    use crate::doctor::Level;
    use crate::doctor::nats::tests::fine;

    fn bad(facts: &Facts, config: &Config) -> Vec<(String, Level)> {
        judge(facts, config).into_iter().filter(|f| f.level != Level::Ok).map(|f| (f.check, f.level)).collect()
    }

    fn synced(always: bool) -> Facts {
        let server = SyncFacts { server: "n1".to_owned(), always, interval: Duration::from_secs(120) };
        Facts { sync: Some(Ok(vec![server])), ..fine() }
    }

    fn limited(change: impl FnOnce(&mut AccountFacts)) -> Facts {
        let mut facts = synced(true);
        change(facts.account.as_mut().unwrap());
        facts
    }

    #[test]
    fn each_limit_has_its_level() {
        let config = config::load(None, []).unwrap();
        let mut crowded = limited(|a| (a.streams, a.max_streams) = (4, Some(5)));
        crowded.drift = Ok(["stream A", "stream B", "consumer c"].map(|what| Drift { what: what.to_owned(), differences: None }).to_vec());
        for (facts, expected) in [
            (limited(|_| ()), None),
            (limited(|a| (a.storage, a.max_storage) = (95, Some(100))), Some(("storage", Level::Warn))),
            (limited(|a| (a.storage, a.max_storage) = (100, Some(100))), Some(("storage", Level::Fail))),
            (limited(|a| a.max_storage = Some(0)), Some(("storage", Level::Fail))),
            (limited(|a| (a.streams, a.max_streams) = (5, Some(5))), None),
            (crowded, Some(("streams", Level::Fail))),
            (limited(|a| a.max_consumers = Some(9)), None),
            (limited(|a| a.max_consumers = Some(8)), Some(("consumers", Level::Fail))),
            (limited(|a| a.max_ack_pending = Some(1000)), Some(("max_ack_pending", Level::Fail))),
            (limited(|a| a.max_stream_bytes = Some(1 << 30)), Some(("largest stream", Level::Fail))),
            (limited(|a| a.max_bytes_required = true), Some(("sizes", Level::Fail))),
            (Facts { account: Err("not enabled".to_owned()), ..synced(true) }, Some(("account", Level::Fail))),
        ] {
            let expected: Vec<_> = expected.into_iter().map(|(check, level)| (check.to_owned(), level)).collect();
            assert_eq!(bad(&facts, &config), expected, "{facts:?}");
        }
    }

    #[test]
    fn what_stored_is_worth_is_seen_or_said_to_be_unseen() {
        let one = config::load(None, []).unwrap();
        let three = config::load_text("[streams]\nreplicas = 3").unwrap();
        let clustered = |mut facts: Facts| {
            facts.server.cluster = Some("c".to_owned());
            facts
        };
        for (facts, config, expected) in [
            (fine(), &one, Some(("fsync", Level::Warn))),
            (Facts { sync: Some(Err("refused".to_owned())), ..fine() }, &one, Some(("fsync", Level::Warn))),
            (synced(true), &one, None),
            (synced(false), &one, Some(("fsync of n1", Level::Fail))),
            (clustered(synced(false)), &three, Some(("fsync of n1", Level::Warn))),
            (clustered(synced(true)), &one, Some(("replicas", Level::Warn))),
            (synced(true), &three, Some(("replicas", Level::Fail))),
        ] {
            let expected: Vec<_> = expected.into_iter().map(|(check, level)| (check.to_owned(), level)).collect();
            assert_eq!(bad(&facts, config), expected, "{facts:?}");
        }
    }
}
