//! Trying rights without leaving anything behind.
//!
//! A server says that something is not permitted only when it is done, by an error of its own that names the subject. So each
//! right is tried with what is refused for another reason: a message for a stream that expects to go to another one is refused
//! by JetStream, an API request that is no JSON by the API, and an acknowledgement that says nothing acknowledges nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::{HeaderMap, Request};
use futures_util::StreamExt as _;
use tokio::sync::broadcast;

use super::{Act, Answer, Bait, NOBODY, Right, Trial};
use crate::bus::Bus;

/// Trials under way at one time: fewer than the refusals that are kept.
const WINDOW: usize = 16;

/// How long a refusal may take from the connection to who listens for it.
const SETTLED: Duration = Duration::from_millis(200);

/// Hears what the server refuses.
pub(in crate::bus) struct Ear {
    refusals: broadcast::Receiver<String>,
}

impl Ear {
    /// From now on.
    pub(in crate::bus) fn open(bus: &Bus) -> Self {
        Self { refusals: bus.inner.refusals.subscribe() }
    }

    /// Resolves when the server refuses this. Cancel safe.
    pub(in crate::bus) async fn refused(&mut self, act: Act, subject: &str) {
        loop {
            match self.refusals.recv().await {
                Ok(text) if names(&text, act, subject) => return,
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => std::future::pending::<()>().await,
            }
        }
    }

    /// All that was heard so far.
    fn heard(&mut self) -> Vec<String> {
        let mut heard = Vec::new();
        loop {
            match self.refusals.try_recv() {
                Ok(text) => heard.push(text),
                Err(broadcast::error::TryRecvError::Lagged(_)) => {}
                Err(broadcast::error::TryRecvError::Empty | broadcast::error::TryRecvError::Closed) => return heard,
            }
        }
    }
}

/// `Permissions Violation for Publish to "subject"`, `Permissions Violation for Subscription to "subject"`.
fn names(refusal: &str, act: Act, subject: &str) -> bool {
    let act = match act {
        Act::Publish => "publish to",
        Act::Subscribe => "subscription to",
    };
    let lower = refusal.to_lowercase();
    lower.contains("permissions violation") && lower.contains(&format!("{act} \"{}\"", subject.to_lowercase()))
}

impl Bus {
    /// Tries each of `rights`, in their order. What is tried twice is sent once.
    pub async fn try_rights(&self, rights: &[Right]) -> Vec<Answer> {
        let mut ear = Ear::open(self);
        let all: BTreeSet<&Trial> = rights.iter().map(|right| &right.trial).collect();
        let (subscribe, publish): (Vec<&Trial>, Vec<&Trial>) = all.into_iter().partition(|trial| trial.act == Act::Subscribe);
        let mut subscriptions = Vec::new();
        for trial in &subscribe {
            subscriptions.extend(self.inner.client.subscribe(trial.subject.clone()).await);
        }
        // The server takes what it is told in order: when it answers to this, it has refused subscriptions before.
        let question = Trial { act: Act::Publish, subject: "$JS.API.INFO".to_owned(), bait: Bait::Nothing };
        let hears = self.attempt(&question, self.inner.timeout).await != Answer::Silent;
        // Who hears no answers would wait for each in vain; refusals come without being asked for.
        let within = if hears { self.inner.timeout } else { SETTLED };
        for mut subscription in subscriptions {
            // What is published next must not come back to us in place of an answer.
            let _ = subscription.unsubscribe().await;
        }
        let mut answers: BTreeMap<&Trial, Answer> = futures_util::stream::iter(publish)
            .map(|trial| async move { (trial, self.attempt(trial, within).await) })
            .buffer_unordered(WINDOW)
            .collect()
            .await;
        // The library hands out answers and refusals on two ways.
        tokio::time::sleep(SETTLED).await;
        let refused = ear.heard();
        for trial in subscribe {
            let denied = refused.iter().any(|text| names(text, Act::Subscribe, &trial.subject));
            let granted = if hears { Answer::Granted } else { Answer::Silent };
            answers.insert(trial, if denied { Answer::Denied } else { granted });
        }
        rights.iter().map(|right| answers.get(&right.trial).copied().unwrap_or(Answer::Silent)).collect()
    }

    async fn attempt(&self, trial: &Trial, within: Duration) -> Answer {
        let mut ear = Ear::open(self);
        let mut request = Request::new().timeout(Some(within));
        match trial.bait {
            Bait::Nothing => {}
            Bait::Nonsense => request = request.payload("{".into()),
            Bait::Misdirected => {
                let mut headers = HeaderMap::new();
                headers.insert("Nats-Expected-Stream", NOBODY);
                request = request.headers(headers);
            }
        }
        // Cancel safe, both.
        tokio::select! {
            biased;
            () = ear.refused(Act::Publish, &trial.subject) => Answer::Denied,
            answer = self.inner.client.send_request(trial.subject.clone(), request) => match answer.map_err(|e| e.kind()) {
                Ok(_) | Err(RequestErrorKind::NoResponders) => Answer::Granted,
                Err(RequestErrorKind::TimedOut | RequestErrorKind::InvalidSubject | RequestErrorKind::MaxPayloadExceeded | RequestErrorKind::Other) => {
                    Answer::Silent
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_what_was_refused() {
        let text = r#"nats: Permissions Violation for Publish to "$JS.API.STREAM.INFO.W_TASKS""#;
        assert!(names(text, Act::Publish, "$JS.API.STREAM.INFO.W_TASKS"));
        assert!(!names(text, Act::Subscribe, "$JS.API.STREAM.INFO.W_TASKS"));
        assert!(!names(text, Act::Publish, "$JS.API.STREAM.INFO.W_TASKS2"));
        let text = r#"Permissions Violation for Subscription to "w.control.*.*""#;
        assert!(names(text, Act::Subscribe, "w.control.*.*"));
        assert!(!names("Authorization Violation", Act::Publish, "x"));
    }
}
