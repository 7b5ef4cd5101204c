//! What a service wrote last.

use std::time::Duration;

use bollard::query_parameters::LogsOptionsBuilder;
use futures_util::StreamExt as _;

use crate::execute::docker::engine::Engine;

/// Lines of it that are told.
const LINES: usize = 10;
/// Bytes of it that are told.
const BYTES: usize = 2048;
/// A log that does not end is not waited for.
const WITHIN: Duration = Duration::from_secs(5);

/// The last lines of both its streams, or nothing when it wrote nothing or the engine does not tell.
pub(in crate::execute::docker) async fn of(engine: &Engine, container: &str) -> String {
    let options = LogsOptionsBuilder::default().stdout(true).stderr(true).follow(false).tail(&LINES.to_string()).build();
    let mut log = std::pin::pin!(engine.api().logs(container, Some(options)));
    let mut text = Vec::new();
    let read = async {
        while let Some(Ok(part)) = log.next().await {
            text.extend_from_slice(&part.into_bytes());
        }
    };
    // What came until then is told.
    let _ = tokio::time::timeout(WITHIN, read).await;
    tail(&text)
}

fn tail(bytes: &[u8]) -> String {
    let from = bytes.len().saturating_sub(BYTES);
    let text = String::from_utf8_lossy(&bytes[from..]);
    text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
}

/// A sentence with them.
pub(in crate::execute::docker) fn sentence(words: &str) -> String {
    if words.is_empty() { "it wrote nothing".to_owned() } else { format!("its last lines:\n{words}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_few() {
        assert_eq!(tail(b"one\r\n\n two \n"), "one\n two");
        assert!(tail(&b"x".repeat(10_000)).len() <= BYTES);
        assert_eq!(sentence(""), "it wrote nothing");
    }
}
