//! What a worker tells over HTTP, asked as a stranger would: bytes over TCP.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::PATIENCE;
use super::worker::Worker;

/// An answer as it came.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Status line and headers.
    pub head: String,
    /// The rest.
    pub body: String,
}

/// Sends these bytes and reads until the other end closes.
pub async fn send(address: &str, bytes: &[u8]) -> io::Result<Answer> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(bytes).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok::<_, io::Error>(answer)
    };
    let answer = tokio::time::timeout(PATIENCE, exchange).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    let text = String::from_utf8(answer).map_err(io::Error::other)?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| io::Error::other(format!("no head in {text:?}")))?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(|| io::Error::other(head.to_owned()))?;
    Ok(Answer { status, head: head.to_owned(), body: body.to_owned() })
}

/// Gets a page.
pub async fn get(address: &str, path: &str) -> io::Result<Answer> {
    send(address, format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes()).await
}

impl Worker {
    /// Where it answers.
    pub async fn http(&self) -> String {
        let line = self.says(&["health and metrics over HTTP", "address="]).await;
        line.rsplit_once("address=").expect("an address").1.split_whitespace().next().expect("an address").to_owned()
    }

    /// Waits until `/readyz` says what `look` looks for: its status, and its body.
    pub async fn readiness(&self, what: &str, look: impl Fn(u16, &Value) -> bool) -> Value {
        let address = self.http().await;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = get(&address, "/readyz").await;
            if let Ok(answer) = &answer {
                let body = serde_json::from_str(&answer.body).unwrap_or_else(|e| panic!("{e}: {answer:?}"));
                if look(answer.status, &body) {
                    return body;
                }
            }
            assert!(Instant::now() < deadline, "worker {}: not {what}: {answer:?}\n{}", self.id, self.log());
            // Readiness is no message that could be waited for.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until it is not ready because of these conditions, and no others.
    pub async fn not_ready_for(&self, conditions: &[&str]) {
        self.readiness(&format!("unready for {conditions:?}"), |status, body| {
            let all = body["conditions"].as_object().expect("conditions");
            let unmet: Vec<_> = all.iter().filter(|(_, c)| c["ok"] == false).map(|(name, _)| name.as_str()).collect();
            status == 503 && body["ready"] == false && unmet == conditions
        })
        .await;
    }

    /// Waits until all conditions are met.
    pub async fn is_fit(&self) {
        self.readiness("ready", |status, body| status == 200 && body["ready"] == true).await;
    }

    /// Its metrics now.
    pub async fn metrics(&self) -> Scrape {
        let answer = get(&self.http().await, "/metrics").await.expect("metrics");
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.head.to_lowercase().contains("content-type: text/plain; version=0.0.4"), "{}", answer.head);
        Scrape(answer.body)
    }
}

/// The text of a scrape.
#[derive(Debug, Clone)]
pub struct Scrape(pub String);

impl Scrape {
    /// Every series, as it is written, with its value.
    pub fn series(&self) -> BTreeMap<String, f64> {
        let lines = self.0.lines().filter(|line| !line.starts_with('#'));
        lines
            .map(|line| line.rsplit_once(' ').map(|(name, value)| (name.to_owned(), value.parse().expect("a number"))).expect("a value"))
            .collect()
    }

    /// The value of a series; 0 when it is not there.
    pub fn value(&self, series: &str) -> f64 {
        self.series().get(series).copied().unwrap_or(0.0)
    }

    /// Name and type of every metric.
    pub fn types(&self) -> BTreeMap<String, String> {
        let types = self.0.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        types.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect()
    }
}
