// Validates glTF files with the Khronos validator and prints one JSON array of reports on standard output.
//   node validate.mjs FILE...
// Exit status: 0 reports were printed (they may hold errors), 2 bad usage, 3 the validator is not installed.
import { readFile } from "node:fs/promises";

let validator;
try {
  validator = (await import("gltf-validator")).default;
} catch (error) {
  console.error(`gltf-validator cannot be loaded: ${error.message}`);
  process.exit(3);
}

const paths = process.argv.slice(2);
if (paths.length === 0) {
  console.error("usage: node validate.mjs FILE...");
  process.exit(2);
}

const reports = [];
for (const path of paths) {
  try {
    // Every issue counts, so none is muted and the number of messages is not limited.
    const report = await validator.validateBytes(new Uint8Array(await readFile(path)), { uri: path, maxIssues: 0 });
    delete report.validatedAt;
    reports.push(report);
  } catch (error) {
    // Thrown for what is no glTF at all; said in the shape of a report so that the caller has one case less.
    const message = { code: "NOT_GLTF", message: String(error), severity: 0 };
    reports.push({
      uri: path,
      issues: { numErrors: 1, numWarnings: 0, numInfos: 0, numHints: 0, messages: [message], truncated: false },
    });
  }
}
console.log(JSON.stringify(reports));
