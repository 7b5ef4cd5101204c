//! Metrics of a worker: what is counted and timed, under which names, and the text that Prometheus reads.
//!
//! Names and meanings are in `docs/metrics.md`; a test compares them with what a worker really says. No label ever holds an
//! id: labels are the class, the outcome, the reason, a few words of our own, and the tenants that `http.metrics_tenants`
//! names. A task can reach the address where all this is read, so there is nothing secret in it either.

use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::MeterProvider as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::{Registry, TextEncoder};

mod gauges;
mod instruments;
mod process;

pub use gauges::Gauges;

use crate::supervisor::protocol::ExitReport;
use crate::task::{ClassName, Outcome, Reason, Tenant};
use instruments::Instruments;

/// `Content-Type` of [`Meters::render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

static METERS: OnceLock<Meters> = OnceLock::new();

/// Tells the meters of this process what happened, if it has any.
pub fn note(what: impl FnOnce(&Meters)) {
    if let Some(meters) = METERS.get() {
        what(meters);
    }
}

/// Why there are no metrics.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up metrics: {0}")]
pub struct MetricsError(String);

/// What is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Publication {
    /// An event of a chain.
    Event,
    /// A chunk of output.
    Chunk,
    /// A dead letter.
    DeadLetter,
}

impl Publication {
    const ALL: [Self; 3] = [Self::Event, Self::Chunk, Self::DeadLetter];

    fn label(self) -> KeyValue {
        KeyValue::new(
            "kind",
            match self {
                Self::Event => "event",
                Self::Chunk => "chunk",
                Self::DeadLetter => "dead_letter",
            },
        )
    }
}

/// How an attempt was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// Its chain is another attempt's.
    Fenced,
    /// Its lease could not be renewed in time.
    LeaseExpired,
    /// Its end can never be stored.
    Unstored,
}

impl Lost {
    const ALL: [Self; 3] = [Self::Fenced, Self::LeaseExpired, Self::Unstored];

    fn label(self) -> KeyValue {
        KeyValue::new(
            "cause",
            match self {
                Self::Fenced => "fenced",
                Self::LeaseExpired => "lease_expired",
                Self::Unstored => "unstored",
            },
        )
    }
}

/// Everything that a worker counts.
#[derive(Debug)]
pub struct Meters {
    on: Instruments,
    /// Tenants that have a label of their own; none has one when there are none.
    tenants: BTreeSet<Tenant>,
    /// `worker.environment`.
    environment: KeyValue,
    registry: Registry,
    /// Instruments count only while it lives.
    _provider: SdkMeterProvider,
}

