//! The instruments: names, units, meanings. The text has units and `_total` appended to the names.

use opentelemetry::metrics::{Counter, Histogram, Meter, UpDownCounter};

/// Upper bounds of a time in the queue, seconds.
const WAIT: &[f64] = &[0.01, 0.05, 0.1, 0.5, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 1800.0, 3600.0];
/// Of a task.
const RUN: &[f64] = &[0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 21_600.0];
/// Of an answer.
const ANSWER: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Of memory: 1 MiB, and four times as much each.
const MEMORY: &[f64] =
    &[1_048_576.0, 4_194_304.0, 16_777_216.0, 67_108_864.0, 268_435_456.0, 1_073_741_824.0, 4_294_967_296.0, 17_179_869_184.0];

#[derive(Debug)]
pub(super) struct Instruments {
    pub(super) deliveries: Counter<u64>,
    pub(super) redeliveries: Counter<u64>,
    pub(super) running: UpDownCounter<i64>,
    pub(super) started: Counter<u64>,
    pub(super) finished: Counter<u64>,
    pub(super) retried: Counter<u64>,
    pub(super) released: Counter<u64>,
    pub(super) lost: Counter<u64>,
    pub(super) dead_letters: Counter<u64>,
    pub(super) oom_kills: Counter<u64>,
    pub(super) cpu: Counter<f64>,
    pub(super) memory_peak: Histogram<f64>,
    pub(super) queue_wait: Histogram<f64>,
    pub(super) prepare: Histogram<f64>,
    pub(super) run: Histogram<f64>,
    pub(super) confirmation: Histogram<f64>,
    pub(super) publish_retries: Counter<u64>,
    pub(super) publish_failures: Counter<u64>,
    pub(super) ack: Histogram<f64>,
    pub(super) renewals: Counter<u64>,
    pub(super) chunks: Counter<u64>,
    pub(super) published: Counter<u64>,
    pub(super) dropped: Counter<u64>,
    pub(super) reconnects: Counter<u64>,
    pub(super) service_starts: Counter<u64>,
    pub(super) service_stops: Counter<u64>,
    pub(super) active_services: UpDownCounter<i64>,
    pub(super) engine_requests: Histogram<f64>,
}

impl Instruments {
    pub(super) fn new(meter: &Meter) -> Self {
        let count = |name: &'static str, help: &'static str| meter.u64_counter(name).with_description(help).build();
        let bytes = |name: &'static str, help: &'static str| meter.u64_counter(name).with_unit("By").with_description(help).build();
        let distribution = |name: &'static str, unit: &'static str, bounds: &[f64], help: &'static str| {
            meter.f64_histogram(name).with_unit(unit).with_boundaries(bounds.to_vec()).with_description(help).build()
        };
        Self {
            deliveries: count("windlass.deliveries", "Messages that the queue handed to this worker."),
            redeliveries: count("windlass.redeliveries", "Of these, messages that had been handed out before."),
            running: meter
                .i64_up_down_counter("windlass.tasks.running")
                .with_description("Deliveries that are being taken to their end now.")
                .build(),
            started: count("windlass.tasks.started", "Attempts that this worker claimed."),
            finished: count("windlass.tasks.finished", "Ends of tasks that this worker stored."),
            retried: count("windlass.tasks.retried", "Attempts after which this worker stored that another one follows."),
            released: count("windlass.tasks.released", "Attempts that this worker gave back because it had to stop."),
            lost: count("windlass.tasks.lost", "Attempts of which this worker may or can say nothing any more."),
            dead_letters: count("windlass.dead_letters", "Dead letters that this worker stored."),
            oom_kills: count("windlass.oom_kills", "Processes of tasks that the kernel killed at their memory limit."),
            cpu: meter.f64_counter("windlass.task.cpu").with_unit("s").with_description("CPU time that tasks used.").build(),
            memory_peak: distribution("windlass.task.memory_peak", "By", MEMORY, "Highest memory use of each attempt."),
            queue_wait: distribution("windlass.task.queue_wait", "s", WAIT, "From the publishing of a task to its first claim."),
            prepare: distribution("windlass.task.prepare", "s", ANSWER, "From a claim to the start of the task's process."),
            run: distribution("windlass.task.run", "s", RUN, "From the start of a task's process to the end of its tree."),
            confirmation: distribution(
                "windlass.publish.confirmation",
                "s",
                ANSWER,
                "From the sending of what was published to the server's confirmation that it is stored.",
            ),
            publish_retries: count("windlass.publish.retries", "Publishes that were repeated because they were not confirmed."),
            publish_failures: count("windlass.publish.failures", "Publishes that the server will never take."),
            ack: distribution(
                "windlass.ack",
                "s",
                ANSWER,
                "From the end of a task to the confirmed removal of its message from the queue.",
            ),
            renewals: count("windlass.lease.renewals", "Renewals of leases."),
            chunks: count("windlass.log.chunks", "Chunks of output that are confirmed stored."),
            published: bytes("windlass.log.published", "Output that is confirmed stored."),
            dropped: bytes("windlass.log.dropped", "Output that was left out, for logs.cap or a full disk."),
            reconnects: count("windlass.nats.reconnects", "Connections to NATS that were made anew."),
            service_starts: count("windlass.service.starts", "Containers of services that were started for tasks."),
            service_stops: count("windlass.service.stops", "Containers of services that were started for tasks, and removed."),
            active_services: meter
                .i64_up_down_counter("windlass.active_services")
                .with_description("Containers of services that run for tasks now.")
                .build(),
            engine_requests: distribution(
                "windlass.docker.api.duration",
                "s",
                ANSWER,
                "From a request to the container engine to its answer, or to the end of its time.",
            ),
        }
    }
}
