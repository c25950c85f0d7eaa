"""`GET /metrics`: the engine's counts and the server's own, as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter
from prometheus_client import Histogram as HistogramOfClient
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from bitnet_onnx.runtime.memory import MemoryReport
from bitnet_onnx.runtime.server._interfaces import EngineLike

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_GAUGES = {
    "queue_length": "Requests that wait for a slot.",
    "running": "Requests that hold a slot.",
    "reading": "Of the running requests, those whose prompt is being read.",
    "max_batch": "Slots.",
    "occupancy": "Share of the slots in use.",
    "prompt_cache_bytes": "Size of the prompt cache.",
}
_COUNTERS = {
    "submitted": "Requests taken.",
    "refused": "Requests refused because the queue was full.",
    "prefilled_tokens": "Tokens of prompts computed.",
    "cached_tokens": "Tokens of prompts taken from the prompt cache.",
    "generated_tokens": "Tokens of answers.",
    "decode_steps": "Steps that generated for all running answers at once.",
    "decode_rows": "Answers in these steps, summed.",
    "drafted_tokens": "Tokens guessed by look-up and read with --speculate.",
    "accepted_tokens": "Guessed tokens that were right.",
    "preemptions": "Answers that gave their memory to others for a while.",
}


class _EngineCollector(Collector):
    """Takes a snapshot of the engine with each scrape."""

    def __init__(self, engine: EngineLike) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        metrics = self._engine.metrics()
        yield GaugeMetricFamily("bitnet_onnx_healthy", "1 while the engine answers.", float(self._engine.healthy))
        for name, help_ in _GAUGES.items():
            yield GaugeMetricFamily(f"bitnet_onnx_{name}", help_, getattr(metrics, name))
        for name, help_ in _COUNTERS.items():
            yield CounterMetricFamily(f"bitnet_onnx_{name}", help_, getattr(metrics, name))
        finished = CounterMetricFamily("bitnet_onnx_finished", "Answers ended.", labels=["reason"])
        for reason, count in metrics.finished.items():
            finished.add_metric([reason], count)
        yield finished
        first = metrics.first_token
        bounds = [*map(str, first.bounds), "+Inf"]
        yield HistogramMetricFamily(
            "bitnet_onnx_first_token_seconds",
            "From submission to the first token.",
            buckets=list(zip(bounds, map(float, accumulate(first.counts)), strict=True)),
            sum_value=first.total,
        )
        memory = metrics.memory
        for name, value in (("budget", memory.budget), ("used", memory.used), ("peak", memory.peak)):
            yield GaugeMetricFamily(f"bitnet_onnx_memory_{name}_bytes", f"Memory pool: {name}.", value)
        # Only the real pool knows more than the engine needs of one.
        if isinstance(memory, MemoryReport):
            owners = GaugeMetricFamily("bitnet_onnx_memory_bytes", "Memory pool by owner.", labels=["owner"])
            for owner, size in memory.by_owner.items():
                owners.add_metric([owner], size)
            yield owners
            yield GaugeMetricFamily(
                "bitnet_onnx_memory_fragmentation",
                "Share of the memory of keys and values that holds no token.",
                memory.fragmentation,
            )


class ServerMetrics:
    """The registry of one server."""

    def __init__(self, engine: EngineLike) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(engine))
        self._responses = Counter(
            "bitnet_onnx_http_responses", "Responses begun.", ["path", "status"], registry=self._registry
        )
        self._seconds = HistogramOfClient(
            "bitnet_onnx_http_seconds",
            "From the request to the end of its response.",
            ["path"],
            buckets=(0.005, 0.025, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
            registry=self._registry,
        )

    def count(self, path: str, status: int, seconds: float) -> None:
        """Counts one response; `path` is one of the server's own."""
        self._responses.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """What a scrape reads."""
        return generate_latest(self._registry)
