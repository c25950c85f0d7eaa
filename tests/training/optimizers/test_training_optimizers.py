"""Optimizers against their formulas in float64, whatever the pieces and threads."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from bitnet_onnx.errors import InputError
from bitnet_onnx.training.optimizers._chunks import Workers, pieces
from bitnet_onnx.training.optimizers.adamw import AdamW
from bitnet_onnx.training.optimizers.damped import DampedAdamW
from bitnet_onnx.training.optimizers.gradient_norm import GradientNorm, clip_scale
from bitnet_onnx.training.optimizers.optimizer import Optimizer, make_optimizer, zero_state
from bitnet_onnx.training.optimizers.sgd import Sgd
from bitnet_onnx.training.parameters import ParameterStore
from bitnet_onnx.training.settings import OptimizerName, OptimizerSettings

SHAPES = {"norm": (37,), "a": (30, 41), "b": (7, 9), "embedding": (50, 3)}
DECAYED = frozenset({"a", "b", "embedding"})
TERNARY = frozenset({"a", "b"})
SETTINGS = OptimizerSettings(weight_decay=0.1, betas=(0.8, 0.9), epsilon=1e-6, momentum=0.7, damping=0.6)
RATES = (0.05, 0.03, 0.04, 0.01, 0.02)
SCALES = (1.0, 0.5, 1.0, 0.25, 1.0)
Doubles = dict[str, npt.NDArray[np.float64]]
Make = Callable[..., Optimizer]

MAKE: dict[str, Make] = {
    "adamw": lambda store, **how: AdamW(store, SETTINGS, **how),
    "sgd": lambda store, **how: Sgd(store, SETTINGS, **how),
    "damped": lambda store, **how: DampedAdamW(store, SETTINGS, TERNARY, steps=len(RATES), **how),
}


def _store() -> ParameterStore:
    store = ParameterStore(SHAPES, decayed=DECAYED)
    random = np.random.default_rng(5)
    for name in store:
        store.value(name)[...] = random.normal(size=SHAPES[name])
    return store


def _gradients(step: int) -> dict[str, npt.NDArray[np.float32]]:
    random = np.random.default_rng((6, step))
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def _run(optimizer: Optimizer, store: ParameterStore) -> None:
    for step, (rate, scale) in enumerate(zip(RATES, SCALES, strict=True)):
        for name, gradient in _gradients(step).items():
            store.gradient(name)[...] = gradient
        optimizer.step(rate, scale)


def _expected(kind: str) -> Doubles:
    """The rules as their papers write them, in float64."""
    values: Doubles = {name: _store().value(name).astype(np.float64) for name in SHAPES}
    first, second = ({name: np.zeros(shape) for name, shape in SHAPES.items()} for _ in range(2))
    one, two = SETTINGS.betas
    for step, (rate, scale) in enumerate(zip(RATES, SCALES, strict=True), 1):
        for name, gradient in _gradients(step - 1).items():
            w, g = values[name], gradient * np.float64(scale)
            decay = SETTINGS.weight_decay if name in DECAYED else 0.0
            if kind == "sgd":
                first[name] = SETTINGS.momentum * first[name] + g + decay * w
                values[name] = w - rate * first[name]
                continue
            first[name] = one * first[name] + (1 - one) * g
            second[name] = two * second[name] + (1 - two) * g * g
            m, v = first[name] / (1 - one**step), second[name] / (1 - two**step)
            pull = np.zeros_like(w)
            if kind == "damped" and name in TERNARY:
                mean = max(np.abs(w).mean(), 1e-5)
                q = np.clip(np.rint(w / mean), -1, 1) * mean
                pull = np.where(np.abs(w) < mean, (q - w) / mean, 0) * SETTINGS.damping * step / len(RATES)
            values[name] = w * (1 - rate * decay) - rate * (m / (np.sqrt(v) + SETTINGS.epsilon) - pull)
    return values


@pytest.mark.parametrize("kind", MAKE)
def test_steps_follow_the_formula(kind: str) -> None:
    store = _store()
    _run(MAKE[kind](store), store)
    for name, value in _expected(kind).items():
        np.testing.assert_allclose(store.value(name), value, rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("kind", MAKE)
def test_pieces_and_threads_change_no_bit(kind: str) -> None:
    found = set()
    for threads, chunk in itertools.product((1, 3), (16, 100, 1 << 16)):
        store = _store()
        optimizer = MAKE[kind](store, threads=threads, chunk=chunk)
        _run(optimizer, store)
        optimizer.close()
        state = b"".join(array.tobytes() for array in optimizer.state().values())
        found.add((store.values.tobytes(), state))
    assert len(found) == 1


@pytest.mark.parametrize("kind", MAKE)
def test_the_state_is_all_that_the_next_step_needs(kind: str) -> None:
    store = _store()
    optimizer = MAKE[kind](store)
    _run(optimizer, store)
    copy = _store()
    other = MAKE[kind](copy)
    copy.values[:] = store.values
    for name, array in optimizer.state().items():
        other.state()[name][...] = array
    other.steps = optimizer.steps
    for one, at in ((optimizer, store), (other, copy)):
        at.gradients[:] = 0.5
        one.step(0.1)
    assert copy.values.tobytes() == store.values.tobytes()
    zero_state(other)
    assert other.steps == 0
    assert not any(array.any() for array in other.state().values())


def test_decay_spares_norms() -> None:
    store = _store()
    before = {name: store.value(name).copy() for name in store}
    AdamW(store, SETTINGS).step(0.5)
    np.testing.assert_array_equal(store.value("norm"), before["norm"])
    np.testing.assert_allclose(store.value("a"), before["a"] * 0.95, rtol=1e-6)


def test_a_gradient_that_is_clipped_may_be_huge() -> None:
    store = _store()
    optimizer = AdamW(store, SETTINGS)
    store.gradients[:] = 3e30
    norm = GradientNorm(store.size)(store.gradients)
    assert norm == pytest.approx(3e30 * np.sqrt(store.size))
    optimizer.step(0.1, clip_scale(norm, 1.0))
    assert np.isfinite(store.values).all()
    assert optimizer.state()["second_moment"].any()


def test_the_norm_is_that_of_float64_and_the_same_for_all_threads() -> None:
    gradients = np.random.default_rng(2).normal(size=300_001).astype(np.float32)
    gradients[7] = 1e19
    norms = {GradientNorm(len(gradients), threads=threads)(gradients) for threads in (1, 2, 4)}
    assert len(norms) == 1
    assert norms.pop() == pytest.approx(float(np.linalg.norm(gradients.astype(np.float64))), rel=1e-14)
    for bad in (np.nan, np.inf):
        gradients[123_456] = bad
        assert not np.isfinite(GradientNorm(len(gradients))(gradients))


def test_clipping_only_shortens() -> None:
    assert clip_scale(4.0, 1.0) == 0.25
    assert clip_scale(0.5, 1.0) == 1.0
    assert clip_scale(100.0, 0.0) == 1.0


def test_pieces_cover_all_and_cross_no_cut() -> None:
    found = pieces(1000, (300, 310, 1000), chunk=128)
    assert [found[0].start, *(piece.stop for piece in found)] == [0, 128, 256, 300, 310, 438, 566, 694, 822, 950, 1000]
    seen = np.zeros(1000, np.int8)

    def count(piece) -> None:  # type: ignore[no-untyped-def]
        seen[piece.slice] += 1

    workers = Workers(3)
    workers.run(count, found)
    workers.close()
    assert (seen == 1).all()


def test_an_error_in_a_thread_comes_out() -> None:
    def fail(piece) -> None:  # type: ignore[no-untyped-def]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Workers(2).run(fail, pieces(10, chunk=2))


def test_the_name_chooses_the_rule() -> None:
    for name, kind in (
        (OptimizerName.ADAMW, AdamW),
        (OptimizerName.SGD, Sgd),
        (OptimizerName.DAMPED_ADAMW, DampedAdamW),
    ):
        assert type(make_optimizer(OptimizerSettings(name), _store(), steps=9, ternary=TERNARY)) is kind
    with pytest.raises(InputError, match=r"optimizer\.name is damped_adamw: no tensor is ternary; choose adamw"):
        make_optimizer(OptimizerSettings(OptimizerName.DAMPED_ADAMW), _store(), steps=9)
    assert Sgd(_store(), OptimizerSettings(momentum=0.0)).state() == {}


def _ternary_regression(damping: float, seed: int) -> tuple[float, float]:
    """Flips a step in the second half, and the loss over the last steps, of ternary regression on noisy batches."""
    rows, columns, steps = 16, 32, 600
    random = np.random.default_rng(seed)
    mix = np.eye(columns) + 0.15 * random.normal(size=(columns, columns))
    target = random.normal(size=(rows, columns))
    store = ParameterStore({"w": (rows, columns)}, decayed=frozenset({"w"}))
    store.value("w")[...] = target
    settings = OptimizerSettings(damping=damping)
    optimizer = DampedAdamW(store, settings, frozenset({"w"}), steps=steps, threads=1)
    test = random.normal(size=(500, columns)) @ mix
    flips, losses, last = 0, [], np.zeros(0)
    for step in range(steps):
        w = store.value("w")
        mean = np.abs(w).mean()
        codes = np.clip(np.rint(w / mean), -1, 1)
        if step > steps // 2:
            flips += int((codes != last).sum())
        if step > steps - 100:
            losses.append(float(np.square(test @ (codes * mean - target).T).mean()))
        last = codes
        x = random.normal(size=(16, columns)) @ mix
        error = x @ (codes * mean - target).T + 0.5 * random.normal(size=(16, rows))
        store.gradient("w")[...] = error.T @ x / 16
        optimizer.step(5e-3)
    return flips / (steps / 2), float(np.mean(losses))


def test_damping_leaves_fewer_flips_and_a_lower_loss() -> None:
    plain, damped = ([_ternary_regression(damping, seed) for seed in (0, 1)] for damping in (0.0, 0.5))
    for (flips, loss), (fewer, lower) in zip(plain, damped, strict=True):
        assert fewer < 0.5 * flips
        assert lower < 0.85 * loss
