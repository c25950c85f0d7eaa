"""Core ML programs made with coremltools, saved, and run from what was saved."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitnet_onnx.evaluation.mil.interpreter import Interpreter, Mode, Run, State
from bitnet_onnx.evaluation.mil.package import open_package

if importlib.util.find_spec("coremltools") is None:
    pytest.skip("coremltools is not installed: not every system has it", allow_module_level=True)

with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb  # noqa: N813 - as everybody calls it
    from coremltools.converters.mil.mil import get_new_symbol, types
    from coremltools.converters.mil.mil.types import type_int

__all__ = ["INTEGERS", "ct", "get_new_symbol", "mb", "run", "save", "state", "tensor", "types"]

#: numpy's types for integers of less than a byte, as coremltools marks them.
INTEGERS = {
    name: getattr(type_int, f"np_{name}_dtype") for name in ("uint1", "uint2", "uint3", "uint4", "uint6", "int4")
}
_TYPES = {"float16": types.fp16, "float32": types.fp32, "int32": types.int32, "bool": types.bool}


def tensor(*shape: Any, dtype: str = "float32") -> Any:
    """An input; a dimension of None may have any size."""
    sizes = tuple(get_new_symbol() if size is None else size for size in shape)
    return mb.TensorSpec(sizes, dtype=_TYPES[dtype])


def state(*shape: int) -> Any:
    """A state, which is always float16."""
    return mb.StateTensorSpec(shape, dtype=types.fp16)


def save(
    path: Path, inputs: Sequence[Any], body: Callable[..., Any], *, opset: Any = None, passes: bool = False
) -> Path:
    """Save a program.

    Args:
        path: of the package, which ends in `.mlpackage`.
        inputs: specifications, one for each argument of `body`.
        body: builds the operations and gives the outputs.
        opset: the release whose operations it has; iOS 18.
        passes: let coremltools rewrite it as a converter would.
    """
    target = opset or ct.target.iOS18
    arguments = {} if passes else {"pass_pipeline": ct.PassPipeline.EMPTY}
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = mb.program(input_specs=list(inputs), opset_version=target)(body)
        model = ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=target,
            skip_model_load=True,
            compute_precision=ct.precision.FLOAT32,
            **arguments,
        )
        model.save(str(path))
    return path


def run(
    path: Path,
    inputs: Mapping[str, Any],
    mode: Mode = Mode.WIDE,
    *,
    function: str = "main",
    states: State | None = None,
    keep: Sequence[str] = (),
) -> Run:
    """Run a saved program once."""
    with open_package(path) as package:
        arrays = {name: np.asarray(value) for name, value in inputs.items()}
        return Interpreter(package, mode).run(function, arrays, states, keep)
