"""Values of schedules, and the order in which layers are quantized."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from bitnet_onnx.calibration.sensitivity_table import Measured, Unit
from bitnet_onnx.calibration.statistics_file import ModelStatistics
from bitnet_onnx.errors import InputError
from bitnet_onnx.policy import Precision, Weights
from bitnet_onnx.training.graph.options import Term
from bitnet_onnx.training.schedules import (
    Schedules,
    group_strengths,
    layer_groups,
    layer_losses,
    learning_rate,
    ramp_value,
)
from bitnet_onnx.training.settings import (
    BlockWeights,
    Curve,
    DataSettings,
    HeadWeights,
    LayerOrder,
    LoopSettings,
    LossSettings,
    ModelSettings,
    OptimizerSettings,
    QuantizationSettings,
    Ramp,
    RateCurve,
    TrainingSettings,
)


@pytest.mark.parametrize(
    ("curve", "quarter", "half"),
    [
        (Curve.LINEAR, 0.25, 0.5),
        (Curve.COSINE, (1 - math.sqrt(0.5)) / 2, 0.5),
        (Curve.SIGMOID, (1 - math.tanh(1.5) / math.tanh(3)) / 2, 0.5),
    ],
)
def test_ramps(curve: Curve, quarter: float, half: float) -> None:
    ramp = Ramp(3.0, start=1.0, begin=10, steps=8, curve=curve)
    values = [ramp_value(ramp, step) for step in range(30)]
    assert values[:11] == [1.0] * 11
    assert values[18:] == [3.0] * 12
    assert values[12] == pytest.approx(1 + 2 * quarter, abs=1e-6)
    assert values[14] == pytest.approx(1 + 2 * half, abs=1e-12)
    assert values[16] == pytest.approx(3 - 2 * quarter, abs=1e-6), "all three are symmetric"
    assert values == sorted(values)


def test_a_constant_ramp_is_its_end_at_once_or_jumps() -> None:
    assert [ramp_value(Ramp(0.5), step) for step in (0, 1, 99)] == [0.5] * 3
    assert [ramp_value(Ramp(0.5, start=0.1, begin=2), step) for step in range(4)] == [0.1, 0.1, 0.5, 0.5]


def _rates(curve: RateCurve, **changes: float) -> list[float]:
    settings = OptimizerSettings(learning_rate=2.0, curve=curve, warmup=4, minimum=0.1, **changes)  # type: ignore[arg-type]
    return [learning_rate(settings, step, 24) for step in range(24)]


@pytest.mark.parametrize("curve", list(RateCurve))
def test_every_rate_warms_up_to_the_full_one(curve: RateCurve) -> None:
    rates = _rates(curve)
    np.testing.assert_allclose(rates[:5], [0.5, 1.0, 1.5, 2.0, 2.0], rtol=1e-12)
    assert min(rates[4:]) >= 0.2


def test_rates_after_the_warm_up() -> None:
    assert _rates(RateCurve.CONSTANT)[4:] == [2.0] * 20
    linear, cosine, wsd = _rates(RateCurve.LINEAR), _rates(RateCurve.COSINE), _rates(RateCurve.WSD, decay=0.25)
    np.testing.assert_allclose(linear[4:], [0.2 + 1.8 * (1 - k / 20) for k in range(20)], rtol=1e-12)
    np.testing.assert_allclose(
        cosine[4:], [0.2 + 0.9 * (1 + math.cos(math.pi * k / 20)) for k in range(20)], rtol=1e-12
    )
    # The last quarter of all steps decays.
    assert wsd[4:19] == [2.0] * 15
    np.testing.assert_allclose(wsd[18:], [0.2 + 1.8 * left / 6 for left in (6, 5, 4, 3, 2, 1)], rtol=1e-12)
    assert _rates(RateCurve.WSD, decay=0.0)[4:] == [2.0] * 20
    np.testing.assert_allclose(_rates(RateCurve.WSD, decay=1.0)[4:], linear[4:], rtol=1e-12)


def test_groups_follow_each_other() -> None:
    settings = QuantizationSettings(Ramp(1.0, steps=4, curve=Curve.LINEAR), groups=3, stride=2)
    assert group_strengths(settings, 0).tolist() == [0, 0, 0]
    assert group_strengths(settings, 3).tolist() == [0.75, 0.25, 0]
    assert group_strengths(settings, 6).tolist() == [1, 1, 0.5]
    assert group_strengths(settings, 8).tolist() == [1, 1, 1]
    assert group_strengths(settings, 8).dtype == np.float32


def test_layers_are_divided_evenly_in_their_order() -> None:
    forward = QuantizationSettings(groups=3)
    assert layer_groups(forward, 7) == (0, 0, 0, 1, 1, 2, 2)
    assert layer_groups(QuantizationSettings(groups=3, order=LayerOrder.BACKWARD), 7) == (2, 2, 1, 1, 0, 0, 0)
    assert layer_groups(QuantizationSettings(), 4) == (0, 0, 0, 0)
    with pytest.raises(InputError, match=r"quantization\.groups is 3: the model has 2 layers"):
        layer_groups(forward, 2)


def _unit(role: str, *choices: tuple[Weights, float]) -> Unit:
    return Unit((role,), 100, tuple(Measured(Precision(kind, 64), 10, 0.1, loss, True) for kind, loss in choices))


def test_the_least_sensitive_layer_is_first(tmp_path: Path) -> None:
    units = (
        _unit("layers.0.attn.q_proj", (Weights.TERNARY, 0.2), (Weights.INT4, 9.0)),
        _unit("layers.0.mlp.down_proj", (Weights.TERNARY, 0.3)),
        _unit("layers.1.attn.q_proj", (Weights.TERNARY, 0.4)),
        _unit("layers.2.attn.q_proj", (Weights.TERNARY, 0.1), (Weights.TERNARY, 0.05)),
        _unit("lm_head", (Weights.INT8, 0.1)),
    )
    assert layer_losses(units, 3, "x") == pytest.approx([0.5, 0.4, 0.1])
    path = tmp_path / "model.statistics"
    peak = np.ones((3, 1, 2), np.float32)
    ModelStatistics({}, {}, peak, peak, {}, units).save(path)
    settings = QuantizationSettings(groups=3, order=LayerOrder.SENSITIVITY, statistics=path)
    assert layer_groups(settings, 3) == (2, 1, 0)
    with pytest.raises(InputError, match="has layer 2, the model has 2 layers"):
        layer_groups(QuantizationSettings(groups=2, order=LayerOrder.SENSITIVITY, statistics=path), 2)
    with pytest.raises(InputError, match="layer 3 has no sensitivity, the model has 4 layers"):
        layer_losses(units, 4, "x")
    with pytest.raises(InputError, match=r"layers\.0\.attn\.q_proj has no sensitivity of ternary weights"):
        layer_losses([_unit("layers.0.attn.q_proj", (Weights.INT4, 0.2))], 1, "x")
    with pytest.raises(InputError, match="x: has no sensitivities"):
        layer_losses([], 1, "x")


def test_all_together() -> None:
    losses = LossSettings(Ramp(1.0), distillation=Ramp(0.0, start=2.0, steps=4, curve=Curve.LINEAR))
    settings = TrainingSettings(
        Path("run"), ModelSettings(), DataSettings(()), LoopSettings(10), OptimizerSettings(), losses=losses
    )
    schedules = Schedules.of(settings)
    assert schedules.term_weights(1) == {Term.CROSS_ENTROPY: 1.0, Term.DISTILLATION: 1.5}
    assert schedules.rate(0) == learning_rate(OptimizerSettings(), 0, 10)
    strength, full = schedules.strength(0), schedules.full_strength()
    assert strength is not None
    assert full is not None
    assert strength.tolist() == full.tolist() == [1.0]
    plain = TrainingSettings(Path("run"), ModelSettings(weights=BlockWeights.FLOAT), DataSettings(()), LoopSettings(9))
    assert Schedules.of(plain).strength(0) is None
    assert Schedules.of(plain).full_strength() is None
    head = ModelSettings(weights=BlockWeights.FLOAT, head=HeadWeights.INT8)
    assert Schedules.of(TrainingSettings(Path("run"), head, DataSettings(()), LoopSettings(9))).strength(0) is not None
