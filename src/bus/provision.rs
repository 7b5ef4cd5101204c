//! Streams and consumers as the contract wants them: planned, applied, and checked before a worker starts.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::stream::{Compression, Config as StreamConfig, DiscardPolicy, RetentionPolicy, StorageType};
use async_nats::jetstream::{self};

use super::chain::read_error;
use super::{Bus, BusError, Subjects};
use crate::config::Config;
use crate::task::{ClassName, Priority};

/// What is to be done to one stream or consumer.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Change {
    /// `stream WINDLASS_TASKS`, `consumer cpu_short-high`.
    pub what: String,
    /// Create, update, nothing, or what stands in the way.
    pub action: Action,
    /// The keys that differ: `key: is → should be`.
    pub differences: Vec<String>,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It is not there.
    Create,
    /// It differs in keys that can be changed.
    Update,
    /// It is as it should be.
    Keep,
    /// It differs in a key that the server does not change; an operator must decide.
    Conflict,
}

fn hours(h: f64) -> Duration {
    Duration::from_secs_f64(h * 3600.0)
}

/// The streams of the contract.
fn streams(subjects: &Subjects, config: &Config) -> Vec<StreamConfig> {
    let s = &config.streams;
    let base = |name: String, subject: String, max_age_h: f64| StreamConfig {
        name,
        subjects: vec![subject],
        storage: StorageType::File,
        retention: RetentionPolicy::Limits,
        num_replicas: s.replicas as usize,
        max_age: hours(max_age_h),
        // As the server echoes "no limit".
        max_messages_per_subject: -1,
        duplicate_window: Duration::from_secs(600).min(hours(max_age_h)),
        ..StreamConfig::default()
    };
    let prefix = subjects.prefix();
    vec![
        StreamConfig {
            retention: RetentionPolicy::WorkQueue,
            discard: DiscardPolicy::New,
            max_messages_per_subject: 1,
            discard_new_per_subject: true,
            allow_direct: true,
            description: Some("windlass: assignments".to_owned()),
            ..base(subjects.tasks_stream(), subjects.all_tasks(), s.tasks_max_age_h)
        },
        StreamConfig {
            deny_delete: true,
            deny_purge: true,
            allow_direct: true,
            description: Some("windlass: one chain of events per task".to_owned()),
            ..base(subjects.events_stream(), subjects.events_filter(None, None), s.events_max_age_h)
        },
        StreamConfig {
            compression: Some(Compression::S2),
            max_bytes: i64::try_from(s.logs_max.bytes()).unwrap_or(i64::MAX),
            description: Some("windlass: output of tasks".to_owned()),
            ..base(subjects.logs_stream(), format!("{prefix}.logs.*.*.*.*"), s.logs_max_age_h)
        },
        StreamConfig {
            max_messages_per_subject: 1,
            description: Some("windlass: cancel requests".to_owned()),
            ..base(subjects.control_stream(), subjects.all_control(), s.control_max_age_h)
        },
        StreamConfig {
            description: Some("windlass: dead letters".to_owned()),
            ..base(subjects.dead_stream(), subjects.dead_filter(None, None), s.dead_max_age_h)
        },
        presence(base(subjects.workers_stream(), subjects.worker_key(">"), 1.0)),
    ]
}

/// A key-value bucket whose entries go away by themselves.
fn presence(base: StreamConfig) -> StreamConfig {
    StreamConfig {
        max_messages_per_subject: 1,
        discard: DiscardPolicy::New,
        allow_rollup: true,
        allow_direct: true,
        deny_delete: true,
        max_age: Duration::from_secs(20),
        duplicate_window: Duration::from_secs(20),
        description: Some("windlass: presence of workers".to_owned()),
        ..base
    }
}

