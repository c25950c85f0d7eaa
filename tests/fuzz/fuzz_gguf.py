"""Fuzz target: a GGUF file, from its first byte to the tokenizer and the values of its tensors."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from fuzzing import ScratchFile, fuzz, refusal, with_edge

from bitnet_onnx.converters.checkpoints import open_checkpoint
from bitnet_onnx.errors import BitnetOnnxError

_scratch = ScratchFile("fuzz.gguf")


def run(data: bytes) -> None:
    """A checkpoint whose tensors and tokenizer can be read or are refused, or a refusal."""
    try:
        with open_checkpoint(_scratch(data)) as checkpoint:
            for name, info in checkpoint.tensors.items():
                try:
                    values = checkpoint.read(name)
                    if values.shape != info.shape:
                        raise AssertionError(f"{name}: {values.shape} read, {info.shape} told")
                    checkpoint.read_quantized(name)
                except BitnetOnnxError as error:
                    refusal(error)
            checkpoint.tokenizer()
    except BitnetOnnxError as error:
        refusal(error)


def seeds() -> list[bytes]:
    """Small files: a block with one matrix in blocks of four bits, and each kind of tokenizer without a block."""
    import gguf
    from tiny_checkpoints import bpe_metadata, llama_metadata, sentencepiece_metadata, write_gguf

    sizes = llama_metadata(
        llama__embedding_length=32,
        llama__feed_forward_length=32,
        llama__attention__head_count=2,
        llama__attention__head_count_kv=1,
    )
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for index, tokens in enumerate(({}, _small(bpe_metadata()), _small(sentencepiece_metadata()))):
            rows = len(tokens.get("tokenizer.ggml.tokens", "abc"))
            tensors = {
                "token_embd.weight": np.ones((rows, 32), np.float32),
                "output_norm.weight": np.ones(32, np.float32),
            }
            if not tokens:
                tensors |= {
                    "blk.0.attn_q.weight": np.ones((32, 32), np.float32),
                    "blk.0.attn_norm.weight": np.ones(32, np.float32),
                }
            types = dict.fromkeys(("token_embd.weight", "blk.0.attn_q.weight"), gguf.GGMLQuantizationType.Q4_0)
            metadata = sizes | {"llama.block_count": int(not tokens)} | tokens
            path = write_gguf(Path(folder) / f"{index}.gguf", metadata, tensors, types)
            found.append(path.read_bytes())
    return found


def _small(metadata: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer without most of its tokens: fuzzers like small files."""
    count = len(metadata["tokenizer.ggml.tokens"])
    keep = [0, 1, 2, 40, 50, count - 2, count - 1]
    result = dict(metadata)
    for key in ("tokens", "token_type", "scores"):
        if (name := f"tokenizer.ggml.{key}") in metadata:
            result[name] = [metadata[name][index] for index in keep]
    if "tokenizer.ggml.merges" in metadata:
        a, b = result["tokenizer.ggml.tokens"][3:5]
        result["tokenizer.ggml.tokens"][5] = a + b
        result["tokenizer.ggml.merges"] = [f"{a} {b}"]
    return result


if __name__ == "__main__":
    fuzz(run, with_edge, seeds())
