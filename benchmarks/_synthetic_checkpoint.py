"""Checkpoints of real sizes with random masters, written as Hugging Face shards without being in memory."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from bitnet_onnx.benchmarks._synthetic import random_tokenizer
from bitnet_onnx.converters.families.bitnet import tensor_name
from bitnet_onnx.decoder import DecoderSpec

#: Bytes of a shard, as `save_pretrained` writes them.
_SHARD: Final = 2 * 10**9
_PART: Final = 1 << 22


def write_random_checkpoint(spec: DecoderSpec, directory: Path) -> int:
    """Write a BitNet checkpoint of dense bfloat16 masters (`autobitlinear`, online) and return its bytes of weights."""
    directory.mkdir(parents=True)
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    room = _SHARD
    for role, shape in spec.tensors():
        size = 2 * math.prod(shape)
        if size > room and shards[-1]:
            shards.append([])
            room = _SHARD
        shards[-1].append((tensor_name(role), shape))
        room -= size
    weight_map: dict[str, str] = {}
    total = 0
    for index, tensors in enumerate(shards):
        name = f"model-{index + 1:05}-of-{len(shards):05}.safetensors"
        total += _write_shard(directory / name, tensors)
        weight_map |= {tensor: name for tensor, _ in tensors}
    documents: dict[str, object] = {
        "config.json": _config(spec),
        "model.safetensors.index.json": {"metadata": {"total_size": total}, "weight_map": weight_map},
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast"},
    }
    for name, document in documents.items():
        (directory / name).write_text(json.dumps(document), encoding="utf-8")
    random_tokenizer(spec.vocab_size).save(str(directory / "tokenizer.json"))
    return total


def _write_shard(path: Path, tensors: list[tuple[str, tuple[int, ...]]]) -> int:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in tensors:
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in tensors:
            for part in _values(name, shape):
                file.write(part.data)
    return offset


def _values(name: str, shape: tuple[int, ...]) -> Iterator[npt.NDArray[np.uint16]]:
    """The bits of a tensor, the same in every run: matrices normal with outputs near one, norms one."""
    size = math.prod(shape)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    for start in range(0, size, _PART):
        count = min(_PART, size - start)
        values = np.ones(count, np.float32)
        if len(shape) == 2:
            rng.standard_normal(out=values, dtype=np.float32)
            values *= np.float32(shape[1] ** -0.5)
        # The upper half of a float32.
        yield (values.view(np.uint32) >> np.uint32(16)).astype("<u2")


def _config(spec: DecoderSpec) -> dict[str, object]:
    rotary = spec.attention[0].rotary
    return {
        "architectures": ["BitNetForCausalLM"],
        "model_type": spec.family,
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.num_hidden_layers,
        "num_attention_heads": spec.num_attention_heads,
        "num_key_value_heads": spec.num_key_value_heads,
        "max_position_embeddings": spec.context_length,
        "rms_norm_eps": spec.norm_epsilon,
        "rope_theta": None if rotary is None else rotary.theta,
        "hidden_act": str(spec.activation),
        "tie_word_embeddings": spec.tie_word_embeddings,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "bfloat16",
        "quantization_config": {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": "online",
            "modules_to_not_convert": ["lm_head"],
        },
    }
