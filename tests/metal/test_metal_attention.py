"""The shaders of attention against the operator's CPU kernels, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from attention_models import AttentionCase
from metal_attention import Plan, attend
from metal_emulation import Emulation

from bitnet_onnx.attention import Attended, AttentionAttributes
from bitnet_onnx.custom_ops import library_path

#: S, tokens of each row, length of the past, new tokens of each row.
CALLS: dict[str, tuple[int, list[int], int, list[int] | None]] = {
    "first token": (1, [1, 1], 0, None),
    "prompt": (5, [5], 0, None),
    "ragged prompts": (7, [7, 4, 1], 0, None),
    "ragged decode": (1, [301, 18], 300, None),
    "chunk": (20, [150], 130, None),
    "chunk in a longer buffer": (3, [33], 200, None),
    "mixed": (5, [145, 61, 3, 7], 150, [5, 1, 3, 0]),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"do_rotary": False},
    "rotary": {"do_rotary": True},
    "interleaved": {"do_rotary": True, "rotary_interleaved": True},
    "window": {"do_rotary": True, "local_window_size": 3},
    "window over chunks": {"do_rotary": False, "local_window_size": 150},
    "softcap and scale": {"do_rotary": True, "softcap": 2.0, "scale": 0.5},
}
PLANS = [Plan(), Plan(rows=2, split=True, simdgroups=2), Plan(rows=8, simdgroups=1), Plan(rows=1, split=True)]


@pytest.fixture(autouse=True)
def _needs_library() -> None:
    if library_path() is None:
        pytest.skip("the operator library is not built: no C++17 compiler when bitnet-onnx was installed")


def same(case: AttentionCase, got: Attended, expected: Attended, in_place: bool = False) -> None:
    np.testing.assert_array_equal(got.output, expected.output)
    for mine, its in ((got.present_key, expected.present_key), (got.present_value, expected.present_value)):
        for row, total in enumerate(case.totals):
            end = total if in_place else None
            np.testing.assert_array_equal(mine[row, :, :end], its[row, :, :end])


@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("call", CALLS)
def test_equals_the_operator(device: Emulation, call: str, variant: str, int8: bool) -> None:
    sequence, totals, past, counts = CALLS[call]
    attributes = AttentionAttributes(6, 2, **VARIANTS[variant])
    case = AttentionCase(
        attributes, 24, sequence, totals, past, counts, separate=variant == "window", rotary_dim=16, int8=int8
    )
    expected = case.run()
    for plan in PLANS:
        same(case, attend(device, case, plan), expected)


@pytest.mark.parametrize("head_dim", [8, 64, 128, 256, 512])
@pytest.mark.parametrize("heads", [(4, 4), (4, 1), (5, 1), (8, 2)], ids=str)
def test_lengths_and_groups_of_heads(opened: Emulation, head_dim: int, heads: tuple[int, int]) -> None:
    case = AttentionCase(AttentionAttributes(*heads, do_rotary=True), head_dim, 2, [140, 2], 138, int8=heads[0] == 5)
    expected, rows = case.run(), min(8, 2048 // head_dim)
    same(case, attend(opened, case, Plan(rows=rows)), expected)
    same(case, attend(opened, case, Plan(rows=rows, split=True, simdgroups=16)), expected)


@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
def test_in_place(device: Emulation, int8: bool) -> None:
    """Rows of the cache that are not new are neither read nor written."""
    case = AttentionCase(
        AttentionAttributes(4, 2, do_rotary=True), 16, 3, [40, 9], 50, counts=[3, 1], separate=True, int8=int8
    )
    expected = case.run()
    for past in (case.tensors["past_key"], case.tensors["past_value"]):
        for row, total in enumerate(case.totals):
            past[row, :, total:] = 99 if int8 else np.nan
    got = attend(device, case, Plan(in_place=True))
    same(case, got, expected, in_place=True)
    for mine, past in ((got.present_key, case.tensors["past_key"]), (got.present_value, case.tensors["past_value"])):
        for row, total in enumerate(case.totals):
            np.testing.assert_array_equal(mine[row, :, total:], past[row, :, total:])


def test_one_by_one_as_in_one_call(opened: Emulation) -> None:
    """The bits of a token do not depend on how the sequence was cut into calls."""
    attributes = AttentionAttributes(4, 2, do_rotary=True)
    whole = AttentionCase(attributes, 16, 135, [135], 0, separate=True)
    expected = attend(opened, whole, Plan(rows=8))
    cache = np.zeros((2, 1, 2, 135, 16), np.float32)
    for position in (0, 1, 2):
        step = AttentionCase(attributes, 16, 1, [position + 1], 135, separate=True)
        for name in ("query", "key", "value"):
            step.tensors[name][...] = whole.tensors[name][:, position : position + 1]
        step.tensors["past_key"][...], step.tensors["past_value"][...] = cache
        got = attend(opened, step, Plan(rows=1, in_place=True, split=position == 2))
        cache[0], cache[1] = got.present_key, got.present_value
        np.testing.assert_array_equal(got.output[0, 0], expected.output[0, position])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(opened: Emulation, bad: float) -> None:
    """In a query, they stay in its head and token; in a value, in its feature."""
    case = AttentionCase(AttentionAttributes(2, 1, do_rotary=False), 8, 4, [4], 0, separate=True)
    case.tensors["query"][0, 1, 3] = bad
    case.tensors["value"][0, 3, 2] = bad
    got = attend(opened, case, Plan()).output.reshape(4, 2, 8)
    wrong = ~np.isfinite(got)
    expected = np.zeros_like(wrong)
    expected[1, 0] = True
    expected[3, :, 2] = True
    np.testing.assert_array_equal(wrong, expected)


def test_int8_codes_of_special_values(opened: Emulation) -> None:
    case = AttentionCase(AttentionAttributes(1, 1, do_rotary=False), 8, 1, [1], 0, separate=True, int8=True)
    case.tensors["value_scale"][...] = 0.5
    case.tensors["value"][0, 0] = [np.nan, np.inf, -np.inf, 0.25, 0.75, -0.25, 63.9, -64.1]
    assert attend(opened, case, Plan()).present_value[0, 0, 0].tolist() == [127, 127, -128, 0, 2, 0, 127, -128]
