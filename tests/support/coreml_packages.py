"""Core ML packages of random decoders, and a saved package read back by the definition of its two files."""

from __future__ import annotations

import importlib.util
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_decoders import source

from bitnet_onnx.converters.coreml.options import CoreMLOptions
from bitnet_onnx.converters.coreml.package import MODEL_FILE, WEIGHT_FILE, write_bundle
from bitnet_onnx.converters.onnx._linears import LayerRecord
from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.evaluation.mil.interpreter import Finding, Interpreter, Mode
from bitnet_onnx.evaluation.mil.package import open_package
from bitnet_onnx.policy import Policy

#: For modules whose tests write packages.
needs_coremltools = pytest.mark.skipif(
    importlib.util.find_spec("coremltools") is None,
    reason="coremltools is not installed: not every system has it",
)

_SENTINEL = 0xDEADBEEF
#: Bits of an element and how a whole byte of it is read, by the names of the protobuf.
_ELEMENTS = {
    "FLOAT32": (32, "<f4"),
    "FLOAT16": (16, "<f2"),
    "INT32": (32, "<i4"),
    "INT8": (8, "i1"),
    "INT4": (4, "u1"),
    "UINT6": (6, "u1"),
    "UINT2": (2, "u1"),
    "UINT1": (1, "u1"),
}


def write_coreml(
    directory: Path, spec: DecoderSpec, policy: Policy, options: CoreMLOptions | None = None
) -> tuple[Path, tuple[LayerRecord, ...]]:
    """A package of the decoder with random weights."""
    package = directory / "random.mlpackage"
    package.mkdir(parents=True)
    return package, write_bundle(package, source(spec), options or CoreMLOptions(), policy=policy)


def dense_name(role: str) -> str:
    return role.replace(".", "_") + "_weight"


def factor_name(role: str) -> str:
    return role.replace(".", "_") + "_factor"


@dataclass(frozen=True)
class Saved:
    """A package's protobuf and weight file."""

    model: object
    weights: bytes

    @classmethod
    def read(cls, package: Path) -> Saved:
        model = _protobuf().Model()
        model.ParseFromString((package / MODEL_FILE).read_bytes())
        return cls(model, (package / WEIGHT_FILE).read_bytes())

    @property
    def functions(self) -> dict[str, Function]:
        found = {}
        for name, function in self.model.mlProgram.functions.items():
            (block,) = function.block_specializations.values()
            found[name] = Function(self, function, list(block.operations))
        return found

    @property
    def metadata(self) -> dict[str, str]:
        return dict(self.model.description.metadata.userDefined)

    def array(self, value: object) -> np.ndarray:
        """A constant, wherever it stands."""
        kind = value.type.tensorType
        shape = [dimension.constant.size for dimension in kind.dimensions]
        element = _type_name(kind.dataType)
        if value.WhichOneof("value") == "immediateValue":
            return _immediate(value.immediateValue.tensor, element).reshape(shape)
        assert value.blobFileValue.fileName == "@model_path/weights/weight.bin"
        return _unpacked(self._blob(value.blobFileValue.offset), element, math.prod(shape)).reshape(shape)

    def _blob(self, offset: int) -> bytes:
        sentinel, _ = np.frombuffer(self.weights, "<u4", 2, offset)
        size, start = np.frombuffer(self.weights, "<u8", 2, offset + 8)
        assert sentinel == _SENTINEL
        assert start % 64 == offset % 64 == 0
        return self.weights[int(start) : int(start + size)]


