"""GGUF files against the official writer and its quantizers."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from tiny_checkpoints import (
    FF,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    bpe_metadata,
    llama_metadata,
    llama_tensors,
    write_gguf,
)
from tiny_gguf import to_pairs

from bitnet_onnx.converters.checkpoints._types import GGUF_TYPES
from bitnet_onnx.errors import CheckpointError, UnsupportedError

ROWS = len(bpe_metadata()["tokenizer.ggml.tokens"])


def tiny(path: Path, *, untied: bool = False, extra: dict[str, Any] | None = None, **changes: Any) -> Path:
    metadata = llama_metadata(**changes) | bpe_metadata()
    return write_gguf(path / "tiny.gguf", metadata, llama_tensors(ROWS, untied=untied) | (extra or {}))


def test_type_table_agrees_with_the_package() -> None:
    for number, kind in GGUF_TYPES.items():
        assert Type(number).name == kind.name
        assert gguf.GGML_QUANT_SIZES[Type(number)] == (kind.block, kind.nbytes)


def test_config(opened, tmp_path: Path) -> None:
    checkpoint = opened(tiny(tmp_path))
    assert checkpoint.format == "gguf"
    assert checkpoint.name == "tiny"
    assert checkpoint.config == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": FF,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": ROWS,
        "rms_norm_eps": float(np.float32(1e-5)),
        "rope_theta": 10000.0,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "float32",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    assert checkpoint.generation_config == {"eos_token_id": [2, 0], "bos_token_id": 1, "pad_token_id": 2}
    assert not opened(tiny(tmp_path, untied=True)).config["tie_word_embeddings"]


def test_names_and_values(opened, tmp_path: Path) -> None:
    tensors = llama_tensors(ROWS, untied=True)
    checkpoint = opened(tiny(tmp_path, untied=True))
    pairs = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
        "model.layers.1.input_layernorm.weight": "blk.1.attn_norm.weight",
        "model.layers.0.self_attn.v_proj.weight": "blk.0.attn_v.weight",
        "model.layers.0.self_attn.o_proj.weight": "blk.0.attn_output.weight",
        "model.layers.1.post_attention_layernorm.weight": "blk.1.ffn_norm.weight",
        "model.layers.1.mlp.gate_proj.weight": "blk.1.ffn_gate.weight",
        "model.layers.1.mlp.up_proj.weight": "blk.1.ffn_up.weight",
        "model.layers.1.mlp.down_proj.weight": "blk.1.ffn_down.weight",
    }
    assert len(checkpoint.tensors) == len(tensors)
    for name, stored in pairs.items():
        assert checkpoint.tensors[name].shape == tensors[stored].shape
        np.testing.assert_array_equal(checkpoint.read(name), tensors[stored])


def test_q_and_k_rows_are_unpaired(opened, tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    tensors = llama_tensors(ROWS)
    expected: dict[str, np.ndarray] = {}
    for letter, heads in (("q", HEADS), ("k", KV_HEADS)):
        weight = random.standard_normal((heads * HEAD_DIM, HIDDEN)).astype(np.float32)
        bias = random.standard_normal(heads * HEAD_DIM).astype(np.float32)
        tensors[f"blk.0.attn_{letter}.weight"] = np.concatenate([to_pairs(head) for head in np.split(weight, heads)])
        tensors[f"blk.0.attn_{letter}.bias"] = np.concatenate([to_pairs(head) for head in np.split(bias, heads)])
        expected[f"model.layers.0.self_attn.{letter}_proj.weight"] = weight
        expected[f"model.layers.0.self_attn.{letter}_proj.bias"] = bias
    checkpoint = opened(write_gguf(tmp_path / "x.gguf", llama_metadata() | bpe_metadata(), tensors))
    assert checkpoint.config["attention_bias"] is True
    for name, values in expected.items():
        np.testing.assert_array_equal(checkpoint.read(name), values)
    weight = expected["model.layers.0.self_attn.q_proj.weight"]
    for start, stop in ((0, 64), (0, 0), (5, 6), (15, 17), (16, 32), (40, 64)):
        rows = checkpoint.read_rows("model.layers.0.self_attn.q_proj.weight", start, stop)
        np.testing.assert_array_equal(rows, weight[start:stop])


@pytest.mark.parametrize(
    "kind", [Type.F16, Type.BF16, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0, Type.TQ1_0, Type.TQ2_0]
)
def test_stored_types(opened, tmp_path: Path, kind: Type) -> None:
    values = np.random.default_rng(1).standard_normal((ROWS, 256)).astype(np.float32)
    tensors = {"token_embd.weight": values}
    changes = {"llama__embedding_length": 256, "llama__block_count": 0, "llama__rope__dimension_count": 64}
    path = write_gguf(
        tmp_path / "x.gguf", llama_metadata(**changes) | bpe_metadata(), tensors, {"token_embd.weight": kind}
    )
    reference = gguf.quants.dequantize(gguf.quants.quantize(values, kind), kind).reshape(values.shape)
    checkpoint = opened(path)
    assert checkpoint.tensors["model.embed_tokens.weight"].dtype == kind.name
    np.testing.assert_array_equal(checkpoint.read("model.embed_tokens.weight"), reference)
    rows = checkpoint.read_rows("model.embed_tokens.weight", 100, 140)
    np.testing.assert_array_equal(rows, reference[100:140])


def test_every_block_type_decodes_or_reports_values_that_are_not_finite(opened, tmp_path: Path) -> None:
    # The package cannot quantize all types; arbitrary bytes are legal blocks for those that it reads.
    random = np.random.default_rng(5)
    for kind in (kind for kind in GGUF_TYPES.values() if kind.block > 1):
        raw = random.integers(0, 60, (ROWS, 256 // kind.block * kind.nbytes), dtype=np.uint8)
        path = tmp_path / f"{kind.name}.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        for key, value in llama_metadata(
            llama__embedding_length=256, llama__block_count=0, llama__rope__dimension_count=64, general__name=None
        ).items():
            writer.add_float32(key, value) if isinstance(value, float) else writer.add_uint32(key, value)
        writer.add_tensor("token_embd.weight", raw, raw_dtype=Type[kind.name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        checkpoint = opened(path)
        reference = gguf.quants.dequantize(raw, Type[kind.name])
        np.testing.assert_array_equal(checkpoint.read("model.embed_tokens.weight"), reference)
        assert checkpoint.name == kind.name


def test_float64_and_integers(opened, tmp_path: Path) -> None:
    values = np.random.default_rng(1).standard_normal((40, HIDDEN))
    tensors = {"token_embd.weight": values, "output.weight": np.arange(40 * HIDDEN).reshape(40, HIDDEN).astype(np.int8)}
    checkpoint = opened(write_gguf(tmp_path / "x.gguf", llama_metadata(), tensors))
    assert checkpoint.tensors["model.embed_tokens.weight"].dtype == "F64"
    np.testing.assert_array_equal(checkpoint.read("model.embed_tokens.weight"), values.astype(np.float32))
    with pytest.raises(UnsupportedError, match="is I8; weights are read from"):
        checkpoint.read("lm_head.weight")


def test_rope_scaling(opened, tmp_path: Path) -> None:
    def scaling(**changes: Any) -> object:
        changes = {key.replace("scaling_", "scaling__"): value for key, value in changes.items()}
        return opened(tiny(tmp_path, **{f"llama__rope__{k}": v for k, v in changes.items()})).config.get("rope_scaling")

    assert scaling(scaling_type="none") is None
    assert scaling(scale_linear=4.0) == {"rope_type": "linear", "factor": 4.0}
    assert scaling(scaling_type="linear", scaling_factor=2.0) == {"rope_type": "linear", "factor": 2.0}
    yarn = {"scaling_type": "yarn", "scaling_factor": 8.0, "scaling_original_context_length": 64}
    assert scaling(**yarn, scaling_yarn_beta_fast=16.0) == {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 16.0,
    }
    with pytest.raises(UnsupportedError, match="'longrope' is not one of none, linear, yarn"):
        scaling(scaling_type="longrope")


def test_rope_factors_of_llama_3(opened, tmp_path: Path) -> None:
    factors = np.linspace(1, 8, HEAD_DIM // 2).astype(np.float32)
    checkpoint = opened(tiny(tmp_path, extra={"rope_freqs.weight": factors}))
    assert checkpoint.config["rope_factors"] == factors.tolist()
    assert not any("rope" in name for name in checkpoint.tensors)
    for bad, message in ((np.zeros(8, np.float32), "above zero"), (np.ones(4, np.float32), "shape")):
        with pytest.raises(CheckpointError, match=message):
            opened(tiny(tmp_path, extra={"rope_freqs.weight": bad}))


def test_every_end_token_is_collected_once(opened, tmp_path: Path) -> None:
    metadata = llama_metadata() | bpe_metadata() | {"tokenizer.ggml.eot_token_id": 7, "tokenizer.ggml.eom_token_id": 2}
    checkpoint = opened(write_gguf(tmp_path / "x.gguf", metadata, llama_tensors(ROWS)))
    # eos, then eot; eom is the same token; <|endoftext|> by its text; <|im_start|> begins a turn.
    assert checkpoint.generation_config["eos_token_id"] == [2, 7, 0]


def test_a_file_without_tokenizer(opened, tmp_path: Path) -> None:
    checkpoint = opened(write_gguf(tmp_path / "x.gguf", llama_metadata(general__name=None), llama_tensors(40)))
    assert checkpoint.config["vocab_size"] == 40
    assert "eos_token_id" not in checkpoint.config
    assert checkpoint.generation_config == {}
    assert checkpoint.name == "x"
    with pytest.raises(UnsupportedError, match="tokenizer"):
        checkpoint.tokenizer()


def test_a_directory_with_one_gguf(opened, tmp_path: Path) -> None:
    tiny(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert opened(tmp_path).format == "gguf"


def test_metadata_types_of_the_writer(opened, tmp_path: Path) -> None:
    """Every value type is read past, wherever it stands."""
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for kind in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"):
        getattr(writer, f"add_{kind}")(f"x.{kind}", 7)
    writer.add_float64("x.float64", 0.5)
    writer.add_bool("x.bool", True)
    writer.add_array("x.bools", [True, False])
    writer.add_array("x.floats", [0.5, 1.5])
    writer.add_custom_alignment(64)
    for key, value in llama_metadata(llama__block_count=0, general__name="a\x1b[31m\nb").items():
        {float: writer.add_float32, int: writer.add_uint32, str: writer.add_string}[type(value)](key, value)
    writer.add_tensor("token_embd.weight", np.ones((3, HIDDEN), np.float32))
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = opened(path)
    assert checkpoint.name == "a[31mb"
    np.testing.assert_array_equal(checkpoint.read("model.norm.weight"), np.ones(HIDDEN))


def test_version_2_is_read(opened, tmp_path: Path) -> None:
    path = tiny(tmp_path)
    data = bytearray(path.read_bytes())
    data[4:8] = struct.pack("<I", 2)
    path.write_bytes(data)
    assert opened(path).config["hidden_size"] == HIDDEN


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"llama__attention__head_count": 0}, CheckpointError, "head_count is 0"),
        ({"llama__attention__head_count": 7}, CheckpointError, "7 heads do not divide"),
        ({"llama__attention__head_count": 64}, CheckpointError, "heads of 1 elements"),
        ({"llama__attention__key_length": 48}, UnsupportedError, "dimension_count 16, but heads of 48"),
        ({"llama__attention__value_length": 8}, UnsupportedError, "value_length"),
        ({"llama__rope__dimension_count": 8}, UnsupportedError, "dimension_count 8"),
        ({"llama__vocab_size": 5}, CheckpointError, "vocab_size says 5"),
        ({"llama__embedding_length": None}, CheckpointError, "no llama.embedding_length"),
        ({"llama__embedding_length": "64"}, CheckpointError, "expected an integer"),
        ({"llama__block_count": 1}, CheckpointError, "block_count is 1"),
        ({"llama__attention__layer_norm_rms_epsilon": 0.0}, CheckpointError, "above zero"),
        ({"llama__attention__layer_norm_rms_epsilon": float("nan")}, CheckpointError, "above zero"),
        ({"llama__rope__freq_base": True}, CheckpointError, "above zero"),
        ({"llama__expert_count": 8}, UnsupportedError, "mixtures of experts"),
        ({"llama__attention__sliding_window": 4096}, UnsupportedError, "sliding_window"),
        ({"split__count": 3}, CheckpointError, r"one of 3 parts .* NAME-00001-of-00003\.gguf"),
    ],
)
def test_metadata_that_does_not_fit(opened, tmp_path: Path, changes, error, message) -> None:
    path = tiny(tmp_path, **changes)
    with pytest.raises(error, match=message):
        opened(path)


def test_key_length_other_than_hidden_by_heads(opened, tmp_path: Path) -> None:
    changes = {"llama__attention__key_length": 32, "llama__rope__dimension_count": 32}
    checkpoint = opened(tiny(tmp_path, llama__attention__value_length=32, **changes))
    assert checkpoint.config["head_dim"] == 32


def test_rows_that_are_not_whole_heads(opened, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"attn_q\.weight'.* is not whole heads of 16"):
        opened(tiny(tmp_path, extra={"blk.0.attn_q.weight": np.zeros((60, HIDDEN), np.float32)}))


@pytest.mark.parametrize(
    "name", ["blk.0.ffn_gate_exps.weight", "blk.00.attn_q.weight", "blk.0.attn_q.scale", "v.patch_embd.weight"]
)
def test_unknown_tensors_are_refused(opened, tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsupportedError, match="is not known in a llama model"):
        opened(tiny(tmp_path, extra={name: np.zeros((32, HIDDEN), np.float32)}))


def test_missing_embedding(opened, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", llama_metadata(), {"output_norm.weight": np.ones(HIDDEN, np.float32)})
    with pytest.raises(CheckpointError, match=r"no matrix token_embd\.weight"):
        opened(path)


def test_unknown_architecture(opened, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", {}, {"a": np.ones(2, np.float32)}, architecture="mamba")
    with pytest.raises(UnsupportedError, match=r"architecture 'mamba' is not read from GGUF.*known: bitnet, .*llama"):
        opened(path)


def test_values_that_are_not_finite(opened, tmp_path: Path) -> None:
    values = np.zeros((8, HIDDEN), np.float32)
    values[3, 5] = np.nan
    path = write_gguf(tmp_path / "x.gguf", llama_metadata(), {"token_embd.weight": values})
    checkpoint = opened(path)
    with pytest.raises(CheckpointError, match=r"'model\.embed_tokens\.weight' holds nan at element 197"):
        checkpoint.read("model.embed_tokens.weight")
