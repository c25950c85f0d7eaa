"""How each tensor of a GGUF file is stored, where its type id alone does not say it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bitnet_onnx.converters.checkpoints._types import (
    GGUF_REFUSED,
    GGUF_TYPES,
    I2_S,
    I2_S_LAYOUTS,
    Q2_0,
    Q2_0_LAYOUTS,
    StorageType,
)
from bitnet_onnx.errors import CheckpointError, UnsupportedError
from bitnet_onnx.json_input import shown


@dataclass(frozen=True, slots=True)
class Description:
    """A tensor as the header describes it; `shape` has the fastest dimension last, `offset` counts from the data."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def storage_types(
    descriptions: Sequence[Description], *, data_size: int, alignment: int, i2s_layout: str | None, source: str
) -> list[StorageType]:
    """The storage type of each tensor.

    Args:
        descriptions: of all tensors of a file, in the order of their offsets.
        data_size: bytes from the start of the data to the end of the file.
        alignment: of the tensors.
        i2s_layout: a key of `I2_S_LAYOUTS`, or None to refuse I2_S.
        source: the file, for messages.

    Raises:
        CheckpointError: rows are not whole blocks, or the sizes of Q2_0 tensors fit neither of its layouts, both, or
            not the same one throughout.
        UnsupportedError: a type that is not read.
    """
    q2_0 = _q2_0_layout(descriptions, data_size, alignment, source)
    kinds = []
    for item in descriptions:
        where = f"{source}: tensor {shown(item.name)}"
        if item.type_id == I2_S and i2s_layout is None:
            raise UnsupportedError(
                f"{where}: I2_S (type id 36) has several byte layouts and the file does not say which; where the file "
                f"was made for x86 (blocks of 128), say --i2s-layout x86, else use the original checkpoint or TQ2_0"
            )
        if item.type_id in GGUF_REFUSED:
            raise UnsupportedError(f"{where}: type id {item.type_id}: {GGUF_REFUSED[item.type_id]}")
        if item.type_id == I2_S and i2s_layout is not None:
            kind = I2_S_LAYOUTS[i2s_layout]
        elif item.type_id == Q2_0 and q2_0 is not None:
            kind = q2_0
        elif item.type_id in GGUF_TYPES:
            kind = GGUF_TYPES[item.type_id]
        else:
            raise UnsupportedError(f"{where}: type id {item.type_id} is not known")
        if item.shape[-1] % kind.block:
            raise CheckpointError(
                f"{where}: rows of {item.shape[-1]} are not whole blocks of {kind.block} ({kind.name})"
            )
        kinds.append(kind)
    return kinds


def _q2_0_layout(
    descriptions: Sequence[Description], data_size: int, alignment: int, source: str
) -> StorageType | None:
    """The layout of Q2_0 in this file, from the room between each such tensor and the next; None where there is none.

    One program wrote the file, so all have the same layout: those that leave a choice follow those that do not.
    """
    possible = set(Q2_0_LAYOUTS)
    found = False
    for index, item in enumerate(descriptions):
        if item.type_id != Q2_0:
            continue
        found = True
        last = index + 1 == len(descriptions)
        room = (data_size if last else descriptions[index + 1].offset) - item.offset
        fitting = {layout for layout in Q2_0_LAYOUTS if _fits(item, layout, room, alignment, last=last)}
        where = f"{source}: tensor {shown(item.name)}"
        if not fitting:
            sizes = " or ".join(f"{layout.size(item.elements)} (blocks of {layout.block})" for layout in Q2_0_LAYOUTS)
            raise CheckpointError(f"{where}: Q2_0 {list(item.shape)} takes {sizes} bytes, but has {room}")
        if not possible & fitting:
            raise CheckpointError(
                f"{where}: Q2_0 in blocks of {fitting.pop().block}, but another tensor has blocks of "
                f"{possible.pop().block}"
            )
        possible &= fitting
    if found and len(possible) > 1:
        raise CheckpointError(
            f"{source}: the sizes of the Q2_0 tensors fit blocks of 64 and of 128; use the original checkpoint or TQ2_0"
        )
    return possible.pop() if found else None


def _fits(item: Description, layout: StorageType, room: int, alignment: int, *, last: bool) -> bool:
    """Whether the tensor fills its room up to the alignment; after the last one writers may leave the padding out."""
    if item.shape[-1] % layout.block:
        return False
    size = layout.size(item.elements)
    padded = -(-size // alignment) * alignment
    return size <= room <= padded if last else room == padded
