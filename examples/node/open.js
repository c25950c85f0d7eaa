import { readFile, stat } from "node:fs/promises";
import { join } from "node:path";

import { Template } from "@huggingface/jinja";
import { Tokenizer } from "@huggingface/tokenizers";
import * as ort from "onnxruntime-node";

import { Decoder } from "../web/decoder/decoder.js";
import { UserError } from "../web/decoder/errors.js";
import { GRAPH, readPackage } from "../web/decoder/package.js";
import { TextSide } from "../web/decoder/text.js";

/**
 * Opens a package directory. onnxruntime-node cannot register operator libraries, so the function bodies in model.onnx
 * run; the weights stay on disk and are mapped.
 *
 * @param {string} directory
 * @param {{ threads?: number }} [options] threads of one operator; 0 leaves it to ONNX Runtime
 */
export async function openPackage(directory, { threads = 0 } = {}) {
  if (!(await stat(directory).catch(() => null))?.isDirectory()) throw new UserError(`${directory}: no such directory.`);
  const info = await readPackage({
    async size(name) {
      const found = await stat(join(directory, name)).catch(() => null);
      return found?.isFile() ? found.size : null;
    },
    text: (name) => readFile(join(directory, name), "utf8"),
  });
  const text = new TextSide(info, { Tokenizer, Template });
  const session = await ort.InferenceSession.create(join(directory, GRAPH), {
    intraOpNumThreads: threads,
    // Errors are thrown, and need not be printed as well.
    logSeverityLevel: 4,
  });
  return { info, text, decoder: new Decoder(ort, session, info, { inPlace: true }) };
}
