import { WEIGHTS } from "../decoder/package.js";
import { Engine } from "./engine.js";

/** Above this, two copies of the model are not held at the same time. */
const LARGE = 2 ** 30;
/**
 * Largest `distance` between WebGPU and WebAssembly, which round activations in blocks of their own. Measured: 0.023; a
 * model without the attention or the feed-forward network of any one layer is 0.12 away.
 */
export const TOLERANCE = 0.06;

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
  const expected = await wasm.read(probeOf(wasm.vocabSize));
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
    const found = await engine.read(probeOf(engine.vocabSize));
    const far = distance(found.rows, expected.rows);
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
function probeOf(vocabSize) {
  // Any tokens will do; a prime stride spreads them over the vocabulary.
  const ids = Array.from({ length: 12 }, (_, place) => (1 + 7919 * place) % vocabSize);
  return [ids.slice(0, 6), ids.slice(6, 9), [ids[9]], [ids[10]], [ids[11]]];
}

/** The largest relative distance of a row of logits: |found - expected| over |expected - its mean|. */
export function distance(found, expected) {
  if (found.length !== expected.length) return NaN;
  const distances = found.map((row, index) => {
    const wanted = expected[index];
    const mean = wanted.reduce((a, b) => a + b, 0) / wanted.length;
    let difference = 0;
    let spread = 0;
    for (let i = 0; i < wanted.length; i += 1) {
      difference += (row[i] - wanted[i]) ** 2;
      spread += (wanted[i] - mean) ** 2;
    }
    return Math.sqrt(difference / spread);
  });
  return distances.reduce((a, b) => (Number.isNaN(b) || b > a ? b : a), 0);
}
