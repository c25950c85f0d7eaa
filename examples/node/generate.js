#!/usr/bin/env node
/** Continues a text, or answers a message, with a bitnet-onnx package. */
import { basename } from "node:path";
import { parseArgs } from "node:util";

import { UserError, explain } from "../web/decoder/errors.js";
import { generate } from "../web/decoder/generate.js";
import { openPackage } from "./open.js";

const USAGE = `Usage: node generate.js [options] PACKAGE PROMPT

Continues PROMPT with the model of the directory PACKAGE, which \`bitnet-onnx convert\` made.

  --chat                 PROMPT is a message, put into the model's chat template
  --max-new-tokens N     longest answer [default: 256]
  --temperature T        0 takes the likeliest token [default: 0]
  --top-p P              with a temperature: fewest tokens whose probabilities reach P [default: 1]
  --repetition-penalty R 1 is off [default: 1]
  --seed N               makes a run repeatable
  --threads N            of one operator [default: as many as cores]
  --json                 one line of JSON at the end instead of the text
  --help`;

function readArguments() {
  const string = { type: "string" };
  const boolean = { type: "boolean", default: false };
  let parsed;
  try {
    parsed = parseArgs({
      allowPositionals: true,
      options: {
        chat: boolean,
        json: boolean,
        help: boolean,
        "max-new-tokens": { ...string, default: "256" },
        temperature: { ...string, default: "0" },
        "top-p": { ...string, default: "1" },
        "repetition-penalty": { ...string, default: "1" },
        seed: string,
        threads: { ...string, default: "0" },
      },
    });
  } catch (error) {
    throw new UserError(`${error.message.split("\n", 1)[0]} (--help lists the options)`);
  }
  const { values, positionals } = parsed;
  if (!values.help && positionals.length !== 2) {
    throw new UserError(`Expected PACKAGE and PROMPT, got ${positionals.length} arguments (--help lists the options).`);
  }
  return { ...values, directory: positionals[0], prompt: positionals[1] };
}

function number(name, text) {
  const value = text.trim() === "" ? NaN : Number(text);
  if (Number.isNaN(value)) throw new UserError(`--${name} is ${JSON.stringify(text)}, expected a number.`);
  return value;
}

async function main() {
  const options = readArguments();
  if (options.help) {
    console.log(USAGE);
    return;
  }
  const threads = number("threads", options.threads);
  if (!Number.isInteger(threads) || threads < 0) throw new UserError(`--threads is ${options.threads}, expected 0 or more.`);
  const sampling = {
    maxNewTokens: number("max-new-tokens", options["max-new-tokens"]),
    temperature: number("temperature", options.temperature),
    topP: number("top-p", options["top-p"]),
    repetitionPenalty: number("repetition-penalty", options["repetition-penalty"]),
    seed: options.seed === undefined ? undefined : number("seed", options.seed),
  };
  const { text, decoder } = await openPackage(options.directory, { threads });
  const prompt = options.chat
    ? text.encodeChat([{ role: "user", content: options.prompt }])
    : text.encode(options.prompt);
  const answer = generate(decoder, text, prompt, sampling);
  let written = "";
  let step;
  while (!(step = await answer.next()).done) {
    written += step.value.text;
    if (!options.json) process.stdout.write(step.value.text);
  }
  const { tokens, reason, promptSeconds, seconds } = step.value;
  if (options.json) {
    console.log(JSON.stringify({ text: written, prompt, tokens, reason, promptSeconds, seconds }));
    return;
  }
  process.stdout.write("\n");
  const speed = tokens.length > 1 ? `, ${((tokens.length - 1) / seconds).toFixed(1)} tokens/s` : "";
  const why = { context: ", the context is full", length: ", cut off at its longest" }[reason] ?? "";
  console.error(`${tokens.length} tokens${speed}${why}`);
}

// A reader such as `head` that goes away is no failure.
process.stdout.on("error", () => process.exit(0));
try {
  await main();
} catch (error) {
  console.error(`${basename(process.argv[1])}: ${explain(error)}`);
  process.exitCode = 2;
}
