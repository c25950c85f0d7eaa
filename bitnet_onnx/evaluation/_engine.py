"""The second graph of a package: small tensors stand in both files, and have to be equal."""

from __future__ import annotations

from pathlib import Path

from bitnet_onnx.evaluation._report import WeightCheck
from bitnet_onnx.evaluation._session import load_graph
from bitnet_onnx.package_format import ENGINE, MODEL


def engine_differences(directory: Path) -> list[WeightCheck]:
    """Initializers of `engine.onnx` that are not those of `model.onnx`.

    Raises:
        PackageError: one of them is no graph.
    """
    if not (directory / ENGINE).is_file():
        return []
    graphs = [load_graph(directory / name).graph for name in (MODEL, ENGINE)]
    model, engine = ({tensor.name: tensor for tensor in graph.initializer} for graph in graphs)
    return [
        WeightCheck(name, "", 0, problem=f"{ENGINE} and {MODEL} hold different tensors of this name")
        for name in sorted(model.keys() | engine.keys())
        if model.get(name) != engine.get(name)
    ]