fn consumers(subjects: &Subjects, config: &Config) -> Vec<(String, pull::Config)> {
    let one = |class: &ClassName, priority: Priority| {
        let name = Subjects::consumer(class, priority);
        let consumer = pull::Config {
            durable_name: Some(name.clone()),
            filter_subject: subjects.queue_filter(class, priority),
            ack_policy: AckPolicy::Explicit,
            ack_wait: Duration::from_secs_f64(config.lease.ack_wait_s),
            max_deliver: -1,
            max_ack_pending: config.streams.max_ack_pending,
            max_waiting: config.streams.max_waiting,
            num_replicas: config.streams.replicas as usize,
            ..pull::Config::default()
        };
        (name, consumer)
    };
    // A class that no worker of this version serves has no queue that anybody reads.
    config.offered_classes().flat_map(|(class, _)| Priority::ALL.into_iter().map(move |priority| one(class, priority))).collect()
}

/// Streams and consumers of a configuration as JetStream's API takes them.
#[derive(Debug)]
pub(crate) struct Described {
    /// In the order of the contract.
    pub(crate) streams: Vec<serde_json::Value>,
    /// Of every class and priority.
    pub(crate) consumers: Vec<serde_json::Value>,
}

/// What `windlass init` asks for, for the documents of the contract.
pub(crate) fn described(subjects: &Subjects, config: &Config) -> Described {
    // A value that cannot be written is null, and the documents' tests find it.
    let streams = streams(subjects, config).iter().map(|s| serde_json::to_value(s).unwrap_or_default()).collect();
    let consumers = consumers(subjects, config).iter().map(|(_, c)| serde_json::to_value(c).unwrap_or_default()).collect();
    Described { streams, consumers }
}

/// A key that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Its name in NATS's configuration of streams and consumers.
    pub key: &'static str,
    /// What it is.
    pub is: String,
    /// What it should be.
    pub should: String,
    /// The server lets it be changed.
    pub changeable: bool,
}

impl Difference {
    /// True when a worker does not start with it.
    #[must_use]
    pub fn breaks_a_promise(&self) -> bool {
        PROMISES.contains(&self.key)
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} → {}", self.key, self.is, self.should)
    }
}

/// A stream or consumer, compared with the contract.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drift {
    /// `stream WINDLASS_TASKS`, `consumer cpu_short-high`.
    pub what: String,
    /// What differs; none when it is not there at all.
    pub differences: Option<Vec<Difference>>,
}

/// The differences in the named keys, each with whether the server lets it be changed.
macro_rules! compare {
    ($is:ident, $should:ident, $($key:ident: $changeable:literal),* $(,)?) => {{
        let mut differences: Vec<Difference> = Vec::new();
        $(if $is.$key != $should.$key {
            let (is, should) = (format!("{:?}", $is.$key), format!("{:?}", $should.$key));
            differences.push(Difference { key: stringify!($key), is, should, changeable: $changeable });
        })*
        differences
    }};
}

fn stream_differences(is: &StreamConfig, should: &StreamConfig) -> Vec<Difference> {
    let mut differences = compare!(is, should, subjects: true, retention: false, storage: false, discard: true, max_messages_per_subject: true, discard_new_per_subject: true,
        max_age: true, num_replicas: true, deny_delete: false, deny_purge: false, allow_rollup: true, duplicate_window: true);
    // What an operator allows beyond that is no mistake.
    if should.allow_direct && !is.allow_direct {
        differences.push(Difference { key: "allow_direct", is: "false".to_owned(), should: "true".to_owned(), changeable: true });
    }
    if should.max_bytes > 0 && is.max_bytes != should.max_bytes {
        let (is, should) = (is.max_bytes.to_string(), should.max_bytes.to_string());
        differences.push(Difference { key: "max_bytes", is, should, changeable: true });
    }
    if should.compression.is_some() && is.compression != should.compression {
        let (is, should) = (format!("{:?}", is.compression), format!("{:?}", should.compression));
        differences.push(Difference { key: "compression", is, should, changeable: true });
    }
    differences
}

fn consumer_differences(is: &pull::Config, should: &pull::Config) -> Vec<Difference> {
    compare!(is, should, filter_subject: true, ack_policy: false, ack_wait: true, max_deliver: true, max_ack_pending: true, max_waiting: false, backoff: true)
}

