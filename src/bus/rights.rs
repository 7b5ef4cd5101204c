//! What a NATS user must be allowed to, by role: the list, and (in `trial`) the trial of each.

use super::Subjects;
use crate::config::Config;
use crate::task::{EventKind, Priority};

mod trial;

pub(super) use trial::Ear;

/// What a NATS user is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Role {
    /// Runs `windlass worker`.
    Worker,
    /// Runs the verbs of an operator.
    Operator,
}

/// What is done with a subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Act {
    /// Publish, or ask.
    Publish,
    /// Subscribe.
    Subscribe,
}

impl Act {
    /// The word in NATS's configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Subscribe => "subscribe",
        }
    }
}

/// One right of a role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Right {
    /// Whose.
    pub role: Role,
    /// What is done.
    pub act: Act,
    /// The subject to allow.
    pub grant: String,
    /// What it is for.
    pub purpose: &'static str,
    /// The role can do without, at that price.
    pub optional: bool,
    /// What is tried: a subject below `grant`.
    trial: Trial,
}

/// What is tried.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Trial {
    act: Act,
    subject: String,
    bait: Bait,
}

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Bait {
    /// Nothing: a question that may be asked.
    Nothing,
    /// What no parser takes.
    Nonsense,
    /// A message for another stream.
    Misdirected,
}

/// What came of a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The server took it.
    Granted,
    /// The server refused it.
    Denied,
    /// It said neither.
    Silent,
}

/// Task, tenant, stream and key that nobody has.
const NOBODY: &str = "windlass-doctor";

/// What is needed only to watch.
const TOP: &str = "top";

struct List<'a> {
    role: Role,
    subjects: &'a Subjects,
    rights: Vec<Right>,
}

