"""Statistics against what an independent forward pass in numpy sees."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from random_decoders import SPECS, source
from texts import write_words
from tiny_models import TINY

from bitnet_onnx.calibration import CollectOptions, ModelStatistics, Sampling, collect, open_statistics
from bitnet_onnx.calibration._accumulator import Accumulator
from bitnet_onnx.calibration._taps import find_taps, precision_units
from bitnet_onnx.calibration.windows import read_windows
from bitnet_onnx.converters import Fallback, convert
from bitnet_onnx.converters.model import open_model
from bitnet_onnx.converters.onnx.package import write_package
from bitnet_onnx.errors import InputError
from bitnet_onnx.evaluation import reference
from bitnet_onnx.evaluation._linear import SourceRule
from bitnet_onnx.evaluation._session import load_graph
from bitnet_onnx.package_format import MODEL
from bitnet_onnx.policy import Policy, Precision, Weights
from bitnet_onnx.quantized import FloatArray
from bitnet_onnx.runtime import PackageInfo
from bitnet_onnx.runtime.tokenizer import TextTokenizer

OPTIONS = CollectOptions(tokens=120, window=24, sample=20, block=40)
FLOAT = Policy(Precision(Weights.FLOAT32), Precision(Weights.FLOAT32))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ("hello", "world", "the", "naïve", "low", "er", "日本")
    return write_words(tmp_path_factory.mktemp("text") / "text.txt", 400, words)


def _seen(checkpoint: Path, windows: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> dict[str, FloatArray]:
    """The inputs of every linear layer in the numpy forward pass, all windows one behind the other."""
    inputs: dict[str, FloatArray] = {}
    apply = reference.apply

    def recording(x: FloatArray, linear: object, tensors: object, role: str) -> FloatArray:
        inputs[role] = x.copy()
        return apply(x, linear, tensors, role)  # type: ignore[arg-type]

    monkeypatch.setattr(reference, "apply", recording)
    with open_model(checkpoint) as model:
        reference.forward(
            model.spec, model.tensors, SourceRule(model), [reference.Prompt(tuple(ids)) for ids in windows]
        )
    return inputs


@pytest.mark.parametrize("name", ["untied_gqa", "tied_mha", "biased_mqa"])
def test_statistics_are_those_of_an_independent_forward_pass(
    name: str, tiny_checkpoint: Callable[[str], Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tiny_checkpoint(name)
    found = collect(checkpoint, [text], OPTIONS)
    convert(checkpoint, tmp_path / "package", policy=FLOAT)
    tokenizer = TextTokenizer(PackageInfo.open(tmp_path / "package"))
    windows = list(read_windows([text], tokenizer, count=5, length=24))
    inputs = _seen(checkpoint, windows, monkeypatch)
    tied = TINY[name].config["tie_word_embeddings"]
    assert set(found.roles) == set(inputs) - ({"lm_head"} if tied else set())
    for role in found.roles:
        one, x = found.of(role), inputs[role]
        assert one is not None
        assert one.tokens == len(x) == 120
        np.testing.assert_allclose(one.peak, np.abs(x).max(axis=0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(one.mean, x.mean(axis=0), rtol=1e-3, atol=1e-4)
        start = 0
        for block in one.moment:
            assert len(block) <= 40
            part = x[:, start : start + len(block)].astype(np.float64)
            np.testing.assert_allclose(block, part.T @ part / len(x), rtol=1e-3, atol=1e-4)
            start += len(block)
        assert start == x.shape[1]
        # Four tokens of each window, the first and the last among them.
        np.testing.assert_allclose(one.sample, x.reshape(5, 24, -1)[:, [0, 8, 15, 23]].reshape(20, -1), atol=1e-4)
    layers = TINY[name].config["num_hidden_layers"]
    assert found.key_peak.shape == found.value_peak.shape
    assert found.key_peak.shape[:2] == (layers, TINY[name].config["num_key_value_heads"])
    assert (found.value_peak > 0).any()


@pytest.mark.parametrize("name", SPECS)
def test_every_linear_layer_of_every_kind_of_decoder_has_an_input(name: str, tmp_path: Path) -> None:
    spec = SPECS[name]
    write_package(tmp_path, source(spec), policy=FLOAT, fallback=Fallback.FAST)
    taps = find_taps(load_graph(tmp_path / MODEL).graph, spec)
    roles = [role for tap in taps for role in tap.roles]
    expected = {role for role, _ in spec.matrices() if role.startswith("layers.")}
    assert len(roles) == len(set(roles))
    assert set(roles) - {"embed_tokens", "lm_head"} == expected
    shapes = dict(spec.matrices())
    assert all(shapes[role][1] == tap.features for tap in taps for role in tap.roles)
    assert sorted(role for unit in precision_units(spec) for role in unit) == sorted(shapes)


def test_what_was_interrupted_goes_on_to_the_same_sums(
    tiny_checkpoint: Callable[[str], Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitnet_onnx.calibration.collection._SAVE_EVERY_S", -1.0)
    state = tmp_path / "state"

    def stop(done: int, _: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(tiny_checkpoint("tied_mha"), [text], OPTIONS, state=state, progress=stop)
    assert open_statistics(state).about["windows_done"] == "3"
    read: list[int] = []
    add = Accumulator.add
    monkeypatch.setattr(Accumulator, "add", lambda self, x, kept: (read.append(len(x)), add(self, x, kept))[1])
    resumed = collect(tiny_checkpoint("tied_mha"), [text], OPTIONS, state=state)
    assert len(read) == 2 * len(resumed.inputs)
    _same(resumed, collect(tiny_checkpoint("tied_mha"), [text], OPTIONS))


@pytest.mark.parametrize("other", ["options", "text", "damage"])
def test_a_state_of_another_task_is_not_gone_on_from(
    other: str, tiny_checkpoint: Callable[[str], Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitnet_onnx.calibration.collection._SAVE_EVERY_S", -1.0)
    state, mine = tmp_path / "state", tmp_path / "text.txt"
    shutil.copy(text, mine)
    options = CollectOptions(tokens=48, window=24, seed=1 if other == "options" else 0)
    collect(tiny_checkpoint("tied_mha"), [mine], options, state=state)
    if other == "text":
        mine.write_text(mine.read_text(encoding="utf-8") + " and more", encoding="utf-8")
    if other == "damage":
        state.write_bytes(state.read_bytes()[:200])
    plain = CollectOptions(tokens=48, window=24)
    found = collect(tiny_checkpoint("tied_mha"), [mine], plain, state=state)
    assert all(one.tokens == 48 for one in found.inputs.values())


def test_a_file_of_statistics_is_read_back(tiny_checkpoint: Callable[[str], Path], text: Path, tmp_path: Path) -> None:
    found = collect(tiny_checkpoint("untied_gqa"), [text], OPTIONS)
    path = tmp_path / "stats.safetensors"
    found.save(path)
    read = open_statistics(path)
    _same(read, found)
    assert read.about == found.about
    assert list(tmp_path.iterdir()) == [path]


def _same(one: ModelStatistics, other: ModelStatistics) -> None:
    assert one.roles == other.roles
    np.testing.assert_array_equal(one.key_peak, other.key_peak)
    np.testing.assert_array_equal(one.value_peak, other.value_peak)
    for name, mine in one.inputs.items():
        its = other.inputs[name]
        assert mine.tokens == its.tokens
        np.testing.assert_array_equal(mine.peak, its.peak)
        np.testing.assert_array_equal(mine.sample, its.sample)
        np.testing.assert_allclose(mine.mean, its.mean, rtol=1e-5, atol=1e-7)
        for left, right in zip(mine.moment, its.moment, strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": 0}, "tokens is 0, expected 1 to"),
        ({"window": 1}, "window is 1, expected 2 to"),
        ({"sample": -1}, "sample is -1"),
        ({"block": -4}, "block is -4"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_options_out_of_range_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CollectOptions(**change)  # type: ignore[arg-type]


def test_without_text_nothing_is_opened(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no text to read"):
        collect(tmp_path, [])


def test_places_depend_on_the_seed(text: Path, tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    convert(tiny_checkpoint("tied_mha"), tmp_path / "package")
    tokenizer = TextTokenizer(PackageInfo.open(tmp_path / "package"))

    def windows(sampling: Sampling, seed: int) -> list[list[int]]:
        return list(read_windows([text], tokenizer, count=6, length=8, sampling=sampling, seed=seed))

    for sampling in Sampling:
        assert windows(sampling, 1) == windows(sampling, 1) != windows(sampling, 2)
