const DEFAULTS = {
  system: "",
  temperature: "0.7",
  topP: "0.95",
  repetitionPenalty: "1.1",
  maxNewTokens: "",
  seed: "",
  "device-choice": "auto",
  threads: "",
};
const STORE = "bitnet-onnx-web";
const field = (name) => document.getElementById(name);
const count = (name) => (field(name).value === "" ? undefined : Math.trunc(Number(field(name).value)));

function fill(values) {
  for (const [name, value] of Object.entries(DEFAULTS)) field(name).value = values[name] ?? value;
  show();
}

function show() {
  for (const name of ["temperature", "topP", "repetitionPenalty"]) field(`${name}-value`).textContent = Number(field(name).value).toFixed(2);
}

function save() {
  show();
  try {
    localStorage.setItem(STORE, JSON.stringify(Object.fromEntries(Object.keys(DEFAULTS).map((name) => [name, field(name).value]))));
  } catch {
    // Private windows keep nothing.
  }
}

/** Fills the dialog with what was kept, and keeps what is changed. */
export function startSettings() {
  let kept = {};
  try {
    kept = JSON.parse(localStorage.getItem(STORE)) ?? {};
  } catch {
    // Not ours, or not allowed.
  }
  fill(kept);
  const dialog = field("settings");
  dialog.addEventListener("input", save);
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
  field("reset").addEventListener("click", () => {
    fill({});
    save();
  });
  field("open-settings").addEventListener("click", () => dialog.showModal());
}

export const systemPrompt = () => field("system").value.trim();

/** Options of one answer. */
export function samplingOptions() {
  return {
    temperature: Number(field("temperature").value),
    topP: Number(field("topP").value),
    repetitionPenalty: Number(field("repetitionPenalty").value),
    maxNewTokens: count("maxNewTokens"),
    seed: count("seed"),
  };
}

/** Where a model is to run. */
export const runOptions = () => ({ device: field("device-choice").value, threads: count("threads") });
