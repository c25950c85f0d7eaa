/**
 * Serves this folder to browsers of this machine, with the headers that WebAssembly threads need.
 * Usage: node server.js [PORT]
 */
import { createReadStream } from "node:fs";
import { realpath, stat } from "node:fs/promises";
import { createServer } from "node:http";
import { dirname, extname, join, sep } from "node:path";
import { pipeline } from "node:stream/promises";
import { fileURLToPath } from "node:url";

const ROOT = await realpath(dirname(fileURLToPath(import.meta.url)));
/** All that the page consists of; node_modules and the scripts of this folder are not served. */
const SERVED = /^(index\.html|style\.css|icon\.svg|(src|decoder|vendor|models)\/[\w@./-]+)$/;
const TYPES = {
  ".html": "text/html; charset=utf-8",
  ".css": "text/css; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".mjs": "text/javascript; charset=utf-8",
  ".json": "application/json",
  ".svg": "image/svg+xml",
  ".wasm": "application/wasm",
};
const HEADERS = {
  // Both together isolate the page, without which browsers give it no shared memory and so no threads.
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Embedder-Policy": "require-corp",
  // A worker has the policy of its own file, not that of the page.
  "Content-Security-Policy":
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; connect-src 'self'; " +
    "style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  "X-Content-Type-Options": "nosniff",
  "Referrer-Policy": "no-referrer",
  "Cache-Control": "no-cache",
};

/** The file that a request means, or null. */
async function find(url) {
  let name;
  try {
    name = decodeURIComponent(new URL(url, "http://localhost").pathname).slice(1) || "index.html";
  } catch {
    return null;
  }
  // An escaped slash comes after the address was resolved.
  if (!SERVED.test(name) || name.split("/").includes("..")) return null;
  const path = await realpath(join(ROOT, name)).catch(() => null);
  if (path === null || !path.startsWith(ROOT + sep)) return null;
  const found = await stat(path);
  return found.isFile() ? { path, size: found.size } : null;
}

async function answer(request, response) {
  if (request.method !== "GET" && request.method !== "HEAD") {
    response.writeHead(405, { ...HEADERS, Allow: "GET, HEAD" }).end();
    return;
  }
  const file = await find(request.url);
  if (file === null) {
    response.writeHead(404, { ...HEADERS, "Content-Type": "text/plain" }).end("Not found\n");
    return;
  }
  const type = TYPES[extname(file.path)] ?? "application/octet-stream";
  response.writeHead(200, { ...HEADERS, "Content-Type": type, "Content-Length": file.size });
  if (request.method === "HEAD") response.end();
  else await pipeline(createReadStream(file.path), response);
}

const port = Number(process.argv[2] ?? 8080);
if (!Number.isInteger(port) || port < 0 || port > 65535) {
  console.error(`server: the port is ${process.argv[2]}, expected 0 to 65535`);
  process.exit(2);
}
const server = createServer((request, response) => {
  // A browser that goes away in the middle of a file is no failure.
  answer(request, response).catch(() => response.destroy());
});
server.on("error", (error) => {
  const reason = error.code === "EADDRINUSE" ? `port ${port} is taken; give another: npm start -- 8081` : error.message;
  console.error(`server: ${reason}`);
  process.exit(2);
});
server.listen(port, "127.0.0.1", () => console.log(`http://127.0.0.1:${server.address().port}/`));
