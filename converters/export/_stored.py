"""The tensors of a Hugging Face checkpoint out of the roles of a decoder: the way back from `Family.source`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from bitnet_onnx.converters._roles import row_indices, source_of
from bitnet_onnx.converters.export._ternary import single_scale, ternary_matrix
from bitnet_onnx.converters.families import Family
from bitnet_onnx.converters.families._family import Source
from bitnet_onnx.converters.model import Tensors
from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.errors import UnsupportedError
from bitnet_onnx.json_input import shown
from bitnet_onnx.quantized import TERNARY, ByteArray, FloatArray, QuantizedTensor

_LINEAR: Final = re.compile(r"layers\.\d+\.(attn|mlp)\.[a-z]+_proj\.weight")
#: Floats in memory at once where a matrix can be written a few rows at a time.
_CHUNK: Final = 1 << 22


@dataclass(slots=True)
class StoredForm:
    """A tensor of a checkpoint, and the roles that lie in it.

    Attributes:
        name: of the tensor.
        shape: as it is stored.
        parts: the roles with their places.
    """

    name: str
    shape: tuple[int, ...]
    parts: list[tuple[str, Source]] = field(default_factory=list)

    @property
    def is_linear(self) -> bool:
        """Whether this is a matrix of the blocks."""
        return all(_LINEAR.fullmatch(role) for role, _ in self.parts)

    @property
    def transposed(self) -> bool:
        """Whether it is stored `[in, out]`."""
        return self.parts[0][1].transposed

    @property
    def module(self) -> str:
        """The name without `.weight`."""
        return self.name.removesuffix(".weight")

    def floats(self, tensors: Tensors) -> Iterator[FloatArray]:
        """The values row after row, a few rows at a time where they need not be put together."""
        (role, source), *others = self.parts
        if not others and source.rows is None and not source.transposed and len(self.shape) == 2:
            step = max(1, _CHUNK // self.shape[1])
            for start in range(0, self.shape[0], step):
                yield tensors.read_rows(role, start, min(start + step, self.shape[0]))
            return
        whole = np.empty(self.shape, np.float32)
        view = whole.T if self.transposed else whole
        for role, source in self.parts:
            values = tensors.read(role)
            view[... if source.rows is None else row_indices(source.rows)] = values - np.float32(source.offset)
        yield whole

    def ternary(self, tensors: Tensors) -> QuantizedTensor | None:
        """The codes and scales of a matrix `[out, in]` all of whose parts are ternary, else None.

        One scale where all parts have the same, else one a row or a group; None too where the groups differ.
        """
        raw: ByteArray | None = None
        scale = np.empty(0, np.float32)
        grid, single = TERNARY, set[np.float32 | None]()
        for role, source in self.parts:
            part = ternary_matrix(tensors, role.removesuffix(".weight"))
            if part is None:
                return None
            if len(self.parts) == 1 and source.rows is None:
                return part
            rows = slice(None) if source.rows is None else row_indices(source.rows)
            of_rows = part.with_row_scales()
            if raw is None:
                total = self.shape[-1 if self.transposed else 0]
                raw = np.empty((total, part.shape[1]), np.uint8)
                scale, grid = np.empty((total, *of_rows.scale.shape[1:]), np.float32), part.grid
            elif part.grid != grid:
                return None
            raw[rows], scale[rows] = part.raw, of_rows.scale
            single.add(single_scale(part))
        if raw is None:
            return None
        if len(single) == 1 and None not in single and not grid.group_size:
            scale = scale[:1].copy()
        return QuantizedTensor(raw, scale, grid)


def stored_forms(family: Family, spec: DecoderSpec) -> list[StoredForm]:
    """Every tensor that a checkpoint of the family has, in the order in which the decoder needs them.

    Raises:
        UnsupportedError: a tensor holds rows that belong to no role.
    """
    forms: dict[str, StoredForm] = {}
    rows: dict[str, int] = {}
    for role, shape in spec.tensors():
        source = source_of(family, spec, role)
        if source.constant is not None:  # nothing is stored of it
            continue
        total = shape[0] if source.rows is None else source.rows.total
        stored = (total, *shape[1:])
        form = forms.setdefault(source.name, StoredForm(source.name, stored[::-1] if source.transposed else stored))
        form.parts.append((role, source))
        rows[source.name] = rows.get(source.name, 0) + shape[0]
    for name, form in forms.items():
        total = form.shape[-1 if form.transposed else 0]
        if rows[name] != total:
            raise UnsupportedError(f"tensor {shown(name)} has {total} rows: {rows[name]} of them belong to the decoder")
    return list(forms.values())
