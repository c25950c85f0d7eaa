import { UserError } from "./errors.js";

export const GRAPH = "model.onnx";
export const WEIGHTS = "model.onnx.data";
const FORMAT_VERSION = 2;
const MAX_GRAPH_BYTES = 2 ** 31 - 1;
const MAX_TEXT_BYTES = 128 * 2 ** 20;
const MAX_CONTEXT = 2 ** 24;

/**
 * The small files of a package, checked; model.onnx and its data are only looked for.
 *
 * @typedef {object} PackageInfo
 * @property {number} contextLength most tokens of prompt and answer together
 * @property {number} vocabSize
 * @property {boolean} packed whether MatMulNBits runs, where there is no operator library
 * @property {number[]} eosTokenIds of generation_config.json
 * @property {object} tokenizer tokenizer.json
 * @property {object} tokenizerConfig tokenizer_config.json
 * @property {string | null} chatTemplate
 *
 * @param {{ size(name: string): Promise<number | null>, text(name: string): Promise<string> }} source where the files
 *   are: the size in bytes, or null where there is no such file, and the content.
 * @returns {Promise<PackageInfo>}
 */
export async function readPackage(source) {
  if ((await source.size(GRAPH)) === null) {
    throw new UserError(`This is no bitnet-onnx package: it has no ${GRAPH}; make one with \`bitnet-onnx convert SRC OUT\`.`);
  }
  if ((await source.size(WEIGHTS)) === null) {
    throw new UserError(`${WEIGHTS} is missing beside ${GRAPH}: it holds the weights; copy the whole package.`);
  }
  const graphBytes = await source.size(GRAPH);
  if (graphBytes === 0 || graphBytes > MAX_GRAPH_BYTES) {
    throw new UserError(`${GRAPH} has ${graphBytes} bytes, expected 1 to ${MAX_GRAPH_BYTES}; copy it again.`);
  }
  const manifest = await readObject(source, "bitnet_onnx.json");
  if (manifest.format_version !== FORMAT_VERSION) {
    throw new UserError(
      `bitnet_onnx.json has format version ${short(manifest.format_version)}, this program reads ${FORMAT_VERSION}; ` +
        "convert the checkpoint again, or take the examples of the version that wrote it.",
    );
  }
  const generation = await readObject(source, "generation_config.json");
  const tokenizerConfig = await readObject(source, "tokenizer_config.json");
  const vocabSize = readCount(manifest.architecture, "vocab_size", 2 ** 24);
  return {
    contextLength: readCount(manifest.architecture, "context_length", MAX_CONTEXT),
    vocabSize,
    packed: manifest.operator?.fallback === "fast" || manifest.operator?.form === "stock",
    eosTokenIds: readEosIds(generation.eos_token_id, vocabSize),
    tokenizer: await readObject(source, "tokenizer.json"),
    tokenizerConfig,
    chatTemplate: await readTemplate(source, tokenizerConfig),
  };
}

async function readText(source, name) {
  const size = await source.size(name);
  if (size === null) throw new UserError(`${name} is missing beside ${GRAPH}; copy the whole package.`);
  if (size > MAX_TEXT_BYTES) throw new UserError(`${name} has ${size} bytes, above the limit of ${MAX_TEXT_BYTES}.`);
  return source.text(name);
}

async function readObject(source, name) {
  const text = await readText(source, name);
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    throw new UserError(`${name} is not valid JSON; copy it again from the package.`);
  }
  if (value === null || typeof value !== "object" || Array.isArray(value)) {
    throw new UserError(`${name} holds no JSON object; copy it again from the package.`);
  }
  return value;
}

function readCount(architecture, name, limit) {
  const value = architecture?.[name];
  if (!Number.isInteger(value) || value < 1 || value > limit) {
    throw new UserError(`bitnet_onnx.json: architecture.${name} is ${short(value)}, expected an integer from 1 to ${limit}.`);
  }
  return value;
}

function readEosIds(value, vocabSize) {
  const ids = value === undefined || value === null ? [] : [value].flat();
  for (const id of ids) {
    if (!Number.isInteger(id) || id < 0 || id >= vocabSize) {
      throw new UserError(`generation_config.json: eos_token_id holds ${short(id)}, expected an integer below ${vocabSize}.`);
    }
  }
  return ids;
}

async function readTemplate(source, config) {
  if ((await source.size("chat_template.jinja")) !== null) return readText(source, "chat_template.jinja");
  let template = config.chat_template ?? null;
  if (Array.isArray(template)) template = template.find((entry) => entry?.name === "default")?.template ?? null;
  if (template !== null && typeof template !== "string") {
    throw new UserError("tokenizer_config.json: chat_template is no text; convert the checkpoint again.");
  }
  return template;
}

function short(value) {
  return String(JSON.stringify(value)).slice(0, 40);
}
