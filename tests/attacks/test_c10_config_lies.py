"""Class 10: configurations that lie."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from bounded_command import refused
from family_models import FAMILY_MODELS, shapes_of, write_family_checkpoint
from safetensors.numpy import save_file
from tiny_models import TINY, tensors, write_checkpoint

from bitnet_onnx.converters import convert
from bitnet_onnx.errors import CheckpointError, InputError, UnsupportedError

CONFIG = TINY["untied_gqa"].config


def refuse(tmp_path: Path, error: type[InputError], message: str, **changes: object) -> None:
    """A conversion of a checkpoint with these lies in its config.json fails with one line and leaves nothing."""
    source = write_checkpoint(tmp_path / "source", TINY["untied_gqa"])
    (source / "config.json").write_text(json.dumps(CONFIG | changes))
    with pytest.raises(error, match=message) as caught:
        convert(source, tmp_path / "out" / "package")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 5}, "num_attention_heads 5 does not divide hidden_size 64"),
        ({"num_key_value_heads": 8}, "num_key_value_heads is 8: it must divide num_attention_heads = 4"),
        ({"num_key_value_heads": 4}, r"k_proj.weight' has shape \[32, 64\]: the configuration demands \[64, 64\]"),
        ({"num_hidden_layers": 1}, r"layers\.1\..* has no place in a llama decoder"),
        ({"num_hidden_layers": 3}, r"layers\.2\..* is missing"),
        ({"num_hidden_layers": 10000}, r"layers\.2\..* is missing"),
        ({"num_hidden_layers": 2**31 - 1}, "num_hidden_layers is 2147483647: the limit is 10000"),
        ({"num_hidden_layers": 2**31}, "num_hidden_layers is 2147483648"),
        ({"vocab_size": 514}, r"has shape \[515, 64\]: the configuration demands \[514, 64\]"),
        ({"vocab_size": 2**31 - 1}, "the configuration demands"),
        ({"hidden_size": 32}, "the configuration demands"),
        ({"intermediate_size": 2**31 - 1}, "the configuration demands"),
        ({"head_dim": 32}, "the configuration demands"),
        ({"head_dim": 2**30}, "head_dim is 1073741824: the limit is 4096"),
        ({"hidden_size": 2**30, "head_dim": None}, "head_dim is 268435456: the limit is 4096"),
        ({"attention_bias": True}, r"q_proj.bias' is missing"),
        ({"model_type": "qwen2"}, r"q_proj.bias' is missing"),
        ({"model_type": "qwen3"}, r"q_norm.weight' is missing|the configuration demands"),
        ({"model_type": "phi3", "rope_scaling": None}, r"qkv_proj.weight' is missing"),
        ({"model_type": "olmo2"}, r"q_norm.weight' is missing"),
        ({"model_type": "bitnet"}, r"sub_norm.weight' is missing"),
        ({"model_type": "qwen2", "num_hidden_layers": 2**31 - 1}, "num_hidden_layers is 2147483647: the limit is"),
        ({"model_type": "smollm3", "num_hidden_layers": 2**31 - 1}, "num_hidden_layers is 2147483647: the limit is"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
        ({"rms_norm_eps": -1}, "rms_norm_eps is -1"),
        ({"rope_theta": 0}, "rope_theta is 0"),
        ({"max_position_embeddings": 0}, "max_position_embeddings is 0"),
    ],
)
def test_sizes_that_contradict_the_weights(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    refuse(tmp_path, CheckpointError, message, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "relu6"}, "hidden_act 'relu6'"),
        (
            {"rope_scaling": {"rope_type": "yarm", "factor": 4}},
            "rope type 'yarm' is not supported; did you mean 'yarn'",
        ),
        ({"model_type": "llama4"}, "model_type 'llama4' is not supported; did you mean 'llama'"),
        ({"num_local_experts": 8}, "num_local_experts is 8: it changes what the model computes"),
        ({"sliding_window": 64}, "sliding_window is 64: it changes what the model computes"),
        ({"layer_types": ["x" * 1000] * 1000}, "layer_types is a list of 1000: it changes"),
        ({"mlp_layers": ["x" * 100000]}, "mlp_layers is .*: it changes"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization method 'awq'"),
        ({"model_type": "lla\nma"}, "model_type"),
        ({"model_type": "x" * 100000}, "model_type"),
        ({"hidden_act": "x" * 100000}, "hidden_act"),
        ({"rope_scaling": {"type": "x" * 100000}}, "rope type"),
        ({"quantization_config": {"quant_method": "x" * 100000}}, "quantization method"),
    ],
)
def test_what_is_not_implemented_is_named(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    refuse(tmp_path, UnsupportedError, message, **changes)


def test_a_context_that_would_fill_the_memory(tmp_path: Path) -> None:
    message = r"max_position_embeddings is 2147483647: .* the rotary tables have \d+ bytes, more than the limit"
    refuse(tmp_path, CheckpointError, message, max_position_embeddings=2**31 - 1)


@pytest.mark.parametrize("head_dim", [514, 520])
def test_heads_that_no_runtime_can_attend_with(tmp_path: Path, head_dim: int) -> None:
    """ONNX Runtime would refuse them only when the package runs."""
    model = TINY["untied_gqa"].__class__(1, CONFIG | {"head_dim": head_dim})
    source = write_checkpoint(tmp_path / "source", model)
    with pytest.raises(UnsupportedError, match=rf"head_dim is {head_dim}: attention takes heads of at most 512"):
        convert(source, tmp_path / "package")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("name", ["lm_head.weight", "model.embed_tokens.weight"])
def test_a_missing_head_or_embedding(tmp_path: Path, name: str) -> None:
    source = write_checkpoint(tmp_path / "source", TINY["untied_gqa"])
    weights = tensors(TINY["untied_gqa"])
    del weights[name]
    save_file(weights, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"'{name}' is missing"):
        convert(source, tmp_path / "package")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_tied_head_of_another_shape(tmp_path: Path) -> None:
    """A tied model may carry its head a second time, but nothing of another family."""
    source = write_checkpoint(tmp_path / "source", TINY["tied_mha"])
    weights = tensors(TINY["tied_mha"])
    weights["lm_head.bias"] = np.zeros(515, np.float32)
    save_file(weights, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"'lm_head.bias' has no place in a llama decoder"):
        convert(source, tmp_path / "package")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_key_value_heads": 4}, r"qkv_proj.weight' has shape \[128, 64\]: the configuration demands \[192, 64\]"),
        ({"intermediate_size": 320}, r"gate_up_proj.weight' has shape \[320, 64\]: .* demands \[640, 64\]"),
    ],
)
def test_fused_matrices_of_other_sizes(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    source = write_family_checkpoint(tmp_path / "source", FAMILY_MODELS["phi3_long"], shapes_of("phi3_long"))
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"num_key_value_heads": 2, "rope_scaling": None} | changes))
    with pytest.raises(CheckpointError, match=message):
        convert(source, tmp_path / "package")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("eos", [515, -1, [2, 515], "2", [[2]], True, 2.0])
def test_end_tokens_that_are_none(tmp_path: Path, eos: object) -> None:
    source = write_checkpoint(tmp_path / "source", TINY["untied_gqa"])
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    with pytest.raises(CheckpointError, match=r"eos_token_id holds .* expected a token id from 0 to 514"):
        convert(source, tmp_path / "package")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_lone_surrogates_in_the_configuration_are_carried(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", TINY["untied_gqa"])
    (source / "config.json").write_text(json.dumps(CONFIG | {"_name_or_path": "\ud800"}))
    convert(source, tmp_path / "package")
    assert json.loads((tmp_path / "package" / "config.json").read_text())["_name_or_path"] == "\ud800"


@pytest.mark.parametrize(
    "changes", [{"num_attention_heads": 5}, {"num_hidden_layers": 2**31 - 1}, {"hidden_act": "mish"}]
)
def test_the_command_line(tmp_path: Path, changes: dict[str, object]) -> None:
    source = write_checkpoint(tmp_path / "source", TINY["untied_gqa"])
    (source / "config.json").write_text(json.dumps(CONFIG | changes))
    assert next(iter(changes)) in refused(source, tmp_path / "out")
