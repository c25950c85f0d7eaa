"""How fast does attention read a long cache, float and int8, against ONNX Runtime's own operator?

    python -P benchmarks/attention.py --out benchmarks/results/attention.json

A decode step's attention alone: one token behind a context, all layers of a model with a cache of their own, written in
place. A model whose cache would be larger than `CACHE_BYTES` is measured on fewer layers; times are for one layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnx import NodeProto, TensorProto, helper
from rich.console import Console

from bitnet_onnx.benchmarks import machine, tables
from bitnet_onnx.benchmarks._graphs import timing_options
from bitnet_onnx.benchmarks.results import OURS, Comparison, Report
from bitnet_onnx.benchmarks.timing import interleave, timed
from bitnet_onnx.converters.onnx.bodies import MICROSOFT
from bitnet_onnx.errors import OperatorError
from bitnet_onnx.package_format import OPERATOR_DOMAIN
from bitnet_onnx.runtime.devices import Device, auto_select_device

CACHE_BYTES = 256 << 20
_INPUTS = ("query", "", "", "past_key", "past_value", "seqlens_k", "total_sequence_length", "cos_cache", "sin_cache")
#: Where each domain's operator has the scales.
_SCALES_AT = {OPERATOR_DOMAIN: 10, MICROSOFT: 12}
_INT8_ATTRIBUTES = {"kv_cache_bit_width": 8, "k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL"}


@dataclass(frozen=True, slots=True)
class Heads:
    """The attention of a model."""

    model: str
    num_heads: int
    kv_num_heads: int
    head_dim: int
    layers: int

    def cache_bytes(self, context: int) -> int:
        """Of one layer, float32."""
        return 2 * 4 * self.kv_num_heads * self.head_dim * context

    def measured_layers(self, context: int) -> int:
        """As many as there are, or as fit `CACHE_BYTES`."""
        return max(1, min(self.layers, CACHE_BYTES // self.cache_bytes(context)))


SMOLLM2 = Heads("SmolLM2 135M", 9, 3, 64, 30)
LLAMA3 = Heads("Llama 3 8B", 32, 8, 128, 32)


@dataclass(frozen=True, slots=True)
class Kind:
    """An operator and the type of its cache."""

    name: str
    domain: str
    dtype: type[np.float32 | np.int8]


KINDS = (
    Kind(OURS, OPERATOR_DOMAIN, np.int8),
    Kind("bitnet float", OPERATOR_DOMAIN, np.float32),
    Kind("ONNX Runtime int8", MICROSOFT, np.int8),
    Kind("ONNX Runtime float", MICROSOFT, np.float32),
)


def graph(kind: Kind, heads: Heads, layers: int) -> bytes:
    """A model of `layers` attention nodes that share everything but the cache."""
    int8 = kind.dtype is np.int8
    element = TensorProto.INT8 if int8 else TensorProto.FLOAT
    attributes: dict[str, Any] = {"num_heads": heads.num_heads, "kv_num_heads": heads.kv_num_heads, "do_rotary": 1}
    if int8 and kind.domain == MICROSOFT:
        attributes |= _INT8_ATTRIBUTES
    types = dict.fromkeys(("query", "cos_cache", "sin_cache"), TensorProto.FLOAT)
    types |= dict.fromkeys(("seqlens_k", "total_sequence_length"), TensorProto.INT32)
    if int8:
        types |= dict.fromkeys(("key_scale", "value_scale"), TensorProto.FLOAT)
    nodes: list[NodeProto] = []
    outputs: list[tuple[str, int]] = []
    for layer in range(layers):
        names = [f"{name}.{layer}" if name.startswith("past") else name for name in _INPUTS]
        if int8:
            names += [""] * (_SCALES_AT[kind.domain] - len(names)) + ["key_scale", "value_scale"]
        results = [f"{name}.{layer}" for name in ("output", "present_key", "present_value")]
        nodes.append(
            helper.make_node("GroupQueryAttention", names, results, f"layer.{layer}", domain=kind.domain, **attributes)
        )
        types |= {f"past_{name}.{layer}": element for name in ("key", "value")}
        outputs += zip(results, (TensorProto.FLOAT, element, element), strict=True)
    made = helper.make_graph(
        nodes,
        "attention",
        [helper.make_tensor_value_info(name, type_, None) for name, type_ in types.items()],
        [helper.make_tensor_value_info(name, type_, None) for name, type_ in outputs],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(kind.domain, 1)]
    model: bytes = helper.make_model(made, opset_imports=opsets, ir_version=10).SerializeToString()
    return model


@cache
def feeds(heads: Heads, context: int) -> dict[str, ort.OrtValue]:
    """Everything but the caches: the last of `context` tokens is new."""
    rng = np.random.default_rng(0)
    width = (heads.num_heads + 2 * heads.kv_num_heads) * heads.head_dim
    scale = np.full((heads.kv_num_heads, heads.head_dim), 0.02, np.float32)
    angles = rng.random((context, heads.head_dim // 2), np.float32)
    arrays: dict[str, npt.NDArray[Any]] = {
        "query": rng.standard_normal((1, 1, width), np.float32),
        "seqlens_k": np.array([context - 1], np.int32),
        "total_sequence_length": np.array(context, np.int32),
        "cos_cache": np.cos(angles),
        "sin_cache": np.sin(angles),
        "key_scale": scale,
        "value_scale": scale,
    }
    return {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}


def caches(heads: Heads, context: int, layers: int, dtype: type[np.float32 | np.int8]) -> list[ort.OrtValue]:
    """Keys and values of every layer, random, each in memory of its own."""
    rng = np.random.default_rng(1)
    codes = rng.integers(-127, 128, (1, heads.kv_num_heads, context, heads.head_dim), np.int8)
    rows = codes if dtype is np.int8 else codes * np.float32(0.02)
    return [ort.OrtValue.ortvalue_from_numpy(rows.copy()) for _ in range(2 * layers)]


def binding(
    kind: Kind, heads: Heads, context: int, held: list[ort.OrtValue], device: Device, threads: int
) -> tuple[ort.InferenceSession, ort.IOBinding]:
    """A session with everything bound, the caches in place."""
    options = timing_options(device, threads)
    layers = len(held) // 2
    session = ort.InferenceSession(graph(kind, heads, layers), options, providers=["CPUExecutionProvider"])
    bound = session.io_binding()
    wanted = {node.name for node in session.get_inputs()}
    for name, value in feeds(heads, context).items():
        if name in wanted:
            bound.bind_ortvalue_input(name, value)
    for layer in range(layers):
        bound.bind_output(f"output.{layer}")
        for name, value in zip(("key", "value"), held[2 * layer : 2 * layer + 2], strict=True):
            bound.bind_ortvalue_input(f"past_{name}.{layer}", value)
            bound.bind_ortvalue_output(f"present_{name}.{layer}", value)
    return session, bound


def compare(heads: Heads, context: int, device: Device, threads: int, rounds: int) -> Comparison:
    """All kinds in the same rounds; operators share the caches of a type."""
    layers = heads.measured_layers(context)
    held = {dtype: caches(heads, context, layers, dtype) for dtype in (np.float32, np.int8)}
    candidates = {}
    for kind in KINDS:
        session, bound = binding(kind, heads, context, held[kind.dtype], device, threads)
        candidates[kind.name] = timed(partial(session.run_with_iobinding, bound))
    samples = interleave(candidates, rounds=rounds, warm_up=2)
    return Comparison(
        f"{heads.model}, context {context}",
        threads,
        {name: sample.scaled(1 / layers) for name, sample in samples.items()},
        multiply_adds=2 * heads.num_heads * heads.head_dim * context,
    )


def measure(models: tuple[Heads, ...], contexts: tuple[int, ...], threads: tuple[int, ...], rounds: int) -> Report:
    """Measure every model at every context.

    Raises:
        OperatorError: there is no operator library to measure.
    """
    device = auto_select_device()
    if device.operator_library is None:
        raise OperatorError("there is no operator library to measure: reinstall with a C++17 compiler present")
    comparisons = tuple(_comparisons(models, contexts, device, threads, rounds))
    settings = {"contexts": contexts, "threads": threads, "rounds": rounds, "cache_bytes": CACHE_BYTES}
    notes = (
        "Times are for one layer; bitnet has an int8 cache.",
        "Every candidate runs once a round, in turn; ratios are medians over rounds of neighbouring runs.",
    )
    return Report("attention", settings, comparisons, notes=notes)


def _comparisons(
    models: tuple[Heads, ...], contexts: tuple[int, ...], device: Device, threads: tuple[int, ...], rounds: int
) -> Iterator[Comparison]:
    for heads in models:
        for context in contexts:
            for count in threads:
                yield compare(heads, context, device, count, rounds)


@click.command()
@click.option("--context", "contexts", type=click.IntRange(min=1), multiple=True, default=(512, 2048, 8192))
@click.option("--threads", type=click.IntRange(min=1), multiple=True, help="[default: 1, and all cores]")
@click.option("--rounds", type=click.IntRange(min=1), default=21, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="JSON file to write.")
def main(contexts: tuple[int, ...], threads: tuple[int, ...], rounds: int, out: Path | None) -> None:
    """Measure attention behind a context."""
    counts = threads or tuple(sorted({1, machine.physical_cores()}))
    report = measure((SMOLLM2, LLAMA3), contexts, counts, rounds)
    tables.show(report, Console(highlight=False, markup=False, emoji=False))
    if out is not None:
        report.write(out)


if __name__ == "__main__":
    main()
