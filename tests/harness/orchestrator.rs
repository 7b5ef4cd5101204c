//! The orchestrator's side: publishes assignments, watches chains and output, asks for cancellation.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::jetstream;
use windlass::task::log_chunk::{ChunkData, ChunkEncoding, LogChunk, LogStream};
use windlass::task::{Event, EventKind};
use windlass::wire::Encoding;

use super::acks::Acks;
use super::feed::{Feed, Stored, read_all};
use super::{Job, PATIENCE};

/// A published task.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Task {
    /// Whose.
    pub tenant: String,
    /// Which.
    pub id: String,
}

/// An event of a chain as it was stored.
#[derive(Debug, Clone)]
pub struct Link {
    /// The message.
    pub stored: Stored,
    /// What it says.
    pub event: Event,
}

/// A client of one prefix.
pub struct Orchestrator {
    /// For what has no method here.
    pub js: jetstream::Context,
    /// First subject token.
    pub prefix: String,
    events: Feed,
    /// Acknowledgements that passed by.
    pub acks: Arc<Acks>,
    submitted: Mutex<Vec<(Task, u64)>>,
}

/// Reads an event as its headers say.
pub fn event_of(stored: &Stored) -> Event {
    let encoding = Encoding::detect(stored.header("Content-Type"), &stored.body).expect("a known Content-Type");
    encoding.decode(&stored.body).unwrap_or_else(|e| panic!("{}: {e}\n{}", stored.subject, String::from_utf8_lossy(&stored.body)))
}

/// Reads a chunk and its bytes.
pub fn chunk_of(stored: &Stored) -> (LogChunk, Vec<u8>) {
    use base64::Engine as _;
    let encoding = Encoding::detect(stored.header("Content-Type"), &stored.body).expect("a known Content-Type");
    let chunk: LogChunk = encoding.decode(&stored.body).unwrap_or_else(|e| panic!("{}: {e}", stored.subject));
    let bytes = match (chunk.encoding, &chunk.data) {
        (ChunkEncoding::Utf8, ChunkData::Text(text)) => text.clone().into_bytes(),
        (ChunkEncoding::Base64, ChunkData::Text(text)) => base64::engine::general_purpose::STANDARD.decode(text).expect("base64"),
        (ChunkEncoding::Bin, ChunkData::Bytes(bytes)) => bytes.clone(),
        (encoding, data) => panic!("{}: data {data:?} does not fit encoding {encoding:?}", stored.subject),
    };
    assert_eq!(chunk.len, bytes.len() as u64, "{}: len", stored.subject);
    (chunk, bytes)
}

impl Orchestrator {
    /// Connects.
    pub async fn connect(url: &str, prefix: &str) -> Self {
        Self::connect_with(url, prefix, None).await
    }

    /// Connects with a credentials file.
    pub async fn connect_with(url: &str, prefix: &str, creds: Option<&str>) -> Self {
        let mut options = async_nats::ConnectOptions::new().reconnect_delay_callback(|_| Duration::from_millis(50));
        if let Some(creds) = creds {
            options = options.credentials_file(creds).await.expect("credentials");
        }
        let client = options.connect(url).await.expect("the server answers");
        let acks = Arc::new(Acks::of(&client, &format!("{}_TASKS", prefix.to_uppercase())).await);
        let js = jetstream::new(client);
        let events = Feed::follow(js.clone(), format!("{}_EVENTS", prefix.to_uppercase()), format!("{prefix}.events.>"));
        Self { js, prefix: prefix.to_owned(), events, acks, submitted: Mutex::default() }
    }

    /// The same client with an eye that has seen nothing yet: for a stream that was removed and made anew.
    #[must_use]
    pub fn anew(&self) -> Self {
        let events = Feed::follow(self.js.clone(), self.stream("EVENTS"), format!("{}.events.>", self.prefix));
        let submitted = Mutex::new(self.submitted.lock().expect("not poisoned").clone());
        Self { js: self.js.clone(), prefix: self.prefix.clone(), events, acks: Arc::clone(&self.acks), submitted }
    }

    /// Name of a stream of this prefix.
    pub fn stream(&self, kind: &str) -> String {
        format!("{}_{kind}", self.prefix.to_uppercase())
    }

    /// Subject that a job is published to.
    pub fn subject(&self, job: &Job, task_id: &str) -> String {
        format!("{}.tasks.{}.{}.{}.{task_id}", self.prefix, job.class, job.priority, job.tenant)
    }

    /// Publishes a job, and counts it among those that the checker must find ended.
    pub async fn submit(&self, job: &Job) -> Task {
        let task = Task { tenant: job.tenant.clone(), id: job.task_id() };
        let sequence = self.publish(&self.subject(job, &task.id), job.media_type(), job.encode()).await.expect("the queue takes it");
        self.submitted.lock().expect("not poisoned").push((task.clone(), sequence));
        task
    }

