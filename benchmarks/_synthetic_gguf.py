"""The same shape as a GGUF file for llama.cpp: ternary TQ2_0 blocks, Q6_K embedding and head.

A decoder with sub-norms is llama.cpp's architecture `bitnet`. llama-cpp-python 0.3.36 applies silu to its gate
whatever the file says; later sources of llama.cpp read `hidden_activation`. Either is one pass over the same numbers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import gguf
import numpy as np

from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.errors import InputError
from bitnet_onnx.quantized import ByteArray

#: Weights of one block of both encodings.
_BLOCK: Final = 256
#: The bytes of four codes 0, 1, 2: in TQ2_0 the value is the code less one.
_TERNARY_BYTES = np.array([b for b in range(256) if all(b >> shift & 3 < 3 for shift in (0, 2, 4, 6))], np.uint8)
_LINEARS: Final[dict[str, Callable[[DecoderSpec], tuple[int, int]]]] = {
    "attn_q": lambda s: (s.attention_size, s.hidden_size),
    "attn_k": lambda s: (s.key_value_size, s.hidden_size),
    "attn_v": lambda s: (s.key_value_size, s.hidden_size),
    "attn_output": lambda s: (s.hidden_size, s.attention_size),
    "ffn_gate": lambda s: (s.intermediate_size, s.hidden_size),
    "ffn_up": lambda s: (s.intermediate_size, s.hidden_size),
    "ffn_down": lambda s: (s.hidden_size, s.intermediate_size),
}


def write_gguf(spec: DecoderSpec, path: Path, name: str) -> None:
    """Write random weights in the precisions that llama.cpp's own quantizer gives a tied ternary model.

    Raises:
        InputError: a width is no multiple of 256, which both encodings demand, or no architecture of llama.cpp is
            like this decoder.
    """
    architecture = _architecture(spec, name)
    for width in (spec.hidden_size, spec.attention_size, spec.intermediate_size):
        if width % _BLOCK:
            raise InputError(f"a layer of {name} has {width} columns: TQ2_0 demands multiples of {_BLOCK}")
    rng = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        work = Path(folder, path.name)
        writer = gguf.GGUFWriter(work, architecture)
        _add_metadata(writer, spec, name)
        _add(writer, "token_embd", _q6_k(rng, spec.vocab_size, spec.hidden_size), gguf.GGMLQuantizationType.Q6_K)
        for index in range(spec.num_hidden_layers):
            for norm, width in _norms(spec).items():
                writer.add_tensor(f"blk.{index}.{norm}.weight", np.ones(width, np.float32))
            for linear, size in _LINEARS.items():
                blocks = _tq2_0(rng, *size(spec))
                _add(writer, f"blk.{index}.{linear}", blocks, gguf.GGMLQuantizationType.TQ2_0)
        writer.add_tensor("output_norm.weight", np.ones(spec.hidden_size, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        work.replace(path)


def _architecture(spec: DecoderSpec, name: str) -> str:
    match spec.activation, spec.attention_sub_norm, spec.mlp_sub_norm:
        case "silu", False, False:
            return "llama"
        case "relu2", True, True if spec.attention_size == spec.hidden_size:
            return "bitnet"
        case _:
            raise InputError(
                f"{name} is {spec.activation} with sub-norms {spec.attention_sub_norm}, {spec.mlp_sub_norm}: "
                "llama.cpp has silu without any, and relu2 with both on heads as wide as the hidden size"
            )


def _norms(spec: DecoderSpec) -> dict[str, int]:
    """The norms of a block with their sizes."""
    norms = {"attn_norm": spec.hidden_size, "ffn_norm": spec.hidden_size}
    if spec.attention_sub_norm:
        norms["attn_sub_norm"] = spec.attention_size
    if spec.mlp_sub_norm:
        norms["ffn_sub_norm"] = spec.intermediate_size
    return norms


def _add_metadata(writer: gguf.GGUFWriter, spec: DecoderSpec, name: str) -> None:
    writer.add_name(name)
    writer.add_context_length(spec.context_length)
    writer.add_embedding_length(spec.hidden_size)
    writer.add_block_count(spec.num_hidden_layers)
    writer.add_feed_forward_length(spec.intermediate_size)
    writer.add_head_count(spec.num_attention_heads)
    writer.add_head_count_kv(spec.num_key_value_heads)
    writer.add_key_length(spec.head_dim)
    writer.add_value_length(spec.head_dim)
    writer.add_layer_norm_rms_eps(spec.norm_epsilon)
    rotary = spec.layer(0).rotary
    if rotary is not None:
        writer.add_rope_dimension_count(rotary.dim)
        writer.add_rope_freq_base(rotary.theta)
    writer.add_vocab_size(spec.vocab_size)
    if spec.activation != "silu":
        writer.add_string(f"{writer.arch}.hidden_activation", spec.activation)
    # Only ids are read: no text, no tokenizer.
    writer.add_tokenizer_model("no_vocab")


def _add(writer: gguf.GGUFWriter, name: str, blocks: ByteArray, kind: gguf.GGMLQuantizationType) -> None:
    writer.add_tensor(f"{name}.weight", blocks, raw_dtype=kind)


def _tq2_0(rng: np.random.Generator, rows: int, columns: int) -> ByteArray:
    """64 bytes of codes and a float16 step in each block."""
    blocks = np.empty((rows, columns // _BLOCK, 66), np.uint8)
    codes = rng.integers(0, 256, (rows, columns // _BLOCK, 64), np.uint8)
    blocks[..., :64] = _TERNARY_BYTES[codes % len(_TERNARY_BYTES)]
    blocks[..., 64:] = np.array([(1.5 / columns) ** 0.5], np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)


def _q6_k(rng: np.random.Generator, rows: int, columns: int) -> ByteArray:
    """192 bytes of codes, 16 scales of 8 bits and a float16 step in each block."""
    blocks = rng.integers(0, 256, (rows, columns // _BLOCK, 210), np.uint8)
    blocks[..., 192:208] = 32
    blocks[..., 208:] = np.array([1e-3], np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)
