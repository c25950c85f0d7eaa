"""A whole run: from a configuration to a model that converts to what was evaluated."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import write_config

from bitnet_onnx.converters import convert
from bitnet_onnx.errors import InputError
from bitnet_onnx.evaluation.quality import QualityOptions, WindowRule, evaluate
from bitnet_onnx.training.config_file import read_config
from bitnet_onnx.training.monitoring import History
from bitnet_onnx.training.records import End
from bitnet_onnx.training.result import TrainingResult
from bitnet_onnx.training.run_directory import Begin
from bitnet_onnx.training.settings import Curve, LossSettings, QuantizationSettings, Ramp, TrainingSettings
from bitnet_onnx.training.trainer import check_run, train


def losses(output: Path) -> list[Any]:
    lines = map(json.loads, (output / "log.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["kind"] == "step"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> TrainingSettings:
    return read_config(write_config(tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def result(settings: TrainingSettings) -> TrainingResult:
    found = train(settings)
    assert found is not None
    return found


def test_a_run_learns_and_leaves_all_that_it_says(settings: TrainingSettings, result: TrainingResult) -> None:
    assert (result.end, result.step, result.signal) == (End.FINISHED, 12, None)
    history = History.read(settings.output / "log.jsonl")
    assert len(history.loss) == 12
    assert history.loss[-1][1] < history.loss[0][1] - 1
    assert [record.step for record in history.quantization] == [0, 4, 8, 12]
    assert len(history.quantization[0].layers) == 14
    assert history.quantization[-1].layers["layers.1.mlp.down_proj.weight"].flips
    assert history.best == (result.loss_step, result.loss)
    assert history.result["loss"] == result.loss
    assert read_config(settings.output / "config.toml") == settings
    if (settings.output / "report.html").exists():  # matplotlib is there
        assert "step 12 of 12" in (settings.output / "report.html").read_text("utf-8")


def test_the_package_is_as_good_as_the_evaluation_said(
    settings: TrainingSettings, result: TrainingResult, tmp_path: Path
) -> None:
    assert result.model is not None
    assert result.perplexity is not None
    convert(result.model, tmp_path / "package")
    text = (settings.data.train[0]).read_text()
    held_out = tmp_path / "held-out.txt"
    held_out.write_text(text[int(len(text) * 0.9) :])
    quality = evaluate(
        tmp_path / "package", texts=[held_out], options=QualityOptions(WindowRule(33, beginning=True, stride=32))
    )
    assert quality.total is not None
    # Other windows of the same text, and a head of 8 bits.
    assert quality.total.perplexity == pytest.approx(result.perplexity, rel=0.05)


def test_a_run_that_is_done_is_not_done_again(settings: TrainingSettings, result: TrainingResult) -> None:
    before = losses(settings.output)
    again = train(settings, begin=Begin.RESUME)
    assert again == result
    assert losses(settings.output) == before


def test_other_settings_are_refused_and_a_fresh_run_is_the_same(
    settings: TrainingSettings, result: TrainingResult
) -> None:
    other = replace(settings, seed=5)
    with pytest.raises(InputError, match="seed is 5, and was 0"):
        train(other)
    with pytest.raises(InputError, match="seed is 5, and was 0"), check_run(other):
        pass
    before = losses(settings.output)
    train(settings, begin=Begin.FRESH)
    assert losses(settings.output) == before
    train(replace(other, loop=replace(settings.loop, steps=4)), begin=Begin.FRESH)
    assert losses(settings.output) != before[:4]


def test_without_a_checkpoint_there_is_nothing_to_go_on_from(settings: TrainingSettings, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint to go on from"):
        train(replace(settings, output=tmp_path / "none"), begin=Begin.RESUME)


def test_a_model_teaches_itself_with_every_term(tmp_path: Path, result: TrainingResult) -> None:
    settings = read_config(write_config(tmp_path, steps=4))
    settings = replace(
        settings,
        model=replace(settings.model, source=str(result.model), architecture=None),
        losses=LossSettings(
            distillation=Ramp(1.0), relation=Ramp(0.5), grid=Ramp(0.1, steps=2, curve=Curve.LINEAR), temperature=2.0
        ),
        quantization=QuantizationSettings(Ramp(1.0, steps=2, curve=Curve.LINEAR), groups=2, stride=1),
    )
    found = train(settings)
    assert found is not None
    history = History.read(found.directory / "log.jsonl")
    assert set(history.terms) == {"cross_entropy", "distillation", "relation", "grid"}
    assert history.terms["distillation"][0][1] < 0.5


def test_a_batch_that_cannot_be_shared_is_refused(settings: TrainingSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    from bitnet_onnx.training.preparation import prepare_run

    with pytest.raises(InputError, match=r"loop.batch is 4: 3 processes"), prepare_run(settings, processes=3):
        pass


def test_what_does_not_fit_into_memory_is_refused_with_advice(settings: TrainingSettings, tmp_path: Path) -> None:
    engine = replace(settings.engine, memory=1 << 20)
    with (
        pytest.raises(InputError, match="training needs at least"),
        check_run(replace(settings, engine=engine, output=tmp_path)),
    ):
        pass
