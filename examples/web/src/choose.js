import { WEIGHTS } from "../decoder/package.js";
import { Engine } from "./engine.js";

/** Above this, two copies of the model are not held at the same time. */
const LARGE = 2 ** 30;
/**
 * Largest `distance` between WebGPU and WebAssembly, which round activations each in their own way. Measured with two models:
 * 0.01 and 0.10 where nothing is wrong; 0.29 and 2.2 at least where one operator is, which here was rotary embeddings left out.
 */
export const TOLERANCE = 0.2;

/**
 * Opens a model where it runs best: on WebGPU if its logits are those of WebAssembly and it is not slower.
 *
 * @param {import("./files.js").Files} files
 * @param {{ device: "auto" | "wasm" | "webgpu", threads?: number }} wanted webgpu: even where it is slower
 * @param {(text: string) => void} tell what is being done
 * @param {typeof Engine} [Kind] of engine
 * @returns {Promise<{ engine: Engine, note: string }>} and why it is not WebGPU, or nothing
 */
export async function openBest(files, { device, threads }, tell, Kind = Engine) {
  const obstacle = device === "wasm" ? "WebAssembly was chosen in the settings." : await obstacleToWebGpu(device);
  tell("Preparing the model in WebAssembly");
  let wasm = await opened(new Kind("wasm"), files, threads);
  if (obstacle) return { engine: wasm, note: obstacle };
  tell("Trying WebGPU, and comparing its results");
  const expected = await wasm.read(probeOf(wasm));
  if (files.get(WEIGHTS).size > LARGE) {
    wasm.close();
    wasm = null;
  }
  const { engine, note } = await tryWebGpu(new Kind("webgpu"), files, expected, device === "auto");
  if (engine) {
    wasm?.close();
    return { engine, note: "" };
  }
  return { engine: wasm ?? (await opened(new Kind("wasm"), files, threads)), note };
}

async function opened(engine, files, threads) {
  try {
    await engine.open(files, threads);
  } catch (error) {
    engine.close();
    throw error;
  }
  return engine;
}

/** Why WebGPU is not tried; nothing if it is. */
async function obstacleToWebGpu(device) {
  if (!navigator.gpu) return "This browser has no WebGPU.";
  const adapter = await navigator.gpu.requestAdapter().catch(() => null);
  if (!adapter) return "This browser has WebGPU, but no graphics card for it.";
  const software = adapter.info?.isFallbackAdapter || adapter.info?.architecture === "swiftshader";
  return software && device === "auto" ? "WebGPU is only emulated on this machine." : "";
}

async function tryWebGpu(engine, files, expected, onlyIfFaster) {
  try {
    await opened(engine, files);
    const found = await engine.read(probeOf(engine));
    const far = distance(found.rows, expected.rows, probeOf(engine));
    // Written so that NaN fails.
    if (!(far <= TOLERANCE)) {
      engine.close();
      const how = Number.isNaN(far) ? "no numbers" : `logits that differ by ${(100 * far).toFixed(0)} %`;
      return { note: `WebGPU computes something else on this machine: ${how}.` };
    }
    if (onlyIfFaster && found.seconds > expected.seconds) {
      engine.close();
      return { note: "WebGPU is slower than WebAssembly for this model." };
    }
    return { engine };
  } catch (error) {
    engine.close();
    return { note: `WebGPU cannot run this model. ${error.message}` };
  }
}

/** A few tokens in each way that a model reads them: a prompt, more of it, single tokens. */
function probeOf({ sample }) {
  return [sample.slice(0, 6), sample.slice(6, 9), ...sample.slice(9, 12).map((id) => [id])];
}

/**
 * How far logits are apart: of each row |found - expected| over |expected - its mean|, of each way of reading the median,
 * since single tokens may be close to where a model changes its mind; of all ways the largest.
 * @param {Float32Array[]} found
 * @param {Float32Array[]} expected
 * @param {number[][]} parts of the probe; those of one token are one way
 */
export function distance(found, expected, parts) {
  const ways = new Map();
  let row = 0;
  for (const [number, part] of parts.entries()) {
    const way = part.length === 1 ? "single" : number;
    for (const _ of part) {
      ways.set(way, [...(ways.get(way) ?? []), rowDistance(found[row], expected[row])]);
      row += 1;
    }
  }
  // Math.max gives NaN if one is.
  return Math.max(...Array.from(ways.values(), median));
}

function rowDistance(found, expected) {
  const mean = expected.reduce((a, b) => a + b, 0) / expected.length;
  let difference = 0;
  let spread = 0;
  for (let i = 0; i < expected.length; i += 1) {
    difference += (found[i] - expected[i]) ** 2;
    spread += (expected[i] - mean) ** 2;
  }
  return Math.sqrt(difference / spread);
}

function median(values) {
  if (values.some(Number.isNaN)) return NaN;
  return [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];
}