/// Keys that a worker does not start without: they carry the promises. The others are sizes and ages, an operator's choice.
const PROMISES: [&str; 12] = [
    "subjects",
    "retention",
    "discard",
    "max_messages_per_subject",
    "discard_new_per_subject",
    "deny_delete",
    "deny_purge",
    "filter_subject",
    "ack_policy",
    "ack_wait",
    "max_deliver",
    "backoff",
];

/// Why a worker does not start against these streams.
#[derive(Debug, thiserror::Error)]
pub enum UnfitStreams {
    /// They are missing or break promises.
    #[error("the streams do not keep the contract; run `windlass init`:\n{}", .0.iter().map(|l| format!("  {l}")).collect::<Vec<_>>().join("\n"))]
    Broken(Vec<String>),
    /// They could not be looked at.
    #[error(transparent)]
    Bus(#[from] BusError),
}

/// Compares every stream and consumer with the contract.
///
/// # Errors
/// When the server does not answer.
pub async fn drift(bus: &Bus, config: &Config) -> Result<Vec<Drift>, BusError> {
    let mut found = Vec::new();
    for should in streams(bus.subjects(), config) {
        let is = stream_config(bus, &should.name).await?;
        let differences = is.as_ref().map(|is| stream_differences(is, &should));
        found.push(Drift { what: format!("stream {}", should.name), differences });
    }
    for (name, should) in consumers(bus.subjects(), config) {
        let is = consumer_config(bus, &name).await?;
        let differences = is.as_ref().map(|is| consumer_differences(is, &should));
        found.push(Drift { what: format!("consumer {name}"), differences });
    }
    Ok(found)
}

/// What `windlass init` would do.
///
/// # Errors
/// When the server does not answer.
pub async fn plan(bus: &Bus, config: &Config) -> Result<Vec<Change>, BusError> {
    Ok(drift(bus, config).await?.into_iter().map(change).collect())
}

fn change(drift: Drift) -> Change {
    let Drift { what, differences } = drift;
    let Some(differences) = differences else { return Change { what, action: Action::Create, differences: vec![] } };
    let action = match differences.as_slice() {
        [] => Action::Keep,
        all if all.iter().all(|d| d.changeable) => Action::Update,
        _ => Action::Conflict,
    };
    Change { what, action, differences: differences.iter().map(ToString::to_string).collect() }
}

/// Creates what is missing and updates what differs; destroys nothing. A conflict is left as it is.
///
/// # Errors
/// When the server refuses or does not answer; what was done before stays.
pub async fn apply(bus: &Bus, config: &Config) -> Result<Vec<Change>, BusError> {
    let changes = plan(bus, config).await?;
    let todo = |what: &str| changes.iter().any(|c| c.what == what && matches!(c.action, Action::Create | Action::Update));
    for stream in streams(bus.subjects(), config) {
        let what = format!("stream {}", stream.name);
        if todo(&what) {
            bus.inner.js.create_or_update_stream(stream).await.map(|_| ()).map_err(|e| stream_refused(&e, what))?;
        }
    }
    for (name, consumer) in consumers(bus.subjects(), config) {
        let what = format!("consumer {name}");
        if todo(&what) {
            let stream = bus.subjects().tasks_stream();
            bus.inner.js.create_consumer_on_stream(consumer, stream).await.map(|_| ()).map_err(|e| refused(&e, what))?;
        }
    }
    Ok(changes)
}

/// What was found where a consumer did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restored {
    /// It is there.
    Present,
    /// It was gone, and is there again; the messages of its queue are handed out anew.
    Made,
}

