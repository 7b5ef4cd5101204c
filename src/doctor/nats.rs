//! The server: its version, what it takes, its clock, and who it takes us for.

use std::time::Duration;

use tokio::time::Instant;

use super::{Area, Check, Finding, Wishes};
use crate::bus::connect::SERVER_FLOOR;
use crate::bus::inspect::{AccountFacts, ServerFacts, SyncFacts, UserFacts};
use crate::bus::provision::{self, Drift};
use crate::bus::rights::{self, Act, Answer, Right};
use crate::bus::{Bus, ConnectError, Patience};
use crate::config::Config;
use crate::report::chunk_room;
use crate::task::{ByteSize, Time};

/// What was found, each with why not.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub(super) server: ServerFacts,
    pub(super) user: Result<UserFacts, String>,
    pub(super) account: Result<AccountFacts, String>,
    /// Milliseconds by which this machine's clock is ahead.
    pub(super) ahead_ms: Result<i64, String>,
    pub(super) rights: Vec<(Right, Answer)>,
    pub(super) drift: Result<Vec<Drift>, String>,
    /// None where nobody gave the credentials for it.
    pub(super) sync: Option<Result<Vec<SyncFacts>, String>>,
}

/// Connects, asks and tries. Nothing of it is stored by the server.
pub(super) async fn gather(config: &Config, wishes: &Wishes) -> Result<Facts, ConnectError> {
    let bus = Bus::connect(&config.bus, "windlass doctor", Patience::FailFast).await?;
    let wanted = rights::rights(bus.subjects(), config);
    let answers = bus.try_rights(&wanted).await;
    let rights: Vec<(Right, Answer)> = wanted.into_iter().zip(answers).collect();
    let facts = Facts {
        server: bus.server_facts(),
        user: allowed(&rights, "$SYS.REQ.USER.INFO", bus.user_facts()).await,
        account: allowed(&rights, "$JS.API.INFO", bus.account_facts()).await,
        ahead_ms: allowed(&rights, "$JS.API.STREAM.INFO.", ahead(&bus)).await,
        drift: allowed(&rights, "$JS.API.STREAM.INFO.", provision::drift(&bus, config)).await,
        sync: sync(wishes).await,
        rights,
    };
    bus.close().await;
    Ok(facts)
}

/// Asks, unless it is known that this user may not: that would only be silence, after a while.
async fn allowed<T, E: std::fmt::Display>(
    rights: &[(Right, Answer)],
    subject: &str,
    question: impl Future<Output = Result<T, E>>,
) -> Result<T, String> {
    let hears = |(right, answer): &(Right, Answer)| right.act == Act::Subscribe && right.grant == "_INBOX.>" && *answer != Answer::Granted;
    let denied = |(right, answer): &(Right, Answer)| right.grant.starts_with(subject) && *answer == Answer::Denied;
    if rights.iter().any(hears) {
        return Err("this user hears no answers, see rights".to_owned());
    }
    if rights.iter().any(denied) {
        return Err("this user may not ask, see rights".to_owned());
    }
    question.await.map_err(|e| e.to_string())
}

async fn ahead(bus: &Bus) -> Result<i64, String> {
    let (sent, before) = (Instant::now(), Time::now());
    let theirs = bus.server_time().await.map_err(|e| e.to_string())?;
    let took = sent.elapsed();
    if took > Duration::from_secs(1) {
        return Err(format!("the answer took {} ms, which says too little", took.as_millis()));
    }
    Ok((before.plus(took / 2).as_micros() - theirs.as_micros()) / 1000)
}

async fn sync(wishes: &Wishes) -> Option<Result<Vec<SyncFacts>, String>> {
    let system = wishes.system.as_ref()?;
    let asked = async {
        let bus = Bus::connect(system, "windlass doctor (system)", Patience::FailFast).await.map_err(|e| e.to_string())?;
        let found = bus.sync_facts().await.map_err(|e| e.to_string());
        bus.close().await;
        found
    };
    Some(asked.await)
}

/// There is no connection.
pub(super) fn not_connected(error: &ConnectError, config: &Config) -> Finding {
    let found = error.to_string();
    match error {
        ConnectError::TooOld { .. } => version().fail(found, "deploy/fetch-nats.sh   # or your distribution's newer package"),
        ConnectError::Unreachable { .. } => {
            connection().fail(found, "windlass dev   # for a try; or name your server: export NATS_URL=nats://HOST:4222")
        }
        ConnectError::NotPermitted { .. } => connection().fail(found, "export NATS_CREDS=/path/to/worker.creds"),
        ConnectError::Credentials { .. } => {
            connection().fail(found, format!("ls -l {}   # must be readable by this user", config.bus.creds))
        }
    }
}

fn connection() -> Check {
    Check::new(Area::Nats, "connection", "a NATS server that lets this user in")
}

fn version() -> Check {
    let (major, minor, patch) = SERVER_FLOOR;
    Check::new(Area::Nats, "version", format!("nats-server {major}.{minor}.{patch} or newer"))
}

