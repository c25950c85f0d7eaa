"""Scaling and rotation change nothing but how well a layer can be rounded."""

from __future__ import annotations

import numpy as np
import pytest
from layer_inputs import correlated, statistics_of

from bitnet_onnx.activations import quantize_activations
from bitnet_onnx.errors import InputError
from bitnet_onnx.integer import integer_grid
from bitnet_onnx.quantization.preparation.rotation import head_rotation, rotate_inputs, rotate_outputs
from bitnet_onnx.quantization.preparation.scaling import find_scaling
from bitnet_onnx.quantization.rtn import Rtn
from bitnet_onnx.quantization.statistics import InputStatistics


def assert_same(one: InputStatistics, other: InputStatistics, *, peak: bool = True) -> None:
    names = ("mean", "sample", "peak") if peak else ("mean", "sample")
    for name in names:
        expected = getattr(other, name)
        np.testing.assert_allclose(getattr(one, name), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    assert len(one.moment) == len(other.moment)
    for mine, block in zip(one.moment, other.moment, strict=True):
        np.testing.assert_allclose(mine, block, rtol=1e-4, atol=1e-5 * np.abs(block).max())


def output_error(weight: np.ndarray, inputs: np.ndarray, scale: np.ndarray, bits: int = 8) -> float:
    """Of a layer rounded to 4 bits with rounded inputs, each token's by its own step."""
    statistics = statistics_of(inputs).scaled(scale)
    rounded = Rtn()(weight * scale, integer_grid(4, 32), statistics).dequantize()
    scaled = inputs / scale
    if bits:
        codes, inverse = quantize_activations(scaled, bits)
        scaled = codes / inverse[:, None]
    return float(np.square(scaled @ rounded.T - inputs @ weight.T).sum())


@pytest.mark.parametrize("bits", [0, 8])
def test_scaling_helps_where_some_inputs_are_large(bits: int) -> None:
    weights = [np.random.default_rng(seed).standard_normal((rows, 96), np.float32) for seed, rows in ((0, 20), (1, 30))]
    inputs = correlated(2, 400, 96)
    inputs[:, 7] *= 100
    scale = find_scaling(weights, statistics_of(inputs), integer_grid(4, 32), activation_bits=bits)
    assert scale.dtype == np.float32
    assert (scale > 0).all()
    assert scale[7] == scale.max()
    # On all tokens, most of which the search has not seen.
    prepared = sum(output_error(weight, inputs, scale, bits) for weight in weights)
    untouched = sum(output_error(weight, inputs, np.ones_like(scale), bits) for weight in weights)
    assert prepared < (0.5 if bits else 0.97) * untouched


def test_scales_are_ones_where_nothing_helps() -> None:
    # Every row is on the grid, and so is every input.
    weight = np.tile(np.arange(-8, 8, dtype=np.float32), (4, 4))
    inputs = np.tile(np.array([127, -127], np.float32), (70, 32))
    assert (find_scaling([weight], statistics_of(inputs), integer_grid(4)) == 1).all()


def test_features_that_were_never_seen_keep_their_scale() -> None:
    weight = np.random.default_rng(3).standard_normal((16, 64), np.float32)
    weight[:, 3] = 0
    inputs = correlated(4, 200, 64)
    inputs[:, 5] = 0
    inputs[:, 9] *= 50
    scale = find_scaling([weight], statistics_of(inputs), integer_grid(4, 32))
    assert scale[3] == scale[5] == 1
    assert scale[9] > 1
    assert (find_scaling([weight], statistics_of(inputs * 0), integer_grid(4)) == 1).all()


def test_what_does_not_fit_is_refused() -> None:
    statistics = statistics_of(correlated(5, 20, 64))
    with pytest.raises(InputError, match="statistics of 64 features for a matrix of 32 columns"):
        find_scaling([np.ones((2, 32), np.float32)], statistics, integer_grid(4))
    empty = InputStatistics(0, statistics.peak, statistics.mean, statistics.moment, np.zeros((0, 64), np.float32))
    with pytest.raises(InputError, match=r"statistics of 64 features: peak .63.*in blocks of .64."):
        InputStatistics(20, statistics.peak[1:], statistics.mean, statistics.moment, statistics.sample)
    with pytest.raises(InputError, match="without a sample"):
        find_scaling([np.ones((2, 64), np.float32)], empty, integer_grid(4))
    for scale in (np.ones(63, np.float32), np.zeros(64, np.float32), np.full(64, np.inf, np.float32)):
        with pytest.raises(InputError, match="each must be positive"):
            statistics.scaled(scale)
    with pytest.raises(InputError, match=r"3 heads turned by .* are not 64 features"):
        statistics.rotated(head_rotation(16), 3)
    with pytest.raises(InputError, match=r"do not fit into blocks of the moment of .40, 24"):
        statistics_of(correlated(5, 20, 64), (40, 24)).rotated(head_rotation(16), 4)
    with pytest.raises(InputError, match="no whole heads of 16"):
        rotate_inputs(np.ones((2, 40), np.float32), head_rotation(16))
    with pytest.raises(InputError, match="head size is 0"):
        head_rotation(0)


@pytest.mark.parametrize("blocks", [(64,), (32, 32), (16, 48)])
def test_statistics_follow_the_inputs(blocks: tuple[int, ...]) -> None:
    inputs = correlated(6, 64, 64)
    statistics = statistics_of(inputs, blocks)
    scale = np.exp(np.random.default_rng(7).standard_normal(64)).astype(np.float32)
    assert_same(statistics.scaled(scale), statistics_of(inputs / scale, blocks))
    rotation = head_rotation(16, 3)
    turned = (inputs.reshape(64, 4, 16) @ rotation.T).reshape(64, 64)
    # The sample holds all 64 tokens here, so that even the peak is right.
    assert_same(statistics.rotated(rotation, 4), statistics_of(turned, blocks))


@pytest.mark.parametrize("size", [1, 2, 3, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("seed", [None, 0])
def test_rotations_are_orthogonal_and_spread_one_coordinate(size: int, seed: int | None) -> None:
    rotation = head_rotation(size, seed).astype(np.float64)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(size), atol=1e-6)
    assert np.abs(rotation).max() <= np.sqrt(2 / size) * 1.001 or size == 1


def test_rotations_differ_by_seed_and_not_by_call() -> None:
    np.testing.assert_array_equal(head_rotation(64, 1), head_rotation(64, 1))
    assert (head_rotation(64, 1) != head_rotation(64, 2)).any()
    # Of the first numbers of PCG64; another stream would make packages irreproducible.
    assert (head_rotation(8, 0)[0] < 0).tolist() == [True, True, False, True, True, False, True, True]


@pytest.mark.parametrize("size", [16, 24])
def test_attention_does_not_notice_a_rotation(size: int) -> None:
    """Two key-value heads, each read by two query heads."""
    rng = np.random.default_rng(8)
    x = rng.standard_normal((5, 40), np.float32)
    value, bias = rng.standard_normal((2 * size, 40), np.float32), rng.standard_normal(2 * size).astype(np.float32)
    output = rng.standard_normal((40, 4 * size), np.float32)
    mixing = rng.dirichlet(np.ones(5), (4, 5)).astype(np.float32)

    def attend(value: np.ndarray, bias: np.ndarray, output: np.ndarray) -> np.ndarray:
        heads = np.repeat((x @ value.T + bias).reshape(5, 2, size), 2, axis=1)
        mixed = np.einsum("hts,shd->thd", mixing, heads).reshape(5, -1)
        return mixed @ output.T

    rotation = head_rotation(size, 5)
    turned = attend(rotate_outputs(value, rotation), rotate_outputs(bias, rotation), rotate_inputs(output, rotation))
    np.testing.assert_allclose(turned, attend(value, bias, output), atol=1e-3)
    assert np.abs(rotate_outputs(value, rotation) - value).max() > 0.1


def test_a_rotation_tames_a_coordinate_that_stands_out() -> None:
    rng = np.random.default_rng(9)
    weight, inputs = rng.standard_normal((32, 64), np.float32), rng.standard_normal((300, 64), np.float32)
    weight[:, ::16] *= 20
    rotation = head_rotation(16)
    turned = (inputs.reshape(-1, 4, 16) @ rotation.T).reshape(-1, 64)
    ones = np.ones(64, np.float32)
    assert output_error(rotate_inputs(weight, rotation), turned, ones) < 0.5 * output_error(weight, inputs, ones)
