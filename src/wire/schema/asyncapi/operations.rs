//! Operations, from four points of view: who publishes tasks, who reads what happened, who runs them, who looks after them.

use serde_json::{Map, Value, json};

/// Tags of the document: the points of view.
pub(super) fn views() -> Value {
    json!([
        {"name": "orchestrator", "description": "Publishes tasks, cancels them, waits for their ends"},
        {"name": "consumer", "description": "Reads events and output: pipelines, audit"},
        {"name": "worker", "description": "Takes tasks and says what became of them"},
        {"name": "operator", "description": "Looks after the fleet"},
    ])
}

/// `(name, view, action, channel, summary, how JetStream is used)`
type Row = (&'static str, &'static str, &'static str, &'static str, &'static str, &'static str);

const OPERATIONS: [Row; 13] = [
    (
        "submitTask",
        "orchestrator",
        "send",
        "tasks",
        "Queue a task",
        "A request: the reply {stream, seq} says that it is stored; {error: {err_code: 10077}} that a task with this id is queued or running; \
         no responders that no stream takes the subject.",
    ),
    (
        "cancelTask",
        "orchestrator",
        "send",
        "control",
        "Ask for a task to be canceled",
        "A request whose reply says that it is stored. Then follow the task: another end may have been faster.",
    ),
    (
        "followTask",
        "orchestrator",
        "receive",
        "events",
        "Follow one task to its end",
        "An ordered consumer on windlass.events.<tenant>.<task_id>.* from the first message; the last message of that filter is enough to \
         know the state.",
    ),
    (
        "readOutput",
        "orchestrator",
        "receive",
        "logs",
        "Read the output of a task, and prove that it is whole",
        "An ordered consumer on `logs.subject` of the event that ended the attempt; keep the chunks with its fence, sort by seq, compare \
         with the manifest. When nothing is pending and a chunk is missing, it is lost.",
    ),
    (
        "consumeEvents",
        "consumer",
        "receive",
        "events",
        "Take every event, across restarts",
        "A durable pull consumer of one's own on windlass.events.*.*.*; acknowledge what is dealt with. An event may come again: its id is \
         the key.",
    ),
    (
        "consumeOutput",
        "consumer",
        "receive",
        "logs",
        "Take output as it comes",
        "A consumer of one's own, or a plain subscription: a chunk is published at 64 KiB or after 100 ms.",
    ),
    (
        "takeTask",
        "worker",
        "receive",
        "tasks",
        "Pull tasks of one class and priority",
        "One-shot pulls of the durable consumer <class>-<priority>, as many as there is capacity for; renewed five times per ack_wait; \
         acknowledged only when the end of the chain is stored.",
    ),
    (
        "appendEvent",
        "worker",
        "send",
        "events",
        "Append to a task's chain",
        "A request with the expected sequence of the whole chain. Errors 10071 and 10164: the chain moved on, or this very event is stored \
         already; its last event says which. No Nats-Msg-Id.",
    ),
    ("publishOutput", "worker", "send", "logs", "Publish a chunk", "A request, repeated with the same Nats-Msg-Id until it is confirmed."),
    (
        "hearCancel",
        "worker",
        "receive",
        "control",
        "Hear cancel requests",
        "A plain subscription to all of them, and the stored one of each task that is taken.",
    ),
    ("buryTask", "worker", "send", "deadLetters", "Keep what is no task", "A request, confirmed before the message leaves the queue."),
    ("announce", "worker", "send", "presence", "Say that it lives", "A request; nothing depends on it."),
    (
        "readDeadLetters",
        "operator",
        "receive",
        "deadLetters",
        "Look at dead letters",
        "A consumer of one's own; letters are kept for their time, reading removes nothing.",
    ),
];

/// The document's `operations`.
pub(super) fn all() -> Value {
    let one = |(name, view, action, channel, summary, how): &Row| {
        let operation = json!({
            "action": action,
            "channel": {"$ref": format!("#/channels/{channel}")},
            "summary": summary,
            "tags": [{"name": view}],
            "x-jetstream": {"how": how},
        });
        ((*name).to_owned(), operation)
    };
    OPERATIONS.iter().map(one).collect::<Map<_, _>>().into()
}
