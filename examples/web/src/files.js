import { UserError } from "../decoder/errors.js";
import { GRAPH, WEIGHTS } from "../decoder/package.js";

/** @typedef {Map<string, Blob>} Files the files of a package by their names */

/** Browsers cannot read more of a file at once, and WebAssembly has 4 GiB for the weights and all else. */
const MAX_WEIGHTS = 2 ** 31;
const MAX_ENTRIES = 10_000;

/**
 * The package in a list of files: those beside the model.onnx that lies least deep.
 * @param {{ path: string, file: Blob }[]} entries paths with slashes
 * @returns {Files}
 */
export function packageOf(entries) {
  const depth = (path) => path.split("/").length;
  const graphs = entries.filter(({ path }) => path.split("/").at(-1) === GRAPH).sort((a, b) => depth(a.path) - depth(b.path));
  // Without a graph the files themselves are judged, so that the message says what is missing.
  const folder = graphs.length > 0 ? graphs[0].path.slice(0, -GRAPH.length) : "";
  const files = new Map();
  for (const { path, file } of entries) {
    const name = path.slice(folder.length);
    if (path.startsWith(folder) && !name.includes("/")) files.set(name, file);
  }
  const weights = files.get(WEIGHTS);
  if (weights && weights.size > MAX_WEIGHTS) {
    throw new UserError(
      `${WEIGHTS} has ${sizeText(weights.size)}, more than the ${sizeText(MAX_WEIGHTS)} that a page can hold; run this model with bitnet-onnx itself.`,
    );
  }
  return files;
}

/** From an input element, whose files know their path where a folder was picked. */
export function fromInput(input) {
  return packageOf(Array.from(input.files, (file) => ({ path: file.webkitRelativePath || file.name, file })));
}

/** From what was dropped on the page: a folder or files. */
export async function fromDrop(transfer) {
  // The list is emptied as soon as the event is over.
  const roots = Array.from(transfer.items, (item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (roots.length === 0) return packageOf(Array.from(transfer.files, (file) => ({ path: file.name, file })));
  const entries = [];
  for (const root of roots) await walkEntry(root, root.name, entries);
  return packageOf(entries);
}

async function walkEntry(entry, path, entries) {
  if (entries.length >= MAX_ENTRIES) throw new UserError(`The folder holds more than ${MAX_ENTRIES} files; choose the package itself.`);
  if (entry.isFile) {
    entries.push({ path, file: await new Promise((resolve, reject) => entry.file(resolve, reject)) });
    return;
  }
  const reader = entry.createReader();
  // A reader gives at most a hundred entries at a time.
  for (let batch; (batch = await new Promise((resolve, reject) => reader.readEntries(resolve, reject))).length > 0; ) {
    for (const child of batch) await walkEntry(child, `${path}/${child.name}`, entries);
  }
}

/**
 * From the picker of folders that some browsers have; only its top level is looked at.
 * @returns {Promise<{ name: string, files: Files }>}
 */
export async function fromPicker() {
  const folder = await window.showDirectoryPicker({ id: "bitnet-onnx" });
  const entries = [];
  for await (const handle of folder.values()) {
    if (entries.length >= MAX_ENTRIES) throw new UserError(`The folder holds more than ${MAX_ENTRIES} files; choose the package itself.`);
    if (handle.kind === "file") entries.push({ path: handle.name, file: await handle.getFile() });
  }
  return { name: folder.name, files: packageOf(entries) };
}

/**
 * A package that lies beside the page.
 * @param {{ name: string, files: Record<string, number> }} model an entry of models/index.json
 * @param {(done: number, all: number) => void} progress bytes
 */
export async function fromServer(model, progress) {
  const all = Object.values(model.files).reduce((a, b) => a + b, 0);
  const files = new Map();
  let done = 0;
  for (const name of Object.keys(model.files)) {
    const response = await fetch(`models/${encodeURIComponent(model.name)}/${encodeURIComponent(name)}`);
    if (!response.ok) throw new UserError(`${model.name}: the server has no ${name} (${response.status}).`);
    const parts = [];
    const reader = response.body.getReader();
    for (let part; !(part = await reader.read()).done; ) {
      parts.push(part.value);
      done += part.value.length;
      progress(done, all);
    }
    files.set(name, new Blob(parts));
  }
  return files;
}

export function sizeText(bytes) {
  const [unit, name] = [[2 ** 30, "GB"], [2 ** 20, "MB"], [2 ** 10, "kB"]].find(([size]) => bytes >= size) ?? [1, "bytes"];
  const value = bytes / unit;
  return `${value >= 10 || unit === 1 ? Math.round(value) : value.toFixed(1)} ${name}`;
}
