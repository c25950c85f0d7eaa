"""Heads of any size and any rotated part compute on ONNX Runtime what the reference computes with them as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from bitnet_onnx.attention import AttentionAttributes, group_query_attention
from bitnet_onnx.attention import Rotary as Tables
from bitnet_onnx.converters.onnx._data_file import DataFile
from bitnet_onnx.converters.onnx._emitter import Emitter
from bitnet_onnx.converters.onnx._head_layout import HeadLayout, head_size
from bitnet_onnx.converters.onnx._rotary import table_width, tables
from bitnet_onnx.converters.onnx.bodies import Fallback
from bitnet_onnx.converters.onnx.forms.bitnet import BitnetForm
from bitnet_onnx.converters.onnx.forms.form import CallInputs
from bitnet_onnx.decoder import Attention, DecoderSpec, Rotary

HEADS, KV_HEADS, LENGTH = 4, 2, 9


def spec(head_dim: int, *rotaries: Rotary | None) -> DecoderSpec:
    return DecoderSpec(
        family="llama",
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=len(rotaries),
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=head_dim,
        context_length=16,
        norm_epsilon=1e-6,
        activation="silu",
        attention=tuple(Attention(rotary) for rotary in rotaries),
    )


@pytest.mark.parametrize(
    ("head_dim", "rotated", "size"),
    [
        (64, (64,), 64),
        (64, (0,), 64),
        (24, (0,), 24),
        (20, (0,), 24),
        (24, (24,), 32),
        # A mixture of both is as large everywhere: the caches are.
        (24, (0, 8), 32),
        (100, (100,), 112),
        (96, (24,), 96),
        (80, (20,), 80),
        (10, (6,), 16),
        (30, (18,), 32),
        # The widened part may be larger than the head.
        (18, (18,), 32),
    ],
)
def test_size_of_a_head(head_dim: int, rotated: tuple[int, ...], size: int) -> None:
    assert head_size(spec(head_dim, *(Rotary(1e4, dim) if dim else None for dim in rotated))) == size


def test_tables_are_widened_by_angles_of_zero() -> None:
    rotary = Rotary(1e4, 20, magnitude=0.5)
    cosine, sine = tables(rotary, 5)
    assert cosine.shape == sine.shape == (5, table_width(rotary)) == (5, 16)
    assert (cosine[:, 10:] == 1).all()
    assert (sine[:, 10:] == 0).all()
    assert cosine[0, :10] == pytest.approx([0.5] * 10)


def attended(head_dim: int, rotary: Rotary | None, qkv: list[np.ndarray], merged: bool, directory: Path) -> np.ndarray:
    size = head_size(spec(head_dim, rotary))
    with DataFile(directory / "model.onnx.data") as data:
        emit = Emitter(data)
        form = BitnetForm(emit, Fallback.EXACT)
        given = [np.concatenate(qkv, axis=-1)] if merged else qkv
        names = ["query", "key", "value"][: len(given)]
        inputs = [
            emit.input(name, ir.DataType.FLOAT, list(array.shape)) for name, array in zip(names, given, strict=True)
        ]
        cache = [1, KV_HEADS, 0, size]
        past = emit.input("past_key", ir.DataType.FLOAT, cache), emit.input("past_value", ir.DataType.FLOAT, cache)
        ones = emit.constant("ones", np.ones((1, LENGTH), np.int64))
        form.read_lengths(CallInputs(ones, ones, past[0]))
        layout = HeadLayout.of(head_dim, size, rotary)
        values = [*layout.arrange(emit, "/attn", inputs, HEADS, KV_HEADS)]
        pairs = [] if rotary is None else zip(("cos", "sin"), tables(rotary, 16), strict=True)
        made = [emit.constant(*pair) for pair in pairs]
        attributes = AttentionAttributes(
            HEADS, KV_HEADS, rotary is not None, rotary is not None and rotary.interleaved, scale=head_dim**-0.5
        )
        outputs = form.attention("/attn", values, past, made, attributes)
        y = layout.cut(emit, "/attn", outputs[0], HEADS)
        emit.output(y, "y", ir.DataType.FLOAT, [1, LENGTH, HEADS * head_dim])
        for name, value in zip(("present_key", "present_value"), outputs[1:], strict=True):
            emit.output(value, name, ir.DataType.FLOAT, [1, KV_HEADS, LENGTH, size])
    ir.save(form.model("1"), directory / "model.onnx")
    session = ort.InferenceSession(directory / "model.onnx", providers=["CPUExecutionProvider"])
    empty = np.zeros((1, KV_HEADS, 0, size), np.float32)
    feeds = dict(zip(names, given, strict=True)) | {"past_key": empty, "past_value": empty}
    result: np.ndarray = session.run(["y"], feeds)[0]
    return result


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(
    ("head_dim", "dim"),
    [(64, 16), (64, 10), (96, 24), (100, 100), (80, 20), (20, 20), (18, 18), (24, 2), (10, 6), (12, 0), (24, 0)],
)
def test_equals_the_reference(head_dim: int, dim: int, interleaved: bool, merged: bool, tmp_path: Path) -> None:
    rotary = Rotary(100.0, dim, interleaved=interleaved) if dim else None
    random = np.random.default_rng(head_dim)
    qkv = [
        random.standard_normal((1, LENGTH, heads * head_dim)).astype(np.float32)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]
    half = None if rotary is None else [table[:, : dim // 2] for table in tables(rotary, 16)]
    empty = np.zeros((1, KV_HEADS, 0, head_dim), np.float32)
    expected = group_query_attention(
        *qkv,
        (empty, empty),
        np.array([LENGTH - 1], np.int32),
        LENGTH,
        AttentionAttributes(HEADS, KV_HEADS, rotary is not None, interleaved),
        None if half is None else Tables(*half),
    )
    found = attended(head_dim, rotary, qkv, merged, tmp_path)
    np.testing.assert_allclose(found, expected.output, rtol=0, atol=2e-6)


def test_heads_that_fit_get_no_nodes(tmp_path: Path) -> None:
    layout = HeadLayout.of(64, 64, Rotary(1e4, 32))
    with DataFile(tmp_path / "model.onnx.data") as data:
        emit = Emitter(data)
        qkv = [emit.input("qkv", ir.DataType.FLOAT, [1, 2, 512])]
        assert layout.arrange(emit, "/attn", qkv, HEADS, KV_HEADS) == qkv
        assert layout.cut(emit, "/attn", qkv[0], HEADS) is qkv[0]
