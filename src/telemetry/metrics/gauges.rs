//! What is read when somebody asks, and not counted as it happens.

use std::sync::Arc;

use opentelemetry::KeyValue;
use opentelemetry::metrics::Meter;

use super::process::Process;
use crate::execute::gpu::Reading;

/// Where the gauges of a worker read from, at each scrape.
pub trait Gauges: Send + Sync + 'static {
    /// Tasks that may run at one time.
    fn slots(&self) -> u64;
    /// Output on the disk that is not yet stored by the server, bytes.
    fn spool_bytes(&self) -> u64;
    /// All states that a worker can be in, and whether it is.
    fn states(&self) -> Vec<(&'static str, bool)>;
    /// The conditions of readiness, and whether they hold.
    fn conditions(&self) -> Vec<(&'static str, bool)>;
    /// GPUs that tasks can get, and those that this worker's tasks have.
    fn gpus(&self) -> (u64, u64);
    /// What each GPU is doing.
    fn gpu_readings(&self) -> Vec<Reading>;
    /// Process id of the supervisor.
    fn supervisor(&self) -> Option<u32>;
}

pub(super) fn register(meter: &Meter, gauges: impl Gauges) {
    let gauges: Arc<dyn Gauges> = Arc::new(gauges);
    let number = |name: &'static str, unit: &'static str, help: &'static str, read: fn(&dyn Gauges) -> u64| {
        let gauges = Arc::clone(&gauges);
        let gauge = meter.u64_observable_gauge(name).with_unit(unit).with_description(help);
        gauge.with_callback(move |to| to.observe(read(&*gauges), &[])).build();
    };
    number("windlass.slots", "", "Tasks that may run here at one time.", |gauges| gauges.slots());
    number("windlass.spool", "By", "Output of tasks that is on this worker's disk and not yet stored by the server.", |g| g.spool_bytes());
    number("windlass.gpus", "", "GPUs that tasks of this worker can get.", |gauges| gauges.gpus().0);
    number("windlass.gpus.in_use", "", "Of these, those that tasks of this worker have.", |gauges| gauges.gpus().1);
    devices(meter, &gauges);
    let flags = |name: &'static str, label: &'static str, help: &'static str, read: fn(&dyn Gauges) -> Vec<(&'static str, bool)>| {
        let gauges = Arc::clone(&gauges);
        let gauge = meter.u64_observable_gauge(name).with_description(help);
        let observe = move |to: &dyn opentelemetry::metrics::AsyncInstrument<u64>| {
            for (word, holds) in read(&*gauges) {
                to.observe(u64::from(holds), &[KeyValue::new(label, word)]);
            }
        };
        gauge.with_callback(observe).build();
    };
    flags("windlass.worker.state", "state", "1 for the state that the worker is in.", |gauges| gauges.states());
    flags("windlass.worker.condition", "condition", "1 for each condition of readiness that holds.", |gauges| gauges.conditions());
    build_info(meter);
    processes(meter, &gauges);
}

/// Devices that NVML tells of. They are few, and stay what they are: the only ids in a label.
fn devices(meter: &Meter, gauges: &Arc<dyn Gauges>) {
    let device = |reading: &Reading| [KeyValue::new("device", reading.id.clone())];
    let of_time = Arc::clone(gauges);
    let gauge =
        meter.f64_observable_gauge("windlass.gpu.utilization").with_description("Share of the time in which a GPU computed, 0 to 1.");
    let time = move |to: &dyn opentelemetry::metrics::AsyncInstrument<f64>| {
        for reading in of_time.gpu_readings() {
            say(reading.utilization, |share| to.observe(share, &device(&reading)));
        }
    };
    gauge.with_callback(time).build();
    let of_memory = Arc::clone(gauges);
    let gauge = meter.u64_observable_gauge("windlass.gpu.memory_used").with_unit("By").with_description("Memory of a GPU that is in use.");
    let memory = move |to: &dyn opentelemetry::metrics::AsyncInstrument<u64>| {
        for reading in of_memory.gpu_readings() {
            say(reading.memory_used, |bytes| to.observe(bytes, &device(&reading)));
        }
    };
    gauge.with_callback(memory).build();
}

fn build_info(meter: &Meter) {
    let version = KeyValue::new("version", env!("CARGO_PKG_VERSION"));
    let gauge = meter.u64_observable_gauge("windlass.build_info").with_description("1; the label tells the version.");
    gauge.with_callback(move |to| to.observe(1, std::slice::from_ref(&version))).build();
}

/// Under the names that every Prometheus client gives them for the worker, likewise for its supervisor.
fn processes(meter: &Meter, gauges: &Arc<dyn Gauges>) {
    type Which = Arc<dyn Fn() -> Option<Process> + Send + Sync>;
    let of_supervisor = Arc::clone(gauges);
    let which: [(&str, &str, Which); 2] = [
        ("process", "the worker", Arc::new(|| Some(Process::this()))),
        ("windlass.supervisor", "its supervisor", Arc::new(move || of_supervisor.supervisor().map(Process::of))),
    ];
    for (prefix, of, process) in which {
        let bytes = Arc::clone(&process);
        meter
            .u64_observable_gauge(format!("{prefix}.resident_memory"))
            .with_unit("By")
            .with_description(format!("Resident memory of {of}."))
            .with_callback(move |to| say(bytes().and_then(|p| p.resident_bytes()), |n| to.observe(n, &[])))
            .build();
        let time = Arc::clone(&process);
        meter
            .f64_observable_counter(format!("{prefix}.cpu"))
            .with_unit("s")
            .with_description(format!("CPU time of {of}."))
            .with_callback(move |to| say(time().and_then(|p| p.cpu_seconds()), |n| to.observe(n, &[])))
            .build();
        let start = Arc::clone(&process);
        meter
            .f64_observable_gauge(format!("{prefix}.start_time"))
            .with_unit("s")
            .with_description(format!("Start of {of}, in seconds since 1970."))
            .with_callback(move |to| say(start().and_then(|p| p.start_time()), |n| to.observe(n, &[])))
            .build();
        meter
            .u64_observable_gauge(format!("{prefix}.open_fds"))
            .with_description(format!("Open file descriptors of {of}."))
            .with_callback(move |to| say(process().and_then(|p| p.open_descriptors()), |n| to.observe(n, &[])))
            .build();
    }
}

/// What cannot be read is left out rather than told as 0.
fn say<T>(read: Option<T>, observe: impl FnOnce(T)) {
    if let Some(value) = read {
        observe(value);
    }
}