impl List<'_> {
    fn add(&mut self, act: Act, grant: String, subject: String, bait: Bait, purpose: &'static str) -> &mut Right {
        self.rights.push(Right { role: self.role, act, grant, purpose, optional: false, trial: Trial { act, subject, bait } });
        let last = self.rights.len() - 1;
        &mut self.rights[last]
    }

    fn store(&mut self, grant: String, subject: String, purpose: &'static str) -> &mut Right {
        self.add(Act::Publish, grant, subject, Bait::Misdirected, purpose)
    }

    /// A request to JetStream: `grant` may end in a wildcard that `subject` fills.
    fn api(&mut self, grant: &str, subject: &str, bait: Bait, purpose: &'static str) -> &mut Right {
        self.add(Act::Publish, format!("$JS.API.{grant}"), format!("$JS.API.{subject}"), bait, purpose)
    }

    fn api_of(&mut self, call: &str, streams: &[String], bait: Bait, purpose: &'static str) {
        for stream in streams {
            let subject = format!("{call}.{stream}");
            self.api(&subject, &subject, bait, purpose);
        }
    }

    fn subscribe(&mut self, subject: String, purpose: &'static str) -> &mut Right {
        self.add(Act::Subscribe, subject.clone(), subject, Bait::Nothing, purpose)
    }

    /// What both roles do: every request has an answer, and streams are compared with the contract.
    fn common(&mut self, config: &Config) {
        let inbox = format!("_INBOX.{NOBODY}.*");
        self.add(Act::Subscribe, "_INBOX.>".to_owned(), inbox, Bait::Nothing, "answers to requests");
        let s = self.subjects;
        let streams = [s.tasks_stream(), s.events_stream(), s.logs_stream(), s.control_stream(), s.dead_stream(), s.workers_stream()];
        self.api_of("STREAM.INFO", &streams, Bait::Nothing, "compare streams with the contract");
        let tasks = s.tasks_stream();
        for consumer in consumers(config) {
            let purpose = "compare consumers with the contract";
            self.api(&format!("CONSUMER.INFO.{tasks}.*"), &format!("CONSUMER.INFO.{tasks}.{consumer}"), Bait::Nothing, purpose);
        }
        self.api("INFO", "INFO", Bait::Nothing, "`windlass doctor` reads the account's limits").optional = true;
    }

    fn worker(&mut self, config: &Config) {
        let (s, p) = (self.subjects, self.subjects.prefix());
        let tasks = s.tasks_stream();
        for consumer in consumers(config) {
            let (grant, subject) = (format!("CONSUMER.MSG.NEXT.{tasks}.*"), format!("CONSUMER.MSG.NEXT.{tasks}.{consumer}"));
            self.api(&grant, &subject, Bait::Nonsense, "take tasks");
            // Of a message that no stream comes to: of none (0) it would not be answered.
            let (grant, subject) = (format!("$JS.ACK.{tasks}.>"), format!("$JS.ACK.{tasks}.{consumer}.1.999999999999999.0.0.0"));
            self.add(Act::Publish, grant, subject, Bait::Nonsense, "renew leases and acknowledge");
            let subject = format!("CONSUMER.CREATE.{tasks}.{consumer}");
            let create = self.api(&format!("CONSUMER.CREATE.{tasks}.>"), &subject, Bait::Nonsense, "make a consumer anew that was removed");
            create.optional = true;
        }
        let started = format!("{p}.events.{NOBODY}.{NOBODY}.{}", EventKind::TaskStarted);
        self.store(s.events_filter(None, None), started, "events of tasks");
        self.store(format!("{p}.logs.*.*.*.*"), format!("{p}.logs.{NOBODY}.{NOBODY}.0.stdout"), "output of tasks");
        self.store(s.dead_filter(None, None), s.dead(NOBODY, NOBODY), "dead letters");
        self.store(s.worker_key("*"), s.worker_key(NOBODY), "presence, and the lock of the sweeper");
        let read = [s.events_stream(), s.tasks_stream(), s.control_stream()];
        self.api_of("STREAM.MSG.GET", &read, Bait::Nonsense, "read chains, queue and cancel requests");
        self.subscribe(s.all_control(), "hear cancel requests");
        let (grant, asked) = (format!("{p}.control-workers.*"), format!("{p}.control-workers.{NOBODY}"));
        self.add(Act::Subscribe, grant, asked, Bait::Nothing, "hear `windlass drain`").optional = true;
        if config.sweeper.interval_s > 0.0 {
            self.submit(config, "queue again what a crash left without a message");
            self.api_of("STREAM.MSG.DELETE", &[tasks], Bait::Nonsense, "remove queued messages of tasks that are over");
        }
        for bucket in buckets(config) {
            let subject = format!("STREAM.MSG.GET.KV_{bucket}");
            self.api(&subject, &subject, Bait::Nonsense, "read secrets of tenants");
        }
    }

    fn operator(&mut self, config: &Config) {
        let (s, p) = (self.subjects, self.subjects.prefix());
        self.submit(config, "submit, run, dead requeue");
        self.store(s.all_control(), format!("{p}.control.{NOBODY}.{NOBODY}"), "cancel");
        let (grant, asked) = (format!("{p}.control-workers.*"), format!("{p}.control-workers.{NOBODY}"));
        self.add(Act::Publish, grant, asked, Bait::Nothing, "drain");
        let streams = [s.tasks_stream(), s.events_stream(), s.logs_stream(), s.control_stream(), s.dead_stream(), s.workers_stream()];
        for call in ["STREAM.CREATE", "STREAM.UPDATE"] {
            self.api_of(call, &streams, Bait::Nonsense, "init");
        }
        let tasks = s.tasks_stream();
        for consumer in consumers(config) {
            let subject = format!("CONSUMER.CREATE.{tasks}.{consumer}");
            self.api(&format!("CONSUMER.CREATE.{tasks}.>"), &subject, Bait::Nonsense, "init");
        }
        let read = [s.events_stream(), s.tasks_stream(), s.logs_stream(), s.dead_stream(), s.workers_stream()];
        self.api_of("STREAM.MSG.GET", &read, Bait::Nonsense, "status, logs, events, dead, workers");
        let lists = [s.events_stream(), s.tasks_stream(), s.workers_stream()];
        self.api_of("DIRECT.GET", &lists, Bait::Nonsense, "list, events, workers: many messages at one request");
        let events = s.events_stream();
        let (grant, subject) = (format!("CONSUMER.CREATE.{events}.>"), format!("CONSUMER.CREATE.{events}.{NOBODY}"));
        self.api(&grant, &subject, Bait::Nonsense, TOP).optional = true;
        let subject = format!("CONSUMER.LIST.{tasks}");
        self.api(&subject, &subject, Bait::Nothing, TOP).optional = true;
        self.add(Act::Publish, "$JS.FC.>".to_owned(), format!("$JS.FC.{NOBODY}"), Bait::Nothing, TOP).optional = true;
        self.subscribe(s.events_filter(None, None), "follow events");
        self.subscribe(format!("{p}.logs.*.*.*.*"), "follow output");
    }

    fn submit(&mut self, config: &Config, purpose: &'static str) {
        let p = self.subjects.prefix();
        for class in config.classes.keys() {
            for priority in Priority::ALL {
                let subject = format!("{p}.tasks.{class}.{priority}.{NOBODY}.{NOBODY}");
                self.store(self.subjects.all_tasks(), subject, purpose);
            }
        }
    }
}