    /// As [`Orchestrator::submit`] while the server comes and goes: sent again until it is known to be queued.
    pub async fn submit_surely(&self, job: &Job) -> Task {
        let task = Task { tenant: job.tenant.clone(), id: job.task_id() };
        let subject = self.subject(job, &task.id);
        // The first copy may have been stored although nobody said so; its sequence is then not known.
        let sequence = self.surely(&subject, job.media_type(), &job.encode()).await;
        self.submitted.lock().expect("not poisoned").push((task.clone(), sequence));
        task
    }

    /// As [`Orchestrator::cancel`] while the server comes and goes.
    pub async fn cancel_surely(&self, task: &Task) {
        let subject = format!("{}.control.{}.{}", self.prefix, task.tenant, task.id);
        self.surely(&subject, Some("application/json"), br#"{"v":1,"action":"cancel"}"#).await;
    }

    /// Sends it until it is stored; 0 when it was, but not by the try that was answered.
    async fn surely(&self, subject: &str, content_type: Option<&str>, body: &[u8]) -> u64 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.publish(subject, content_type, body.to_vec()).await {
                Ok(sequence) => return sequence,
                Err(error) if error.contains("per subject") => return 0,
                Err(error) => assert!(Instant::now() < deadline, "{subject}: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Publishes any bytes to any subject; the stream sequence when it was stored.
    pub async fn publish(&self, subject: &str, content_type: Option<&str>, body: impl Into<bytes::Bytes>) -> Result<u64, String> {
        let mut headers = HeaderMap::new();
        if let Some(content_type) = content_type {
            headers.insert("Content-Type", content_type);
        }
        let sent = self.js.publish_with_headers(subject.to_owned(), headers, body.into()).await.map_err(|e| e.to_string())?;
        sent.await.map(|ack| ack.sequence).map_err(|e| format!("{e}: {:?}", std::error::Error::source(&e).map(ToString::to_string)))
    }

    /// As [`Orchestrator::submit`] for what is no assignment: the subject's tokens say which task it would be.
    pub async fn submit_raw(&self, task_id: &str, content_type: Option<&str>, body: impl Into<bytes::Bytes>) -> Task {
        let subject = format!("{}.tasks.cpu_short.normal.acme.{task_id}", self.prefix);
        let sequence = self.publish(&subject, content_type, body).await.expect("the queue takes it");
        let task = Task { tenant: "acme".into(), id: task_id.into() };
        self.submitted.lock().expect("not poisoned").push((task.clone(), sequence));
        task
    }

    /// Counts a task that somebody else submitted, as which message is not known, among those that the checker must find ended.
    pub fn count(&self, task: &Task) {
        self.submitted.lock().expect("not poisoned").push((task.clone(), 0));
    }

    /// Waits until its message is acknowledged: what a task left on its worker is removed by then.
    pub async fn left_the_queue(&self, task: &Task) {
        let deadline = Instant::now() + PATIENCE;
        let own = format!(".{}.{}", task.tenant, task.id);
        while self.queued().await.iter().any(|message| message.subject.ends_with(&own)) {
            assert!(Instant::now() < deadline, "task {} is still queued", task.id);
            // An ack makes no message that could be waited for.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Every task submitted so far.
    pub fn submitted(&self) -> Vec<Task> {
        self.submitted.lock().expect("not poisoned").iter().map(|(task, _)| task.clone()).collect()
    }

    /// The task that was submitted as that message.
    pub fn task_of(&self, sequence: u64) -> Option<Task> {
        self.submitted.lock().expect("not poisoned").iter().find(|(_, s)| *s == sequence).map(|(task, _)| task.clone())
    }

    /// Publishes a cancel request.
    pub async fn cancel(&self, task: &Task) {
        let subject = format!("{}.control.{}.{}", self.prefix, task.tenant, task.id);
        self.publish(&subject, Some("application/json"), r#"{"v":1,"action":"cancel","reason":"a test asked"}"#).await.expect("stored");
    }

    /// Events of one task that have come so far.
    pub fn chain(&self, task: &Task) -> Vec<Link> {
        let prefix = self.chain_prefix(task);
        links(&self.events.seen(&prefix), &prefix)
    }

    /// Events of all tasks that have come so far.
    pub fn all_events(&self) -> Vec<Event> {
        self.events.seen("").iter().map(event_of).collect()
    }

    fn chain_prefix(&self, task: &Task) -> String {
        format!("{}.events.{}.{}.", self.prefix, task.tenant, task.id)
    }

    /// Waits for a state of the task's chain.
    pub async fn until<T>(&self, task: &Task, what: &str, mut look: impl FnMut(&[Link]) -> Option<T>) -> T {
        let prefix = self.chain_prefix(task);
        let mut known = 0;
        let mut chain = Vec::new();
        let found = self.events.until(PATIENCE, |seen| {
            chain.extend(links(&seen[known..], &prefix));
            known = seen.len();
            look(&chain)
        });
        match found.await {
            Some(found) => found,
            None => panic!("task {}: {what} did not happen; its chain: {}", task.id, story(&self.chain(task))),
        }
    }

    /// Waits for an event of that kind.
    pub async fn event(&self, task: &Task, kind: EventKind) -> Event {
        self.until(task, kind.as_str(), |chain| chain.iter().find(|l| l.event.event == kind).map(|l| l.event.clone())).await
    }

    /// Waits for the claim of that attempt.
    pub async fn attempt(&self, task: &Task, attempt: u32) -> Event {
        let started = |l: &&Link| l.event.event == EventKind::TaskStarted && l.event.task.attempt == attempt;
        self.until(task, &format!("attempt {attempt}"), |chain| chain.iter().find(started).map(|l| l.event.clone())).await
    }

    /// Waits for the terminal event.
    pub async fn end(&self, task: &Task) -> Event {
        self.until(task, "the end", |chain| chain.iter().find(|l| l.event.event.is_terminal()).map(|l| l.event.clone())).await
    }

    /// Follows a task's chunks in the background.
    pub fn follow_logs(&self, task: &Task) -> Feed {
        Feed::follow(self.js.clone(), self.stream("LOGS"), format!("{}.logs.{}.{}.>", self.prefix, task.tenant, task.id))
    }

    /// Waits until that text is in the published output of the task.
    pub async fn output_has(&self, task: &Task, text: &str) {
        let feed = self.follow_logs(task);
        let mut bytes = Vec::new();
        let mut known = 0;
        let found = feed.until(PATIENCE, |seen| {
            for stored in &seen[known..] {
                bytes.extend(chunk_of(stored).1);
            }
            known = seen.len();
            String::from_utf8_lossy(&bytes).contains(text).then_some(())
        });
        assert!(found.await.is_some(), "{text:?} did not appear in the output of {}; its chain: {}", task.id, story(&self.chain(task)));
    }

    /// Published bytes of one stream of the attempt that counts, in order, as a reader with the manifest takes them.
    pub async fn output(&self, task: &Task, end: &Event, stream: LogStream) -> Vec<u8> {
        let Some(manifest) = &end.logs else { return Vec::new() };
        let mut pieces: Vec<_> = read_all(&self.js, &self.stream("LOGS"), &manifest.subject).await.iter().map(chunk_of).collect();
        assert!(manifest.subject.contains(&format!(".{}.", task.id)), "manifest of another task: {}", manifest.subject);
        pieces.retain(|(chunk, _)| chunk.fence == manifest.fence && chunk.stream == stream);
        pieces.sort_by_key(|(chunk, _)| chunk.seq);
        pieces.into_iter().flat_map(|(_, bytes)| bytes).collect()
    }

    /// Dead letters of this prefix.
    pub async fn dead(&self) -> Vec<Stored> {
        read_all(&self.js, &self.stream("DEAD"), &format!("{}.dead.>", self.prefix)).await
    }

    /// Messages in the queue now.
    pub async fn queued(&self) -> Vec<Stored> {
        let mut stream = self.js.get_stream(self.stream("TASKS")).await.expect("the stream");
        let state = stream.info().await.expect("its state").state.clone();
        let mut found = Vec::new();
        for sequence in state.first_sequence..=state.last_sequence {
            // A work queue takes no second consumer on the same subjects: read by sequence.
            if let Ok(message) = stream.get_raw_message(sequence).await {
                let (subject, headers, time) = (message.subject.to_string(), message.headers, message.time.into());
                found.push(Stored { subject, sequence, time, headers, body: message.payload });
            }
        }
        found
    }
}

fn links(seen: &[Stored], prefix: &str) -> Vec<Link> {
    seen.iter().filter(|s| s.subject.starts_with(prefix)).map(|s| Link { event: event_of(s), stored: s.clone() }).collect()
}

/// A chain in one line, for failures.
pub fn story(chain: &[Link]) -> String {
    if chain.is_empty() {
        return "(empty)".into();
    }
    let one = |l: &Link| {
        let reason = l.event.reason.map_or_else(String::new, |r| format!(" {r} {:?} {:?}", l.event.exit_code, l.event.error));
        format!("{}:{} a{} by {}{reason}", l.event.seq, l.event.event, l.event.task.attempt, l.event.worker.worker_id)
    };
    chain.iter().map(one).collect::<Vec<_>>().join(" → ")
}
