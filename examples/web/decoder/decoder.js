import { UserError } from "./errors.js";

/** Most tokens of one call of the graph: its logits, `[tokens, vocabulary]` floats, are held at once. */
const CHUNK = 64;

/**
 * The decoder graph with the keys and values of one sequence: token ids in, logits out.
 */
export class Decoder {
  /**
   * @param {typeof import("onnxruntime-common")} ort
   * @param {import("onnxruntime-common").InferenceSession} session of model.onnx
   * @param {import("./package.js").PackageInfo} info
   * @param {{ inPlace?: boolean }} [options] inPlace: the runtime writes into tensors that it is given as outputs, so
   *   keys and values are allocated once and never copied (onnxruntime-node); otherwise each call gives longer ones.
   */
  constructor(ort, session, info, { inPlace = false } = {}) {
    this.ort = ort;
    this.session = session;
    this.info = info;
    this.inPlace = inPlace;
    this.layers = session.inputMetadata.filter(({ name }) => name.startsWith("past_key_values."));
    for (const { name, type, shape } of this.layers) {
      if (type !== "float32" || !(shape[1] > 0) || !(shape[3] > 0)) {
        throw new UserError(`model.onnx: ${name} is ${type} [${shape}], expected float32 [batch, heads, tokens, size].`);
      }
    }
    if (this.layers.length === 0 || !session.outputNames.includes("logits")) {
      throw new UserError("model.onnx is no decoder of bitnet-onnx: it has no keys and values, or no logits.");
    }
    this.reset();
  }

  /** Forgets the sequence. */
  reset() {
    for (const tensor of Object.values(this.cache ?? {})) release(tensor);
    /** @type {number[]} the tokens whose keys and values are held */
    this.ids = [];
    this.capacity = 0;
    this.cache = Object.fromEntries(this.layers.map(({ name, shape }) => [name, this.#empty(shape, 0)]));
  }

  #empty(shape, tokens) {
    const sizes = [1, shape[1], tokens, shape[3]];
    return new this.ort.Tensor("float32", new Float32Array(sizes.reduce((a, b) => a * b)), sizes);
  }

  /** Makes room for `tokens` tokens in all, where keys and values stay in place; what they hold is kept. */
  reserve(tokens) {
    if (!this.inPlace || tokens <= this.capacity) return;
    this.capacity = Math.min(Math.max(tokens, 2 * this.capacity), this.info.contextLength);
    for (const { name, shape } of this.layers) {
      const [, heads, , size] = shape;
      const before = this.cache[name];
      const after = this.#empty(shape, this.capacity);
      const held = this.ids.length * size;
      for (let head = 0; head < heads; head += 1) {
        const start = head * before.dims[2] * size;
        after.data.set(before.data.subarray(start, start + held), head * this.capacity * size);
      }
      this.cache[name] = after;
    }
  }

  /**
   * Keeps what is held of the beginning of `ids`, if that is all that is held.
   * @returns {number[]} the tokens that are still to be read, at least one
   */
  resume(ids) {
    const held = this.ids.length;
    if (held >= ids.length || this.ids.some((id, place) => id !== ids[place])) this.reset();
    return ids.slice(this.ids.length);
  }

  /**
   * Reads tokens behind those held.
   * @param {number[]} ids
   * @param {() => Promise<boolean>} [aborted] asked between calls of the graph
   * @returns {Promise<Float32Array | null>} the logits of the last one: what comes next; null where it was aborted before
   */
  async read(ids, aborted) {
    let last = null;
    for await (const rows of this.#chunks(ids)) {
      if (await aborted?.()) return null;
      last = rows.at(-1);
    }
    return last;
  }

  /** The same with the logits of every token. */
  async readAll(ids) {
    const all = [];
    for await (const rows of this.#chunks(ids)) all.push(...rows);
    return all;
  }

  async *#chunks(ids) {
    const total = this.ids.length + ids.length;
    if (total > this.info.contextLength) {
      throw new UserError(`The prompt has ${total} tokens, more than the model's context of ${this.info.contextLength}.`);
    }
    this.reserve(total);
    for (let start = 0; start < ids.length; start += CHUNK) yield await this.#run(ids.slice(start, start + CHUNK));
  }

  async #run(ids) {
    const total = this.ids.length + ids.length;
    const feeds = {
      ...this.cache,
      input_ids: new this.ort.Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]),
      attention_mask: new this.ort.Tensor("int64", new BigInt64Array(total).fill(1n), [1, total]),
    };
    let outputs;
    if (this.inPlace) {
      const fetches = Object.fromEntries(this.layers.map(({ name }) => [presentOf(name), this.cache[name]]));
      outputs = await this.session.run(feeds, { logits: null, ...fetches });
    } else {
      outputs = await this.session.run(feeds);
      for (const { name } of this.layers) {
        release(this.cache[name]);
        this.cache[name] = outputs[presentOf(name)];
      }
    }
    this.ids.push(...ids);
    const { logits } = outputs;
    const [, , vocabSize] = logits.dims;
    if (vocabSize !== this.info.vocabSize) {
      throw new UserError(
        `model.onnx has a vocabulary of ${vocabSize}, bitnet_onnx.json says ${this.info.vocabSize}; copy both from one package.`,
      );
    }
    const data = await logits.getData();
    release(logits);
    return ids.map((_, row) => data.subarray(row * vocabSize, (row + 1) * vocabSize));
  }
}

/** The output that continues an input of keys or values. */
export function presentOf(name) {
  return name.replace("past_key_values", "present");
}

function release(tensor) {
  // Memory of a graphics card is not collected with the object.
  if (tensor.location === "gpu-buffer") tensor.dispose();
}
