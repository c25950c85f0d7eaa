"""Sensitivities against running a converted package, and the policies that are found by them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from texts import write_words

from bitnet_onnx.calibration import CollectOptions, ModelStatistics, collect, open_statistics
from bitnet_onnx.calibration import sensitivity as module
from bitnet_onnx.calibration._float_session import FloatSession
from bitnet_onnx.calibration.sensitivity import Candidate, measure_sensitivity
from bitnet_onnx.calibration.sensitivity_table import (
    Measured,
    Unit,
    read_sensitivity,
    search_policy,
    sensitivity_json,
)
from bitnet_onnx.converters import convert
from bitnet_onnx.errors import InputError
from bitnet_onnx.evaluation._session import PackageSession
from bitnet_onnx.evaluation.quality._scores import Distribution
from bitnet_onnx.policy import Policy, Precision, Weights
from bitnet_onnx.quantized import FloatArray
from bitnet_onnx.runtime import PackageInfo, auto_select_device

FLOAT = Precision(Weights.FLOAT32)
CANDIDATES = tuple(
    map(Candidate, (Precision(Weights.INT2, 32, 0), Precision(Weights.INT4, 32, 0), Precision(Weights.INT8, 0, 0)))
)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_words(tmp_path_factory.mktemp("text") / "text.txt", 400)


@pytest.fixture(scope="module")
def statistics(tiny_checkpoint: Callable[[str], Path], text: Path) -> ModelStatistics:
    return collect(tiny_checkpoint("tied_mha"), [text], CollectOptions(tokens=128, window=32))


def test_the_loss_is_that_of_a_package_with_that_one_unit_quantized(
    tiny_checkpoint: Callable[[str], Path],
    text: Path,
    statistics: ModelStatistics,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CANDIDATES", CANDIDATES)
    monkeypatch.setattr(module, "HEAD_CANDIDATES", CANDIDATES[1:])
    monkeypatch.setattr(module, "_QUADRATIC", 0.0)
    source = tiny_checkpoint("tied_mha")
    windows: list[list[int]] = []
    logits = FloatSession.logits

    def recording(self: FloatSession, ids: list[int], changes: object = None) -> FloatArray:
        if ids not in windows:
            windows.append(ids)
        return logits(self, ids, changes)  # type: ignore[arg-type]

    monkeypatch.setattr(FloatSession, "logits", recording)
    seen: list[str] = []
    units = measure_sensitivity(
        source, [text], statistics, tokens=64, window=32, progress=lambda _, __, role: seen.append(role)
    )
    assert seen == [unit.roles[0] for unit in units]
    assert len(units) == 9
    assert len(windows) == 2
    convert(source, tmp_path / "float", policy=Policy(FLOAT, FLOAT))
    reference = PackageSession(PackageInfo.open(tmp_path / "float"), auto_select_device())
    for unit in (units[0], units[1], units[4], units[8]):
        assert len(unit.choices) == (2 if unit.roles == ("embed_tokens",) else 3)
        for number, choice in enumerate(unit.choices):
            assert choice.measured
            policy = Policy(FLOAT, FLOAT, tuple((role, choice.precision) for role in unit.roles))
            package = tmp_path / f"{unit.roles[0]}-{number}"
            conversion = convert(source, package, policy=policy, calibration=statistics, scaling=False)
            taken = [layer for layer in conversion.layers if layer.role in unit.roles]
            assert choice.bits == sum(round(layer.bits_per_weight * layer.shape[0] * layer.shape[1]) for layer in taken)
            session = PackageSession(PackageInfo.open(package), auto_select_device())
            pairs = [[Distribution.of(one.run(ids)[0]) for one in (reference, session)] for ids in windows]
            loss = np.mean([floats.divergence(ours).mean() for floats, ours in pairs])
            np.testing.assert_allclose(choice.loss, loss, rtol=0.02, atol=1e-6)
    # Finer is better, in error and in loss.
    for unit in units:
        errors = [choice.error for choice in unit.choices]
        assert errors == sorted(errors, reverse=True)


def test_small_losses_are_scaled_from_coarser_ones(
    tiny_checkpoint: Callable[[str], Path], text: Path, statistics: ModelStatistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CANDIDATES", CANDIDATES)
    monkeypatch.setattr(module, "HEAD_CANDIDATES", CANDIDATES[1:])
    monkeypatch.setattr(module, "_QUADRATIC", 1e3)
    units = measure_sensitivity(tiny_checkpoint("tied_mha"), [text], statistics, tokens=32, window=32)
    for unit in units:
        assert [choice.measured for choice in unit.choices] == [True, *[False] * (len(unit.choices) - 1)]
        first = unit.choices[0]
        for choice in unit.choices[1:]:
            assert choice.loss == pytest.approx(first.loss * (choice.error / first.error) ** 2)
    assert read_sensitivity(sensitivity_json(units), "here") == units


def test_a_policy_found_by_the_table_converts_to_the_size_it_promises(
    tiny_checkpoint: Callable[[str], Path], text: Path, statistics: ModelStatistics, tmp_path: Path
) -> None:
    source = tiny_checkpoint("tied_mha")
    units = measure_sensitivity(source, [text], statistics, tokens=32, window=32)
    dataclasses.replace(statistics, sensitivity=units).save(tmp_path / "stats")
    table = open_statistics(tmp_path / "stats").sensitivity
    assert table == units
    found = search_policy(table, bits_per_weight=5.0)
    conversion = convert(source, tmp_path / "package", policy=found.policy, calibration=statistics)
    assert conversion.bits_per_weight == pytest.approx(found.bits_per_weight, abs=0.01)
    assert found.bits_per_weight <= 5.0
    losses = [search_policy(table, bits_per_weight=bits).loss for bits in (4.5, 5.0, 6.0, 7.0)]
    assert losses == sorted(losses, reverse=True)
    assert search_policy(table, max_loss=found.loss * 1.0001).bits_per_weight <= found.bits_per_weight + 1e-6


UNIT = Unit(("layers.0.attn.o_proj",), 100, (Measured(Precision(Weights.INT4, 32), 500, 0.1, 0.01, measured=True),))


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({}, "either the bits of a weight or the most"),
        ({"bits_per_weight": 4.0, "max_loss": 1.0}, "either the bits"),
        ({"bits_per_weight": 4.9}, "4.9 bits a weight are too few: the smallest precisions take 5.00"),
        ({"bits_per_weight": float("nan")}, "too few"),
        ({"max_loss": 0.001}, "a loss of 0.001 cannot be reached"),
    ],
)
def test_bounds_that_cannot_be_met_are_refused(bounds: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        search_policy([UNIT], **bounds)


def test_without_sensitivities_nothing_is_searched() -> None:
    with pytest.raises(InputError, match="calibrate --sensitivity"):
        search_policy([], max_loss=1)


GOOD = json.loads(sensitivity_json([UNIT]))


@pytest.mark.parametrize(
    "change",
    [
        lambda units: {"a": 1},
        lambda units: [{**units[0], "roles": 5}],
        lambda units: [{**units[0], "roles": []}],
        lambda units: [{**units[0], "weights": 0}],
        lambda units: [{**units[0], "choices": []}],
        lambda units: [{**units[0], "choices": [{**units[0]["choices"][0], "bits": -1}]}],
        lambda units: [{**units[0], "choices": [{**units[0]["choices"][0], "loss": "nan"}]}],
        lambda units: [{**units[0], "choices": [{**units[0]["choices"][0], "precision": {}}]}],
    ],
)
def test_a_table_that_lies_is_refused(change: Callable[[object], object]) -> None:
    with pytest.raises(InputError, match="stats: the table of sensitivities is malformed"):
        read_sensitivity(json.dumps(change(GOOD)), "stats")
    with pytest.raises(InputError, match="malformed"):
        read_sensitivity("[" * 100_000, "stats")