@dataclass(frozen=True)
class Function:
    """One function of a package."""

    saved: Saved
    message: object
    operations: list[object]

    def named(self, name: str) -> object:
        """The operation with that result."""
        (found,) = (op for op in self.operations if name in [output.name for output in op.outputs])
        return found

    def has(self, name: str) -> bool:
        return any(name in [output.name for output in op.outputs] for op in self.operations)

    def of_type(self, kind: str) -> list[object]:
        return [op for op in self.operations if op.type == kind]

    def element(self, name: str) -> str:
        """Element type of a value."""
        (output,) = (output for output in self.named(name).outputs if output.name == name)
        return _type_name(output.type.tensorType.dataType)

    def constant(self, name: str) -> np.ndarray:
        return self.saved.array(self.named(name).attributes["val"])

    def factor(self, role: str) -> np.ndarray:
        name = factor_name(role)
        return self.constant(name) if self.has(name) else np.float32(1)

    def dense(self, role: str) -> np.ndarray:
        """The decompressed matrix, float16, by the definitions of MIL's operations; of a mere table its bytes."""
        if not self.has(dense_name(role)):
            return self.constant(f"{role}_codes")
        return self._decompressed(self.named(dense_name(role)))

    def offsets(self) -> Iterator[int]:
        """Where constants stand in the weight file."""
        for op in self.operations:
            values = [*op.attributes.values()]
            values += [binding.value for argument in op.inputs.values() for binding in argument.arguments]
            for value in values:
                if value.WhichOneof("value") == "blobFileValue":
                    yield value.blobFileValue.offset

    def _decompressed(self, op: object) -> np.ndarray:
        if op.type == "const":
            return self.saved.array(op.attributes["val"])
        given = {name: self._argument(argument) for name, argument in op.inputs.items()}
        if op.type == "constexpr_lut_to_dense":
            return _looked_up(given["indices"], given["lut"])
        if op.type == "constexpr_blockwise_shift_scale":
            data, scale = given["data"].astype(np.float16), given["scale"]
            for axis in range(2):
                scale = np.repeat(scale, data.shape[axis] // scale.shape[axis], axis)
            return data * scale
        assert op.type == "constexpr_sparse_to_dense"
        sparse = self.named(op.inputs["nonzero_data"].arguments[0].name)
        assert sparse.type == "constexpr_lut_to_sparse"
        assert [output.name for output in sparse.outputs] == [
            op.inputs[name].arguments[0].name for name in ("mask", "nonzero_data")
        ]
        mask, codes, lut = (
            self._argument(sparse.inputs[name]) for name in ("indices_mask", "indices_nonzero_data", "lut")
        )
        result = np.zeros(mask.shape, np.float16)
        result[mask == 1] = lut.reshape(-1)[codes]
        return result

    def _argument(self, argument: object) -> np.ndarray | None:
        (binding,) = argument.arguments
        return None if binding.WhichOneof("binding") == "name" else self.saved.array(binding.value)


def _looked_up(indices: np.ndarray, lut: np.ndarray) -> np.ndarray:
    for axis in range(2):
        lut = np.repeat(lut, indices.shape[axis] // lut.shape[axis], axis)
    return np.take_along_axis(lut[..., 0], indices[..., None].astype(np.int64), axis=-1)[..., 0]


def _immediate(tensor: object, element: str) -> np.ndarray:
    field = tensor.WhichOneof("value")
    if field == "bytes":
        return _unpacked(tensor.bytes.values, element)
    values = getattr(tensor, field).values
    return np.array(list(values), {"ints": np.int32, "floats": np.float32}.get(field, object))


def _unpacked(data: bytes, element: str, count: int | None = None) -> np.ndarray:
    bits, dtype = _ELEMENTS[element]
    if bits % 8 == 0:
        return np.frombuffer(data, dtype)
    flat = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    codes = flat[: len(flat) // bits * bits].reshape(-1, bits) @ (1 << np.arange(bits))
    codes = codes[:count].astype(np.int8)
    return np.where(codes > 7, codes - 16, codes).astype(np.int8) if element == "INT4" else codes


def _type_name(number: int) -> str:
    _protobuf()
    from coremltools.proto import MIL_pb2

    return str(MIL_pb2.DataType.Name(number))


def _protobuf() -> Any:
    """coremltools greets with warnings; tests make errors of them."""
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from coremltools.proto import Model_pb2
    finally:
        logger.setLevel(level)
    return Model_pb2


@dataclass(frozen=True)
class Played:
    """What a package makes of one sequence."""

    logits: np.ndarray
    layers: list[np.ndarray]
    findings: list[Finding]


def play(path: Path, spec: DecoderSpec, calls: Sequence[tuple[str, np.ndarray]], mode: Mode = Mode.WIDE) -> Played:
    """Give a package tokens in several calls, each by a function, with a mask of zeros, behind caches of rubbish."""
    names = [f"layers_{index}_output" for index in range(spec.num_hidden_layers)]
    logits, layers, findings = [], [[] for _ in names], []
    with open_package(path) as package:
        interpreter = Interpreter(package, mode)
        states = {name: np.full_like(state, 7) for name, state in interpreter.states(calls[0][0]).items()}
        length = 0
        for function, ids in calls:
            length += len(ids)
            inputs = {"inputIds": ids[None], "causalMask": np.zeros((1, 1, len(ids), length), np.float32)}
            run = interpreter.run(function, inputs, states, keep=names)
            logits.append(run.outputs["logits"][0])
            for layer, name in zip(layers, names, strict=True):
                layer.append(run.kept[name][0])
            findings += run.findings
    return Played(np.concatenate(logits), [np.concatenate(layer) for layer in layers], findings)


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, as a part of the largest value."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())
