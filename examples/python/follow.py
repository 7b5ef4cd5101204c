"""Publishes a task, follows its events to the end, and proves that history and output are whole.

    python follow.py 'echo hello'            a bash script
    python follow.py --verify TASK_ID        a task that somebody else published

Ends with 0 when the task worked, 1 when it did not, 7 when what is stored is not what was promised.
NATS_URL, WINDLASS_PREFIX and WINDLASS_TENANT say where. Needs: pip install nats-py msgpack
"""

import asyncio
import base64
import hashlib
import json
import os
import sys
import uuid

import msgpack
import nats

PREFIX = os.environ.get("WINDLASS_PREFIX", "windlass")
TENANT = os.environ.get("WINDLASS_TENANT", "default")
ENDS = ("task_completed", "task_failed")
NOTHING = {"bytes": 0, "sha256": hashlib.sha256().hexdigest()}


class VerificationFailed(Exception):
    """What is stored is not what was promised."""


def require(condition, what):
    if not condition:
        raise VerificationFailed(what)


def decode(message):
    return json.loads(message.data) if message.headers["Content-Type"] == "application/json" else msgpack.unpackb(message.data)


async def publish(js, script):
    task_id = str(uuid.uuid4())
    task = json.dumps({"task_id": task_id, "execution": {"runtime": "bash", "script": script, "timeout_s": 60}})
    await js.publish(f"{PREFIX}.tasks.cpu_short.normal.{TENANT}.{task_id}", task.encode(), headers={"Content-Type": "application/json"})
    print("queued", task_id)
    return task_id


async def follow(js, task_id):
    """The event that ends the task, after its whole chain was checked link by link."""
    events = await js.subscribe(f"{PREFIX}.events.{TENANT}.{task_id}.*", stream=f"{PREFIX.upper()}_EVENTS", ordered_consumer=True)
    seq, digest, fence = 0, None, None
    async for message in events.messages:
        event = decode(message)
        print(f"{event['time']} {event['event']} {event.get('reason', '')}".rstrip())
        require(event["seq"] == seq, f"event {event['seq']} where {seq} belongs")
        require(event["prev_sha256"] == digest, f"event {seq} does not follow the one before it")
        seq, digest = seq + 1, hashlib.sha256(message.data).hexdigest()
        if event["event"] == "task_started":
            fence = message.metadata.sequence.stream
        if event["event"] in ENDS:
            return event, fence


async def chunks_of(js, manifest):
    """The chunks that count, by number; repetitions and those of lost attempts are left out."""
    if manifest["chunks"] == 0:
        return {}
    found = {}
    chunks = await js.subscribe(manifest["subject"], stream=f"{PREFIX.upper()}_LOGS", ordered_consumer=True)
    while len(found) < manifest["chunks"]:
        try:
            message = await chunks.next_msg(timeout=5)
        except nats.errors.TimeoutError:  # there are none at all
            break
        chunk = decode(message)
        if chunk["fence"] == manifest["fence"]:
            found[chunk["seq"]] = chunk
        if message.metadata.num_pending == 0:  # all were stored before the end was: what is missing then is lost
            break
    return found


async def output(js, manifest, fence):
    require(manifest["fence"] == fence, "the manifest is of another attempt")
    found = await chunks_of(js, manifest)
    streams = {"stdout": b"", "stderr": b"", "system": b""}
    for seq in range(manifest["chunks"]):
        require(seq in found, f"chunk {seq} of {manifest['chunks']} is missing")
        chunk = found[seq]
        require(chunk["offset"] == len(streams[chunk["stream"]]), f"chunk {seq} is not where the one before it ends")
        require(chunk["eof"] == (seq == manifest["chunks"] - 1), f"chunk {seq}: eof is {chunk['eof']}")
        data, encoding = chunk["data"], chunk["encoding"]
        streams[chunk["stream"]] += base64.b64decode(data) if encoding == "base64" else data.encode() if encoding == "utf8" else data
    for name, data in streams.items():
        promised = manifest.get(name, NOTHING)
        require(promised["bytes"] == len(data), f"{name} has {len(data)} bytes, promised are {promised['bytes']}")
        require(promised["sha256"] == hashlib.sha256(data).hexdigest(), f"{name} has another SHA-256 than promised")
    return streams


async def main(arguments):
    nc = await nats.connect(os.environ.get("NATS_URL", "nats://127.0.0.1:4222"))
    try:
        js = nc.jetstream()
        task_id = arguments[1] if arguments[0] == "--verify" else await publish(js, arguments[0])
        end, fence = await follow(js, task_id)
        streams = await output(js, end["logs"], fence) if "logs" in end else {"stdout": b"", "stderr": b""}
        print("verified:", ", ".join(f"{name} {len(streams[name])} bytes" for name in ("stdout", "stderr")))
        if "result" in end:
            print("result:", json.dumps(end["result"]["value"]))
        return 0 if end["event"] == "task_completed" else 1
    except VerificationFailed as error:
        print("verification failed:", error, file=sys.stderr)
        return 7
    finally:
        await nc.close()


sys.exit(asyncio.run(main(sys.argv[1:])) if len(sys.argv) > 1 else __doc__)
