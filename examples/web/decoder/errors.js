/** What a person can mend: its message is one sentence that says what is wrong and what to do. */
export class UserError extends Error {
  constructor(message) {
    super(message);
    this.name = "UserError";
  }
}

const MEMORY = /bad_alloc|out of memory|failed to allocate|allocation failed|cannot enlarge memory|OOM|Invalid typed array length/i;
const DATA = /external data|external initializer|out of bounds or can not be read|does not exist in the external/i;
const GRAPH = /protobuf parsing failed|invalid protobuf|not a valid model|ModelProto/i;

/**
 * One sentence for whatever went wrong: messages of ONNX Runtime are long, and numbers where C++ threw.
 * @param {unknown} error
 * @returns {string}
 */
export function explain(error) {
  if (error instanceof UserError || error?.name === "UserError") return error.message;
  const message = error instanceof Error ? error.message : String(error);
  if (MEMORY.test(message)) return "The memory is not enough for this model; close other tabs or programs, or take a smaller model.";
  if (DATA.test(message)) return "model.onnx.data does not belong to model.onnx or is cut off; copy both files from the same package.";
  if (GRAPH.test(message)) return "model.onnx is no readable ONNX file; copy it again from the package.";
  return `ONNX Runtime failed: ${message.split("\n", 1)[0].slice(0, 240)}`;
}