fn consumers(config: &Config) -> Vec<String> {
    let of = |class| Priority::ALL.into_iter().map(move |priority| Subjects::consumer(class, priority));
    config.offered_classes().flat_map(|(class, _)| of(class)).collect()
}

/// Buckets that tenants may have secrets in.
fn buckets(config: &Config) -> Vec<String> {
    let grants = config.tenants.values().flat_map(|tenant| &tenant.secrets).map(|grant| String::from(grant.clone()));
    let mut buckets: Vec<String> = grants.filter_map(|grant| Some(grant.strip_prefix("kv:")?.split_once('/')?.0.to_owned())).collect();
    buckets.sort();
    buckets.dedup();
    buckets
}

/// Everything that the roles need.
#[must_use]
pub fn rights(subjects: &Subjects, config: &Config) -> Vec<Right> {
    let mut all = Vec::new();
    for role in [Role::Worker, Role::Operator] {
        let mut list = List { role, subjects, rights: Vec::new() };
        list.common(config);
        match role {
            Role::Worker => list.worker(config),
            Role::Operator => list.operator(config),
        }
        all.extend(list.rights);
    }
    all
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config;
    use crate::task::Tenant;

    /// A user of `role` for a server's configuration, as `docs/operating.md` has it.
    fn user(role: Role, name: &str) -> String {
        let config = config::load(None, []).unwrap();
        let all = rights(&Subjects::new(&config.bus.prefix), &config);
        let list = |act: Act| {
            let of = all.iter().filter(|right| right.role == role && right.act == act);
            let subjects: BTreeSet<String> = of.map(|right| format!("\"{}\"", right.grant)).collect();
            let mut lines = vec![String::new()];
            for subject in subjects {
                match lines.last_mut() {
                    Some(line) if !line.is_empty() && line.len() + subject.len() < 110 => line.push_str(&format!(", {subject}")),
                    Some(line) if line.is_empty() => *line = subject,
                    _ => lines.push(subject),
                }
            }
            format!("{}: {{ allow: [\n    {} ] }}", act.as_str(), lines.join(",\n    "))
        };
        // It answers those who ask it to drain; a right to publish to all inboxes would be a right to answer for anybody.
        let responses = if role == Role::Worker { ",\n  allow_responses: true" } else { "" };
        let password = format!("${}_PASSWORD", name.to_uppercase());
        format!(
            "{{ user: {name}, password: \"{password}\", permissions: {{\n  {},\n  {}{responses} }} }}\n",
            list(Act::Publish),
            list(Act::Subscribe)
        )
    }

    #[test]
    fn the_guide_has_the_users_that_are_tried() {
        let guide = include_str!("../../docs/operating.md");
        for (role, name) in [(Role::Worker, "worker"), (Role::Operator, "operator")] {
            let user = user(role, name);
            assert!(guide.contains(&user), "docs/operating.md is to have:\n{user}");
        }
    }

    #[test]
    fn every_trial_is_below_what_is_to_be_granted() {
        let mut config = config::load(None, []).unwrap();
        let policy =
            crate::config::TenantPolicy { secrets: vec!["kv:secrets/acme.*".to_owned().try_into().unwrap()], ..Default::default() };
        config.tenants.insert(Tenant::new("acme").unwrap(), policy);
        let all = rights(&Subjects::new(&config.bus.prefix), &config);
        for right in &all {
            let (mut grant, mut trial) = (right.grant.split('.'), right.trial.subject.split('.'));
            loop {
                match (grant.next(), trial.next()) {
                    (None, None) => break,
                    (Some(">"), Some(_)) => break,
                    (Some("*"), Some(_)) => {}
                    (Some(a), Some(b)) if a == b => {}
                    other => panic!("{} is not below {}: {other:?}", right.trial.subject, right.grant),
                }
            }
        }
        assert!(all.iter().any(|right| right.grant == "$JS.API.STREAM.MSG.GET.KV_secrets"));
    }
}
