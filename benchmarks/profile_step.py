"""Where does the time of one decode step go?

    python -P benchmarks/profile_step.py PACKAGE --context 0 --threads 2 --out benchmarks/results/profile.json

ONNX Runtime's own profile of some steps behind a context, summed by operator and by kind of layer. What it reports for
a step and not for any node is its own work between nodes. Profiling itself costs some microseconds a node.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime as ort
from rich.console import Console
from rich.table import Table

from bitnet_onnx.benchmarks import machine
from bitnet_onnx.runtime.devices import Device, auto_select_device, register_library
from bitnet_onnx.runtime.kv_cache import KVCache
from bitnet_onnx.runtime.package import PackageInfo

_WARM_UP = 2
_NODE, _STEP = "_kernel_time", "model_run"
BETWEEN = "(between nodes)"


@dataclass(frozen=True, slots=True)
class Entry:
    """One operator, or one kind of layer: microseconds and calls of a step, and its share of the step."""

    name: str
    microseconds: float
    calls: float
    share: float

    def as_dict(self) -> dict[str, str | float]:
        """All figures, for JSON."""
        return {"name": self.name, "us": self.microseconds, "calls": self.calls, "share": self.share}


@dataclass(frozen=True, slots=True)
class Profile:
    """The mean of some decode steps, largest parts first."""

    step_us: float
    operators: tuple[Entry, ...]
    layers: tuple[Entry, ...]


def profile(path: Path, *, threads: int, context: int, steps: int, device: Device | None = None) -> Profile:
    """Profile `steps` decode steps of a package behind `context` tokens.

    Raises:
        PackageError: `path` is no package.
        InputError: the context is longer than the model's.
    """
    package = PackageInfo.open(path)
    device = auto_select_device() if device is None else device
    with tempfile.TemporaryDirectory(prefix="bitnet-onnx-") as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        # As the runtime opens it.
        options.enable_mem_pattern = options.enable_cpu_mem_arena = False
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder, "profile"))
        if device.operator_library is not None:
            register_library(options, device.operator_library)
        session = ort.InferenceSession(str(package.model_path), options, providers=["CPUExecutionProvider"])
        cache = KVCache(session, package.architecture)
        cache.reserve(context + _WARM_UP + steps)
        cache.advance(context)
        for _ in range(_WARM_UP + steps):
            binding = cache.binding()
            binding.bind_cpu_input("input_ids", np.ones((1, 1), np.int64))
            binding.bind_cpu_input("attention_mask", np.ones((1, cache.length + 1), np.int64))
            binding.bind_output("logits")
            session.run_with_iobinding(binding)
            cache.advance(1)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return summarize(events, skip=_WARM_UP)


def summarize(events: Sequence[dict[str, Any]], *, skip: int) -> Profile:
    """Sum a trace by operator and by layer, leaving out its first `skip` steps."""
    runs = sorted((e["ts"], e["dur"]) for e in events if e["name"] == _STEP)[skip:]
    begin = runs[0][0]
    total = sum(duration for _, duration in runs)
    operators: dict[str, list[float]] = defaultdict(list)
    layers: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_NODE) and event["ts"] >= begin:
            operators[event["args"]["op_name"]].append(event["dur"])
            layers[_kind(event["name"].removesuffix(_NODE))].append(event["dur"])
    return Profile(total / len(runs), _entries(operators, total, len(runs)), _entries(layers, total, len(runs)))


def _kind(node: str) -> str:
    """`/model/layers.3/attn/o_proj/BitLinear` -> `/model/layers/attn/o_proj/BitLinear`: one line for all layers."""
    return re.sub(r"(layers)\.\d+", r"\1", node)


def _entries(table: dict[str, list[float]], total: float, steps: int) -> tuple[Entry, ...]:
    entries = [
        Entry(name, sum(durations) / steps, len(durations) / steps, sum(durations) / total)
        for name, durations in table.items()
    ]
    between = total - sum(map(sum, table.values()))
    entries.append(Entry(BETWEEN, between / steps, 0, between / total))
    return tuple(sorted(entries, key=lambda entry: -entry.microseconds))


def show(found: Profile, console: Console) -> None:
    """Print both tables."""
    for title, entries in (("operator", found.operators), ("layer", found.layers)):
        table = Table(box=None, pad_edge=False)
        table.add_column(title, overflow="fold")
        for name in ("calls", "us a step", "share"):
            table.add_column(name, justify="right")
        for entry in entries:
            table.add_row(entry.name, f"{entry.calls:.0f}", f"{entry.microseconds:.0f}", f"{100 * entry.share:.1f} %")
        console.print(table)
        console.print()
    console.print(f"one step: {found.step_us / 1e3:.2f} ms")


@click.command()
@click.argument("package", type=click.Path(path_type=Path))
@click.option("--context", type=click.IntRange(min=0), default=0, show_default=True, help="Tokens before the step.")
@click.option("--steps", type=click.IntRange(min=1), default=16, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=machine.physical_cores, show_default="all cores")
@click.option("--stock", is_flag=True, help="Without the operator library.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file to write.")
def main(package: Path, context: int, steps: int, threads: int, stock: bool, out: Path | None) -> None:
    """Profile a decode step of PACKAGE."""
    found = profile(package, threads=threads, context=context, steps=steps, device=Device() if stock else None)
    show(found, Console(highlight=False, markup=False, emoji=False))
    if out is not None:
        report = {
            "benchmark": "profile_step",
            "machine": machine.describe(),
            "settings": {"package": package.name, "context": context, "steps": steps, "threads": threads},
            "step_us": found.step_us,
            "operators": [entry.as_dict() for entry in found.operators],
            "layers": [entry.as_dict() for entry in found.layers],
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
