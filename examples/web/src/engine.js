import { UserError } from "../decoder/errors.js";

/** A model in a worker: what the worker does, as promises. */
export class Engine {
  /** @param {"wasm" | "webgpu"} backend */
  constructor(backend) {
    this.backend = backend;
    this.waiting = new Map();
    this.number = 0;
    this.worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
    this.worker.onmessage = ({ data }) => this.#receive(data);
    this.worker.onerror = (event) => {
      event.preventDefault();
      this.#fail(`The worker ended: ${event.message ?? "this browser cannot run it; take a current one, or more memory is needed"}.`);
    };
  }

  /**
   * Opens a model.
   * @param {import("./files.js").Files} files
   * @param {number | undefined} threads undefined leaves it to ONNX Runtime
   */
  async open(files, threads) {
    Object.assign(this, await this.#ask("open", { backend: this.backend, files, threads }));
  }

  /**
   * Logits of a new sequence that is read in parts.
   * @param {number[][]} parts token ids, each part read at once
   * @returns {Promise<{ rows: Float32Array[], seconds: number }>} of every token, and the time of the last part
   */
  read(parts) {
    return this.#ask("read", { parts });
  }

  /**
   * Writes an answer.
   * @param {{ prompt?: string, messages?: object[], options: object }} request
   * @param {(event: { text: string, count: number }) => void} receive
   * @returns {Promise<import("../decoder/generate.js").Ending>}
   */
  write(request, receive) {
    return this.#ask("write", request, receive);
  }

  /** Ends the answer that is being written after the next token. */
  stop() {
    this.worker.postMessage({ type: "stop" });
  }

  /** Frees the model, and fails what is still asked for. */
  close() {
    this.worker.terminate();
    this.#fail("The model was closed.");
  }

  #ask(type, request, receive) {
    if (this.failure) return Promise.reject(new UserError(this.failure));
    this.number += 1;
    const id = this.number;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject, receive });
      this.worker.postMessage({ id, type, ...request });
    });
  }

  #receive({ id, result, error, event }) {
    const request = this.waiting.get(id);
    if (request === undefined) return;
    if (event !== undefined) {
      request.receive?.(event);
      return;
    }
    this.waiting.delete(id);
    if (error !== undefined) request.reject(new UserError(error));
    else request.resolve(result);
  }

  #fail(message) {
    this.failure = message;
    for (const { reject } of this.waiting.values()) reject(new UserError(message));
    this.waiting.clear();
  }
}
