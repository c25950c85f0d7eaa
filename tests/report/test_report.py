"""The report: its numbers are those of `evaluate`, and what is broken comes first."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from texts import write_words

from bitnet_onnx.calibration.sensitivity_table import Measured, Unit
from bitnet_onnx.converters import convert
from bitnet_onnx.converters.model import open_model
from bitnet_onnx.errors import InputError
from bitnet_onnx.evaluation.quality import evaluate
from bitnet_onnx.metrics import relative_error
from bitnet_onnx.policy import Policy, Precision, Weights
from bitnet_onnx.report import Level, Measurement, ReportOptions, findings, judge, measure, render

pytest.importorskip("matplotlib", reason="the charts of a report need matplotlib")

INT4 = Precision(Weights.INT4)
SENSITIVITY = tuple(
    Unit(
        (f"layers.{index}.mlp.down_proj",),
        64 * 172,
        tuple(
            Measured(Precision(Weights.INT4), bits * 64 * 172, 0.1, 10.0**-bits, measured=True) for bits in (2, 4, 8)
        ),
    )
    for index in range(2)
)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_words(tmp_path_factory.mktemp("text") / "held-out.txt", 900)


@pytest.fixture(scope="module")
def broken(tiny_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package one of whose layers is far worse than the others."""
    package = tmp_path_factory.mktemp("broken") / "package"
    policy = Policy(INT4, overrides=(("layers.1.mlp.up_proj", Precision(Weights.INT2, 0)),))
    convert(tiny_checkpoint("untied_gqa"), package, policy=policy)
    return package


@pytest.fixture(scope="module")
def found(tiny_checkpoint: Callable[[str], Path], broken: Path, text: Path) -> Measurement:
    return measure(broken, tiny_checkpoint("untied_gqa"), [text], ReportOptions(sensitivity=SENSITIVITY))


def test_its_numbers_are_those_of_evaluate(
    found: Measurement, tiny_checkpoint: Callable[[str], Path], broken: Path, text: Path
) -> None:
    quality = evaluate(broken, texts=[text], reference=tiny_checkpoint("untied_gqa"))
    assert found.quality.total == quality.total
    assert quality.total is not None
    assert quality.total.comparison is not None
    page = render(found)
    assert f"{quality.total.comparison.divergence:.3f}" in page
    assert f"{100 * quality.total.comparison.agreement:.1f} %" in page


def test_the_broken_layer_comes_first(found: Measurement) -> None:
    worst = findings(found)
    assert worst[0].layer.role == "layers.1.mlp.up_proj"
    assert worst[0].share > 0.5
    assert "groups of 64" in worst[0].advice
    page = render(found)
    rows = re.findall(r"<td>(layers[^<]*)</td>", page)
    assert rows[0] == "layers.1.mlp.up_proj"


def test_layers_are_measured_against_their_floats(
    found: Measurement, tiny_checkpoint: Callable[[str], Path], broken: Path
) -> None:
    with open_model(tiny_checkpoint("untied_gqa")) as source, open_model(broken) as package:
        assert [layer.role for layer in found.layers] == [role for role, _ in source.spec.matrices()]
        for layer in found.layers:
            exact, ours = (model.tensors.read(f"{layer.role}.weight") for model in (source, package))
            assert 10 ** (-layer.sqnr / 20) == pytest.approx(relative_error(exact, ours), rel=1e-6)
            assert layer.max_error == pytest.approx(np.abs(exact - ours).max(), rel=1e-6)
            assert layer.sparsity == pytest.approx(np.mean(ours == 0), rel=1e-9)
            cosine = (exact.astype(float) * ours).sum() / np.linalg.norm(exact) / np.linalg.norm(ours)
            assert layer.cosine == pytest.approx(cosine, rel=1e-6)
    # 4 bits a weight and 8 bits of activations lose a few percent of an output, whatever the inputs.
    errors = [layer.output_error for layer in found.layers if layer.weights == "int4"]
    assert all(error is not None and 0.02 < error < 0.2 for error in errors)
    assert len(found.depth) == 2
    assert 0 < found.depth[0] < found.depth[1]


