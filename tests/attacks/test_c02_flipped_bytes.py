"""Class 2 and beyond: every byte of a small header changed in ten ways and cut off.

What is promised of a changed file, which is either refused with one line or opened:

- safetensors: an opened one is the same model, every tensor equal bit by bit. Nothing in a header may change without
  contradicting the file, the configuration or the names that the family demands.
- GGUF, outside its key-value pairs (magic, version, counts, tensor descriptions, padding): the same.
- GGUF, inside them: the pairs are content, and another value is another model by right (a rotary base, a token). Its
  weights are still those of the file, bit by bit; q and k may have their rows in another order, which follows from the
  number of heads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from fuzzing import refusal
from safetensors.numpy import save
from tiny_checkpoints import llama_metadata, write_gguf
from tiny_models import tokenizer

from bitnet_onnx.converters.checkpoints import _tokenizer_check, huggingface
from bitnet_onnx.converters.model import open_model
from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.errors import BitnetOnnxError

ROWS, HIDDEN = 260, 32
CONFIG = {
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": ROWS,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
NORMS = ("attn_norm", "ffn_norm")
MATRICES = {
    "attn_q": (32, 32),
    "attn_k": (16, 32),
    "attn_v": (16, 32),
    "attn_output": (32, 32),
    "ffn_gate": (32, 32),
    "ffn_up": (32, 32),
    "ffn_down": (32, 32),
}
HF_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

Model = tuple[DecoderSpec, Mapping[str, np.ndarray]]


def changed(whole: bytes, positions: range) -> Iterator[tuple[int, bytes]]:
    """The file with one byte 0, 255 or one bit different, and cut before it."""
    for position in positions:
        old = whole[position]
        for new in sorted({0x00, 0xFF, *(old ^ 1 << bit for bit in range(8))} - {old}):
            yield position, whole[:position] + bytes([new]) + whole[position + 1 :]
        yield position, whole[:position]


def read(path: Path) -> Model | None:
    """The model, every value of it, or None where it is refused; anything but one short line is an error."""
    try:
        with open_model(path) as model:
            return model.spec, {role: model.tensors.read(role) for role, _ in model.spec.tensors()}
    except BitnetOnnxError as error:
        refusal(error)
        return None


def same(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The tokenizer is no part of this: checked once, and not in a process of its own for each file.
    monkeypatch.setattr(huggingface, "check_foreign_tokenizer", _tokenizer_check.check_tokenizer)
    rng = np.random.default_rng(1)
    tensors = {"model.embed_tokens.weight": rng.standard_normal((ROWS, HIDDEN)).astype(np.float16)}
    for name in NORMS:
        tensors[f"model.layers.0.{HF_NAMES[name]}.weight"] = rng.standard_normal(HIDDEN).astype(np.float16)
    for name, shape in MATRICES.items():
        tensors[f"model.layers.0.{HF_NAMES[name]}.weight"] = rng.standard_normal(shape).astype(np.float16)
    tensors["model.norm.weight"] = np.ones(HIDDEN, np.float32)
    whole = save(tensors)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(whole)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    tokenizer(ROWS).save(str(tmp_path / "tokenizer.json"))
    original = read(tmp_path)
    assert original is not None

    opened = 0
    for position, data in changed(whole, range(8 + int.from_bytes(whole[:8], "little"))):
        weights.write_bytes(data)
        if (model := read(tmp_path)) is not None:
            opened += 1
            assert model[0] == original[0], position
            assert same(model[1], original[1]), position
    assert opened < 200, "what was a refusal is none any more"


def test_gguf(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    metadata = llama_metadata(
        llama__block_count=1,
        llama__embedding_length=HIDDEN,
        llama__feed_forward_length=HIDDEN,
        llama__attention__head_count=2,
        llama__attention__head_count_kv=1,
    )
    tokens = ["<unk>", "<s>", "</s>", "a", "b", "ab"]
    metadata |= {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": 2,
    }
    tensors = {"token_embd.weight": rng.standard_normal((len(tokens), HIDDEN)).astype(np.float16)}
    for name in NORMS:
        tensors[f"blk.0.{name}.weight"] = rng.standard_normal(HIDDEN).astype(np.float32)
    for name, shape in MATRICES.items():
        tensors[f"blk.0.{name}.weight"] = rng.standard_normal(shape).astype(np.float16)
    tensors["output_norm.weight"] = np.ones(HIDDEN, np.float32)
    path = write_gguf(tmp_path / "x.gguf", metadata, tensors)
    whole = path.read_bytes()
    original = read(path)
    assert original is not None
    pairs = range(24, whole.index(b"token_embd.weight") - 8)
    data_start = len(whole) - sum(-(-values.nbytes // 32) * 32 for values in tensors.values())
    assert data_start % 32 == 0

    refused = 0
    for position, data in changed(whole, range(data_start)):
        path.write_bytes(data)
        model = read(path)
        if model is None:
            refused += 1
        elif position in pairs:
            for role in original[1]:
                one, other = model[1][role], original[1][role]
                if role.endswith(("q_proj.weight", "k_proj.weight")):
                    one, other = (np.sort(values, axis=0) for values in (one, other))
                assert np.array_equal(one, other), (position, role)
        else:
            assert model[0] == original[0], position
            assert same(model[1], original[1]), position
    assert refused > 4 * data_start
