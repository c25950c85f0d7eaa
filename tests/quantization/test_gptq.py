"""GPTQ: the codes of a textbook implementation, and what is done beyond it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_inputs import correlated, statistics_of

from bitnet_onnx.errors import InputError
from bitnet_onnx.integer import integer_grid
from bitnet_onnx.metrics import weighted_error
from bitnet_onnx.quantization import _compensation, gptq
from bitnet_onnx.quantization._descent import Descent, Rounded
from bitnet_onnx.quantization._factor import feedback, moments
from bitnet_onnx.quantization.gptq import Gptq
from bitnet_onnx.quantization.rtn import Rtn
from bitnet_onnx.quantized import Grid

#: What the paper describes, with the scales of plain rounding.
TEXTBOOK = Gptq(damping=0.01, act_order=False, search=False, sweeps=0)


def textbook(weight: np.ndarray, step: np.ndarray, grid: Grid, moment: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Algorithm 1 of the paper, one column at a time, in float64; `step` is of each weight.

    After a column is rounded, the others take what the inverse of the Hessian says of its error, and the column is
    eliminated from the inverse.
    """
    hessian = moment.astype(np.float64)
    hessian += np.eye(len(hessian)) * TEXTBOOK.damping * hessian.diagonal().mean()
    inverse = np.linalg.inv(hessian)
    left = weight.astype(np.float64)
    step = step.astype(np.float64)
    low, high = -grid.zero_point, grid.levels - 1 - grid.zero_point
    codes = np.zeros(weight.shape, int)
    for k in order:
        codes[:, k] = np.clip(np.rint(left[:, k] / step[:, k]), low, high)
        error = (left[:, k] - codes[:, k] * step[:, k]) / inverse[k, k]
        left -= np.outer(error, inverse[k])
        inverse = inverse - np.outer(inverse[:, k], inverse[k]) / inverse[k, k]
    return codes


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("group_size", [0, 32])
@pytest.mark.parametrize("act_order", [False, True])
def test_codes_are_those_of_the_textbook(bits: int, group_size: int, act_order: bool) -> None:
    weight = np.random.default_rng(bits).standard_normal((24, 200), np.float32)
    statistics = statistics_of(correlated(1, 600, 200))
    grid = integer_grid(bits, group_size)
    plain = Rtn(search=False)(weight, grid)
    moment = statistics.moment[0]
    order = np.argsort(-moment.diagonal(), kind="stable") if act_order else np.arange(200)
    expected = textbook(weight, plain.step(), grid, moment, order)
    tensor = replace(TEXTBOOK, act_order=act_order)(weight, grid, statistics)
    # Where compensation did not pay the row is that of plain rounding; here it pays everywhere.
    np.testing.assert_array_equal(tensor.signed(), expected)
    np.testing.assert_allclose(tensor.scale, plain.scale, rtol=1e-7)
    assert (expected != plain.signed()).mean() > 0.05


def test_blocks_of_the_moment_are_rounded_for_themselves() -> None:
    weight = np.random.default_rng(3).standard_normal((10, 200), np.float32)
    inputs = correlated(4, 500, 200)
    # Groups of 64 begin in one block and end in the next.
    grid = integer_grid(4, 64)
    blocks = (100, 70, 30)
    tensor = TEXTBOOK(weight, grid, statistics_of(inputs, blocks))
    plain = Rtn(search=False)(weight, grid)
    start = 0
    for size in blocks:
        own = slice(start, start + size)
        moment = inputs[:, own].T.astype(np.float64) @ inputs[:, own] / 500
        step = plain.step()[:, own]
        part = textbook(weight[:, own], step, grid, moment.astype(np.float32), np.arange(size))
        np.testing.assert_array_equal(tensor.signed()[:, own], part)
        start += size


def error_of(method: Gptq, weight: np.ndarray, grid: Grid, inputs: np.ndarray) -> float:
    statistics = statistics_of(inputs)
    return weighted_error(weight - method(weight, grid, statistics).dequantize(), statistics.moment)


@pytest.mark.parametrize("grid", [Grid(2, 2), Grid(2, 2, 64), integer_grid(2, 64), integer_grid(4)])
def test_each_thing_beyond_the_textbook_pays(grid: Grid) -> None:
    weight = np.random.default_rng(5).standard_normal((64, 192), np.float32)
    inputs = correlated(6, 800, 192)
    ladder = [
        TEXTBOOK,
        replace(TEXTBOOK, search=True),
        replace(TEXTBOOK, search=True, sweeps=1),
        replace(TEXTBOOK, search=True, sweeps=3),
    ]
    errors = [error_of(method, weight, grid, inputs) for method in ladder]
    assert all(later < earlier for earlier, later in pairwise(errors)), errors
    assert errors[-1] < 0.9 * errors[0]


def test_a_row_that_does_not_profit_is_rounded_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gptq, "compensated", lambda weight, *_: np.zeros_like(weight))
    weight = np.random.default_rng(7).standard_normal((5, 64), np.float32)
    plain = Rtn(search=False)(weight, integer_grid(4))
    tensor = TEXTBOOK(weight, integer_grid(4), statistics_of(correlated(8, 200, 64)))
    np.testing.assert_array_equal(tensor.raw, plain.raw)
    np.testing.assert_array_equal(tensor.scale, plain.scale)


