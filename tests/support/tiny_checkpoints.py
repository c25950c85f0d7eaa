"""Tiny checkpoints written from scratch, and the raw pieces to write broken ones."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FF, LAYERS = 64, 4, 2, 16, 96, 2

CONFIG: dict[str, Any] = {"model_type": "llama", "vocab_size": 300, "hidden_size": HIDDEN}


# --- safetensors ---------------------------------------------------------------------------------------------


def safetensors_bytes(header: object, data: bytes = b"") -> bytes:
    """A safetensors file with any header: bytes are taken as they are, anything else becomes JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: str = "F32", shape: object = (2, 3), begin: object = 0, end: object = 24) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write_directory(directory: Path, weights: bytes, config: object = CONFIG) -> Path:
    """A directory with config.json and model.safetensors."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_bytes(config if isinstance(config, bytes) else json.dumps(config).encode())
    (directory / "model.safetensors").write_bytes(weights)
    return directory


# --- tokenizers ----------------------------------------------------------------------------------------------


def byte_alphabet() -> list[str]:
    """The 256 characters of byte-level BPE, by byte."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    table = {byte: chr(byte) for byte in shown} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}
    return [table[byte] for byte in range(256)]


BPE_MERGES = [
    "h e",
    "l l",
    "he ll",
    "hell o",
    "\u0120 w",
    "o r",
    "\u0120w or",
    "l d",
    "\u0120wor ld",
    "1 2",
    "\u0120 \u0120",
]
BPE_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
BPE_USER = ["<think>"]


def bpe_metadata(pre: str | None = "smollm") -> dict[str, Any]:
    """Metadata of a byte-level tokenizer with 3 control tokens, 256 bytes, the merges and one user token."""
    merged = ["".join(merge.split(" ")) for merge in BPE_MERGES]
    tokens = [*BPE_SPECIAL, *byte_alphabet(), *merged, *BPE_USER]
    types = [3] * len(BPE_SPECIAL) + [1] * (256 + len(merged)) + [4] * len(BPE_USER)
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": BPE_MERGES,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": "{{ messages }}",
    }
    return metadata | ({"tokenizer.ggml.pre": pre} if pre else {})


def sentencepiece_metadata() -> dict[str, Any]:
    """Metadata of a SentencePiece tokenizer: unk, bos, eos, 256 bytes, scored pieces."""
    words = ["\u2581the", "\u2581th", "\u2581t", "he", "th", "er", "\u2581\u2581", "in", "\u2581in", "ing", "\u2581a"]
    letters = ["\u2581", *"abcdefghijklmnopqrstuvwxyz"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words, *letters]
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(words) + len(letters))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * (len(words) + len(letters)),
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


# --- GGUF ----------------------------------------------------------------------------------------------------


def llama_metadata(**changes: Any) -> dict[str, Any]:
    """Metadata of a Llama with the sizes above; a change of None removes the key (`__` stands for a dot)."""
    metadata: dict[str, Any] = {
        "general.name": "tiny",
        "llama.block_count": LAYERS,
        "llama.context_length": 128,
        "llama.embedding_length": HIDDEN,
        "llama.feed_forward_length": FF,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": HEAD_DIM,
        "llama.rope.freq_base": 10000.0,
    }
    metadata |= {key.replace("__", "."): value for key, value in changes.items()}
    return {key: value for key, value in metadata.items() if value is not None}


def llama_tensors(rows: int, *, seed: int = 0, untied: bool = False) -> dict[str, np.ndarray[Any, Any]]:
    """Random tensors under their GGUF names, in the order of the file (q and k already in rotary pairs)."""
    random = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (rows, HIDDEN), "output_norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.{name}.weight": shape
            for name, shape in {
                "attn_norm": (HIDDEN,),
                "attn_q": (HEADS * HEAD_DIM, HIDDEN),
                "attn_k": (KV_HEADS * HEAD_DIM, HIDDEN),
                "attn_v": (KV_HEADS * HEAD_DIM, HIDDEN),
                "attn_output": (HIDDEN, HEADS * HEAD_DIM),
                "ffn_norm": (HIDDEN,),
                "ffn_gate": (FF, HIDDEN),
                "ffn_up": (FF, HIDDEN),
                "ffn_down": (HIDDEN, FF),
            }.items()
        }
    if untied:
        shapes["output.weight"] = (rows, HIDDEN)
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray[Any, Any]],
    types: Mapping[str, gguf.GGMLQuantizationType] | None = None,
    architecture: str = "llama",
) -> Path:
    """A GGUF file by the official writer; `types` quantizes some tensors."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, values in tensors.items():
        kind = (types or {}).get(name)
        if kind is None:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def text(value: str | bytes) -> bytes:
    """A GGUF string."""
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    """A GGUF key-value pair with any value."""
    return text(key) + struct.pack("<I", kind) + value


def description(
    name: str, shape: Iterable[int] = (32,), kind: int = 0, offset: int = 0, dimensions: int | None = None
) -> bytes:
    """A GGUF tensor description with anything in it; `shape` is in GGUF order."""
    sizes = list(shape)
    count = len(sizes) if dimensions is None else dimensions
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", count, *sizes, kind, offset)


def gguf_bytes(
    pairs: Iterable[bytes] = (),
    descriptions: Iterable[bytes] = (),
    *,
    version: int = 3,
    magic: bytes = b"GGUF",
    data: bytes = b"",
    keys: int | None = None,
    tensors: int | None = None,
) -> bytes:
    """A GGUF file put together by hand; `keys` and `tensors` replace the true counts."""
    pairs, descriptions = list(pairs), list(descriptions)
    head = magic + struct.pack("<IQQ", version, len(descriptions) if tensors is None else tensors,
                               len(pairs) if keys is None else keys)  # fmt: skip
    head += b"".join(pairs) + b"".join(descriptions)
    return head + bytes(-len(head) % 32) + data
