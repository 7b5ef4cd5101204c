"""An orchestrator that knows docs/protocol.md and nothing else: publishes tasks, follows their events, reads their
output, and checks for itself that the history is whole and that no byte is missing.

    python3 orchestrator.py nats://127.0.0.1:4222 windlass
"""

import asyncio
import base64
import hashlib
import json
import sys
import uuid

import msgpack
import nats
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

TERMINAL = ("task_completed", "task_failed")
JSON, MSGPACK = "application/json", "application/vnd.msgpack"


def encode(value, media_type):
    return json.dumps(value).encode() if media_type == JSON else msgpack.packb(value)


def decode(message):
    if message.headers["Content-Type"] == JSON:
        return json.loads(message.data)
    return msgpack.unpackb(message.data)


async def submit(js, prefix, execution, media_type, priority="normal", **more):
    task_id = "py-" + uuid.uuid4().hex[:12]
    body = {"v": 1, "task_id": task_id, "execution": execution, **more}
    subject = f"{prefix}.tasks.cpu_short.{priority}.acme.{task_id}"
    await js.publish(subject, encode(body, media_type), headers={"Content-Type": media_type})
    return task_id


async def history(js, prefix, task_id):
    """The task's events in order, up to and including its end."""
    events = await js.subscribe(
        f"{prefix}.events.acme.{task_id}.*",
        stream=f"{prefix.upper()}_EVENTS",
        ordered_consumer=True,
        config=ConsumerConfig(deliver_policy=DeliverPolicy.ALL, ack_policy=AckPolicy.NONE),
    )
    chain = []
    while not chain or decode(chain[-1])["event"] not in TERMINAL:
        chain.append(await events.next_msg(timeout=45))
    await events.unsubscribe()
    return chain


def check_chain(chain, task_id):
    """Contiguous, linked by digests, one end; the claim's stream sequence is the fence of what follows."""
    previous, attempt, fence = None, 0, None
    for place, message in enumerate(chain):
        event = decode(message)
        assert event["v"] == 1 and event["seq"] == place, f"event {place} says {event['seq']}"
        assert event["prev_sha256"] == previous, f"event {place}: broken link"
        previous = hashlib.sha256(message.data).hexdigest()
        assert message.subject.endswith(f".{task_id}.{event['event']}"), message.subject
        headers = message.headers
        assert headers["ce-specversion"] == "1.0" and headers["ce-id"] == event["id"]
        assert headers["ce-type"] == f"dev.windlass.{event['event']}.v1"
        assert headers["ce-datacontenttype"] == headers["Content-Type"]
        if event["event"] == "task_started":
            attempt, fence = attempt + 1, message.metadata.sequence.stream
        assert event["task"]["attempt"] == attempt
        assert (event["event"] in TERMINAL) == (place == len(chain) - 1)
    return decode(chain[-1]), fence


async def output(js, prefix, end, fence):
    """Every chunk that the manifest promises, checked against it; the bytes by stream."""
    manifest = end["logs"]
    assert manifest["fence"] == fence, "the manifest is of another attempt"
    data = {"stdout": b"", "stderr": b""}
    if manifest["chunks"] == 0:
        return data
    chunks = await js.subscribe(
        manifest["subject"],
        stream=f"{prefix.upper()}_LOGS",
        ordered_consumer=True,
        config=ConsumerConfig(deliver_policy=DeliverPolicy.ALL, ack_policy=AckPolicy.NONE),
    )
    count = {"stdout": 0, "stderr": 0}
    for number in range(manifest["chunks"]):
        while True:
            chunk = decode(await chunks.next_msg(timeout=10))
            if chunk["fence"] == fence:
                break
        stream, piece = chunk["stream"], chunk["data"]
        if chunk["encoding"] == "utf8":
            piece = piece.encode()
        elif chunk["encoding"] == "base64":
            piece = base64.b64decode(piece, validate=True)
        assert chunk["seq"] == number, f"chunk {chunk['seq']} where {number} belongs"
        assert chunk["offset"] == len(data[stream]) and chunk["len"] == len(piece)
        assert chunk["eof"] == (number == manifest["chunks"] - 1)
        data[stream] += piece
        count[stream] += 1
    await chunks.unsubscribe()
    for stream, promised in ((s, manifest[s]) for s in data):
        assert promised["bytes"] == len(data[stream]) and promised["chunks"] == count[stream]
        assert promised["sha256"] == hashlib.sha256(data[stream]).hexdigest(), f"{stream}: another digest"
    return data


async def main(url, prefix):
    client = await nats.connect(url, connect_timeout=5)
    js = client.jetstream()
    bash = lambda script: {"runtime": "bash", "script": script}
    retry = {"max_attempts": 2, "on": ["failure"], "backoff": {"initial_ms": 100, "factor": 1.0, "max_ms": 100}}
    every_byte = bytes(range(256)) * 700
    script = "for n in $(seq 0 255); do printf \"\\\\$(printf %03o $n)\"; done > all; for i in $(seq 700); do cat all; done"
    expected = [
        # execution, more, media type, reason, stdout, stderr
        ({"runtime": "native", "command": ["/bin/true"]}, {}, JSON, "ok", b"", b""),
        ({"runtime": "native", "command": ["/bin/true"]}, {}, MSGPACK, "ok", b"", b""),
        (bash(script), {}, JSON, "ok", every_byte, b""),
        (bash(script + " >&2"), {}, MSGPACK, "ok", None, None),
        (bash("echo out; echo err >&2; exit 3"), {}, JSON, "exit_nonzero", b"out\n", b"err\n"),
        (bash("echo $WINDLASS_ATTEMPT; [ $WINDLASS_ATTEMPT = 2 ]"), {"retry": retry}, MSGPACK, "ok", b"2\n", b""),
        ({**bash("echo before; sleep 1000"), "timeout_s": 0.5, "grace_s": 0}, {}, JSON, "timeout", b"before\n", b""),
        (bash('echo \'{"metrics": {"tokens": 5}}\' > "$WINDLASS_RESULT"'), {"context": {"a": 1}}, MSGPACK, "ok", b"", b""),
    ]
    ids = [await submit(js, prefix, execution, media, **more) for execution, more, media, *_ in expected]
    for task_id, (_, more, _, reason, stdout, stderr) in zip(ids, expected):
        end, fence = check_chain(await history(js, prefix, task_id), task_id)
        assert end["reason"] == reason, f"{task_id}: {end['reason']}, not {reason}: {end.get('error')}"
        data = await output(js, prefix, end, fence)
        assert stdout is None or data["stdout"] == stdout, f"{task_id}: {data['stdout'][:80]!r}"
        assert stderr is None or data["stderr"] == stderr, f"{task_id}: {data['stderr'][:80]!r}"
        assert end["task"]["context"] == more.get("context")
    assert end["result"]["metrics"] == {"tokens": 5}
    print(f"verified {len(ids)} tasks")
    await client.close()


asyncio.run(main(*sys.argv[1:3]))
