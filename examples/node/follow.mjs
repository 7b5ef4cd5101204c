// Publishes a task, follows its events to the end, and proves that history and output are whole.
//
//     node follow.mjs 'echo hello'            a bash script
//     node follow.mjs --verify TASK_ID        a task that somebody else published
//
// Ends with 0 when the task worked, 1 when it did not, 7 when what is stored is not what was promised.
// NATS_URL, WINDLASS_PREFIX and WINDLASS_TENANT say where. Needs: npm ci
import { createHash, randomUUID } from "node:crypto";
import { decode as unpack } from "@msgpack/msgpack";
import { jetstream } from "@nats-io/jetstream";
import { connect, headers } from "@nats-io/transport-node";

const prefix = process.env.WINDLASS_PREFIX ?? "windlass";
const tenant = process.env.WINDLASS_TENANT ?? "default";
const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");

class VerificationFailed extends Error {}
const require = (condition, what) => {
  if (!condition) throw new VerificationFailed(what);
};

const decode = (message) => (message.headers.get("Content-Type") === "application/json" ? message.json() : unpack(message.data));

async function publish(js, script) {
  const id = randomUUID();
  const task = { task_id: id, execution: { runtime: "bash", script, timeout_s: 60 } };
  const named = headers();
  named.set("Content-Type", "application/json");
  await js.publish(`${prefix}.tasks.cpu_short.normal.${tenant}.${id}`, JSON.stringify(task), { headers: named });
  console.log("queued", id);
  return id;
}

/** The event that ends the task, after its whole chain was checked link by link. */
async function follow(js, id) {
  const events = await js.consumers.get(`${prefix.toUpperCase()}_EVENTS`, { filter_subjects: `${prefix}.events.${tenant}.${id}.*` });
  let [seq, digest, fence] = [0, null, null];
  for await (const message of await events.consume()) {
    const event = decode(message);
    console.log(event.time, event.event, event.reason ?? "");
    require(event.seq === seq, `event ${event.seq} where ${seq} belongs`);
    require(event.prev_sha256 === digest, `event ${seq} does not follow the one before it`);
    [seq, digest] = [seq + 1, sha256(message.data)];
    if (event.event === "task_started") fence = message.seq;
    if (event.event === "task_completed" || event.event === "task_failed") return { end: event, fence };
  }
}

/** The chunks that count, by number; repetitions and those of lost attempts are left out. */
async function chunksOf(js, manifest) {
  const found = new Map();
  if (manifest.chunks === 0) return found;
  const chunks = await js.consumers.get(`${prefix.toUpperCase()}_LOGS`, { filter_subjects: manifest.subject });
  for (;;) {
    let pending; // stays undefined when there are none at all
    for await (const message of await chunks.fetch({ max_messages: 100, expires: 5000 })) {
      const chunk = decode(message);
      if (chunk.fence === manifest.fence) found.set(chunk.seq, chunk);
      pending = message.info.pending;
      // All were stored before the end was: what is missing then is lost.
      if (pending === 0) break;
    }
    if (!pending) return found;
  }
}

async function output(js, manifest, fence) {
  require(manifest.fence === fence, "the manifest is of another attempt");
  const found = await chunksOf(js, manifest);
  const streams = { stdout: [], stderr: [], system: [] };
  const ends = { stdout: 0, stderr: 0, system: 0 };
  for (let seq = 0; seq < manifest.chunks; seq++) {
    const chunk = found.get(seq);
    require(chunk, `chunk ${seq} of ${manifest.chunks} is missing`);
    require(chunk.offset === ends[chunk.stream], `chunk ${seq} is not where the one before it ends`);
    require(chunk.eof === (seq === manifest.chunks - 1), `chunk ${seq}: eof is ${chunk.eof}`);
    const bytes = chunk.encoding === "bin" ? chunk.data : Buffer.from(chunk.data, chunk.encoding);
    streams[chunk.stream].push(bytes);
    ends[chunk.stream] += bytes.length;
  }
  for (const [name, pieces] of Object.entries(streams)) {
    const promised = manifest[name] ?? { bytes: 0, sha256: sha256("") };
    require(promised.bytes === ends[name], `${name} has ${ends[name]} bytes, promised are ${promised.bytes}`);
    require(promised.sha256 === sha256(Buffer.concat(pieces)), `${name} has another SHA-256 than promised`);
  }
  return ends;
}

async function main(first, second) {
  const nc = await connect({ servers: process.env.NATS_URL ?? "nats://127.0.0.1:4222" });
  try {
    const js = jetstream(nc);
    const { end, fence } = await follow(js, first === "--verify" ? second : await publish(js, first));
    const bytes = end.logs ? await output(js, end.logs, fence) : { stdout: 0, stderr: 0 };
    console.log(`verified: stdout ${bytes.stdout} bytes, stderr ${bytes.stderr} bytes`);
    if (end.result) console.log("result:", JSON.stringify(end.result.value));
    return end.event === "task_completed" ? 0 : 1;
  } catch (error) {
    if (!(error instanceof VerificationFailed)) throw error;
    console.error("verification failed:", error.message);
    return 7;
  } finally {
    await nc.close();
  }
}

if (process.argv.length < 3) throw new Error("usage: node follow.mjs SCRIPT | --verify TASK_ID");
process.exitCode = await main(process.argv[2], process.argv[3]);
