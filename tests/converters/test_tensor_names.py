"""The same weights under the other names that checkpoints have give the same package; what is foreign is named."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from family_models import FAMILY_MODELS, shapes_of, write_family_checkpoint
from safetensors.numpy import load_file, save_file

from bitnet_onnx.converters import convert
from bitnet_onnx.errors import CheckpointError
from bitnet_onnx.package_format import MODEL, MODEL_DATA
from bitnet_onnx.policy import Policy, Precision, Weights

FLOAT = Policy(Precision(Weights.FLOAT32), Precision(Weights.FLOAT32))
Tensors = dict[str, np.ndarray]


def package(tmp_path: Path, name: str, change: Callable[[Tensors], Tensors], config: dict[str, object]) -> bytes:
    """Graph and data of the package of a model whose tensors and configuration are changed."""
    source = write_family_checkpoint(tmp_path / "source", FAMILY_MODELS[name], shapes_of(name))
    weights = change(load_file(source / "model.safetensors"))
    save_file(weights, source / "model.safetensors")
    fields: dict[str, object] = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config or fields))
    convert(source, tmp_path / "package", policy=FLOAT, overwrite=True)
    return (tmp_path / "package" / MODEL).read_bytes() + (tmp_path / "package" / MODEL_DATA).read_bytes()


def renamed(beginning: str, other: str) -> Callable[[Tensors], Tensors]:
    """Other beginnings of names; some tensor must have the first."""

    def change(weights: Tensors) -> Tensors:
        result = {
            other + name.removeprefix(beginning) if name.startswith(beginning) else name: value
            for name, value in weights.items()
        }
        assert result.keys() != weights.keys()
        return result

    return change


def with_tensors(**tensors: tuple[int, ...]) -> Callable[[Tensors], Tensors]:
    return lambda weights: (
        weights | {name.replace("__", "."): np.zeros(shape, np.float32) for name, shape in tensors.items()}
    )


def with_second_head(embedding: str, head: str) -> Callable[[Tensors], Tensors]:
    return lambda weights: weights | {head: weights[embedding].copy()}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("gpt2", renamed("transformer.", "")),
        ("gpt2", with_tensors(transformer__h__0__attn__bias=(1, 1, 8, 8), transformer__h__1__attn__masked_bias=())),
        ("gpt2", with_second_head("transformer.wte.weight", "lm_head.weight")),
        ("gpt2_options", renamed("transformer.", "")),
        ("gptj", renamed("transformer.", "")),
        ("gptj", with_tensors(transformer__h__0__attn__bias=(1, 1, 8, 8), transformer__h__1__attn__masked_bias=())),
        (
            "gpt_neox",
            with_tensors(
                gpt_neox__layers__0__attention__bias=(1, 1, 8, 8),
                gpt_neox__layers__0__attention__masked_bias=(),
                gpt_neox__layers__0__attention__rotary_emb__inv_freq=(8,),
            ),
        ),
        ("opt", renamed("model.decoder.", "decoder.")),
        ("opt_350m", renamed("model.decoder.", "decoder.")),
        ("opt", with_second_head("model.decoder.embed_tokens.weight", "lm_head.weight")),
        ("phi", with_tensors(model__layers__0__self_attn__rotary_emb__inv_freq=(8,))),
        ("gemma2", renamed("model.", "")),
    ],
)
def test_other_names_and_saved_buffers(tmp_path: Path, name: str, change: Callable[[Tensors], Tensors]) -> None:
    plain = package(tmp_path, name, lambda weights: weights, {})
    assert package(tmp_path, name, change, {}) == plain


def test_the_head_of_gpt_neox_has_two_names(tmp_path: Path) -> None:
    heads = {"embed_out.weight", "lm_head.weight"} & shapes_of("gpt_neox").keys()
    (stored,) = heads
    (other,) = {"embed_out.weight", "lm_head.weight"} - heads
    plain = package(tmp_path, "gpt_neox", lambda weights: weights, {})
    assert package(tmp_path, "gpt_neox", renamed(stored, other), {}) == plain


@pytest.mark.parametrize(
    ("language", "vision"),
    [("language_model.model.", "vision_tower."), ("model.language_model.", "model.vision_tower.")],
)
@pytest.mark.parametrize("second_head", [False, True])
def test_gemma3_with_images_is_its_language_model(
    tmp_path: Path, language: str, vision: str, second_head: bool, caplog: pytest.LogCaptureFixture
) -> None:
    plain = package(tmp_path, "gemma3_text", lambda weights: weights, {})
    projector = vision.replace("vision_tower.", "multi_modal_projector.")
    head = "language_model.lm_head.weight" if language.startswith("language") else "lm_head.weight"

    def change(weights: Tensors) -> Tensors:
        result = renamed("model.", language)(weights)
        result[f"{vision}vision_model.embeddings.patch_embedding.weight"] = np.ones((4, 3, 2, 2), np.float32)
        result[f"{projector}mm_input_projection_weight"] = np.ones((4, 64), np.float32)
        if second_head:
            result[head] = weights["model.embed_tokens.weight"].copy()
        return result

    text = dict(FAMILY_MODELS["gemma3_text"].config)
    config: dict[str, object] = {"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 4}}
    with caplog.at_level(logging.WARNING):
        assert package(tmp_path, "gemma3_text", change, config) == plain
    (record,) = (record for record in caplog.records if "left out" in record.getMessage())
    assert record.getMessage() == (
        f"source: 2 tensors that are not of the language model are left out: {vision}, {projector}; "
        f"the package reads text only"
    )


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("gpt2", "transformer.h.0.attn.q_attn.weight"),
        ("gemma3_text", "vision_tower.weight"),
        ("opt", "model.decoder.layers.0.fc3.weight"),
    ],
)
def test_a_tensor_without_a_place_is_refused(tmp_path: Path, name: str, tensor: str) -> None:
    with pytest.raises(CheckpointError, match=f"tensor '{tensor}' has no place in a {name} decoder"):
        package(tmp_path, name, lambda weights: weights | {tensor: np.zeros(4, np.float32)}, {})


def test_a_missing_tensor_is_named_as_the_checkpoint_would(tmp_path: Path) -> None:
    def change(weights: Tensors) -> Tensors:
        result = renamed("transformer.", "")(weights)
        del result["h.1.ln_2.bias"]
        return result

    with pytest.raises(CheckpointError, match=r"tensor 'h.1.ln_2.bias' is missing"):
        package(tmp_path, "gpt2", change, {})


def test_a_bias_that_the_configuration_rules_out_is_refused(tmp_path: Path) -> None:
    config: dict[str, object] = dict(FAMILY_MODELS["opt"].config) | {"enable_bias": False}
    with pytest.raises(CheckpointError, match=r"bias' has no place in a opt decoder"):
        package(tmp_path, "opt", lambda weights: weights, config)
