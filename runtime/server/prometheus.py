"""`GET /metrics`: the engine's counts and the server's own, as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, ProcessCollector
from prometheus_client import Histogram as HistogramOfClient
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from bitnet_onnx.runtime.server._interfaces import EngineLike

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "bitnet_onnx_"

#: What is exported of `EngineMetrics` by the name of its field.
GAUGES = {
    "queue_length": "Requests that wait for a slot.",
    "running": "Requests that hold a slot.",
    "reading": "Of the running requests, those whose prompt is being read.",
    "max_batch": "Slots.",
    "prompt_cache_bytes": "Size of the prompt cache.",
}
COUNTERS = {
    "submitted": "Requests taken.",
    "refused": "Requests refused because the queue was full.",
    "prefilled_tokens": "Tokens of prompts computed.",
    "prompt_tokens": "Tokens of prompts looked up in the prompt cache.",
    "cached_tokens": "Tokens of prompts taken from the prompt cache.",
    "generated_tokens": "Tokens of answers.",
    "decode_steps": "Steps that generated for all running answers at once.",
    "decode_rows": "Answers in these steps, summed.",
    "drafted_tokens": "Tokens guessed by look-up and read with --speculate.",
    "accepted_tokens": "Guessed tokens that were right.",
    "preemptions": "Answers that gave their memory to others for a while.",
}
#: By field, without the unit that the exported name ends with.
HISTOGRAMS = {
    "queued": "From submission to the first slot.",
    "first_token": "From submission to the first token.",
    "token_gap": "Between two tokens of one answer.",
}


class _EngineCollector(Collector):
    """Takes a snapshot of the engine with each scrape."""

    def __init__(self, engine: EngineLike, model_name: str) -> None:
        self._engine = engine
        self._labels = {"model": model_name, "version": version("bitnet-onnx")}

    def collect(self) -> Iterator[Metric]:
        metrics = self._engine.metrics()
        yield InfoMetricFamily(f"{PREFIX}server", "What is served, and by which version.", self._labels)
        yield GaugeMetricFamily(f"{PREFIX}healthy", "1 while the engine answers.", float(self._engine.healthy))
        yield GaugeMetricFamily(f"{PREFIX}occupancy_ratio", "Share of the slots in use.", metrics.occupancy)
        for name, help_ in GAUGES.items():
            yield GaugeMetricFamily(f"{PREFIX}{name}", help_, getattr(metrics, name))
        for name, help_ in COUNTERS.items():
            yield CounterMetricFamily(f"{PREFIX}{name}", help_, getattr(metrics, name))
        finished = CounterMetricFamily(f"{PREFIX}finished", "Answers ended.", labels=["reason"])
        for reason, count in metrics.finished.items():
            finished.add_metric([reason], count)
        yield finished
        for name, help_ in HISTOGRAMS.items():
            durations = getattr(metrics, name)
            bounds = [*map(str, durations.bounds), "+Inf"]
            yield HistogramMetricFamily(
                f"{PREFIX}{name}_seconds",
                help_,
                buckets=list(zip(bounds, map(float, accumulate(durations.counts)), strict=True)),
                sum_value=durations.total,
            )
        memory = metrics.memory
        for name, value in (("budget", memory.budget), ("used", memory.used), ("peak", memory.peak)):
            yield GaugeMetricFamily(f"{PREFIX}memory_{name}_bytes", f"Memory pool: {name}.", value)
        owners = GaugeMetricFamily(f"{PREFIX}memory_bytes", "Memory pool by owner.", labels=["owner"])
        for owner, size in memory.by_owner.items():
            owners.add_metric([owner], size)
        yield owners
        yield GaugeMetricFamily(
            f"{PREFIX}memory_fragmentation_ratio",
            "Share of the memory of keys and values that holds no token.",
            memory.fragmentation,
        )


class ServerMetrics:
    """The registry of one server."""

    def __init__(self, engine: EngineLike, model_name: str) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(engine, model_name))
        ProcessCollector(registry=self._registry)  # memory, processor time and files, on Linux
        self._responses = Counter(
            f"{PREFIX}http_responses", "Responses begun.", ["path", "status"], registry=self._registry
        )
        self._seconds = HistogramOfClient(
            f"{PREFIX}http_seconds",
            "From the request to the end of its response.",
            ["path"],
            buckets=(0.005, 0.025, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
            registry=self._registry,
        )

    def count(self, path: str, status: int, seconds: float) -> None:
        """Counts one response; `path` is one of the server's own."""
        self._responses.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def families(self) -> Iterable[Metric]:
        """The metrics of this moment."""
        return self._registry.collect()

    def text(self) -> bytes:
        """What a scrape reads."""
        return generate_latest(self._registry)


class _Fixed(Collector):
    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        return self._metrics


def labelled(label: str, texts: Mapping[str, bytes]) -> bytes:
    """One text of many, whose samples are told apart by the value of a label."""
    whole: dict[str, Metric] = {}
    for value, text in sorted(texts.items()):
        for metric in text_string_to_metric_families(text.decode()):
            into = whole.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            for sample in metric.samples:
                into.add_sample(sample.name, {**sample.labels, label: value}, sample.value)
    registry = CollectorRegistry()
    registry.register(_Fixed(list(whole.values())))
    return generate_latest(registry)
