"""One server at one moment, out of what it tells Prometheus: its own registry, or the text of `/metrics` elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, get_args

from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from bitnet_onnx.errors import InputError
from bitnet_onnx.runtime.engine.metrics import EngineMetrics, Histogram
from bitnet_onnx.runtime.engine.request import EndReason
from bitnet_onnx.runtime.memory import MemoryReport
from bitnet_onnx.runtime.server.prometheus import COUNTERS, GAUGES, HISTOGRAMS, PREFIX

#: No server of ours has as many samples, or says as much in a label.
_MAX_SAMPLES = 5000
_MAX_LABEL = 200
_MAX_VALUE = 2.0**62
#: Asked again and again by monitors, which would hide everything else.
_LOOKING = frozenset({"/health", "/metrics"})


@dataclass(frozen=True, slots=True)
class ServerSnapshot:
    """One server at one moment.

    Attributes:
        model: what clients call it.
        engine: what the engine has counted.
        responses: begun, by HTTP status; those to who only looks are left out.
        resident_bytes: of the process, mapped weights included; None where the system does not tell.
        started_at: of the process, seconds since 1970; None as before.
    """

    model: str
    engine: EngineMetrics
    responses: Mapping[int, int]
    resident_bytes: int | None
    started_at: float | None


def parse_snapshot(text: str) -> ServerSnapshot:
    """Reads the text of `/metrics`, of a server that need not be ours.

    Raises:
        InputError: it is not what a server of ours says.
    """
    try:
        return read_snapshot(text_string_to_metric_families(text))
    except (ValueError, KeyError, IndexError, AttributeError) as error:  # what the parser has for broken lines
        raise InputError(f"/metrics: not in the format of Prometheus: {' '.join(str(error).split()):.80}") from None


def read_snapshot(families: Iterable[Metric]) -> ServerSnapshot:
    """Reads the metrics of a server.

    Raises:
        InputError: one is missing or has an impossible value.
    """
    samples = _Samples(families)
    fields: dict[str, Any] = {name: int(samples.value(f"{PREFIX}{name}")) for name in GAUGES}
    fields |= {name: int(samples.value(f"{PREFIX}{name}_total")) for name in COUNTERS}
    fields |= {name: samples.histogram(f"{PREFIX}{name}_seconds") for name in HISTOGRAMS}
    if fields["max_batch"] < 1:
        raise InputError(f"/metrics: {PREFIX}max_batch is {fields['max_batch']}, expected at least 1")
    finished = dict(samples.pairs(f"{PREFIX}finished_total", "reason"))
    memory = MemoryReport(
        budget=int(samples.value(f"{PREFIX}memory_budget_bytes")),
        used=int(samples.value(f"{PREFIX}memory_used_bytes")),
        peak=int(samples.value(f"{PREFIX}memory_peak_bytes")),
        by_owner={owner: int(size) for owner, size in samples.pairs(f"{PREFIX}memory_bytes", "owner")},
        fragmentation=min(samples.value(f"{PREFIX}memory_fragmentation_ratio"), 1.0),
    )
    responses: dict[int, int] = {}
    counted = f"{PREFIX}http_responses_total"
    for (path, _), (status, count) in zip(
        samples.pairs(counted, "path"), samples.pairs(counted, "status"), strict=True
    ):
        number = int(status) if status.isascii() and status.isdigit() else 0
        if path not in _LOOKING:
            responses[number] = responses.get(number, 0) + int(count)
    resident = samples.optional("process_resident_memory_bytes")
    return ServerSnapshot(
        model=next((model for model, _ in samples.pairs(f"{PREFIX}server_info", "model")), ""),
        engine=EngineMetrics(
            healthy=samples.value(f"{PREFIX}healthy") == 1,
            finished={reason: int(finished.get(reason, 0)) for reason in get_args(EndReason)},
            memory=memory,
            **fields,
        ),
        responses=responses,
        resident_bytes=None if resident is None else int(resident),
        started_at=samples.optional("process_start_time_seconds"),
    )


class _Samples:
    """The samples by name, each with its labels and a value that is no nonsense."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._found: dict[str, list[tuple[dict[str, str], float]]] = {}
        count = 0
        for family in families:
            for sample in family.samples:
                count += 1
                if count > _MAX_SAMPLES:
                    raise InputError(f"/metrics: more than {_MAX_SAMPLES} samples, not a server of bitnet-onnx")
                self._found.setdefault(sample.name, []).append((sample.labels, sample.value))

    def optional(self, name: str) -> float | None:
        return self.value(name) if name in self._found else None

    def value(self, name: str) -> float:
        found = self._found.get(name)
        if not found:
            raise InputError(f"/metrics: {name} is missing, not a server of this version of bitnet-onnx")
        return _checked(name, found[0][1])

    def pairs(self, name: str, label: str) -> list[tuple[str, float]]:
        """Values by one label; none where nothing was counted yet."""
        return [
            (labels.get(label, "")[:_MAX_LABEL], _checked(name, value)) for labels, value in self._found.get(name, ())
        ]

    def histogram(self, name: str) -> Histogram:
        buckets = [(_number(bound), count) for bound, count in self.pairs(f"{name}_bucket", "le")]
        bounds = [bound for bound, _ in buckets]
        steps = [0.0, *(count for _, count in buckets)]
        counts = tuple(int(after) - int(before) for before, after in pairwise(steps))
        if not bounds or bounds[-1] != math.inf or not all(a < b for a, b in pairwise(bounds)) or min(counts) < 0:
            raise InputError(f"/metrics: the buckets of {name} do not rise to +Inf")
        return Histogram(tuple(bounds[:-1]), counts, self.value(f"{name}_sum"))


def _checked(name: str, value: float) -> float:
    if not 0 <= value <= _MAX_VALUE:
        raise InputError(f"/metrics: {name} is {value}, expected 0 to {_MAX_VALUE:g}")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
