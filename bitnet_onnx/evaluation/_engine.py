"""The second graph of a package: small tensors stand in both files, and have to be equal."""

from __future__ import annotations

from pathlib import Path

import onnx

from bitnet_onnx.errors import PackageError
from bitnet_onnx.evaluation._report import WeightCheck
from bitnet_onnx.package_format import ENGINE, MODEL
from bitnet_onnx.runtime._native_errors import one_line


def engine_differences(directory: Path) -> list[WeightCheck]:
    """Initializers of `engine.onnx` that are not those of `model.onnx`.

    Raises:
        PackageError: one of them is no graph.
    """
    if not (directory / ENGINE).is_file():
        return []
    graphs = [_load(directory / name) for name in (MODEL, ENGINE)]
    model, engine = ({tensor.name: tensor for tensor in graph.initializer} for graph in graphs)
    return [
        WeightCheck(name, "", 0, problem=f"{ENGINE} and {MODEL} hold different tensors of this name")
        for name in sorted(model.keys() | engine.keys())
        if model.get(name) != engine.get(name)
    ]


def _load(path: Path) -> onnx.GraphProto:
    try:
        return onnx.load_model(str(path), load_external_data=False).graph
    except Exception as error:
        raise PackageError(f"{path}: not an ONNX graph: {one_line(error)}") from None
