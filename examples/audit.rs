//! Writes one line of JSON per task that ended, and goes on where it stopped the last time: a durable consumer.
//!
//!     cargo run --example audit -- NAME [--once]      --once: ends when there is nothing new
//!
//! An event is acknowledged after its line is written, so after a crash a line may come twice (its `id` says so), and none is
//! missed. `NATS_URL` and `WINDLASS_PREFIX` say where. It uses nothing of the windlass crate.
#![expect(clippy::print_stdout, reason = "a program for people")]
#![expect(clippy::disallowed_methods, reason = "where an acknowledgement is lost, a line is written twice: that is allowed here")]

use std::time::Duration;

use async_nats::jetstream::{self, consumer::pull};
use futures_util::StreamExt as _;
use serde_json::{Value, json};

type Error = Box<dyn std::error::Error + Send + Sync>;

fn variable(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| default.to_owned())
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().ok_or("usage: audit NAME [--once]")?;
    let once = arguments.next().as_deref() == Some("--once");
    let prefix = variable("WINDLASS_PREFIX", "windlass");

    let js = jetstream::new(async_nats::connect(variable("NATS_URL", "nats://127.0.0.1:4222")).await?);
    let ends = ["task_completed", "task_failed"].map(|end| format!("{prefix}.events.*.*.{end}"));
    let config = pull::Config { durable_name: Some(name), filter_subjects: ends.into(), ..pull::Config::default() };
    let consumer = js.get_stream(format!("{}_EVENTS", prefix.to_uppercase())).await?.create_consumer(config).await?;
    loop {
        let mut messages = consumer.batch().max_messages(100).expires(Duration::from_secs(2)).messages().await?;
        let mut taken = 0;
        while let Some(message) = messages.next().await {
            let message = message?;
            let json = message.headers.as_ref().and_then(|h| h.get("Content-Type")).is_some_and(|t| t.as_str() == "application/json");
            let event: Value = if json { serde_json::from_slice(&message.payload)? } else { rmp_serde::from_slice(&message.payload)? };
            println!("{}", json!({"id": event["id"], "tenant": event["task"]["tenant"], "reason": event["reason"], "time": event["time"]}));
            message.double_ack().await?;
            taken += 1;
        }
        if taken == 0 && once {
            return Ok(());
        }
    }
}
