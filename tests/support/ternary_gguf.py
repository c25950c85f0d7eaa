"""Packers of the ternary types of GGUF, written from their definitions, one weight at a time where that is clearer."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tiny_checkpoints import description, gguf_bytes, pair, text

Bytes = np.ndarray[Any, np.dtype[np.uint8]]

TQ1_0, TQ2_0, I2_S, Q2_0 = 34, 35, 36, 42


def _half(scale: float) -> bytes:
    return np.float16(scale).tobytes()


def pack_tq1_0(codes: Bytes, scale: float) -> bytes:
    """256 codes: the first 160 in 32 bytes of five digits, 80 in 16 bytes, 16 in 4 bytes of four."""

    def byte(digits: Sequence[int]) -> int:
        value = 0
        for digit in (*digits, 0)[:5]:  # four digits leave the last place empty
            value = value * 3 + int(digit)
        return -(-value * 256 // 243)

    packed = [byte([codes[m + 32 * n] for n in range(5)]) for m in range(32)]
    packed += [byte([codes[160 + m + 16 * n] for n in range(5)]) for m in range(16)]
    packed += [byte([codes[240 + m + 4 * n] for n in range(4)]) for m in range(4)]
    return bytes(packed) + _half(scale)


def pack_tq2_0(codes: Bytes, scale: float) -> bytes:
    """256 codes: of each half, code 32 l + m stands in bits 2 l of byte m."""
    packed = bytearray(64)
    for index, code in enumerate(codes):
        half, inner = divmod(index, 128)
        packed[32 * half + inner % 32] |= int(code) << 2 * (inner // 32)
    return bytes(packed) + _half(scale)


def pack_q2_0(codes: Bytes, scale: float) -> bytes:
    """64 or 128 codes: code j stands in bits 2 (j mod 4) of byte j / 4, after the scale."""
    packed = bytearray(len(codes) // 4)
    for index, code in enumerate(codes):
        packed[index // 4] |= int(code) << 2 * (index % 4)
    return _half(scale) + bytes(packed)


def pack_i2_s(codes: Bytes, scale: float) -> bytes:
    """Any number of blocks of 128 codes: code 32 l + m in bits 6 - 2 l of byte m; a scale and 28 bytes at the end."""
    packed = bytearray(len(codes) // 4)
    for index, code in enumerate(codes):
        block, inner = divmod(index, 128)
        packed[32 * block + inner % 32] |= int(code) << 6 - 2 * (inner // 32)
    return bytes(packed) + struct.pack("<f", scale) + bytes(28)


@dataclass(frozen=True)
class Layout:
    """A ternary type: its id, its block, and how a block is packed."""

    name: str
    type_id: int
    block: int
    pack: Any

    def matrix(self, codes: Bytes, scales: np.ndarray[Any, Any]) -> bytes:
        """Codes `[N, K]` and scales `[N, K / block]` (I2_S: the first of them)."""
        if self.type_id == I2_S:
            return pack_i2_s(codes.ravel(), float(scales.flat[0]))
        blocks = codes.reshape(-1, self.block)
        return b"".join(self.pack(block, scale) for block, scale in zip(blocks, scales.ravel(), strict=True))


LAYOUTS: Mapping[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout("TQ1_0", TQ1_0, 256, pack_tq1_0),
        Layout("TQ2_0", TQ2_0, 256, pack_tq2_0),
        Layout("Q2_0-64", Q2_0, 64, pack_q2_0),
        Layout("Q2_0-128", Q2_0, 128, pack_q2_0),
        Layout("I2_S", I2_S, 128, pack_i2_s),
    )
}


@dataclass(frozen=True)
class Stored:
    """A tensor as bytes; `shape` has the fastest dimension last."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    data: bytes


def floats(name: str, values: np.ndarray[Any, Any]) -> Stored:
    """A float32 tensor."""
    return Stored(name, values.shape, 0, values.astype("<f4").tobytes())


def write_raw(
    path: Path, metadata: Mapping[str, Any], tensors: Sequence[Stored], *, architecture: str = "llama", pad: bool = True
) -> Path:
    """A GGUF file with tensors of any type; without `pad` nothing follows the last one."""
    keys = [pair("general.architecture", 8, text(architecture))]
    for key, value in metadata.items():
        match value:
            case bool():
                keys.append(pair(key, 7, bytes([value])))
            case int():
                keys.append(pair(key, 4, struct.pack("<I", value)))
            case float():
                keys.append(pair(key, 6, struct.pack("<f", value)))
            case str():
                keys.append(pair(key, 8, text(value)))
            case [str(), *_]:
                keys.append(pair(key, 9, struct.pack("<IQ", 8, len(value)) + b"".join(map(text, value))))
            case [int(), *_]:
                keys.append(pair(key, 9, struct.pack(f"<IQ{len(value)}i", 5, len(value), *value)))
            case _:
                raise TypeError(key)
    descriptions, data = [], b""
    for tensor in tensors:
        data += bytes(-len(data) % 32)
        descriptions.append(description(tensor.name, tensor.shape[::-1], tensor.type_id, len(data)))
        data += tensor.data
    if pad:
        data += bytes(-len(data) % 32)
    path.write_bytes(gguf_bytes(keys, descriptions, data=data))
    return path