@pytest.mark.parametrize("inner", [1, 7, 500])
def test_how_updates_are_put_off_changes_nothing(inner: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = np.random.default_rng(9).standard_normal((20, 300), np.float32)
    statistics = statistics_of(correlated(10, 500, 300))
    expected = TEXTBOOK(weight, integer_grid(4, 64), statistics)
    monkeypatch.setattr(_compensation, "_INNER", inner)
    monkeypatch.setattr(_compensation, "_OUTER", 3 * inner)
    np.testing.assert_array_equal(TEXTBOOK(weight, integer_grid(4, 64), statistics).raw, expected.raw)


def test_features_that_were_never_seen_do_no_harm() -> None:
    weight = np.random.default_rng(11).standard_normal((12, 96), np.float32)
    inputs = correlated(12, 300, 96)
    inputs[:, ::3] = 0
    plain = weight - Rtn(search=False)(weight, integer_grid(4, 32)).dequantize()
    for damping in (0.0, 0.05):
        tensor = Gptq(damping=damping, sweeps=1)(weight, integer_grid(4, 32), statistics_of(inputs))
        error = weight - tensor.dequantize()
        assert np.square(error @ inputs.T).sum() < 0.5 * np.square(plain @ inputs.T).sum()
        nearest = np.clip(np.rint(weight / tensor.step()), -8, 7)
        np.testing.assert_array_equal(tensor.signed()[:, ::3], nearest[:, ::3])


def test_feedback_of_a_moment_that_is_none_is_none() -> None:
    """An indefinite matrix cannot be factored however much is added."""
    matrix = np.array([[1.0, 1e9], [1e9, 1.0]])
    np.testing.assert_array_equal(feedback(matrix, 0.01), np.eye(2))


def test_feedback_beyond_float32_is_damped() -> None:
    upper = feedback(np.array([[1.0, 5e-41], [5e-41, 1e-80]]), 0.0)
    assert np.isfinite(upper).all()
    assert 0 < upper[0, 1] < 1


def test_feedback_of_few_tokens_is_damped() -> None:
    inputs = correlated(13, 3, 40).astype(np.float64)
    upper = feedback(inputs.T @ inputs, 0.0)
    assert np.isfinite(upper).all()
    np.testing.assert_array_equal(np.tril(upper, -1), 0)
    np.testing.assert_array_equal(upper.diagonal(), 1)
    assert np.abs(np.triu(upper, 1)).max() > 0.1


@settings(max_examples=40)
@given(
    st.integers(1, 200),
    st.sampled_from([0, 32, 96]),
    st.sampled_from([2, 4]),
    st.integers(0, 10),
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=4),
    st.integers(1, 199),
)
def test_no_sweep_makes_it_worse(
    columns: int, group_size: int, bits: int, seed: int, sweeps: list[tuple[bool, bool]], cut: int
) -> None:
    rng = np.random.default_rng(seed)
    grid = integer_grid(bits, group_size)
    sizes = (columns,) if cut >= columns else (cut, columns - cut)
    blocks = moments(statistics_of(correlated(seed, 40, columns), sizes).moment)
    members = np.arange(columns) // (group_size or columns)
    rounded = Rounded(
        weight=rng.standard_normal((columns, 6)),
        codes=rng.integers(-1, 3, (columns, 6)).astype(np.float64),
        step=rng.choice([-1.0, 1.0], (grid.groups(columns), 6)) * rng.uniform(0.1, 2, (grid.groups(columns), 6)),
        members=members,
        low=-grid.zero_point,
        high=grid.levels - 1 - grid.zero_point,
    )
    descent = Descent(rounded, blocks)
    before = rounded.loss(blocks)
    for codes, steps in sweeps:
        descent.sweep(codes=codes, steps=steps)
        after = rounded.loss(blocks)
        assert (after <= before * (1 + 1e-9) + 1e-12).all()
        before = after
    assert rounded.codes.min() >= rounded.low
    assert rounded.codes.max() <= rounded.high


def test_descent_ends_where_no_single_code_can_be_better() -> None:
    weight = np.random.default_rng(14).standard_normal((3, 40), np.float32)
    statistics = statistics_of(correlated(15, 200, 40))
    tensor = Gptq(sweeps=50)(weight, integer_grid(2), statistics)
    moment = statistics.moment[0].astype(np.float64)
    codes, step = tensor.signed().astype(np.float64), tensor.step().astype(np.float64)

    def losses(codes: np.ndarray) -> np.ndarray:
        error = weight - codes * step
        return np.einsum("nk,nk->n", error @ moment, error)

    best = losses(codes)
    for k in range(40):
        for value in (-1, 0, 1, 2):
            other = codes.copy()
            other[:, k] = value
            assert (losses(other) >= best * (1 - 1e-6)).all()


def test_statistics_are_needed() -> None:
    with pytest.raises(InputError, match="gptq needs statistics"):
        Gptq()(np.ones((2, 64), np.float32), integer_grid(4))


@pytest.mark.parametrize("options", [{"damping": -1.0}, {"damping": float("nan")}, {"sweeps": -1}])
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="may be negative"):
        Gptq(**options)  # type: ignore[arg-type]
