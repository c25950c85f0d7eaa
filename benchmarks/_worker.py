"""The process that runs one model and times what it is told, a JSON object on each line in and out.

    python -P _worker.py package|stock|llama PATH THREADS CONTEXT

It is started by its path: a peer may live in an environment that knows nothing of this package.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, Protocol


class Backend(Protocol):
    """A loaded model.

    Attributes:
        load_s: seconds of loading it, the imports before that left out.
    """

    load_s: float

    def prefill(self, tokens: int) -> float:
        """Seconds to read a prompt of so many tokens into an empty context, up to the logits of the last."""
        ...

    def decode(self, context: int, tokens: int) -> float:
        """Seconds to read so many tokens one by one behind a context."""
        ...


class Package:
    """A package of ours; with `stock` without the operator library."""

    def __init__(self, path: str, threads: int, stock: bool) -> None:
        from bitnet_onnx.runtime import load
        from bitnet_onnx.runtime.devices import Device
        from bitnet_onnx.runtime.kv_cache import KVCache

        started = time.perf_counter()
        self._model = load(path, threads=threads, device=Device() if stock else None)
        self.load_s = time.perf_counter() - started
        self._vocab_size = self._model.package.architecture.vocab_size
        self._caches: dict[int, KVCache] = {}

    def prefill(self, tokens: int) -> float:
        """As in `Backend`."""
        cache = self._cache(0)
        ids = prompt(tokens, self._vocab_size)
        started = time.perf_counter()
        self._model.session.step(ids, cache)
        seconds = time.perf_counter() - started
        cache.truncate(0)
        return seconds

    def decode(self, context: int, tokens: int) -> float:
        """As in `Backend`."""
        cache = self._cache(context)
        # Growing the buffers is no part of a step.
        cache.reserve(context + tokens)
        ids = prompt(tokens, self._vocab_size)
        started = time.perf_counter()
        for token in ids:
            self._model.session.step([token], cache)
        seconds = time.perf_counter() - started
        cache.truncate(context)
        return seconds

    def _cache(self, context: int) -> Any:
        """A cache that holds so many tokens; the time of a step does not depend on which."""
        if context not in self._caches:
            cache = self._model.session.new_cache()
            cache.reserve(context)
            cache.advance(context)
            self._caches[context] = cache
        return self._caches[context]


class Llama:
    """A GGUF file in llama.cpp, through the C interface as llama-cpp-python declares it."""

    def __init__(self, path: str, threads: int, context: int) -> None:
        import llama_cpp

        self._lib: Any = llama_cpp
        started = time.perf_counter()
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        if not model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = context
        parameters.n_threads = parameters.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(model, parameters)
        if not self._context:
            raise RuntimeError(f"llama.cpp cannot make a context of {context} tokens for {path}")
        self.load_s = time.perf_counter() - started
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def prefill(self, tokens: int) -> float:
        """As in `Backend`."""
        self._clear()
        ids = prompt(tokens, self._vocab_size)
        started = time.perf_counter()
        self._read(ids)
        return time.perf_counter() - started

    def decode(self, context: int, tokens: int) -> float:
        """As in `Backend`."""
        self._clear()
        if context:
            self._read(prompt(context, self._vocab_size))
        ids = prompt(tokens, self._vocab_size)
        started = time.perf_counter()
        for token in ids:
            self._read([token])
        return time.perf_counter() - started

    def _clear(self) -> None:
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), False)

    def _read(self, ids: list[int]) -> None:
        array = (self._lib.llama_token * len(ids))(*ids)
        if self._lib.llama_decode(self._context, self._lib.llama_batch_get_one(array, len(ids))):
            raise RuntimeError(f"llama.cpp failed on {len(ids)} tokens")
        # Waits for the computation.
        self._lib.llama_get_logits_ith(self._context, -1)


def prompt(tokens: int, vocab_size: int) -> list[int]:
    """Ids all over the vocabulary: a repeated one would leave its row of the embedding in the cache."""
    return [(7919 * (index + 1)) % vocab_size for index in range(tokens)]


def memory() -> dict[str, int | None]:
    """Peak of resident memory, mapped weights included, and anonymous memory now: bytes, None where unknown."""
    status, rollup = Path("/proc/self/status"), Path("/proc/self/smaps_rollup")
    if status.is_file() and rollup.is_file():
        # Not getrusage, whose peak begins with that of the process that started this one.
        return {"peak_bytes": _kilobytes(status, "VmHWM"), "anonymous_bytes": _kilobytes(rollup, "Anonymous")}
    if sys.platform == "darwin":
        import resource

        return {"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "anonymous_bytes": None}
    return {"peak_bytes": None, "anonymous_bytes": None}


def _kilobytes(path: Path, field: str) -> int:
    fields = dict(line.split(":", 1) for line in path.read_text(encoding="utf-8").splitlines() if ":" in line)
    return int(fields[field].split()[0]) * 1024


def main() -> None:
    """Load, read one token, say so, and answer until the input ends."""
    kind, path, threads, context = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    backend: Backend = (
        Llama(path, threads, context) if kind == "llama" else Package(path, threads, stock=kind == "stock")
    )
    backend.prefill(1)
    reply({"load_s": backend.load_s})
    for line in sys.stdin:
        request = json.loads(line)
        if request["run"] == "memory":
            reply(memory())
        elif request["run"] == "prefill":
            reply({"seconds": backend.prefill(request["tokens"])})
        else:
            reply({"seconds": backend.decode(request["context"], request["tokens"])})


def reply(answer: object) -> None:
    """One line."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
