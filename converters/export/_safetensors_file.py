"""Writing safetensors: a header that is known beforehand, then the data as it comes.

Layout: the header's length as a little-endian u64, the header as JSON, then the data without holes. Source: the format
description in the safetensors repository.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bitnet_onnx.converters.checkpoints.huggingface import INDEX, SINGLE
from bitnet_onnx.converters.export._result import Written

#: Bytes of one file of several; a tensor that is larger gets a file of its own.
SHARD_BYTES: Final = 2_000_000_000
#: In the header of each file that we wrote, by which an export is known again.
PRODUCER: Final = "bitnet-onnx"
_ALIGNMENT: Final = 8
_SIZES: Final = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor to write.

    Attributes:
        name: of the tensor.
        dtype: `F32`, `F16`, `BF16` or `U8`.
        shape: its dimensions.
        content: gives the bytes piece by piece.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    content: Callable[[], Iterator[bytes]]

    @property
    def nbytes(self) -> int:
        """Of the data."""
        return math.prod(self.shape) * _SIZES[self.dtype]


def write_safetensors(
    directory: Path, tensors: Sequence[Tensor], *, shard_bytes: int = SHARD_BYTES, written: Written | None = None
) -> None:
    """Write `model.safetensors`, or several files and their index; no more than a piece of a tensor is in memory."""
    shards = list(_shards(tensors, shard_bytes))
    done, total = 0, sum(math.prod(tensor.shape) for tensor in tensors)
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = SINGLE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        with (directory / name).open("xb") as file:
            file.write(_header(shard))
            for tensor in shard:
                count = sum(file.write(piece) for piece in tensor.content())
                if count != tensor.nbytes:
                    raise RuntimeError(f"{tensor.name}: {count} bytes written, {tensor.nbytes} announced")
                places[tensor.name] = name
                done += math.prod(tensor.shape)
                if written is not None:
                    written(done, total, tensor.name)
    if len(shards) > 1:
        total = sum(tensor.nbytes for tensor in tensors)
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def is_export(directory: Path) -> bool:
    """Whether the weights of a directory were written here."""
    files = sorted(directory.glob("model*.safetensors"))
    if not files:
        return False
    with files[0].open("rb") as file:
        start = file.read(8 + 256)
    return f'"producer":"{PRODUCER}"'.encode() in start


def _shards(tensors: Iterable[Tensor], limit: int) -> Iterator[list[Tensor]]:
    shard: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if shard and size + tensor.nbytes > limit:
            yield shard
            shard, size = [], 0
        shard.append(tensor)
        size += tensor.nbytes
    yield shard


def _header(tensors: Sequence[Tensor]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt", "producer": PRODUCER}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.nbytes
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
