"""A matrix of every precision as stock and standard operators have it: the same weights, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator

from bitnet_onnx.converters.onnx._data_file import DataFile
from bitnet_onnx.converters.onnx._emitter import Emitter
from bitnet_onnx.converters.onnx.forms.form import LayerInput, OperatorForm
from bitnet_onnx.converters.onnx.forms.standard import StandardForm
from bitnet_onnx.converters.onnx.forms.stock import StockForm
from bitnet_onnx.metrics import relative_error
from bitnet_onnx.quantized import TERNARY, Grid, QuantizedTensor

#: Every number of bits, with zero in the middle and elsewhere; one scale, one a row, and groups of several sizes.
GRIDS = [
    *(Grid(*pair) for pair in [(2, 2), (2, 1), (4, 8), (4, 3), (6, 32), (6, 20), (8, 128), (8, 100)]),
    *(Grid(bits, 1 << (bits - 1), size) for bits, size in [(2, 32), (4, 32), (4, 96), (4, 128), (6, 64), (8, 160)]),
    Grid(4, 3, 64),
    Grid(2, 0, 32),
]
FORMS = {"stock": StockForm, "standard": StandardForm}
#: Rows that end within a byte and columns that end within a block; whole ones.
SHAPES = [(63, 172), (64, 256)]


def matrix(grid: Grid, rows: int, columns: int, *, one_scale: bool = False) -> QuantizedTensor:
    rng = np.random.default_rng([grid.bits, grid.zero_point, grid.group_size, rows])
    raw = rng.integers(1 if grid == TERNARY else 0, grid.levels, (rows, columns)).astype(np.uint8)
    shape = (rows, grid.groups(columns)) if grid.group_size else (1,) if one_scale else (rows,)
    return QuantizedTensor(raw, (0.5 + rng.random(shape, np.float32)) / 16, grid)


def build(
    kind: str, tensor: QuantizedTensor, folder: Path, bits: int | None = 8, *, linear: bool = True, rows: bool = False
) -> Path:
    """A graph with a linear layer on a matrix, or a look-up in it, or both."""
    count, columns = tensor.shape
    with DataFile(folder / "model.onnx.data") as data:
        form: OperatorForm = FORMS[kind](Emitter(data))
        stored = form.matrix("/layer", tensor, bits)
        if linear:
            x = form.emit.input("x", ir.DataType.FLOAT, ["batch", "S", columns])
            y = stored.linear("/layer", LayerInput(form, x), np.arange(count, dtype=np.float32))
            form.emit.output(y, "y", ir.DataType.FLOAT, ["batch", "S", count])
        if rows:
            ids = form.emit.input("ids", ir.DataType.INT64, ["batch", "S"])
            found = stored.look_up("/rows", ids)
            form.emit.output(found, "rows", ir.DataType.FLOAT, ["batch", "S", columns])
        ir.save(form.model("1"), folder / "model.onnx")
    path = folder / "model.onnx"
    graph = onnx.load(path, load_external_data=False).graph
    read = {name for node in graph.node for name in node.input}
    assert {tensor.name for tensor in graph.initializer} <= read
    if kind == "standard":
        onnx.checker.check_model(str(path), full_check=True)
    return path


def session(path: Path, *, optimized: bool = True) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def activations(columns: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((2, 3, columns)).astype(np.float32)


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_rows_are_codes_times_scales(kind: str, grid: Grid, shape: tuple[int, int], tmp_path: Path) -> None:
    """Bit for bit, from bytes of its own and from those of a linear layer."""
    tensor = matrix(grid, *shape)
    ids = np.array([[0, shape[0] - 1, 7], [33, 2, 62]])
    for name, bits in (("apart", None), ("shared", 8)):
        (tmp_path / name).mkdir()
        path = build(kind, tensor, tmp_path / name, bits, linear=bits is not None, rows=True)
        feeds = {"ids": ids} if bits is None else {"ids": ids, "x": activations(shape[1])}
        np.testing.assert_array_equal(session(path).run(["rows"], feeds)[0], tensor.dequantize()[ids])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_standard_weights_are_codes_times_scales(grid: Grid, shape: tuple[int, int], tmp_path: Path) -> None:
    """What `DequantizeLinear` gives in the reference evaluator, bit for bit."""
    tensor = matrix(grid, *shape)
    model = onnx.load(build("standard", tensor, tmp_path))
    weight = next(node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear")
    model.graph.output.append(onnx.helper.make_tensor_value_info(weight, onnx.TensorProto.FLOAT, None))
    x = activations(shape[1])
    y, dequantized = ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_array_equal(dequantized[:, : shape[0]].T, tensor.dequantize())
    np.testing.assert_allclose(y, expected(tensor, x), rtol=1e-5, atol=1e-4)


def expected(tensor: QuantizedTensor, x: np.ndarray) -> np.ndarray:
    return x @ tensor.dequantize().T + np.arange(tensor.shape[0], dtype=np.float32)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_stock_layer_rounds_activations_in_blocks_or_not_at_all(
    grid: Grid, shape: tuple[int, int], tmp_path: Path
) -> None:
    tensor, x = matrix(grid, *shape), activations(shape[1])
    want = expected(tensor, x)
    for bits in (8, 16, 0):
        (tmp_path / str(bits)).mkdir()
        path = build("stock", tensor, tmp_path / str(bits), bits)
        (found,) = session(path).run(None, {"x": x})
        if bits:
            assert 1e-6 < relative_error(want, found) < 0.02
        else:
            np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_onnxruntime_makes_one_node_of_a_standard_layer(grid: Grid, shape: tuple[int, int], tmp_path: Path) -> None:
    """Rows of two bits that end within a byte were garbage there; without optimization nothing is rounded."""
    tensor, x = matrix(grid, *shape), activations(shape[1])
    path, want = build("standard", tensor, tmp_path, rows=True), expected(tensor, x)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ids = np.zeros((1, 1), np.int64)
    optimized = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    assert relative_error(want, optimized.run(["y"], {"x": x, "ids": ids})[0]) < 0.02
    kinds = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph.node}
    assert "MatMulNBits" in kinds
    assert not kinds & {"DequantizeLinear", "MatMul"}
    plain = session(path, optimized=False)
    np.testing.assert_allclose(plain.run(["y"], {"x": x, "ids": ids})[0], want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", FORMS)
def test_look_up_and_layer_share_their_bytes(kind: str, tmp_path: Path) -> None:
    tensor = matrix(Grid(8, 128), 1024, 64)
    graph = onnx.load(build(kind, tensor, tmp_path, 16, rows=True), load_external_data=False).graph
    places = [
        {entry.key: entry.value for entry in tensor.external_data}.get("offset")
        for tensor in graph.initializer
        if tensor.name.startswith("layer.weight") and not tensor.name.startswith("layer.weight_scale")
    ]
    assert len(places) == 2
    assert places[0] == places[1] is not None
    assert (tmp_path / "model.onnx.data").stat().st_size < 1024 * 64 + 2 * 16384


@pytest.mark.parametrize(("one_scale", "grid"), [(True, TERNARY), (False, TERNARY)])
def test_one_scale_for_all_serves_every_row(one_scale: bool, grid: Grid, tmp_path: Path) -> None:
    tensor, x = matrix(grid, 64, 128, one_scale=one_scale), activations(128)
    for kind in FORMS:
        (tmp_path / kind).mkdir()
        (found,) = session(build(kind, tensor, tmp_path / kind), optimized=kind == "stock").run(None, {"x": x})
        assert relative_error(expected(tensor, x), found) < 0.02


def test_files_ask_for_no_more_than_they_need(tmp_path: Path) -> None:
    versions = {}
    for kind in FORMS:
        for bits in (2, 4):
            folder = tmp_path / f"{kind}{bits}"
            folder.mkdir()
            model = onnx.load(build(kind, matrix(Grid(bits, 1 << (bits - 1)), 64, 64), folder))
            opsets = {opset.domain: opset.version for opset in model.opset_import}
            versions[kind, bits] = model.ir_version, opsets
    assert versions["stock", 2] == versions["stock", 4] == (10, {"": 21, "com.microsoft": 1})
    assert versions["standard", 2] == (13, {"": 25})
    assert versions["standard", 4] == (10, {"": 23})
