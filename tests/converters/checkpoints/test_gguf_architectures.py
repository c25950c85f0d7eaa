"""Each architecture of GGUF shows itself as transformers has it: names, layouts, values and configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ternary_gguf import floats, write_raw
from tiny_checkpoints import FF, HEAD_DIM, HEADS, HIDDEN, KV_HEADS, LAYERS, write_gguf
from tiny_gguf import POSITIONS, ROWS, SHAPES, gguf_tensors, metadata, tensors, write_tiny

from bitnet_onnx.converters.checkpoints import open_checkpoint
from bitnet_onnx.converters.checkpoints._gguf_architectures import ARCHITECTURES
from bitnet_onnx.errors import CheckpointError, UnsupportedError

SLIDING, FULL = "sliding_attention", "full_attention"


def config(path: Path, architecture: str, **changes: Any) -> dict[str, Any]:
    """The configuration of a file that holds little more than metadata."""
    width = changes.get("embedding_length", HIDDEN)
    write_raw(
        path / "x.gguf",
        metadata(architecture, **changes),
        [floats("token_embd.weight", np.ones((ROWS, width), np.float32))],
        architecture=architecture,
    )
    with open_checkpoint(path / "x.gguf") as checkpoint:
        return dict(checkpoint.config)


def test_every_architecture_is_tested() -> None:
    assert set(SHAPES) == set(ARCHITECTURES)


@pytest.mark.parametrize("architecture", SHAPES)
def test_names_shapes_and_values(tmp_path: Path, architecture: str) -> None:
    values = write_tiny(tmp_path / "x.gguf", architecture)
    with open_checkpoint(tmp_path / "x.gguf") as checkpoint:
        assert {name: info.shape for name, info in checkpoint.tensors.items()} == {
            name: array.shape for name, array in values.items()
        }
        for name, array in values.items():
            assert checkpoint.tensors[name].name == name
            np.testing.assert_array_equal(checkpoint.read(name), array)
            if array.ndim == 2:
                for start, stop in ((0, len(array)), (3, 3), (5, 29), (17, 18)):
                    np.testing.assert_array_equal(checkpoint.read_rows(name, start, stop), array[start:stop])


def test_common_keys(tmp_path: Path) -> None:
    expected = {
        "vocab_size": ROWS,
        "hidden_size": HIDDEN,
        "intermediate_size": FF,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "max_position_embeddings": POSITIONS,
        "torch_dtype": "float32",
    }
    gpt2 = {
        "hidden_size": "n_embd",
        "intermediate_size": "n_inner",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
    }
    for architecture in SHAPES:
        found = config(tmp_path, architecture)
        assert found["model_type"] == ARCHITECTURES[architecture].model_type
        for key, value in expected.items():
            assert found[gpt2.get(key, key) if architecture == "gpt2" else key] == value, (architecture, key)
        if architecture not in {"gpt2", "gptneox", "phi2"}:
            assert found["num_key_value_heads"] == KV_HEADS
            assert found["head_dim"] == HEAD_DIM
            assert found["rms_norm_eps"] == pytest.approx(1e-5)


def test_activations(tmp_path: Path) -> None:
    assert config(tmp_path, "bitnet")["hidden_act"] == "silu"
    assert config(tmp_path, "bitnet-b1.58")["hidden_act"] == "relu2"
    assert config(tmp_path, "gpt2")["activation_function"] == "gelu_new"
    assert config(tmp_path, "phi2")["hidden_act"] == "gelu_new"
    assert config(tmp_path, "gptneox")["hidden_act"] == "gelu"
    for architecture in ("gemma", "gemma2", "gemma3"):
        found = config(tmp_path, architecture)
        assert found["hidden_act"] == found["hidden_activation"] == "gelu_pytorch_tanh"


def test_gemma2(tmp_path: Path) -> None:
    found = config(tmp_path, "gemma2", block_count=5)
    assert found["layer_types"] == [SLIDING, FULL, SLIDING, FULL, SLIDING]
    assert (found["sliding_window"], found["query_pre_attn_scalar"]) == (32, HEAD_DIM)
    assert (found["attn_logit_softcapping"], found["final_logit_softcapping"]) == (40.0, 20.0)
    absent = {"attn_logit_softcapping": None, "final_logit_softcapping": None, "attention__sliding_window": None}
    found = config(tmp_path, "gemma2", block_count=46, **absent)  # 27B: hidden size by heads
    assert found["query_pre_attn_scalar"] == HIDDEN // HEADS
    assert (found["attn_logit_softcapping"], found["final_logit_softcapping"]) == (50.0, 30.0)
    assert found["sliding_window"] == 4096


def test_gemma3(tmp_path: Path) -> None:
    found = config(tmp_path, "gemma3", block_count=7, rope__scaling__type="linear", rope__scaling__factor=8.0)
    assert found["layer_types"] == [SLIDING] * 5 + [FULL, SLIDING]
    assert (found["rope_theta"], found["rope_local_base_freq"]) == (1000000.0, 10000.0)
    assert found["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    assert "final_logit_softcapping" not in found
    assert config(tmp_path, "gemma3", rope__freq_base_swa=20000.0)["rope_local_base_freq"] == 20000.0
    assert config(tmp_path, "gemma3", attention__sliding_window=None)["layer_types"] == [FULL] * LAYERS
    found = config(tmp_path, "gemma3", block_count=4, attention__sliding_window_pattern=2)
    assert found["layer_types"] == [SLIDING, FULL] * 2
    found = config(tmp_path, "gemma3", block_count=62, attention__head_count=2, final_logit_softcapping=30.0)
    assert found["query_pre_attn_scalar"] == HIDDEN // 2
    assert found["final_logit_softcapping"] == 30.0
    with pytest.raises(UnsupportedError, match="rope scaling 'yarn' in a gemma3 model"):
        config(tmp_path, "gemma3", rope__scaling__type="yarn", rope__scaling__factor=8.0)
    with pytest.raises(CheckpointError, match="sliding_window_pattern is 0"):
        config(tmp_path, "gemma3", attention__sliding_window_pattern=0)


def test_window_patterns_layer_by_layer(tmp_path: Path) -> None:
    values = gguf_tensors("gemma3", tensors("gemma3"))
    for pattern, expected in (([False, True], [FULL, SLIDING]), ([True] * 3, None), ([1, 0], None)):
        pairs = metadata("gemma3", attention__sliding_window_pattern=pattern)
        path = write_gguf(tmp_path / "x.gguf", pairs, values, architecture="gemma3")
        if expected is None:
            with pytest.raises(CheckpointError, match=r"has 3 entries for 2 layers|a list of booleans"):
                open_checkpoint(path)
        else:
            with open_checkpoint(path) as checkpoint:
                assert checkpoint.config["layer_types"] == expected


def test_phi3(tmp_path: Path) -> None:
    found = config(tmp_path, "phi3")
    assert found["sliding_window"] is None
    assert "rope_scaling" not in found
    assert config(tmp_path, "phi3", attention__sliding_window=2047)["sliding_window"] == 2047
    found = config(tmp_path, "phi3", rope__dimension_count=12)  # Phi-4-mini
    assert found["partial_rotary_factor"] == 0.75


def test_longrope(tmp_path: Path) -> None:
    long, short = np.linspace(1, 4, 8, dtype=np.float32), np.ones(8, np.float32)
    both = {"rope_factors_long.weight": long, "rope_factors_short.weight": short}
    changes = {"context_length": 512, "rope__scaling__attn_factor": 1.25}
    write_tiny(tmp_path / "x.gguf", "phi3", extra=both, **changes)
    with open_checkpoint(tmp_path / "x.gguf") as checkpoint:
        assert checkpoint.config["original_max_position_embeddings"] == POSITIONS
        assert checkpoint.config["max_position_embeddings"] == 512
        assert checkpoint.config["rope_scaling"] == {
            "rope_type": "longrope",
            "long_factor": long.tolist(),
            "short_factor": short.tolist(),
            "attention_factor": 1.25,
        }
        assert not any("rope" in name for name in checkpoint.tensors)
    for extra, message in (
        ({"rope_factors_long.weight": long}, r"no tensor rope_factors_short\.weight"),
        (both | {"rope_factors_short.weight": short[:4]}, r"shape \[4\], expected \[8\]"),
    ):
        write_tiny(tmp_path / "x.gguf", "phi3", extra=extra)
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(tmp_path / "x.gguf")
    write_tiny(tmp_path / "x.gguf", "phi3", extra=both, rope__scaling__type="yarn")
    with pytest.raises(CheckpointError, match="not longrope"):
        open_checkpoint(tmp_path / "x.gguf")


def test_granite(tmp_path: Path) -> None:
    found = config(tmp_path, "granite")
    assert [found[f"{name}_multiplier"] for name in ("attention", "embedding", "residual")] == [0.125, 12.0, 0.25]
    assert found["logits_scaling"] == 8.0
    assert config(tmp_path, "granite", attention__scale=None)["attention_multiplier"] == HEAD_DIM**-0.5
    with pytest.raises(UnsupportedError, match=r"granite\.rope\.scaling\.finetuned is false"):
        config(tmp_path, "granite", rope__scaling__finetuned=False)
    with pytest.raises(CheckpointError, match=r"no granite\.logit_scale"):
        config(tmp_path, "granite", logit_scale=None)


def test_smollm3_has_layers_without_rotation(tmp_path: Path) -> None:
    assert config(tmp_path, "smollm3", block_count=9)["no_rope_layers"] == [1, 1, 1, 0, 1, 1, 1, 0, 1]


def test_partial_rotation_comes_back_as_whole_features(tmp_path: Path) -> None:
    found = config(tmp_path, "gptneox", use_parallel_residual=False)
    assert (found["rotary_pct"], found["rotary_emb_base"], found["use_parallel_residual"]) == (0.25, 10000.0, False)
    assert config(tmp_path, "phi2")["partial_rotary_factor"] == 0.5
    for dim in range(2, 97, 2):
        sizes = {"embedding_length": 4 * 96, "rope__dimension_count": dim}
        assert int(96 * config(tmp_path, "phi2", **sizes)["partial_rotary_factor"]) == dim
    for dim in (0, 3, 18):
        with pytest.raises(CheckpointError, match=f"dimension_count {dim}, but heads of 16"):
            config(tmp_path, "phi2", rope__dimension_count=dim)


def test_yarn_factors(tmp_path: Path) -> None:
    yarn = {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0}
    assert "attention_factor" not in config(tmp_path, "qwen2", **yarn)["rope_scaling"]
    found = config(tmp_path, "qwen2", **yarn, rope__scaling__yarn_attn_factor=1.5)["rope_scaling"]
    assert found["attention_factor"] == 1.5
    found = config(tmp_path, "qwen2", **yarn, rope__scaling__attn_factor=2.0)["rope_scaling"]
    assert found["attention_factor"] == pytest.approx(2 * (0.1 * np.log(4) + 1))


def test_old_phi2_files_hold_q_k_and_v_in_one(tmp_path: Path) -> None:
    values = tensors("phi2")
    stored = gguf_tensors("phi2", values)
    for layer in range(LAYERS):
        for kind in ("weight", "bias"):
            parts = [stored.pop(f"blk.{layer}.attn_{letter}.{kind}") for letter in "qkv"]
            stored[f"blk.{layer}.attn_qkv.{kind}"] = np.concatenate(parts)
    path = write_raw(
        tmp_path / "x.gguf",
        metadata("phi2"),
        [floats(name, array) for name, array in stored.items()],
        architecture="phi2",
    )
    with open_checkpoint(path) as checkpoint:
        assert set(checkpoint.tensors) == set(values)
        for name, array in values.items():
            np.testing.assert_array_equal(checkpoint.read(name), array)


# --- refusals ------------------------------------------------------------------------------------------------


def test_unknown_names_come_with_the_nearest_known(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "x.gguf", {}, [floats("a", np.ones(2))], architecture="olmo")
    with pytest.raises(UnsupportedError, match=r"'olmo' is not read from GGUF; the nearest known is 'olmo2'"):
        open_checkpoint(path)
    with pytest.raises(UnsupportedError, match=r"nearest known is 'qwen2\.rope\.freq_base'"):
        config(tmp_path, "qwen2", rope__freq_bass=1.0)
    write_tiny(tmp_path / "x.gguf", "qwen3", extra={"blk.0.attn_qnorm.weight": np.ones(16, np.float32)})
    with pytest.raises(UnsupportedError, match=r"in a qwen3 model; the nearest known is 'blk\.0\.attn_q_norm\.weight'"):
        open_checkpoint(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("architecture", "changes", "error", "message"),
    [
        ("olmo2", {"attention__sliding_window": 4096}, UnsupportedError, "sliding_window"),
        ("qwen2", {"attention__causal": False}, UnsupportedError, "not a decoder"),
        ("qwen2", {"pooling_type": 1}, UnsupportedError, "pooling_type"),
        ("qwen3", {"expert_count": 8}, UnsupportedError, "mixtures of experts"),
        ("llama", {"block_count": 10_001}, CheckpointError, "block_count is 10001, the limit is 10000"),
        ("gemma3", {"block_count": 2**31 - 1}, CheckpointError, "block_count"),
        ("smollm3", {"block_count": 2**31 - 1}, CheckpointError, "block_count"),
        ("gpt2", {"rope__scaling__type": "yarn", "rope__scaling__factor": -1.0}, CheckpointError, "above zero"),
    ],
)
def test_metadata_that_changes_the_model(tmp_path: Path, architecture, changes, error, message) -> None:
    with pytest.raises(error, match=message):
        config(tmp_path, architecture, **changes)


@pytest.mark.parametrize(
    ("architecture", "extra", "message"),
    [
        ("gptneox", {"blk.0.attn_qkv.weight": np.ones((100, HIDDEN))}, "not q, k and v of 4 heads of 16 rows"),
        ("phi2", {"blk.0.attn_qkv.weight": np.ones((100, HIDDEN))}, "not q, k and v of 4 and 4 heads"),
        ("phi2", {"blk.0.attn_qkv.bias": np.ones(192)}, "which is there already"),
        ("bitnet", {"blk.0.attn_q.scale": np.ones(2)}, r"shape \[2\], expected \[1\]"),
        ("bitnet", {"blk.0.attn_q.scale": np.zeros(1)}, "holds 0.0, expected above zero"),
        ("bitnet", {"blk.0.attn_q.scale": np.full(1, np.nan)}, "holds nan"),
        ("bitnet", {"blk.5.attn_q.scale": np.ones(1)}, "block_count is 2"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path: Path, architecture: str, extra: dict[str, Any], message: str) -> None:
    arrays = {name: array.astype(np.float32) for name, array in extra.items()}
    write_tiny(tmp_path / "x.gguf", architecture, extra=arrays)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / "x.gguf")


def test_scale_without_a_matrix(tmp_path: Path) -> None:
    stored = [floats("token_embd.weight", np.ones((ROWS, HIDDEN))), floats("blk.0.attn_q.scale", np.ones(1))]
    write_raw(tmp_path / "x.gguf", metadata("bitnet"), stored, architecture="bitnet")
    with pytest.raises(CheckpointError, match="scales nothing"):
        open_checkpoint(tmp_path / "x.gguf")
