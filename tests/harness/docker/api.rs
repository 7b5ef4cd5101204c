//! The engine as somebody else sees it: its API over plain HTTP, not through the client that is under test.

use std::collections::BTreeMap;
use std::io::{Error, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::super::{PATIENCE, Task, slowness};
use super::Engine;
use super::image::encoded;

/// What it said.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {} {}", self.status, self.text()))
    }
}

/// A container as it is listed.
#[derive(Debug, Clone)]
pub struct Container {
    /// Its id.
    pub id: String,
    /// `created`, `running`, `paused`, `exited`, `dead`.
    pub state: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl Engine {
    /// One request.
    pub fn ask(&self, method: &str, path: &str, body: &[u8]) -> std::io::Result<Answer> {
        let mut stream = UnixStream::connect(self.socket())?;
        stream.set_read_timeout(Some(PATIENCE * slowness()))?;
        let kind = if body.first() == Some(&b'{') { "application/json" } else { "application/x-tar" };
        // In version 1.0 nothing is chunked, and the end of the answer is the end of the connection.
        let head = format!("{method} {path} HTTP/1.0\r\nHost: docker\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let end = answer.windows(4).position(|w| w == b"\r\n\r\n").ok_or_else(|| Error::other("no answer"))?;
        let head = String::from_utf8_lossy(&answer[..end]).into_owned();
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).ok_or_else(|| Error::other(head))?;
        Ok(Answer { status, body: answer.split_off(end + 4) })
    }

    /// One request that must be answered with one of `statuses`.
    pub fn does(&self, method: &str, path: &str, statuses: &[u16]) -> Answer {
        let answer = self.ask(method, path, &[]).unwrap_or_else(|e| panic!("{method} {path}: {e}; {}", self.log()));
        assert!(statuses.contains(&answer.status), "{method} {path}: {} {}", answer.status, answer.text());
        answer
    }

    /// Containers, whatever their state, that bear all `labels` (`name=value` or `name`).
    pub fn containers(&self, labels: &[&str]) -> Vec<Container> {
        let filters = encoded(&serde_json::json!({ "label": labels }).to_string());
        let listed = self.does("GET", &format!("/containers/json?all=1&filters={filters}"), &[200]).json();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let one = |entry: &Value| Container { id: text(&entry["Id"]), state: text(&entry["State"]), labels: labels_of(entry) };
        listed.as_array().expect("a list").iter().map(one).collect()
    }

    /// Waits for a container of a task that runs, and returns its id.
    pub async fn container_of(&self, task: &Task) -> String {
        let label = format!("windlass.task={}", task.id);
        let deadline = std::time::Instant::now() + PATIENCE * slowness();
        loop {
            let found = self.containers(&[&label, "windlass.role=task"]);
            if let Some(running) = found.into_iter().find(|container| container.state == "running") {
                return running.id;
            }
            assert!(std::time::Instant::now() < deadline, "task {} has no container that runs", task.id);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What has happened to containers so far, oldest first: id, action (`create`, `start`, `die`, `destroy` …) and time, nanoseconds.
    /// It remembers the last 256.
    pub fn happened(&self) -> Vec<(String, String, u64)> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
        let filters = encoded(r#"{"type":["container"]}"#);
        let told = self.does("GET", &format!("/events?since=1&until={now}&filters={filters}"), &[200]).text();
        let one = |line: &str| {
            let event: Value = serde_json::from_str(line).ok()?;
            Some((event["Actor"]["ID"].as_str()?.to_owned(), event["Action"].as_str()?.to_owned(), event["timeNano"].as_u64()?))
        };
        told.lines().filter_map(one).collect()
    }

    /// What it knows of a container.
    pub fn inspect(&self, id: &str) -> Value {
        self.does("GET", &format!("/containers/{id}/json"), &[200]).json()
    }

    /// Containers and networks of workers whose directories are below `root`, or of all.
    pub fn left_of(&self, root: Option<&Path>) -> Vec<String> {
        let own = |labels: &BTreeMap<String, String>| match (root, labels.get("windlass.instance_dir")) {
            (Some(root), Some(dir)) => Path::new(dir).starts_with(root),
            (None, dir) => dir.is_some(),
            (Some(_), None) => false,
        };
        let containers = self.containers(&[]).into_iter().filter(|c| own(&c.labels));
        let mut found: Vec<_> = containers.map(|c| format!("container {} {} {:?}", c.id, c.state, c.labels)).collect();
        let networks = self.does("GET", "/networks", &[200]).json();
        let networks = networks.as_array().expect("a list").iter().filter(|network| own(&labels_of(network)));
        found.extend(networks.map(|network| format!("network {} {}", network["Name"], network["Labels"])));
        found
    }
}

fn labels_of(entry: &Value) -> BTreeMap<String, String> {
    serde_json::from_value(entry["Labels"].clone()).unwrap_or_default()
}
