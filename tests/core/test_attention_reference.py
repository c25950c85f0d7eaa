"""The numpy references of attention and gated activation, against formulas written out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bitnet_onnx.attention import AttentionAttributes, CacheScales, Rotary, group_query_attention, quantize_rows
from bitnet_onnx.errors import InputError
from bitnet_onnx.gated import gated_activation


def attend(attributes: AttentionAttributes, seqlens: list[int], total: int, past: int = 4, **options: object):
    rng = np.random.default_rng(3)
    batch, dim, kv = len(seqlens), 8, attributes.kv_num_heads
    query = rng.standard_normal((batch, 2, attributes.num_heads * dim), np.float32)
    key, value = rng.standard_normal((2, batch, 2, kv * dim), np.float32)
    caches = rng.standard_normal((2, batch, kv, past, dim), np.float32)
    lengths = np.array(seqlens, np.int32)
    result = group_query_attention(query, key, value, (caches[0], caches[1]), lengths, total, attributes, **options)
    return (query, key, value, caches), result


def test_one_query_by_hand() -> None:
    (query, key, value, caches), result = attend(AttentionAttributes(2, 1, False, scale=0.5, softcap=2.0), [4], 5)
    keys = np.concatenate([caches[0][0, 0, :3], key[0]])
    values = np.concatenate([caches[1][0, 0, :3], value[0]])
    scores = [2.0 * math.tanh(0.5 * float(query[0, 1, 8:] @ k) / 2.0) for k in keys]
    weights = np.exp(scores) / np.exp(scores).sum()
    np.testing.assert_allclose(result.output[0, 1, 8:], weights @ values, rtol=1e-5)
    np.testing.assert_array_equal(result.present_key[0, 0], keys)


def test_window_of_one_key_is_the_value() -> None:
    (_, _, value, _), result = attend(AttentionAttributes(2, 2, False, local_window_size=1), [5], 6)
    np.testing.assert_allclose(result.output, value, rtol=1e-6)


@pytest.mark.parametrize("interleaved", [False, True])
def test_quarter_turn(interleaved: bool) -> None:
    """An angle of 90 degrees turns (a, b) into (-b, a)."""
    rotary = Rotary(np.zeros((9, 4), np.float32), np.ones((9, 4), np.float32))
    (_, key, _, _), result = attend(AttentionAttributes(1, 1, True, interleaved), [5], 6, rotary=rotary)
    pairs = key[0].reshape(2, 4, 2) if interleaved else key[0].reshape(2, 2, 4).swapaxes(1, 2)
    turned = np.stack([-pairs[..., 1], pairs[..., 0]], axis=-1 if interleaved else -2).reshape(2, 8)
    np.testing.assert_array_equal(result.present_key[0, 0, 4:6], turned)


def test_codes_by_hand() -> None:
    row = [0.5, 1.5, -2.5, 126.5, 500.0, -500.0, math.nan, -math.inf]
    codes = quantize_rows(np.array(row, np.float32) * np.float32(0.25), np.full(8, 0.25, np.float32))
    assert codes.dtype == np.int8
    np.testing.assert_array_equal(codes, [0, 2, -2, 126, 127, -128, 127, -128])


def test_an_int8_cache_counts_as_its_codes_times_the_scales() -> None:
    rng = np.random.default_rng(4)
    scales = CacheScales(*rng.uniform(0.01, 0.02, (2, 2, 8)).astype(np.float32))
    codes = rng.integers(-128, 128, (2, 1, 2, 4, 8), np.int8)
    query = rng.standard_normal((1, 1, 32), np.float32)
    # A new row that lies on the grid loses nothing.
    key, value = (step.reshape(1, 1, 16) * np.float32(7) for step in (scales.key, scales.value))
    attributes = AttentionAttributes(4, 2, False)
    lengths = np.array([4], np.int32)
    int8 = group_query_attention(query, key, value, (codes[0], codes[1]), lengths, 5, attributes, scales=scales)
    real = [part * step[:, None] for part, step in zip(codes, (scales.key, scales.value), strict=True)]
    expected = group_query_attention(query, key, value, (real[0], real[1]), lengths, 5, attributes)
    np.testing.assert_allclose(int8.output, expected.output, rtol=1e-5)
    assert (int8.present_key[0, :, 4] == 7).all()
    assert int8.present_value.dtype == np.int8


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf, 1e-39])
def test_scales_are_checked(wrong: float) -> None:
    scale = np.ones((2, 8), np.float32)
    spoiled = scale.copy()
    spoiled[1, 3] = wrong
    with pytest.raises(InputError, match=r"value_scale\[1, 3\] is .*: it must be a positive, finite and normal number"):
        CacheScales(scale, spoiled)


@pytest.mark.parametrize(
    ("seqlens", "total", "counts"),
    [([6], 6, None), ([-1], 6, None), ([5], 6, [3]), ([5], 6, [-1]), ([5], 6, [1]), ([0], 6, [2])],
)
def test_lengths_out_of_range(seqlens: list[int], total: int, counts: list[int] | None) -> None:
    with pytest.raises(InputError, match="row 0 has"):
        attend(AttentionAttributes(1, 1, False), seqlens, total, query_seqlens=counts)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_heads": 3}, "num_heads is 3 and kv_num_heads is 2"),
        ({"kv_num_heads": 0}, "kv_num_heads is 0"),
        ({"scale": 0.0}, r"scale is 0\.0"),
        ({"local_window_size": 0}, "local_window_size is 0"),
        ({"softcap": math.nan}, "softcap is nan"),
    ],
)
def test_attributes_are_checked(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AttentionAttributes(**{"num_heads": 4, "kv_num_heads": 2, "do_rotary": True} | wrong)


def test_gated_activations_by_hand() -> None:
    x = np.array([[1.0, -2.0, 3.0, 0.5]], np.float32)
    expected = {
        "silu": [3 / (1 + math.exp(-1)), -1 / (1 + math.exp(2))],
        "relu2": [3.0, 0.0],
        "gelu": [1.5 * (1 + math.erf(1 / math.sqrt(2))), -0.5 * (1 + math.erf(-math.sqrt(2)))],
        "gelu_tanh": [
            1.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * 1.044715)),
            -0.5 * (1 + math.tanh(-math.sqrt(2 / math.pi) * (2 + 0.044715 * 8))),
        ],
    }
    for activation, values in expected.items():
        np.testing.assert_allclose(gated_activation(x, activation)[0], values, rtol=1e-6)
        np.testing.assert_array_equal(gated_activation(x[:, :2], activation, x[:, 2:]), gated_activation(x, activation))


def test_gated_operands_are_checked() -> None:
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(InputError, match="activation is 'relu': known values are silu, relu2, gelu, gelu_tanh"):
        gated_activation(x, "relu")
    with pytest.raises(InputError, match=r"X is \[2, 3\]: its last axis must hold gate and up"):
        gated_activation(x, "silu")
    with pytest.raises(InputError, match=r"up is \[2, 4\]: it must have the shape of the gate, \[2, 3\]"):
        gated_activation(x, "silu", np.zeros((2, 4), np.float32))
