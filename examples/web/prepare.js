/**
 * Lays what the page loads beside it: vendor/ from node_modules, and models/ from packages on this machine.
 * Usage: node prepare.js [PACKAGE ...]; without arguments the small model of the repository, where it is.
 */
import { copyFile, mkdir, rm, stat, writeFile } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const HERE = dirname(fileURLToPath(import.meta.url));
const SMALL_MODEL = join(HERE, "../../model_zoo/packages/bitnet-tiny");
/** From node_modules: the two builds of ONNX Runtime that the worker chooses from, tokenizer and chat templates. */
const VENDOR = {
  "onnxruntime-web": [
    "dist/ort.wasm.min.mjs",
    "dist/ort-wasm-simd-threaded.mjs",
    "dist/ort-wasm-simd-threaded.wasm",
    "dist/ort.webgpu.min.mjs",
    "dist/ort-wasm-simd-threaded.asyncify.mjs",
    "dist/ort-wasm-simd-threaded.asyncify.wasm",
  ],
  "@huggingface/tokenizers": ["dist/tokenizers.min.mjs", "LICENSE"],
  "@huggingface/jinja": ["dist/index.js", "LICENSE"],
};
/** Files of a package that the page reads; engine.onnx and the like stay behind. */
const PACKAGE_FILES = [
  "model.onnx",
  "model.onnx.data",
  "bitnet_onnx.json",
  "generation_config.json",
  "tokenizer.json",
  "tokenizer_config.json",
  "chat_template.jinja",
];

const sizeOf = async (path) => (await stat(path).catch(() => null))?.size ?? null;

async function copyVendor() {
  for (const [name, files] of Object.entries(VENDOR)) {
    const folder = join(HERE, "vendor", name.split("/").at(-1));
    await mkdir(folder, { recursive: true });
    for (const file of files) {
      const source = join(HERE, "node_modules", name, file);
      if ((await sizeOf(source)) === null) throw new Error(`${name} is not installed: run \`npm ci\` first`);
      await copyFile(source, join(folder, basename(file)));
    }
  }
}

async function copyModel(directory) {
  const name = basename(directory);
  const folder = join(HERE, "models", name);
  const files = {};
  await mkdir(folder, { recursive: true });
  for (const file of PACKAGE_FILES) {
    const size = await sizeOf(join(directory, file));
    if (size === null && file === "chat_template.jinja") continue;
    if (size === null) throw new Error(`${directory} is no bitnet-onnx package: it has no ${file}`);
    await copyFile(join(directory, file), join(folder, file));
    files[file] = size;
  }
  return { name, files };
}

async function main() {
  await copyVendor();
  // npm runs scripts in this folder, and says where it was called.
  let packages = process.argv.slice(2).map((directory) => resolve(process.env.INIT_CWD ?? ".", directory));
  if (packages.length === 0 && (await sizeOf(join(HERE, "models/index.json"))) !== null) return;
  if (packages.length === 0) packages = (await sizeOf(join(SMALL_MODEL, "model.onnx"))) === null ? [] : [SMALL_MODEL];
  await rm(join(HERE, "models"), { recursive: true, force: true });
  await mkdir(join(HERE, "models"));
  const models = [];
  for (const directory of packages) models.push(await copyModel(directory));
  await writeFile(join(HERE, "models", "index.json"), `${JSON.stringify(models, null, 2)}\n`);
}

try {
  await main();
} catch (error) {
  console.error(`prepare: ${error.message}`);
  process.exitCode = 2;
}
