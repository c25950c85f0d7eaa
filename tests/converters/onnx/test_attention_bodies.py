"""The bodies of attention and gated activation, on ONNX Runtime without the operator library."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from attention_models import OUTPUTS, AttentionCase

from bitnet_onnx.attention import AttentionAttributes
from bitnet_onnx.converters.onnx._attention_body import (
    AttentionInputs,
    attention_body,
    attention_node_attributes,
    attention_overload,
)
from bitnet_onnx.converters.onnx._gated_body import gated_body, gated_overload
from bitnet_onnx.converters.onnx.bodies import OPSET
from bitnet_onnx.errors import UnsupportedError
from bitnet_onnx.gated import Activation, gated_activation
from bitnet_onnx.package_format import OPERATOR_DOMAIN


def run(body: ir.Function, feeds: dict[str, np.ndarray], attributes: dict[str, int | float | str]) -> list[np.ndarray]:
    """A model of one node that calls the body."""
    values = {}
    for name, array in feeds.items():
        dtype = ir.DataType.from_numpy(array.dtype)
        values[name] = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape([None] * array.ndim))
    inputs = [values.get(value.name or "") for value in body.inputs]
    names = OUTPUTS[: len(body.outputs)]
    outputs = [ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT)) for name in names]
    for value, rank in zip(outputs, (feeds.get("query", feeds.get("X")).ndim, 4, 4), strict=False):
        value.shape = ir.Shape([None] * rank)
    node = ir.node(
        body.name, inputs, attributes, domain=OPERATOR_DOMAIN, overload=body.overload, outputs=outputs, name="/node"
    )
    opsets = {"": OPSET, OPERATOR_DOMAIN: 1}
    graph = ir.Graph(list(values.values()), outputs, nodes=[node], opset_imports=opsets, name="g")
    model = ir.to_proto(ir.Model(graph, ir_version=10, functions=[body]))
    onnx.checker.check_model(model)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


ATTRIBUTES = [
    AttentionAttributes(4, 2, True),
    AttentionAttributes(4, 2, True, rotary_interleaved=True, local_window_size=3),
    AttentionAttributes(4, 4, False, scale=0.3, softcap=4.0),
]


@pytest.mark.parametrize("attributes", ATTRIBUTES, ids=lambda at: attention_overload(at, AttentionInputs()))
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
def test_attention_equals_the_reference(attributes: AttentionAttributes, separate: bool, ragged: bool) -> None:
    counts = [5, 2] if ragged else None
    case = AttentionCase(attributes, 16, 5, [9, 8] if ragged else [5, 5], 14, counts=counts, separate=separate)
    body = attention_body(attributes, AttentionInputs(separate, ragged))
    got = run(body, case.feeds(), attention_node_attributes(attributes))
    expected = case.expected()
    for row, (total, count) in enumerate(zip(case.totals, case.new, strict=True)):
        np.testing.assert_allclose(got[0][row, :count], expected.output[row, :count], atol=2e-5)
        np.testing.assert_allclose(got[1][row, :, :total], expected.present_key[row, :, :total], atol=1e-6)
        np.testing.assert_allclose(got[2][row, :, :total], expected.present_value[row, :, :total], atol=1e-6)


def test_overloads_are_unique() -> None:
    inputs = [AttentionInputs(*flags) for flags in itertools.product([False, True], repeat=2)]
    attributes = [
        *ATTRIBUTES,
        AttentionAttributes(4, 2, False),
        AttentionAttributes(4, 2, True, scale=0.1),
        AttentionAttributes(4, 2, True, scale=0.10000001),
        AttentionAttributes(4, 2, True, softcap=1e-9),
    ]
    names = [attention_overload(at, given) for at, given in itertools.product(attributes, inputs)]
    assert len(set(names)) == len(names)
    gated = [gated_overload(name, separate) for name, separate in itertools.product(Activation, [False, True])]
    assert len(set(gated)) == len(gated) == 8


@pytest.mark.parametrize("activation", list(Activation))
@pytest.mark.parametrize("separate", [False, True])
def test_gated_activation_equals_the_reference(activation: str, separate: bool) -> None:
    x = np.random.default_rng(4).normal(0, 4, (2, 3, 34)).astype(np.float32)
    gate, up = np.ascontiguousarray(x[..., :17]), np.ascontiguousarray(x[..., 17:])
    feeds = {"X": gate, "up": up} if separate else {"X": x}
    (got,) = run(gated_body(activation, separate), feeds, {"activation": activation})
    np.testing.assert_allclose(got, gated_activation(x, activation), atol=2e-6)


def test_unknown_activation() -> None:
    with pytest.raises(UnsupportedError, match="activation is 'mish': known values are silu"):
        gated_body("mish", separate=False)
