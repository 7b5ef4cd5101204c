//! Assignments as an orchestrator writes them: plain values, nothing of windlass's own types.

use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

/// An assignment to be published.
#[derive(Debug, Clone)]
pub struct Job {
    /// The body.
    pub body: Value,
    /// Subject token.
    pub tenant: String,
    /// Subject token.
    pub class: String,
    /// Subject token.
    pub priority: String,
    /// MessagePack instead of JSON.
    pub msgpack: bool,
    /// Whether `Content-Type` is sent.
    pub content_type: bool,
}

impl Job {
    fn new(execution: Value) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let id = format!("t{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let body = json!({"v": 1, "task_id": id, "execution": execution});
        Self { body, tenant: "acme".into(), class: "cpu_short".into(), priority: "normal".into(), msgpack: false, content_type: true }
    }

    /// A program and its arguments.
    pub fn argv<S: AsRef<str>>(argv: impl IntoIterator<Item = S>) -> Self {
        let command: Vec<_> = argv.into_iter().map(|a| a.as_ref().to_owned()).collect();
        Self::new(json!({"runtime": "native", "command": command}))
    }

    /// A script.
    pub fn bash(script: impl Into<String>) -> Self {
        Self::new(json!({"runtime": "bash", "script": script.into()}))
    }

    /// A container of the tests' image that runs a program with its arguments.
    pub fn container<S: AsRef<str>>(argv: impl IntoIterator<Item = S>) -> Self {
        let command: Vec<_> = argv.into_iter().map(|a| a.as_ref().to_owned()).collect();
        Self::new(json!({"runtime": "docker", "image": super::docker::IMAGE, "pull": "never", "command": command}))
    }

    /// A container of the tests' image that runs a script.
    pub fn container_script(script: impl AsRef<str>) -> Self {
        Self::container(["bash", "-c", script.as_ref()])
    }

    /// One of `tests/programs` with its arguments.
    pub fn program<S: AsRef<str>>(name: &str, args: impl IntoIterator<Item = S>) -> Self {
        let path = super::programs().join(name).display().to_string();
        let args = args.into_iter().map(|a| a.as_ref().to_owned());
        Self::argv(std::iter::once(path).chain(args))
    }

    /// Sets the value at a JSON pointer, objects on the way made.
    #[must_use]
    pub fn set(mut self, pointer: &str, value: impl Into<Value>) -> Self {
        let mut here = &mut self.body;
        for token in pointer.trim_start_matches('/').split('/') {
            if !here.is_object() {
                *here = json!({});
            }
            here = &mut here[token];
        }
        *here = value.into();
        self
    }

    /// Gives a container that directory of the machine, to write, at the same path.
    #[must_use]
    pub fn sees(self, dir: &std::path::Path) -> Self {
        self.set("/execution/mounts", json!([{"source": dir, "target": dir, "read_only": false}]))
    }

    /// `task_id`
    #[must_use]
    pub fn id(self, id: impl Into<String>) -> Self {
        self.set("/task_id", id.into())
    }

    /// `execution.timeout_s`
    #[must_use]
    pub fn timeout(self, seconds: f64) -> Self {
        self.set("/execution/timeout_s", seconds)
    }

    /// `execution.grace_s`
    #[must_use]
    pub fn grace(self, seconds: f64) -> Self {
        self.set("/execution/grace_s", seconds)
    }

    /// `execution.resources.memory`
    #[must_use]
    pub fn memory(self, size: &str) -> Self {
        self.set("/execution/resources/memory", size)
    }

    /// Queue within the class.
    #[must_use]
    pub fn priority(mut self, priority: &str) -> Self {
        priority.clone_into(&mut self.priority);
        self
    }

    /// MessagePack instead of JSON.
    #[must_use]
    pub fn msgpack(mut self) -> Self {
        self.msgpack = true;
        self
    }

    /// Without the `Content-Type` header.
    #[must_use]
    pub fn without_content_type(mut self) -> Self {
        self.content_type = false;
        self
    }

    /// The id that the body names.
    pub fn task_id(&self) -> String {
        self.body["task_id"].as_str().expect("a task_id").to_owned()
    }

    /// The body in bytes.
    pub fn encode(&self) -> Vec<u8> {
        if self.msgpack { rmp_serde::to_vec_named(&self.body).expect("encodes") } else { serde_json::to_vec(&self.body).expect("encodes") }
    }

    /// `Content-Type`
    pub fn media_type(&self) -> Option<&'static str> {
        self.content_type.then_some(if self.msgpack { "application/vnd.msgpack" } else { "application/json" })
    }
}

/// Holds tasks until a test lets them go: a file that they wait for.
#[derive(Debug, Clone)]
pub struct Gate(std::path::PathBuf);

impl Gate {
    /// A closed gate.
    pub fn new(dir: &std::path::Path, name: &str) -> Self {
        Self(dir.join(format!("gate-{name}")))
    }

    /// Shell text that waits here.
    pub fn wait(&self) -> String {
        format!("until [ -e '{}' ]; do sleep 0.02; done", self.0.display())
    }

    /// The file.
    pub fn path(&self) -> &std::path::Path {
        &self.0
    }

    /// Lets everyone through.
    pub fn open(&self) {
        std::fs::write(&self.0, "").expect("the gate's file");
    }
}
