//! Channels: each subject with its parameters, and what JetStream does with it.

use serde_json::{Map, Value, json};

use super::messages::Kind;
use crate::bus::provision::Described;
use crate::task::log_chunk::LogStream;
use crate::task::{EventKind, Priority};

/// One subject of the contract.
pub(super) struct Channel {
    /// Key in the document.
    pub name: &'static str,
    /// The subject, with its parameters in braces.
    pub address: &'static str,
    title: &'static str,
    description: &'static str,
    /// End of the name of the stream that stores it.
    stream: Option<&'static str>,
    messages: &'static [Kind],
}

const CHANNELS: [Channel; 7] = [
    Channel {
        name: "tasks",
        address: "windlass.tasks.{class}.{priority}.{tenant}.{task_id}",
        title: "The queue",
        description: "One message is one task. A second message on the same subject is refused while the first is queued or running \
            (error 10077, maximum messages per subject exceeded).",
        stream: Some("_TASKS"),
        messages: &[Kind::Assignment],
    },
    Channel {
        name: "events",
        address: "windlass.events.{tenant}.{task_id}.{event}",
        title: "One chain of events per task",
        description: "Appended by compare-and-set on the whole chain, windlass.events.<tenant>.<task_id>.*: a linear history, and exactly \
            one task_completed or task_failed ends it.",
        stream: Some("_EVENTS"),
        messages: &[
            Kind::Event(EventKind::TaskStarted),
            Kind::Event(EventKind::TaskProgress),
            Kind::Event(EventKind::TaskRetrying),
            Kind::Event(EventKind::TaskReleased),
            Kind::Event(EventKind::TaskCompleted),
            Kind::Event(EventKind::TaskFailed),
        ],
    },
    Channel {
        name: "logs",
        address: "windlass.logs.{tenant}.{task_id}.{attempt}.{stream}",
        title: "Output in numbered chunks",
        description: "The event that ends an attempt says in `logs` which chunks count (those with its `fence`), how many, and the SHA-256 \
            of each stream. All of them are stored before that event is. A chunk may be there twice.",
        stream: Some("_LOGS"),
        messages: &[Kind::LogChunk],
    },
    Channel {
        name: "control",
        address: "windlass.control.{tenant}.{task_id}",
        title: "Cancel requests",
        description: "Stored, the last one per task, so that a request also holds for a task that is still queued; heard live by every worker.",
        stream: Some("_CONTROL"),
        messages: &[Kind::Cancel],
    },
    Channel {
        name: "controlWorkers",
        address: "windlass.control-workers.{worker_id}",
        title: "Requests to one worker",
        description: "Request and reply of core NATS, stored nowhere: nobody answers for a worker that is not connected, and each process of \
            a name answers for itself.",
        stream: None,
        messages: &[Kind::WorkerRequest],
    },
    Channel {
        name: "deadLetters",
        address: "windlass.dead.{class}.{tenant}",
        title: "Dead letters",
        description: "What is no task or never came to an end: the payload as it was published, byte for byte, and the evidence in headers. \
            A token that is none is `_` in the subject.",
        stream: Some("_DEAD"),
        messages: &[Kind::DeadLetter],
    },
    Channel {
        name: "presence",
        address: "$KV.WINDLASS_WORKERS.{worker_id}",
        title: "Presence of workers",
        description: "A key-value bucket, for people and never for correctness: written every few seconds, gone soon after. A worker that \
            ends removes it (KV-Operation: DEL). Keys that begin with `_` are no workers.",
        stream: Some("_WORKERS"),
        messages: &[Kind::Presence],
    },
];

/// What each parameter is. Tokens have no dots, so that no name can add a level or a wildcard.
fn parameter(name: &str) -> Value {
    let token = |what: &str| json!({"description": format!("{what}, [A-Za-z0-9_-]{{1,64}}")});
    match name {
        "class" => token("Class of the task: its queue, its defaults and its ceilings"),
        "tenant" => token("Whose task it is"),
        "task_id" => token("The task's name for ever; an id is used up by its first task"),
        "worker_id" => token("Stable name of a worker"),
        "priority" => {
            json!({"description": "Each priority is a queue of its own", "enum": Priority::ALL.map(Priority::as_str), "default": "normal"})
        }
        "event" => json!({"description": "What happened", "enum": EventKind::ALL.map(EventKind::as_str)}),
        "attempt" => json!({"description": "Attempt, a decimal number from 1", "examples": ["1"]}),
        "stream" => {
            json!({"description": "Which output; system is the worker's own notices about it", "enum": LogStream::ALL.map(LogStream::as_str)})
        }
        other => json!({"description": format!("not described: {other}")}),
    }
}