impl Meters {
    /// Meters of a worker for these classes, whose gauges read from `gauges`.
    ///
    /// # Errors
    /// When the library refuses them.
    pub fn new<'a>(
        classes: impl IntoIterator<Item = &'a ClassName>,
        tenants: &[Tenant],
        environment: &str,
        gauges: impl Gauges,
    ) -> Result<Self, MetricsError> {
        let registry = Registry::new();
        let exporter = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .without_target_info()
            .scope_info_enabled(false)
            .build()
            .map_err(|e| MetricsError(e.to_string()))?;
        let provider = SdkMeterProvider::builder().with_reader(exporter).with_resource(Resource::builder_empty().build()).build();
        let meter = provider.meter("windlass");
        gauges::register(&meter, gauges);
        let environment = KeyValue::new("environment", environment.to_owned());
        let tenants = tenants.iter().cloned().collect();
        let meters = Self { on: Instruments::new(&meter), tenants, environment, registry, _provider: provider };
        meters.begin(classes);
        Ok(meters)
    }

    /// Makes these the meters of this process; the first ones stay.
    pub fn install(self) -> &'static Self {
        METERS.get_or_init(|| self)
    }

    /// Counters that begin at nothing, so that the first thing that is counted is seen as a change.
    fn begin<'a>(&self, classes: impl IntoIterator<Item = &'a ClassName>) {
        let on = &self.on;
        for class in classes {
            let class = KeyValue::new("class", class.to_string());
            for counter in [&on.deliveries, &on.redeliveries, &on.released, &on.oom_kills, &on.dropped] {
                counter.add(0, std::slice::from_ref(&class));
            }
            for lost in Lost::ALL {
                on.lost.add(0, &[class.clone(), lost.label()]);
            }
            on.running.add(0, std::slice::from_ref(&class));
            on.cpu.add(0.0, std::slice::from_ref(&class));
        }
        for kind in Publication::ALL {
            on.publish_retries.add(0, &[kind.label()]);
            on.publish_failures.add(0, &[kind.label()]);
        }
        for renewed in [true, false] {
            on.renewals.add(0, &[result(renewed)]);
        }
        for counter in [&on.reconnects, &on.chunks, &on.published] {
            counter.add(0, &[]);
        }
        for counter in [&on.service_starts, &on.service_stops] {
            counter.add(0, std::slice::from_ref(&self.environment));
        }
        on.active_services.add(0, std::slice::from_ref(&self.environment));
    }

    /// The text that Prometheus reads. It looks at files: not for the runtime's threads.
    ///
    /// # Errors
    /// When the library refuses to write it.
    pub fn render(&self) -> Result<String, MetricsError> {
        TextEncoder::new().encode_to_string(&self.registry.gather()).map_err(|e| MetricsError(e.to_string()))
    }

    /// What tells tasks apart: their class, and their tenant where that is wanted.
    fn task(&self, class: &ClassName, tenant: &Tenant, more: impl IntoIterator<Item = KeyValue>) -> Vec<KeyValue> {
        let mut labels = vec![self.class(class)];
        labels.extend(self.tenant(tenant));
        labels.extend(more);
        labels
    }

    /// The tenant's label, where tenants have one.
    fn tenant(&self, tenant: &Tenant) -> Option<KeyValue> {
        let named = || if self.tenants.contains(tenant) { tenant.to_string() } else { "other".to_owned() };
        (!self.tenants.is_empty()).then(|| KeyValue::new("tenant", named()))
    }

    /// What tells services and requests to the engine apart: the environment, and the tenant where that is wanted and known.
    fn place(&self, tenant: Option<&Tenant>) -> Vec<KeyValue> {
        [self.environment.clone()].into_iter().chain(tenant.and_then(|tenant| self.tenant(tenant))).collect()
    }

    fn class(&self, class: &ClassName) -> KeyValue {
        KeyValue::new("class", class.to_string())
    }

    /// A message was handed out, for the `deliveries`th time.
    pub fn delivered(&self, class: &ClassName, deliveries: u64) {
        let class = [self.class(class)];
        self.on.deliveries.add(1, &class);
        if deliveries > 1 {
            self.on.redeliveries.add(1, &class);
        }
    }

    /// A delivery is being taken to its end, or no more.
    pub fn running(&self, class: &ClassName, change: i64) {
        self.on.running.add(change, &[self.class(class)]);
    }

    /// An attempt was claimed; `queued` is the time since its task was submitted, for a first one.
    pub fn started(&self, class: &ClassName, tenant: &Tenant, queued: Option<Duration>) {
        self.on.started.add(1, &self.task(class, tenant, []));
        if let Some(queued) = queued {
            self.on.queue_wait.record(queued.as_secs_f64(), &[self.class(class)]);
        }
    }

    /// Its process runs, so long after the claim.
    pub fn prepared(&self, class: &ClassName, took: Duration) {
        self.on.prepare.record(took.as_secs_f64(), &[self.class(class)]);
    }

    /// Its process tree is gone.
    #[expect(clippy::cast_precision_loss, reason = "sizes and times of tasks are far below 2^53")]
    pub fn exited(&self, class: &ClassName, report: &ExitReport) {
        let class = [self.class(class)];
        let usage = &report.usage;
        self.on.cpu.add((usage.cpu_user_us + usage.cpu_system_us) as f64 / 1e6, &class);
        self.on.memory_peak.record(usage.memory_peak_bytes as f64, &class);
        self.on.oom_kills.add(usage.oom_kills, &class);
    }

    /// An attempt whose process ran so long came to an end that can be told, with so much of its output left out.
    pub fn ran(&self, class: &ClassName, outcome: Outcome, ran: Option<Duration>, dropped: u64) {
        if let Some(ran) = ran {
            let labels = [self.class(class), KeyValue::new("outcome", outcome.as_str())];
            self.on.run.record(ran.as_secs_f64(), &labels);
        }
        self.on.dropped.add(dropped, &[self.class(class)]);
    }

    /// A task's end is stored.
    pub fn finished(&self, class: &ClassName, tenant: &Tenant, reason: Reason) {
        self.on.finished.add(1, &self.task(class, tenant, outcome(reason)));
    }

    /// It is stored that another attempt follows.
    pub fn retried(&self, class: &ClassName, tenant: &Tenant, reason: Reason) {
        self.on.retried.add(1, &self.task(class, tenant, outcome(reason)));
    }

    /// It is stored that an attempt was given back.
    pub fn released(&self, class: &ClassName) {
        self.on.released.add(1, &[self.class(class)]);
    }

    /// An attempt ended of which nothing may be said, or nothing could.
    pub fn lost(&self, class: &ClassName, cause: Lost) {
        self.on.lost.add(1, &[self.class(class), cause.label()]);
    }

    /// A dead letter is stored.
    pub fn buried(&self, class: &ClassName, reason: Reason) {
        self.on.dead_letters.add(1, &[self.class(class), KeyValue::new("reason", reason.as_str())]);
    }

    /// The server has confirmed what was published, so long after it was sent.
    pub fn confirmed(&self, what: Publication, took: Duration) {
        self.on.confirmation.record(took.as_secs_f64(), &[what.label()]);
    }

    /// Something was published once more, because it was not confirmed.
    pub fn published_again(&self, what: Publication) {
        self.on.publish_retries.add(1, &[what.label()]);
    }

    /// The server will never take it.
    pub fn refused(&self, what: Publication) {
        self.on.publish_failures.add(1, &[what.label()]);
    }

    /// A chunk with so much output is stored.
    pub fn chunk_stored(&self, bytes: usize) {
        self.on.chunks.add(1, &[]);
        self.on.published.add(bytes as u64, &[]);
    }

    /// The last acknowledgement of a message was confirmed, so long after its task had ended.
    pub fn acknowledged(&self, took: Duration) {
        self.on.ack.record(took.as_secs_f64(), &[]);
    }

    /// A lease was renewed, or not.
    pub fn renewal(&self, renewed: bool) {
        self.on.renewals.add(1, &[result(renewed)]);
    }

    /// A container of a service runs for a task of `tenant`.
    pub fn service_started(&self, tenant: &Tenant) {
        let labels = self.place(Some(tenant));
        self.on.service_starts.add(1, &labels);
        self.on.active_services.add(1, &labels);
    }

    /// Such a container is gone.
    pub fn service_stopped(&self, tenant: &Tenant) {
        let labels = self.place(Some(tenant));
        self.on.service_stops.add(1, &labels);
        self.on.active_services.add(-1, &labels);
    }

    /// The container engine was asked for something, for a task of `tenant` or for the worker itself, and has answered or not.
    pub fn engine_asked(&self, request: &'static str, tenant: Option<&Tenant>, took: Duration) {
        let mut labels = self.place(tenant);
        labels.push(KeyValue::new("request", request));
        self.on.engine_requests.record(took.as_secs_f64(), &labels);
    }

    /// A connection to NATS was made anew.
    pub fn reconnected(&self) {
        self.on.reconnects.add(1, &[]);
    }
}

fn outcome(reason: Reason) -> [KeyValue; 2] {
    [KeyValue::new("outcome", reason.outcome().as_str()), KeyValue::new("reason", reason.as_str())]
}

fn result(good: bool) -> KeyValue {
    KeyValue::new("result", if good { "confirmed" } else { "failed" })
}

#[cfg(test)]
mod tests;
