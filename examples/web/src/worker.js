/**
 * One model in a thread of its own. Each message is a request `{ id, type, ... }`; answers carry its id:
 * `{ id, result }`, `{ id, error }`, and while text is written `{ id, event }`. `stop` has no answer.
 */
import { Decoder } from "../decoder/decoder.js";
import { explain, UserError } from "../decoder/errors.js";
import { generate } from "../decoder/generate.js";
import { GRAPH, readPackage, WEIGHTS } from "../decoder/package.js";
import { TextSide } from "../decoder/text.js";
import { Template } from "../vendor/jinja/index.js";
import { Tokenizer } from "../vendor/tokenizers/tokenizers.min.mjs";

const VENDOR = new URL("../vendor/onnxruntime-web/", import.meta.url).href;
/** The build for WebGPU could run on WebAssembly too, but 2.6 times slower than the one made for that. */
const BUILDS = { wasm: "ort.wasm.min.mjs", webgpu: "ort.webgpu.min.mjs" };

/** A text that models are used to; of any tokens, some would be hit where a model is at its most sensitive. */
const SAMPLE = "In the beginning God created the heaven and the earth. And the earth was without form, and void.";

let decoder;
let text;
let stopped = false;

async function open({ backend, files, threads }) {
  const info = await readPackage({
    size: async (name) => files.get(name)?.size ?? null,
    text: (name) => files.get(name).text(),
  });
  text = new TextSide(info, { Tokenizer, Template });
  const ort = await import(`${VENDOR}${BUILDS[backend]}`);
  ort.env.wasm.wasmPaths = VENDOR;
  ort.env.logLevel = "fatal";
  if (threads) ort.env.wasm.numThreads = threads;
  const options = {
    executionProviders: [backend],
    externalData: [{ path: WEIGHTS, data: await bytesOf(files, WEIGHTS) }],
    logSeverityLevel: 4,
  };
  // Keys and values stay on the graphics card; logits are fetched from there.
  if (backend === "webgpu") options.preferredOutputLocation = "gpu-buffer";
  const session = await ort.InferenceSession.create(await bytesOf(files, GRAPH), options);
  decoder = new Decoder(ort, session, info);
  return {
    chat: text.template !== null,
    contextLength: info.contextLength,
    sample: text.encode(SAMPLE),
    packed: info.packed,
    threads: ort.env.wasm.numThreads ?? 1,
  };
}

async function bytesOf(files, name) {
  try {
    return new Uint8Array(await files.get(name).arrayBuffer());
  } catch (error) {
    if (error.name === "NotFoundError") throw new UserError(`${name} was moved or changed; choose the folder again.`);
    throw new UserError(`${name} cannot be read: the memory may not be enough, or the file is locked.`);
  }
}

/**
 * Logits of a new sequence that is read in parts, each at once.
 * @param {{ parts: number[][] }} request token ids
 * @returns {Promise<{ rows: Float32Array[], seconds: number }>} the logits of every token, and the time of the last part
 */
async function read({ parts }) {
  decoder.reset();
  const rows = [];
  let started;
  for (const ids of parts) {
    started = performance.now();
    rows.push(...(await decoder.readAll(ids)));
  }
  const seconds = (performance.now() - started) / 1000;
  decoder.reset();
  // Rows may share a buffer, which would be copied whole for each.
  return { rows: rows.map((row) => Float32Array.from(row)), seconds };
}

async function write({ prompt, messages, options }, send) {
  stopped = false;
  const ids = messages ? text.encodeChat(messages) : text.encode(prompt);
  const aborted = async () => {
    await turn();
    return stopped;
  };
  const answer = generate(decoder, text, ids, { ...options, aborted });
  let step;
  while (!(step = await answer.next()).done) send(step.value);
  return step.value;
}

/** Lets messages in between two tokens; a timer would wait for milliseconds. */
function turn() {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}

const REQUESTS = { open, read, write };

self.onmessage = async ({ data: { id, type, ...request } }) => {
  if (type === "stop") {
    stopped = true;
    return;
  }
  try {
    self.postMessage({ id, result: await REQUESTS[type](request, (event) => self.postMessage({ id, event })) });
  } catch (error) {
    // Half a sequence may have been read.
    decoder?.reset();
    self.postMessage({ id, error: explain(error) });
  }
};
