"""A quantized matrix: unsigned integers on a grid, and the value of one step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from bitnet_onnx.errors import InputError

FloatArray = npt.NDArray[np.float32]
ByteArray = npt.NDArray[np.uint8]

BITS: Final = (2, 4, 6, 8)
GROUP_MULTIPLE: Final = 32


@dataclass(frozen=True, slots=True)
class Grid:
    """The integers that a weight may take.

    A weight is `raw` in `0 .. 2**bits - 1` and means `scale * (raw - zero_point)`.

    Attributes:
        bits: of one stored weight: 2, 4, 6 or 8.
        zero_point: the raw value that means zero.
        group_size: columns that share one scale; 0 for one scale a row or a tensor.
    """

    bits: int
    zero_point: int
    group_size: int = 0

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise InputError(f"bits is {self.bits}: it must be 2, 4, 6 or 8")
        if not 0 <= self.zero_point < self.levels:
            raise InputError(f"zero_point is {self.zero_point}: it must be 0 to {self.levels - 1}")
        if self.group_size < 0 or self.group_size % GROUP_MULTIPLE:
            raise InputError(f"group size is {self.group_size}: it must be 0 or a multiple of {GROUP_MULTIPLE}")

    @property
    def levels(self) -> int:
        """How many raw values there are."""
        return 1 << self.bits

    @property
    def is_ternary(self) -> bool:
        """Whether the integers are -1, 0 and 1, which of two bits leaves the lowest raw value unused."""
        return (self.bits, self.zero_point) == (TERNARY.bits, TERNARY.zero_point)

    def groups(self, in_features: int) -> int:
        """Number of scale columns for rows of `in_features`; the last group may be short."""
        return -(-in_features // self.group_size) if self.group_size else 1


#: Two bits whose value 0 never occurs: -1, 0, +1 are 1, 2, 3.
TERNARY: Final = Grid(bits=2, zero_point=2)


@dataclass(frozen=True, slots=True)
class QuantizedTensor:
    """A matrix `[N, K]` of raw integers with its scales.

    Attributes:
        raw: uint8 `[N, K]`, the unsigned integers of `grid`.
        scale: float32, value of one step: `[1]` (tensor), `[N]` (rows) or `[N, groups]`.
        grid: which integers there are and what zero is.
    """

    raw: ByteArray
    scale: FloatArray
    grid: Grid

    def __post_init__(self) -> None:
        if self.raw.ndim != 2 or self.raw.dtype != np.uint8:
            raise InputError(f"raw weights are {self.raw.dtype}{list(self.raw.shape)}: expected uint8 [N, K]")
        rows, columns = self.raw.shape
        allowed = [(rows, self.grid.groups(columns))] if self.grid.group_size else [(1,), (rows,)]
        if self.scale.shape not in allowed or self.scale.dtype != np.float32:
            raise InputError(
                f"scale is {self.scale.dtype}{list(self.scale.shape)}: expected float32 "
                + " or ".join(str(list(shape)) for shape in allowed)
            )

    @property
    def shape(self) -> tuple[int, int]:
        """`(N, K)`: out features, in features."""
        rows, columns = self.raw.shape
        return rows, columns

    def step(self) -> FloatArray:
        """The scale of every weight, float32, broadcast to `[N, K]`."""
        rows, columns = self.shape
        if self.grid.group_size:
            return np.repeat(self.scale, self.grid.group_size, axis=1)[:, :columns]
        return np.broadcast_to(self.scale.reshape(-1, 1), (rows, columns))

    def signed(self) -> npt.NDArray[np.int16]:
        """`raw - zero_point`, int16 `[N, K]`."""
        return self.raw.astype(np.int16) - np.int16(self.grid.zero_point)

    def dequantize(self) -> FloatArray:
        """The weights as float32 `[N, K]`: `scale * (raw - zero_point)`."""
        values = np.subtract(self.raw, np.float32(self.grid.zero_point))
        rows, columns = self.shape
        size = self.grid.group_size
        if size and columns % size == 0:
            grouped = values.reshape(rows, columns // size, size)
            grouped *= self.scale[:, :, None]
        else:
            values *= self.step()
        return values

    def rows(self, start: int, stop: int) -> QuantizedTensor:
        """Some of the rows, without a copy."""
        scale = self.scale if self.scale.shape == (1,) and not self.grid.group_size else self.scale[start:stop]
        return QuantizedTensor(self.raw[start:stop], scale, self.grid)

    def bits_per_weight(self) -> float:
        """Stored bits of a weight, scales included and padding not."""
        return self.grid.bits + 32.0 * self.scale.size / max(self.raw.size, 1)

    def with_row_scales(self) -> QuantizedTensor:
        """The same matrix with one scale a row (a tensor's single scale is repeated)."""
        if self.grid.group_size or self.scale.shape == (self.shape[0],):
            return self
        return QuantizedTensor(self.raw, np.repeat(self.scale, self.shape[0]), self.grid)


def concatenate(tensors: list[QuantizedTensor]) -> QuantizedTensor:
    """Stack matrices of one grid and one K along N, so that one operator call serves all of them.

    Raises:
        InputError: the grids or the numbers of columns differ.
    """
    grids = {tensor.grid for tensor in tensors}
    columns = {tensor.shape[1] for tensor in tensors}
    if len(grids) != 1 or len(columns) != 1:
        raise InputError(f"matrices of different grids or widths cannot share one call: {grids}, {columns}")
    parts = [tensor.with_row_scales() for tensor in tensors]
    return QuantizedTensor(
        np.concatenate([part.raw for part in parts]),
        np.concatenate([part.scale for part in parts]),
        grids.pop(),
    )
