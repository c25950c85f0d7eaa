"""Snapshots of a server that works steadily, without a server."""

from __future__ import annotations

from bitnet_onnx.runtime.engine.metrics import Counters, EngineMetrics
from bitnet_onnx.runtime.memory import MemoryReport
from bitnet_onnx.runtime.server.snapshot import ServerSnapshot

GENERATED, READ, WAITING = 40, 100, 3


def snapshot(second: int, *, healthy: bool = True, errors: int = 0, model: str = "tiny") -> ServerSnapshot:
    """What it counts after so many seconds: each has 4 answers, 10 steps, and half of the prompts in the cache."""
    counters = Counters()
    for _ in range(4 * second):
        counters.queued.add(0.02)
        counters.first_token.add(0.2)
    for _ in range(36 * second):
        counters.token_gap.add(0.004)
    counters.finished |= {"stop": 3 * second, "cancelled": second, "error": errors}
    engine = EngineMetrics(
        healthy=healthy,
        queue_length=WAITING,
        running=6,
        reading=1,
        max_batch=8,
        submitted=4 * second,
        refused=0,
        finished=counters.finished,
        prefilled_tokens=READ * second,
        prompt_tokens=2 * READ * second,
        cached_tokens=READ * second,
        drafted_tokens=0,
        accepted_tokens=0,
        generated_tokens=GENERATED * second,
        decode_steps=10 * second,
        decode_rows=40 * second,
        preemptions=0,
        queued=counters.queued.snapshot(),
        first_token=counters.first_token.snapshot(),
        token_gap=counters.token_gap.snapshot(),
        prompt_cache_bytes=5 * 10**6,
        memory=MemoryReport(10**8, 25 * 10**6, 30 * 10**6, {"kv": 20 * 10**6, "prompt cache": 5 * 10**6}, 0.25),
    )
    return ServerSnapshot(model, engine, {200: 3 * second, 400: 2, 429: 1, 500: errors}, 123 * 10**6, 1000.0)
