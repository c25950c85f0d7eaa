"""Packages of others, and ours without their source: run once on made-up inputs, as small as they may be."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from bitnet_onnx.errors import PackageError
from bitnet_onnx.evaluation.mil._report import Overflow, Trial, Verification
from bitnet_onnx.evaluation.mil._types import Array, Kind, TensorType
from bitnet_onnx.evaluation.mil.interpreter import DEFAULT_ROOM, Interpreter, Mode
from bitnet_onnx.evaluation.mil.package import Package
from bitnet_onnx.evaluation.mil.program import Function, Interface
from bitnet_onnx.json_input import shown

_SEED: Final = 7
_NO_INTERFACE: Final = Interface({}, {}, (), ())


def try_out(package: Package, *, float16: bool) -> Verification:
    """Run every function of a package once in each mode.

    Raises:
        PackageError: what a function does is impossible, or not what it declares.
        UnsupportedError: an operation is not known here.
    """
    trials, overflows = [], []
    for name, function in package.program.functions.items():
        inputs = _made_up(package, function)
        for mode in [Mode.WIDE, *([Mode.FLOAT16] if float16 else [])]:
            run = Interpreter(package, mode).run(name, inputs)
            overflows += [
                Overflow(found.operation, found.type, 0, str(mode), found.count, found.largest, str(found))
                for found in run.findings
            ]
            if mode is Mode.WIDE:
                operations = sum(operation.type != "const" for operation in function.operations)
                shapes = {key: value.shape for key, value in inputs.items()}
                trials.append(Trial(name, operations, shapes, {key: out.shape for key, out in run.outputs.items()}))
    return Verification(
        package=str(package.path),
        source="",
        float16=float16,
        weights=(),
        logits=(),
        layers=(),
        overflows=tuple(overflows),
        trials=tuple(trials),
        warnings=("without a source weights and results are compared with nothing: the program was only run",),
    )


def _made_up(package: Package, function: Function) -> dict[str, Array]:
    """Floats around zero, and zeros for integers, which are often indices."""
    interface = package.program.interfaces.get(function.name, _NO_INTERFACE)
    generator = np.random.default_rng(_SEED)
    found: dict[str, Array] = {}
    for given in function.inputs:
        if not isinstance(given.type, TensorType):
            continue
        shape = _shape(given.type, interface.default.get(given.name, ()))
        if math.prod(shape) * 4 > DEFAULT_ROOM:
            raise PackageError(f"{package.path}: the input {shown(given.name)} is {list(shape)}: too large to try")
        if given.type.element.kind is Kind.FLOAT:
            found[given.name] = generator.standard_normal(shape, np.float32)
        else:
            found[given.name] = np.zeros(shape, given.type.element.computed)
    return found


def _shape(kind: TensorType, default: tuple[int, ...]) -> tuple[int, ...]:
    if kind.shape is None:
        return default
    sizes = default if len(default) == len(kind.shape) else (1,) * len(kind.shape)
    return tuple(given if size is None else size for size, given in zip(kind.shape, sizes, strict=True))
