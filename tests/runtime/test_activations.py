"""The bound of the memory that a call takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_package import TinyShape, write_package

from bitnet_onnx.errors import PackageError
from bitnet_onnx.runtime.engine import _activations
from bitnet_onnx.runtime.engine._activations import activation_bytes


def counted(path: Path, *, chunk: int, batch: int) -> float:
    """Numbers that are alive at a time, margins left out."""
    kernels, bodies = (activation_bytes(path, chunk=chunk, batch=batch, bodies=flag) for flag in (False, True))
    assert kernels < bodies
    return (kernels - _activations._FIXED_BYTES) / 4 / _activations._KERNELS


def write_graph(path: Path, *, restricted: bool) -> Path:
    """Embedding of 8, up to 100, down to 8, residual, head of 50."""
    weights = {"table": (50, 8), "up": (8, 100), "down": (100, 8), "head": (8, 50)}
    nodes = [
        helper.make_node("ReduceSum", ["attention_mask"], ["lengths"]),
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        helper.make_node("MatMul", ["x", "up"], ["wide"]),
        helper.make_node("Relu", ["wide"], ["active"]),
        helper.make_node("MatMul", ["active", "down"], ["narrow"]),
        helper.make_node("Add", ["x", "narrow"], ["y"]),
        helper.make_node("Slice", ["y", "logits_start", "ends", "axes"], ["cut"]) if restricted else None,
        helper.make_node("MatMul", ["cut" if restricted else "y", "head"], ["logits"]),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ("batch", "sequence"))
        for name in ("input_ids", "attention_mask", *(["logits_start"] if restricted else []))
    ]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ("batch", "sequence", 50))
    initializers = [numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in weights.items()]
    initializers += [numpy_helper.from_array(np.ones(1, np.int64), name) for name in ("ends", "axes")]
    graph = helper.make_graph([node for node in nodes if node], "graph", inputs, [logits], initializers)
    onnx.save_model(helper.make_model(graph), path)
    return path


def test_what_is_alive_at_a_time_is_counted(tmp_path: Path) -> None:
    restricted = write_graph(tmp_path / "engine.onnx", restricted=True)
    # x, wide and active, for every token of a chunk.
    assert counted(restricted, chunk=64, batch=4) == 64 * 208
    # Of a batch every row has logits, which are too few to matter.
    assert counted(restricted, chunk=1, batch=16) == 16 * 208
    whole = write_graph(tmp_path / "model.onnx", restricted=False)
    assert counted(whole, chunk=64, batch=4) == 64 * 208


@pytest.mark.parametrize(("chunk", "batch"), [(1, 1), (96, 1), (96, 16), (7, 64)])
def test_a_package_needs_room_for_its_logits(tmp_path: Path, chunk: int, batch: int) -> None:
    directory = write_package(tmp_path, TinyShape())
    found = counted(directory / "model.onnx", chunk=chunk, batch=batch)
    assert found >= max(chunk, batch) * (259 + 64)
    assert found <= max(chunk, batch) * (259 + 8 * 64)


def test_what_is_no_graph_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(PackageError, match="cannot be read as an ONNX graph") as caught:
        activation_bytes(path, chunk=1, batch=1, bodies=False)
    assert "\n" not in str(caught.value)
