//! Messages: what each body and its headers are, in both encodings, with samples.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::super::uri;
use crate::bus::chain::{EXPECTED, EXPECTED_SUBJECT};
use crate::bus::command::{WorkerAnswer, WorkerRequest};
use crate::bus::control::CancelRequest;
use crate::bus::presence::Presence;
use crate::task::log_chunk::LogChunk;
use crate::task::{Assignment, Event, EventKind};
use crate::wire::Encoding;

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Assignment,
    Event(EventKind),
    LogChunk,
    Cancel,
    WorkerRequest,
    WorkerAnswer,
    DeadLetter,
    Presence,
}

/// A sample that another implementation wrote.
macro_rules! golden {
    ($name:literal) => {
        ($name, include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/", $name, ".json")))
    };
}

impl Kind {
    /// Its names in the document: one per encoding that it may have.
    pub(super) fn names(self) -> Vec<String> {
        let base = match self {
            Self::Assignment => "assignment",
            Self::Event(kind) => return EncodingOf::BOTH.map(|encoding| encoding.name(&camel(kind.as_str(), false))).into(),
            Self::LogChunk => "logChunk",
            Self::Cancel => "cancel",
            Self::WorkerRequest => "workerRequest",
            Self::WorkerAnswer => return vec!["workerAnswer".to_owned()],
            Self::DeadLetter => return vec!["deadLetter".to_owned()],
            Self::Presence => return vec!["presence".to_owned()],
        };
        EncodingOf::BOTH.map(|encoding| encoding.name(base)).into()
    }

    fn title(self) -> (String, &'static str) {
        match self {
            Self::Assignment => {
                ("Assignment".into(), "One task. Without `Content-Type` a first byte `{` means JSON. Unknown keys are refused.")
            }
            Self::Event(kind) => (kind.as_str().into(), what(kind)),
            Self::LogChunk => ("Log chunk".into(), "A piece of output. In MessagePack `data` is `bin` and `encoding` is always bin."),
            Self::Cancel => ("Cancel request".into(), "Stops a task, queued or running. The answer is the event that ends the task."),
            Self::WorkerRequest => ("Request to a worker".into(), "Who may publish it may stop workers."),
            Self::WorkerAnswer => {
                ("Answer of a worker".into(), "Always JSON. A request that is not understood has `ok` false, and changes nothing.")
            }
            Self::DeadLetter => ("Dead letter".into(), "The payload as it was published, whatever it is, with its Content-Type."),
            Self::Presence => ("Presence".into(), "What a worker says of itself. Always JSON, without headers."),
        }
    }

    /// The names of its schemas of headers and payload.
    fn schemas(self) -> (Option<&'static str>, String) {
        match self {
            Self::Assignment => (Some("AssignmentHeaders"), "Assignment".into()),
            Self::Event(kind) => (Some("EventHeaders"), camel(kind.as_str(), true)),
            Self::LogChunk => (Some("LogChunkHeaders"), "LogChunk".into()),
            Self::Cancel => (Some("RequestHeaders"), "CancelRequest".into()),
            Self::WorkerRequest => (Some("RequestHeaders"), "WorkerRequest".into()),
            Self::WorkerAnswer => (None, "WorkerAnswer".into()),
            Self::DeadLetter => (Some("DeadLetterHeaders"), "Anything".into()),
            Self::Presence => (None, "Presence".into()),
        }
    }

    fn samples(self) -> &'static [(&'static str, &'static str)] {
        const DRAIN: (&str, &str) = ("drain", r#"{"v": 1, "action": "drain", "now": false, "instance": null}"#);
        const CANCEL: (&str, &str) = ("cancel", r#"{"v": 1, "action": "cancel", "reason": "not needed any more"}"#);
        match self {
            Self::Assignment => &[golden!("assignment"), golden!("assignment_every_key"), golden!("assignment_least")],
            Self::Event(EventKind::TaskStarted) => &[golden!("task_started"), golden!("task_started_sandbox")],
            Self::Event(EventKind::TaskProgress) => &[golden!("task_progress")],
            Self::Event(EventKind::TaskRetrying) => &[golden!("task_retrying")],
            Self::Event(EventKind::TaskReleased) => &[golden!("task_released")],
            Self::Event(EventKind::TaskCompleted) => &[golden!("task_completed")],
            Self::Event(EventKind::TaskFailed) => &[golden!("task_failed")],
            Self::LogChunk => &[golden!("log_chunk_text"), golden!("log_chunk_bytes"), golden!("log_chunk_last")],
            Self::Cancel => &[CANCEL],
            Self::WorkerRequest => &[DRAIN],
            Self::WorkerAnswer | Self::DeadLetter | Self::Presence => &[],
        }
    }
}

/// The encodings with what they add to a message's name.
#[derive(Clone, Copy)]
struct EncodingOf(Encoding, &'static str);

impl EncodingOf {
    const BOTH: [Self; 2] = [Self(Encoding::Json, ""), Self(Encoding::Msgpack, "Msgpack")];

    fn name(self, base: &str) -> String {
        format!("{base}{}", self.1)
    }
}

fn what(kind: EventKind) -> &'static str {
    match kind {
        EventKind::TaskStarted => "An attempt was claimed; the stream sequence of this event is its fencing token.",
        EventKind::TaskProgress => "The task said something about its progress; in between the newest counts.",
        EventKind::TaskRetrying => "The attempt failed and another follows, not before `retry.not_before`.",
        EventKind::TaskReleased => "The worker gave the task back unfinished; the attempt does not count.",
        EventKind::TaskCompleted => "The end: it worked.",
        EventKind::TaskFailed => "The end: it did not; `outcome` and `reason` say why.",
    }
}

/// What an event of that kind always has beyond what every event has.
fn always(kind: EventKind) -> &'static [&'static str] {
    match kind {
        EventKind::TaskStarted => &["run"],
        EventKind::TaskProgress | EventKind::TaskReleased => &[],
        EventKind::TaskRetrying => &["run", "outcome", "reason", "phase", "retry"],
        EventKind::TaskCompleted => &["run", "status", "outcome", "reason", "phase", "exit_code", "usage", "logs", "retry"],
        EventKind::TaskFailed => &["status", "outcome", "reason", "phase", "error", "retry"],
    }
}

/// `task_started` as `taskStarted` or `TaskStarted`.
fn camel(text: &str, capital: bool) -> String {
    let mut raise = capital;
    text.chars()
        .filter_map(|c| match c {
            '_' => {
                raise = true;
                None
            }
            c if std::mem::take(&mut raise) => Some(c.to_ascii_uppercase()),
            c => Some(c),
        })
        .collect()
}

/// The document's `components.messages`.
pub(super) fn all() -> Value {
    let others =
        [Kind::Assignment, Kind::LogChunk, Kind::Cancel, Kind::WorkerRequest, Kind::WorkerAnswer, Kind::DeadLetter, Kind::Presence];
    let kinds = others.into_iter().chain(EventKind::ALL.map(Kind::Event));
    kinds.flat_map(|kind| kind.names().into_iter().map(move |name| (name.clone(), message(kind, name)))).collect::<Map<_, _>>().into()
}

fn message(kind: Kind, name: String) -> Value {
    let encoding = if name.ends_with("Msgpack") { Encoding::Msgpack } else { Encoding::Json };
    let ((title, summary), (headers, payload)) = (kind.title(), kind.schemas());
    let mut message = json!({
        "title": title,
        "summary": summary,
        "name": name,
        "payload": {"$ref": format!("#/components/schemas/{payload}")},
    });
    if kind != Kind::DeadLetter {
        message["contentType"] = encoding.content_type().into();
    }
    if let Some(headers) = headers {
        message["headers"] = json!({"$ref": format!("#/components/schemas/{headers}")});
    }
    let samples = kind.samples();
    if encoding == Encoding::Json && !samples.is_empty() {
        let sample =
            |(name, text): &(&str, &str)| json!({"name": name, "payload": serde_json::from_str::<Value>(text).unwrap_or_default()});
        message["examples"] = samples.iter().map(sample).collect();
    }
    message
}

/// The document's `components.schemas`: those of the types, of the kinds of events, and of headers.
pub(super) fn schemas() -> Value {
    let settings = SchemaSettings::draft07().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut generator = settings.into_generator();
    let _ = generator.subschema_for::<Assignment>();
    let _ = generator.subschema_for::<Event>();
    let _ = generator.subschema_for::<LogChunk>();
    let _ = generator.subschema_for::<CancelRequest>();
    let _ = generator.subschema_for::<WorkerRequest>();
    let _ = generator.subschema_for::<WorkerAnswer>();
    let _ = generator.subschema_for::<Presence>();
    let mut schemas = generator.take_definitions(true);
    for (name, file) in [("Assignment", "assignment"), ("Event", "event"), ("LogChunk", "log_chunk")] {
        // The same, in the newer dialect and in a file of its own.
        schemas[name]["x-json-schema"] = uri(file).into();
    }
    schemas.extend(EventKind::ALL.map(|kind| (camel(kind.as_str(), true), event_schema(kind))));
    schemas.extend(headers().into_iter().map(|(name, schema)| (name.to_owned(), schema)));
    schemas.insert("Anything".to_owned(), json!({"description": "Bytes; nobody vouches for what is in them."}));
    schemas.into()
}

fn event_schema(kind: EventKind) -> Value {
    json!({
        "description": what(kind),
        "allOf": [
            {"$ref": "#/components/schemas/Event"},
            {"type": "object", "properties": {"event": {"const": kind.as_str()}}, "required": always(kind)},
        ],
    })
}

fn headers() -> [(&'static str, Value); 5] {
    let texts = |about: &[(&str, &str)], required: &[&str]| {
        let properties: Map<_, _> =
            about.iter().map(|(name, text)| ((*name).to_owned(), json!({"type": "string", "description": text}))).collect();
        json!({"type": "object", "properties": properties, "required": required})
    };
    let media = json!({"type": "string", "enum": EncodingOf::BOTH.map(|e| e.0.content_type()), "description": "How the body is written"});
    let with_media = |mut schema: Value| {
        schema["properties"]["Content-Type"] = media.clone();
        schema
    };
    let number = json!({"type": "string", "pattern": "^[0-9]+$"});
    let mut dead = texts(&DEAD, &["Nats-Msg-Id", "Windlass-Reason", "Windlass-Error", "Windlass-Subject", "Windlass-Worker"]);
    for name in ["Windlass-Sequence", "Windlass-Deliveries", "Windlass-Payload-Bytes"] {
        dead["properties"][name]["pattern"] = number["pattern"].clone();
    }
    [
        ("AssignmentHeaders", with_media(texts(&[("traceparent", "W3C trace context; handed on to the task as TRACEPARENT")], &[]))),
        ("EventHeaders", with_media(event_headers())),
        (
            "LogChunkHeaders",
            with_media(texts(&[("Nats-Msg-Id", "<task_id>.<attempt>.<fence>.log.<seq>")], &["Nats-Msg-Id", "Content-Type"])),
        ),
        ("RequestHeaders", with_media(texts(&[], &[]))),
        ("DeadLetterHeaders", dead),
    ]
}

/// CloudEvents 1.0 in binary mode, and the fence of the append.
fn event_headers() -> Value {
    let types = EventKind::ALL.map(|kind| format!("dev.windlass.{kind}.v1"));
    json!({
        "type": "object",
        "required": ["ce-specversion", "ce-id", "ce-source", "ce-type", "ce-subject", "ce-time", "ce-datacontenttype", "ce-dataschema",
            "Content-Type", EXPECTED, EXPECTED_SUBJECT],
        "properties": {
            "ce-specversion": {"const": "1.0"},
            "ce-id": {"type": "string", "description": "The event's id, as in the body"},
            "ce-source": {"type": "string", "pattern": "^/windlass/workers/", "description": "/windlass/workers/<worker_id>/<instance>"},
            "ce-type": {"type": "string", "enum": types},
            "ce-subject": {"type": "string", "description": "The task's id"},
            "ce-time": {"type": "string", "format": "date-time"},
            "ce-datacontenttype": {"type": "string", "description": "As Content-Type"},
            "ce-dataschema": {"const": uri("event")},
            EXPECTED: {"type": "string", "pattern": "^[0-9]+$", "description": "Stream sequence of the chain's last event, 0 for none: the server stores this event only after that one"},
            EXPECTED_SUBJECT: {"type": "string", "description": "The whole chain: windlass.events.<tenant>.<task_id>.*"},
        },
    })
}

const DEAD: [(&str, &str); 13] = [
    ("Nats-Msg-Id", "The same for every copy of one letter"),
    ("Content-Type", "As it was published, if it had one"),
    ("Windlass-Reason", "As in task_failed"),
    ("Windlass-Error", "One line for people"),
    ("Windlass-Subject", "Where it was published"),
    ("Windlass-Task-Id", "Token of that subject"),
    ("Windlass-Tenant", "Token of that subject"),
    ("Windlass-Class", "Token of that subject"),
    ("Windlass-Sequence", "Its sequence in the queue"),
    ("Windlass-Deliveries", "How often it was handed out"),
    ("Windlass-Worker", "Who gave up on it"),
    ("Windlass-Payload-Bytes", "Size of a payload that had to be cut; such a letter cannot be queued again"),
    ("Windlass-Payload-Sha256", "SHA-256 of a payload that had to be cut"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_put_together() {
        assert_eq!(camel("task_started", false), "taskStarted");
        assert_eq!(Kind::Event(EventKind::TaskFailed).names(), ["taskFailed", "taskFailedMsgpack"]);
        assert_eq!(Kind::Event(EventKind::TaskFailed).schemas().1, "TaskFailed");
    }
}
