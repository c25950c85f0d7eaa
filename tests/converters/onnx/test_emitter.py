"""Named nodes, shared initializers, one function for each variant."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from bitnet_onnx.attention import AttentionAttributes
from bitnet_onnx.bitlinear import PackedLinear, bit_embedding, bitlinear
from bitnet_onnx.converters.onnx._data_file import DataFile
from bitnet_onnx.converters.onnx._emitter import Emitter, dotted
from bitnet_onnx.converters.onnx.bodies import Fallback
from bitnet_onnx.converters.onnx.forms.bitnet import BitnetForm
from bitnet_onnx.converters.onnx.forms.form import CallInputs, LayerInput
from bitnet_onnx.decoder import MlpActivation
from bitnet_onnx.gated import gated_activation
from bitnet_onnx.policy import Precision, Weights
from bitnet_onnx.quantized import QuantizedTensor


@pytest.fixture
def form(tmp_path: Path) -> Iterator[BitnetForm]:
    with DataFile(tmp_path / "model.onnx.data") as data:
        yield BitnetForm(Emitter(data), Fallback.EXACT)


def quantized(rows: int, columns: int) -> QuantizedTensor:
    weight = np.random.default_rng(rows).standard_normal((rows, columns)).astype(np.float32)
    tensor = Precision(Weights.INT4).quantize(weight)
    assert tensor is not None
    return tensor


def run(form: BitnetForm, directory: Path, **feeds: np.ndarray) -> list[np.ndarray]:
    ir.save(form.model("1"), directory / "model.onnx")
    onnx.checker.check_model(directory / "model.onnx")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(directory / "model.onnx", options, providers=["CPUExecutionProvider"])
    results: list[np.ndarray] = session.run(None, feeds)
    return results


def test_a_constant_is_stored_once(form: BitnetForm) -> None:
    assert form.emit.ints(1, 2) is form.emit.ints(1, 2)
    assert form.emit.ints(1, 2) is not form.emit.ints(12)
    assert form.emit.scalar("two", 2.0) is form.emit.scalar("two", 2.0)


def test_module_paths() -> None:
    assert dotted("/model/layers.0/attn/o_proj", "weight") == "model.layers.0.attn.o_proj.weight"
    assert dotted("/lm_head", "scale") == "lm_head.scale"


@pytest.mark.parametrize("activation_bits", [8, 16])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_layer_equals_the_reference(
    form: BitnetForm, tmp_path: Path, norm: bool, bias: bool, activation_bits: int
) -> None:
    rng = np.random.default_rng(3)
    tensor = quantized(70, 64)
    norm_weight = rng.standard_normal(64).astype(np.float32) if norm else None
    offset = rng.standard_normal(70).astype(np.float32) if bias else None
    x = form.emit.input("x", ir.DataType.FLOAT, ["tokens", 64])
    matrix = form.matrix("/linear", tensor, activation_bits)
    y = matrix.linear("/linear", LayerInput(form, x, "", norm_weight, 1e-6), offset)
    form.emit.output(y, "y", ir.DataType.FLOAT, ["tokens", 70])
    tokens = rng.standard_normal((3, 64)).astype(np.float32)
    linear = PackedLinear.from_quantized(
        tensor, norm_weight=norm_weight, bias=offset, activation_bits=activation_bits, epsilon=1e-6
    )
    (result,) = run(form, tmp_path, x=tokens)
    np.testing.assert_array_equal(result, bitlinear(tokens, linear))


def test_a_table_serves_look_up_and_head(form: BitnetForm, tmp_path: Path) -> None:
    tensor = quantized(130, 64)
    table = form.matrix("/embed", tensor)
    ids = form.emit.input("ids", ir.DataType.INT64, ["tokens"])
    rows = table.look_up("/embed", ids)
    logits = table.linear("/head", LayerInput(form, rows), None)
    form.emit.output(rows, "rows", ir.DataType.FLOAT, ["tokens", 64])
    form.emit.output(logits, "logits", ir.DataType.FLOAT, ["tokens", 130])
    chosen = np.array([0, 129, 64])
    packed = PackedLinear.from_quantized(tensor)
    looked_up, scores = run(form, tmp_path, ids=chosen)
    np.testing.assert_array_equal(looked_up, bit_embedding(chosen, packed))
    np.testing.assert_array_equal(scores, bitlinear(looked_up, packed))
    graph = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph
    assert sorted(value.name for value in graph.initializer) == ["embed.scale", "embed.weight"]


def test_layers_of_one_variant_share_a_function(form: BitnetForm) -> None:
    x = form.emit.input("x", ir.DataType.FLOAT, ["tokens", 64])
    for index in range(3):
        matrix = form.matrix(f"/l{index}", quantized(64 if index < 2 else 65, 64))
        matrix.linear(f"/l{index}", LayerInput(form, x), None)
    model = form.model("1")
    assert len(model.functions) == 2
    nodes = [node for node in model.graph if node.op_type == "BitLinear"]
    assert {(node.domain, node.op_type, node.overload) for node in nodes} == set(model.functions)
    assert [node.name for node in nodes] == ["/l0/BitLinear", "/l1/BitLinear", "/l2/BitLinear"]


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("activation", ["silu", "relu2", "gelu", "gelu_tanh"])
def test_a_gated_activation_equals_the_reference(
    form: BitnetForm, tmp_path: Path, activation: str, separate: bool
) -> None:
    values = np.random.default_rng(5).standard_normal((3, 16)).astype(np.float32) * 3
    feeds = dict(zip(("gate", "up"), np.split(values, 2, axis=1), strict=True)) if separate else {"both": values}
    parts = [form.emit.input(name, ir.DataType.FLOAT, ["tokens", part.shape[1]]) for name, part in feeds.items()]
    form.emit.output(form.gated("/mlp", parts, MlpActivation(activation)), "y", ir.DataType.FLOAT, ["tokens", 8])
    (result,) = run(form, tmp_path, **feeds)
    np.testing.assert_allclose(result, gated_activation(values, activation), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("separate", [False, True])
def test_attention_over_one_position_gives_its_value(form: BitnetForm, tmp_path: Path, separate: bool) -> None:
    heads, kv_heads, dim = 4, 2, 16
    rng = np.random.default_rng(6)
    qkv = rng.standard_normal((1, 1, (heads + 2 * kv_heads) * dim)).astype(np.float32)
    query, key, value = np.split(qkv, [heads * dim, (heads + kv_heads) * dim], axis=2)
    feeds = {"query": query, "key": key, "value": value} if separate else {"query": qkv}
    inputs = [form.emit.input(name, ir.DataType.FLOAT, [1, 1, part.shape[2]]) for name, part in feeds.items()]
    empty = np.zeros((1, kv_heads, 0, dim), np.float32)
    past = form.emit.constant("past_k", empty), form.emit.constant("past_v", empty)
    tables = [form.emit.constant(name, np.ones((4, dim // 2), np.float32)) for name in ("cosines", "sines")]
    one = form.emit.constant("one", np.ones((1, 1), np.int64))
    form.read_lengths(CallInputs(one, one, past[0]))
    at = AttentionAttributes(heads, kv_heads, do_rotary=True)
    outputs = form.attention("/attn", inputs, past, tables, at)
    form.emit.output(outputs[0], "y", ir.DataType.FLOAT, [1, 1, heads * dim])
    form.emit.output(outputs[2], "present", ir.DataType.FLOAT, [1, kv_heads, 1, dim])
    attended, present = run(form, tmp_path, **feeds)
    per_head = value.reshape(kv_heads, dim)
    np.testing.assert_allclose(attended.reshape(heads, dim), np.repeat(per_head, 2, axis=0), rtol=1e-6)
    np.testing.assert_array_equal(present.reshape(kv_heads, dim), per_head)


def test_rms_norm_is_near_its_formula(form: BitnetForm, tmp_path: Path) -> None:
    x = form.emit.input("x", ir.DataType.FLOAT, ["tokens", 8])
    weight = np.linspace(1, 2, 8, dtype=np.float32)
    form.emit.output(form.rms_norm("/norm", x, weight, 1e-3), "y", ir.DataType.FLOAT, ["tokens", 8])
    tokens = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    expected = tokens / np.sqrt((tokens**2).mean(axis=1, keepdims=True) + 1e-3) * weight
    np.testing.assert_allclose(run(form, tmp_path, x=tokens)[0], expected, rtol=1e-5)
