import { explain } from "../decoder/errors.js";
import { WEIGHTS } from "../decoder/package.js";
import { openBest } from "./choose.js";
import { Conversation } from "./conversation.js";
import { fromDrop, fromInput, fromPicker, fromServer, sizeText } from "./files.js";
import { make } from "./render.js";
import { runOptions, startSettings } from "./settings.js";

const $ = (id) => document.getElementById(id);
const conversation = new Conversation();
let engine = null;
let opening = false;

/** Why nothing can run here, as a sentence; nothing if something can. */
function obstacle() {
  if (typeof WebAssembly !== "object") {
    return "This browser has no WebAssembly, or it is switched off (as in Lockdown mode); allow it for this page, or take another browser.";
  }
  // The shortest module with a vector instruction: (func (result v128) i32.const 0, i8x16.splat).
  const vectors = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 8, 1, 6, 0, 65, 0, 253, 15, 11];
  if (!WebAssembly.validate(new Uint8Array(vectors))) {
    return "This browser is too old: its WebAssembly has no vector instructions; take a current Chrome, Edge, Firefox or Safari.";
  }
  return "";
}

function showError(message) {
  $("start-error").textContent = message;
  $("start-error").hidden = !message;
}

function showProgress(text, done) {
  $("progress").hidden = !text;
  $("progress-text").textContent = text;
  const bar = $("bar").parentElement;
  bar.classList.toggle("unknown", done === undefined);
  $("bar").style.setProperty("--done", done ?? 0);
}

function setOpening(value) {
  opening = value;
  for (const button of $("start").querySelectorAll("button")) button.disabled = value;
  if (!value) showProgress("");
}

/**
 * Opens what `find` gives, and shows the conversation, or the error where one is.
 * @param {() => Promise<import("./files.js").Files>} find
 * @param {() => string} name of the model, known once the files are found
 */
async function open(find, name) {
  if (opening) return;
  showError("");
  setOpening(true);
  try {
    const files = await find();
    const best = await openBest(files, runOptions(), (text) => showProgress(`${text} …`));
    engine = best.engine;
    showModel(name() || "Your model", `${best.note} ${adviceFor(files.get(WEIGHTS).size)}`);
  } catch (error) {
    // Whoever closes the picker knows that nothing was chosen.
    if (error.name !== "AbortError") showError(explain(error));
  } finally {
    setOpening(false);
  }
}

/** What would make the model faster here; small ones are fast enough. */
function adviceFor(bytes) {
  if (engine.backend !== "wasm" || bytes < 16 * 2 ** 20) return "";
  const threads = self.crossOriginIsolated ? "" : "The server sends no isolation headers, so there is one thread. ";
  return engine.packed ? `${threads}Converted with --fallback exact, it would be several times as fast here.` : threads;
}

function showModel(name, note) {
  const device = engine.backend === "webgpu" ? "WebGPU" : `WebAssembly, ${engine.threads}\u00a0thread${engine.threads === 1 ? "" : "s"}`;
  $("model").textContent = name;
  document.title = name;
  $("device").textContent = device;
  $("device").title = note;
  $("device").hidden = false;
  $("change").hidden = false;
  $("start").hidden = true;
  conversation.start(engine, device, note);
}

function leaveModel() {
  conversation.end();
  engine?.close();
  engine = null;
  $("model").textContent = "bitnet-onnx";
  document.title = "bitnet-onnx in the browser";
  $("device").hidden = true;
  $("change").hidden = true;
  $("speed").textContent = "";
  $("start").hidden = false;
}

function folderName(input) {
  return input.files[0]?.webkitRelativePath.split("/", 1)[0] ?? "";
}

function listenForFiles() {
  for (const id of ["folder", "files"]) {
    $(id).addEventListener("change", async () => {
      if ($(id).files.length === 0) return;
      const name = folderName($(id));
      await open(async () => fromInput($(id)), () => name);
      // The same folder may be chosen again after it was mended.
      $(id).value = "";
    });
  }
  $("open-folder").addEventListener("click", () => {
    if (window.showDirectoryPicker) {
      let name = "";
      open(async () => {
        const picked = await fromPicker();
        name = picked.name;
        return picked.files;
      }, () => name);
    } else {
      $("folder").click();
    }
  });
  $("open-files").addEventListener("click", () => $("files").click());
  if (!("webkitdirectory" in $("folder"))) $("open-folder").hidden = true;
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    $("drop").classList.add("over");
  });
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) $("drop").classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    $("drop").classList.remove("over");
    if (engine) return;
    const entry = event.dataTransfer.items[0]?.webkitGetAsEntry?.();
    const name = entry?.isDirectory ? entry.name : "";
    // What was dropped can be read only while the event lasts.
    const files = fromDrop(event.dataTransfer);
    files.catch(() => {});
    open(() => files, () => name);
  });
}

async function listModels() {
  const response = await fetch("models/index.json").catch(() => null);
  if (!response?.ok) return;
  for (const model of await response.json()) {
    const size = Object.values(model.files).reduce((a, b) => a + b, 0);
    const button = make("button", "", `Try ${model.name} (${sizeText(size)})`);
    button.type = "button";
    button.addEventListener("click", () => {
      const progress = (done, all) => showProgress(`Loading ${model.name}: ${sizeText(done)} of ${sizeText(all)}`, done / all);
      open(() => fromServer(model, progress), () => model.name);
    });
    $("models").append(button);
    $("models").hidden = false;
  }
}

startSettings();
const problem = obstacle();
if (problem) {
  setOpening(true);
  showProgress("");
  showError(problem);
} else {
  listenForFiles();
  listModels();
  $("change").addEventListener("click", leaveModel);
}
