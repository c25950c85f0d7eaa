"""A checkpoint seen by role: nothing missing, nothing unknown, every shape as the configuration says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_models import TINY, tensors

from bitnet_onnx.converters._roles import CheckpointTensors
from bitnet_onnx.converters.checkpoints import open_checkpoint
from bitnet_onnx.converters.families import Config, find
from bitnet_onnx.errors import CheckpointError


def open_tensors(directory: Path, weights: dict[str, np.ndarray], **changes: object) -> CheckpointTensors:
    (directory / "config.json").write_text(json.dumps(TINY["untied_gqa"].config | changes))
    save_file(weights, directory / "model.safetensors")
    with open_checkpoint(directory) as checkpoint:
        config = Config(checkpoint.config)
        family = find(config)
        return CheckpointTensors(checkpoint, family, family.spec(config))


@pytest.fixture
def weights() -> dict[str, np.ndarray]:
    return tensors(TINY["untied_gqa"])


def test_tensors_by_role(tiny_checkpoint: Callable[[str], Path], weights: dict[str, np.ndarray]) -> None:
    with open_checkpoint(tiny_checkpoint("untied_gqa")) as checkpoint:
        config = Config(checkpoint.config)
        family = find(config)
        found = CheckpointTensors(checkpoint, family, family.spec(config))
        key = weights["model.layers.1.self_attn.k_proj.weight"]
        np.testing.assert_array_equal(found.read("layers.1.attn.k_proj.weight"), key)
        np.testing.assert_array_equal(found.read_rows("layers.1.attn.k_proj.weight", 3, 9), key[3:9])
        assert found.shape("layers.1.attn.k_proj.weight") == key.shape
        np.testing.assert_array_equal(found.read("norm.weight"), weights["model.norm.weight"])


def test_a_missing_tensor_is_named_with_the_nearest(tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    weights["model.layers.0.self_attn.q_prj.weight"] = weights.pop("model.layers.0.self_attn.q_proj.weight")
    message = r"'model.layers.0.self_attn.q_proj.weight' is missing; the nearest name is '.*q_prj.weight'"
    with pytest.raises(CheckpointError, match=message):
        open_tensors(tmp_path, weights)


def test_a_wrong_shape_is_told(tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    weights["model.norm.weight"] = np.ones(65, np.float32)
    message = r"'model.norm.weight' has shape \[65\]: the configuration demands \[64\]"
    with pytest.raises(CheckpointError, match=message):
        open_tensors(tmp_path, weights)


def test_packed_weights_are_refused_by_name(tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    weights["model.layers.0.self_attn.o_proj.weight"] = np.zeros((16, 64), np.uint8)
    message = r"tensor 'model.layers.0.self_attn.o_proj.weight' belongs to packed weights, but config.json has no quant"
    with pytest.raises(CheckpointError, match=message):
        open_tensors(tmp_path, weights)


def test_a_tensor_without_a_place_is_refused(tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    weights["model.layers.0.self_attn.q_norm.weight"] = np.ones(16, np.float32)
    with pytest.raises(CheckpointError, match=r"'model.layers.0.self_attn.q_norm.weight' has no place in a llama"):
        open_tensors(tmp_path, weights)


def test_saved_rotary_tables_are_ignored(tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    open_tensors(tmp_path, weights)


def test_a_tied_model_may_carry_its_head_twice(tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    open_tensors(tmp_path, weights, tie_word_embeddings=True)
    del weights["lm_head.weight"]
    open_tensors(tmp_path, weights, tie_word_embeddings=True)
    with pytest.raises(CheckpointError, match=r"'lm_head.weight' is missing"):
        open_tensors(tmp_path, weights)
