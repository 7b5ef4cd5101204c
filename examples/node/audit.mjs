// Writes one line of JSON per task that ended, and goes on where it stopped the last time: a durable consumer.
//
//     node audit.mjs NAME [--once]      --once: ends when there is nothing new
//
// An event is acknowledged after its line is written, so after a crash a line may come twice (its `id` says so), and none is
// missed. NATS_URL and WINDLASS_PREFIX say where. Needs: npm ci
import { decode as unpack } from "@msgpack/msgpack";
import { AckPolicy, jetstream, jetstreamManager } from "@nats-io/jetstream";
import { connect } from "@nats-io/transport-node";

const prefix = process.env.WINDLASS_PREFIX ?? "windlass";
const [name, once] = process.argv.slice(2);
if (!name) throw new Error("usage: node audit.mjs NAME [--once]");

const nc = await connect({ servers: process.env.NATS_URL ?? "nats://127.0.0.1:4222" });
const stream = `${prefix.toUpperCase()}_EVENTS`;
const manager = await jetstreamManager(nc);
await manager.consumers.add(stream, {
  durable_name: name,
  filter_subjects: [`${prefix}.events.*.*.task_completed`, `${prefix}.events.*.*.task_failed`],
  ack_policy: AckPolicy.Explicit,
});
const consumer = await jetstream(nc).consumers.get(stream, name);
for (;;) {
  let taken = 0;
  for await (const message of await consumer.fetch({ max_messages: 100, expires: 2000 })) {
    const json = message.headers.get("Content-Type") === "application/json";
    const { id, task, reason, time } = json ? message.json() : unpack(message.data);
    console.log(JSON.stringify({ id, tenant: task.tenant, reason, time }));
    await message.ackAck();
    taken++;
  }
  if (taken === 0 && once === "--once") break;
}
await nc.close();
