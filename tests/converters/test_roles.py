"""A checkpoint seen by role: nothing missing, nothing unknown, every shape as the configuration says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_models import TINY, tensors

from bitnet_onnx.converters._roles import CheckpointTensors
from bitnet_onnx.converters.checkpoints import open_checkpoint
from bitnet_onnx.converters.families import Config, Family, find, llama
from bitnet_onnx.converters.families._family import Rows, Source
from bitnet_onnx.decoder import DecoderSpec
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


def test_packed_weights_without_a_scheme(tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
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


#: Queries, keys and values interleaved head by head; the output matrix stored `[in, out]`; a norm less 1.
HEADS, HEAD_DIM, HIDDEN = 4, 16, 64


def source(spec: DecoderSpec, role: str) -> Source:
    name = llama.tensor_name(role)
    for index, part in enumerate(("q_proj", "k_proj", "v_proj")):
        if f".{part}." in role:
            rows = Rows(index * HEAD_DIM, HEAD_DIM, 3 * HEADS * HEAD_DIM, 3 * HEAD_DIM, HEADS)
            return Source(name.replace(part, "query_key_value"), rows, transposed="layers.1." in role)
    if ".o_proj." in role:
        return Source(name, transposed=True)
    return Source(name, offset=1.0 if role == "norm.weight" else 0.0)


@pytest.fixture
def interleaved(
    tmp_path: Path, weights: dict[str, np.ndarray]
) -> Iterator[tuple[CheckpointTensors, dict[str, np.ndarray]]]:
    """A checkpoint that lays its tensors out as `source` says, and what they are by role."""
    random = np.random.default_rng(5)
    roles: dict[str, np.ndarray] = {}
    for layer in range(2):
        parts = [random.standard_normal((HEADS * HEAD_DIM, HIDDEN)).astype(np.float32) for _ in range(3)]
        for name in ("q_proj", "k_proj", "v_proj"):
            del weights[f"model.layers.{layer}.self_attn.{name}.weight"]
        roles |= {f"layers.{layer}.attn.{name}_proj.weight": part for name, part in zip("qkv", parts, strict=True)}
        heads = np.stack([part.reshape(HEADS, HEAD_DIM, HIDDEN) for part in parts], axis=1)
        fused = heads.reshape(-1, HIDDEN)
        stored = np.ascontiguousarray(fused.T) if layer else fused
        weights[f"model.layers.{layer}.self_attn.query_key_value.weight"] = stored
        output = weights[f"model.layers.{layer}.self_attn.o_proj.weight"]
        roles[f"layers.{layer}.attn.o_proj.weight"] = np.ascontiguousarray(output.T)
    roles["norm.weight"] = weights["model.norm.weight"] + np.float32(1)
    (tmp_path / "config.json").write_text(json.dumps(TINY["untied_gqa"].config | {"num_key_value_heads": HEADS}))
    save_file(weights, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        family = Family("llama", llama.spec, source)
        yield CheckpointTensors(checkpoint, family, family.spec(Config(checkpoint.config))), roles


def test_rows_transposes_and_offsets(
    interleaved: tuple[CheckpointTensors, dict[str, np.ndarray]],
) -> None:
    found, roles = interleaved
    for role, expected in roles.items():
        np.testing.assert_array_equal(found.read(role), expected, err_msg=role)
        if expected.ndim == 2:
            for start, stop in ((0, 64), (3, 5), (10, 40), (63, 64), (16, 32)):
                np.testing.assert_array_equal(found.read_rows(role, start, stop), expected[start:stop], err_msg=role)


def test_a_part_of_a_tensor_that_is_too_short(tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    for layer in range(2):
        for name in ("q_proj", "k_proj", "v_proj"):
            del weights[f"model.layers.{layer}.self_attn.{name}.weight"]
        shape = (HIDDEN, 191) if layer else (191, HIDDEN)
        weights[f"model.layers.{layer}.self_attn.query_key_value.weight"] = np.zeros(shape, np.float32)
    (tmp_path / "config.json").write_text(json.dumps(TINY["untied_gqa"].config | {"num_key_value_heads": HEADS}))
    save_file(weights, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint:
        spec = llama.spec(Config(checkpoint.config))
        with pytest.raises(CheckpointError, match=r"has shape \[191, 64\]: the configuration demands \[192, 64\]"):
            CheckpointTensors(checkpoint, Family("llama", llama.spec, source), spec)
