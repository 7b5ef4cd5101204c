"""Writes one line of JSON per task that ended, and goes on where it stopped the last time: a durable consumer.

    python audit.py NAME [--once]      --once: ends when there is nothing new

An event is acknowledged after its line is written, so after a crash a line may come twice (its `id` says so), and none is missed.
NATS_URL and WINDLASS_PREFIX say where. Needs: pip install nats-py msgpack
"""

import asyncio
import json
import os
import sys

import msgpack
import nats
from nats.errors import TimeoutError
from nats.js.api import AckPolicy, ConsumerConfig

PREFIX = os.environ.get("WINDLASS_PREFIX", "windlass")


def decode(message):
    return json.loads(message.data) if message.headers["Content-Type"] == "application/json" else msgpack.unpackb(message.data)


async def main(name, once):
    nc = await nats.connect(os.environ.get("NATS_URL", "nats://127.0.0.1:4222"))
    js, stream = nc.jetstream(), f"{PREFIX.upper()}_EVENTS"
    ends = [f"{PREFIX}.events.*.*.task_completed", f"{PREFIX}.events.*.*.task_failed"]
    await js.add_consumer(stream, ConsumerConfig(durable_name=name, filter_subjects=ends, ack_policy=AckPolicy.EXPLICIT))
    consumer = await js.pull_subscribe_bind(name, stream)
    while True:
        try:
            messages = await consumer.fetch(100, timeout=2)
        except TimeoutError:
            if once:
                break
            continue
        for message in messages:
            event = decode(message)
            line = {"id": event["id"], "tenant": event["task"]["tenant"], "reason": event["reason"], "time": event["time"]}
            print(json.dumps(line), flush=True)
            await message.ack_sync()
    await nc.close()


if len(sys.argv) < 2:
    sys.exit(__doc__)
asyncio.run(main(sys.argv[1], "--once" in sys.argv))
