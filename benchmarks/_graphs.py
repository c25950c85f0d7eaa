"""Graphs of many linear layers with random weights, in our encoding and in ONNX Runtime's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort

from bitnet_onnx.bitlinear import BitLinearAttributes
from bitnet_onnx.converters.onnx._data_file import DataFile
from bitnet_onnx.converters.onnx._emitter import Emitter
from bitnet_onnx.converters.onnx.bodies import MICROSOFT, Fallback
from bitnet_onnx.converters.onnx.forms.bitnet import BitnetForm, PackedMatrix
from bitnet_onnx.converters.onnx.forms.form import LayerInput
from bitnet_onnx.package_format import MODEL, MODEL_DATA
from bitnet_onnx.packing import packed_shape
from bitnet_onnx.quantized import TERNARY, Grid
from bitnet_onnx.runtime.devices import Device, register_library

#: The bytes of four ternary weights: none of the four is 0.
_TERNARY_BYTES = np.array([b for b in range(256) if all(b >> shift & 3 for shift in (0, 2, 4, 6))], np.uint8)
INT8 = Grid(bits=8, zero_point=128)


@dataclass(frozen=True, slots=True)
class Shape:
    """A linear layer: N rows (outputs), K columns (inputs)."""

    rows: int
    columns: int

    def __str__(self) -> str:
        return f"{self.rows}x{self.columns}"

    @property
    def weights(self) -> int:
        """How many there are: also the multiply-adds of one token."""
        return self.rows * self.columns


class Kind(Protocol):
    """An encoding of weights and the operator that reads it."""

    @property
    def name(self) -> str:
        """As in tables."""
        ...

    def weight_bytes(self, shape: Shape) -> int:
        """Bytes of one matrix with its scales."""
        ...

    def add(self, form: BitnetForm, path: str, x: ir.Value, shape: Shape, rng: np.random.Generator) -> ir.Value:
        """Add one layer with weights of its own."""
        ...


@dataclass(frozen=True, slots=True)
class Ours:
    """`bitnet::BitLinear`, one scale a row."""

    grid: Grid
    activation_bits: int = 8
    name: str = "bitnet"

    def weight_bytes(self, shape: Shape) -> int:
        """Bytes of one matrix with its scales."""
        return math.prod(packed_shape(shape.rows, shape.columns, self.grid.bits)) + 4 * shape.rows

    def add(self, form: BitnetForm, path: str, x: ir.Value, shape: Shape, rng: np.random.Generator) -> ir.Value:
        """Add one layer with weights of its own."""
        packed = rng.integers(0, 256, packed_shape(shape.rows, shape.columns, self.grid.bits), np.uint8)
        if self.grid == TERNARY:
            packed = _TERNARY_BYTES[packed % len(_TERNARY_BYTES)]
        weight = form.emit.constant(f"{path}.weight", packed)
        scale = form.emit.constant(f"{path}.scale", _scales(rng, shape.rows))
        attributes = BitLinearAttributes(shape.columns, shape.rows, self.grid, self.activation_bits)
        matrix = PackedMatrix(form, weight, scale, attributes, per_tensor=False)
        return matrix.linear(f"/{path}", LayerInput(form, x), None)


@dataclass(frozen=True, slots=True)
class MatMulNBits:
    """`com.microsoft::MatMulNBits` with int8 activations (accuracy level 4), its fastest way."""

    bits: int
    block: int

    @property
    def name(self) -> str:
        """As in tables."""
        return f"MatMulNBits {self.bits} bit"

    def weight_bytes(self, shape: Shape) -> int:
        """Bytes of one matrix with its scales."""
        blocks = shape.rows * -(-shape.columns // self.block)
        return blocks * (self.block * self.bits // 8 + 4)

    def add(self, form: BitnetForm, path: str, x: ir.Value, shape: Shape, rng: np.random.Generator) -> ir.Value:
        """Add one layer with weights of its own."""
        blocks = -(-shape.columns // self.block)
        blob = rng.integers(0, 256, (shape.rows, blocks, self.block * self.bits // 8), np.uint8)
        weight = form.emit.constant(f"{path}.weight", blob)
        scale = form.emit.constant(f"{path}.scale", _scales(rng, shape.rows * blocks))
        attributes: dict[str, int | float | str | Sequence[int]] = {
            "K": shape.columns,
            "N": shape.rows,
            "bits": self.bits,
            "block_size": self.block,
            "accuracy_level": 4,
        }
        return form.emit.node(f"/{path}/MatMulNBits", [x, weight, scale], attributes, domain=MICROSOFT)


@dataclass(frozen=True, slots=True)
class Float:
    """`MatMul` in float32."""

    name: str = "MatMul fp32"

    def weight_bytes(self, shape: Shape) -> int:
        """Bytes of one matrix."""
        return 4 * shape.weights

    def add(self, form: BitnetForm, path: str, x: ir.Value, shape: Shape, rng: np.random.Generator) -> ir.Value:
        """Add one layer with weights of its own."""
        weight = rng.random((shape.columns, shape.rows), np.float32) - np.float32(0.5)
        return form.emit.node(f"/{path}/MatMul", [x, form.emit.constant(f"{path}.weight", weight)])


def _scales(rng: np.random.Generator, count: int) -> npt.NDArray[np.float32]:
    return np.float32(0.01) + rng.random(count, np.float32) * np.float32(0.01)


def write_graph(folder: Path, kind: Kind, shapes: Sequence[Shape], repeat: int) -> Path:
    """Write a graph of `repeat` times all `shapes`, every layer with its own weights.

    There is one input `X{K}` for each width, float `[M, K]`. Layers follow one another without feeding one another,
    which keeps the activations in the cache as in a decoder; of each result one column goes to the output, so that
    no layer can be left out and no result is copied.
    """
    rng = np.random.default_rng(0)
    with DataFile(folder / MODEL_DATA) as data:
        emit = Emitter(data)
        form = BitnetForm(emit, Fallback.FAST)
        inputs = {
            width: emit.input(f"X{width}", ir.DataType.FLOAT, ["M", width])
            for width in sorted({shape.columns for shape in shapes})
        }
        columns = []
        for copy in range(repeat):
            for index, shape in enumerate(shapes):
                path = f"layers.{copy}.{index}"
                y = kind.add(form, path, inputs[shape.columns], shape, rng)
                columns.append(emit.node(f"/{path}/Slice", [y, emit.ints(0), emit.ints(1), emit.ints(1)]))
        emit.output(emit.node("/Concat", columns, {"axis": 1}), "Y", ir.DataType.FLOAT, ["M", len(columns)])
    ir.save(form.model("benchmark"), folder / MODEL)
    return folder / MODEL


def timing_options(device: Device, threads: int) -> ort.SessionOptions:
    """Options of a session that is timed beside others."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    # Threads that go on spinning after their session's run would take the cores from the next candidate.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if device.operator_library is not None:
        register_library(options, device.operator_library)
    return options


def open_graph(path: Path, device: Device, threads: int) -> ort.InferenceSession:
    """Open a graph for timing beside others."""
    return ort.InferenceSession(str(path), timing_options(device, threads), providers=["CPUExecutionProvider"])
