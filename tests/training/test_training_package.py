"""The ternary package of a run is what the run evaluated, on the very windows of its evaluation."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import write_config

from bitnet_onnx.converters import convert
from bitnet_onnx.evaluation.quality._reader import WindowReader
from bitnet_onnx.evaluation.quality._scores import Distribution
from bitnet_onnx.policy import Policy, Precision, Weights
from bitnet_onnx.runtime import Device, PackageInfo
from bitnet_onnx.training.config_file import read_config
from bitnet_onnx.training.data import open_data
from bitnet_onnx.training.run_directory import TOKENS
from bitnet_onnx.training.settings import IGNORED, HeadWeights, TrainingSettings
from bitnet_onnx.training.trainer import check_run, train

#: A head of floats has to be asked for; 8 bits are what a conversion makes of it.
_POLICIES = {
    HeadWeights.FLOAT: Policy(head=Precision(Weights.FLOAT32)),
    HeadWeights.INT8: Policy(),
}


def _perplexity(package: Path, settings: TrainingSettings) -> float:
    """Of the run's validation windows, read by the package."""
    with check_run(settings) as prepared:
        data = open_data(settings.data, prepared.tokenizer, seed=settings.seed, cache=settings.output / TOKENS)
    assert data.validation is not None
    reader = WindowReader(PackageInfo.open(package), Device(), threads=1)
    total, tokens = 0.0, 0
    for batch in data.validation.batches(1, limit=settings.loop.evaluation_windows):
        reader.forget()
        logits = np.concatenate(list(reader.read(batch.input_ids[0].tolist(), 0)))
        learned = batch.labels[0] != IGNORED
        total += float(Distribution.of(logits[learned]).surprise(batch.labels[0][learned]).sum())
        tokens += int(learned.sum())
    return math.exp(total / tokens)


@pytest.mark.parametrize("head", list(HeadWeights))
def test_the_package_has_the_perplexity_of_the_evaluation(head: HeadWeights, tmp_path: Path) -> None:
    settings = read_config(write_config(tmp_path, steps=40))
    settings = replace(settings, model=replace(settings.model, head=head))
    result = train(settings)
    assert result is not None
    assert result.model is not None
    assert result.perplexity is not None
    assert result.perplexity < 150  # of 288 tokens
    convert(result.model, tmp_path / "package", policy=_POLICIES[head])
    assert _perplexity(tmp_path / "package", settings) == pytest.approx(result.perplexity, rel=1e-3)
