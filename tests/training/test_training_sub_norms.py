"""How large the weights of sub-norms are that were put in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from exports import write_source
from training_starts import filled, random_start

from bitnet_onnx.errors import InputError
from bitnet_onnx.training.settings import ModelSettings
from bitnet_onnx.training.start import Start, open_start
from bitnet_onnx.training.sub_norms import fit_sub_norms
from bitnet_onnx.training.teacher import Teacher


def sub_norms(start: Start) -> dict[str, np.ndarray]:
    return {role: start.read(role) for role in start.put_in}


def logits(start: Start, ids: np.ndarray) -> np.ndarray:
    return Teacher(start.spec, start.tensors, max_length=32)(ids)["teacher.logits"]


@pytest.mark.parametrize("name", ["untied_gqa", "phi3"])
def test_the_median_token_keeps_its_size(name: str, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", name)
    with open_start(ModelSettings(str(source), sub_norms=True)) as start:
        spec = start.spec
        # A token that sees itself alone takes its own value.
        ids = np.random.default_rng(4).integers(0, spec.vocab_size, (31, 1))
        fitted = sub_norms(fit_sub_norms(start, ids, threads=1))
        assert fitted.keys() == start.put_in
        x = start.read("embed_tokens.weight")[ids[:, 0]]
        epsilon = spec.norm_epsilon
        x = x / np.sqrt((x**2).mean(1, keepdims=True) + epsilon) * start.read("layers.0.input_norm.weight")
        value = x @ start.read("layers.0.attn.v_proj.weight").T
        expected = np.median(np.sqrt((value**2).mean(1)))
        np.testing.assert_allclose(fitted["layers.0.attn.sub_norm.weight"], expected, rtol=1e-4)
        assert all(np.ptp(weight) == 0 and weight[0] > 0 for weight in fitted.values())
        np.testing.assert_array_equal(sub_norms(start)["layers.0.attn.sub_norm.weight"], 1)


def test_fitted_norms_change_the_model_less(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", "tied_mha")
    ids = np.random.default_rng(4).integers(0, 515, (4, 32))
    with open_start(ModelSettings(str(source), sub_norms=True)) as start:
        assert start.origin is not None
        plain = Teacher(start.origin.spec, start.origin.tensors, max_length=32)(ids)["teacher.logits"]
        fitted = fit_sub_norms(start, ids, threads=1)
        ones, better = (float(np.square(logits(given, ids) - plain).mean()) for given in (start, fitted))
        assert better < ones / 2
        store = filled(fitted)
        for role, weight in sub_norms(fitted).items():
            np.testing.assert_array_equal(store.value(role), weight)


def test_nothing_to_fit(tmp_path: Path) -> None:
    ids = np.zeros((1, 4), np.int64)
    random = random_start(sub_norms=True)
    assert fit_sub_norms(random, ids) is random
    source = write_source(tmp_path / "source", "bitnet")
    with open_start(ModelSettings(str(source), sub_norms=True)) as start:
        assert fit_sub_norms(start, ids) is start


def test_tokens_that_cannot_be_read(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", "tied_mha")
    with open_start(ModelSettings(str(source), sub_norms=True)) as start:
        with pytest.raises(InputError, match="there are no tokens"):
            fit_sub_norms(start, np.zeros((0, 4), np.int64))
        with pytest.raises(InputError, match="length is 513"):
            fit_sub_norms(start, np.zeros((1, 513), np.int64))
