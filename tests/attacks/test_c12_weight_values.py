"""Class 12: weights that are no numbers, nothing but zeros, or at the ends of what a float holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bounded_command import refused
from safetensors.numpy import load_file, save_file
from tiny_models import TINY, write_checkpoint

from bitnet_onnx.api import convert, load
from bitnet_onnx.errors import CheckpointError
from bitnet_onnx.integer import quantize_integer
from bitnet_onnx.policy import CHOICES, Precision, Weights
from bitnet_onnx.ternary import detect, quantize_absmean

WEIGHTS = ("auto", "keep", "ternary", "int4", "int6", "int8", "float32")
MATRIX = "model.layers.1.mlp.up_proj.weight"
LARGEST = float(np.finfo(np.float32).max)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "source", TINY["tied_mha"])


def change(source: Path, edit: Callable[[dict[str, np.ndarray]], None]) -> None:
    weights = dict(load_file(source / "model.safetensors"))
    edit(weights)
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [MATRIX, "model.embed_tokens.weight", "model.layers.0.input_layernorm.weight"])
@pytest.mark.parametrize("weights", ["auto", "float32"])
def test_what_is_not_finite_is_named(source: Path, tmp_path: Path, name: str, value: float, weights: str) -> None:
    def edit(tensors: dict[str, np.ndarray]) -> None:
        tensors[name].reshape(-1)[-3] = value

    change(source, edit)
    with pytest.raises(CheckpointError, match=r"weights must be finite") as caught:
        convert(source, tmp_path / "package", weights=weights)
    assert repr(name) in str(caught.value)
    assert f"holds {value} at element" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_matrix_of_zeros_is_a_matrix(source: Path, tmp_path: Path, weights: str) -> None:
    def edit(tensors: dict[str, np.ndarray]) -> None:
        tensors[MATRIX][:] = 0
        tensors["model.layers.0.self_attn.o_proj.weight"][3:9] = 0
        tensors["model.layers.0.mlp.gate_proj.weight"][:, 32:] = 0

    change(source, edit)
    convert(source, tmp_path / "package", weights=weights)
    model = load(tmp_path / "package")
    assert np.isfinite(model.session.step([5, 6, 7], model.session.new_cache())).all()
    layers = json.loads((tmp_path / "package" / "bitnet_onnx.json").read_text())["layers"]
    (zeros,) = (layer for layer in layers if layer["role"] == "layers.1.mlp.up_proj")
    assert zeros["relative_error"] == 0


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("value", [1e-45, 1e-39, 3e38, LARGEST])
def test_the_ends_of_the_range(source: Path, tmp_path: Path, value: float, weights: str) -> None:
    """One huge weight in a matrix, or nothing but denormals, is legal; the manifest stays JSON."""

    def edit(tensors: dict[str, np.ndarray]) -> None:
        if value < 1:
            tensors[MATRIX][:] = np.where(tensors[MATRIX] > 0, np.float32(value), np.float32(0))
        else:
            tensors[MATRIX][5, 7] = value

    change(source, edit)
    convert(source, tmp_path / "package", weights=weights)
    text = (tmp_path / "package" / "bitnet_onnx.json").read_text()
    assert "Infinity" not in text
    assert "NaN" not in text


@pytest.mark.parametrize("value", [1e-45, 1e-38, 1e-20, 1.0, 1e20, 3e38, LARGEST])
@pytest.mark.parametrize("weights", [name for name in CHOICES if name not in {Weights.KEEP, Weights.FLOAT32}])
def test_scales_are_numbers_at_any_magnitude(weights: Weights, value: float) -> None:
    rng = np.random.default_rng(0)
    weight = (rng.random((8, 96), np.float32) * np.float32(2) - np.float32(1)) * np.float32(value)
    for matrix in (weight, np.full_like(weight, value), np.sign(weight) * np.float32(value)):
        tensor = Precision(weights).quantize(matrix)
        assert tensor is not None
        assert np.isfinite(tensor.scale).all()
        assert np.isfinite(tensor.dequantize()).all()


def test_scales_among_neighbours_of_another_magnitude() -> None:
    weight = np.full((4, 64), 1e-45, np.float32)
    weight[1] = LARGEST
    weight[2, 0] = LARGEST
    weight[3] = 0
    for tensor in (quantize_absmean(weight), quantize_integer(weight, 8), quantize_integer(weight, 4, 32)):
        assert np.isfinite(tensor.dequantize()).all()
        assert not tensor.dequantize()[3].any()
    assert detect(weight) is None
    exact = detect(weight[[0, 1, 3]])
    assert exact is not None
    np.testing.assert_array_equal(exact.dequantize(), weight[[0, 1, 3]])


@pytest.mark.parametrize("weights", ["auto", "int8", "ternary"])
def test_the_largest_weights_still_give_a_sound_manifest(source: Path, tmp_path: Path, weights: str) -> None:
    def edit(tensors: dict[str, np.ndarray]) -> None:
        tensors[MATRIX] *= np.float32(5e37)

    change(source, edit)
    convert(source, tmp_path / "package", weights=weights)
    text = (tmp_path / "package" / "bitnet_onnx.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text


def test_the_command_line(source: Path, tmp_path: Path) -> None:
    def edit(tensors: dict[str, np.ndarray]) -> None:
        tensors[MATRIX][5, 7] = np.nan

    change(source, edit)
    assert f"'{MATRIX}' holds nan" in refused(source, tmp_path / "out")
