"""A graph changed in memory before it is opened; its weights stay where they are, mapped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import onnx
import onnxruntime as ort

from bitnet_onnx.errors import PackageError
from bitnet_onnx.package_format import MODEL_DATA
from bitnet_onnx.runtime._native_errors import one_line

#: Changes a graph in place.
GraphChange = Callable[[onnx.ModelProto], None]

#: Weights lie in a file of their own; a graph of a thousand layers has 10 MB.
_MAX_BYTES = 1 << 26
_FOLDER = "session.model_external_initializers_file_folder_path"


def derived_graph(path: Path, changes: Iterable[GraphChange], options: ort.SessionOptions) -> bytes:
    """The graph in `path` after `changes`, for a session with `options`, which learn where its data is.

    Raises:
        PackageError: the file is no graph or too large, or names other data than a package has.
    """
    model = load_graph(path)
    for tensor in _tensors(model.graph):
        for entry in tensor.external_data:
            if entry.key == "location" and entry.value != MODEL_DATA:
                raise PackageError(
                    f"{path}: the tensor {tensor.name!r:.80} is stored in {entry.value!r:.80}, expected {MODEL_DATA}"
                )
    for change in changes:
        change(model)
    options.add_session_config_entry(_FOLDER, str(path.parent.resolve()))
    graph: bytes = model.SerializeToString()
    return graph


def load_graph(path: Path) -> onnx.ModelProto:
    """The graph in `path` without its data.

    Raises:
        PackageError: the file is no graph, or larger than one without weights can be.
    """
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise PackageError(f"{path}: {size} bytes, above the limit of {_MAX_BYTES} for a graph that is changed")
        return onnx.load_model(str(path), load_external_data=False)
    except PackageError:
        raise
    except Exception as error:
        raise PackageError(f"{path}: not an ONNX graph: {one_line(error)}") from None


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor that may point to a file: initializers, and constants of nodes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