/// What to make of it.
pub(super) fn judge(facts: &Facts, config: &Config) -> Vec<Finding> {
    let server = &facts.server;
    let who = match &facts.user {
        Ok(user) if !user.user.is_empty() => format!("{}, as user {} of account {}", server.name, user.user, user.account),
        Ok(_) | Err(_) => server.name.clone(),
    };
    // Without it there would be no connection.
    vec![connection().ok(who), version().ok(&server.version), credentials(facts, config), max_payload(server, config), clock(facts)]
}

/// Sooner than this somebody should have renewed them.
const RENEWED_BEFORE: Duration = Duration::from_secs(24 * 3600);

fn credentials(facts: &Facts, config: &Config) -> Finding {
    let check = Check::new(Area::Nats, "credentials", "good for a day or longer, or renewed in their file before they expire");
    match &facts.user {
        Err(why) => check.ok(format!("when they expire cannot be seen: {why}")),
        Ok(user) => match user.expires_ns.map(Duration::from_nanos) {
            None => check.ok("do not expire"),
            Some(left) if left >= RENEWED_BEFORE => check.ok(format!("good for {} days", left.as_secs() / 86_400)),
            Some(left) => {
                let file = if config.bus.creds.is_empty() { "FILE" } else { &config.bus.creds };
                let mend = format!("nsc generate creds --name {} --output-file {file}   # nothing has to be restarted", user.user);
                check.warn(format!("expire in {} minutes", left.as_secs() / 60), mend)
            }
        },
    }
}

/// NATS's default. Smaller ones work; results and events are shortened sooner.
const USUAL_PAYLOAD: u64 = 1 << 20;

fn max_payload(server: &ServerFacts, config: &Config) -> Finding {
    let chunk = config.logs.chunk;
    let check = Check::new(Area::Nats, "max_payload", format!("{} or more, and room for logs.chunk = {chunk}", ByteSize(USUAL_PAYLOAD)));
    let most = server.max_payload as u64;
    let found = ByteSize(most).to_string();
    let room = chunk_room(server.max_payload) as u64;
    let mend = "max_payload: 1MB   # in nats-server.conf, then: nats-server --signal reload";
    if room < chunk.bytes() {
        return check.warn(format!("{found}: chunks of output are cut to {room} bytes"), mend);
    }
    if most < USUAL_PAYLOAD {
        return check.warn(format!("{found}: large results and events are shortened"), mend);
    }
    check.ok(found)
}

fn clock(facts: &Facts) -> Finding {
    let check = Check::new(Area::Nats, "clock", "within a second of the server's");
    match facts.ahead_ms {
        Ok(ms) if ms.abs() < 1000 => check.ok(format!("differs by {} ms", ms.abs())),
        Ok(ms) => {
            let side = if ms > 0 { "ahead of" } else { "behind" };
            let found = format!("{} ms {side} the server's: times in events are off by that", ms.abs());
            check.warn(found, "timedatectl set-ntp true   # on both machines")
        }
        Err(ref why) => check.warn(format!("cannot be seen: {why}"), "windlass doctor   # again, after `windlass init`"),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config;
    use crate::doctor::Level;

    pub(in crate::doctor) fn fine() -> Facts {
        Facts {
            server: ServerFacts { name: "n1".to_owned(), version: "2.15.1".to_owned(), cluster: None, max_payload: 1 << 20 },
            user: Ok(UserFacts { user: "worker".to_owned(), account: "A".to_owned(), expires_ns: None }),
            account: Ok(AccountFacts::default()),
            ahead_ms: Ok(3),
            rights: Vec::new(),
            drift: Ok(Vec::new()),
            sync: None,
        }
    }

    #[test]
    fn each_lack_has_its_level() {
        let config = config::load(None, []).unwrap();
        let with = |change: &dyn Fn(&mut Facts)| {
            let mut facts = fine();
            change(&mut facts);
            facts
        };
        let hours = |h: u64| move |f: &mut Facts| f.user.as_mut().unwrap().expires_ns = Some(h * 3600 * 1_000_000_000);
        for (facts, expected) in [
            (fine(), None),
            (with(&hours(48)), None),
            (with(&hours(2)), Some("credentials")),
            (with(&|f| f.user = Err("may not ask".to_owned())), None),
            (with(&|f| f.server.max_payload = 512 << 10), Some("max_payload")),
            (with(&|f| f.server.max_payload = 16 << 10), Some("max_payload")),
            (with(&|f| f.ahead_ms = Ok(-1500)), Some("clock")),
            (with(&|f| f.ahead_ms = Err("no stream".to_owned())), Some("clock")),
        ] {
            let found: Vec<(String, Level)> =
                judge(&facts, &config).into_iter().filter(|f| f.level != Level::Ok).map(|f| (f.check, f.level)).collect();
            let expected: Vec<(String, Level)> = expected.into_iter().map(|check: &str| (check.to_owned(), Level::Warn)).collect();
            assert_eq!(found, expected, "{facts:?}");
        }
    }

    #[test]
    fn an_old_server_is_named_with_the_floor() {
        let config = config::load(None, []).unwrap();
        let finding = not_connected(&ConnectError::TooOld { version: "2.11.4".to_owned() }, &config);
        assert_eq!((finding.check.as_str(), finding.level), ("version", Level::Fail));
        assert!(finding.found.contains("2.11.4") && finding.wanted.contains("2.12.3"), "{finding:?}");
    }
}
