"""Tiny random decoders: the same weights on every machine, written as a Hugging Face directory without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

PROMPT_LENGTHS = (1, 7, 200)
#: Columns of the vocabulary whose logits golden files hold.
COLUMNS = 64
TOLERANCE = 1e-3


@dataclass(frozen=True)
class TinyModel:
    seed: int
    config: Mapping[str, object]
    options: Mapping[str, object] = field(default_factory=dict)


_BASE = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 515,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

TINY = {
    "untied_gqa": TinyModel(
        1,
        _BASE
        | {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "tied_mha": TinyModel(2, _BASE | {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    "biased_mqa": TinyModel(
        3,
        _BASE
        | {
            "hidden_size": 80,
            "num_attention_heads": 5,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "attention_bias": True,
            "mlp_bias": True,
            "rms_norm_eps": 1e-6,
            "rope_scaling": {"rope_type": "linear", "factor": 2.5},
        },
    ),
    "bitnet": TinyModel(
        4,
        _BASE
        | {
            "architectures": ["BitNetForCausalLM"],
            "model_type": "bitnet",
            "hidden_act": "relu2",
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
        },
    ),
}


def tensors(model: TinyModel) -> dict[str, np.ndarray]:
    """Weights of a size that keeps activations near one, so that logits differ by several units."""
    rng = np.random.default_rng(model.seed)
    c = model.config
    hidden, inner, vocab = c["hidden_size"], c["intermediate_size"], c["vocab_size"]
    head_dim = c.get("head_dim", hidden // c["num_attention_heads"])
    attention, key_value = c["num_attention_heads"] * head_dim, c["num_key_value_heads"] * head_dim

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (rng.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)

    def norm(width: int = hidden) -> np.ndarray:
        return (1 + 0.2 * rng.standard_normal(width)).astype(np.float32)

    result = {"model.embed_tokens.weight": rng.standard_normal((vocab, hidden)).astype(np.float32)}
    for index in range(c["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        shapes = {
            "self_attn.q_proj": (attention, hidden),
            "self_attn.k_proj": (key_value, hidden),
            "self_attn.v_proj": (key_value, hidden),
            "self_attn.o_proj": (hidden, attention),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        for name, (rows, columns) in shapes.items():
            result[f"{layer}.{name}.weight"] = matrix(rows, columns)
            if c.get("attention_bias" if "attn" in name else "mlp_bias"):
                result[f"{layer}.{name}.bias"] = rng.standard_normal(rows).astype(np.float32) * np.float32(0.1)
        result[f"{layer}.input_layernorm.weight"] = norm()
        result[f"{layer}.post_attention_layernorm.weight"] = norm()
        if c["model_type"] == "bitnet":
            result[f"{layer}.self_attn.attn_sub_norm.weight"] = norm(attention)
            result[f"{layer}.mlp.ffn_sub_norm.weight"] = norm(inner)
    result["model.norm.weight"] = norm()
    if not c["tie_word_embeddings"]:
        result["lm_head.weight"] = matrix(vocab, hidden)
    return result


def write_checkpoint(directory: Path, model: TinyModel) -> Path:
    """A complete Hugging Face directory with one safetensors file and a byte-level tokenizer."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors(model), directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(model.config))
    (directory / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}))
    tokenizer(model.config["vocab_size"]).save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"})
    )
    return directory


def tokenizer(vocab_size: int) -> Tokenizer:
    """Bytes, three special tokens, and unused entries up to the vocabulary's size."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<unk>", "<s>", "</s>", *alphabet]
    names += [f"<unused{index}>" for index in range(vocab_size - len(names))]
    result = Tokenizer(models.BPE(vocab={name: index for index, name in enumerate(names)}, merges=[]))
    result.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    result.decoder = decoders.ByteLevel()
    result.add_special_tokens(["<unk>", "<s>", "</s>"])
    return result


def prompts(vocab_size: int, lengths: Sequence[int] = PROMPT_LENGTHS) -> list[np.ndarray]:
    """Random prompts of each length."""
    rng = np.random.default_rng(99)
    return [rng.integers(0, vocab_size, length) for length in lengths]


def columns(vocab_size: int) -> np.ndarray:
    """The vocabulary columns of the golden files."""
    return np.sort(np.random.default_rng(7).choice(vocab_size, COLUMNS, replace=False))