def test_the_page_is_whole_and_loads_nothing(found: Measurement) -> None:
    page = render(found)
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!#)", page)
    assert not re.search(r"url\((?!#)", page)
    assert "<script" not in page
    assert page.count("<svg") == 4
    assert "#010203" not in page
    open_tags: list[str] = []

    class Balanced(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag not in {"meta", "path", "use", "rect", "line", "br"}:
                open_tags.append(tag)

        def handle_startendtag(self, tag: str, attrs: object) -> None:
            pass

        def handle_endtag(self, tag: str) -> None:
            if tag in {"path", "use", "rect", "line"}:
                return
            assert open_tags.pop() == tag

    Balanced().feed(page)
    assert open_tags == []


def test_names_from_strangers_stay_text(found: Measurement) -> None:
    page = render(dataclasses.replace(found, name="<script>alert(1)</script>", package="a<b>", source="'\"><img>"))
    assert "<script" not in page
    assert "<img" not in page


def test_the_same_measurement_gives_the_same_page_and_survives_json(found: Measurement) -> None:
    assert render(found) == render(found)
    fields = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert fields["layers"][0]["role"] == "embed_tokens"
    assert fields["quality"]["total"]["perplexity"] == pytest.approx(found.quality.total.perplexity)  # type: ignore[union-attr]
    assert fields["frontier"][0][0] < fields["frontier"][-1][0]


def _judged(found: Measurement, ratio: float, perplexity: float = 20.0) -> tuple[Level, str]:
    total = found.quality.total
    assert total is not None
    assert total.comparison is not None
    comparison = dataclasses.replace(total.comparison, perplexity=20.0, perplexity_ratio=ratio)
    quality = dataclasses.replace(
        found.quality, total=dataclasses.replace(total, perplexity=perplexity, comparison=comparison)
    )
    verdict = judge(dataclasses.replace(found, quality=quality))
    return verdict.level, verdict.title


@pytest.mark.parametrize(
    ("ratio", "level", "title"),
    [
        (0.99, Level.GOOD, "As good"),
        (1.05, Level.GOOD, "Close"),
        (1.3, Level.FAIR, "Noticeably worse"),
        (3.0, Level.POOR, "Badly damaged"),
        (6.0, Level.UNUSABLE, "Unusable"),
    ],
)
def test_the_verdict_goes_by_the_ratio(found: Measurement, ratio: float, level: Level, title: str) -> None:
    judged = _judged(found, ratio)
    assert judged[0] is level
    assert judged[1].startswith(title)


@pytest.mark.parametrize("perplexity", [515.0, 1e9, float("inf")])
def test_worse_than_guessing_is_called_so(found: Measurement, perplexity: float) -> None:
    assert _judged(found, perplexity / 20, perplexity) == (Level.UNUSABLE, "Unusable: worse than guessing")


def test_ternary_weights_that_were_not_trained_are_told_to_be(
    tiny_checkpoint: Callable[[str], Path], text: Path, tmp_path: Path
) -> None:
    source = tiny_checkpoint("tied_mha")
    convert(source, tmp_path / "package", policy=Policy(Precision(Weights.TERNARY)))
    measured = measure(tmp_path / "package", source, [text])
    assert "train it" in findings(measured)[0].advice
    assert "not trained to be ternary" in judge(measured).text
    assert measured.frontier == ()


def test_a_model_that_was_trained_to_be_ternary_is_as_good_as_its_source(
    tiny_checkpoint: Callable[[str], Path], text: Path, tmp_path: Path
) -> None:
    source = tiny_checkpoint("bitnet")
    convert(source, tmp_path / "package")
    measured = measure(tmp_path / "package", source, [text])
    assert measured.trained_ternary
    assert measured.depth == ()
    assert judge(measured).level is Level.GOOD
    render(measured)


def test_without_text_nothing_is_measured(broken: Path, tiny_checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match="no text to read"):
        measure(broken, tiny_checkpoint("untied_gqa"), [])