/// Makes a class's consumer anew when somebody removed it: nothing is kept in it that cannot be had again.
///
/// # Errors
/// When the stream is gone too: what is lost with it, only an operator can decide. Or when the server refuses.
pub async fn restore_consumer(bus: &Bus, config: &Config, class: &ClassName, priority: Priority) -> Result<Restored, BusError> {
    let name = Subjects::consumer(class, priority);
    if consumer_config(bus, &name).await?.is_some() {
        return Ok(Restored::Present);
    }
    let stream = bus.subjects().tasks_stream();
    if stream_config(bus, &stream).await?.is_none() {
        let what = format!("stream {stream}");
        return Err(BusError::Refused { what, code: 10059, text: "stream not found".to_owned() });
    }
    let Some((_, consumer)) = consumers(bus.subjects(), config).into_iter().find(|(n, _)| *n == name) else { return Ok(Restored::Present) };
    let what = format!("consumer {name}");
    bus.inner.js.create_consumer_on_stream(consumer, stream).await.map(|_| Restored::Made).map_err(|e| refused(&e, what))
}

/// Checks that streams and consumers keep the contract.
///
/// # Errors
/// Names every key that breaks a promise.
pub async fn check(bus: &Bus, config: &Config) -> Result<(), UnfitStreams> {
    let (broken, other) = sorted(drift(bus, config).await?);
    for (what, difference) in other {
        tracing::warn!(what, %difference, "differs from the configuration");
    }
    if broken.is_empty() { Ok(()) } else { Err(UnfitStreams::Broken(broken)) }
}

/// What [`check`] would refuse to start against, if anything: for a worker that runs.
///
/// # Errors
/// When the server does not answer.
pub async fn broken(bus: &Bus, config: &Config) -> Result<Vec<String>, BusError> {
    Ok(sorted(drift(bus, config).await?).0)
}

/// What breaks a promise, and what differs otherwise.
fn sorted(drift: Vec<Drift>) -> (Vec<String>, Vec<(String, Difference)>) {
    let (mut broken, mut other) = (Vec::new(), Vec::new());
    for Drift { what, differences } in drift {
        let Some(differences) = differences else {
            broken.push(format!("{what}: does not exist"));
            continue;
        };
        for difference in differences {
            if difference.breaks_a_promise() {
                broken.push(format!("{what}: {difference}"));
            } else {
                other.push((what.clone(), difference));
            }
        }
    }
    (broken, other)
}

/// With JetStream's own code, which says what can be done about it.
fn stream_refused(error: &jetstream::context::CreateStreamError, what: String) -> BusError {
    if let jetstream::context::CreateStreamErrorKind::JetStream(error) = error.kind() {
        return BusError::Refused { what, code: error.error_code().0, text: error.to_string() };
    }
    refused(error, what)
}

fn refused(error: &(dyn std::error::Error + 'static), what: String) -> BusError {
    let read = read_error(error, what.clone());
    if matches!(read, BusError::TimedOut { .. }) { BusError::Refused { what, code: 0, text: error.to_string() } } else { read }
}

async fn stream_config(bus: &Bus, name: &str) -> Result<Option<StreamConfig>, BusError> {
    match bus.inner.js.get_stream(name).await {
        Ok(stream) => Ok(Some(stream.cached_info().config.clone())),
        Err(error) => match error.kind() {
            jetstream::context::GetStreamErrorKind::JetStream(e) if e.error_code() == jetstream::ErrorCode::STREAM_NOT_FOUND => Ok(None),
            jetstream::context::GetStreamErrorKind::JetStream(e) => {
                Err(BusError::Refused { what: format!("stream {name}"), code: e.error_code().0, text: e.to_string() })
            }
            jetstream::context::GetStreamErrorKind::EmptyName
            | jetstream::context::GetStreamErrorKind::InvalidStreamName
            | jetstream::context::GetStreamErrorKind::Request => Err(read_error(&error, format!("stream {name}"))),
        },
    }
}

async fn consumer_config(bus: &Bus, name: &str) -> Result<Option<pull::Config>, BusError> {
    let Some(info) = bus.consumer_info(name).await? else { return Ok(None) };
    let config = info.get("config").cloned().unwrap_or_default();
    serde_json::from_value(config).map(Some).map_err(|e| BusError::Unreadable { what: format!("consumer {name}"), text: e.to_string() })
}
