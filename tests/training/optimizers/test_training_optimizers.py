"""Optimizers against their formulas in float64, whatever the pieces and threads."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from bitnet_onnx.errors import InputError
from bitnet_onnx.training.optimizers._chunks import Workers, pieces
from bitnet_onnx.training.optimizers._orthogonal import Orthogonal
from bitnet_onnx.training.optimizers.adamw import AdamW
from bitnet_onnx.training.optimizers.gradient_norm import GradientNorm, clip_scale
from bitnet_onnx.training.optimizers.optimizer import Optimizer, make_optimizer, zero_state
from bitnet_onnx.training.optimizers.sgd import Sgd
from bitnet_onnx.training.optimizers.ternary_muon import TernaryMuon
from bitnet_onnx.training.parameters import ParameterStore
from bitnet_onnx.training.settings import OptimizerName, OptimizerSettings

SHAPES = {"norm": (37,), "a": (30, 41), "b": (7, 9), "embedding": (50, 3)}
DECAYED = frozenset({"a", "b", "embedding"})
TERNARY = frozenset({"a", "b"})
SETTINGS = OptimizerSettings(weight_decay=0.1, betas=(0.8, 0.9), epsilon=1e-6, momentum=0.7, pace=0.6)
RATES = (0.05, 0.03, 0.04, 0.01, 0.02)
SCALES = (1.0, 0.5, 1.0, 0.25, 1.0)
Doubles = dict[str, npt.NDArray[np.float64]]
Make = Callable[..., Optimizer]

MAKE: dict[str, Make] = {
    "adamw": lambda store, **how: AdamW(store, SETTINGS, **how),
    "sgd": lambda store, **how: Sgd(store, SETTINGS, **how),
    "ternary_muon": lambda store, **how: TernaryMuon(store, SETTINGS, TERNARY, **how),
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


def _orthogonal(matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The polynomial of Newton-Schulz on each singular value by itself."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values = values / np.linalg.norm(values)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return np.asarray(left * values @ right, np.float64)


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
            move = m / (np.sqrt(v) + SETTINGS.epsilon)
            if kind == "ternary_muon" and name in TERNARY:
                direction = _orthogonal(one * first[name] + (1 - one) * g)
                move = SETTINGS.pace * np.abs(w).mean() * np.sqrt(max(w.shape)) * direction
            values[name] = w * (1 - rate * decay) - rate * move
    return values


@pytest.mark.parametrize("kind", MAKE)
def test_steps_follow_the_formula(kind: str) -> None:
    store = _store()
    _run(MAKE[kind](store), store)
    for name, value in _expected(kind).items():
        np.testing.assert_allclose(store.value(name), value, rtol=2e-5, atol=4e-6, err_msg=name)


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
        (OptimizerName.TERNARY_MUON, TernaryMuon),
    ):
        assert type(make_optimizer(OptimizerSettings(name), _store(), ternary=TERNARY)) is kind
    with pytest.raises(InputError, match=r"optimizer\.name is ternary_muon: no tensor is ternary; choose adamw"):
        make_optimizer(OptimizerSettings(OptimizerName.TERNARY_MUON), _store())
    assert Sgd(_store(), OptimizerSettings(momentum=0.0)).state() == {}


@pytest.mark.parametrize("shape", [(24, 60), (60, 24), (1, 9)])
def test_orthogonal_keeps_directions_and_evens_their_sizes(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    for factor in (1e-35, 1.0, 1e35):
        found = Orthogonal(1)(matrix * np.float32(factor))
        left, _, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
        sizes = left.T @ found @ right.T
        assert np.diag(sizes).min() > 0.65
        assert np.diag(sizes).max() < 1.25
        np.testing.assert_allclose(sizes, np.diag(np.diag(sizes)), atol=1e-4)
    assert not Orthogonal(1)(np.zeros(shape, np.float32)).any()


def test_a_ternary_step_is_a_share_of_the_scale_of_its_matrix() -> None:
    moved = []
    for size in (0.01, 10.0):
        store = _store()
        for name in TERNARY:
            store.value(name)[...] *= size
        before = store.value("a").copy()
        optimizer = TernaryMuon(store, OptimizerSettings(pace=2.0), TERNARY)
        for name, gradient in _gradients(0).items():
            store.gradient(name)[...] = gradient
        optimizer.step(0.01)
        moved.append((store.value("a") - before) / np.abs(before).mean())
    np.testing.assert_allclose(moved[0], moved[1], rtol=1e-3, atol=1e-6)
    assert np.sqrt(np.square(moved[0]).mean()) == pytest.approx(0.02, rel=0.2)


def _ternary_regression(name: OptimizerName, rate: float, seed: int) -> float:
    """The loss over the last steps of ternary regression whose inputs have directions of very unlike size."""
    size, steps = 32, 300
    random = np.random.default_rng(seed)
    basis = np.linalg.qr(random.normal(size=(size, size)))[0]
    mix = basis * np.sqrt(size) / np.arange(1, size + 1)[:, None]
    target = random.choice([-1.0, 0.0, 1.0], size=(size, size))
    store = ParameterStore({"w": (size, size)}, decayed=frozenset({"w"}))
    store.value("w")[...] = random.normal(size=(size, size))
    optimizer = make_optimizer(OptimizerSettings(name), store, ternary=frozenset({"w"}), threads=1)
    test = random.normal(size=(500, size)) @ mix
    losses = []
    for step in range(steps):
        w = store.value("w")
        mean = np.abs(w).mean()
        rounded = np.clip(np.rint(w / mean), -1, 1) * mean
        if step >= steps - 20:
            losses.append(float(np.square(test @ (rounded - target).T).mean()))
        x = random.normal(size=(size, size)) @ mix
        error = x @ (rounded - target).T + 0.3 * random.normal(size=(size, size))
        store.gradient("w")[...] = error.T @ x / size
        optimizer.step(rate * (1 - 0.98 * step / steps))
    return float(np.mean(losses))


def test_ternary_muon_learns_what_adamw_does_not_at_any_rate() -> None:
    for seed in (0, 1):
        best = min(_ternary_regression(OptimizerName.ADAMW, rate, seed) for rate in (0.01, 0.03, 0.1))
        assert _ternary_regression(OptimizerName.TERNARY_MUON, 0.01, seed) < 0.2 * best
