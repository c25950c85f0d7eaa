"""Fuzz target: the header of a safetensors file."""

from __future__ import annotations

import random
import re

from fuzzing import EDGES, ScratchFile, fuzz, refusal, with_edge

from bitnet_onnx.converters.checkpoints import open_checkpoint
from bitnet_onnx.errors import BitnetOnnxError

_scratch = ScratchFile("model.safetensors")
(_scratch.folder / "config.json").write_text('{"model_type": "llama"}')
_DTYPES = (b"F64", b"F32", b"F16", b"BF16", b"U8", b"I8", b"BOOL", b"F8_E4M3", b"F4", b"F6_E2M3", b"C64")


def run(data: bytes) -> None:
    """The tensors cover the data exactly and are read or refused, or the file is refused."""
    try:
        with open_checkpoint(_scratch(data).parent) as checkpoint:
            header = 8 + int.from_bytes(data[:8], "little")
            if sum(info.nbytes for info in checkpoint.tensors.values()) != len(data) - header:
                raise AssertionError("the tensors do not cover the data")
            for name, info in checkpoint.tensors.items():
                try:
                    if checkpoint.read(name).shape != info.shape:
                        raise AssertionError(f"{name}: another shape than told")
                except BitnetOnnxError as error:
                    refusal(error)
    except BitnetOnnxError as error:
        refusal(error)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Another number, type or piece of the header, with the length in front made right again."""
    if len(data) < 8 or rng.random() < 0.1:
        return with_edge(data, rng)
    length = min(int.from_bytes(data[:8], "little"), len(data) - 8)
    text, rest = data[8 : 8 + length], data[8 + length :]
    places = [match.span() for match in re.finditer(rb"-?[0-9]+|(?<=:\")[A-Z0-9_]+|[][{},:\"]", text)]
    if places:
        start, end = rng.choice(places)
        piece = text[start:end]
        if piece[:1].isdigit():
            piece = b"%d" % rng.choice((*EDGES, -1, 2**70, int(piece) + 1, int(piece) // 2))
        elif piece[:1].isalpha():
            piece = rng.choice(_DTYPES)
        else:
            piece = rng.choice((b"", b"{", b"[", b"}", b"]", b",", b'"', b"\\", b"1e9", b"null", piece * 70))
        text = text[:start] + piece + text[end:]
    return len(text).to_bytes(8, "little") + text + rest


def seeds() -> list[bytes]:
    """Small files with tensors of several types, none, and empty ones."""
    import numpy as np
    from safetensors.numpy import save
    from tiny_checkpoints import entry, safetensors_bytes

    two = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float16), "c": np.ones(3, np.uint8)}
    return [
        save(two),
        save(two, metadata={"format": "pt"}),
        safetensors_bytes({"e": entry("BF16", [0, 4], 0, 0), "f": entry("F64", [1], 0, 8)}, bytes(8)),
    ]


if __name__ == "__main__":
    fuzz(run, mutate, seeds())
