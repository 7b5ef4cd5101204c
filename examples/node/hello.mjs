import { randomUUID } from "node:crypto";
import { jetstream } from "@nats-io/jetstream";
import { connect, headers } from "@nats-io/transport-node";

const nc = await connect({ servers: process.env.NATS_URL ?? "nats://127.0.0.1:4222" });
const js = jetstream(nc);
const prefix = process.env.WINDLASS_PREFIX ?? "windlass";
const id = randomUUID();
const task = { task_id: id, execution: { runtime: "bash", script: "echo hello from $WINDLASS_TASK_ID", timeout_s: 30 } };
const json = headers();
json.set("Content-Type", "application/json");
// class cpu_short, priority normal, tenant default
await js.publish(`${prefix}.tasks.cpu_short.normal.default.${id}`, JSON.stringify(task), { headers: json });
// Its events: a chain that ends with task_completed or task_failed.
const events = await js.consumers.get(`${prefix.toUpperCase()}_EVENTS`, { filter_subjects: `${prefix}.events.default.${id}.*` });
for await (const message of await events.consume()) {
  const event = message.json();
  console.log(event.event, event.reason ?? "");
  if (["task_completed", "task_failed"].includes(event.event)) break;
}
await nc.close();
