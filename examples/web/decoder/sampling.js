import { UserError } from "./errors.js";

/**
 * @typedef {object} SamplingOptions
 * @property {number} [temperature] divides the logits; 0 takes the likeliest token
 * @property {number} [topP] keeps the fewest likeliest tokens whose probabilities reach this sum, above 0 and at most 1
 * @property {number} [repetitionPenalty] divides positive and multiplies negative logits of tokens seen before; 1 is off
 * @property {number} [seed] makes a run repeatable
 */

/** Draws tokens; in the order of bitnet-onnx's own sampler, but with another generator of random numbers. */
export class Sampler {
  /** @param {SamplingOptions} options */
  constructor({ temperature = 0, topP = 1, repetitionPenalty = 1, seed } = {}) {
    check("temperature", temperature, temperature >= 0, "at least 0");
    check("top-p", topP, topP > 0 && topP <= 1, "above 0 and at most 1");
    check("repetition penalty", repetitionPenalty, repetitionPenalty > 0, "above 0");
    if (seed !== undefined && !Number.isSafeInteger(seed)) throw new UserError(`The seed is ${seed}, expected an integer.`);
    this.temperature = temperature;
    this.topP = topP;
    this.penalty = repetitionPenalty;
    this.random = randomNumbers(seed ?? Math.floor(Math.random() * 2 ** 32));
    this.seen = new Set();
  }

  /** Tells which tokens stand in the context, for the repetition penalty. */
  observe(ids) {
    for (const id of ids) this.seen.add(id);
  }

  /**
   * The next token; the lowest id among equals where the likeliest is taken.
   * @param {Float32Array} logits `[vocabulary]`
   */
  sample(logits) {
    const scores = this.penalty === 1 ? logits : this.#penalized(logits);
    const best = argmax(scores);
    if (!Number.isFinite(scores[best])) {
      throw new UserError("The model computed no usable result: its largest logit is not finite; convert it again with more bits.");
    }
    return this.temperature === 0 ? best : this.#draw(scores, scores[best]);
  }

  #penalized(logits) {
    const scores = Float32Array.from(logits);
    for (const id of this.seen) scores[id] = scores[id] > 0 ? scores[id] / this.penalty : scores[id] * this.penalty;
    return scores;
  }

  #draw(scores, largest) {
    const weights = Float64Array.from(scores, (score) => Math.exp((score - largest) / this.temperature));
    let total = weights.reduce((a, b) => a + b, 0);
    let kept = weights.keys();
    if (this.topP < 1) {
      const order = Array.from(weights.keys()).filter((id) => weights[id] > 0).sort((a, b) => weights[b] - weights[a] || a - b);
      const wanted = this.topP * total;
      let count = 0;
      // The token that reaches the sum belongs to the set.
      for (total = 0; total < wanted && count < order.length; count += 1) total += weights[order[count]];
      kept = order.slice(0, count);
    }
    let left = this.random() * total;
    let last = 0;
    for (const id of kept) {
      if (weights[id] === 0) continue;
      last = id;
      left -= weights[id];
      if (left < 0) break;
    }
    return last;
  }
}

/** The place of the largest value, a NaN counting as the largest. */
export function argmax(values) {
  let best = 0;
  for (let i = 0; i < values.length; i += 1) {
    if (Number.isNaN(values[i])) return i;
    if (values[i] > values[best]) best = i;
  }
  return best;
}

function check(name, value, fits, wanted) {
  if (!Number.isFinite(value) || !fits) throw new UserError(`The ${name} is ${value}, expected a number ${wanted}.`);
}

/** Numbers in [0, 1): xoshiro128** of Blackman and Vigna, its state filled by splitmix32. */
function randomNumbers(seed) {
  let mixed = seed >>> 0;
  const state = Uint32Array.from({ length: 4 }, () => {
    mixed = (mixed + 0x9e3779b9) >>> 0;
    let word = Math.imul(mixed ^ (mixed >>> 16), 0x85ebca6b);
    word = Math.imul(word ^ (word >>> 13), 0xc2b2ae35);
    return word ^ (word >>> 16);
  });
  const turned = (word, bits) => (word << bits) | (word >>> (32 - bits));
  return () => {
    const result = Math.imul(turned(Math.imul(state[1], 5), 7), 9) >>> 0;
    const shifted = state[1] << 9;
    state[2] ^= state[0];
    state[3] ^= state[1];
    state[1] ^= state[2];
    state[0] ^= state[3];
    state[2] ^= shifted;
    state[3] = turned(state[3], 11);
    return result / 2 ** 32;
  };
}