fn parameters(address: &str) -> Map<String, Value> {
    let names = address.split('.').filter_map(|token| token.strip_prefix('{')?.strip_suffix('}'));
    names.map(|name| (name.to_owned(), parameter(name))).collect()
}

/// The document's `channels`.
pub(super) fn all(facts: &Described) -> Value {
    let mut channels: Map<_, _> = CHANNELS.iter().map(|channel| (channel.name.to_owned(), one(channel, facts))).collect();
    channels.insert("workerAnswers".to_owned(), answers());
    channels.into()
}

/// Where answers go is said by each request.
fn answers() -> Value {
    json!({
        "title": "Answers of workers",
        "address": null,
        "description": "The reply subject of the request.",
        "messages": references(&[Kind::WorkerAnswer]),
        "x-jetstream": {"stored": false},
    })
}

fn references(kinds: &[Kind]) -> Map<String, Value> {
    let names = kinds.iter().flat_map(|kind| kind.names());
    names.map(|name| (name.clone(), json!({"$ref": format!("#/components/messages/{name}")}))).collect()
}

fn one(channel: &Channel, facts: &Described) -> Value {
    json!({
        "title": channel.title,
        "address": channel.address,
        "description": channel.description,
        "parameters": parameters(channel.address),
        "messages": references(channel.messages),
        "x-jetstream": jetstream(channel, facts),
    })
}

/// Without what is not set.
fn set(mut configuration: Value) -> Value {
    if let Some(keys) = configuration.as_object_mut() {
        keys.retain(|_, value| !value.is_null() && *value != 0);
    }
    configuration
}

/// The configuration of the stream and of its consumers as JetStream's API takes it.
fn jetstream(channel: &Channel, facts: &Described) -> Value {
    let stream = channel.stream.and_then(|end| facts.streams.iter().find(|s| s["name"].as_str().is_some_and(|n| n.ends_with(end))));
    let Some(stream) = stream else { return json!({"stored": false}) };
    let note =
        "As JetStream's API takes it, times in nanoseconds. Ages, sizes and replicas are the operator's choice; these are the defaults.";
    let mut described = json!({"stored": true, "note": note, "stream": set(stream.clone())});
    if channel.name == "tasks" {
        let example = facts.consumers.first().cloned().map(set);
        described["consumers"] = json!({"durable_name": "<class>-<priority>, one each", "for_example": example});
    }
    described
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::Subjects;
    use crate::task::{ClassName, TaskId, Tenant, WorkerId};

    #[test]
    fn addresses_are_the_subjects_that_are_used() {
        let subjects = Subjects::new(&Tenant::new("windlass").unwrap());
        let (class, tenant, id) = (ClassName::new("c").unwrap(), Tenant::new("t").unwrap(), TaskId::new("i").unwrap());
        let used = [
            ("tasks", subjects.task(&class, Priority::High, &tenant, &id)),
            ("events", subjects.event(&tenant, &id, EventKind::TaskFailed)),
            ("logs", format!("{}.stderr", subjects.log_base(&tenant, &id, 7))),
            ("control", subjects.control(&tenant, &id)),
            ("controlWorkers", subjects.control_worker(&WorkerId::new("w").unwrap())),
            ("deadLetters", subjects.dead("c", "t")),
            ("presence", subjects.worker_key("w")),
        ];
        for (name, subject) in used {
            let address = CHANNELS.iter().find(|c| c.name == name).unwrap().address;
            let filled = [
                ("{class}", "c"),
                ("{priority}", "high"),
                ("{tenant}", "t"),
                ("{task_id}", "i"),
                ("{event}", "task_failed"),
                ("{attempt}", "7"),
                ("{stream}", "stderr"),
                ("{worker_id}", "w"),
            ];
            assert_eq!(filled.iter().fold(address.to_owned(), |text, (name, value)| text.replace(name, value)), subject);
        }
    }

    #[test]
    fn every_parameter_is_described_and_every_stored_channel_has_its_stream() {
        let document = super::super::document();
        let text = document.to_string();
        assert!(!text.contains("not described"), "{text}");
        for channel in &CHANNELS {
            let facts = &document["channels"][channel.name]["x-jetstream"];
            assert_eq!(facts["stored"] == true, channel.stream.is_some(), "{}", channel.name);
        }
        assert_eq!(document["channels"]["tasks"]["x-jetstream"]["stream"]["retention"], "workqueue");
        assert_eq!(document["channels"]["tasks"]["x-jetstream"]["consumers"]["for_example"]["ack_policy"], "explicit");
    }
}
