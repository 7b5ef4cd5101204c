//! A task that floods: as fast as raw publishing, and into a broker that is away.

use std::io::Write as _;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use serde_json::json;
use windlass::report::ChunkSink as _;
use windlass::task::secret::SecretGrant;
use windlass::task::{EventKind, Tenant};

use super::bed::{Bed, status_mib};
use super::report;

const BYTES: usize = 256 << 20;

pub async fn throughput(encoding: &str, secrets: usize) {
    let mut bed = Bed::new("", &[("LOGS__CAP", "2GiB"), ("EVENTS__ENCODING", encoding)]).await;
    let file = bed.given("output.txt");
    let mut writer = std::io::BufWriter::new(std::fs::File::create(&file).unwrap());
    for n in 0..BYTES / 64 {
        writeln!(writer, "{n:012} a line of output such as a program writes, of 64 bytes").unwrap();
    }
    writer.flush().unwrap();
    let secrets = plant(&mut bed, secrets);
    bed.start_worker();
    let execution = json!({"runtime": "native", "command": ["cat", file], "timeout_s": 120});
    bed.submit_with("flood", json!({"task_id": "flood", "execution": execution, "secrets": secrets})).await;
    let end = bed.wait_for("flood", EventKind::TaskCompleted).await;
    let (run, logs) = (end.run.unwrap(), end.logs.unwrap());
    let micros = end.time.as_micros() - run.started_at.unwrap().as_micros();
    #[expect(clippy::cast_precision_loss, reason = "megabytes and seconds")]
    let task = logs.stdout.bytes as f64 / micros as f64;

    // The same bytes in the same chunks, as they were stored.
    let filter = "windlass.logs.bench.flood.>";
    let mut tail = bed.bus.tail(&bed.bus.subjects().logs_stream(), filter, 1, false).await.unwrap();
    let mut bodies: Vec<Bytes> = Vec::new();
    while let Some(message) = tail.next().await.unwrap() {
        bodies.push(message.payload);
    }
    let start = Instant::now();
    let one = |(n, body): (usize, Bytes)| {
        let bus = bed.bus.clone();
        async move { bus.publish("windlass.logs.bench.raw.1.stdout".to_owned(), format!("raw.{n}"), "application/json", body).await.unwrap() }
    };
    let window = bed.config.logs.window as usize;
    stream::iter(bodies.into_iter().enumerate()).map(one).buffer_unordered(window).collect::<Vec<()>>().await;
    #[expect(clippy::cast_precision_loss, reason = "megabytes and seconds")]
    let raw = logs.stdout.bytes as f64 / start.elapsed().as_micros() as f64;
    report(
        &format!("log throughput of one task, {encoding}, {} secrets, of raw publishing", secrets.len()),
        &format!("{task:.0} of {raw:.0} MB/s = {:.0} %", task / raw * 100.0),
        ">= 60 %",
    );
}

/// So many secrets of 40 characters that the task may have and does not print.
fn plant(bed: &mut Bed, secrets: usize) -> Vec<serde_json::Value> {
    let vault = bed.path("vault");
    std::fs::create_dir(&vault).unwrap();
    let grant = SecretGrant::try_from(format!("file:{}/*", vault.display())).unwrap();
    bed.config.tenants.entry(Tenant::new("bench").unwrap()).or_default().secrets = vec![grant];
    let one = |n: usize| {
        let value = &windlass::wire::sha256_hex(format!("secret {n}").as_bytes())[..40];
        std::fs::write(vault.join(n.to_string()), value.replace('7', "/")).unwrap();
        json!({"name": format!("S{n}"), "ref": format!("file:{}/{n}", vault.display())})
    };
    (0..secrets).map(one).collect()
}

pub async fn broker_away() {
    let mut bed = Bed::new("", &[("LOGS__CAP", "3GiB"), ("LEASE__ACK_WAIT_S", "600")]).await;
    bed.start_worker();
    let go = bed.given("go");
    let done = bed.given("done");
    let script =
        format!("until [ -e {} ]; do sleep 0.05; done; head -c 1000000000 /dev/zero | tr '\\0' x; touch {}", go.display(), done.display());
    bed.submit("away", json!({"runtime": "bash", "script": script, "timeout_s": 300})).await;
    bed.wait_for("away", EventKind::TaskStarted).await;
    bed.server.kill().unwrap();
    bed.server.wait().unwrap();
    std::fs::write(go, "").unwrap();
    let worker = bed.worker_pid();
    let start = Instant::now();
    while !done.exists() && start.elapsed() < Duration::from_secs(120) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let written = start.elapsed();
    let away = status_mib(worker, "VmHWM:");
    bed.restart_server();
    let end = bed.wait_for("away", EventKind::TaskCompleted).await;
    let bytes = end.logs.map_or(0, |logs| logs.stdout.bytes);
    let peak = status_mib(worker, "VmHWM:");
    let text = format!("{away:.0} MiB away, {peak:.0} after ({written:.1?})");
    report(&format!("1 GB flood with the broker away, {bytes} bytes came"), &text, "< 100 MB");
}
