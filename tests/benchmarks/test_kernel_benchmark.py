"""`bitnet-onnx benchmark kernel`: that it measures what it says, not how fast that is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from bitnet_onnx.benchmarks import _graphs, kernel
from bitnet_onnx.benchmarks._graphs import Float, MatMulNBits, Ours, Shape, open_graph, write_graph
from bitnet_onnx.benchmarks.roofline import Roofline, roofline_path
from bitnet_onnx.errors import OperatorError
from bitnet_onnx.quantized import TERNARY
from bitnet_onnx.runtime.devices import Device, auto_select_device

SHAPES = (Shape(192, 128), Shape(64, 256))
KINDS = [Ours(TERNARY), Ours(_graphs.INT8, 16), Float(), MatMulNBits(2, 64), MatMulNBits(4, 32), MatMulNBits(8, 32)]


@pytest.mark.usefixtures("needs_library")
def test_quick(benchmark, checked, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "kernel.json"
    result = benchmark("kernel", "--quick", "--threads", "1", "--threads", "2", "--out", out)
    assert (result.status, result.err) == (0, "")
    assert "MatMulNBits 2 bit" in result.out
    assert "GMAC/s" in result.out
    report = checked(out, "kernel")
    cases = {comparison["case"] for comparison in report["comparisons"]}
    assert {"decode body, 2 layers", "prefill body, 2 layers", "decode head 320x128 int8", "decode 192x128"} <= cases
    assert {comparison["threads"] for comparison in report["comparisons"]} == {1, 2}
    for comparison in report["comparisons"]:
        peers = comparison["candidates"].keys()
        assert peers >= {"bitnet", "MatMul fp32", "MatMulNBits 4 bit"}
        assert ("MatMulNBits 8 bit" if "int8" in comparison["case"] else "MatMulNBits 2 bit") in peers
    if roofline_path() is not None:
        assert [limit["threads"] for limit in report["roofline"]] == [1, 2]
        assert all(comparison["share_of_limit"] > 0 for comparison in report["comparisons"])
        assert "limits of the machine, 2 threads" in result.out


@pytest.mark.usefixtures("needs_library")
def test_given_shapes_without_a_head(benchmark, checked, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(kernel, "roofline_path", lambda: None)
    out = tmp_path / "kernel.json"
    arguments = ("--shape", "64x128", "--layers", "3", "--no-head", "--rounds", "1", "--threads", "1")
    result = benchmark("kernel", "--quick", *arguments, "--out", out)
    assert result.status == 0
    report = checked(out, "kernel")
    names = [comparison["case"] for comparison in report["comparisons"]]
    assert names == ["decode body, 3 layers", "prefill body, 3 layers", "decode 64x128", "prefill 64x128"]
    assert report["comparisons"][1]["candidates"]["bitnet"]["multiply_adds_per_s"] > 0
    assert report["roofline"] == []
    assert report["comparisons"][0]["share_of_limit"] is None
    assert "The limits of the machine are unknown" in result.out
    assert any("prefill body, 3 layers: timed on 2 copies" in note for note in report["notes"])


@pytest.mark.parametrize("text", ["64", "0x64", "64x", "axb", "64x2000000", "9999999999x1"])
def test_a_shape_that_is_none(benchmark, text: str) -> None:
    result = benchmark("kernel", "--quick", "--shape", text)
    assert result.status == 2
    assert result.err.startswith(f"error: --shape is '{text}'")


def test_without_the_library_there_is_nothing_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "auto_select_device", Device)
    with pytest.raises(OperatorError, match="no operator library"):
        kernel.measure(kernel.KernelSettings())


@pytest.mark.usefixtures("needs_library")
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.name}-{getattr(kind, 'grid', '')}")
def test_no_layer_can_be_left_out(kind, tmp_path: Path) -> None:
    path = write_graph(tmp_path, kind, SHAPES, 3)
    model = onnx.load(path, load_external_data=False)
    linear = ("BitLinear", "MatMul", "MatMulNBits")
    assert sum(node.op_type in linear for node in model.graph.node) == 6
    session = open_graph(path, auto_select_device(), 1)
    rng = np.random.default_rng(0)
    inputs = {f"X{shape.columns}": rng.standard_normal((5, shape.columns), np.float32) for shape in SHAPES}
    y = session.run(None, inputs)[0]
    assert y.shape == (5, 6)
    assert np.isfinite(y).all()
    # Six different matrices: no two columns are alike.
    assert len({column.tobytes() for column in y.T}) == 6
    # What the limits are computed from is what the file holds, but for padding.
    weights = sum(tensor_bytes(tensor) for tensor in model.graph.initializer if not tensor.name.startswith("constant."))
    assert weights == 3 * sum(kind.weight_bytes(shape) for shape in SHAPES)


def tensor_bytes(tensor: onnx.TensorProto) -> int:
    return int(np.prod(tensor.dims)) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def test_ternary_weights_never_hold_the_code_that_has_no_meaning(tmp_path: Path) -> None:
    path = write_graph(tmp_path, Ours(TERNARY), SHAPES[:1], 1)
    weight = onnx.numpy_helper.to_array(
        next(t for t in onnx.load(path).graph.initializer if t.name.endswith(".weight"))
    )
    codes = (weight[..., None] >> np.array([0, 2, 4, 6], np.uint8)) & 3
    assert set(np.unique(codes)) == {1, 2, 3}


def test_the_limit_of_a_case() -> None:
    settings = replace(kernel.KernelSettings(), head=None)
    body = next(kernel._cases(settings))
    # 2.08 G multiply-adds and 521 MB a token: the figures of the model that the shapes are of.
    assert body.multiply_adds == pytest.approx(2.084e9, rel=1e-3)
    assert body.limit(Roofline(1, 521e6, None)) == pytest.approx(1, rel=0.01)
    assert body.limit(Roofline(1, 1e15, 2.084e9)) == pytest.approx(1, rel=1e-3)
    float32 = next(kind for kind in body.kinds if kind.name == "MatMul fp32")
    assert body.copies(float32) < body.copies(body.kinds[0]) == 30
