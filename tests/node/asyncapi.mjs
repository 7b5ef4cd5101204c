// What the official parser says of an AsyncAPI document: prints every complaint on stderr and ends with 1 when there is one,
// else prints the document, as it was before references were followed, as JSON.
//
//     node asyncapi.mjs ../../schemas/asyncapi.yaml
import { readFile } from "node:fs/promises";
import { Parser } from "@asyncapi/parser";
import yaml from "js-yaml";

const path = process.argv[2];
const text = await readFile(path, "utf8");
const { document, diagnostics: all } = await new Parser().parse(text, { source: path });
// 3.0 is what tools read today.
const diagnostics = all.filter(({ code }) => code !== "asyncapi-latest-version");
for (const { severity, code, path, message } of diagnostics) {
  console.error(`${["error", "warning", "information", "hint"][severity]} ${code} at ${path.join("/")}: ${message}`);
}
if (document === undefined || diagnostics.length > 0) process.exit(1);
console.log(JSON.stringify(yaml.load(text)));
