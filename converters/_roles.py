"""A checkpoint seen by role: every tensor that the decoder needs, none that nobody knows."""

from __future__ import annotations

import dataclasses
import difflib
import logging
import re
from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

from bitnet_onnx.converters.checkpoints import Checkpoint
from bitnet_onnx.converters.families import Family
from bitnet_onnx.converters.families._family import Rows, Source
from bitnet_onnx.converters.ternary_scheme import TernaryScheme
from bitnet_onnx.decoder import DecoderSpec
from bitnet_onnx.errors import CheckpointError
from bitnet_onnx.quantized import FloatArray, QuantizedTensor

_log = logging.getLogger(__name__)

_LINEAR: Final = re.compile(r"layers\.\d+\.(attn|mlp)\.[a-z]+_proj")


class CheckpointTensors:
    """Reads tensors by role, after checking names and shapes against the specification.

    Args:
        checkpoint: where they lie.
        family: what they are called.
        spec: what there must be.
        scheme: how a checkpoint with a `quantization_config` stores its linear layers.

    Raises:
        CheckpointError: a tensor is missing, has another shape than the configuration demands, or belongs to nothing.
    """

    def __init__(
        self, checkpoint: Checkpoint, family: Family, spec: DecoderSpec, scheme: TernaryScheme | None = None
    ) -> None:
        self._checkpoint = checkpoint
        self._sources: dict[str, Source] = {}
        self._shapes = dict(spec.tensors())
        sources = {role: family.source(spec, role) for role in self._shapes}
        self._beginnings = _beginnings(family, (source.name for source in sources.values()), checkpoint)
        for role, shape in self._shapes.items():
            source = dataclasses.replace(sources[role], name=self._stored_name(sources[role].name))
            self._check(source, shape)
            self._sources[role] = source
        self._refuse_unknown(family, spec)
        self._masters = frozenset(
            role
            for role in self._shapes
            if _LINEAR.fullmatch(role.removesuffix(".weight")) and self._is_master(role, family, scheme)
        )

    def shape(self, role: str) -> tuple[int, ...]:
        """The tensor's shape."""
        return self._shapes[role]

    def stored(self, role: str) -> tuple[str, str]:
        """The stored type of a tensor, and the file that holds it."""
        info = self._checkpoint.tensors[self._sources[role].name]
        return info.dtype, info.file

    def read(self, role: str) -> FloatArray:
        """A whole tensor as float32."""
        source, shape = self._sources[role], self._shapes[role]
        if source.constant is not None:
            return np.full(shape, source.constant, np.float32)
        if source.rows is not None and len(shape) == 2:
            return self.read_rows(role, 0, shape[0])
        values = self._checkpoint.read(source.name)
        if source.transposed:
            values = np.ascontiguousarray(values.T)
        if source.rows is not None:
            values = values[_indices(source.rows)]
        if source.offset:
            values += np.float32(source.offset)
        return values

    def read_rows(self, role: str, start: int, stop: int) -> FloatArray:
        """Rows `start` to `stop` of a matrix as float32."""
        source = self._sources[role]
        if source.transposed:
            rows = slice(start, stop) if source.rows is None else _indices(source.rows)[start:stop]
            return np.ascontiguousarray(self._checkpoint.read(source.name)[:, rows].T)
        if source.rows is None:
            return self._checkpoint.read_rows(source.name, start, stop)
        return np.concatenate(
            [self._checkpoint.read_rows(source.name, *part) for part in _ranges(source.rows, start, stop)]
        )

    def quantized(self, role: str) -> QuantizedTensor | None:
        """The codes and scales of a matrix that is stored in them, or None."""
        source = self._sources[f"{role}.weight"]
        tensor = self._checkpoint.read_quantized(source.name)
        if tensor is None or source.rows is None:
            return tensor
        rows = _indices(source.rows)
        scale = tensor.scale if tensor.scale.shape == (1,) and not tensor.grid.group_size else tensor.scale[rows]
        return dataclasses.replace(tensor, raw=tensor.raw[rows], scale=scale)

    def is_master(self, role: str) -> bool:
        """Whether a matrix of floats was trained to be rounded to ternary."""
        return f"{role}.weight" in self._masters

    @property
    def trained_ternary(self) -> bool:
        """Whether the model was trained with ternary weights."""
        return bool(self._masters)

    def _is_master(self, role: str, family: Family, scheme: TernaryScheme | None) -> bool:
        if not role.endswith(".weight"):
            return False
        if scheme is None:
            return family.trained_ternary
        return scheme.covers(self._sources[role].name.removesuffix(".weight"))

    def _stored_name(self, name: str) -> str:
        """A family's name for a tensor as this checkpoint has it."""
        for beginning, other in self._beginnings.items():
            if name.startswith(beginning):
                return other + name.removeprefix(beginning)
        return name

    def _check(self, source: Source, shape: tuple[int, ...]) -> None:
        if source.constant is not None:
            return
        info = self._checkpoint.tensors.get(source.name)
        if info is None:
            near = difflib.get_close_matches(source.name, self._checkpoint.tensors, n=1)
            hint = f"; the nearest name is {near[0]!r}" if near else ""
            raise CheckpointError(f"{self._checkpoint.path.name}: tensor {source.name!r} is missing{hint}")
        if source.rows is not None:
            shape = (source.rows.total, *shape[1:])
        if source.transposed:
            shape = shape[::-1]
        if info.shape != shape:
            raise CheckpointError(
                f"{info.file}: tensor {source.name!r} has shape {list(info.shape)}: "
                f"the configuration demands {list(shape)}"
            )

    def _refuse_unknown(self, family: Family, spec: DecoderSpec) -> None:
        known = {source.name for source in self._sources.values()}
        if spec.tie_word_embeddings:
            head = family.source(spec, "lm_head.weight").name
            known |= _other_names(family, head)
        left_out = [name for name in self._checkpoint.tensors if name.startswith(family.left_out) and name not in known]
        if left_out:
            _log.warning(
                "%s: %d tensors that are not of the language model are left out: %s; the package reads text only",
                self._checkpoint.path.name,
                len(left_out),
                ", ".join(part for part in family.left_out if any(name.startswith(part) for name in left_out)),
            )
        known.update(left_out)
        for name, info in self._checkpoint.tensors.items():
            if name not in known and not name.endswith(family.ignored):
                raise CheckpointError(
                    f"{info.file}: tensor {name!r} has no place in a {spec.family} decoder; "
                    f"is the configuration that of another model?"
                )


