"""Quantization is measured as conversion would do it."""

from __future__ import annotations

import numpy as np
import pytest
from training_runs import step_record

from bitnet_onnx.errors import InputError
from bitnet_onnx.metrics import Error
from bitnet_onnx.ternary import quantize_absmean
from bitnet_onnx.training.monitoring import MeasuringMonitor, QuantizationMetrics, QuantizationRecord
from bitnet_onnx.training.parameters import ParameterStore
from bitnet_onnx.training.records import RollbackRecord

NAME = "layers.0.mlp.up_proj.weight"


@pytest.fixture
def store() -> ParameterStore:
    store = ParameterStore({NAME: (48, 64), "norm.weight": (64,)})
    store.value(NAME)[:] = np.random.default_rng(0).normal(0, 0.02, (48, 64))
    return store


def test_zeros_scale_and_noise_are_those_of_the_quantizer(store: ParameterStore) -> None:
    found = QuantizationMetrics(store, [NAME]).measure()[NAME]
    weight = store.value(NAME)
    quantized = quantize_absmean(weight)
    assert found.flips is None
    assert found.zeros == np.mean(quantized.dequantize() == 0)
    assert found.scale == quantized.scale[0]
    assert found.drift == 0
    assert found.sqnr == pytest.approx(Error.between(weight, quantized.dequantize()).sqnr)


def test_flips_count_codes_since_the_last_measurement(store: ParameterStore) -> None:
    metrics = QuantizationMetrics(store, [NAME])
    metrics.measure()
    assert metrics.measure()[NAME].flips == 0
    # All magnitudes, and with them the scale, stay: exactly the five signs change.
    store.value(NAME)[0, np.argsort(-np.abs(store.value(NAME)[0]))[:5]] *= -1
    found = metrics.measure()[NAME]
    assert found.flips == 5 / store.value(NAME).size
    assert found.drift == pytest.approx(0, abs=1e-6)
    assert metrics.measure()[NAME].flips == 0


def test_drift_is_relative_to_the_start_also_of_an_earlier_part(store: ParameterStore) -> None:
    metrics = QuantizationMetrics(store, [NAME])
    first = metrics.measure()[NAME].scale
    store.value(NAME)[:] *= 1.25
    assert metrics.measure()[NAME].drift == pytest.approx(0.25, rel=1e-5)
    later = QuantizationMetrics(store, [NAME], {NAME: first})
    assert later.measure()[NAME].drift == pytest.approx(0.25, rel=1e-5)


def test_a_vector_is_refused(store: ParameterStore) -> None:
    with pytest.raises(InputError, match=r"norm.weight has the shape \[64\]"):
        QuantizationMetrics(store, ["norm.weight"])


class Heard:
    def __init__(self) -> None:
        self.records: list[QuantizationRecord] = []

    def quantization(self, record: QuantizationRecord) -> None:
        self.records.append(record)


def test_it_measures_every_so_many_steps_and_again_after_a_step_back(store: ParameterStore) -> None:
    heard = Heard()
    monitor = MeasuringMonitor(QuantizationMetrics(store, [NAME]), 2, [heard])
    monitor.begin(0)
    start = store.value(NAME).copy()
    for step in range(1, 5):
        store.value(NAME)[step] *= -1
        monitor.step(step_record(step))
    assert [record.step for record in heard.records] == [0, 2, 4]
    nonzero = np.count_nonzero(quantize_absmean(start).dequantize()[1:3])
    assert heard.records[1].layers[NAME].flips == nonzero / start.size
    store.value(NAME)[:] = start
    monitor.rollback(RollbackRecord(5, 0, "loss is nan", 1))
    monitor.step(step_record(2))
    assert heard.records[-1].layers[NAME].flips == 0
    monitor.close()


def test_a_run_that_goes_on_has_no_second_record_of_its_first_step(store: ParameterStore) -> None:
    heard = Heard()
    monitor = MeasuringMonitor(QuantizationMetrics(store, [NAME]), 2, [heard])
    monitor.begin(4)
    assert heard.records == []
    monitor.step(step_record(6))
    assert heard.records[0].layers[NAME].flips == 0
