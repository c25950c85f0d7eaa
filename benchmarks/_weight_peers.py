"""What other quantizers make of the linear layers of a float32 package, put back as floats.

The package stays float32, so that every quantizer is measured by the same graph; its linear layers round their inputs
to 8 bits as ours do, where that is asked for.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import onnx
from onnx import helper
from onnxruntime.capi._pybind_state import quantize_matmul_2bits, quantize_matmul_4bits

from bitnet_onnx.package_format import ENGINE, MANIFEST, MODEL, MODEL_DATA
from bitnet_onnx.quantized import FloatArray

#: A matrix `[N, K]` into what it is after quantization.
Round = Callable[[FloatArray], FloatArray]

_FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Peer:
    """A quantizer of others.

    Attributes:
        name: how the results call it.
        bits: of a weight, scales and zero points included.
        round: what it makes of a matrix; None: the floats.
        activation_bits: 8, or 0 where inputs stay floats.
    """

    name: str
    bits: float
    round: Round | None
    activation_bits: int = 8


def _nbits(bits: int, block: int, symmetric: bool) -> Peer:
    """ONNX Runtime's own `MatMulNBitsQuantizer` (its default algorithm), through the function that it calls."""
    quantize = {2: quantize_matmul_2bits, 4: quantize_matmul_4bits}[bits]
    fields = 8 // bits

    def unpack(packed: np.ndarray, count: int) -> np.ndarray:
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        values = (packed[..., None] >> shifts) & np.uint8((1 << bits) - 1)
        return values.reshape(*packed.shape[:-1], -1)[..., :count]

    def rounded(weight: FloatArray) -> FloatArray:
        rows, columns = weight.shape
        blocks = -(-columns // block)
        padded = np.zeros((blocks * block, rows), np.float32)
        padded[:columns] = weight.T
        packed = np.zeros((rows, blocks, block // fields), np.uint8)
        zeros = np.zeros((rows, -(-blocks // fields)), np.uint8)
        scales = np.zeros((rows, blocks), np.float32)
        quantize(packed, padded, scales, zeros, block, rows, blocks * block, symmetric)
        codes = unpack(packed, block).astype(np.float32)
        zero = np.float32(1 << (bits - 1)) if symmetric else unpack(zeros, blocks).astype(np.float32)[..., None]
        result: FloatArray = ((codes - zero) * scales[..., None]).reshape(rows, -1)[:, :columns]
        return result

    kind = "symmetric" if symmetric else "asymmetric"
    scale_bits = 32 / block + (0 if symmetric else bits / block)
    return Peer(f"MatMulNBits {bits} bit, block {block}, {kind}", bits + scale_bits, rounded)


def _round_to_nearest(bits: int, group: int) -> Peer:
    """Our own rounding to nearest at a number of bits that we do not store."""

    def rounded(weight: FloatArray) -> FloatArray:
        rows, columns = weight.shape
        groups = -(-columns // group)
        blocks = np.zeros((rows, groups * group), np.float32)
        blocks[:, :columns] = weight
        blocks = blocks.reshape(rows, groups, group)
        largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2, keepdims=True), axis=2)
        half = 1 << (bits - 1)
        scale = largest / np.float32(-half)
        inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
        codes = np.clip(np.rint(blocks * inverse), -half, half - 1)
        result: FloatArray = (codes * scale).reshape(rows, -1)[:, :columns]
        return result

    return Peer(f"round to nearest {bits} bit, group {group}", bits + 32 / group, rounded)


def _gguf(kind: gguf.GGMLQuantizationType) -> Peer:
    """A type of GGUF, by the code of its own project."""
    block, size = gguf.GGML_QUANT_SIZES[kind]

    def rounded(weight: FloatArray) -> FloatArray:
        result: FloatArray = gguf.quants.dequantize(gguf.quants.quantize(weight, kind), kind)
        return result.reshape(weight.shape)

    return Peer(f"GGUF {kind.name}", 8 * size / block, rounded)


PEERS = (
    Peer("float32 weights", 32.0, None),
    _gguf(gguf.GGMLQuantizationType.Q4_0),
    _nbits(4, 32, symmetric=True),
    _nbits(4, 64, symmetric=False),
    _nbits(2, 32, symmetric=False),
    _round_to_nearest(3, 64),
    _nbits(4, 32, symmetric=False),
    _nbits(4, 128, symmetric=False),
    _nbits(2, 64, symmetric=False),
)


def write_peer(package: Path, output: Path, peer: Peer) -> None:
    """Copy a float32 package to `output` with the linear layers of its blocks rounded by `peer`."""
    shutil.copytree(package, output)
    manifest = json.loads((output / MANIFEST).read_text("utf-8"))
    manifest["source"]["name"] = f"{manifest['source']['name']}, {peer.name}"
    (output / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    for name in (MODEL, ENGINE):
        model = onnx.load_model(output / name, load_external_data=False)
        weights = {tensor.name: tensor for tensor in model.graph.initializer}
        layers = [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in weights]
        if name == MODEL and peer.round is not None:
            for node in layers:
                _replace(output / MODEL_DATA, weights[node.input[1]], peer.round)
        if peer.activation_bits:
            _round_inputs(model.graph, layers, peer.activation_bits)
        onnx.save_model(model, output / name)


def _replace(data: Path, tensor: onnx.TensorProto, round_: Round) -> None:
    place = {entry.key: entry.value for entry in tensor.external_data}
    shape = tuple(tensor.dims)
    if int(place["length"]) != math.prod(shape) * _FLOAT_BYTES:
        raise SystemExit(f"{tensor.name} is no float32 matrix: the package is not float32")
    weight = np.memmap(data, np.float32, "r+", int(place["offset"]), shape)
    weight[:] = round_(np.ascontiguousarray(weight.T)).T
    weight.flush()


def _round_inputs(graph: onnx.GraphProto, layers: list[onnx.NodeProto], bits: int) -> None:
    """Round what the layers read to integers of a scale for each token and back, as `docs/operator.md` does."""
    for name, value in {"fake.floor": 1e-5, "fake.peak": 127.0, "fake.low": -128.0}.items():
        graph.initializer.append(helper.make_tensor(name, onnx.TensorProto.FLOAT, [], [value]))
    graph.initializer.append(helper.make_tensor("fake.axes", onnx.TensorProto.INT64, [1], [-1]))
    if bits != 8:
        raise SystemExit(f"inputs of {bits} bits are not emulated")
    rounded: dict[str, str] = {}
    nodes: list[onnx.NodeProto] = []
    wanted = {node.name for node in layers}
    for node in graph.node:
        if node.name in wanted:
            x = node.input[0]
            if x not in rounded:
                rounded[x] = f"{x}/rounded"
                steps = [
                    ("Abs", [x], "abs"),
                    ("ReduceMax", [f"{x}/abs", "fake.axes"], "max"),
                    ("Max", [f"{x}/max", "fake.floor"], "peak"),
                    ("Div", ["fake.peak", f"{x}/peak"], "scale"),
                    ("Mul", [x, f"{x}/scale"], "scaled"),
                    ("Round", [f"{x}/scaled"], "whole"),
                    ("Clip", [f"{x}/whole", "fake.low", "fake.peak"], "codes"),
                    ("Div", [f"{x}/codes", f"{x}/scale"], "rounded"),
                ]
                nodes += [helper.make_node(kind, inputs, [f"{x}/{output}"]) for kind, inputs, output in steps]
            node.input[0] = rounded[x]
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