def _beginnings(family: Family, names: Iterable[str], checkpoint: Checkpoint) -> dict[str, str]:
    """For each beginning of names of the family, that which the checkpoint has."""
    wanted = list(names)
    found = {}
    for beginning, others in family.aliases.items():
        rest = [name.removeprefix(beginning) for name in wanted if name.startswith(beginning)]
        fitting = (other for other in (beginning, *others) if any(other + name in checkpoint.tensors for name in rest))
        found[beginning] = next(fitting, beginning)
    return found


def _other_names(family: Family, name: str) -> set[str]:
    """All names that a tensor may have."""
    names = {name}
    for beginning, others in family.aliases.items():
        if name.startswith(beginning):
            names |= {other + name.removeprefix(beginning) for other in others}
    return names


def _indices(rows: Rows) -> npt.NDArray[np.intp]:
    """The numbers of the rows, in their order."""
    blocks = rows.start + rows.stride * np.arange(rows.count)
    return (blocks[:, None] + np.arange(rows.block)).ravel()


def _ranges(rows: Rows, start: int, stop: int) -> list[tuple[int, int]]:
    """The ranges of the stored tensor that hold rows `start` to `stop` of the role."""
    found = []
    for block in range(start // rows.block, -(-stop // rows.block)):
        first = max(start - block * rows.block, 0)
        last = min(stop - block * rows.block, rows.block)
        base = rows.start + block * rows.stride
        found.append((base + first, base + last))
    return found
