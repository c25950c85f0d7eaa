"""What holds for every method: the grid is kept, extremes are harmless, and rounding plainly is never better."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from layer_inputs import correlated, energies_of, statistics_of

from bitnet_onnx.errors import InputError
from bitnet_onnx.integer import integer_grid, quantize_integer
from bitnet_onnx.metrics import weighted_error
from bitnet_onnx.quantization.absmean import Absmean
from bitnet_onnx.quantization.method import MethodName
from bitnet_onnx.quantization.registry import METHODS
from bitnet_onnx.quantized import Grid, QuantizedTensor

TERNARY_GRIDS = (Grid(2, 2), Grid(2, 2, 32))
INTEGER_GRIDS = tuple(integer_grid(bits, size) for bits in (2, 4, 6, 8) for size in (0, 32))
MAKES = {
    MethodName.ABSMEAN: TERNARY_GRIDS,
    MethodName.LEAST_SQUARES: TERNARY_GRIDS + INTEGER_GRIDS,
    MethodName.RTN: INTEGER_GRIDS,
    MethodName.GPTQ: TERNARY_GRIDS + INTEGER_GRIDS,
}
CASES = [
    pytest.param(name, grid, id=f"{name}-{grid.bits}.{grid.zero_point}g{grid.group_size}")
    for name, grids in MAKES.items()
    for grid in grids
]


def plain(weight: np.ndarray, grid: Grid) -> QuantizedTensor:
    """The grid without any search."""
    if grid.zero_point == 2:
        return Absmean()(weight, grid)
    return quantize_integer(weight, grid.bits, grid.group_size)


def codes_are_on_the_grid(tensor: QuantizedTensor, grid: Grid) -> bool:
    return tensor.grid == grid and (grid.zero_point != 2 or set(np.unique(tensor.raw)) <= {1, 2, 3})


@pytest.mark.parametrize(("name", "grid"), CASES)
@pytest.mark.parametrize("columns", [65, 96])
def test_no_method_is_worse_than_rounding_plainly(name: MethodName, grid: Grid, columns: int) -> None:
    weight = np.random.default_rng(0).standard_normal((40, columns), np.float32)
    statistics = statistics_of(correlated(1, 400, columns))
    tensor = METHODS[name](weight, grid, statistics)
    assert codes_are_on_the_grid(tensor, grid)
    assert tensor.shape == weight.shape
    # GPTQ weighs by the whole moment, the others by its diagonal.
    moment = statistics.moment if name is MethodName.GPTQ else [np.diag(energies_of(statistics)).astype(np.float32)]
    errors = [weighted_error(weight - one.dequantize(), moment) for one in (tensor, plain(weight, grid))]
    assert errors[0] <= errors[1] * (1 + 1e-5)


@settings(max_examples=60)
@given(st.integers(0, 1 << 30), st.sampled_from([case.values for case in CASES if case.values[0] is MethodName.GPTQ]))
def test_no_row_is_worse_however_odd_weights_and_inputs_are(seed: int, case: tuple[MethodName, Grid]) -> None:
    rng = np.random.default_rng(seed)
    name, grid = case
    columns = int(rng.integers(1, 150))
    weight = rng.standard_normal((4, columns)) ** rng.choice([1, 5]) * 10.0 ** rng.uniform(-30, 30, (4, 1))
    weight[:, : columns // 2] *= rng.choice([0, 1, 1e-6])
    weight = weight.astype(np.float32)
    inputs = correlated(seed, int(rng.choice([1, 3, 300])), columns) * np.float32(10.0 ** rng.uniform(-15, 15))
    inputs[:, rng.random(columns) < rng.choice([0, 0.5])] = 0
    half = columns // 2
    statistics = statistics_of(inputs, (half, columns - half) if half and rng.random() < 0.5 else None)

    def losses(tensor: QuantizedTensor) -> list[float]:
        error = (weight.astype(np.float64) - tensor.dequantize()) / np.abs(weight).max(axis=1, keepdims=True)
        return [weighted_error(row[None].astype(np.float32), statistics.moment) for row in error]

    # The baseline of ternary weights has a scale for each row or group, as GPTQ has.
    row_scales = Grid(2, 2, -(-columns // 32) * 32) if grid == Grid(2, 2) else grid
    noise = 1e-9 * sum(float(block.trace()) for block in statistics.moment)
    found, baseline = losses(METHODS[name](weight, grid, statistics)), losses(plain(weight, row_scales))
    assert all(mine <= other * (1 + 1e-5) + noise for mine, other in zip(found, baseline, strict=True))


@pytest.mark.parametrize("name", [MethodName.RTN, MethodName.LEAST_SQUARES, MethodName.GPTQ])
@pytest.mark.parametrize("group_size", [0, 32])
def test_more_bits_are_better(name: MethodName, group_size: int) -> None:
    weight = np.random.default_rng(2).standard_normal((30, 96), np.float32)
    statistics = statistics_of(correlated(3, 300, 96))
    grids = [integer_grid(bits, group_size) for bits in (2, 4, 6, 8)]
    if name is not MethodName.RTN:
        grids.insert(0, Grid(2, 2, group_size))
    errors = [
        weighted_error(weight - METHODS[name](weight, grid, statistics).dequantize(), statistics.moment)
        for grid in grids
    ]
    # 4 and 6 bits divide the step by four and more.
    assert all(finer < 0.9 * coarser for coarser, finer in pairwise(errors)), errors


@pytest.mark.parametrize(("name", "grid"), CASES)
def test_zeros_stay_zeros(name: MethodName, grid: Grid) -> None:
    weight = np.zeros((5, 70), np.float32)
    assert not METHODS[name](weight, grid, statistics_of(correlated(0, 50, 70))).dequantize().any()
    empty = METHODS[name](weight[:0], grid, statistics_of(correlated(0, 50, 70)))
    assert empty.shape == (0, 70)


@pytest.mark.parametrize(("name", "grid"), CASES)
@pytest.mark.parametrize("inputs", ["usual", "none seen", "huge", "one"])
def test_extreme_weights_stay_finite(name: MethodName, grid: Grid, inputs: str) -> None:
    rng = np.random.default_rng(4)
    weight = rng.standard_normal((7, 65), np.float32)
    weight[0] *= 1e38 / np.abs(weight[0]).max()
    weight[1] = np.ldexp(weight[1], -140)
    weight[2, :32] = 0
    weight[3, ::2] *= np.float32(1e30)
    weight[4] = np.finfo(np.float32).max
    weight[5] = 1e-45
    weight[6] = np.finfo(np.float32).max * rng.uniform(-1, 1, 65)
    seen = correlated(5, 100, 65)
    match inputs:
        case "none seen":
            seen *= 0
        case "huge":
            seen *= np.float32(1e17)
        case "one":
            seen[:, 1:] = 0
    tensor = METHODS[name](weight, grid, statistics_of(seen))
    assert codes_are_on_the_grid(tensor, grid)
    assert np.isfinite(tensor.dequantize()).all()
    assert np.isfinite(tensor.scale).all()


# Bits of its own width, so that denormals and floats near the largest are as likely as others.
any_weights = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 70)),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)


@settings(max_examples=60)
@given(any_weights, st.sampled_from([case.values for case in CASES]), st.integers(0, 3), st.booleans())
def test_any_floats_give_finite_weights(
    weight: np.ndarray, case: tuple[MethodName, Grid], seed: int, singular: bool
) -> None:
    name, grid = case
    columns = weight.shape[1]
    tensor = METHODS[name](weight, grid, statistics_of(correlated(seed, 3 if singular else 90, columns)))
    assert codes_are_on_the_grid(tensor, grid)
    assert np.isfinite(tensor.dequantize()).all()


@pytest.mark.parametrize(("name", "grid"), CASES)
def test_a_matrix_may_be_given_in_parts(name: MethodName, grid: Grid) -> None:
    if name is MethodName.ABSMEAN and not grid.group_size:
        return  # one scale for the whole matrix
    weight = np.random.default_rng(6).standard_normal((50, 96), np.float32)
    statistics = statistics_of(correlated(7, 200, 96))
    whole = METHODS[name](weight, grid, statistics)
    for start, stop in ((0, 13), (13, 14), (14, 50)):
        part = METHODS[name](weight[start:stop], grid, statistics)
        np.testing.assert_array_equal(part.raw, whole.raw[start:stop])
        np.testing.assert_array_equal(part.scale, whole.scale[start:stop])


@pytest.mark.parametrize(("name", "grid"), CASES)
def test_statistics_of_another_width_are_refused(name: MethodName, grid: Grid) -> None:
    with pytest.raises(InputError, match="statistics of 64 features for a matrix of 96 columns"):
        METHODS[name](np.ones((2, 96), np.float32), grid, statistics_of(correlated(0, 9, 64)))


def test_statistics_that_are_not_finite_are_refused() -> None:
    statistics = statistics_of(correlated(0, 9, 64))
    statistics.moment[0][3, 5] = np.nan
    with pytest.raises(InputError, match="not finite"):
        METHODS[MethodName.GPTQ](np.ones((2, 64), np.float32), integer_grid(4), statistics)


def test_every_name_has_a_method() -> None:
    assert set(METHODS) == set(MethodName) - {MethodName.AUTO}


HASH = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from layer_inputs import correlated, statistics_of
from bitnet_onnx.quantization.registry import METHODS
from bitnet_onnx.integer import integer_grid
from bitnet_onnx.quantized import Grid
weight = np.random.default_rng(0).standard_normal((70, 200), np.float32)
statistics = statistics_of(correlated(1, 400, 200))
digest = hashlib.sha256()
for grid in (Grid(2, 2, 32), integer_grid(4)):
    tensor = METHODS["gptq"](weight, grid, statistics)
    digest.update(tensor.raw.tobytes() + tensor.scale.tobytes())
print(digest.hexdigest())
"""


def test_the_result_does_not_depend_on_threads() -> None:
    support = Path(__file__).resolve().parent.parent / "support"
    digests = set()
    for threads in ("1", "2"):
        names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
        result = subprocess.run(
            [sys.executable, "-P", "-c", HASH, str(support)],
            env={**os.environ, **dict.fromkeys(names, threads)},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        digests.add(result.stdout)
    assert len(digests) == 1
