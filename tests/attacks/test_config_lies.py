"""Classes 10, 12 and 16: configurations that lie, weights that are none, and sizes beyond all bounds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from package_logits import PackageLogits
from safetensors.numpy import save_file
from tiny_models import TINY, tensors, write_checkpoint

from bitnet_onnx.converters import convert
from bitnet_onnx.converters.families import Config, find
from bitnet_onnx.errors import CheckpointError, InputError, UnsupportedError
from bitnet_onnx.policy import Policy, Precision, Weights

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
        ({"num_hidden_layers": 2**31 - 1}, r"layers\.2\..* is missing"),
        ({"num_hidden_layers": 2**31}, "num_hidden_layers is 2147483648"),
        ({"vocab_size": 514}, r"has shape \[515, 64\]: the configuration demands \[514, 64\]"),
        ({"vocab_size": 2**31 - 1}, "the configuration demands"),
        ({"hidden_size": 32}, "the configuration demands"),
        ({"intermediate_size": 2**31 - 1}, "the configuration demands"),
        ({"head_dim": 32}, "the configuration demands"),
        ({"head_dim": 2**30}, "head_dim is 1073741824: the limit is 4096"),
        ({"hidden_size": 2**30, "head_dim": None}, "head_dim is 268435456: the limit is 4096"),
        ({"attention_bias": True}, r"q_proj.bias' is missing"),
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
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "rope type 'yarn'"),
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


@pytest.mark.parametrize("head_dim", [513, 520])
def test_heads_that_no_runtime_can_attend_with(tmp_path: Path, head_dim: int) -> None:
    """ONNX Runtime would refuse them only when the package runs."""
    model = TINY["untied_gqa"].__class__(1, CONFIG | {"head_dim": head_dim})
    source = write_checkpoint(tmp_path / "source", model)
    with pytest.raises(UnsupportedError, match=rf"head_dim is {head_dim}: attention takes heads of at most 512"):
        convert(source, tmp_path / "package")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_missing_head(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", TINY["untied_gqa"])
    weights = tensors(TINY["untied_gqa"])
    del weights["lm_head.weight"]
    save_file(weights, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"'lm_head.weight' is missing"):
        convert(source, tmp_path / "package")


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


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight", "model.norm.weight"]
)
def test_weights_that_are_not_finite(tmp_path: Path, name: str, value: float) -> None:
    source = write_checkpoint(tmp_path / "source", TINY["untied_gqa"])
    weights = tensors(TINY["untied_gqa"])
    weights[name].flat[7] = value
    save_file(weights, source / "model.safetensors")
    for policy in (Policy(), Policy(Precision(Weights.FLOAT32), Precision(Weights.FLOAT32))):
        with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
            convert(source, tmp_path / "package", policy=policy)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("weights", list(Weights))
def test_weights_of_zeros_and_denormals(tmp_path: Path, weights: Weights) -> None:
    source = write_checkpoint(tmp_path / "source", TINY["untied_gqa"])
    content = tensors(TINY["untied_gqa"])
    for index, name in enumerate(name for name in content if "proj" in name):
        content[name][:] = (0.0, 1e-45, 1e-39)[index % 3]
    save_file(content, source / "model.safetensors")
    convert(source, tmp_path / "package", policy=Policy(Precision(weights, 0)))
    logits = PackageLogits(tmp_path / "package")(np.array([1, 2, 3]))
    assert np.isfinite(logits).all()
    assert logits.any()


@pytest.mark.parametrize("weights", [Weights.AUTO, Weights.INT8, Weights.TERNARY])
def test_the_largest_weights_still_give_a_sound_manifest(tmp_path: Path, weights: Weights) -> None:
    source = write_checkpoint(tmp_path / "source", TINY["untied_gqa"])
    content = tensors(TINY["untied_gqa"])
    content["model.layers.0.mlp.up_proj.weight"] *= np.float32(5e37)
    save_file(content, source / "model.safetensors")
    convert(source, tmp_path / "package", policy=Policy(Precision(weights)))
    text = (tmp_path / "package" / "bitnet_onnx.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text


def test_a_row_too_long_for_exact_sums(tmp_path: Path) -> None:
    """65793 columns of 8 bits could overflow 32 bits: refused, with the numbers."""
    changes = {"intermediate_size": 65800, "num_hidden_layers": 1, "hidden_size": 8, "head_dim": 16}
    model = TINY["untied_gqa"].__class__(1, CONFIG | changes)
    source = write_checkpoint(tmp_path / "source", model)
    with pytest.raises(InputError, match="in_features 65800 with 8-bit weights can overflow a 32-bit sum"):
        convert(source, tmp_path / "package", policy=Policy(Precision(Weights.INT8, 0)))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_sizes_beyond_4_gib_are_arithmetic_only() -> None:
    """A specification of any size is described without allocating: 200 G parameters, tensors above 4 GiB."""
    config = Config(
        dict(CONFIG)
        | {
            "hidden_size": 65536,
            "num_attention_heads": 512,
            "intermediate_size": 2**20,
            "vocab_size": 2**20,
            "num_hidden_layers": 1,
        }
    )
    shapes = dict(find(config).spec(config).tensors())
    assert shapes["layers.0.mlp.up_proj.weight"] == (2**20, 65536)
