//! Following a stream: every message from the first, as it comes, across reconnects and server restarts.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, ReplayPolicy, pull};
use async_nats::jetstream::{Context, context::GetStreamErrorKind};
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::watch;

/// A message of a stream.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Subject.
    pub subject: String,
    /// Stream sequence.
    pub sequence: u64,
    /// When the server stored it.
    pub time: SystemTime,
    /// Headers.
    pub headers: HeaderMap,
    /// Payload.
    pub body: Bytes,
}

impl Stored {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(async_nats::HeaderValue::as_str)
    }
}

type Error = Box<dyn std::error::Error + Send + Sync>;

fn consumer(filter: &str, from: u64) -> pull::Config {
    pull::Config {
        filter_subject: filter.to_owned(),
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: from },
        ack_policy: AckPolicy::None,
        replay_policy: ReplayPolicy::Instant,
        inactive_threshold: Duration::from_secs(30),
        memory_storage: true,
        num_replicas: 1,
        ..pull::Config::default()
    }
}

fn stored(message: async_nats::jetstream::Message) -> Result<Stored, Error> {
    let info = message.info()?;
    let (sequence, time) = (info.stream_sequence, info.published.into());
    let (message, _) = message.split();
    Ok(Stored { subject: message.subject.to_string(), sequence, time, headers: message.headers.unwrap_or_default(), body: message.payload })
}

/// Everything that a stream holds now on `filter`, in order.
pub async fn read_all(js: &Context, stream: &str, filter: &str) -> Vec<Stored> {
    let deadline = Instant::now() + super::PATIENCE * super::slowness();
    loop {
        match try_read_all(js, stream, filter).await {
            Ok(all) => return all,
            // What was asked just when a test killed the server has no answer: asked again.
            Err(error) => assert!(Instant::now() < deadline, "cannot read {filter} from {stream}: {error}"),
        }
    }
}

async fn try_read_all(js: &Context, stream: &str, filter: &str) -> Result<Vec<Stored>, Error> {
    // Of the leader: a consumer may live on a node that has just come back and does not have everything yet.
    let asked = serde_json::json!({"subjects_filter": filter});
    let info: serde_json::Value = js.request(format!("STREAM.INFO.{stream}"), &asked).await?;
    let subjects = info["state"]["subjects"].as_object();
    let counted: u64 = subjects.into_iter().flatten().filter_map(|(_, count)| count.as_u64()).sum();
    let consumer = js.get_stream(stream).await?.create_consumer(consumer(filter, 1)).await?;
    let expected = consumer.cached_info().num_pending;
    if expected < counted {
        return Err(format!("{expected} messages are there, and {counted} are stored").into());
    }
    let mut all = Vec::new();
    while (all.len() as u64) < expected {
        let mut batch = consumer.batch().max_messages(128).expires(Duration::from_secs(2)).messages().await?;
        let before = all.len();
        while let Some(message) = batch.next().await {
            all.push(stored(message?)?);
            if all.len() as u64 == expected {
                break;
            }
        }
        if all.len() == before {
            return Err(format!("{before} of {expected} messages came").into());
        }
    }
    Ok(all)
}

/// A stream that is followed in the background while this lives.
pub struct Feed {
    seen: Arc<Mutex<Vec<Stored>>>,
    changes: watch::Receiver<usize>,
    task: tokio::task::JoinHandle<()>,
}

impl Feed {
    /// Follows `filter` of `stream` from its first message on.
    pub fn follow(js: Context, stream: String, filter: String) -> Self {
        let seen = Arc::new(Mutex::new(Vec::<Stored>::new()));
        let (announce, changes) = watch::channel(0);
        let mine = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            loop {
                let from = mine.lock().expect("not poisoned").last().map_or(1, |s| s.sequence + 1);
                let take = |message: Stored| {
                    let mut seen = mine.lock().expect("not poisoned");
                    seen.push(message);
                    announce.send_replace(seen.len());
                };
                if let Err(error) = follow(&js, &stream, &filter, from, take).await
                    && std::env::var_os("WINDLASS_TEST_LOG").is_some()
                {
                    println!("feed of {stream}: {error}; again");
                }
                // The server is away or forgot the consumer: a new one, not faster than it can answer.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        Self { seen, changes, task }
    }

    /// Waits until `look` finds what it looks for in what has come so far; `None` when it does not within the time.
    pub async fn until<T>(&self, within: Duration, mut look: impl FnMut(&[Stored]) -> Option<T>) -> Option<T> {
        let mut changes = self.changes.clone();
        let found = tokio::time::timeout(within * super::slowness(), async {
            loop {
                changes.borrow_and_update();
                if let Some(found) = look(&self.seen.lock().expect("not poisoned")) {
                    return found;
                }
                changes.changed().await.expect("the follower runs as long as the feed lives");
            }
        });
        found.await.ok()
    }

    /// What has come so far on subjects that begin so. Thousands of tasks ask, so nothing else is copied.
    pub fn seen(&self, prefix: &str) -> Vec<Stored> {
        let seen = self.seen.lock().expect("not poisoned");
        seen.iter().filter(|s| s.subject.starts_with(prefix)).cloned().collect()
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow(js: &Context, stream: &str, filter: &str, from: u64, mut take: impl FnMut(Stored)) -> Result<(), Error> {
    let consumer = match js.get_stream(stream).await {
        Ok(stream) => stream.create_consumer(consumer(filter, from)).await?,
        Err(error) if matches!(error.kind(), GetStreamErrorKind::EmptyName | GetStreamErrorKind::InvalidStreamName) => {
            panic!("stream {stream}: {error}")
        }
        Err(error) => return Err(error.into()),
    };
    let mut messages = consumer
        .stream()
        .max_messages_per_batch(256)
        .expires(Duration::from_secs(2))
        .heartbeat(Duration::from_millis(500))
        .messages()
        .await?;
    let mut last = from.saturating_sub(1);
    while let Some(message) = messages.next().await {
        let message = stored(message?)?;
        // After a restart of the server the consumer may begin anew.
        if message.sequence > last {
            last = message.sequence;
            take(message);
        }
    }
    Ok(())
}
