//! Everybody's acknowledgements, overheard: the only way to see when a message left the queue.

use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use futures_util::StreamExt as _;

/// An acknowledgement that removes a message from the queue.
#[derive(Debug, Clone, Copy)]
pub struct Ack {
    /// The message's sequence in the stream of tasks.
    pub sequence: u64,
    /// When it passed by, by the clock that the server stamps its messages with.
    pub at: SystemTime,
}

/// Listens to the acknowledgements of one stream while it lives. What passes while the server is away is not heard.
pub struct Acks {
    heard: Arc<Mutex<Vec<Ack>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Acks {
    /// Listens from now on.
    pub async fn of(client: &async_nats::Client, stream: &str) -> Self {
        let mut messages = client.subscribe(format!("$JS.ACK.{stream}.>")).await.expect("a subscription");
        client.flush().await.expect("the server answers");
        let heard = Arc::new(Mutex::new(Vec::new()));
        let mine = Arc::clone(&heard);
        let task = tokio::spawn(async move {
            while let Some(message) = messages.next().await {
                let at = SystemTime::now();
                // $JS.ACK.<stream>.<consumer>.<deliveries>.<stream sequence>.…
                let sequence = message.subject.split('.').nth(5).and_then(|n| n.parse().ok());
                if let (b"+ACK", Some(sequence)) = (&message.payload[..], sequence) {
                    mine.lock().expect("not poisoned").push(Ack { sequence, at });
                }
            }
        });
        Self { heard, task }
    }

    /// Those heard so far.
    pub fn heard(&self) -> Vec<Ack> {
        self.heard.lock().expect("not poisoned").clone()
    }
}

impl Drop for Acks {
    fn drop(&mut self) {
        self.task.abort();
    }
}
