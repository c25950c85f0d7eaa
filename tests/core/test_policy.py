"""Which precision each layer gets, and what it makes of a matrix."""

from __future__ import annotations

import numpy as np
import pytest

from bitnet_onnx.api import make_policy
from bitnet_onnx.errors import InputError
from bitnet_onnx.policy import Policy, Precision, Weights

RNG = np.random.default_rng(0)
FLOATS = RNG.standard_normal((64, 96)).astype(np.float32)
TRITS = (RNG.integers(-1, 2, (64, 96)) * 0.3).astype(np.float32)


@pytest.mark.parametrize(
    ("weights", "floats", "trits"),
    [
        (Weights.AUTO, 4, 2),
        (Weights.KEEP, None, 2),
        (Weights.TERNARY, 2, 2),
        (Weights.INT4, 4, 4),
        (Weights.INT6, 6, 6),
        (Weights.INT8, 8, 8),
        (Weights.FLOAT32, None, None),
    ],
)
def test_bits_of_each_precision(weights: Weights, floats: int | None, trits: int | None) -> None:
    for matrix, expected in ((FLOATS, floats), (TRITS, trits)):
        tensor = Precision(weights).quantize(matrix)
        assert (None if tensor is None else tensor.grid.bits) == expected
        if tensor is not None and expected == 2 and matrix is TRITS:
            np.testing.assert_array_equal(tensor.dequantize(), TRITS)


def test_zeros_are_legal_in_every_precision() -> None:
    zeros = np.zeros((5, 40), np.float32)
    for weights in Weights:
        tensor = Precision(weights).quantize(zeros)
        assert tensor is None or not tensor.dequantize().any()


def test_the_last_matching_override_wins() -> None:
    int8, floats = Precision(Weights.INT8, 0), Precision(Weights.FLOAT32)
    policy = Policy(overrides=(("layers.0.*", int8), ("*.down_proj", floats), ("lm_head", floats)))
    assert policy.precision("layers.0.attn.q_proj") is int8
    assert policy.precision("layers.0.mlp.down_proj") is floats
    assert policy.precision("layers.1.attn.q_proj") is policy.default
    assert policy.precision("layers.1.mlp.down_proj") is floats
    assert policy.precision("embed_tokens") is policy.head
    assert policy.precision("lm_head") is floats


def test_auto_means_ternary_where_the_weights_are_masters() -> None:
    int4, auto = Precision(Weights.INT4), Precision(Weights.AUTO, 64)
    policy = Policy(overrides=(("layers.0.*", int4), ("layers.1.*", auto))).for_ternary_masters()
    assert policy.precision("layers.0.attn.q_proj") is int4
    assert policy.precision("layers.1.attn.q_proj").weights is Weights.TERNARY
    assert policy.precision("layers.2.attn.q_proj").weights is Weights.TERNARY
    assert policy.head == Policy().head
    kept = Policy(Precision(Weights.KEEP))
    assert kept.for_ternary_masters() == kept


@pytest.mark.parametrize("weights", [Weights.AUTO, Weights.KEEP, Weights.TERNARY])
def test_the_head_needs_a_precision_that_goes_by_rows(weights: Weights) -> None:
    with pytest.raises(InputError, match=f"embed_tokens cannot be {weights}: choose int8"):
        Policy(head=Precision(weights))
    with pytest.raises(InputError, match="lm_head cannot be"):
        Policy(overrides=(("lm_*", Precision(weights)),))


@pytest.mark.parametrize("size", [-32, 1, 33])
def test_impossible_group_sizes_are_refused(size: int) -> None:
    with pytest.raises(InputError, match=f"group size is {size}: it must be 0"):
        Precision(Weights.INT4, size)


@pytest.mark.parametrize("bits", [-8, 1, 4, 32])
def test_impossible_activation_bits_are_refused(bits: int) -> None:
    with pytest.raises(InputError, match=f"activation_bits is {bits}: it must be 0, 8 or 16"):
        Precision(Weights.INT4, activation_bits=bits)


def test_the_head_has_16_bit_activations_and_the_blocks_8() -> None:
    assert Policy().precision("lm_head").activation_bits == 16
    assert Policy().precision("layers.0.attn.q_proj").activation_bits == 8


def test_policies_by_name() -> None:
    assert make_policy() == Policy()
    assert make_policy("int8", "float32").default == Precision(Weights.INT8, 0)
    assert make_policy("int4", "int4", 64) == Policy(Precision(Weights.INT4, 64), Precision(Weights.INT4, 32, 16))
    with pytest.raises(InputError, match="weights is 'int5': choose one of auto, keep"):
        make_policy("int5")
    with pytest.raises(InputError, match="head is 'none'"):
        make_policy(head="none")
