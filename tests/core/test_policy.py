"""Which precision each layer gets, and what it makes of a matrix."""

from __future__ import annotations

import numpy as np
import pytest

from bitnet_onnx.api import make_policy
from bitnet_onnx.errors import InputError
from bitnet_onnx.policy import Policy, Precision, Weights
from bitnet_onnx.quantization.method import MethodName
from bitnet_onnx.quantization.statistics import InputStatistics
from bitnet_onnx.quantized import TERNARY, Grid

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


def test_auto_makes_blocks_int4_and_the_head_int8_where_they_are_not_ternary() -> None:
    policy = Policy()
    for role, bits in (("layers.0.attn.q_proj", 4), ("embed_tokens", 8), ("lm_head", 8)):
        floats, trits = (policy.precision(role).quantize(matrix) for matrix in (FLOATS, TRITS))
        assert floats is not None
        assert floats.grid.bits == bits
        assert trits is not None
        np.testing.assert_array_equal(trits.dequantize(), TRITS)
    with pytest.raises(InputError, match="otherwise is ternary: it must be int4"):
        Precision(Weights.AUTO, otherwise=Weights.TERNARY)


@pytest.mark.parametrize(
    ("weights", "two", "four"),
    [
        (Weights.AUTO, True, True),
        (Weights.KEEP, True, True),
        (Weights.TERNARY, True, False),
        (Weights.INT4, False, True),
        (Weights.INT6, False, False),
        (Weights.FLOAT32, False, False),
    ],
)
def test_which_codes_stay_as_they_are(weights: Weights, two: bool, four: bool) -> None:
    assert (Precision(weights).keeps(TERNARY), Precision(weights).keeps(Grid(4, 8, 32))) == (two, four)


def test_a_head_is_never_made_ternary() -> None:
    with pytest.raises(InputError, match="embed_tokens cannot be made ternary: choose auto or keep"):
        Policy(head=Precision(Weights.TERNARY))
    with pytest.raises(InputError, match="lm_head cannot be made ternary"):
        Policy(overrides=(("lm_*", Precision(Weights.TERNARY)),))
    Policy(head=Precision(Weights.KEEP))


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
    chosen = make_policy("int4", "int4", 64)
    assert chosen.default == Precision(Weights.INT4, 64)
    assert (chosen.head.weights, chosen.head.group_size, chosen.head.activation_bits) == (Weights.INT4, 32, 16)
    with pytest.raises(InputError, match="cannot be made ternary"):
        make_policy(head="ternary")
    with pytest.raises(InputError, match="weights is 'int5': choose one of auto, keep"):
        make_policy("int5")
    with pytest.raises(InputError, match="head is 'none'"):
        make_policy(head="none")


def test_auto_depends_on_what_is_known() -> None:
    moment = np.eye(64, dtype=np.float32)
    known = InputStatistics(
        9, np.ones(64, np.float32), np.zeros(64, np.float32), (moment,), np.zeros((0, 64), np.float32)
    )
    assert Precision(Weights.INT4).chosen_method(None) is MethodName.ROUND
    assert Precision(Weights.INT4).chosen_method(known) is MethodName.GPTQ
    assert Precision(Weights.INT8, 0).chosen_method(known) is MethodName.RTN
    assert Precision(Weights.TERNARY).chosen_method(None) is MethodName.ABSMEAN
    assert Precision(Weights.TERNARY).chosen_method(known) is MethodName.ABSMEAN
    assert Precision(Weights.INT4, method=MethodName.RTN).chosen_method(known) is MethodName.RTN
