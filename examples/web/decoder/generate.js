import { UserError } from "./errors.js";
import { Sampler } from "./sampling.js";

/**
 * @typedef {object} Ending
 * @property {"stop" | "length" | "context" | "aborted"} reason the model ended its answer, it has as many tokens as were
 *   asked for, the model's context is full, or the signal was given
 * @property {number[]} tokens the answer, without the token that ended it
 * @property {number} promptSeconds until the first token was there
 * @property {number} seconds of all further tokens
 */

/**
 * Reads a prompt and yields the text of the answer piece by piece.
 *
 * @param {import("./decoder.js").Decoder} decoder
 * @param {import("./text.js").TextSide} text
 * @param {number[]} prompt its token ids
 * @param {import("./sampling.js").SamplingOptions & { maxNewTokens?: number, aborted?: () => Promise<boolean> }} options
 * @returns {AsyncGenerator<{ text: string, count: number }, Ending>}
 */
export async function* generate(decoder, text, prompt, { maxNewTokens = 256, aborted, ...sampling } = {}) {
  if (!Number.isInteger(maxNewTokens) || maxNewTokens < 1) {
    throw new UserError(`The longest answer is ${maxNewTokens} tokens, expected an integer of at least 1.`);
  }
  const { contextLength } = decoder.info;
  if (prompt.length >= contextLength) {
    throw new UserError(
      `The context is full: the prompt has ${prompt.length} tokens, and the model's context of ${contextLength} has to hold the answer too; shorten it, or begin anew.`,
    );
  }
  const sampler = new Sampler(sampling);
  sampler.observe(prompt);
  const started = performance.now();
  decoder.reserve(Math.min(prompt.length + maxNewTokens, contextLength));
  let logits = await decoder.read(decoder.resume(prompt), aborted);
  const first = performance.now();
  const pieces = text.stream(prompt);
  const tokens = [];
  let reason = logits ? "length" : "aborted";
  while (logits && tokens.length < maxNewTokens) {
    const token = sampler.sample(logits);
    if (text.stopIds.has(token)) {
      reason = "stop";
      break;
    }
    tokens.push(token);
    sampler.observe([token]);
    yield { text: pieces.push(token), count: tokens.length };
    if (await aborted?.()) {
      reason = "aborted";
      break;
    }
    if (tokens.length === maxNewTokens) break;
    if (prompt.length + tokens.length >= contextLength) {
      reason = "context";
      break;
    }
    logits = await decoder.read([token]);
  }
  const rest = pieces.end();
  if (rest) yield { text: rest, count: tokens.length };
  return { reason, tokens, promptSeconds: (first - started) / 1000, seconds: (performance.now() - first) / 1000 };
}
