"""The numpy reference itself: against transformers' golden logits, and each part against its definition."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from random_decoders import BASE, FLOAT, SPECS, RandomDecoder
from tiny_models import TINY, TOLERANCE, columns, prompts

from bitnet_onnx.bitlinear import PackedLinear, bitlinear
from bitnet_onnx.converters.model import open_model
from bitnet_onnx.decoder import Attention, MlpActivation, Norm, Rotary
from bitnet_onnx.errors import InputError
from bitnet_onnx.evaluation._attention import attend, rotate
from bitnet_onnx.evaluation._functions import activate, normalize
from bitnet_onnx.evaluation._linear import Linear, PolicyRule, SourceRule, apply, look_up
from bitnet_onnx.evaluation.reference import Prompt, forward
from bitnet_onnx.integer import quantize_integer
from bitnet_onnx.policy import Policy, Precision, Weights
from bitnet_onnx.quantized import QuantizedTensor
from bitnet_onnx.ternary import quantize_absmean

GOLDEN = Path(__file__).parents[1] / "golden"
RNG = np.random.default_rng(3)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, np.float32)


@pytest.mark.parametrize("name", TINY)
def test_floats_are_those_of_transformers(name: str, tiny_checkpoint: Callable[[str], Path]) -> None:
    with open_model(tiny_checkpoint(name)) as model, np.load(GOLDEN / f"{name}.npz") as golden:
        ids = [tuple(int(token) for token in prompt) for prompt in prompts(model.spec.vocab_size)]
        rule = PolicyRule(model.tensors, FLOAT)
        for index, result in enumerate(forward(model.spec, model.tensors, rule, [Prompt(prompt) for prompt in ids])):
            found = result.logits[:, columns(model.spec.vocab_size)]
            np.testing.assert_allclose(found, golden[f"prompt{index}"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(
    "matrix",
    [
        quantize_absmean(normal(40, 96)),
        quantize_integer(normal(40, 96), 4, 32),
        quantize_integer(normal(40, 90), 6, 64),
        quantize_integer(normal(40, 1100), 8),
    ],
    ids=["ternary", "int4", "int6, short group", "int8 beyond float32"],
)
def test_linear_layers_are_the_operators_bit_for_bit(matrix: QuantizedTensor, bits: int) -> None:
    x = normal(5, matrix.shape[1]) * 7
    tensors = _Shapes(matrix.shape)
    expected = bitlinear(x, PackedLinear.from_quantized(matrix, activation_bits=bits))
    np.testing.assert_array_equal(apply(x, Linear(matrix, bits), tensors, "m"), expected)
    wide = x.astype(np.float64) @ matrix.dequantize().astype(np.float64).T
    np.testing.assert_allclose(apply(x, Linear(matrix), tensors, "m"), wide, rtol=0, atol=1e-3)
    rows = np.array([3, 39, 3])
    np.testing.assert_array_equal(look_up(rows, Linear(matrix), tensors, "m"), matrix.dequantize()[rows])


class _Shapes(RandomDecoder):
    def __init__(self, shape: tuple[int, int]) -> None:
        self._shapes = {"m.weight": shape}


def test_large_matrices_are_applied_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, x = quantize_integer(normal(40, 96), 4, 32), normal(3, 96)
    whole = [apply(x, Linear(matrix, bits), _Shapes(matrix.shape), "m") for bits in (0, 8)]
    monkeypatch.setattr("bitnet_onnx.evaluation._linear._CHUNK", 96 * 7)
    for bits, expected in zip((0, 8), whole, strict=True):
        found = apply(x, Linear(matrix, bits), _Shapes(matrix.shape), "m")
        np.testing.assert_allclose(found, expected, rtol=0, atol=0 if bits else 1e-5)


def test_rotation_multiplies_complex_numbers() -> None:
    x, places = normal(6, 2, 12), np.arange(6)
    for interleaved in (False, True):
        found = rotate(x, places, Rotary(100.0, 8, interleaved=interleaved, magnitude=1.5))
        np.testing.assert_array_equal(found[..., 8:], x[..., 8:])
        for pair in range(4):
            first, second = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + 4)
            turn = 1.5 * np.exp(1j * places * 100.0 ** (-pair / 4))[:, None]
            expected = (x[..., first] + 1j * x[..., second]) * turn
            np.testing.assert_allclose(found[..., first] + 1j * found[..., second], expected, rtol=0, atol=1e-5)


def test_dynamic_rotation_grows_behind_the_original_context() -> None:
    x, places = normal(6, 1, 8), np.arange(6)
    plain, dynamic = Rotary(100.0, 8), Rotary(100.0, 8, dynamic_factor=2.0, original_context=4)
    np.testing.assert_array_equal(rotate(x, places, dynamic)[:4], rotate(x, places, plain)[:4])
    base = 100.0 * (2 * 6 / 4 - 1) ** (8 / 6)
    np.testing.assert_allclose(rotate(x, places, dynamic)[5], rotate(x, places, Rotary(base, 8))[5], rtol=0, atol=1e-6)


def test_attention_sees_its_window_and_nothing_behind() -> None:
    query, key, value = normal(9, 2, 16), normal(9, 1, 16), normal(9, 1, 16)
    spec = replace(BASE, num_attention_heads=2, num_key_value_heads=1, attention_scale=0.7, attention_softcap=2.0)
    found = attend(query, key, value, spec, Attention(window=3))
    for place in range(9):
        for head in range(2):
            scores = [
                2 * math.tanh(0.7 * float(query[place, head] @ key[seen, 0]) / 2)
                for seen in range(max(0, place - 2), place + 1)
            ]
            weights = np.exp(scores) / np.exp(scores).sum()
            expected = weights @ value[max(0, place - 2) : place + 1, 0]
            np.testing.assert_allclose(found[place, 16 * head : 16 * head + 16], expected, rtol=0, atol=1e-5)


def test_queries_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, value = normal(9, 4, 16), normal(9, 2, 16), normal(9, 2, 16)
    whole = attend(query, key, value, BASE, BASE.layer(0))
    monkeypatch.setattr("bitnet_onnx.evaluation._attention._CHUNK", 20)
    np.testing.assert_allclose(attend(query, key, value, BASE, BASE.layer(0)), whole, rtol=0, atol=1e-6)


def test_norms() -> None:
    x, weight, bias = normal(4, 3, 10) * 5 + 2, normal(10), normal(10)
    rms = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 0.1) * weight
    np.testing.assert_allclose(normalize(x, Norm.RMS, weight, None, 0.1), rms, rtol=1e-6)
    layer = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 0.1) * weight + bias
    np.testing.assert_allclose(normalize(x, Norm.LAYER, weight, bias, 0.1), layer, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("activation", "at_minus_one", "at_two"),
    [
        (MlpActivation.SILU, -0.2689414, 1.7615942),
        (MlpActivation.RELU, 0, 2),
        (MlpActivation.RELU2, 0, 4),
        (MlpActivation.GELU, -0.1586553, 1.9544997),
        (MlpActivation.GELU_TANH, -0.1588080, 1.9545977),
        (MlpActivation.QUICK_GELU, -0.1542042, 1.9356586),
    ],
)
def test_activations(activation: MlpActivation, at_minus_one: float, at_two: float) -> None:
    found = activate(np.array([-1, 2, 0, -1e4, 1e4], np.float32), activation)
    peak = 1e8 if activation is MlpActivation.RELU2 else 1e4
    np.testing.assert_allclose(found, [at_minus_one, at_two, 0, 0, peak], rtol=1e-6, atol=1e-7)


def test_noise_moves_the_sequence_that_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitnet_onnx.evaluation.reference.NOISE", 1e-3)
    tensors, ids = RandomDecoder(BASE), (5, 9, 100, 7)
    rule = PolicyRule(tensors, FLOAT)
    run = [Prompt(ids), Prompt(ids, 1), Prompt(ids), Prompt(ids, 2), Prompt(ids, 1)]
    first, noisy, second, other, again = (result.logits for result in forward(BASE, tensors, rule, run))
    np.testing.assert_allclose(first, second, rtol=0, atol=1e-5)
    np.testing.assert_allclose(noisy, again, rtol=0, atol=1e-5)
    for shaken, plain in ((noisy, first), (other, first), (noisy, other)):
        assert 1e-3 < np.abs(shaken - plain).max() < 0.1


def test_noise_shows_how_far_rounded_activations_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitnet_onnx.evaluation.reference.NOISE", 1e-5)
    tensors = RandomDecoder(BASE)
    run = [Prompt(tuple(range(60)), noise) for noise in (None, 1)]
    moved = []
    for bits in (0, 8):
        rule = PolicyRule(tensors, Policy(Precision(Weights.INT4, 32, bits), Precision(Weights.INT8, 0, bits)))
        plain, shaken = (result.logits for result in forward(BASE, tensors, rule, run))
        moved.append(np.abs(shaken - plain).max())
    assert moved[1] > 20 * moved[0] > 0


def test_hidden_states_and_progress() -> None:
    tensors, seen = RandomDecoder(BASE), []
    (result,) = forward(
        BASE,
        tensors,
        PolicyRule(tensors, FLOAT),
        [Prompt((1, 2))],
        layers=[1],
        progress=lambda done, total: seen.append((done, total)),
    )
    assert list(result.hidden) == [1]
    assert seen == [(1, 2), (2, 2)]
    last = normalize(result.hidden[1], Norm.RMS, tensors.read("norm.weight"), None, BASE.norm_epsilon)
    np.testing.assert_allclose(last @ tensors.read("lm_head.weight").T, result.logits, rtol=0, atol=1e-5)


def test_sequences_do_not_touch_each_other() -> None:
    spec = SPECS["learned positions and rotary"]
    tensors = RandomDecoder(spec)
    rule, prompts_ = PolicyRule(tensors, FLOAT), [Prompt((4, 5, 6)), Prompt((7,)), Prompt((8, 9))]
    together = forward(spec, tensors, rule, prompts_)
    for prompt, result in zip(prompts_, together, strict=True):
        (alone,) = forward(spec, tensors, rule, [prompt])
        np.testing.assert_allclose(result.logits, alone.logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ((), "a prompt has 0 tokens: expected 1 to 160"),
        (tuple([1] * 161), "a prompt has 161 tokens"),
        ((1, 211), "token id 211 is outside the model's vocabulary of 211"),
        ((-1,), "token id -1 is outside"),
    ],
)
def test_impossible_prompts_are_refused(ids: tuple[int, ...], message: str) -> None:
    tensors = RandomDecoder(BASE)
    with pytest.raises(InputError, match=message):
        forward(BASE, tensors, PolicyRule(tensors, FLOAT), [Prompt(ids)])


def test_a_source_trained_ternary_rounds_its_masters(tiny_checkpoint: Callable[[str], Path]) -> None:
    with open_model(tiny_checkpoint("bitnet")) as model:
        rule = SourceRule(model)
        linear = rule.linear("layers.0.attn.q_proj")
        expected = quantize_absmean(model.tensors.read("layers.0.attn.q_proj.weight"))
        assert linear.quantized is not None
        np.testing.assert_array_equal(linear.quantized.raw, expected.raw)
        assert linear.activation_bits == 8
        assert rule.linear("embed_tokens") == Linear()
    with open_model(tiny_checkpoint("untied_gqa")) as model:
        assert SourceRule(model).linear("layers.0.attn.q_proj") == Linear()
